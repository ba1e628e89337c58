//! Per head, in place: RMS norm (where given), then rope: pair (i, i + d/2) is turned by the angle of its position.

use super::{Reference, rms_norm::normalize};
use crate::{BackendError, Batch, BufferId, RopeTable, WeightId};

const OP: &str = "qk_norm_rope";

pub fn run(
    r: &mut Reference,
    x: BufferId,
    norm: Option<WeightId>,
    eps: f32,
    table: &RopeTable,
    batch: &Batch,
) -> Result<(), BackendError> {
    let half = table.pairs();
    let head_dim = 2 * half;
    let buffer = r.buffer(x, OP)?;
    let width = buffer.width();
    if half == 0 || !width.is_multiple_of(head_dim) {
        return Err(BackendError::Operand {
            op: OP,
            what: format!("width {width} is not a multiple of head_dim {head_dim}"),
        });
    }
    buffer.expect_rows(batch.rows(), OP)?;
    let norm = norm.map(|id| r.vector(id, head_dim, OP)).transpose()?;
    let mut values = buffer.values.clone();
    let (mut cos, mut sin) = (vec![0.0; half], vec![0.0; half]);
    for (row, position) in values.chunks_mut(width).zip(batch.positions()) {
        table.fill(position, &mut cos, &mut sin);
        for head in row.chunks_mut(head_dim) {
            if let Some(weight) = norm {
                normalize(head, weight, eps);
            }
            rotate(head, &cos, &sin);
        }
    }
    r.store(x, width, values, OP)
}

fn rotate(head: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (first, second) = head.split_at_mut(cos.len());
    for ((a, b), (c, s)) in first.iter_mut().zip(second).zip(cos.iter().zip(sin)) {
        let (x, y, c, s) = (f64::from(*a), f64::from(*b), f64::from(*c), f64::from(*s));
        *a = (x * c - y * s) as f32;
        *b = (y * c + x * s) as f32;
    }
}
