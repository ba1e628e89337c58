//! Codes in x16 order with inner and outer scales and one or two grids: k4, k3, k2, k2h and q6.
//!
//! The loops are those of [`super::grouped`]; a format is what its codes mean (`codes.rs`), how its parameters lie and
//! how its outer scales are stored (`scales.rs`). The combinations are the types below, which [`super::table`] lists.

mod codes;
mod scales;

use super::grouped::codes::Table;
use super::grouped::scales::{F16, F32, ScaleKind};
use super::grouped::{f32, int8};
use super::levels::Levels;
use super::{COLUMNS, Job, PANEL, Sink, drive};
use crate::loaded::Loaded;
use ashlar_backend::BackendError;
use ashlar_formats::x16::Width;
use ashlar_formats::{Grid, Inner, ScaleType, TwoLevel};
use ashlar_simd::Isa;
use codes::{GridCodes, SixBits, ThreeBits, TwoBits};
use scales::{Dual5, Dual6, Dual8, InnerOuter, Parameters, Signed};
use std::ops::Range;

/// A combination of kernels' parts.
pub trait Kind {
    /// What codes mean.
    type Codes: GridCodes;
    /// How inner scales are stored.
    type Parameters: Parameters;
    /// How outer scales are stored.
    type Outer: ScaleKind;
    /// The same as a value.
    const OUTER: ScaleType;
}

/// 4 bits and 8-bit parameters.
pub struct Four;
/// 3 bits and 6-bit parameters.
pub struct Three;
/// 2 bits and 6-bit parameters.
pub struct Two;
/// 2 bits and 5-bit parameters.
pub struct TwoFive;
/// 6 bits and signed scales.
pub struct Six;

impl Kind for Four {
    type Codes = Table;
    type Parameters = Dual8;
    type Outer = F32;
    const OUTER: ScaleType = ScaleType::F32;
}

impl Kind for Three {
    type Codes = ThreeBits;
    type Parameters = Dual6;
    type Outer = F16;
    const OUTER: ScaleType = ScaleType::F16;
}

impl Kind for Two {
    type Codes = TwoBits;
    type Parameters = Dual6;
    type Outer = F16;
    const OUTER: ScaleType = ScaleType::F16;
}

impl Kind for TwoFive {
    type Codes = TwoBits;
    type Parameters = Dual5;
    type Outer = F16;
    const OUTER: ScaleType = ScaleType::F16;
}

impl Kind for Six {
    type Codes = SixBits;
    type Parameters = Signed;
    type Outer = F16;
    const OUTER: ScaleType = ScaleType::F16;
}

/// Whether kernels of this kind, with groups of 32 / `PARTS` columns, read that grid.
pub fn serves<T: Kind, const PARTS: usize>(grid: &Grid) -> bool {
    let Some(levels) = Levels::of(grid) else { return false };
    let Grid::TwoLevel(grid) = grid else { return false };
    let bits = (grid.low.bits(), grid.high.map_or(0, Width::bits));
    let blocks = grid.span.map_or(1, |span| span / COLUMNS);
    bits == T::Codes::BITS
        && grid.group * PARTS == COLUMNS
        && grid.outer == T::OUTER
        && grid.inner.bits() == T::Parameters::BITS
        && matches!(grid.inner, Inner::Dual { .. }) == T::Parameters::DUAL
        && grid.span.is_none_or(|span| span.is_multiple_of(COLUMNS))
        && blocks.is_power_of_two()
        && T::Codes::serves(&levels)
}

fn grid(weight: &Loaded) -> Option<TwoLevel> {
    match weight.weight.spec.grid() {
        Ok(Grid::TwoLevel(grid)) => Some(grid),
        _ => None,
    }
}

/// The planes of codes.
fn planes<'a>(weight: &'a Loaded, grid: &TwoLevel) -> (&'a [u8], &'a [u8]) {
    (weight.plane(0), if grid.high.is_some() { weight.plane(1) } else { &[] })
}

/// The values of a panel, written down.
pub fn expand<T: Kind, const PARTS: usize>(weight: &Loaded, isa: Isa, panel: usize, out: &mut [[f32; PANEL]]) {
    let (Some(grid), Some(levels)) = (grid(weight), &weight.levels) else { return };
    let scaling = InnerOuter::<T::Parameters, T::Outer, PARTS>::new(weight, &grid, levels.moved);
    let (low, high) = planes(weight, &grid);
    isa.run(f32::Expanded { low, high, values: f32::IntegerValues(T::Codes::new(levels)), scaling, panel, out });
}

/// The kernel for int8 activations.
pub fn rounded<T: Kind, const PARTS: usize>(
    job: &Job<'_>,
    panels: Range<usize>,
    sink: Sink<'_>,
) -> Result<(), BackendError> {
    let (Some(grid), Some(levels)) = (grid(job.weight), &job.weight.levels) else { return Ok(()) };
    let codes = T::Codes::new(levels);
    let scaling = InnerOuter::<T::Parameters, T::Outer, PARTS>::new(job.weight, &grid, levels.moved);
    let (low, high) = planes(job.weight, &grid);
    int8::Panels { low, high, codes, scaling, inputs: job.inputs }.multiply(job, panels, sink);
    Ok(())
}

/// The kernel for f32 activations.
pub fn exact<T: Kind, const PARTS: usize>(
    job: &Job<'_>,
    panels: Range<usize>,
    sink: Sink<'_>,
) -> Result<(), BackendError> {
    let (Some(grid), Some(levels)) = (grid(job.weight), &job.weight.levels) else { return Ok(()) };
    let codes = T::Codes::new(levels);
    let scaling = InnerOuter::<T::Parameters, T::Outer, PARTS>::new(job.weight, &grid, levels.moved);
    let (low, high) = planes(job.weight, &grid);
    let values = f32::IntegerValues(codes);
    let kernel = f32::Panels { low, high, values, scaling, inputs: job.inputs, form: job.form };
    drive(job.isa, &kernel, job.rows, panels, sink);
    Ok(())
}
