//! Linear maps of whole buffers: projections, the gated half of an MLP, blocks of a weight.

use super::products::{self, Product, inputs, rounded_places};
use crate::args::{BlockArgs, GatedArgs};
use crate::cuda::{Cuda, Use};
use crate::modules::ROWS;
use ashlar_arch::Activation;
use ashlar_backend::{BackendError, Blocks, BufferId, Projection, WeightId};

pub fn run(cuda: &mut Cuda, x: BufferId, parts: &[Projection], accumulate: bool) -> Result<(), BackendError> {
    const OP: &str = "linear";
    let input = cuda.buffers.get(x, OP)?;
    let mut products = Vec::with_capacity(parts.len());
    let mut rounds = false;
    for (i, part) in parts.iter().enumerate() {
        let loaded = cuda.weights.matrix(part.weight, None, input.width, OP)?;
        let n = loaded.weight.n;
        rounds |= cuda.rounds(loaded.kind);
        if parts.iter().take(i).any(|other| other.out == part.out) {
            return Err(BackendError::Operand { op: OP, what: "two parts share an output".into() });
        }
        let out = cuda.buffers.output(part.out, [input.rows, n], Some(x), OP)?;
        if accumulate {
            cuda.buffers.input(part.out, n, Some(input.rows), OP)?;
        }
        let bias = part.bias.map(|bias| cuda.weights.vector(&mut cuda.core, bias, n, OP)).transpose()?.unwrap_or(0);
        products.push(Product { weight: part.weight, out: out.address, bias });
    }
    let inputs = inputs(cuda, x, input, rounds)?;
    products::run(cuda, inputs, &products, accumulate)?;
    for part in parts {
        cuda.buffers.wrote(part.out, input.rows);
    }
    Ok(())
}

pub fn gated(
    cuda: &mut Cuda,
    x: BufferId,
    [gate, up]: [WeightId; 2],
    activation: Activation,
    out: BufferId,
) -> Result<(), BackendError> {
    const OP: &str = "gated_linear";
    let input = cuda.buffers.get(x, OP)?;
    let first = cuda.weights.matrix(gate, None, input.width, OP)?;
    let (n, mut rounds) = (first.weight.n, cuda.rounds(first.kind));
    rounds |= cuda.rounds(cuda.weights.matrix(up, Some(n), input.width, OP)?.kind);
    let rows = input.rows;
    let to = cuda.buffers.output(out, [rows, n], Some(x), OP)?;
    let inputs = inputs(cuda, x, input, rounds)?;
    let bytes = 4 * (rows * n) as u64;
    let halves = [cuda.core.scratch(Use::Gate, bytes)?, cuda.core.scratch(Use::Up, bytes)?];
    let of = |(weight, out)| Product { weight, out, bias: 0 };
    products::run(cuda, inputs, &[(gate, halves[0]), (up, halves[1])].map(of), false)?;
    // What follows reads it rounded: that costs nothing here.
    let (codes, scales) = if n.is_multiple_of(32) { rounded_places(cuda, rows, n)? } else { (0, 0) };
    let places = Gates { halves, out: to.address, codes, scales, pairs: None, which: 0 };
    combine(cuda, &places, [rows, n], activation)?;
    let version = cuda.buffers.wrote(out, rows);
    if codes != 0 {
        cuda.rounded = Some((out, version));
    }
    Ok(())
}

/// Where both halves of a gated MLP lie and where they go.
#[derive(Clone, Copy)]
pub struct Gates {
    /// x · gateᵀ, x · upᵀ.
    pub halves: [u64; 2],
    /// Their combination, or 0 where only its rounding is wanted.
    pub out: u64,
    /// Rounded, or 0.
    pub codes: u64,
    /// Scales of what is rounded.
    pub scales: u64,
    /// Of pairs: the expert of every row, and the addresses of biases of gate and up by expert (0 for none).
    pub pairs: Option<[u64; 3]>,
    /// The rows to combine, [`super::moe::NOBODY`] for none; 0 for all.
    pub which: u64,
}

