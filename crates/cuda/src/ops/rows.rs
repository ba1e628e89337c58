//! What works row by row: embeddings, norms, gates, copies.

use super::products::rounded_places;
use crate::args::{EmbedArgs, NormArgs, RowsArgs, SigmoidArgs};
use crate::cuda::Cuda;
use crate::modules::ROWS;
use ashlar_backend::{BackendError, Batch, BufferId, WeightId};

pub fn embed(cuda: &mut Cuda, table: WeightId, out: BufferId, batch: &Batch) -> Result<(), BackendError> {
    let loaded = cuda.weights.get(table, "embed")?;
    let (w, kind) = (&loaded.weight, loaded.kind);
    if let Some(token) = batch.tokens.iter().find(|t| **t as usize >= w.n) {
        let what = format!("token {token}, but `{}` has {} rows; was the tokenizer made for this model?", w.name, w.n);
        return Err(BackendError::Operand { op: "embed", what });
    }
    let (k, rows) = (w.k, batch.rows());
    let to = cuda.buffers.output(out, [rows, k], None, "embed")?;
    let args = EmbedArgs {
        weights: cuda.weights.table(&mut cuda.core)?,
        tokens: cuda.step.tokens(),
        out: to.address,
        weight: table.0,
        m: rows as u32,
    };
    cuda.core.run_kind(kind, "embed", [k.div_ceil(8 * 256), rows, 1], &args)?;
    cuda.buffers.wrote(out, rows);
    Ok(())
}

pub fn rms_norm(cuda: &mut Cuda, x: BufferId, weight: WeightId, eps: f32, out: BufferId) -> Result<(), BackendError> {
    const OP: &str = "rms_norm";
    let input = cuda.buffers.get(x, OP)?;
    let weight = cuda.weights.vector(&mut cuda.core, weight, input.width, OP)?;
    let to = cuda.buffers.output(out, [input.rows, input.width], Some(x), OP)?;
    // What follows reads it rounded: that costs no pass over memory here.
    let rounds = input.width.is_multiple_of(32);
    let (codes, scales) = if rounds { rounded_places(cuda, input.rows, input.width)? } else { (0, 0) };
    let (width, x) = (input.width as u32, input.address);
    let args = NormArgs { x, weight, out: to.address, codes, scales, width, eps };
    cuda.core.run(ROWS, "rms_norm", [input.rows, 1, 1], 256, &args)?;
    let version = cuda.buffers.wrote(out, input.rows);
    if rounds {
        cuda.rounded = Some((out, version));
    }
    Ok(())
}

pub fn sigmoid_gate(cuda: &mut Cuda, x: BufferId, weight: WeightId, y: BufferId) -> Result<(), BackendError> {
    const OP: &str = "sigmoid_gate";
    let input = cuda.buffers.get(x, OP)?;
    if x == y {
        return Err(BackendError::Operand { op: OP, what: "the output buffer is also the input".into() });
    }
    cuda.weights.matrix(weight, Some(1), input.width, OP)?;
    let to = cuda.buffers.get(y, OP)?;
    cuda.buffers.input(y, to.width, Some(input.rows), OP)?;
    let weight = cuda.weights.vector(&mut cuda.core, weight, input.width, OP)?;
    let args = SigmoidArgs { x: input.address, weight, y: to.address, k: input.width as u32, n: to.width as u32 };
    cuda.core.run(ROWS, "sigmoid_gate", [input.rows, 1, 1], 256, &args)?;
    cuda.buffers.wrote(y, input.rows);
    Ok(())
}

pub fn select(cuda: &mut Cuda, x: BufferId, out: BufferId, batch: &Batch) -> Result<(), BackendError> {
    const OP: &str = "select_rows";
    let input = cuda.buffers.get(x, OP)?;
    cuda.buffers.input(x, input.width, Some(batch.rows()), OP)?;
    let rows = batch.outputs.len();
    let to = cuda.buffers.output(out, [rows, input.width], Some(x), OP)?;
    copy(
        cuda,
        RowsArgs { x: input.address, index: cuda.step.outputs(), out: to.address, width: input.width as u32, times: 1 },
        rows,
    )?;
    cuda.buffers.wrote(out, rows);
    Ok(())
}

pub fn repeat(cuda: &mut Cuda, x: BufferId, out: BufferId) -> Result<(), BackendError> {
    const OP: &str = "repeat";
    let (input, wide) = (cuda.buffers.get(x, OP)?, cuda.buffers.get(out, OP)?.width);
    if input.width == 0 || !wide.is_multiple_of(input.width) {
        return Err(BackendError::Operand { op: OP, what: format!("{wide} is no multiple of {}", input.width) });
    }
    let to = cuda.buffers.output(out, [input.rows, wide], Some(x), OP)?;
    let (width, times) = (input.width as u32, (wide / input.width) as u32);
    copy(cuda, RowsArgs { x: input.address, index: 0, out: to.address, width, times }, input.rows)?;
    cuda.buffers.wrote(out, input.rows);
    Ok(())
}

/// Rows to memory of the host.
pub fn copy_out(cuda: &mut Cuda, x: u64, out: u64, [rows, width]: [usize; 2]) -> Result<(), BackendError> {
    copy(cuda, RowsArgs { x, index: 0, out, width: width as u32, times: 1 }, rows)
}

fn copy(cuda: &mut Cuda, args: RowsArgs, rows: usize) -> Result<(), BackendError> {
    let wide = (args.width * args.times) as usize;
    cuda.core.run(ROWS, "copy_rows", [wide.div_ceil(256), rows, 1], 256, &args)
}
