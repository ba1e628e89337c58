//! A residual stream of lanes: mixed into a block's input, and added to.

use super::products::{Inputs, Product, exact};
use crate::args::{HyperAddArgs, HyperMixArgs};
use crate::cuda::{Cuda, Use};
use crate::modules::ROWS;
use ashlar_backend::{BackendError, BufferId, HyperLanes, WeightId};

/// Lanes that the kernels count.
const MOST_LANES: usize = 8;

/// `outs`: coefficients, if wanted, and the block's input.
pub fn mix(
    cuda: &mut Cuda,
    x: BufferId,
    [mix, base, scale]: [WeightId; 3],
    lanes: HyperLanes,
    [coefficients, out]: [Option<BufferId>; 2],
) -> Result<(), BackendError> {
    const OP: &str = "hyper_mix";
    let (n, input) = (lanes.count, cuda.buffers.get(x, OP)?);
    let count = if coefficients.is_some() { n * (n + 2) } else { n };
    if n == 0 || n > MOST_LANES || !input.width.is_multiple_of(n) {
        let what = format!("{} values in {n} lanes, of which there may be {MOST_LANES}", input.width);
        return Err(BackendError::Operand { op: OP, what });
    }
    cuda.weights.matrix(mix, Some(count), input.width, OP)?;
    let (rows, width) = (input.rows, input.width / n);
    let base = cuda.weights.vector(&mut cuda.core, base, count, OP)?;
    let scales = if coefficients.is_some() { 3 } else { 1 };
    let scale = cuda.weights.vector(&mut cuda.core, scale, scales, OP)?;
    let to = out.map(|id| cuda.buffers.output(id, [rows, width], Some(x), OP)).transpose()?;
    let weights = coefficients.map(|id| cuda.buffers.output(id, [rows, n * (n + 1)], Some(x), OP)).transpose()?;
    let products = cuda.core.scratch(Use::Logits, 4 * (rows * count) as u64)?;
    let inputs = Inputs { x: input.address, rows, k: input.width, ..Inputs::default() };
    exact(cuda, inputs, Product { weight: mix, out: products, bias: 0 })?;
    let args = HyperMixArgs {
        x: input.address,
        products,
        base,
        scale,
        coefficients: weights.map_or(0, |b| b.address),
        out: to.map_or(0, |b| b.address),
        lanes: n as u32,
        width: width as u32,
        count: count as u32,
        iterations: lanes.iterations as u32,
        norm_eps: lanes.norm_eps,
        eps: lanes.eps,
    };
    cuda.core.run(ROWS, "hyper_mix", [rows, 1, 1], 256, &args)?;
    for id in [coefficients, out].into_iter().flatten() {
        cuda.buffers.wrote(id, rows);
    }
    Ok(())
}

pub fn add(cuda: &mut Cuda, [x, z, coefficients]: [BufferId; 3], lanes: usize) -> Result<(), BackendError> {
    const OP: &str = "hyper_add";
    let (old, z) = (cuda.buffers.get(x, OP)?, cuda.buffers.get(z, OP)?);
    if lanes == 0 || lanes > MOST_LANES || old.width != lanes * z.width || z.rows != old.rows {
        let what = format!("{} rows of {} to {} of {} in {lanes} lanes", z.rows, z.width, old.rows, old.width);
        return Err(BackendError::Operand { op: OP, what });
    }
    let c = cuda.buffers.input(coefficients, lanes * (lanes + 1), Some(old.rows), OP)?;
    let (lanes, width) = (lanes as u32, z.width as u32);
    let args = HyperAddArgs { x: old.address, z: z.address, coefficients: c.address, lanes, width };
    cuda.core.run(ROWS, "hyper_add", [z.width.div_ceil(256), old.rows, 1], 256, &args)?;
    cuda.buffers.wrote(x, old.rows);
    Ok(())
}
