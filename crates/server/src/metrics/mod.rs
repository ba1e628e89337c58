//! `/metrics`, in Prometheus' text format: the engine's counts, what lies where, and the times that clients see.

mod text;

use ashlar_runtime::engine::EngineStats;
use ashlar_runtime::prefixes::PrefixStats;
use ashlar_runtime::{CachePlace, Holding};
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use text::Kind::{Counter, Gauge};
use text::{Histogram, Text};

/// What is measured at the edge, where clients see it, and what does not change.
pub struct Metrics {
    /// As text.
    weights: String,
    caches: Vec<CachePlace>,
    first: Mutex<Histogram>,
    between: Mutex<Histogram>,
    waiting: Mutex<Histogram>,
}

impl Metrics {
    /// Of a model with these weights and caches.
    pub fn new(holdings: &[Holding], caches: Vec<CachePlace>) -> Self {
        let one = |h: &Holding| {
            let labels = place(&h.device, h.tier, h.layer);
            (format!("{labels},class=\"{}\"", h.class), h.bytes)
        };
        let mut weights = Text::default();
        let help = "Weights by device, tier, layer and class, bytes";
        weights.many(Gauge, "weight_bytes", help, holdings.iter().map(one));
        let (first, between, waiting) = Default::default();
        Self { weights: weights.0, caches, first, between, waiting }
    }

    /// From a request's arrival to its first token.
    pub fn first_token(&self, after: Duration) {
        add(&self.first, after);
    }

    /// From one token of a request to its next.
    pub fn next_token(&self, after: Duration) {
        add(&self.between, after);
    }

    /// From a request's arrival to its start.
    pub fn waited(&self, time: Duration) {
        add(&self.waiting, time);
    }

    /// Everything as text.
    pub fn render(&self, stats: &EngineStats) -> String {
        let mut text = Text::default();
        requests(&mut text, stats);
        beginnings(&mut text, stats);
        if let Some(disk) = &stats.prefixes {
            kept(&mut text, disk);
        }
        self.memory(&mut text, stats);
        experts(&mut text, stats);
        let of = |h: &Mutex<Histogram>| h.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for (name, help, histogram) in [
            ("time_to_first_token_seconds", "From a request's arrival to its first token", &self.first),
            ("time_between_tokens_seconds", "From one token of a request to its next", &self.between),
            ("time_in_queue_seconds", "From a request's arrival to its start", &self.waiting),
        ] {
            text.histogram(name, help, &of(histogram));
        }
        text.0
    }

    /// What lies where.
    fn memory(&self, text: &mut Text, stats: &EngineStats) {
        text.0.push_str(&self.weights);
        text.one(Gauge, "kv_bytes", "Keys and values in use, bytes", stats.kv_by_cache.iter().sum::<u64>());
        text.one(Gauge, "kv_budget_bytes", "Bytes that keys and values may take", stats.kv_most);
        // A layer may have several caches.
        let mut layers = BTreeMap::new();
        for (CachePlace { device, tier, layer }, bytes) in self.caches.iter().zip(&stats.kv_by_cache) {
            *layers.entry((device, tier, layer)).or_insert(0) += bytes;
        }
        let layers = layers.into_iter().map(|((device, tier, layer), bytes)| (place(device, tier, *layer), bytes));
        text.many(Gauge, "kv_layer_bytes", "Keys and values in use by device, tier and layer, bytes", layers);
        let help = "Buffers and reserved or filled caches by device and class, bytes";
        let devices = stats.memory.iter().flat_map(|(device, memory)| {
            let one = |class: &str, bytes| (format!("device=\"{device}\",class=\"{class}\""), bytes);
            [one("activations", memory.activations), one("kv", memory.caches)]
        });
        text.many(Gauge, "device_bytes", help, devices);
    }
}

fn requests(text: &mut Text, stats: &EngineStats) {
    let now = Instant::now();
    text.one(Gauge, "requests_running", "Requests that hold a slot", stats.running);
    text.one(Gauge, "requests_waiting", "Requests in the queue", stats.waiting);
    text.one(Counter, "requests_ended_total", "Requests that ended in any way", stats.ended);
    text.one(Counter, "requests_refused_total", "Requests refused", stats.refused);
    let help = "Running requests that had to wait again for memory";
    text.one(Counter, "requests_preempted_total", help, stats.preempted);
    text.one(Counter, "steps_total", "Batches", stats.steps);
    text.one(Counter, "tokens_in_total", "Tokens of prompts computed", stats.tokens_in);
    text.one(Counter, "tokens_out_total", "Tokens generated", stats.tokens_out);
    let help = "Tokens of prompts computed per second, in the last ten";
    text.one(Gauge, "tokens_in_per_second", help, stats.rate_in.per_second(now));
    let help = "Tokens generated per second, in the last ten";
    text.one(Gauge, "tokens_out_per_second", help, stats.rate_out.per_second(now));
}

