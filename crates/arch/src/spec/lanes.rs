//! Residual streams of several lanes (mHC, DeepSeek-V4).

use super::Leaf;

/// A residual stream of several lanes: how a block's input is mixed from them and its output added to them
/// (manifold-constrained hyper-connections).
#[derive(Clone, Debug, PartialEq)]
pub struct Hyper {
    /// From all lanes to coefficients, `[lanes · (lanes + 2), lanes · hidden]`; of the head `[lanes, …]`.
    pub mix: Leaf,
    /// Added to the coefficients.
    pub base: Leaf,
    /// Multipliers of the three kinds of coefficients; of the head, of the one.
    pub scale: Leaf,
}

/// The lanes of a residual stream.
#[derive(Clone, Debug, PartialEq)]
pub struct Lanes {
    /// How many.
    pub count: usize,
    /// Added in every normalisation.
    pub eps: f32,
    /// Steps of Sinkhorn's normalisation.
    pub iterations: usize,
    /// From all lanes to what the final norm reads.
    pub head: Hyper,
}

impl Hyper {
    pub(super) fn tensors(&self) -> [&Leaf; 3] {
        [&self.mix, &self.base, &self.scale]
    }
}
