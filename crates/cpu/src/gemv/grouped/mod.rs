//! Codes in x16 order with group scales per row: q8, i4 and the tables of 16 levels.
//!
//! `int8.rs` multiplies int8-rounded activations with integer dot products, exactly, group by group; `f32.rs` turns
//! codes into f32 in registers. Both are generic over what codes mean (`codes.rs`) and how they are scaled
//! (`scales.rs`). This file names the combinations that [`super::table`] lists.

pub mod codes;
pub mod f32;
pub mod int8;
pub mod scales;
mod tile;

use super::{Job, PANEL, Sink, drive};
use crate::loaded::Loaded;
use ashlar_backend::BackendError;
use ashlar_formats::{Grid, Groups, ScaleType};
use ashlar_simd::Isa;
use codes::{Bytes, Digits, Integers, Nibbles, Table};
use f32::{IntegerValues, TableValues, Values};
use scales::{E8M0, F16, GroupPlanes, ScaleKind, Scaling};
use std::ops::Range;
pub use tile::{LEAST_ROWS as LEAST_TILED_ROWS, WIDE as TILE_PANELS};

/// The code that means zero in 4-bit integers without zero points.
pub const NIBBLE_ZERO: i32 = 8;

/// q8, int8 activations.
pub fn bytes_int8(job: &Job<'_>, panels: Range<usize>, sink: Sink<'_>) -> Result<(), BackendError> {
    integers(job, Bytes, panels, sink)
}

/// q8, f32 activations.
pub fn bytes_f32(job: &Job<'_>, panels: Range<usize>, sink: Sink<'_>) -> Result<(), BackendError> {
    values(job, IntegerValues(Bytes), panels, sink)
}

/// i4, int8 activations.
pub fn nibbles_int8(job: &Job<'_>, panels: Range<usize>, sink: Sink<'_>) -> Result<(), BackendError> {
    match groups(job.weight) {
        Some(Groups { zero_point: true, .. }) => integers(job, Nibbles::<0>, panels, sink),
        _ => integers(job, Nibbles::<NIBBLE_ZERO>, panels, sink),
    }
}

/// i4, f32 activations.
pub fn nibbles_f32(job: &Job<'_>, panels: Range<usize>, sink: Sink<'_>) -> Result<(), BackendError> {
    match groups(job.weight) {
        Some(Groups { zero_point: true, .. }) => values(job, IntegerValues(Nibbles::<0>), panels, sink),
        _ => values(job, IntegerValues(Nibbles::<NIBBLE_ZERO>), panels, sink),
    }
}

/// A table of multiples of a unit, int8 activations.
pub fn table_int8(job: &Job<'_>, panels: Range<usize>, sink: Sink<'_>) -> Result<(), BackendError> {
    let Some(levels) = &job.weight.levels else { return Ok(()) };
    integers(job, Table { levels: levels.first(), unit: levels.unit }, panels, sink)
}

/// Any table, int8 activations.
pub fn digits_int8(job: &Job<'_>, panels: Range<usize>, sink: Sink<'_>) -> Result<(), BackendError> {
    let Some(levels) = &job.weight.levels else { return Ok(()) };
    integers(job, Digits::new(&levels.values), panels, sink)
}

/// Any table, f32 activations.
pub fn table_f32(job: &Job<'_>, panels: Range<usize>, sink: Sink<'_>) -> Result<(), BackendError> {
    let Some(levels) = &job.weight.levels else { return Ok(()) };
    values(job, TableValues { levels: levels.values }, panels, sink)
}

/// q8, written down.
pub fn bytes_expand(weight: &Loaded, isa: Isa, panel: usize, out: &mut [[f32; PANEL]]) {
    expand(weight, isa, IntegerValues(Bytes), panel, out);
}

