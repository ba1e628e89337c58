//! What bandwidths allow for: time per token as bytes over bandwidth, of what lies where.
//!
//! With dense bytes D and routed bytes R per token, card, RAM and NVMe bandwidths G, C and N, a share h of the experts that are
//! asked for on the card and a share r in memory: D/G + max(h·R/G, (1 − h)·R/C), and (1 − r)·R/N from the disk, beside
//! that (hopeful) or behind it (cautious). Reality is 0.6 to 0.7 of a roofline, and every layer with experts costs a handshake
//! between card and processor. Shares follow from capacity by two curves: what a cache of the most used experts held in
//! replays of one text (hopeful), and what users measured over mixed ones (cautious). Nothing here was measured on the machine
//! in question.

use super::{Fit, Needs};
use ashlar_recipe::Hardware;

/// Bytes per second where a machine's description leaves them out: of a common card, two channels of DDR5, a disk on PCIe 4.
const CARD: f64 = 500e9;
const RAM: f64 = 60e9;
const NVME: f64 = 5e9;

/// Share of the roofline that is reached, cautiously and hopefully.
const REACHED: [f64; 2] = [0.6, 0.7];
/// Seconds per layer with experts that card and processor share.
const HANDSHAKE: [f64; 2] = [300e-6, 40e-6];

/// Hits in percent by capacity in percent: least recently used, measured by users (FreeToken #174, imp #2061).
pub(super) const CAUTIOUS: &[[f64; 2]] =
    &[[0.0, 0.0], [5.0, 18.0], [18.0, 43.5], [36.0, 62.0], [54.0, 72.0], [73.0, 78.9], [100.0, 100.0]];
/// The same of a cache that keeps the most used experts, in a replay of one prompt (Qwen3-30B).
pub(super) const HOPEFUL: &[[f64; 2]] = &[
    [0.0, 0.0],
    [5.0, 36.5],
    [8.0, 48.5],
    [12.0, 60.0],
    [20.0, 76.2],
    [30.0, 88.7],
    [40.0, 94.6],
    [50.0, 96.7],
    [100.0, 100.0],
];

/// Tokens per second of one sequence, cautious and hopeful. `on_card`: the share of dense bytes that cards hold.
#[must_use]
pub fn range(needs: &Needs, hardware: &Hardware, fit: &Fit, on_card: f64) -> [f64; 2] {
    let has_card = on_card > 0.0;
    let (card, ram) = (hardware.vram_bandwidth.unwrap_or(CARD), hardware.ram_bandwidth.unwrap_or(RAM));
    let (dense, routed) = (needs.dense as f64, needs.active_experts as f64);
    let all = needs.experts.max(1) as f64;
    let share = |curve: &[[f64; 2]], bytes: u64| at(curve, 100.0 * bytes as f64 / all) / 100.0;
    let tokens = |curve, reached: f64, handshake: f64, beside: bool| {
        let core = if has_card { dense * on_card / card + dense * (1.0 - on_card) / ram } else { dense / ram };
        let h = if has_card { share(curve, fit.vram_experts) } else { 0.0 };
        let experts = (h * routed / card).max((1.0 - h) * routed / ram);
        let disk = match fit.nvme {
            0 => 0.0,
            bytes => (1.0 - share(curve, needs.experts - bytes)) * routed / hardware.nvme_bandwidth.unwrap_or(NVME),
        };
        let experts = if beside { experts.max(disk) } else { experts + disk };
        let shared = has_card && fit.vram_experts < needs.experts;
        let handshakes = if shared { needs.moe_layers as f64 * handshake } else { 0.0 };
        1.0 / ((core + experts) / reached + handshakes).max(1e-9)
    };
    let [low, high] =
        [tokens(CAUTIOUS, REACHED[0], HANDSHAKE[0], false), tokens(HOPEFUL, REACHED[1], HANDSHAKE[1], true)];
    [low, high]
}

/// A curve of points with ascending abscissae, straight between them.
pub(super) fn at(curve: &[[f64; 2]], x: f64) -> f64 {
    for pair in curve.windows(2) {
        if let [[x0, y0], [x1, y1]] = *pair
            && x <= x1
        {
            return y0 + (y1 - y0) * (x - x0).max(0.0) / (x1 - x0);
        }
    }
    100.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn curves_go_through_their_points_and_straight_between_them() {
        assert_eq!(
            (at(CAUTIOUS, 0.0), at(CAUTIOUS, 5.0), at(CAUTIOUS, 100.0), at(CAUTIOUS, 120.0)),
            (0.0, 18.0, 100.0, 100.0)
        );
        assert_eq!(at(HOPEFUL, 10.0), 54.25);
    }
}
