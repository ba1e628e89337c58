//! The fallback for weights that no kernel reads as they lie: decode 16 rows to f32, then multiply those.

use super::{Job, PANEL, Sink, float};
use ashlar_backend::BackendError;
use std::ops::Range;

/// The kernel of everything else; outliers are part of what is decoded.
pub fn multiply(job: &Job<'_>, panels: Range<usize>, sink: Sink<'_>) -> Result<(), BackendError> {
    let weight = &job.weight.weight;
    let mut values = vec![0.0; PANEL * weight.k];
    for panel in panels {
        let rows = panel * PANEL..((panel + 1) * PANEL).min(weight.n);
        let values = &mut values[..rows.len() * weight.k];
        weight.decode(rows, values)?;
        float::multiply_decoded(job.isa, values, (job.inputs, job.form), job.rows, &mut |row, _, y| {
            sink(row, panel, y)
        });
    }
    Ok(())
}
