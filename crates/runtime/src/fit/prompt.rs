//! The time to a prompt's first token. Every chunk of it goes through the model layer by layer: weights are read once per chunk, or
//! multiplied for as long as that takes. Experts beside a card are computed by the processor, or copied over once per chunk, whichever
//! is faster.

use super::predict::{Known, PROMPTS};
use super::{Work, speed};

/// Multiply-adds per second where nothing was measured, cautious and hopeful: of a processor with some eight cores, and of a card.
const HOST: [f64; 2] = [250e9, 750e9];
const CARD: [f64; 2] = [8e12, 20e12];
/// Share of a link's bandwidth that copies reach at least.
const COPIED: f64 = 0.7;
/// Share of measured rates that is reached at least.
const REACHED: f64 = 0.8;
/// Query heads that share a key head, in most models that are planned.
const HEADS_PER_KEY: f64 = 8.0;

/// Tokens of a prompt and seconds to its first token, the fewest and the most, as far as the context goes.
pub fn first_tokens(known: &Known<'_>) -> Vec<(usize, [f64; 2])> {
    PROMPTS.into_iter().filter(|p| *p <= known.context).map(|p| (p, prompt(known, p))).collect()
}

/// Seconds of one side for a prompt: arithmetic, reading weights once per chunk, and attention.
#[derive(Clone, Copy, Default)]
struct Side {
    multiply: f64,
    read: f64,
    attention: f64,
}

impl Side {
    fn least(&self) -> f64 {
        self.multiply.max(self.read) + self.attention
    }

    fn most(&self) -> f64 {
        self.multiply + self.read + self.attention
    }
}

fn prompt(known: &Known<'_>, tokens: usize) -> [f64; 2] {
    let layout = &known.layout;
    let chunks = (tokens as f64 / known.chunk.max(1) as f64).ceil();
    let disk = chunks * layout.disk() / known.hardware.nvme_bandwidth.unwrap_or(speed::NVME);
    let [card, host] = [sides(known, tokens, chunks, 1), sides(known, tokens, chunks, 0)];
    // Card and processor take turns, and the disk is read beside them or behind.
    let least = (card[0].least() + card[1].least()).max(disk);
    let reached = if known.measured.is_some() { REACHED } else { 1.0 };
    let most = host[0].most() + host[1].most() / reached + disk;
    [least, most]
}

/// Card and processor, at one end of their rates.
fn sides(known: &Known<'_>, tokens: usize, chunks: f64, end: usize) -> [Side; 2] {
    let Known { layout, measured, hardware, needs, .. } = *known;
    let p = tokens as f64;
    let at = |ends: [f64; 2]| ends.get(end).copied().unwrap_or(1.0);
    let ram = hardware.ram_bandwidth.unwrap_or(speed::RAM) * if measured.is_some() { 1.0 } else { at(speed::REACHED) };
    let kernel = |w: &Work| measured.and_then(|m| m.kernel(&w.format));
    let multiply = |w: &Work| kernel(w).map_or(at(HOST), |k| k.multiply.max(1.0));
    let read = |w: &Work| kernel(w).map_or(ram, |k| k.read.max(1.0));
    let (all, experts) = (layout.dense[0] + layout.dense[1], layout.experts.max(1.0));
    let dense_here = if all > 0.0 { layout.dense[0] / all } else { 0.0 };
    let fixed = layout.fixed / experts;
    let sum = |of: &dyn Fn(&Work) -> f64| known.work.iter().map(of).sum::<f64>();
    // Nearly all experts are used by some token of a chunk.
    let every = if needs.active_experts > 0 { needs.experts as f64 / needs.active_experts as f64 } else { 0.0 };
    let mut host = Side {
        multiply: p * sum(&|w| (1.0 - dense_here) * w.dense[1] / multiply(w)),
        read: chunks * sum(&|w| (1.0 - dense_here) * w.dense[0] / read(w)),
        attention: 0.0,
    };
    let moving = Side {
        multiply: p * sum(&|w| (1.0 - fixed) * w.routed[1] / multiply(w)),
        read: chunks * sum(&|w| (1.0 - fixed) * every * w.routed[0] / read(w)),
        attention: 0.0,
    };
    let link = if hardware.unified { ram } else { hardware.link_bandwidth.unwrap_or(speed::LINK) };
    let copied = chunks * layout.moving() / (link * if end == 0 { COPIED } else { 1.0 });
    if layout.has_card() && copied < moving.least() {
        host.read += copied;
    } else {
        host.multiply += moving.multiply;
        host.read += moving.read;
    }
    let card_reads = hardware.vram_bandwidth.unwrap_or(speed::CARD) * at(speed::REACHED);
    let card = Side {
        multiply: p * sum(&|w| dense_here * w.dense[1] + fixed * w.routed[1]) / at(CARD),
        read: chunks * (layout.dense[0] + layout.fixed) / card_reads,
        attention: 0.0,
    };
    // Each token meets the keys and values before it: half of them on average, as many multiply-adds as they have halves.
    let attention = p * p / 2.0 * needs.kv as f64 / known.context.max(1) as f64 * HEADS_PER_KEY / 2.0;
    let slowest = measured.into_iter().flat_map(|m| &m.kernels).map(|k| k.multiply).fold(f64::INFINITY, f64::min);
    let on_host = if slowest.is_finite() { slowest.max(1.0) } else { at(HOST) };
    let here = layout.context;
    [
        Side { attention: here * attention / at(CARD), ..card },
        Side { attention: (1.0 - here) * attention / on_host, ..host },
    ]
}
