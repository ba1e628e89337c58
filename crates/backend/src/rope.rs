//! Rotary angles: the one definition of frequencies that every backend turns heads by.

use ashlar_arch::{Rope, RopeScaling};
use std::f64::consts::TAU;

/// Frequencies of one kind of rope for one head width.
///
/// Frequencies and angles are f64 and only cosines and sines are rounded to f32, so that they are exact to the last
/// bit at any context length.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeTable {
    frequencies: Vec<f64>,
    multiplier: f64,
}

impl RopeTable {
    /// Frequencies of the `head_dim / 2` pairs. Formulas: `docs/numerics.md`, from Su et al. 2021 (plain), Llama 3.1's
    /// wavelength bands, Peng et al. 2023 (YaRN, "NTK-by-parts").
    #[must_use]
    pub fn new(rope: &Rope, head_dim: usize) -> Self {
        let plain = (0..head_dim / 2).map(|i| rope.theta.powf(-((2 * i) as f64) / head_dim as f64));
        let (frequencies, multiplier) = match rope.scaling {
            RopeScaling::Plain => (plain.collect(), 1.0),
            RopeScaling::Linear { factor } => (plain.map(|f| f / factor).collect(), 1.0),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position } => {
                let band = |f: f64| {
                    let turns = original_max_position * f / TAU;
                    let kept = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0.0, 1.0);
                    (1.0 - kept) * f / factor + kept * f
                };
                (plain.map(band).collect(), 1.0)
            }
            RopeScaling::Yarn { factor, beta_fast, beta_slow, original_max_position, truncate, attention_factor } => {
                let (low, high) =
                    yarn_range(rope.theta, head_dim, original_max_position, [beta_fast, beta_slow], truncate);
                let ramp = |(i, f): (usize, f64)| {
                    let divided = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                    f / factor * divided + f * (1.0 - divided)
                };
                (plain.enumerate().map(ramp).collect(), attention_factor)
            }
        };
        Self { frequencies, multiplier }
    }

    /// Cosines and sines for one position; each slice holds `head_dim / 2` values.
    pub fn fill(&self, position: usize, cos: &mut [f32], sin: &mut [f32]) {
        for ((f, c), s) in self.frequencies.iter().zip(cos).zip(sin) {
            let angle = position as f64 * f;
            *c = (angle.cos() * self.multiplier) as f32;
            *s = (angle.sin() * self.multiplier) as f32;
        }
    }

    /// Number of pairs: half the head width.
    #[must_use]
    pub fn pairs(&self) -> usize {
        self.frequencies.len()
    }

    /// Radians per position of every pair.
    #[must_use]
    pub fn frequencies(&self) -> &[f64] {
        &self.frequencies
    }
}

/// Pair indices between which YaRN goes from kept to divided frequencies: where a pair makes `beta` rotations over the
/// original context.
fn yarn_range(theta: f64, head_dim: usize, original: f64, beta: [f64; 2], truncate: bool) -> (f64, f64) {
    let d = head_dim as f64;
    let [low, high] = beta.map(|rotations| d * (original / (rotations * TAU)).ln() / (2.0 * theta.ln()));
    let (low, high) = if truncate { (low.floor(), high.ceil()) } else { (low, high) };
    let (low, high) = (low.max(0.0), high.min(d - 1.0));
    (low, if high == low { high + 0.001 } else { high })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(got: &[f64], want: &[f64]) {
        assert_eq!(got.len(), want.len());
        for (g, w) in got.iter().zip(want) {
            assert!((g / w - 1.0).abs() < 1e-12, "{g} {w}");
        }
    }

    // Expected values from a Python transcription of transformers' three-way branch.
    #[test]
    fn llama3_keeps_fast_pairs_divides_slow_ones_and_blends_between() {
        let scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position: 8192.0,
        };
        let want = [
            1.0,
            0.19392274474868576,
            0.03760603093086393,
            0.007292664737217109,
            0.0005248461609929547,
            3.428102195952591e-05,
            6.647869871181235e-06,
            1.2891731721515574e-06,
        ];
        close(RopeTable::new(&Rope { theta: 500_000.0, scaling }, 16).frequencies(), &want);
    }

    // Expected values from a Python transcription of the formulas published with DeepSeek-V3 (its parameters).
    #[test]
    fn yarn_ramps_between_the_correction_bounds() {
        let scaling = RopeScaling::Yarn {
            factor: 40.0,
            beta_fast: 32.0,
            beta_slow: 1.0,
            original_max_position: 4096.0,
            truncate: true,
            attention_factor: 1.25,
        };
        let table = RopeTable::new(&Rope { theta: 10_000.0, scaling }, 64);
        let got: Vec<f64> = [0, 10, 11, 15, 22, 23, 31].iter().map(|&i| table.frequencies()[i]).collect();
        let want = [
            1.0,
            0.05623413251903491,
            0.03900692656714386,
            0.008334508951020775,
            0.00017782794100389203,
            3.3338035804082984e-05,
            3.333803580408298e-06,
        ];
        close(&got, &want);
        let (mut cos, mut sin) = ([0.0f32; 32], [0.0f32; 32]);
        table.fill(0, &mut cos, &mut sin);
        assert_eq!((cos, sin), ([1.25; 32], [0.0; 32]), "the attention factor multiplies both");
    }

    #[test]
    fn linear_divides_every_frequency() {
        let rope = |scaling| RopeTable::new(&Rope { theta: 1e4, scaling }, 8);
        let plain: Vec<f64> = rope(RopeScaling::Plain).frequencies().iter().map(|f| f / 4.0).collect();
        close(rope(RopeScaling::Linear { factor: 4.0 }).frequencies(), &plain);
    }
}
