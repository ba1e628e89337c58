//! A format with its parameters: what a recipe resolves to and what a pack stores as text.

use crate::{Format, FormatError, Layout, registry};
use ashlar_tensor::Order;
use std::fmt;

/// What a recipe may ask for besides the format's id; `None` means the format's default.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Options {
    /// Values per scale along k.
    pub group: Option<usize>,
    /// Whether groups have a zero point.
    pub zero_point: Option<bool>,
    /// Outlier slots on top of the format.
    pub outliers: Option<OutlierRule>,
}

/// How many outliers each row may keep, and which values are outliers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OutlierRule {
    /// Slots per row as a share of k, such as 0.005.
    pub share: f64,
    /// A value is an outlier when |w| exceeds this many standard deviations of its row.
    pub sigma: f64,
}

/// How scales are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ScaleType {
    /// IEEE half.
    F16,
    /// bfloat16.
    BF16,
    /// IEEE single.
    F32,
    /// Power of two, biased by 127; 255 is NaN.
    E8M0,
}

/// A format with every parameter decided. Its text form (`q8`, `i4:g64,zp`, `nf4:g64+o13`) is what manifests hold.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Spec {
    /// The format's id.
    pub id: &'static str,
    /// Values per scale along k; 0 where the format has no groups.
    pub group: usize,
    /// Whether groups have a zero point.
    pub zero_point: bool,
    /// How scales are stored; `None` where there are none.
    pub scale: Option<ScaleType>,
    /// Outlier slots per row; 0 for no outlier plane.
    pub outlier_slots: usize,
}

impl Spec {
    /// A spec with no parameters, as floats have.
    #[must_use]
    pub fn plain(id: &'static str) -> Self {
        Self { id, group: 0, zero_point: false, scale: None, outlier_slots: 0 }
    }

    /// The format named `id` with `options`, for an n × k weight.
    ///
    /// # Errors
    /// [`FormatError`] if the format is unknown, lacks a parameter, or cannot take the shape.
    pub fn resolve(id: &str, options: &Options, n: usize, k: usize) -> Result<Self, FormatError> {
        registry::format(id)?.resolve(options, n, k)
    }

    /// The format this spec belongs to.
    ///
    /// # Errors
    /// [`FormatError::Unknown`] if the id is not registered (a spec built by hand).
    pub fn format(&self) -> Result<&'static dyn Format, FormatError> {
        registry::format(self.id)
    }

    /// Where the planes of an n × k weight lie.
    ///
    /// # Errors
    /// [`FormatError::Shape`] if the shape does not fit.
    pub fn layout(&self, order: Order, n: usize, k: usize) -> Result<Layout, FormatError> {
        self.format()?.layout(self, order, n, k)
    }
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.id)
    }
}
