//! [`Cpu`]: state of the backend and dispatch to the ops.

use crate::buffers::Buffers;
use crate::inputs::Rounded;
use crate::kv::Caches;
use crate::loaded::{self, Loaded};
use crate::ops::attention::Partials;
use crate::pool::Pool;
use crate::shards::Shards;
use crate::{cores, gemv, ops};
use ashlar_arch::Rope;
use ashlar_backend::{
    ActivationMode, Backend, BackendError, Batch, BufferId, CacheId, CacheShape, Experts, Memory, Observer, Op, Pair,
    RopeTable, Streamed, Support, Weight, WeightId,
};
use ashlar_formats::Spec;
use ashlar_simd::Isa;
use ashlar_tensor::Order;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

/// Cosines and sines of a batch.
struct Angles {
    table: Arc<RopeTable>,
    positions: Vec<usize>,
    /// Per row: half a head of cosines, half a head of sines.
    values: Arc<Vec<f32>>,
}

/// The CPU backend. See the crate's description.
pub struct Cpu {
    pub(crate) isa: Isa,
    pub(crate) pool: Pool,
    mode: ActivationMode,
    weights: Vec<Loaded>,
    pub(crate) buffers: Buffers,
    pub(crate) caches: Caches,
    ropes: Vec<(Arc<Rope>, usize, Arc<RopeTable>)>,
    /// Of every rope, the angles of the last batch: all layers turn by the same.
    angles: Vec<Angles>,
    /// Rounded inputs of the op at work.
    pub(crate) rounded: Rounded,
    /// Of attention behind long contexts.
    pub(crate) partials: Partials,
    /// (format, why it is decoded) and the number of tensors.
    decoded: BTreeMap<(String, &'static str), usize>,
}

impl Cpu {
    /// A backend with int8 activations where kernels take them. `threads`: as many threads, the caller's included; by
    /// default the physical cores of the affinity mask.
    #[must_use]
    pub fn new(threads: Option<usize>, isa: Isa) -> Self {
        Self::with_mode(threads, isa, ActivationMode::Int8)
    }

    /// As [`Cpu::new`], with activations rounded as `mode` says.
    #[must_use]
    pub fn with_mode(threads: Option<usize>, isa: Isa, mode: ActivationMode) -> Self {
        Self {
            isa,
            pool: Pool::new(threads.unwrap_or_else(cores::physical).max(1)),
            mode,
            weights: Vec::new(),
            buffers: Buffers::default(),
            caches: Caches::default(),
            ropes: Vec::new(),
            angles: Vec::new(),
            rounded: Rounded::default(),
            partials: Partials::default(),
            decoded: BTreeMap::new(),
        }
    }

    /// A loaded weight, which may not be in memory.
    pub(crate) fn described(&self, id: WeightId, op: &'static str) -> Result<&Loaded, BackendError> {
        let missing = || BackendError::Operand { op, what: format!("no weight {}", id.0) };
        self.weights.get(id.0 as usize).ok_or_else(missing)
    }

    /// A weight that is in memory.
    pub(crate) fn weight(&self, id: WeightId, op: &'static str) -> Result<&Loaded, BackendError> {
        let loaded = self.described(id, op)?;
        match loaded.streamed {
            None => Ok(loaded),
            Some(_) => {
                let what =
                    format!("`{}` comes from the disk as experts are used; no other op reads it", loaded.weight.name);
                Err(BackendError::Operand { op, what })
            }
        }
    }

    /// A weight of n × k, both as given or any.
    pub(crate) fn matrix(
        &self,
        id: WeightId,
        n: Option<usize>,
        k: usize,
        op: &'static str,
    ) -> Result<&Loaded, BackendError> {
        self.weight(id, op)?.is(n, k, op)
    }

    /// A weight that is a vector of `len` values.
    pub(crate) fn vector(&self, id: WeightId, len: usize, op: &'static str) -> Result<&[f32], BackendError> {
        let loaded = self.weight(id, op)?;
        if loaded.vector.len() == len && loaded.weight.n == 1 {
            return Ok(&loaded.vector);
        }
        let w = &loaded.weight;
        Err(BackendError::Operand {
            op,
            what: format!("`{}` is {} × {}, expected a vector of {len}", w.name, w.n, w.k),
        })
    }

    /// Remembers what no kernel reads as it lies.
    fn count_decoded(&mut self, weight: &Weight) {
        if weight.n > 1 && gemv::table::entry(&weight.spec, weight.order).is_none() {
            let why = match weight.order {
                Order::Rows => "in checkpoint order; `ashlar convert` makes it fast",
                Order::X16 => "without a cpu kernel",
            };
            *self.decoded.entry((weight.spec.to_string(), why)).or_default() += 1;
        }
    }

    /// The frequencies of a rope, computed once.
    pub(crate) fn rope(&mut self, rope: &Arc<Rope>, head_dim: usize) -> Arc<RopeTable> {
        if let Some((.., table)) = self.ropes.iter().find(|(r, d, _)| r == rope && *d == head_dim) {
            return Arc::clone(table);
        }
        let table = Arc::new(RopeTable::new(rope, head_dim));
        self.ropes.push((Arc::clone(rope), head_dim, Arc::clone(&table)));
        table
    }

