//! How fast a model is on a machine: the time of a token and of a prompt, what bounds them, and what more of anything would buy.
//!
//! Where kernels were measured (`ashlar doctor`), the processor reads weights at the rate that their format's kernel reached with one
//! row, and multiplies prompts at the rate it reached with many; else at the bandwidth of memory. Cards are arithmetic from
//! bandwidths either way. Both ends of a range go through the same formula (`token`); they differ in what is taken to be
//! reached, found in slots, and done beside each other.

use super::token::{Pace, Seconds, Token, seconds};
use super::{Layout, Needs, Work, speed};
use crate::routing::{Policy, Replay, Routes, replay};
use ashlar_recipe::{Hardware, Measured};
use serde::Serialize;

/// Share of measured kernels' rates that whole models reach: norms, attention over short contexts and waiting for the last thread.
const REACHED: [f64; 2] = [0.7, 0.95];
/// Seconds that a layer costs besides where kernels were measured: handing out the work of its operations.
const LAYER: f64 = 60e-6;
/// Prompts whose time is told.
pub const PROMPTS: [usize; 3] = [2048, 8192, 32_768];
/// A cache of an accelerator: experts that it brings in per layer and token, and how much better than what leaves they must be.
const FILLS: usize = 1;
const HYSTERESIS: f64 = 1.1;

/// What is known of a machine and of a model on it.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    /// The model.
    pub needs: &'a Needs,
    /// What a token does.
    pub work: &'a [Work],
    /// What of it lies where.
    pub layout: Layout,
    /// Positions of the context that is planned for.
    pub context: usize,
    /// Tokens of a prompt that go through the model at once.
    pub chunk: usize,
    /// Layers.
    pub layers: usize,
    /// Memory and disk.
    pub hardware: &'a Hardware,
    /// Kernels, if they were measured.
    pub measured: Option<&'a Measured>,
    /// Which experts texts used, if that was recorded.
    pub routes: Option<&'a Routes>,
}

/// A prediction: from its lower to its upper end.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Prediction {
    /// Tokens per second of one sequence that holds few tokens yet.
    pub tokens_per_s: [f64; 2],
    /// The same when the context is full.
    pub full_context: [f64; 2],
    /// Tokens of a prompt, and seconds to its first token: from the fewest to the most.
    pub first_token_s: Vec<(usize, [f64; 2])>,
    /// Share of uses of experts that are in slots of cards, of those that take turns there.
    pub slots: [f64; 2],
    /// Share of uses of experts that need no disk.
    pub hits: [f64; 2],
    /// What takes most of a token's time.
    pub bottleneck: &'static str,
    /// What would help, and by how many tokens per second, in the middle of the range.
    pub marginal: Vec<(String, f64)>,
    /// Whether the processor's kernels were measured.
    pub measured: bool,
}

/// The lower and the upper end of a range.
const ENDS: [usize; 2] = [0, 1];

/// Tokens of a prompt that go through a model at once, if `needs` has the activations of `rows`.
#[must_use]
pub fn chunk(needs: &Needs, layout: &Layout, rows: usize, context: usize) -> usize {
    let in_turns = if layout.disk() > 0.0 { layout.memory } else { 0.0 };
    let least = if layout.slots > 0.0 { layout.slots } else { in_turns };
    match least as u64 {
        0 => rows,
        room => crate::placement::largest_chunk(rows, context, needs.activations, room),
    }
}