fn beginnings(text: &mut Text, stats: &EngineStats) {
    const SAVED: &str = "Tokens not computed because of that";
    text.one(Counter, "prefix_hits_total", "Requests whose prompt began like an earlier one", stats.prefix_hits);
    text.one(Counter, "prefix_tokens_total", SAVED, stats.prefix_tokens);
    text.one(Counter, "prefix_disk_hits_total", "Requests whose prompt began like one on disk", stats.disk_hits);
    text.one(Counter, "prefix_disk_tokens_total", SAVED, stats.disk_tokens);
    text.one(Counter, "prefix_shared_hits_total", "Requests given the beginning of a running one", stats.shared_hits);
    text.one(Counter, "prefix_shared_tokens_total", SAVED, stats.shared_tokens);
    let help = "Keys and values of ended requests dropped to make room";
    text.one(Counter, "prefix_evictions_total", help, stats.dropped);
}

/// Blocks of keys and values on disk.
fn kept(text: &mut Text, disk: &PrefixStats) {
    text.one(Gauge, "prefix_disk_blocks", "Blocks of keys and values on disk", disk.blocks);
    text.one(Gauge, "prefix_disk_bytes", "Their bytes", disk.bytes);
    text.one(Counter, "prefix_disk_written_bytes_total", "Bytes of them written", disk.written);
    text.one(Counter, "prefix_disk_read_bytes_total", "Bytes of them read", disk.read);
    text.one(Counter, "prefix_disk_evicted_total", "Blocks removed to stay below the limit", disk.evicted);
    text.one(Counter, "prefix_disk_damaged_total", "Files found damaged or foreign", disk.damaged);
    let help = "Blocks not written: the disk was too slow, full, or failed";
    text.one(Counter, "prefix_disk_skipped_total", help, disk.skipped);
}

/// Memory in which experts take turns that lie a tier below: slots of accelerators, and the host's memory for experts on disk.
fn experts(text: &mut Text, stats: &EngineStats) {
    let mut tiers = Vec::new();
    for (device, used) in &stats.slots {
        let labels = format!("tier=\"vram\",device=\"{device}\"");
        let (hits, misses) = (used.hits + used.prompt_hits, used.misses + used.prompt_misses);
        // Slots are full from the start: who comes in takes the place of another.
        tiers.push((
            labels,
            [used.bytes, hits, misses, used.fills + used.stolen, used.copied],
            "from=\"ram\",to=\"vram\"",
        ));
    }
    if let Some(used) = &stats.nvme {
        let figures = [used.slot_bytes, used.hits, used.misses, used.evictions, used.bytes];
        tiers.push(("tier=\"ram\"".to_owned(), figures, "from=\"nvme\",to=\"ram\""));
    }
    let of =
        |i: usize| tiers.iter().map(move |(labels, figures, _)| (labels.clone(), figures.get(i).copied().unwrap_or(0)));
    text.many(Gauge, "expert_cache_bytes", "Memory for experts of the tier below", of(0));
    text.many(Counter, "expert_cache_hits_total", "Uses of experts that were in it", of(1));
    text.many(Counter, "expert_cache_misses_total", "Uses of experts that were not", of(2));
    text.many(Counter, "expert_cache_evictions_total", "Experts that left for others", of(3));
    let mut moved = BTreeMap::new();
    for (_, [.., bytes], way) in &tiers {
        *moved.entry((*way).to_owned()).or_insert(0) += bytes;
    }
    text.many(Counter, "expert_moved_bytes_total", "Bytes of experts moved from one tier to another", moved);
    if let Some(used) = &stats.nvme {
        let ahead = used.ahead;
        text.one(Counter, "nvme_ahead_useful_total", "Experts read ahead of their turn and used", ahead.useful);
        text.one(Counter, "nvme_ahead_wasted_total", "Experts read ahead of their turn in vain", ahead.wasted);
        text.one(Counter, "nvme_retries_total", "Reads that were tried again", used.retries);
        text.one(Counter, "nvme_waited_seconds_total", "Time that was spent waiting for the disk", used.waited);
    }
}

fn place(device: &str, tier: &str, layer: Option<usize>) -> String {
    let layer = layer.map_or_else(String::new, |l| l.to_string());
    format!("device=\"{device}\",tier=\"{tier}\",layer=\"{layer}\"")
}

fn add(histogram: &Mutex<Histogram>, time: Duration) {
    histogram.lock().unwrap_or_else(PoisonError::into_inner).add(time.as_secs_f64());
}

#[cfg(test)]
mod tests;
