//! What the bits of a weight mean: one file per format, pure functions between f32 and bytes.
//!
//! Owns: [`Format`] (layout, encode, decode), [`Spec`] (a format with its parameters, as a recipe or a pack names it),
//! the `x16` panel order, the outlier plane. Refuses: files and names (`source`, `pack`), how good scales are found
//! (`quantize`), fast kernels (`cpu`, `kernels/`).
#![forbid(unsafe_code)]

mod error;
mod float;
mod layout;
mod registry;
mod spec;

pub use error::FormatError;
pub use layout::{Layout, PlaneLayout, Planes};
pub use registry::{format, ids};
pub use spec::{Options, OutlierRule, Spec};

use ashlar_tensor::Order;
use std::ops::Range;

/// One storage format: what its bytes mean for an n × k weight (n outputs, k inputs).
///
/// Encoding and decoding work on *tiles*: whole multiples of [`Format::row_block`] rows (the last tile may be short).
/// In `x16` order every plane of a tile is contiguous, so a tile can be read or written alone.
pub trait Format: Send + Sync {
    /// The id recipes use, such as `q8`.
    fn id(&self) -> &'static str;

    /// Rows that must be encoded together: 16, or 128 where scales span 128 rows.
    fn row_block(&self) -> usize;

    /// The parameters a recipe asked for, with this format's defaults filled in, for an n × k weight.
    ///
    /// # Errors
    /// [`FormatError`] if this format has no such parameter or cannot take this shape.
    fn resolve(&self, options: &Options, n: usize, k: usize) -> Result<Spec, FormatError>;

    /// Where the planes of an n × k weight lie, in this order.
    ///
    /// # Errors
    /// [`FormatError::Shape`] if the format cannot take this shape.
    fn layout(&self, spec: &Spec, order: Order, n: usize, k: usize) -> Result<Layout, FormatError>;

    /// Decodes `rows` of an n × k weight into `out` (rows.len() × k, row-major).
    ///
    /// # Errors
    /// [`FormatError`] if the planes are too short for `rows`, or hold a code that stands for NaN or infinity.
    fn decode(&self, spec: &Spec, planes: &Planes<'_>, rows: Range<usize>, out: &mut [f32]) -> Result<(), FormatError>;
}