/// Predicts, for a model that fits.
#[must_use]
pub fn predict(known: &Known<'_>) -> Prediction {
    let tokens_per_s = rates(known, 0.0);
    let hits = hits(known);
    let mean = |[low, high]: [f64; 2]| (low + high) / 2.0;
    let gain = |known: &Known<'_>| mean(rates(known, 0.0)) - mean(tokens_per_s);
    let mut marginal = Vec::new();
    for (what, layout) in more_memory(known) {
        marginal.push((what.to_owned(), gain(&Known { layout, ..*known })));
    }
    if known.layout.disk() > 0.0 {
        let rate = known.hardware.nvme_bandwidth.unwrap_or(speed::NVME) * 2.0;
        let hardware = Hardware { nvme_bandwidth: Some(rate), ..*known.hardware };
        marginal.push(("a disk twice as fast".to_owned(), gain(&Known { hardware: &hardware, ..*known })));
    }
    let ram = known.hardware.ram_bandwidth.unwrap_or(speed::RAM) * 1.25;
    let hardware = Hardware { ram_bandwidth: Some(ram), ..*known.hardware };
    let mut faster = known.measured.cloned().unwrap_or_default();
    faster.kernels.iter_mut().for_each(|k| k.read *= 1.25);
    let with = Known { hardware: &hardware, measured: known.measured.map(|_| &faster), ..*known };
    marginal.push(("memory a quarter faster".to_owned(), gain(&with)));
    let (needs, work, layout) = fewer_bits(known);
    marginal
        .push(("experts of one bit less".to_owned(), gain(&Known { needs: &needs, work: &work, layout, ..*known })));
    marginal.retain(|(_, gain)| *gain > 0.0);
    Prediction {
        tokens_per_s,
        full_context: rates(known, 1.0),
        first_token_s: super::prompt::first_tokens(known),
        slots: [hits[0][0], hits[1][0]],
        hits: [hits[0][1], hits[1][1]],
        bottleneck: token(known, 1, 0.0).bottleneck(),
        marginal,
        measured: known.measured.is_some(),
    }
}

/// Tokens per second, cautious and hopeful, with so much of the context filled.
pub(super) fn rates(known: &Known<'_>, filled: f64) -> [f64; 2] {
    ENDS.map(|end| 1.0 / token(known, end, filled).total().max(1e-9))
}

fn token(known: &Known<'_>, end: usize, filled: f64) -> Seconds {
    let needs = known.needs;
    let token = Token {
        routed: needs.active_experts as f64,
        context: needs.kv as f64,
        layers: known.layers,
        moe_layers: needs.moe_layers,
        top_k: needs.top_k,
    };
    seconds(&token, &known.layout, &Pace { filled, ..pace(known, end) })
}

fn pace(known: &Known<'_>, end: usize) -> Pace {
    let Known { hardware, measured, needs, .. } = *known;
    let at = |ends: [f64; 2]| ends.get(end).copied().unwrap_or_default();
    let reached = at(if measured.is_some() { REACHED } else { speed::REACHED });
    let ram = hardware.ram_bandwidth.unwrap_or(speed::RAM);
    let rate = |format: &str| measured.and_then(|m| m.kernel(format)).map_or(ram, |k| k.read) * reached;
    let sum = |of: fn(&Work) -> f64| known.work.iter().map(|w| of(w) / rate(&w.format)).sum::<f64>();
    let (host_dense, host_routed) = match known.work.is_empty() {
        true => (needs.dense as f64 / (ram * reached), needs.active_experts as f64 / (ram * reached)),
        false => (sum(|w| w.dense[0]), sum(|w| w.routed[0])),
    };
    let fastest = measured.into_iter().flat_map(|m| &m.kernels).map(|k| k.read).fold(0.0, f64::max);
    Pace {
        card: hardware.vram_bandwidth.unwrap_or(speed::CARD) * at(speed::REACHED),
        keys: if fastest > 0.0 { fastest } else { ram } * reached,
        disk: hardware.nvme_bandwidth.unwrap_or(speed::NVME),
        host_dense,
        host_routed,
        handshake: at(speed::HANDSHAKE),
        layer: if measured.is_some() && !known.layout.has_card() { LAYER } else { 0.0 },
        hits: hits(known).get(end).copied().unwrap_or([0.0, 1.0]),
        filled: 0.0,
        beside: end == 1,
    }
}

