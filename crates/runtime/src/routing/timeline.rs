//! [`Timeline`]: decoding on a machine that is not there, layer by layer on a [`Clock`]: the accelerator computes what lies in its
//! slots while the processor computes what does not, experts that memory lacks come from the disk first, and those that are
//! brought into slots are copied behind it all.

use super::routes::LayerBytes;
use ashlar_backend::{Clock, Engine, Job, Speeds, Ticket};
use std::collections::HashMap;

/// What one token does in one layer. Experts are numbers that are the same for the same expert.
#[derive(Clone, Copy, Debug, Default)]
pub struct LayerUse<'a> {
    /// Experts in slots of the accelerator.
    pub hits: &'a [u32],
    /// Experts that the processor computes.
    pub misses: &'a [u32],
    /// Of the misses, those that have to come from the disk.
    pub read: &'a [u32],
    /// Experts that are brought into slots afterwards.
    pub fills: &'a [u32],
}

/// A machine, and what of a model lies where on it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Machine {
    /// How fast it is.
    pub speeds: Speeds,
    /// Whether an accelerator computes what lies in its slots; else the processor computes everything.
    pub accelerated: bool,
    /// The share of what every token reads that lies in the host's memory.
    pub dense_on_host: f64,
}

/// Decoding, as far as it got.
#[derive(Clone, Debug)]
pub struct Timeline {
    clock: Clock,
    machine: Machine,
    /// What the next layer waits for.
    last: Vec<Ticket>,
    /// Experts on their way to a slot.
    filling: HashMap<u32, Ticket>,
}

impl Timeline {
    /// Nothing done.
    #[must_use]
    pub fn new(machine: Machine) -> Self {
        Self { clock: Clock::new(machine.speeds), machine, last: Vec::new(), filling: HashMap::new() }
    }

    /// What every token reads: of a layer, or behind all of them.
    pub fn dense(&mut self, bytes: u64) {
        let on_host = if self.machine.accelerated { self.machine.dense_on_host } else { 1.0 };
        if on_host < 1.0 {
            let job = Job { delay: self.machine.speeds.launch, ..Job::bytes(bytes as f64 * (1.0 - on_host)) };
            self.last = vec![self.clock.submit(Engine::Device, job, &self.last)];
        }
        if on_host > 0.0 {
            self.last = vec![self.clock.submit(Engine::Host, Job::bytes(bytes as f64 * on_host), &self.last)];
        }
    }

    /// One layer of one token.
    pub fn layer(&mut self, bytes: LayerBytes, used: &LayerUse<'_>) {
        self.dense(bytes.dense);
        let expert = bytes.expert as f64;
        let mut ends = Vec::new();
        if !used.hits.is_empty() {
            let mut after = self.last.clone();
            after.extend(used.hits.iter().filter_map(|e| self.filling.get(e)));
            ends.push(self.clock.submit(Engine::Device, Job::bytes(used.hits.len() as f64 * expert), &after));
        }
        let in_memory = used.misses.len() - used.read.len();
        let mut delay = if self.machine.accelerated { self.machine.speeds.handshake } else { 0.0 };
        if in_memory > 0 {
            let job = Job { delay, ..Job::bytes(in_memory as f64 * expert) };
            ends.push(self.clock.submit(Engine::Host, job, &self.last));
            delay = 0.0;
        }
        for _ in used.read {
            let read = self.clock.submit(Engine::Disk, Job::bytes(expert), &self.last);
            ends.push(self.clock.submit(Engine::Host, Job { delay, ..Job::bytes(expert) }, &[read]));
            delay = 0.0;
        }
        if !ends.is_empty() {
            self.last = ends;
        }
        for fill in used.fills {
            let ticket = self.clock.submit(Engine::Link, Job::bytes(expert), &self.last);
            self.filling.insert(*fill, ticket);
        }
        if self.filling.len() > KEPT {
            let clock = &self.clock;
            self.filling.retain(|_, ticket| !clock.has_ended(*ticket));
        }
    }

