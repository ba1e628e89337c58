//! The reference backend: the oracle that every other backend is compared with. Slow and obvious, never optimised.
//!
//! Owns: what each op means, one file per op. Weights are decoded to f32 at load; activations are f32,
//! cached keys and values what [`crate::KvFormat`] keeps of them; every sum (dot products, norms, softmax) runs in f64
//! from the first to the last term and is rounded to f32 once.
//! In [`ActivationMode::Int8`] and [`ActivationMode::Bf16`] inputs are rounded exactly as fast kernels round them.

mod attention;
mod block_linear;
mod buffer;
mod compress;
mod embed;
mod gated_linear;
mod head_norm_rope;
mod hyper;
mod linear;
mod moe;
mod qk_norm_rope;
mod rms_norm;
mod select_entries;
mod select_rows;
mod sigmoid_gate;
#[cfg(test)]
mod tests;

use crate::{
    ActivationMode, Ask, Backend, BackendError, Batch, BufferId, CacheId, CacheShape, Experts, Memory, Observer, Op,
    Pair, SURVEY_MOST, Support, Survey, Surveyor, Weight, WeightId, survey,
};
use ashlar_formats::Spec;
use attention::Cache;
use buffer::Buffer;
use std::ops::Range;

/// The oracle.
#[derive(Default)]
pub struct Reference {
    mode: ActivationMode,
    weights: Vec<Matrix>,
    buffers: Vec<Buffer>,
    caches: Vec<Cache>,
    slack: Vec<f64>,
}

/// A decoded weight.
struct Matrix {
    name: String,
    n: usize,
    k: usize,
    /// n × k, row-major.
    values: Vec<f32>,
    /// How inputs are rounded; F32 for float weights.
    mode: ActivationMode,
}

impl Matrix {
    fn row(&self, row: usize) -> &[f32] {
        self.values.get(row * self.k..(row + 1) * self.k).unwrap_or_default()
    }
}

impl Reference {
    /// A reference that rounds inputs of quantized weights as `mode` says.
    #[must_use]
    pub fn new(mode: ActivationMode) -> Self {
        Self { mode, ..Self::default() }
    }

    /// Changes the mode for weights loaded from now on.
    pub fn set_mode(&mut self, mode: ActivationMode) {
        self.mode = mode;
    }

    /// Per row of the last op: how far its outputs may lie from the exact ones because an intermediate value that is
    /// rounded to int8 lay almost on a tie. Zero for ops without intermediate rounding.
    pub(crate) fn slack(&self) -> &[f64] {
        &self.slack
    }

    /// Whether an entry that was stored lay so near a tie that kernels may legitimately have stored another one.
    pub(crate) fn met_a_tie(&self) -> bool {
        self.caches.iter().any(|cache| cache.tie)
    }

    fn weight(&self, id: WeightId, op: &'static str) -> Result<&Matrix, BackendError> {
        let missing = || BackendError::Operand { op, what: format!("no weight {}", id.0) };
        self.weights.get(id.0 as usize).ok_or_else(missing)
    }

    /// A weight that is a vector of `len` values.
    fn vector(&self, id: WeightId, len: usize, op: &'static str) -> Result<&[f32], BackendError> {
        let w = self.weight(id, op)?;
        if w.values.len() != len {
            let what = format!("`{}` is {} × {}, expected a vector of {len}", w.name, w.n, w.k);
            return Err(BackendError::Operand { op, what });
        }
        Ok(&w.values)
    }

    /// A cache whose keys must be `width` wide.
    fn cache(&self, id: CacheId, width: usize, op: &'static str) -> Result<&Cache, BackendError> {
        let found = self.caches.get(id.0 as usize).filter(|c| c.width() == width);
        found.ok_or_else(|| BackendError::Operand { op, what: format!("no cache {} of width {width}", id.0) })
    }

    fn cache_mut(&mut self, id: CacheId, width: usize, op: &'static str) -> Result<&mut Cache, BackendError> {
        let found = self.caches.get_mut(id.0 as usize).filter(|c| c.width() == width);
        found.ok_or_else(|| BackendError::Operand { op, what: format!("no cache {} of width {width}", id.0) })
    }

    fn buffer(&self, id: BufferId, op: &'static str) -> Result<&Buffer, BackendError> {
        let missing = || BackendError::Operand { op, what: format!("no buffer {}", id.0) };
        self.buffers.get(id.0 as usize).ok_or_else(missing)
    }

    /// A buffer whose width must be `width`.
    fn input(&self, id: BufferId, width: usize, op: &'static str) -> Result<&Buffer, BackendError> {
        let buffer = self.buffer(id, op)?;
        buffer.expect_width(width, op)?;
        Ok(buffer)
    }

