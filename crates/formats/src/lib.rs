//! What the bits of a weight mean: one file per format, pure functions between bytes and f32.
//!
//! Owns: [`Format`] (layout, decode, grid), [`Spec`] (a format with its parameters, as a recipe or a pack names it),
//! the [`x16`] panel order, the outlier plane. Refuses: files and names (`source`, `pack`), which code a weight gets
//! (`quantize`), fast kernels (`cpu`, `kernels/`).
#![forbid(unsafe_code)]

pub mod e4m3;
mod error;
mod float;
pub mod fp8;
mod fp8_row;
mod gguf;
mod grid;
mod grouped;
mod i4;
mod integer;
mod k;
mod layout;
mod lut4;
mod nvfp4;
pub mod outliers;
pub mod parameters;
mod q6;
mod q8;
pub mod random;
mod registry;
mod reorder;
pub mod scale;
mod spec;
mod two_level;
pub mod x16;

pub use error::FormatError;
pub use grid::{Grid, Groups, Inner, Levels, Peak, Table, TwoLevel};
pub use layout::{Layout, PlaneLayout, Planes};
pub use registry::{format, ids, kept_ids};
pub use reorder::reorder;
pub use scale::ScaleType;
pub use spec::{Options, OutlierRule, Spec, Variant};

use ashlar_tensor::Order;
use std::ops::Range;

/// One storage format: what its bytes mean for an n × k weight (n outputs, k inputs).
///
/// Encoding and decoding work on *tiles*: whole multiples of [`Format::row_block`] rows (the last tile may be short).
/// In `x16` order every plane of a tile is contiguous, so a tile can be read or written alone. Every format can be
/// read from both orders; [`reorder`] changes one into the other.
pub trait Format: Send + Sync {
    /// The id recipes use, such as `q8`.
    fn id(&self) -> &'static str;

    /// Rows that must be encoded together: 16, or 128 where scales span 128 rows, or 1.
    fn row_block(&self) -> usize;

    /// Every legal set of parameters, the default first.
    fn variants(&self) -> &'static [Variant];

    /// Where the planes of an n × k weight lie, in this order.
    ///
    /// # Errors
    /// [`FormatError::Shape`] if the format cannot take this shape.
    fn layout(&self, spec: &Spec, order: Order, n: usize, k: usize) -> Result<Layout, FormatError>;

    /// Decodes `rows` of an n × k weight into `out` (rows.len() × k, row-major). The slices of `planes` must cover the
    /// tiles from `planes.first_row` to `rows.end`.
    ///
    /// # Errors
    /// [`FormatError`] if the planes are too short for `rows`, or hold a code or scale that stands for NaN or infinity,
    /// or an outlier beyond k. Floats are returned as they are.
    fn decode(&self, spec: &Spec, planes: &Planes<'_>, rows: Range<usize>, out: &mut [f32]) -> Result<(), FormatError>;

    /// What values codes stand for: all that a quantizer or a kernel needs to know.
    fn grid(&self, spec: &Spec) -> Grid;
}

#[cfg(test)]
mod tests;
