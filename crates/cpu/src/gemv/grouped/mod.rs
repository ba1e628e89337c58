//! Codes in x16 order with group scales per row: q8, i4 and the tables of 16 levels.
//!
//! `int8.rs` multiplies int8-rounded activations with integer dot products, exactly, group by group; `f32.rs` turns
//! codes into f32 in registers. This file reads planes and names the combinations that [`super::table`] lists.

pub mod f32;
mod int8;
mod planes;

use super::{Job, Sink, drive};
use ashlar_backend::BackendError;
use ashlar_formats::{Grid, Groups, Levels};
use f32::{ByteValues, NibbleValues, TableValues};
use int8::{Bytes, Integers, Nibbles, Table};
use planes::GroupPlanes;
use std::ops::Range;

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
    let Some(groups) = groups(job) else { return Ok(()) };
    integers(job, Nibbles { zero: constant_zero(&groups) }, panels, sink)
}

/// i4, f32 activations.
pub fn nibbles_f32(job: &Job<'_>, panels: Range<usize>, sink: Sink<'_>) -> Result<(), BackendError> {
    let Some(groups) = groups(job) else { return Ok(()) };
    values(job, NibbleValues { zero: constant_zero(&groups) as f32 }, panels, sink)
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

/// What every code is reduced by; 0 where groups have their own zero points.
fn constant_zero(groups: &Groups) -> i32 {
    match groups.levels {
        Levels::Linear { zero, .. } if !groups.zero_point => zero,
        _ => 0,
    }
}

fn integers<C: Integers>(job: &Job<'_>, codes: C, panels: Range<usize>, sink: Sink<'_>) -> Result<(), BackendError> {
    let Some(groups) = groups(job) else { return Ok(()) };
    let bytes = job.weight.plane(0);
    if groups.zero_point {
        let planes = GroupPlanes::<true>::new(job.weight, &groups);
        drive(job.isa, &int8::Panels { bytes, codes, planes, inputs: job.inputs }, job.rows, panels, sink);
    } else {
        let planes = GroupPlanes::<false>::new(job.weight, &groups);
        drive(job.isa, &int8::Panels { bytes, codes, planes, inputs: job.inputs }, job.rows, panels, sink);
    }
    Ok(())
}

fn values<V: f32::Values>(job: &Job<'_>, values: V, panels: Range<usize>, sink: Sink<'_>) -> Result<(), BackendError> {
    let Some(groups) = groups(job) else { return Ok(()) };
    let (codes, inputs, form) = (job.weight.plane(0), job.inputs, job.form);
    if groups.zero_point {
        let scaling = GroupPlanes::<true>::new(job.weight, &groups);
        drive(job.isa, &f32::Panels { codes, values, scaling, inputs, form }, job.rows, panels, sink);
    } else {
        let scaling = GroupPlanes::<false>::new(job.weight, &groups);
        drive(job.isa, &f32::Panels { codes, values, scaling, inputs, form }, job.rows, panels, sink);
    }
    Ok(())
}
