//! Blocks of a weight, each times its own part of the input. Inputs are f32 whatever the weight's format.

use super::linear::dot;
use super::{Matrix, Reference};
use crate::{BackendError, Blocks, BufferId, MatmulInput, Observer, WeightId, first_columns};

const OP: &str = "block_linear";

/// out_b = x_b · W_bᵀ
pub fn run(
    r: &mut Reference,
    [x, out]: [BufferId; 2],
    weight: WeightId,
    blocks: Blocks,
    observer: Option<&mut dyn Observer>,
) -> Result<(), BackendError> {
    let w = r.weight(weight, OP)?;
    check(w, blocks, x == out)?;
    let x = r.input(x, blocks.count * w.k, OP)?;
    if let Some(observer) = observer {
        // Every block of a row is a row of inputs.
        observer.matmul_input(&MatmulInput::whole(&[&w.name], &x.values, w.k));
    }
    let mut y = Vec::with_capacity(x.rows() * blocks.count * blocks.rows);
    for (i, x) in x.values.chunks(w.k).enumerate() {
        let first = i % blocks.count * blocks.stride + blocks.first;
        y.extend((first..first + blocks.rows).map(|row| dot(x, w.row(row)) as f32));
    }
    r.store(out, blocks.count * blocks.rows, y, OP)
}

/// out_b = [x_b[..rows] · W_b, x_b[rows..]]
pub fn transposed(
    r: &mut Reference,
    [x, meets, out]: [BufferId; 3],
    weight: WeightId,
    blocks: Blocks,
    observer: Option<&mut dyn Observer>,
) -> Result<(), BackendError> {
    let w = r.weight(weight, OP)?;
    check(w, blocks, x == out)?;
    let (x, meets) = (r.buffer(x, OP)?, r.buffer(meets, OP)?);
    let width = x.width() / blocks.count;
    if width * blocks.count != x.width() || width < blocks.rows || meets.width() < w.k {
        let what = format!("inputs of {}, met by {} of {}, {blocks:?}", x.width(), meets.width(), w.k);
        return Err(BackendError::Operand { op: OP, what });
    }
    if let Some(observer) = observer {
        let columns = first_columns(&meets.values, meets.width(), w.k);
        observer.matmul_input(&MatmulInput::whole(&[&w.name], &columns, w.k));
    }
    let behind = width - blocks.rows;
    let mut y = Vec::with_capacity(x.rows() * blocks.count * (w.k + behind));
    for (i, x) in x.values.chunks(width).enumerate() {
        let first = i % blocks.count * blocks.stride + blocks.first;
        let mut sums = vec![0.0f64; w.k];
        for (x, row) in x.iter().zip(first..first + blocks.rows) {
            sums.iter_mut().zip(w.row(row)).for_each(|(sum, w)| *sum += f64::from(*x) * f64::from(*w));
        }
        y.extend(sums.iter().map(|s| *s as f32));
        y.extend(x.iter().skip(blocks.rows));
    }
    r.store(out, blocks.count * (w.k + behind), y, OP)
}

fn check(w: &Matrix, blocks: Blocks, same: bool) -> Result<(), BackendError> {
    if same {
        return Err(BackendError::Operand { op: OP, what: "the output buffer is also the input".into() });
    }
    blocks.check(w.n).map_err(|what| BackendError::Operand { op: OP, what: format!("`{}` {what}", w.name) })
}
