//! How bits are chosen: quantizers turn f32 tiles into the planes of a format.
//!
//! Owns: [`Quantizer`] (rtn, weighted search), the split into base and outliers, the error measured on the way.
//! Refuses: files, names, layouts of the bits (`formats`).
#![forbid(unsafe_code)]

use ashlar_formats::{FormatError, Spec};
use ashlar_simd::Isa;

/// Whole rows of a weight, starting at a tile border of its format.
#[derive(Clone, Copy, Debug)]
pub struct Tile<'a> {
    /// rows × k values, row-major, all finite.
    pub values: &'a [f32],
    /// Inputs.
    pub k: usize,
    /// The row of the weight the tile starts at, for messages.
    pub first_row: usize,
}

/// What a quantizer may know about the inputs of a weight.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stats<'a> {
    /// Mean of x² per column (k values), or `None` for equal importance.
    pub importance: Option<&'a [f32]>,
}

/// What quantizing a tile cost. Sums over tiles give the tensor's.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct TileError {
    /// Σ (w − ŵ)²
    pub squared_error: f64,
    /// Σ w²
    pub squared_norm: f64,
    /// max |w − ŵ|
    pub max_abs: f32,
    /// Values beyond the outlier threshold that found no slot.
    pub outlier_overflow: u64,
}

/// A way to choose bits.
pub trait Quantizer: Send + Sync {
    /// The name recipes use (`rtn`, `search`).
    fn id(&self) -> &'static str;

    /// Quantizes a tile to `spec` in `x16` order. `out` holds one slice per plane of `spec.layout(X16, ..)`, each
    /// exactly the bytes of this tile ([`ashlar_formats::Layout::span`]); rows beyond n in the last tile become zeros.
    /// The result depends on nothing but the arguments; `isa` changes speed only.
    ///
    /// # Errors
    /// [`FormatError`] if the tile does not fit the spec or holds NaN or infinity.
    fn quantize(&self, spec: &Spec, tile: Tile<'_>, stats: Stats<'_>, isa: Isa, out: &mut [&mut [u8]]) -> Result<TileError, FormatError>;
}