/// i4, written down.
pub fn nibbles_expand(weight: &Loaded, isa: Isa, panel: usize, out: &mut [[f32; PANEL]]) {
    match groups(weight) {
        Some(Groups { zero_point: true, .. }) => expand(weight, isa, IntegerValues(Nibbles::<0>), panel, out),
        _ => expand(weight, isa, IntegerValues(Nibbles::<NIBBLE_ZERO>), panel, out),
    }
}

/// Any table, written down.
pub fn table_expand(weight: &Loaded, isa: Isa, panel: usize, out: &mut [[f32; PANEL]]) {
    let Some(levels) = &weight.levels else { return };
    expand(weight, isa, TableValues { levels: levels.values }, panel, out);
}

fn expand<V: Values>(weight: &Loaded, isa: Isa, values: V, panel: usize, out: &mut [[f32; PANEL]]) {
    let (low, high) = (weight.plane(0), &[][..]);
    match groups(weight) {
        Some(g @ Groups { zero_point: true, .. }) => {
            isa.run(f32::Expanded { low, high, values, scaling: zeros::<F16>(weight, &g), panel, out });
        }
        Some(g @ Groups { scale: ScaleType::E8M0, .. }) => {
            isa.run(f32::Expanded { low, high, values, scaling: plain::<E8M0>(weight, &g), panel, out });
        }
        Some(g) => isa.run(f32::Expanded { low, high, values, scaling: plain::<F16>(weight, &g), panel, out }),
        None => {}
    }
}

fn groups(weight: &Loaded) -> Option<Groups> {
    match weight.weight.spec.grid() {
        Ok(Grid::Groups(groups)) => Some(groups),
        _ => None,
    }
}

fn integers<C: Integers>(job: &Job<'_>, codes: C, panels: Range<usize>, sink: Sink<'_>) -> Result<(), BackendError> {
    fn run<C: Integers, Z: Scaling>(job: &Job<'_>, codes: C, scaling: Z, panels: Range<usize>, sink: Sink<'_>) {
        let kernel = int8::Panels { low: job.weight.plane(0), high: &[], codes, scaling, inputs: job.inputs };
        kernel.multiply(job, panels, sink);
    }
    match groups(job.weight) {
        Some(g @ Groups { zero_point: true, .. }) => run(job, codes, zeros::<F16>(job.weight, &g), panels, sink),
        Some(g @ Groups { scale: ScaleType::E8M0, .. }) => run(job, codes, plain::<E8M0>(job.weight, &g), panels, sink),
        Some(g) => run(job, codes, plain::<F16>(job.weight, &g), panels, sink),
        None => {}
    }
    Ok(())
}

fn values<V: Values>(job: &Job<'_>, values: V, panels: Range<usize>, sink: Sink<'_>) -> Result<(), BackendError> {
    fn run<V: Values, Z: Scaling>(job: &Job<'_>, values: V, scaling: Z, panels: Range<usize>, sink: Sink<'_>) {
        let (low, high) = (job.weight.plane(0), &[]);
        let kernel = f32::Panels { low, high, values, scaling, inputs: job.inputs, form: job.form };
        drive(job.isa, &kernel, job.rows, panels, sink);
    }
    match groups(job.weight) {
        Some(g @ Groups { zero_point: true, .. }) => run(job, values, zeros::<F16>(job.weight, &g), panels, sink),
        Some(g @ Groups { scale: ScaleType::E8M0, .. }) => {
            run(job, values, plain::<E8M0>(job.weight, &g), panels, sink)
        }
        Some(g) => run(job, values, plain::<F16>(job.weight, &g), panels, sink),
        None => {}
    }
    Ok(())
}

fn plain<'a, K: ScaleKind>(weight: &'a Loaded, groups: &Groups) -> GroupPlanes<'a, K, false> {
    GroupPlanes::new(weight, groups)
}

fn zeros<'a, K: ScaleKind>(weight: &'a Loaded, groups: &Groups) -> GroupPlanes<'a, K, true> {
    GroupPlanes::new(weight, groups)
}