    /// Replaces the contents of a buffer by `rows` rows of `width` values.
    fn store(&mut self, id: BufferId, width: usize, values: Vec<f32>, op: &'static str) -> Result<(), BackendError> {
        self.buffer(id, op)?;
        match self.buffers.get_mut(id.0 as usize) {
            Some(buffer) => buffer.store(width, values, op),
            None => Ok(()),
        }
    }

    /// Adds to the contents of a buffer.
    fn add(&mut self, id: BufferId, width: usize, values: Vec<f32>, op: &'static str) -> Result<(), BackendError> {
        let old = self.input(id, width, op)?;
        if old.values.len() != values.len() {
            let what = format!("adds {} rows to {}", values.len() / width.max(1), old.rows());
            return Err(BackendError::Operand { op, what });
        }
        let sum = old.values.iter().zip(&values).map(|(a, b)| a + b).collect();
        self.store(id, width, sum, op)
    }
}

impl Surveyor for Reference {
    fn survey(&mut self, logits: BufferId, asks: &[Ask]) -> Result<Vec<Survey>, BackendError> {
        let buffer = self.buffer(logits, "survey")?;
        let wrong = |ask: &Ask| {
            let beyond = ask.named.iter().any(|id| *id as usize >= buffer.width());
            ask.row >= buffer.rows() || beyond || !(1..=SURVEY_MOST).contains(&ask.count)
        };
        if let Some(ask) = asks.iter().find(|ask| wrong(ask)) {
            let what = format!("{ask:?} of {} rows of {}", buffer.rows(), buffer.width());
            return Err(BackendError::Operand { op: "survey", what });
        }
        Ok(asks.iter().map(|ask| survey(buffer.row(ask.row), ask)).collect())
    }

    fn values(&mut self, logits: BufferId, row: usize, columns: Range<usize>) -> Result<Vec<f32>, BackendError> {
        let buffer = self.buffer(logits, "survey")?;
        let values = buffer.row(row).get(columns.clone()).map(<[f32]>::to_vec);
        let what = || format!("row {row}, columns {columns:?} of {} rows of {}", buffer.rows(), buffer.width());
        values.ok_or_else(|| BackendError::Operand { op: "survey", what: what() })
    }
}

impl Backend for Reference {
    fn describe(&self) -> String {
        format!("reference ({} activations, 1 thread)", self.mode.name())
    }

    fn support(&self, _spec: &Spec) -> Support {
        Support::ViaDecode("decoded to f32 at load".into())
    }

    fn activations(&self, _spec: &Spec) -> ActivationMode {
        self.mode
    }

    fn load(&mut self, weight: Weight) -> Result<WeightId, BackendError> {
        let mode = self.mode.of(&weight.spec);
        let len = weight.n.saturating_mul(weight.k);
        let mut values = buffer::zeros(len, || format!("tensor `{}` in f32", weight.name))?;
        weight.decode(0..weight.n, &mut values)?;
        self.weights.push(Matrix { name: weight.name, n: weight.n, k: weight.k, values, mode });
        Ok(WeightId((self.weights.len() - 1) as u32))
    }

    fn alloc(&mut self, rows: usize, width: usize) -> Result<BufferId, BackendError> {
        self.buffers.push(Buffer::new(rows, width));
        Ok(BufferId((self.buffers.len() - 1) as u32))
    }

    fn alloc_cache(&mut self, shape: &CacheShape) -> Result<CacheId, BackendError> {
        self.caches.push(Cache::new(shape));
        Ok(CacheId((self.caches.len() - 1) as u32))
    }

    fn truncate(&mut self, slot: usize, positions: usize) {
        self.caches.iter_mut().for_each(|cache| cache.truncate(slot, positions));
    }

    fn saved_as(&self) -> Option<String> {
        Some(format!("reference 1, {:?}", self.mode))
    }

    fn save(
        &mut self,
        cache: CacheId,
        slot: usize,
        range: Range<usize>,
        out: &mut Vec<u8>,
    ) -> Result<bool, BackendError> {
        self.caches.get(cache.0 as usize).ok_or_else(|| no_cache(cache))?.save(slot, &range, out)
    }

    fn restore(&mut self, cache: CacheId, slot: usize, range: Range<usize>, bytes: &[u8]) -> Result<(), BackendError> {
        self.caches.get_mut(cache.0 as usize).ok_or_else(|| no_cache(cache))?.restore(slot, &range, bytes)
    }

    fn memory(&self) -> Memory {
        let activations = self.buffers.iter().map(|b| 4 * b.values.len() as u64).sum();
        Memory { activations, caches: self.caches.iter().map(Cache::bytes).sum() }
    }

