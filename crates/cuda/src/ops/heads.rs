//! Norms and rotations of heads, in place.

use crate::args::HeadsArgs;
use crate::cuda::Cuda;
use crate::modules::ROWS;
use ashlar_arch::Rope;
use ashlar_backend::{BackendError, Batch, BufferId, HeadNorm, HeadRope, WeightId};
use std::sync::Arc;

/// Pairs (i, i + d/2) of whole heads.
pub fn halves(
    cuda: &mut Cuda,
    x: BufferId,
    norm: Option<WeightId>,
    eps: f32,
    head_dim: usize,
    rope: &Arc<Rope>,
    batch: &Batch,
) -> Result<(), BackendError> {
    const OP: &str = "qk_norm_rope";
    let width = cuda.buffers.get(x, OP)?.width;
    if head_dim < 2 || !head_dim.is_multiple_of(2) || !width.is_multiple_of(head_dim) {
        let what = format!("width {width} is not a multiple of head_dim {head_dim}");
        return Err(BackendError::Operand { op: OP, what });
    }
    let input = cuda.buffers.input(x, width, Some(batch.rows()), OP)?;
    let weight = norm.map(|id| cuda.weights.vector(&mut cuda.core, id, head_dim, OP)).transpose()?.unwrap_or(0);
    let angles = cuda.ropes.angles(&mut cuda.core, &cuda.step, rope, head_dim, batch)?;
    let dim = head_dim as u32;
    let args = HeadsArgs {
        x: input.address,
        weight,
        angles,
        rows: input.rows as u32,
        heads: (width / head_dim) as u32,
        dim,
        normed: if norm.is_some() { dim } else { 0 },
        turned: dim,
        halves: 1,
        inverse: 0,
        eps,
    };
    start(cuda, x, &args)
}

/// Pairs (2i, 2i + 1) of the last values; a norm over the first ones.
pub fn pairs(
    cuda: &mut Cuda,
    x: BufferId,
    head_dim: usize,
    norm: Option<HeadNorm>,
    rope: Option<&HeadRope>,
    batch: &Batch,
) -> Result<(), BackendError> {
    const OP: &str = "head_norm_rope";
    let width = cuda.buffers.get(x, OP)?.width;
    let input = cuda.buffers.input(x, width, Some(batch.rows()), OP)?;
    let (normed, turned) = (norm.map_or(0, |n| n.width), rope.map_or(0, |r| r.width));
    if head_dim == 0 || !width.is_multiple_of(head_dim) || normed.max(turned) > head_dim || !turned.is_multiple_of(2) {
        let what = format!("width {width}, heads of {head_dim}, norm over {normed}, rope over {turned}");
        return Err(BackendError::Operand { op: OP, what });
    }
    let weight = norm.and_then(|n| n.weight);
    let weight = weight.map(|id| cuda.weights.vector(&mut cuda.core, id, normed, OP)).transpose()?.unwrap_or(0);
    let angles = match rope.filter(|r| r.width > 0) {
        Some(rope) => cuda.ropes.angles(&mut cuda.core, &cuda.step, &rope.rope, turned, batch)?,
        None => 0,
    };
    let args = HeadsArgs {
        x: input.address,
        weight,
        angles,
        rows: input.rows as u32,
        heads: (width / head_dim) as u32,
        dim: head_dim as u32,
        normed: normed as u32,
        turned: turned as u32,
        halves: 0,
        inverse: u32::from(rope.is_some_and(|r| r.inverse)),
        eps: norm.map_or(0.0, |n| n.eps),
    };
    start(cuda, x, &args)
}

fn start(cuda: &mut Cuda, x: BufferId, args: &HeadsArgs) -> Result<(), BackendError> {
    cuda.core.run(ROWS, "heads", [((args.rows * args.heads) as usize).div_ceil(8), 1, 1], 256, args)?;
    cuda.buffers.wrote(x, args.rows as usize);
    Ok(())
}