/// Combines gate and up.
pub fn combine(
    cuda: &mut Cuda,
    gates: &Gates,
    [rows, n]: [usize; 2],
    activation: Activation,
) -> Result<(), BackendError> {
    let (activation, limit, alpha) = match activation {
        Activation::Silu => (0, 0.0, 1.0),
        Activation::ClampedSilu { limit } => (1, limit, 1.0),
        Activation::ClampedSwish { limit, alpha } => (2, limit, alpha),
    };
    let [chosen, gate_bias, up_bias] = gates.pairs.unwrap_or_default();
    let ([gate, up], Gates { out, codes, scales, which, .. }) = (gates.halves, *gates);
    let args = GatedArgs {
        gate,
        up,
        out,
        codes,
        scales,
        chosen,
        gate_bias,
        up_bias,
        which,
        n: n as u32,
        activation,
        limit,
        alpha,
    };
    for first in (0..rows).step_by(MOST_ROWS) {
        let count = MOST_ROWS.min(rows - first);
        cuda.core.run(ROWS, "gated", [n.div_ceil(256), count, 1], 256, &from_row(&args, first, n))?;
    }
    Ok(())
}

/// Rows that one launch can count.
const MOST_ROWS: usize = 65535;

/// The same with rows from `first` on.
fn from_row(args: &GatedArgs, first: usize, n: usize) -> GatedArgs {
    let (rows, values) = (first as u64, (first * n) as u64);
    let beyond = |address: u64, bytes: u64| if address == 0 { 0 } else { address + bytes };
    if args.which != 0 {
        return GatedArgs { which: args.which + 4 * rows, ..*args };
    }
    GatedArgs {
        gate: args.gate + 4 * values,
        up: args.up + 4 * values,
        out: beyond(args.out, 4 * values),
        codes: beyond(args.codes, values),
        scales: beyond(args.scales, values / 8),
        chosen: beyond(args.chosen, 4 * rows),
        ..*args
    }
}

pub fn blocks(cuda: &mut Cuda, [x, out]: [BufferId; 2], weight: WeightId, blocks: Blocks) -> Result<(), BackendError> {
    const OP: &str = "block_linear";
    let (kind, k) = check(cuda, weight, blocks, OP)?;
    let input = cuda.buffers.input(x, blocks.count * k, None, OP)?;
    let to = cuda.buffers.output(out, [input.rows, blocks.count * blocks.rows], Some(x), OP)?;
    let args = arguments(cuda, input.address, to.address, weight, blocks, [k, 0])?;
    let grid = [blocks.rows.div_ceil(16), blocks.count, input.rows];
    cuda.core.run_kind(kind, "blocks", grid, &args)?;
    cuda.buffers.wrote(out, input.rows);
    Ok(())
}

pub fn transposed(
    cuda: &mut Cuda,
    [x, meets, out]: [BufferId; 3],
    weight: WeightId,
    blocks: Blocks,
) -> Result<(), BackendError> {
    const OP: &str = "block_linear_transposed";
    let (kind, k) = check(cuda, weight, blocks, OP)?;
    let (input, meets) = (cuda.buffers.get(x, OP)?, cuda.buffers.get(meets, OP)?);
    let width = input.width / blocks.count;
    if width * blocks.count != input.width || width < blocks.rows || meets.width < k {
        let what = format!("inputs of {}, met by {} of {k}, {blocks:?}", input.width, meets.width);
        return Err(BackendError::Operand { op: OP, what });
    }
    let wide = blocks.count * (k + width - blocks.rows);
    let to = cuda.buffers.output(out, [input.rows, wide], Some(x), OP)?;
    let args = arguments(cuda, input.address, to.address, weight, blocks, [k, width])?;
    let grid = [k.div_ceil(256), blocks.count, input.rows];
    cuda.core.run_kind(kind, "transposed", grid, &args)?;
    cuda.buffers.wrote(out, input.rows);
    Ok(())
}

/// Whether the blocks lie in the weight; its kind and inputs.
fn check(
    cuda: &Cuda,
    weight: WeightId,
    blocks: Blocks,
    op: &'static str,
) -> Result<(crate::table::Kind, usize), BackendError> {
    let loaded = cuda.weights.get(weight, op)?;
    let w = &loaded.weight;
    blocks.check(w.n).map_err(|what| BackendError::Operand { op, what: format!("`{}` {what}", w.name) })?;
    Ok((loaded.kind, w.k))
}

fn arguments(
    cuda: &mut Cuda,
    x: u64,
    out: u64,
    weight: WeightId,
    blocks: Blocks,
    [k, width]: [usize; 2],
) -> Result<BlockArgs, BackendError> {
    Ok(BlockArgs {
        weights: cuda.weights.table(&mut cuda.core)?,
        x,
        out,
        weight: weight.0,
        m: 0,
        count: blocks.count as u32,
        stride: blocks.stride as u32,
        first: blocks.first as u32,
        rows: blocks.rows as u32,
        k: k as u32,
        width: width as u32,
    })
}
