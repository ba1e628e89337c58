//! How fast a model is on a machine whose kernels were measured (`ashlar doctor`): the time of a token and of a prompt as
//! sums over formats, what bounds them, and what more of anything would buy. For the processor and its disk; what cards do is
//! [`super::speed`]'s, from bandwidths.
//!
//! A token reads each weight once, at the rate that its format's kernel reached with one row; a prompt multiplies at the rate it
//! reached with many. Experts that memory does not hold come from the disk, behind the arithmetic (the lower end) or beside it
//! (the upper one).

use super::{Fit, Needs, fit};
use crate::routing::{Policy, Replay, Routes, replay};
use ashlar_arch::{Class, Ffn, ModelSpec};
use ashlar_recipe::{Hardware, Measured};
use serde::Serialize;
use std::collections::{BTreeMap, HashMap};

/// Share of the kernels' rates that whole models reach: norms, attention over short contexts and waiting for the last thread.
const REACHED: [f64; 2] = [0.8, 1.0];
/// Seconds that a layer costs besides: handing out the work of its operations.
const LAYER: f64 = 60e-6;
/// Prompts whose time is told.
pub const PROMPTS: [usize; 3] = [2048, 8192, 32_768];
/// Tokens of a prompt that go through the model at once.
const CHUNK: f64 = 256.0;
/// Bytes of a disk per second where nothing is known.
const NVME: f64 = 2e9;

/// What a token does with weights of one format.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Work {
    /// The format's id.
    pub format: String,
    /// Bytes of weights that every token reads, and multiply-adds with them.
    pub dense: [f64; 2],
    /// The same of routed experts.
    pub routed: [f64; 2],
}

impl Work {
    /// Of a model whose tensors are of these sizes and formats.
    #[must_use]
    pub fn of(spec: &ModelSpec, tensors: &HashMap<&str, (u64, String)>) -> Vec<Self> {
        let mut all: BTreeMap<String, Self> = BTreeMap::new();
        let mut shares = HashMap::new();
        for (i, layer) in spec.layers.iter().enumerate() {
            if let Ffn::Moe(moe) = &layer.ffn {
                shares.insert(i, moe.routing.top_k as f64 / moe.experts.len().max(1) as f64);
            }
        }
        for leaf in spec.loaded() {
            let Some((bytes, format)) = tensors.get(leaf.name.as_str()) else { continue };
            let products = if let [n, k] = *leaf.shape { n as f64 * k as f64 } else { 0.0 };
            let id = format.split(':').next().unwrap_or(format).to_owned();
            let work = all.entry(id.clone()).or_insert_with(|| Self { format: id, ..Self::default() });
            let (to, share) = match leaf.role.class {
                Class::Embed if spec.lm_head.is_some() => continue,
                Class::Experts => {
                    (&mut work.routed, leaf.role.layer.and_then(|l| shares.get(&l)).copied().unwrap_or(1.0))
                }
                _ => (&mut work.dense, 1.0),
            };
            to[0] += share * *bytes as f64;
            to[1] += share * products;
        }
        all.into_values().collect()
    }
}

/// What is known of a machine and of a model on it.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    /// The model.
    pub needs: &'a Needs,
    /// What a token does.
    pub work: &'a [Work],
    /// Positions of the context that is planned for.
    pub context: usize,
    /// Layers.
    pub layers: usize,
    /// Memory and disk.
    pub hardware: &'a Hardware,
    /// Kernels.
    pub measured: &'a Measured,
    /// Which experts texts used, if that was recorded.
    pub routes: Option<&'a Routes>,
}

/// A prediction: from its lower to its upper end.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Prediction {
    /// Tokens per second of one sequence; the lower end with a full context.
    pub tokens_per_s: [f64; 2],
    /// Tokens of a prompt, and seconds to its first token: from the fewest to the most.
    pub first_token_s: Vec<(usize, [f64; 2])>,
    /// Share of uses of experts that are in memory.
    pub hits: [f64; 2],
    /// What takes most of a token's time.
    pub bottleneck: &'static str,
    /// What would help, and by how many tokens per second, in the middle of the range.
    pub marginal: Vec<(String, f64)>,
}

/// Seconds of a token, by what they are spent on.
#[derive(Clone, Copy, Debug, Default)]
struct Token {
    dense: f64,
    routed: f64,
    disk: f64,
    context: f64,
    layers: f64,
}

impl Token {
    /// `beside`: the disk is read while experts are computed.
    fn seconds(&self, beside: bool) -> f64 {
        let experts = if beside { self.routed.max(self.disk) } else { self.routed + self.disk };
        self.dense + experts + self.context + self.layers
    }

    fn bottleneck(&self) -> &'static str {
        let parts = [
            (self.dense, "reading weights that every token uses"),
            (self.routed, "reading experts in memory"),
            (self.disk, "reading experts from the disk"),
            (self.context, "reading keys and values"),
            (self.layers, "handing out work"),
        ];
        parts.into_iter().max_by(|a, b| a.0.total_cmp(&b.0)).map_or("", |(_, what)| what)
    }
}