/// Shares of uses of experts that are found in slots, and in slots and memory, cautious and hopeful.
fn hits(known: &Known<'_>) -> [[f64; 2]; 2] {
    let [slots, held] = known.layout.shares();
    let from_curve = |curve: &[[f64; 2]], share: f64| match share {
        share if share <= 0.0 => 0.0,
        share if share >= 1.0 => 1.0,
        share => speed::at(curve, 100.0 * share) / 100.0,
    };
    let Some(routes) = known.routes else {
        return [speed::CAUTIOUS, speed::HOPEFUL].map(|curve| [slots, held].map(|share| from_curve(curve, share)));
    };
    let replayed = |share: f64, careful: bool| {
        let policy = Policy::Ema { half_life: crate::nvme::HALF_LIFE };
        let capacity = (routes.slots() as f64 * share) as usize;
        let (max_fills, hysteresis) = if careful { (Some(FILLS), Some(HYSTERESIS)) } else { (None, None) };
        replay(routes, &Replay { policy, capacity, max_fills, hysteresis }, None).hit_rate()
    };
    let slots = if slots > 0.0 { replayed(slots, true) } else { 0.0 };
    let held = if held >= 1.0 { 1.0 } else { replayed(held, false).max(slots) };
    [[slots, held]; 2]
}

/// One GiB more of a memory that lacks some.
fn more_memory(known: &Known<'_>) -> Vec<(&'static str, Layout)> {
    const GIB: f64 = (1u64 << 30) as f64;
    let layout = known.layout;
    let mut all = Vec::new();
    if layout.has_card() && (layout.slots < layout.moving() || layout.dense[1] > 0.0) {
        let moved = layout.dense[1].min(GIB);
        let dense = [layout.dense[0] + moved, layout.dense[1] - moved];
        let slots = (layout.slots + GIB - moved).min(layout.moving());
        all.push(("1 GiB of card memory more", Layout { dense, slots, ..layout }));
    }
    if layout.disk() > 0.0 {
        let memory = (layout.memory + GIB).min(layout.moving());
        all.push(("1 GiB of memory more", Layout { memory, ..layout }));
    }
    all
}

/// The model with one bit less per weight of its experts.
fn fewer_bits(known: &Known<'_>) -> (Needs, Vec<Work>, Layout) {
    let mut needs = known.needs.clone();
    let (bytes, adds) = known.work.iter().fold((0.0, 0.0), |(b, a), w| (b + w.routed[0], a + w.routed[1]));
    let share = if bytes > 0.0 { (1.0 - adds / 8.0 / bytes).max(0.1) } else { 1.0 };
    let less = |bytes: u64| (bytes as f64 * share) as u64;
    (needs.experts, needs.active_experts) = (less(needs.experts), less(needs.active_experts));
    let cut = |w: &Work| Work { routed: [w.routed[0] * share, w.routed[1]], ..w.clone() };
    let layout = known.layout;
    let (experts, fixed) = (layout.experts * share, layout.fixed * share);
    let inclusive = layout.memory >= layout.moving();
    let memory = if inclusive { experts - fixed } else { layout.memory.min(experts - fixed) };
    let slots = layout.slots.min(experts - fixed);
    (needs, known.work.iter().map(cut).collect(), Layout { experts, fixed, memory, slots, ..layout })
}

#[cfg(test)]
mod tests {
    use super::super::{Verdict, fit};
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
            expert_count: 40 * 128,
            top_k: 8,
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
        let fit = fit(&needs, &hardware);
        if fit.verdict == Verdict::No {
            return None;
        }
        Some(predict(&Known {
            needs: &needs,
            work: &work,
            layout: Layout::of(&needs, &fit),
            context: 4096,
            chunk: 256,
            layers: 40,
            hardware: &hardware,
            measured: Some(&measured),
            routes,
        }))
    }

    #[test]
    fn in_memory_a_token_takes_what_its_kernels_take() {
        let found = predicted(64, None).unwrap();
        let seconds = 0.5 / 0.95 + 40.0 * LAYER;
        assert!((1.0 / found.tokens_per_s[1] - seconds).abs() < 1e-9, "{found:?}");
        assert!((1.0 / found.tokens_per_s[0] - 0.5 / 0.7 - 40.0 * LAYER).abs() < 1e-9, "{found:?}");
        // An eighth of a second for keys and values of a full context.
        assert!((1.0 / found.full_context[0] - (0.5 + 0.125) / 0.7 - 40.0 * LAYER).abs() < 1e-9, "{found:?}");
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
