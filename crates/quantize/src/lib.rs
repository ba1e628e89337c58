//! How bits are chosen: quantizers turn f32 tiles into the planes of a format.
//!
//! Owns: [`Quantizer`] (`rtn`, `search`, `gptq`), the factored Hessian, the split into base and outliers, the error measured on the way.
//! Refuses: files, names, the meaning of the bits (`formats`).
//!
//! A tile goes row block by row block of 16 rows, group by group, through `groups`: values are transposed so that the
//! 16 rows are the 16 lanes of a vector, a method (`rtn`, `search`) fits one scale per lane, codes and error follow.
//! All sums run in these fixed lanes, so that every ISA gives the same bytes. Methods see a format only as its
//! [`ashlar_formats::Grid`]; none names a format.
#![forbid(unsafe_code)]

mod blocks;
mod factor;
mod fit;
mod floats;
mod gptq;
mod groups;
mod lanes;
mod outliers;
mod panel;
mod rtn;
mod search;
mod two_level;

use ashlar_formats::{FormatError, Grid, OutlierRule, Spec};
use ashlar_simd::Isa;
use ashlar_tensor::Order;
pub use factor::{Factor, FactorError};
pub use gptq::Gptq;
pub use rtn::Rtn;
pub use search::Search;

/// Whole rows of a weight, starting at a tile border of its format.
#[derive(Clone, Copy, Debug)]
pub struct Tile<'a> {
    /// rows × k values, row-major.
    pub values: &'a [f32],
    /// Inputs.
    pub k: usize,
    /// The row of the weight the tile starts at, for messages.
    pub first_row: usize,
}

impl Tile<'_> {
    /// Rows of the tile.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.values.len() / self.k.max(1)
    }
}

/// What a tile is to become.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// The format and its parameters.
    pub spec: &'a Spec,
    /// A value is an outlier when |w| exceeds this many standard deviations of its row; unused without outlier slots.
    pub outlier_sigma: f64,
}

impl<'a> Target<'a> {
    /// `spec` with the usual outlier cut-off.
    #[must_use]
    pub fn new(spec: &'a Spec) -> Self {
        Self { spec, outlier_sigma: OutlierRule::DEFAULT_SIGMA }
    }
}

/// What a quantizer may know about the inputs of a weight.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stats<'a> {
    /// Mean of x² per column (k finite values ≥ 0), or `None` for equal importance.
    pub importance: Option<&'a [f32]>,
    /// The factored Hessian of the inputs, for methods that need it; made once for all weights that read these inputs.
    pub factor: Option<&'a Factor>,
}

/// What quantizing a tile cost. Sums over tiles, in order, give the tensor's.
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

impl std::ops::AddAssign for TileError {
    fn add_assign(&mut self, other: Self) {
        self.squared_error += other.squared_error;
        self.squared_norm += other.squared_norm;
        self.max_abs = self.max_abs.max(other.max_abs);
        self.outlier_overflow += other.outlier_overflow;
    }
}

/// A way to choose bits.
pub trait Quantizer: Send + Sync {
    /// The name recipes use (`rtn`, `search`, `gptq`).
    fn id(&self) -> &'static str;

    /// Whether this method can choose the bits of `spec`; asked at plan time.
    ///
    /// # Errors
    /// [`FormatError::Parameter`] with the reason and the remedy.
    fn supports(&self, spec: &Spec) -> Result<(), FormatError>;

    /// Whether [`Stats::factor`] must be there.
    fn needs_hessian(&self) -> bool {
        false
    }

    /// Quantizes a tile to `target.spec` in `x16` order. `out` holds one slice per plane of `spec.layout(X16, ..)`,
    /// each exactly the bytes of this tile ([`ashlar_formats::Layout::span`]); rows beyond n in the last tile become
    /// zeros. The result depends on nothing but the arguments; `isa` changes speed only.
    ///
    /// # Errors
    /// [`FormatError`] if the tile does not fit the spec, holds NaN or infinity, or a value too large for the format.
    fn quantize(
        &self,
        target: Target<'_>,
        tile: Tile<'_>,
        stats: Stats<'_>,
        isa: Isa,
        out: &mut [&mut [u8]],
    ) -> Result<TileError, FormatError>;
}

const METHODS: &[&dyn Quantizer] = &[&Gptq, &Rtn, &Search];

/// There is no such method.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no method `{asked}`; there is auto, {}", ids().collect::<Vec<_>>().join(", "))]
pub struct UnknownMethod {
    /// What was asked for.
    pub asked: String,
}

/// The quantizer of that name (`auto` is none: see [`auto`]).
///
/// # Errors
/// [`UnknownMethod`].
pub fn quantizer(id: &str) -> Result<&'static dyn Quantizer, UnknownMethod> {
    METHODS.iter().find(|m| m.id() == id).copied().ok_or_else(|| UnknownMethod { asked: id.to_owned() })
}

/// The names of all methods, alphabetical.
pub fn ids() -> impl Iterator<Item = &'static str> {
    METHODS.iter().map(|m| m.id())
}

/// What `method: auto` means: `search` where codes are coarse enough for the scale to matter (4 bits) or outer scales
/// follow from inner ones, else `rtn`.
#[must_use]
pub fn auto(spec: &Spec) -> &'static str {
    match spec.grid() {
        Ok(Grid::Groups(g)) if g.width.bits() <= 4 => Search.id(),
        Ok(Grid::TwoLevel(_)) => Search.id(),
        _ => Rtn.id(),
    }
}

/// What `method: auto` means where the statistics may hold Hessians: `gptq` for codes of up to 4 bits with one (it
/// takes a third off the KL divergence of `k4` and `i4`, as of `k3`; `docs/statistics.md`), else [`auto`].
#[must_use]
pub fn auto_with(spec: &Spec, hessian: bool) -> &'static str {
    let bits = match spec.grid() {
        Ok(Grid::TwoLevel(g)) => g.code_bits(),
        Ok(Grid::Groups(g)) => g.width.bits(),
        _ => return auto(spec),
    };
    if hessian && bits <= 4 && Gptq.supports(spec).is_ok() { Gptq.id() } else { auto(spec) }
}

/// Shared checks of every method: shapes of the tile, the statistics and the output slices.
fn check(target: Target<'_>, tile: Tile<'_>, stats: Stats<'_>, out: &[&mut [u8]]) -> Result<(), FormatError> {
    let spec = target.spec;
    let bad = |what: String| Err(FormatError::Rows { id: spec.id, what });
    let rows = tile.rows();
    if rows * tile.k != tile.values.len() {
        return bad(format!("{} values are no whole rows of {}", tile.values.len(), tile.k));
    }
    if let Some(importance) = stats.importance
        && importance.len() != tile.k
    {
        return bad(format!("{} importance values for {} columns", importance.len(), tile.k));
    }
    if let Some(factor) = stats.factor
        && factor.columns() != tile.k
    {
        return bad(format!("a Hessian of {} columns for {} columns", factor.columns(), tile.k));
    }
    let lengths: Vec<usize> = out.iter().map(|o| o.len()).collect();
    spec.layout(Order::X16, rows, tile.k)?.check(spec.id, rows, &(0..rows), &lengths)
}

#[cfg(test)]
mod tests;