    /// Cosines, then sines, of the turned `width` of a head, for every row.
    pub(crate) fn angles(&mut self, rope: &Arc<Rope>, width: usize, batch: &Batch) -> Arc<Vec<f32>> {
        let (table, positions) = (self.rope(rope, width), batch.positions());
        let known = self.angles.iter().position(|a| Arc::ptr_eq(&a.table, &table));
        if let Some(known) = known.and_then(|i| self.angles.get(i)).filter(|a| a.positions == positions) {
            return Arc::clone(&known.values);
        }
        let mut values = vec![0.0; positions.len() * width];
        let all = Shards::new(&mut values);
        self.pool.run(positions.len(), &|row| {
            // SAFETY: every row is one index of the pool.
            let (cos, sin) = unsafe { all.slice(row * width..(row + 1) * width) }.split_at_mut(width / 2);
            table.fill(positions[row], cos, sin);
        });
        let values = Arc::new(values);
        let new = Angles { table, positions, values: Arc::clone(&values) };
        match known {
            Some(i) => self.angles[i] = new,
            None => self.angles.push(new),
        }
        values
    }
}

impl Backend for Cpu {
    fn describe(&self) -> String {
        let threads = self.pool.threads();
        let activations = match self.mode {
            ActivationMode::Bf16 if self.isa.multiplies_bf16() => "int8 and bf16 (AVX512-BF16)",
            ActivationMode::Bf16 => "int8 and bf16 (multiplied in f32)",
            mode => mode.name(),
        };
        let nodes = match cores::numa_nodes() {
            1 => String::new(),
            n => format!(" on {n} NUMA nodes"),
        };
        format!(
            "cpu ({}, {threads} thread{}{nodes}, {activations} activations)",
            self.isa,
            if threads == 1 { "" } else { "s" }
        )
    }

    fn support(&self, spec: &Spec) -> Support {
        match gemv::table::entry(spec, Order::X16) {
            Some(_) => Support::Native,
            None => Support::ViaDecode(format!("{spec} has no cpu kernel: rows are decoded to f32 as they are used")),
        }
    }

    fn notes(&self) -> Vec<String> {
        let line = |((format, why), count): (&(String, &str), &usize)| {
            format!("{count} tensor{} of {format} {why}: decoded to f32 as used", if *count == 1 { "" } else { "s" })
        };
        self.decoded.iter().map(line).collect()
    }

    fn activations(&self, spec: &Spec) -> ActivationMode {
        loaded::activations(spec, self.mode)
    }

    fn load(&mut self, weight: Weight) -> Result<WeightId, BackendError> {
        self.count_decoded(&weight);
        self.weights.push(Loaded::new(weight, self.mode)?);
        Ok(WeightId((self.weights.len() - 1) as u32))
    }

    fn streams(&self) -> bool {
        true
    }

    fn load_streamed(&mut self, weight: Streamed) -> Result<WeightId, BackendError> {
        self.count_decoded(&weight.weight);
        self.weights.push(Loaded::streamed(weight, self.mode)?);
        Ok(WeightId((self.weights.len() - 1) as u32))
    }

    fn alloc(&mut self, rows: usize, width: usize) -> Result<BufferId, BackendError> {
        self.buffers.alloc(rows, width)
    }

    fn alloc_cache(&mut self, shape: &CacheShape) -> Result<CacheId, BackendError> {
        self.caches.alloc(shape)
    }

    fn truncate(&mut self, slot: usize, positions: usize) {
        self.caches.truncate(slot, positions);
    }

    fn saved_as(&self) -> Option<String> {
        // Kernels of another ISA add in another order.
        Some(format!("cpu 1, {}, {:?}", self.isa, self.mode))
    }

    fn save(
        &mut self,
        cache: CacheId,
        slot: usize,
        range: Range<usize>,
        out: &mut Vec<u8>,
    ) -> Result<bool, BackendError> {
        self.caches.save(cache, slot, &range, out)
    }

    fn restore(&mut self, cache: CacheId, slot: usize, range: Range<usize>, bytes: &[u8]) -> Result<(), BackendError> {
        self.caches.restore(cache, slot, &range, bytes)
    }

    fn memory(&self) -> Memory {
        Memory { activations: self.buffers.bytes() + self.partials.bytes(), caches: self.caches.bytes() }
    }

    fn run(&mut self, op: &Op, batch: &Batch, observer: Option<&mut dyn Observer>) -> Result<(), BackendError> {
        batch.check()?;
        ops::run(self, op, batch, observer)
    }

    fn likely(&mut self, moe: &Op, like: Option<BufferId>, batch: &Batch) -> Result<Vec<usize>, BackendError> {
        ops::likely(self, moe, like, batch)
    }

    fn route(&mut self, moe: &Op, batch: &Batch) -> Result<Vec<(usize, f32)>, BackendError> {
        batch.check()?;
        ops::route(self, moe, batch)
    }

    fn experts(&mut self, x: BufferId, experts: Experts<'_>, pairs: &[Pair]) -> Result<Vec<f32>, BackendError> {
        ops::products(self, x, experts, pairs)
    }

    fn read(&mut self, buffer: BufferId) -> Result<Vec<f32>, BackendError> {
        Ok(self.buffers.get(buffer, "read")?.values.clone())
    }

    fn write(&mut self, buffer: BufferId, values: &[f32]) -> Result<(), BackendError> {
        self.buffers.write(buffer, values)
    }
}