    /// Seconds until all layers so far are computed.
    pub fn seconds(&mut self) -> f64 {
        for ticket in std::mem::take(&mut self.last) {
            self.clock.wait(ticket);
        }
        self.clock.now()
    }
}

/// Fills that are remembered before those that have ended are dropped.
const KEPT: usize = 256;

/// What a model decodes in tokens per second where a share of all uses of experts is found in slots, and a share of the others
/// has to come from the disk: uses are spread evenly over layers and tokens.
#[derive(Clone, Copy, Debug)]
pub struct Shares<'a> {
    /// Bytes of every layer.
    pub layers: &'a [LayerBytes],
    /// What every token reads behind the layers.
    pub head: u64,
    /// Experts per token and layer.
    pub top_k: usize,
    /// Uses that are found in slots.
    pub hits: f64,
    /// Of the others, those that memory lacks.
    pub from_disk: f64,
    /// Experts brought into slots per use.
    pub fills: f64,
}

/// Tokens over which shares are spread.
const TOKENS: usize = 32;

impl Shares<'_> {
    /// Tokens per second.
    #[must_use]
    pub fn tokens_per_s(&self, machine: Machine) -> f64 {
        let mut timeline = Timeline::new(machine);
        let hits_share = if machine.accelerated { self.hits } else { 0.0 };
        let (mut owed, mut number) = ([0.0; 3], 0u32);
        for _ in 0..TOKENS {
            for layer in self.layers {
                let used = if layer.expert > 0 { self.top_k } else { 0 };
                // What is owed of a share is paid in whole experts.
                let mut whole = |which: usize, add: f64, most: usize| {
                    let owed = &mut owed[which];
                    *owed += add;
                    let count = ((*owed + 1e-9).floor().max(0.0) as usize).min(most);
                    *owed -= count as f64;
                    count
                };
                let hits = whole(0, hits_share * used as f64, used);
                let read = whole(1, self.from_disk * (used - hits) as f64, used - hits);
                let fills = whole(2, self.fills * used as f64, used - hits);
                let numbers: Vec<u32> = (number..number + used as u32).collect();
                number = number.wrapping_add(used as u32) % (1 << 30);
                let (hits, misses) = numbers.split_at(hits);
                let parts = (misses.get(..read), misses.get(..fills));
                let (read, fills) = (parts.0.unwrap_or_default(), parts.1.unwrap_or_default());
                timeline.layer(*layer, &LayerUse { hits, misses, read, fills });
            }
            timeline.dense(self.head);
        }
        TOKENS as f64 / timeline.seconds().max(f64::MIN_POSITIVE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GB: f64 = 1e9;

    /// The reference machine of published rooflines: GB/s of card, memory, PCIe 4 and a disk.
    fn machine(handshake: f64) -> Machine {
        let speeds = Speeds {
            vram: 760.0 * GB,
            ram: 70.0 * GB,
            link: 25.0 * GB,
            disk: 7.0 * GB,
            device_multiply: 20e12,
            host_multiply: 0.75e12,
            launch: 0.0,
            handshake,
            unified: false,
        };
        Machine { speeds, accelerated: true, dense_on_host: 0.0 }
    }

    /// Layers, experts of a token, GB that a token reads of experts and of all else.
    const MODELS: [(usize, usize, f64, f64); 4] =
        [(58, 8, 10.86, 9.1), (58, 8, 5.36, 9.1), (43, 6, 1.70, 6.9), (48, 8, 0.96, 1.3)];

    fn layers((count, top_k, routed, dense): (usize, usize, f64, f64)) -> Vec<LayerBytes> {
        let expert = (routed * GB / (count * top_k) as f64) as u64;
        vec![LayerBytes { expert, dense: (dense * GB / count as f64) as u64 }; count]
    }

    fn speed(model: (usize, usize, f64, f64), hits: f64, from_disk: f64, handshake: f64) -> f64 {
        let layers = layers(model);
        let shares = Shares { layers: &layers, head: 0, top_k: model.1, hits, from_disk, fills: 0.0 };
        shares.tokens_per_s(machine(handshake))
    }

    fn near(found: f64, expected: f64, what: &str) {
        assert!((found / expected - 1.0).abs() < 0.05, "{what}: {found} and not {expected}");
    }

    #[test]
    fn tokens_per_second_are_the_rooflines_of_hits_in_slots() {
        for model in MODELS {
            let (_, _, routed, dense) = model;
            for hits in [0.0, 0.5, 1.0] {
                let roofline = 1.0 / (dense / 760.0 + (hits * routed / 760.0).max((1.0 - hits) * routed / 70.0));
                near(speed(model, hits, 0.0, 0.0), roofline, &format!("{model:?} with {hits}"));
            }
        }
    }

    #[test]
    fn a_handshake_costs_what_others_computed_for_it() {
        let flash = (43, 6, 1.70, 6.9);
        for (seconds, expected) in [(0.0, 47.0), (40e-6, 44.0), (100e-6, 39.0), (300e-6, 29.0)] {
            near(speed(flash, 0.5, 0.0, seconds), expected, "V4-Flash");
        }
        for (seconds, expected) in [(0.0, 224.0), (40e-6, 157.0), (100e-6, 108.0), (300e-6, 53.0)] {
            // 8 of 10 uses: layers with 6 and with 7 hits of 8, which the formula does not know.
            let found = speed((48, 8, 0.96, 1.3), 0.8, 0.0, seconds);
            assert!((found / expected - 1.0).abs() < 0.12, "{found} {expected}");
        }
    }

    #[test]
    fn what_memory_lacks_comes_at_the_disks_rate_before_it_is_computed() {
        let flash = (43, 6, 1.70, 6.9);
        // All of it from the disk; the last expert is computed after it came.
        let roofline = 1.0 / (6.9 / 760.0 + 1.70 / 7.0 + 1.70 / 6.0 / 70.0);
        near(speed(flash, 0.0, 1.0, 0.0), roofline, "from the disk");
        let half = speed(flash, 0.0, 0.5, 0.0);
        assert!(half > 1.6 * speed(flash, 0.0, 1.0, 0.0) && half < speed(flash, 0.0, 0.0, 0.0), "{half}");
    }

    #[test]
    fn fills_take_memory_bandwidth_from_the_processor_and_too_many_hold_everything_up() {
        let layers = layers((48, 8, 0.96, 1.3));
        let with = |fills: f64| {
            let shares = Shares { layers: &layers, head: 0, top_k: 8, hits: 0.5, from_disk: 0.0, fills };
            shares.tokens_per_s(machine(0.0))
        };
        let (none, few, all) = (with(0.0), with(0.125), with(0.5));
        assert!(few < none && all < few, "{none} {few} {all}");
        // Copies behind the arithmetic: at most as much as they take of the memory.
        assert!(few > none / (1.0 + 0.125 / 0.5), "{none} {few}");
    }

    #[test]
    fn without_an_accelerator_the_processor_reads_everything() {
        let model = (43, 6, 1.70, 6.9);
        let layers = layers(model);
        let shares = Shares { layers: &layers, head: 700_000_000, top_k: 6, hits: 0.9, from_disk: 0.0, fills: 0.0 };
        let processor = Machine { accelerated: false, ..machine(1.0) };
        near(shares.tokens_per_s(processor), 70.0 / (6.9 + 1.70 + 0.7), "processor");
        // A card that holds half of what every token reads, and no expert.
        let small = Machine { dense_on_host: 0.5, ..machine(0.0) };
        let shares = Shares { hits: 0.0, head: 0, ..shares };
        near(shares.tokens_per_s(small), 1.0 / (3.45 / 760.0 + (3.45 + 1.70) / 70.0), "small card");
    }
}
