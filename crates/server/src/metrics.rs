//! `/metrics`, in Prometheus' text format.

use ashlar_runtime::Holding;
use ashlar_runtime::engine::EngineStats;
use std::fmt::Write;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Upper bounds of the histograms' buckets, seconds.
const BOUNDS: [f64; 14] = [0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0];

/// What is measured at the edge, where clients see it.
#[derive(Default)]
pub struct Metrics {
    /// What does not change, as text.
    weights: String,
    first: Mutex<Histogram>,
    between: Mutex<Histogram>,
    waiting: Mutex<Histogram>,
}

#[derive(Clone, Default)]
struct Histogram {
    counts: [u64; BOUNDS.len()],
    count: u64,
    sum: f64,
}

impl Histogram {
    fn add(&mut self, seconds: f64) {
        for (count, bound) in self.counts.iter_mut().zip(BOUNDS) {
            *count += u64::from(seconds <= bound);
        }
        self.count += 1;
        self.sum += seconds;
    }

    fn write(&self, out: &mut String, name: &str, help: &str) {
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} histogram");
        for (bound, count) in BOUNDS.iter().zip(self.counts) {
            let _ = writeln!(out, "{name}_bucket{{le=\"{bound}\"}} {count}");
        }
        let _ = writeln!(out, "{name}_bucket{{le=\"+Inf\"}} {}", self.count);
        let _ = writeln!(out, "{name}_sum {}\n{name}_count {}", self.sum, self.count);
    }
}