/// Predicts; `None` where the model does not fit, cards take part, or kernels were not measured.
#[must_use]
pub fn predict(known: &Known<'_>) -> Option<Prediction> {
    let found = fit(known.needs, known.hardware);
    if known.hardware.gpus > 0 || known.measured.kernels.is_empty() || found.tokens_per_s.is_none() {
        return None;
    }
    let hits = hits(known, &found);
    let tokens = |known: &Known<'_>, fit: &Fit| {
        let hits = self::hits(known, fit);
        let [low, high] = [token(known, fit, hits[0], REACHED[0], 1.0), token(known, fit, hits[1], REACHED[1], 0.0)];
        [1.0 / low.seconds(false), 1.0 / high.seconds(true)]
    };
    let tokens_per_s = tokens(known, &found);
    let middle = (hits[0] + hits[1]) / 2.0;
    let bottleneck = token(known, &found, middle, REACHED[1], 0.0).bottleneck();
    let first_token_s =
        PROMPTS.into_iter().filter(|p| *p <= known.context).map(|p| (p, prompt(known, &found, p))).collect();
    let mean = |[low, high]: [f64; 2]| (low + high) / 2.0;
    let gain = |known: &Known<'_>| mean(tokens(known, &fit(known.needs, known.hardware))) - mean(tokens_per_s);
    let mut marginal = Vec::new();
    if found.nvme > 0 {
        let hardware = Hardware { ram: known.hardware.ram + (1 << 30), ..*known.hardware };
        marginal.push(("1 GiB of memory more".to_owned(), gain(&Known { hardware: &hardware, ..*known })));
        let rate = known.hardware.nvme_bandwidth.unwrap_or(NVME) * 2.0;
        let hardware = Hardware { nvme_bandwidth: Some(rate), ..*known.hardware };
        marginal.push(("a disk twice as fast".to_owned(), gain(&Known { hardware: &hardware, ..*known })));
    }
    let mut faster = known.measured.clone();
    faster.kernels.iter_mut().for_each(|k| k.read *= 1.25);
    marginal.push(("memory a quarter faster".to_owned(), gain(&Known { measured: &faster, ..*known })));
    let (needs, work) = fewer_bits(known);
    marginal.push(("experts of one bit less".to_owned(), gain(&Known { needs: &needs, work: &work, ..*known })));
    marginal.retain(|(_, gain)| *gain > 0.0);
    Some(Prediction { tokens_per_s, first_token_s, hits, bottleneck, marginal })
}

/// Shares of uses of experts that are found in memory, at least and at most.
fn hits(known: &Known<'_>, fit: &Fit) -> [f64; 2] {
    let held = known.needs.experts.saturating_sub(fit.nvme);
    let share = held as f64 / known.needs.experts.max(1) as f64;
    if fit.nvme == 0 {
        return [1.0; 2];
    }
    let Some(routes) = known.routes else {
        return [super::speed::CAUTIOUS, super::speed::HOPEFUL]
            .map(|curve| super::speed::at(curve, 100.0 * share) / 100.0);
    };
    let capacity = (routes.slots() as f64 * share) as usize;
    let policy = Policy::Ema { half_life: crate::nvme::HALF_LIFE };
    let found = replay(routes, &Replay { policy, capacity, max_fills: None, hysteresis: None }, None);
    [found.hit_rate(); 2]
}

/// `reached`: of the kernels' rates; `filled`: how much of the context is.
fn token(known: &Known<'_>, fit: &Fit, hits: f64, reached: f64, filled: f64) -> Token {
    let read = |bytes: f64, format: &str| known.measured.kernel(format).map_or(0.0, |k| bytes / (k.read * reached));
    let routed: f64 = known.work.iter().map(|w| w.routed[0]).sum();
    let fastest = known.measured.kernels.iter().map(|k| k.read).fold(1.0, f64::max);
    Token {
        dense: known.work.iter().map(|w| read(w.dense[0], &w.format)).sum(),
        routed: known.work.iter().map(|w| read(w.routed[0], &w.format)).sum(),
        disk: if fit.nvme > 0 { (1.0 - hits) * routed / known.hardware.nvme_bandwidth.unwrap_or(NVME) } else { 0.0 },
        context: filled * known.needs.kv as f64 / (fastest * reached),
        layers: known.layers as f64 * LAYER,
    }
}

