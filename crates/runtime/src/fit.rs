//! Whether a pack fits a machine, and about how fast it can be there: arithmetic, before anything is loaded.
//!
//! [`Needs`] is what a model needs to run: its weights by where they may lie, keys and values by the same rules as the
//! runtime's own caches, activations by its own buffers. [`fit`] lays that out: what every token reads goes to the cards first,
//! then routed experts, of which cards keep the most used; what is left lies in RAM, and what RAM cannot hold of experts
//! is read from NVMe. The cast besides: [`Layout`] (of what a token reads, how much lies where), `token` and `prompt` (how long that
//! takes), [`predict`] (ranges, bottleneck, what more would buy), `speed` (what others reached, where nothing was measured).

mod layout;
mod needs;
mod predict;
mod prompt;
mod speed;
mod token;
mod work;

pub use layout::Layout;
pub use needs::Needs;
pub use predict::{Known, Prediction, chunk, predict};
pub use speed::speeds;
pub use work::Work;

use ashlar_recipe::Hardware;
use serde::Serialize;

/// Of every card, and of RAM: what driver, system and other programs keep, at least, and one part in so many.
const CARD: (u64, u64) = (768 << 20, 33);
const SYSTEM: (u64, u64) = (4 << 30, 12);
/// Of RAM: what threads work in.
const SCRATCH: u64 = 64 << 20;

/// How a model fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, PartialOrd, Ord)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Everything lies in cards' memory.
    Card,
    /// Everything lies in memory.
    Memory,
    /// Some experts are read from NVMe as they are needed.
    Nvme,
    /// It does not fit.
    No,
}

/// Where everything lies. Bytes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Fit {
    /// In short.
    pub verdict: Verdict,
    /// Used of cards' memory, context and margin not counted.
    pub vram: u64,
    /// Of that, what every token reads or writes.
    pub vram_core: u64,
    /// And routed experts.
    pub vram_experts: u64,
    /// Used of RAM, the system not counted.
    pub ram: u64,
    /// Of that, routed experts.
    pub ram_experts: u64,
    /// Routed experts that lie on NVMe alone.
    pub nvme: u64,
    /// What memory lacks, if it does not fit.
    pub lacks: u64,
    /// Tokens per second that bandwidths allow for, from a cautious guess to a hopeful one; `None` if it does not fit.
    pub tokens_per_s: Option<[f64; 2]>,
}

/// Lays a model out on a machine.
#[must_use]
pub fn fit(needs: &Needs, hardware: &Hardware) -> Fit {
    let (vram, ram) = (usable_vram(hardware), usable_ram(hardware));
    // Two experts in transit, where there are cards that some of them travel to.
    let ring = if vram > 0 { 2 * needs.largest_expert } else { 0 };
    let core = needs.core() + ring;
    let core_vram = core.min(vram);
    // A card holds all experts or the most used; the table of embeddings, of which a token reads a row, is last.
    let vram_experts = needs.experts.min(vram - core_vram);
    let all_on_card = vram > 0 && core + needs.experts + needs.embed <= vram;
    let fixed = core - core_vram + if all_on_card { 0 } else { needs.embed } + SCRATCH;
    let room = ram.saturating_sub(fixed);
    let in_ram = if vram_experts == needs.experts {
        0
    } else if needs.experts <= room {
        needs.experts
    } else {
        // Cards then hold what RAM does not.
        room.min(needs.experts - vram_experts)
    };
    let everywhere = vram_experts == needs.experts || in_ram == needs.experts;
    let missing = if everywhere { 0 } else { needs.experts - in_ram - vram_experts };
    let short = fixed.saturating_sub(ram);
    let verdict = match (short, missing) {
        (0, 0) if all_on_card => Verdict::Card,
        (0, 0) => Verdict::Memory,
        (0, _) if hardware.nvme >= needs.weights() => Verdict::Nvme,
        _ => Verdict::No,
    };
    let mut fit = Fit {
        verdict,
        vram: core_vram + vram_experts + if all_on_card { needs.embed } else { 0 },
        vram_core: core_vram,
        vram_experts,
        ram: fixed + in_ram,
        ram_experts: in_ram,
        nvme: if verdict == Verdict::Nvme { missing } else { 0 },
        lacks: if verdict == Verdict::No { short + missing } else { 0 },
        tokens_per_s: None,
    };
    if verdict != Verdict::No {
        let layout = Layout::of(needs, &fit);
        let (context, chunk, layers) = (0, 1, needs.moe_layers);
        let (work, measured, routes) = (&[], None, None);
        let known = Known { needs, work, layout, context, chunk, layers, hardware, measured, routes };
        fit.tokens_per_s = Some(predict::rates(&known, 0.0));
    }
    fit
}

fn usable_vram(hardware: &Hardware) -> u64 {
    let own = if hardware.unified { 0 } else { hardware.vram };
    usable(own, CARD).saturating_mul(hardware.gpus as u64)
}

/// The least memory of a machine of which a model may take so much.
#[must_use]
pub fn with_usable_ram(bytes: u64) -> u64 {
    let (least, part) = SYSTEM;
    bytes.saturating_add(least.max(bytes / (part - 1) + 1))
}

/// The least memory of a card of which a model may take so much.
#[must_use]
pub fn with_usable_vram(bytes: u64) -> u64 {
    let (least, part) = CARD;
    bytes.saturating_add(least.max(bytes / (part - 1) + 1))
}

fn usable_ram(hardware: &Hardware) -> u64 {
    usable(hardware.ram, SYSTEM)
}

fn usable(all: u64, (least, part): (u64, u64)) -> u64 {
    all.saturating_sub(least.max(all / part))
}

#[cfg(test)]
mod tests;
