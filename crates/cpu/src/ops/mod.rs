//! The ops, one file each. Each checks its operands first, then computes without failing (but for damaged weights).

pub mod attention;
mod block_linear;
mod compress;
mod embed;
mod experts;
mod head_norm_rope;
mod hyper;
mod linear;
pub mod matmul;
mod moe;
mod qk_norm_rope;
mod rms_norm;
mod select_entries;
mod select_rows;
mod sigmoid_gate;
#[cfg(test)]
mod tests;

use crate::cpu::Cpu;
use ashlar_backend::{BackendError, Batch, BufferId, ExpertWeights, Observer, Op};

pub use moe::products;

/// Which experts `moe` will use, or is likely to.
pub fn likely(cpu: &Cpu, moe: &Op, like: Option<BufferId>, batch: &Batch) -> Result<Vec<usize>, BackendError> {
    let (_, router, experts) = mixture(moe)?;
    moe::likely(cpu, &router, experts.len(), like, batch)
}

/// Where the rows of a mixture go.
pub fn route(cpu: &Cpu, moe: &Op, batch: &Batch) -> Result<Vec<(usize, f32)>, BackendError> {
    let (x, router, experts) = mixture(moe)?;
    moe::routes(cpu, x, &router, experts.len(), batch)
}

/// Input, router and experts of a mixture.
fn mixture(op: &Op) -> Result<(BufferId, moe::Router, &[ExpertWeights]), BackendError> {
    let Op::Moe { x, router, routing, options, experts, .. } = op else {
        let what = format!("{} is no mixture of experts", op.name());
        return Err(BackendError::Operand { op: moe::OP, what });
    };
    Ok((*x, moe::Router { weight: *router, routing: *routing, options: *options }, experts))
}

/// Runs one op; `batch` is checked.
pub fn run(cpu: &mut Cpu, op: &Op, batch: &Batch, observer: Option<&mut dyn Observer>) -> Result<(), BackendError> {
    match op {
        Op::Embed { table, out } => embed::run(cpu, *table, *out, batch),
        Op::RmsNorm { x, weight, eps, out } => rms_norm::run(cpu, *x, *weight, *eps, *out),
        Op::Linear { x, parts, accumulate } => linear::run(cpu, *x, parts, *accumulate, observer),
        Op::GatedLinear { x, gate, up, activation, out } => {
            linear::gated(cpu, *x, [*gate, *up], *activation, *out, observer)
        }
        Op::QkNormRope { q, k, q_norm, k_norm, eps, head_dim, rope } => {
            let norms = [(*q, *q_norm), (*k, *k_norm)];
            qk_norm_rope::run(cpu, norms, *eps, *head_dim, rope, batch)
        }
        Op::Attention { q, k, v, cache, num_heads, num_kv_heads, head_dim, scale, window, options, out } => {
            let sinks = options.sinks.map(|id| cpu.vector(id, *num_heads, "attention").map(<[f32]>::to_vec));
            let heads = attention::Heads {
                queries: *num_heads,
                keys: *num_kv_heads,
                dim: *head_dim,
                scale: *scale,
                window: *window,
                sinks: sinks.transpose()?.unwrap_or_default(),
                values_in_keys: options.values_in_keys,
                entries: options.entries,
            };
            attention::run(cpu, [*q, *k, *v], *cache, &heads, *out, batch)
        }
        Op::Moe { x, router, routing, options, experts, activation, out } => {
            let router = moe::Router { weight: *router, routing: *routing, options: *options };
            moe::run(cpu, [*x, *out], &router, experts, *activation, batch, observer)
        }
        Op::HeadNormRope { x, head_dim, norm, rope } => {
            head_norm_rope::run(cpu, *x, *head_dim, *norm, rope.as_ref(), batch)
        }
        Op::BlockLinear { x, weight, blocks, out } => block_linear::run(cpu, [*x, *out], *weight, *blocks, observer),
        Op::BlockLinearTransposed { x, weight, blocks, meets, out } => {
            block_linear::transposed(cpu, [*x, *meets, *out], *weight, *blocks, observer)
        }
        Op::Compress { kv, gate, position, norm, eps, rope, ratio, overlap, tokens, entries } => {
            let pool =
                compress::Pool { position: *position, norm: *norm, eps: *eps, rope, ratio: *ratio, overlap: *overlap };
            compress::run(cpu, [*kv, *gate], &pool, [*tokens, *entries], batch)
        }
        Op::SelectEntries { q, weights, entries, ratio, num_heads, out } => {
            select_entries::run(cpu, [*q, *weights, *out], *entries, *ratio, *num_heads, batch)
        }
        Op::Repeat { x, out } => hyper::repeat(cpu, *x, *out),
        Op::HyperMix { x, mix, base, scale, lanes, coefficients, out } => {
            hyper::mix(cpu, *x, [*mix, *base, *scale], *lanes, [*coefficients, Some(*out)], observer)
        }
        Op::HyperAdd { x, z, coefficients, lanes } => hyper::add(cpu, [*x, *z, *coefficients], *lanes),
        Op::SigmoidGate { x, weight, y } => sigmoid_gate::run(cpu, *x, *weight, *y, observer),
        Op::SelectRows { x, out } => select_rows::run(cpu, *x, *out, batch),
    }
}
