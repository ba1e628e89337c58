//! Position embeddings as their parameters; what they compute is `backend::rope`'s.

/// Rotary position embedding, half-split pairs (i, i + d/2).
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f64,
    /// How frequencies are changed for long contexts.
    pub scaling: RopeScaling,
}

/// Changes of the rope frequencies.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// None.
    Plain,
    /// All frequencies divided by `factor`.
    Linear {
        /// Divisor.
        factor: f64,
    },
    /// Llama 3.1.
    Llama3 {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Below this many rotations a frequency counts as low.
        low_freq_factor: f64,
        /// Above this many rotations it counts as high.
        high_freq_factor: f64,
        /// Context length of pre-training.
        original_max_position: f64,
    },
    /// YaRN (Peng et al. 2023).
    Yarn {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Rotations above which a frequency is kept.
        beta_fast: f64,
        /// Rotations below which a frequency is divided.
        beta_slow: f64,
        /// Context length of pre-training.
        original_max_position: f64,
        /// Whether the correction range is rounded outwards.
        truncate: bool,
        /// Multiplier of cos and sin.
        attention_factor: f64,
    },
}
