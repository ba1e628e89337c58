//! What is no plain product and no attention: mixtures of experts, routers, norms, rotations, gates, surveys of logits.

use super::{Call, Effort, input, time, weights};
use crate::cuda::{Cuda, Use};
use crate::ops::linear::{Gates, combine};
use crate::ops::moe::{Router, router};
use ashlar_arch::{Activation, Rope, RopeScaling, Routing, Scores};
use ashlar_backend::{
    Ask, Backend, BackendError, Batch, ExpertWeights, MoeOptions, Op, SURVEY_MOST, Surveyor, WeightId,
};
use std::sync::Arc;

/// Something that was measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Measured {
    /// The op.
    pub what: &'static str,
    /// Its sizes and formats.
    pub shape: String,
    /// Rows of the batch.
    pub rows: usize,
    /// Bytes that it must read and write.
    pub bytes: f64,
    /// Operations of its products, a multiplication and an addition each; 0 where it has none.
    pub operations: f64,
    /// Of one call.
    pub seconds: f64,
}

/// Sizes of a model's parts.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Width of activations.
    pub hidden: usize,
    /// Query heads and key heads, of 128.
    pub heads: [usize; 2],
    /// Middle of a dense MLP.
    pub middle: usize,
    /// Tokens.
    pub vocab: usize,
    /// Of a mixture: width, experts, those of a token, their middle.
    pub mixture: [usize; 4],
}

const DIM: usize = 128;
/// Inputs that take turns, so that other experts are chosen and no cache holds them.
const TURNS: usize = 16;

/// Norms, rotations with norms of heads, gates; a survey of logits.
///
/// # Errors
/// [`BackendError`].
pub fn rows(cuda: &mut Cuda, sizes: Sizes, rows: usize, effort: Effort) -> Result<Vec<Measured>, BackendError> {
    let batch = Batch::of(0, 0, &vec![0; rows]);
    let Sizes { hidden, heads: [queries, keys], middle, vocab, .. } = sizes;
    let mut all = Vec::new();
    let of = |what, shape: String, values: usize, bytes_each: usize| Measured {
        what,
        shape,
        rows,
        bytes: (rows * values * bytes_each) as f64,
        operations: 0.0,
        seconds: 0.0,
    };
    let mut add = |cuda: &mut Cuda, measured: Measured, call: &mut Call<'_>| -> Result<(), BackendError> {
        all.push(Measured { seconds: time(cuda, effort.seconds, call)?, ..measured });
        Ok(())
    };
    let (x, out) = (input(cuda, rows, hidden)?, cuda.alloc(rows, hidden)?);
    let weight = vector(cuda, hidden)?;
    let op = Op::RmsNorm { x, weight, eps: 1e-6, out };
    // Read, written, and rounded on the way.
    add(cuda, of("norm", format!("{hidden}"), hidden, 9), &mut |cuda, _| cuda.run(&op, &batch, None))?;

    let (q, k) = (input(cuda, rows, queries * DIM)?, input(cuda, rows, keys * DIM)?);
    let norm = vector(cuda, DIM)?;
    let rope = Arc::new(Rope { theta: 10_000.0, scaling: RopeScaling::Plain });
    let (q_norm, k_norm) = (Some(norm), Some(norm));
    let op = Op::QkNormRope { q, k, q_norm, k_norm, eps: 1e-6, head_dim: DIM, rope };
    let shape = format!("{queries} + {keys} heads of {DIM}");
    let measured = of("norm of heads, rope", shape, (queries + keys) * DIM, 8);
    add(cuda, measured, &mut |cuda, _| cuda.run(&op, &batch, None))?;

    let bytes = 4 * (rows * middle) as u64;
    let halves = [cuda.core.scratch(Use::Gate, bytes)?, cuda.core.scratch(Use::Up, bytes)?];
    let codes = cuda.core.scratch(Use::MiddleCodes, bytes / 4)?;
    let scales = cuda.core.scratch(Use::MiddleScales, bytes / 32)?;
    let gates = Gates { halves, out: 0, codes, scales, pairs: None, which: 0 };
    let gate = &mut |cuda: &mut Cuda, _| combine(cuda, &gates, [rows, middle], Activation::Silu);
    add(cuda, of("SwiGLU", format!("{middle}"), middle, 9), gate)?;

    // No model hands over a chunk's logits.
    if rows <= 64 {
        let logits = input(cuda, rows, vocab)?;
        for (what, count, temperature) in [("survey, greedy", 1, 0.0), ("survey, top-p", SURVEY_MOST, 0.8)] {
            let asks: Vec<Ask> = (0..rows).map(|row| Ask { row, count, temperature, named: Vec::new() }).collect();
            let call = &mut |cuda: &mut Cuda, _| cuda.survey(logits, &asks).map(drop);
            add(cuda, of(what, format!("{vocab}"), vocab, 4), call)?;
        }
    }
    Ok(all)
}