impl Metrics {
    /// Of a model with these weights.
    pub fn new(holdings: &[Holding]) -> Self {
        let mut weights = String::from(
            "# HELP ashlar_weight_bytes Weights by device, tier, class and layer, bytes\n# TYPE ashlar_weight_bytes gauge\n",
        );
        for Holding { device, tier, class, layer, bytes } in holdings {
            let layer = layer.map_or_else(String::new, |l| l.to_string());
            let labels = format!("device=\"{device}\",tier=\"{tier}\",class=\"{class}\",layer=\"{layer}\"");
            let _ = writeln!(weights, "ashlar_weight_bytes{{{labels}}} {bytes}");
        }
        Self { weights, ..Self::default() }
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
        let mut out = String::new();
        let mut one = |name: &str, kind: &str, help: &str, value: u64| {
            let _ = writeln!(out, "# HELP ashlar_{name} {help}\n# TYPE ashlar_{name} {kind}\nashlar_{name} {value}");
        };
        one("requests_running", "gauge", "Requests that hold a slot", stats.running as u64);
        one("requests_waiting", "gauge", "Requests in the queue", stats.waiting as u64);
        one("requests_ended_total", "counter", "Requests that ended in any way", stats.ended);
        one("requests_refused_total", "counter", "Requests refused", stats.refused);
        one(
            "requests_preempted_total",
            "counter",
            "Running requests that had to wait again for memory",
            stats.preempted,
        );
        one("tokens_in_total", "counter", "Tokens of prompts computed", stats.tokens_in);
        one("tokens_out_total", "counter", "Tokens generated", stats.tokens_out);
        one("prefix_hits_total", "counter", "Requests whose prompt began like an earlier one", stats.prefix_hits);
        one("prefix_tokens_total", "counter", "Tokens not computed because of that", stats.prefix_tokens);
        one("prefix_disk_hits_total", "counter", "Requests whose prompt began like one on disk", stats.disk_hits);
        one("prefix_disk_tokens_total", "counter", "Tokens not computed because of that", stats.disk_tokens);
        one("prefix_shared_hits_total", "counter", "Requests given the beginning of a running one", stats.shared_hits);
        one("prefix_shared_tokens_total", "counter", "Tokens not computed because of that", stats.shared_tokens);
        if let Some(disk) = stats.prefixes {
            one("prefix_disk_blocks", "gauge", "Blocks of keys and values on disk", disk.blocks);
            one("prefix_disk_bytes", "gauge", "Their bytes", disk.bytes);
            one("prefix_disk_written_bytes_total", "counter", "Bytes of them written", disk.written);
            one("prefix_disk_read_bytes_total", "counter", "Bytes of them read", disk.read);
            one("prefix_disk_evicted_total", "counter", "Blocks removed to stay below the limit", disk.evicted);
            one("prefix_disk_damaged_total", "counter", "Files found damaged or foreign", disk.damaged);
            one(
                "prefix_disk_skipped_total",
                "counter",
                "Blocks not written: the disk was too slow, full, or failed",
                disk.skipped,
            );
        }
        if let Some(nvme) = &stats.nvme {
            one("expert_cache_bytes", "gauge", "Memory for experts that are read from disk", nvme.slot_bytes);
            one("expert_cache_hits_total", "counter", "Experts used that were in it", nvme.hits);
            one("expert_cache_misses_total", "counter", "Experts used that were not", nvme.misses);
            one("expert_cache_evictions_total", "counter", "Experts that left for others", nvme.evictions);
            one(
                "expert_cache_ahead_useful_total",
                "counter",
                "Experts read ahead of their turn and used",
                nvme.ahead.useful,
            );
            one("expert_cache_ahead_wasted_total", "counter", "Experts read ahead in vain", nvme.ahead.wasted);
            one("nvme_read_bytes_total", "counter", "Bytes of weights read from disk", nvme.bytes);
            one("nvme_retries_total", "counter", "Reads that were tried again", nvme.retries);
            let waited = (nvme.waited * 1e3) as u64;
            one("nvme_waited_milliseconds_total", "counter", "Time that was spent waiting for the disk", waited);
        }
        one("activation_bytes", "gauge", "Buffers of all devices, bytes", stats.memory.activations);
        one("cache_bytes", "gauge", "What the caches of all devices hold, bytes", stats.memory.caches);
        one("steps_total", "counter", "Batches", stats.steps);
        one("kv_bytes", "gauge", "Keys and values in use, bytes", stats.kv_used);
        if let Some(budget) = stats.kv_budget {
            one("kv_budget_bytes", "gauge", "Bytes that keys and values may take", budget);
        }
        out.push_str(&self.weights);
        let of = |h: &Mutex<Histogram>| h.lock().unwrap_or_else(PoisonError::into_inner).clone();
        of(&self.first).write(
            &mut out,
            "ashlar_time_to_first_token_seconds",
            "From a request's arrival to its first token",
        );
        of(&self.between).write(
            &mut out,
            "ashlar_time_between_tokens_seconds",
            "From one token of a request to its next",
        );
        of(&self.waiting).write(&mut out, "ashlar_time_in_queue_seconds", "From a request's arrival to its start");
        out
    }
}

fn add(histogram: &Mutex<Histogram>, time: Duration) {
    histogram.lock().unwrap_or_else(PoisonError::into_inner).add(time.as_secs_f64());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_cumulative_and_every_line_has_a_value() {
        let (device, class) = ("cpu".to_owned(), "attn".to_owned());
        let metrics = Metrics::new(&[Holding { device, tier: "ram", class, layer: Some(3), bytes: 9 }]);
        for ms in [4, 15, 15, 400_000] {
            metrics.first_token(Duration::from_millis(ms));
        }
        let text = metrics.render(&EngineStats { tokens_out: 7, ..EngineStats::default() });
        for line in [
            "ashlar_tokens_out_total 7",
            "ashlar_weight_bytes{device=\"cpu\",tier=\"ram\",class=\"attn\",layer=\"3\"} 9",
            "ashlar_time_to_first_token_seconds_bucket{le=\"0.005\"} 1",
            "ashlar_time_to_first_token_seconds_bucket{le=\"0.02\"} 3",
            "ashlar_time_to_first_token_seconds_bucket{le=\"+Inf\"} 4",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        }
        let values = text.lines().filter(|l| !l.starts_with('#'));
        assert!(
            values.clone().count() > 50 && values.clone().all(|l| l.rsplit(' ').next().unwrap().parse::<f64>().is_ok())
        );
    }
}