    fn run(&mut self, op: &Op, batch: &Batch, observer: Option<&mut dyn Observer>) -> Result<(), BackendError> {
        batch.check()?;
        self.slack.clear();
        match op {
            Op::Embed { table, out } => embed::run(self, *table, *out, batch),
            Op::RmsNorm { x, weight, eps, out } => rms_norm::run(self, *x, *weight, *eps, *out),
            Op::Linear { x, parts, accumulate } => linear::run(self, *x, parts, *accumulate, observer),
            Op::GatedLinear { x, gate, up, activation, out } => {
                gated_linear::run(self, *x, [*gate, *up], *activation, *out, observer)
            }
            Op::QkNormRope { q, k, q_norm, k_norm, eps, head_dim, rope } => {
                let table = crate::RopeTable::new(rope, *head_dim);
                qk_norm_rope::run(self, *q, *q_norm, *eps, &table, batch)?;
                qk_norm_rope::run(self, *k, *k_norm, *eps, &table, batch)
            }
            Op::Attention { q, k, v, cache, num_heads, num_kv_heads, head_dim, scale, window, options, out } => {
                let sinks = options.sinks.map(|id| self.vector(id, *num_heads, "attention").map(<[f32]>::to_vec));
                let heads = attention::Heads {
                    q: *num_heads,
                    kv: *num_kv_heads,
                    dim: *head_dim,
                    scale: *scale,
                    window: *window,
                    sinks: sinks.transpose()?.unwrap_or_default(),
                    values_in_keys: options.values_in_keys,
                    entries: options.entries,
                };
                attention::run(self, [*q, *k, *v], *cache, &heads, *out, batch)
            }
            Op::Moe { x, router, routing, options, experts, activation, out } => {
                let router = moe::Router { weight: *router, routing: *routing, options: *options };
                moe::run(self, [*x, *out], &router, experts, *activation, batch, observer)
            }
            Op::HeadNormRope { x, head_dim, norm, rope } => {
                head_norm_rope::run(self, *x, *head_dim, *norm, rope.as_ref(), batch)
            }
            Op::BlockLinear { x, weight, blocks, out } => {
                block_linear::run(self, [*x, *out], *weight, *blocks, observer)
            }
            Op::BlockLinearTransposed { x, weight, blocks, meets, out } => {
                block_linear::transposed(self, [*x, *meets, *out], *weight, *blocks, observer)
            }
            Op::Compress { kv, gate, position, norm, eps, rope, ratio, overlap, tokens, entries } => {
                let pool = compress::Pool {
                    position: *position,
                    norm: *norm,
                    eps: *eps,
                    rope,
                    ratio: *ratio,
                    overlap: *overlap,
                };
                compress::run(self, [*kv, *gate], &pool, [*tokens, *entries], batch)
            }
            Op::SelectEntries { q, weights, entries, ratio, num_heads, out } => {
                select_entries::run(self, [*q, *weights, *out], *entries, *ratio, *num_heads, batch)
            }
            Op::Repeat { x, out } => hyper::repeat(self, *x, *out),
            Op::HyperMix { x, mix, base, scale, lanes, coefficients, out } => {
                hyper::mix(self, *x, [*mix, *base, *scale], *lanes, [*coefficients, Some(*out)], observer)
            }
            Op::HyperAdd { x, z, coefficients, lanes } => hyper::add(self, [*x, *z, *coefficients], *lanes),
            Op::SigmoidGate { x, weight, y } => sigmoid_gate::run(self, *x, *weight, *y, observer),
            Op::SelectRows { x, out } => select_rows::run(self, *x, *out, batch),
        }
    }

    fn route(&mut self, moe: &Op, batch: &Batch) -> Result<Vec<(usize, f32)>, BackendError> {
        let Op::Moe { x, router, routing, options, experts, .. } = moe else {
            let what = format!("{} is no mixture of experts", moe.name());
            return Err(BackendError::Operand { op: "route", what });
        };
        let router = moe::Router { weight: *router, routing: *routing, options: *options };
        moe::routes(self, *x, &router, experts, batch)
    }

    fn experts(&mut self, x: BufferId, experts: Experts<'_>, pairs: &[Pair]) -> Result<Vec<f32>, BackendError> {
        moe::products(self, x, experts, pairs)
    }

    fn surveyor(&mut self) -> Option<&mut dyn Surveyor> {
        Some(self)
    }

    fn read(&mut self, buffer: BufferId) -> Result<Vec<f32>, BackendError> {
        Ok(self.buffer(buffer, "read")?.values.clone())
    }

    fn write(&mut self, buffer: BufferId, values: &[f32]) -> Result<(), BackendError> {
        let width = self.buffer(buffer, "write")?.width();
        if !values.len().is_multiple_of(width.max(1)) {
            let what = format!("{} values are no whole rows of {width}", values.len());
            return Err(BackendError::Operand { op: "write", what });
        }
        self.store(buffer, width, values.to_vec(), "write")
    }
}

fn no_cache(id: CacheId) -> BackendError {
    BackendError::Operand { op: "cache", what: format!("no cache {}", id.0) }
}