/// A mixture of experts, and its router alone.
///
/// # Errors
/// [`BackendError`].
pub fn mixture(
    cuda: &mut Cuda,
    format: &str,
    [hidden, experts, top_k, middle]: [usize; 4],
    rows: &[usize],
    effort: Effort,
) -> Result<Vec<Measured>, BackendError> {
    let mut list = Vec::with_capacity(experts);
    let mut record = 0;
    for _ in 0..experts {
        let mut part = |n: usize, k: usize| -> Result<WeightId, BackendError> {
            let (ids, bytes) = weights(cuda, format, [n, k], 1)?;
            record += bytes;
            Ok(ids.first().copied().unwrap_or(WeightId(0)))
        };
        let (gate, up, down) = (part(middle, hidden)?, part(middle, hidden)?, part(hidden, middle)?);
        list.push(ExpertWeights { gate, up, down, biases: None });
    }
    let record = record as f64 / experts as f64;
    let list: Arc<[ExpertWeights]> = list.into();
    let (ids, router_bytes) = weights(cuda, "f32", [experts, hidden], 1)?;
    let weight = ids.first().copied().unwrap_or(WeightId(0));
    let routing = Routing { top_k, normalize: true, scores: Scores::Softmax, groups: None, scale: 1.0 };
    let mut all = Vec::new();
    for &rows in rows {
        let batch = Batch::of(0, 0, &vec![0; rows]);
        let inputs = (0..TURNS).map(|turn| turned(cuda, [rows, hidden], turn)).collect::<Result<Vec<_>, _>>()?;
        let out = cuda.alloc(rows, hidden)?;
        cuda.write(out, &vec![0.0; rows * hidden])?;
        let pick = |i: usize| inputs.get(i % TURNS).copied().unwrap_or(out);
        let options = MoeOptions::default();
        let op = |i: usize| Op::Moe {
            x: pick(i),
            router: weight,
            routing,
            options,
            experts: Arc::clone(&list),
            activation: Activation::Silu,
            out,
        };
        let seconds = time(cuda, effort.seconds, &mut |cuda, i| cuda.run(&op(i), &batch, None))?;
        let pairs = (rows * top_k) as f64;
        // As many experts as so many draws of `experts` meet in the mean.
        let met = experts as f64 * (1.0 - (1.0 - 1.0 / experts as f64).powf(pairs));
        let shape = format!("{format}, {top_k} of {experts} of {hidden} × {middle}");
        all.push(Measured {
            what: if pairs <= 32.0 { "experts, pair by pair" } else { "experts, grouped" },
            shape,
            rows,
            bytes: met * record,
            operations: 6.0 * pairs * (hidden * middle) as f64,
            seconds,
        });
        let with = Router { weight, routing, options };
        let seconds = time(cuda, effort.seconds, &mut |cuda, i| router(cuda, pick(i), &with, experts, &batch))?;
        let (bytes, shape) =
            ((router_bytes as usize + 4 * rows * hidden) as f64, format!("{top_k} of {experts}, {hidden}"));
        let operations = 2.0 * (rows * experts * hidden) as f64;
        all.push(Measured { what: "router", shape, rows, bytes, operations, seconds });
    }
    Ok(all)
}

fn vector(cuda: &mut Cuda, len: usize) -> Result<WeightId, BackendError> {
    Ok(weights(cuda, "f32", [1, len], 1)?.0.first().copied().unwrap_or(WeightId(0)))
}

/// Rows like [`input`]'s, others at every turn.
pub fn turned(
    cuda: &mut Cuda,
    [rows, width]: [usize; 2],
    turn: usize,
) -> Result<ashlar_backend::BufferId, BackendError> {
    let buffer = cuda.alloc(rows, width)?;
    let values: Vec<f32> = (0..rows * width).map(|i| ((i + 7919 * turn) as f32 * 0.37).sin()).collect();
    cuda.write(buffer, &values)?;
    Ok(buffer)
}
