//! What others reached and measured, where nothing is known of a machine: bandwidths, the share of a roofline that programs come to,
//! what handing over costs, and hits by capacity. Shares follow from capacity by two curves: what a cache of the most used
//! experts held in replays of one text (hopeful), and what users measured over mixed ones (cautious).

use ashlar_backend::Speeds;
use ashlar_recipe::Hardware;

/// Bytes per second where a machine's description leaves them out: of a common card, two channels of DDR5, a disk on PCIe 4, and a card
/// on it.
pub(super) const CARD: f64 = 500e9;
pub(super) const RAM: f64 = 60e9;
pub(super) const NVME: f64 = 5e9;
pub(super) const LINK: f64 = 25e9;

/// Share of the roofline that is reached, cautiously and hopefully.
pub(super) const REACHED: [f64; 2] = [0.6, 0.7];
/// Seconds per layer with experts that card and processor share.
pub(super) const HANDSHAKE: [f64; 2] = [300e-6, 40e-6];

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

/// What a machine's description comes to as speeds of its modelled self; usual ones where it leaves some out.
#[must_use]
pub fn speeds(hardware: &Hardware) -> Speeds {
    let ram = hardware.ram_bandwidth.unwrap_or(RAM);
    Speeds {
        vram: if hardware.unified { ram } else { hardware.vram_bandwidth.unwrap_or(CARD) },
        ram,
        link: hardware.link_bandwidth.unwrap_or(LINK),
        disk: hardware.nvme_bandwidth.unwrap_or(NVME),
        device_multiply: 20e12,
        host_multiply: 0.75e12,
        launch: 0.0,
        handshake: HANDSHAKE[1],
        unified: hardware.unified,
    }
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
