//! Per head, in place: RMS norm of the first values, then rope of the last ones, pairs (2i, 2i + 1).

use super::Reference;
use super::rms_norm::normalize;
use crate::{BackendError, Batch, BufferId, HeadNorm, HeadRope, RopeTable};

const OP: &str = "head_norm_rope";

pub fn run(
    r: &mut Reference,
    x: BufferId,
    head_dim: usize,
    norm: Option<HeadNorm>,
    rope: Option<&HeadRope>,
    batch: &Batch,
) -> Result<(), BackendError> {
    let buffer = r.buffer(x, OP)?;
    let width = buffer.width();
    buffer.expect_rows(batch.rows(), OP)?;
    let (normed, turned) = (norm.map_or(0, |n| n.width), rope.map_or(0, |r| r.width));
    if head_dim == 0 || !width.is_multiple_of(head_dim) || normed.max(turned) > head_dim || !turned.is_multiple_of(2) {
        let what = format!("width {width}, heads of {head_dim}, norm over {normed}, rope over {turned}");
        return Err(BackendError::Operand { op: OP, what });
    }
    let weight = match norm {
        Some(HeadNorm { weight: Some(id), .. }) => r.vector(id, normed, OP)?.to_vec(),
        _ => vec![1.0; normed],
    };
    let table = rope.map(|r| RopeTable::new(&r.rope, turned));
    let mut values = buffer.values.clone();
    let (mut cos, mut sin) = (vec![0.0; turned / 2], vec![0.0; turned / 2]);
    for (row, position) in values.chunks_mut(width.max(1)).zip(batch.positions()) {
        if let Some(table) = &table {
            table.fill(position, &mut cos, &mut sin);
        }
        if rope.is_some_and(|r| r.inverse) {
            sin.iter_mut().for_each(|s| *s = -*s);
        }
        for head in row.chunks_mut(head_dim) {
            if let Some(norm) = norm {
                normalize(&mut head[..normed], &weight, norm.eps);
            }
            rotate(&mut head[head_dim - turned..], &cos, &sin);
        }
    }
    r.store(x, width, values, OP)
}

/// Turns pairs (2i, 2i + 1).
pub fn rotate(values: &mut [f32], cos: &[f32], sin: &[f32]) {
    for ([a, b], (c, s)) in values.as_chunks_mut::<2>().0.iter_mut().zip(cos.iter().zip(sin)) {
        let (x, y, c, s) = (f64::from(*a), f64::from(*b), f64::from(*c), f64::from(*s));
        *a = (x * c - y * s) as f32;
        *b = (y * c + x * s) as f32;
    }
}