/// Seconds to the first token of a prompt, at least and at most.
fn prompt(known: &Known<'_>, fit: &Fit, tokens: usize) -> [f64; 2] {
    let p = tokens as f64;
    let chunks = (p / CHUNK).ceil();
    let multiply = |adds: f64, format: &str| known.measured.kernel(format).map_or(0.0, |k| adds * p / k.multiply);
    let adds: f64 = known.work.iter().map(|w| multiply(w.dense[1] + w.routed[1], &w.format)).sum();
    // Every chunk reads all weights that it uses once: nearly all experts, at 256 tokens.
    let rate = |w: &Work| known.measured.kernel(&w.format).map_or(f64::INFINITY, |k| k.read);
    let dense: f64 = known.work.iter().map(|w| w.dense[0] / rate(w)).sum();
    let fastest = known.measured.kernels.iter().map(|k| k.read).fold(1.0, f64::max);
    let all = dense + known.needs.experts as f64 / fastest;
    let disk = chunks * fit.nvme as f64 / known.hardware.nvme_bandwidth.unwrap_or(NVME);
    // Each token meets the keys and values before it: half of them on average, as many multiply-adds as they have halves.
    let attention = p * p / 2.0 * known.needs.kv as f64 / known.context.max(1) as f64 * HEADS_PER_KEY / 2.0;
    let slowest = known.measured.kernels.iter().map(|k| k.multiply).fold(f64::INFINITY, f64::min);
    let attention = attention / slowest.max(1.0);
    let least = (adds.max(chunks * all) + attention).max(disk);
    let most = (adds + chunks * all + attention) / REACHED[0] + disk;
    [least, most]
}

/// Query heads that share a key head, in most models that are planned.
const HEADS_PER_KEY: f64 = 8.0;

/// The model with one bit less per weight of its experts.
fn fewer_bits(known: &Known<'_>) -> (Needs, Vec<Work>) {
    let mut needs = known.needs.clone();
    let (bytes, adds) = known.work.iter().fold((0.0, 0.0), |(b, a), w| (b + w.routed[0], a + w.routed[1]));
    let share = if bytes > 0.0 { (1.0 - adds / 8.0 / bytes).max(0.1) } else { 1.0 };
    let less = |bytes: u64| (bytes as f64 * share) as u64;
    (needs.experts, needs.active_experts) = (less(needs.experts), less(needs.active_experts));
    let cut = |w: &Work| Work { routed: [w.routed[0] * share, w.routed[1]], ..w.clone() };
    (needs, known.work.iter().map(cut).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use ashlar_recipe::KernelRate;

    const GIB: u64 = 1 << 30;

    fn needs() -> Needs {
        Needs {
            dense: 2 * GIB,
            embed: 0,
            experts: 32 * GIB,
            active_experts: 2 * GIB,
            largest_expert: 4 << 20,
            moe_layers: 40,
            kv: GIB,
            activations: 0,
        }
    }

    fn work() -> Vec<Work> {
        let bytes = (2 * GIB) as f64;
        vec![Work { format: "q8".into(), dense: [bytes, bytes], routed: [bytes, bytes] }]
    }

    fn predicted(ram: u64, routes: Option<&Routes>) -> Option<Prediction> {
        let rate = KernelRate { format: "q8".into(), read: 8.0 * GIB as f64, multiply: 100e9 };
        let measured = Measured { threads: 2, kernels: vec![rate] };
        let hardware =
            Hardware { ram: ram * GIB, nvme: 1 << 40, nvme_bandwidth: Some(2.0 * GIB as f64), ..Hardware::default() };
        let (needs, work) = (needs(), work());
        predict(&Known {
            needs: &needs,
            work: &work,
            context: 4096,
            layers: 40,
            hardware: &hardware,
            measured: &measured,
            routes,
        })
    }

    #[test]
    fn in_memory_a_token_takes_what_its_kernels_take() {
        let found = predicted(64, None).unwrap();
        let seconds = 2.0 * 0.25 + 40.0 * LAYER;
        assert!((1.0 / found.tokens_per_s[1] - seconds).abs() < 1e-9, "{found:?}");
        assert!((1.0 / found.tokens_per_s[0] - (0.5 + 0.125) / 0.8 - 40.0 * LAYER).abs() < 1e-9, "{found:?}");
        assert_eq!((found.hits, found.first_token_s.len()), ([1.0; 2], 1));
        assert!(found.marginal.iter().all(|(what, _)| !what.contains("disk") && !what.contains("GiB")));
        let [least, most] = found.first_token_s[0].1;
        assert!(least >= 2048.0 * 4.0 * GIB as f64 / 100e9 && most > least);
    }

    #[test]
    fn with_less_memory_the_disk_bounds_and_more_of_either_helps() {
        let (half, less) = (predicted(24, None).unwrap(), predicted(12, None).unwrap());
        assert!(half.tokens_per_s[0] > less.tokens_per_s[0] && half.hits[0] > less.hits[0]);
        assert_eq!(less.bottleneck, "reading experts from the disk");
        let gain = |what: &str| less.marginal.iter().find(|(w, _)| w.contains(what)).unwrap().1;
        assert!(gain("GiB") > 0.0 && gain("disk") > gain("quarter"), "{:?}", less.marginal);
        assert!(predicted(6, None).is_none(), "dense weights must fit");
    }

    #[test]
    fn hits_of_recorded_routes_are_those_of_their_replay() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/routes/qwen3-30b.route.csv");
        let routes = Routes::read(std::io::BufReader::new(std::fs::File::open(path).unwrap())).unwrap();
        let found = predicted(24, Some(&routes)).unwrap();
        assert_eq!(found.hits[0], found.hits[1]);
        assert!(found.hits[0] > 0.4 && found.hits[0] < 0.9, "{found:?}");
    }
}
