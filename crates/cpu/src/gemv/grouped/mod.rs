//! Codes in x16 order with group scales per row: q8, i4 and the tables of 16 levels.
//!
//! `int8.rs` multiplies int8-rounded activations with integer dot products, exactly, group by group; `f32.rs` turns
//! codes into f32 in registers. This file reads planes and names the combinations that [`super::table`] lists.

pub mod f32;
mod int8;
mod planes;

use super::{Job, Sink, drive};
use ashlar_backend::BackendError;
use ashlar_formats::{Grid, Groups, ScaleType};
use f32::{ByteValues, NibbleValues, Scaling, TableValues, Values};
use int8::{Bytes, Integers, Nibbles, Table};
use planes::{E8M0, F16, GroupPlanes, ScaleKind};
use std::ops::Range;

/// The code that means zero in 4-bit integers without zero points.
pub const NIBBLE_ZERO: i32 = 8;

/// q8, int8 activations.
pub fn bytes_int8(job: &Job<'_>, panels: Range<usize>, sink: Sink<'_>) -> Result<(), BackendError> {
    integers(job, Bytes, panels, sink)
}

/// q8, f32 activations.
pub fn bytes_f32(job: &Job<'_>, panels: Range<usize>, sink: Sink<'_>) -> Result<(), BackendError> {
    values(job, ByteValues, panels, sink)
}

/// i4, int8 activations.
pub fn nibbles_int8(job: &Job<'_>, panels: Range<usize>, sink: Sink<'_>) -> Result<(), BackendError> {
    match groups(job) {
        Some(Groups { zero_point: true, .. }) => integers(job, Nibbles::<0>, panels, sink),
        _ => integers(job, Nibbles::<NIBBLE_ZERO>, panels, sink),
    }
}

/// i4, f32 activations.
pub fn nibbles_f32(job: &Job<'_>, panels: Range<usize>, sink: Sink<'_>) -> Result<(), BackendError> {
    let zero = if groups(job).is_some_and(|g| g.zero_point) { 0 } else { NIBBLE_ZERO };
    values(job, NibbleValues { zero: zero as f32 }, panels, sink)
}

/// A table of multiples of a unit, int8 activations.
pub fn table_int8(job: &Job<'_>, panels: Range<usize>, sink: Sink<'_>) -> Result<(), BackendError> {
    let Some((levels, unit)) = groups(job).and_then(|g| integer_levels(&g)) else { return Ok(()) };
    integers(job, Table { levels, unit }, panels, sink)
}

/// Any table, f32 activations (rounded ones too).
pub fn table_f32(job: &Job<'_>, panels: Range<usize>, sink: Sink<'_>) -> Result<(), BackendError> {
    let Some(levels) = groups(job).and_then(|g| g.table().first_chunk().copied()) else { return Ok(()) };
    values(job, TableValues { levels }, panels, sink)
}

/// The levels of a table as integers times a unit, if there is such a unit.
pub fn integer_levels(groups: &Groups) -> Option<([i8; 16], f32)> {
    let levels: [f32; 16] = groups.table().first_chunk().copied()?;
    [1.0, 0.5].into_iter().find_map(|unit| {
        let whole = levels.iter().all(|l| (l / unit).fract() == 0.0 && (l / unit).abs() <= 127.0);
        whole.then(|| (levels.map(|l| (l / unit) as i8), unit))
    })
}

fn groups(job: &Job<'_>) -> Option<Groups> {
    match job.weight.weight.spec.grid() {
        Ok(Grid::Groups(groups)) => Some(groups),
        _ => None,
    }
}

fn integers<C: Integers>(job: &Job<'_>, codes: C, panels: Range<usize>, sink: Sink<'_>) -> Result<(), BackendError> {
    fn run<C: Integers, Z: Scaling>(job: &Job<'_>, codes: C, scaling: Z, panels: Range<usize>, sink: Sink<'_>) {
        let kernel = int8::Panels { bytes: job.weight.plane(0), codes, scaling, inputs: job.inputs };
        drive(job.isa, &kernel, job.rows, panels, sink);
    }
    match groups(job) {
        Some(g @ Groups { zero_point: true, .. }) => run(job, codes, zeros::<F16>(job, &g), panels, sink),
        Some(g @ Groups { scale: ScaleType::E8M0, .. }) => run(job, codes, plain::<E8M0>(job, &g), panels, sink),
        Some(g) => run(job, codes, plain::<F16>(job, &g), panels, sink),
        None => {}
    }
    Ok(())
}

fn values<V: Values>(job: &Job<'_>, values: V, panels: Range<usize>, sink: Sink<'_>) -> Result<(), BackendError> {
    fn run<V: Values, Z: Scaling>(job: &Job<'_>, values: V, scaling: Z, panels: Range<usize>, sink: Sink<'_>) {
        let kernel = f32::Panels { codes: job.weight.plane(0), values, scaling, inputs: job.inputs, form: job.form };
        drive(job.isa, &kernel, job.rows, panels, sink);
    }
    match groups(job) {
        Some(g @ Groups { zero_point: true, .. }) => run(job, values, zeros::<F16>(job, &g), panels, sink),
        Some(g @ Groups { scale: ScaleType::E8M0, .. }) => run(job, values, plain::<E8M0>(job, &g), panels, sink),
        Some(g) => run(job, values, plain::<F16>(job, &g), panels, sink),
        None => {}
    }
    Ok(())
}

fn plain<'a, K: ScaleKind>(job: &Job<'a>, groups: &Groups) -> GroupPlanes<'a, K, false> {
    GroupPlanes::new(job.weight, groups)
}

fn zeros<'a, K: ScaleKind>(job: &Job<'a>, groups: &Groups) -> GroupPlanes<'a, K, true> {
    GroupPlanes::new(job.weight, groups)
}
