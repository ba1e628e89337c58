//! The ops, one file each. Each checks its operands first, then starts kernels; nothing here waits for the device.

mod attention;
mod compress;
mod heads;
mod hyper;
pub mod linear;
pub mod moe;
mod products;
mod rows;

use crate::cuda::Cuda;
use ashlar_backend::{BackendError, Batch, Op};

/// Runs one op; `batch` is checked, and on the device.
pub fn run(cuda: &mut Cuda, op: &Op, batch: &Batch) -> Result<(), BackendError> {
    match op {
        Op::Embed { table, out } => rows::embed(cuda, *table, *out, batch),
        Op::RmsNorm { x, weight, eps, out } => rows::rms_norm(cuda, *x, *weight, *eps, *out),
        Op::Linear { x, parts, accumulate } => linear::run(cuda, *x, parts, *accumulate),
        Op::GatedLinear { x, gate, up, activation, out } => linear::gated(cuda, *x, [*gate, *up], *activation, *out),
        Op::QkNormRope { q, k, q_norm, k_norm, eps, head_dim, rope } => {
            for (x, norm) in [(*q, *q_norm), (*k, *k_norm)] {
                heads::halves(cuda, x, norm, *eps, *head_dim, rope, batch)?;
            }
            Ok(())
        }
        Op::Attention { q, k, v, cache, num_heads, num_kv_heads, head_dim, scale, window, options, out } => {
            let heads = attention::Heads {
                queries: *num_heads,
                keys: *num_kv_heads,
                dim: *head_dim,
                scale: *scale,
                window: *window,
                options: *options,
            };
            attention::run(cuda, [*q, *k, *v], *cache, &heads, *out, batch)
        }
        Op::Moe { x, router, routing, options, experts, activation, out } => {
            let router = moe::Router { weight: *router, routing: *routing, options: *options };
            let mixture = moe::Mixture { x: *x, out: *out, router, experts, activation: *activation };
            moe::run(cuda, &mixture, batch)
        }
        Op::HeadNormRope { x, head_dim, norm, rope } => heads::pairs(cuda, *x, *head_dim, *norm, rope.as_ref(), batch),
        Op::BlockLinear { x, weight, blocks, out } => linear::blocks(cuda, [*x, *out], *weight, *blocks),
        Op::BlockLinearTransposed { x, weight, blocks, meets, out } => {
            linear::transposed(cuda, [*x, *meets, *out], *weight, *blocks)
        }
        Op::Compress { kv, gate, position, norm, eps, rope, ratio, overlap, tokens, entries } => {
            let pool =
                compress::Pool { place: *position, norm: *norm, eps: *eps, rope, ratio: *ratio, overlap: *overlap };
            compress::run(cuda, [*kv, *gate], &pool, [*tokens, *entries], batch)
        }
        Op::SelectEntries { q, weights, entries, ratio, num_heads, out } => {
            compress::select(cuda, [*q, *weights, *out], *entries, [*ratio, *num_heads], batch)
        }
        Op::Repeat { x, out } => rows::repeat(cuda, *x, *out),
        Op::HyperMix { x, mix, base, scale, lanes, coefficients, out } => {
            hyper::mix(cuda, *x, [*mix, *base, *scale], *lanes, [*coefficients, Some(*out)])
        }
        Op::HyperAdd { x, z, coefficients, lanes } => hyper::add(cuda, [*x, *z, *coefficients], *lanes),
        Op::SigmoidGate { x, weight, y } => rows::sigmoid_gate(cuda, *x, *weight, *y),
        Op::SelectRows { x, out } => rows::select(cuda, *x, *out, batch),
    }
}
