//! y = x · Wᵀ, panel by panel of 16 outputs.
//!
//! Owns: the kernels, a folder or file per family of formats, and [`table`], which says which kernel serves which grid.
//! A kernel computes one panel (16 rows of a weight) for a few rows of activations at once; [`drive`] walks panels and
//! rows. Every output is computed whole by one call, in an order that depends only on the format: results depend
//! neither on the number of threads, nor on how many rows are computed together, nor on the ISA.

pub mod any;
mod bf16;
mod float;
mod fp8;
mod grouped;
pub mod levels;
mod outliers;
pub mod table;
#[cfg(test)]
mod tests;
mod two_level;

use crate::inputs::{Form, Inputs};
use crate::loaded::Loaded;
use ashlar_backend::BackendError;
use ashlar_simd::{Isa, Kernel, Simd};
use std::ops::Range;

/// Rows of a panel.
pub const PANEL: usize = ashlar_formats::x16::ROWS;
/// Columns of a panel, and values per activation scale.
const COLUMNS: usize = ashlar_formats::x16::COLUMNS;
/// Rows of activations that pass over a panel before the next panel's turn: their int8 codes stay in the L2 cache.
const ROW_CHUNK: usize = 128;

/// Panels that are expanded together for many rows: tasks should be multiples of it.
pub const TILE_PANELS: usize = grouped::TILE_PANELS;

/// Rows below which no panels are expanded together, whatever the weight.
pub use grouped::LEAST_TILED_ROWS;

/// Receives (index of the row within [`Job::rows`], first panel, outputs of it and of the panels after it); outputs beyond
/// n are meaningless.
pub type Sink<'s> = &'s mut dyn FnMut(usize, usize, &[[f32; PANEL]]);

/// A kernel, compiled for every ISA.
pub type Multiply = fn(&Job<'_>, Range<usize>, Sink<'_>) -> Result<(), BackendError>;

/// Writes the values of one panel of a weight, column by column, one lane per row; compiled for every ISA.
pub type Expand = fn(&Loaded, Isa, usize, &mut [[f32; PANEL]]);

/// How the rows of a job walk over a weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// A few rows at a time over the codes as they lie: every code is expanded once per few rows.
    Direct,
    /// Codes are expanded once into tiles in the cache, over which all rows pass.
    Tiled,
}

impl Scheme {
    /// Name for reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Tiled => "tiled",
        }
    }
}

/// Which rows of the inputs.
#[derive(Clone, Copy)]
pub enum RowSet<'a> {
    /// The first so many.
    First(usize),
    /// These.
    Of(&'a [u32]),
}

impl RowSet<'_> {
    /// Number of rows.
    pub fn len(&self) -> usize {
        match self {
            Self::First(count) => *count,
            Self::Of(list) => list.len(),
        }
    }

    /// The input row of index `i`.
    #[inline(always)]
    fn get(&self, i: usize) -> usize {
        match self {
            Self::First(_) => i,
            Self::Of(list) => list[i] as usize,
        }
    }
}

/// Some rows of activations to be multiplied by a weight.
#[derive(Clone, Copy)]
pub struct Job<'a> {
    /// Instruction set.
    pub isa: Isa,
    /// The weight.
    pub weight: &'a Loaded,
    /// What is multiplied; its width is the weight's k.
    pub inputs: Inputs<'a>,
    /// Which form of the inputs is read: one that [`Loaded::form`] offers.
    pub form: Form,
    /// Which rows of the inputs.
    pub rows: RowSet<'a>,
    /// How they walk: one that [`table::schemes`] offers.
    pub scheme: Scheme,
}

impl<'a> Job<'a> {
    /// The job with the scheme that suits the number of rows.
    pub fn new(isa: Isa, weight: &'a Loaded, inputs: Inputs<'a>, form: Form, rows: RowSet<'a>) -> Self {
        Self { isa, weight, inputs, form, rows, scheme: weight.scheme(isa, form, rows.len()) }
    }
}

/// Computes the outputs of `panels` for every row of the job.
///
/// # Errors
/// What decoding reports, for weights without a kernel; an outlier beyond k.
pub fn multiply(job: &Job<'_>, panels: Range<usize>, sink: Sink<'_>) -> Result<(), BackendError> {
    let kernel = job.weight.kernel(job.form);
    match outliers::plane(job.weight) {
        Some(plane) if !job.weight.decodes_outliers() => {
            outliers::multiply(job, &plane, |sink| kernel(job, panels, sink), sink)
        }
        _ => kernel(job, panels, sink),
    }
}

/// A kernel: one panel for M rows at once.
trait PanelKernel {
    /// The most rows worth computing at once, 8, 4, 2 or 1: where a vector is one register ([`Simd::ROWS`] of 8), and where
    /// it is two (4).
    const ROWS: [usize; 2];
    /// Whether it multiplies bfloat16: then it is compiled for that, too.
    const BF16: bool = false;

    /// The 16 outputs of `panel` for each of `rows`.
    fn panel<S: Simd, const M: usize>(&self, s: S, panel: usize, rows: [usize; M]) -> [S::F32; M];
}

/// The most rows that `K` computes at once. A constant, so that no code is made for more.
const fn most<S: Simd, K: PanelKernel>() -> usize {
    if S::ROWS >= 8 { K::ROWS[0] } else { K::ROWS[1] * S::ROWS / 4 }
}

/// Runs a kernel over `panels` and all rows.
fn drive<K: PanelKernel>(isa: Isa, kernel: &K, rows: RowSet<'_>, panels: Range<usize>, sink: Sink<'_>) {
    let drive = Drive { kernel, rows, panels, sink };
    if const { K::BF16 } { isa.run_bf16(drive) } else { isa.run(drive) }
}

struct Drive<'a, 's, K> {
    kernel: &'a K,
    rows: RowSet<'a>,
    panels: Range<usize>,
    sink: Sink<'s>,
}

impl<K: PanelKernel> Kernel for Drive<'_, '_, K> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let limit = const { most::<S, K>() };
        for start in (0..self.rows.len()).step_by(ROW_CHUNK) {
            let end = (start + ROW_CHUNK).min(self.rows.len());
            for panel in self.panels.clone() {
                let mut row = start;
                while row < end {
                    let left = (end - row).min(limit);
                    row += match left {
                        8.. if const { most::<S, K>() >= 8 } => self.block::<S, 8>(s, panel, row),
                        4.. if const { most::<S, K>() >= 4 } => self.block::<S, 4>(s, panel, row),
                        2.. if const { most::<S, K>() >= 2 } => self.block::<S, 2>(s, panel, row),
                        _ => self.block::<S, 1>(s, panel, row),
                    };
                }
            }
        }
    }
}

impl<K: PanelKernel> Drive<'_, '_, K> {
    #[inline(always)]
    fn block<S: Simd, const M: usize>(&mut self, s: S, panel: usize, first: usize) -> usize {
        let mut rows = [0; M];
        for (i, row) in rows.iter_mut().enumerate() {
            *row = self.rows.get(first + i);
        }
        let y = self.kernel.panel::<S, M>(s, panel, rows);
        for (i, y) in y.into_iter().enumerate() {
            let mut lanes = [0.0; PANEL];
            s.store(y, &mut lanes);
            (self.sink)(first + i, panel, &[lanes]);
        }
        M
    }
}
