//! [`Modelled`]: a device whose work is booked.

use super::ledger::Shared;
use ashlar_backend::{
    ActivationMode, Arena, Backend, BackendError, Batch, BufferId, CacheId, CacheShape, Engine, ExpertSlots,
    ExpertWeights, Experts, Job, Memory, Observer, Op, Pair, Slotted, Streamed, Support, Surveyor, Weight, WeightId,
};
use ashlar_formats::Spec;
use ashlar_tensor::Bytes;
use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use std::sync::Arc;

/// What a weight costs.
#[derive(Clone, Copy, Default)]
struct Cost {
    bytes: f64,
    /// Multiply-adds per row.
    multiply: f64,
    /// Bytes of a row of it.
    row: f64,
}

/// A device whose work is booked on a ledger.
pub(crate) struct Modelled {
    inner: Box<dyn Backend>,
    engine: Engine,
    ledger: Shared,
    weights: HashMap<u32, Cost>,
    /// Of a weight that comes and goes: its record.
    records: HashMap<u32, u32>,
    /// By record: the slot that it was copied to last.
    slots: HashMap<u32, usize>,
    /// Bytes per position of every cache.
    caches: HashMap<u32, f64>,
    mixture: Option<Mixture>,
}

/// The mixture at work: its experts, and how many rows go to each.
struct Mixture {
    experts: Arc<[ExpertWeights]>,
    rows: HashMap<usize, usize>,
}

impl Modelled {
    /// Books what `inner`, which must be fresh, does as work of `engine`.
    pub fn new(inner: Box<dyn Backend>, engine: Engine, ledger: Shared) -> Self {
        Self {
            inner,
            engine,
            ledger,
            weights: HashMap::new(),
            records: HashMap::new(),
            slots: HashMap::new(),
            caches: HashMap::new(),
            mixture: None,
        }
    }

    fn note(&mut self, id: WeightId, weight: &Weight, bytes: f64) {
        let multiply = if weight.n > 1 { weight.n as f64 * weight.k as f64 } else { 0.0 };
        self.weights.insert(id.0, Cost { bytes, multiply, row: bytes / weight.n.max(1) as f64 });
    }

    fn cost(&self, id: WeightId) -> Cost {
        self.weights.get(&id.0).copied().unwrap_or_default()
    }

    /// Gate, up and down of an expert.
    fn expert(&self, expert: &ExpertWeights) -> Cost {
        [expert.gate, expert.up, expert.down].iter().map(|id| self.cost(*id)).fold(Cost::default(), |a, b| Cost {
            bytes: a.bytes + b.bytes,
            multiply: a.multiply + b.multiply,
            row: 0.0,
        })
    }

    /// Of experts with the rows that go to each.
    fn experts_job<'a>(&self, experts: impl Iterator<Item = (&'a ExpertWeights, usize)>) -> Job {
        let mut job = Job::default();
        for (expert, rows) in experts {
            let cost = self.expert(expert);
            job.bytes += cost.bytes;
            job.multiply_adds += cost.multiply * rows as f64;
        }
        job
    }

    /// What an op reads and multiplies.
    fn job(&self, op: &Op, batch: &Batch, selected: bool) -> Job {
        let rows = if selected { batch.outputs.len() } else { batch.rows() };
        match op {
            _ if rows == 0 => Job::default(),
            Op::Embed { table, .. } => Job::bytes(self.cost(*table).row * rows as f64),
            Op::Moe { router, routing, experts, .. } => {
                let router = self.cost(*router);
                let (count, top_k) = (experts.len().max(1) as f64, routing.top_k as f64);
                // As many different experts as rows use on average, if all are alike.
                let used = count * (1.0 - (1.0 - top_k / count).max(0.0).powi(rows as i32));
                let all = self.experts_job(experts.iter().map(|expert| (expert, rows)));
                Job {
                    bytes: router.bytes + all.bytes * used / count,
                    multiply_adds: router.multiply * rows as f64 + all.multiply_adds * top_k / count,
                    delay: 0.0,
                }
            }
            other => {
                let operands = other.operands();
                let weights = operands.weights.iter().map(|id| self.cost(*id));
                let (bytes, multiply) = weights.fold((0.0, 0.0), |(b, m), c| (b + c.bytes, m + c.multiply));
                let held: usize = batch.sequences.iter().map(|s| s.position + s.rows.len()).sum();
                let per_position: f64 = operands.caches.iter().filter_map(|id| self.caches.get(&id.0)).sum();
                Job { bytes: bytes + per_position * held as f64, multiply_adds: multiply * rows as f64, delay: 0.0 }
            }
        }
    }
}

impl Backend for Modelled {
    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn support(&self, spec: &Spec) -> Support {
        self.inner.support(spec)
    }

    fn notes(&self) -> Vec<String> {
        self.inner.notes()
    }

    fn activations(&self, spec: &Spec) -> ActivationMode {
        self.inner.activations(spec)
    }

    fn load(&mut self, weight: Weight) -> Result<WeightId, BackendError> {
        let described = Weight { planes: Vec::new(), ..weight.clone() };
        let bytes: usize = weight.planes.iter().map(|p| p.len()).sum();
        let id = self.inner.load(weight)?;
        self.note(id, &described, bytes as f64);
        Ok(id)
    }

    fn streams(&self) -> bool {
        self.inner.streams()
    }

    fn load_streamed(&mut self, weight: Streamed) -> Result<WeightId, BackendError> {
        let bytes: usize = weight.planes.iter().map(Range::len).sum();
        let described = weight.weight.clone();
        let id = self.inner.load_streamed(weight)?;
        self.note(id, &described, bytes as f64);
        Ok(id)
    }

    fn alloc(&mut self, rows: usize, width: usize) -> Result<BufferId, BackendError> {
        self.inner.alloc(rows, width)
    }

    fn alloc_cache(&mut self, shape: &CacheShape) -> Result<CacheId, BackendError> {
        let id = self.inner.alloc_cache(shape)?;
        let positions = shape.capacity.saturating_mul(shape.sequences).max(1);
        self.caches.insert(id.0, shape.reserved() as f64 / positions as f64);
        Ok(id)
    }

    fn truncate(&mut self, slot: usize, positions: usize) {
        self.inner.truncate(slot, positions);
    }

    fn saved_as(&self) -> Option<String> {
        self.inner.saved_as()
    }

    fn save(
        &mut self,
        cache: CacheId,
        slot: usize,
        range: Range<usize>,
        out: &mut Vec<u8>,
    ) -> Result<bool, BackendError> {
        self.inner.save(cache, slot, range, out)
    }

    fn restore(&mut self, cache: CacheId, slot: usize, range: Range<usize>, bytes: &[u8]) -> Result<(), BackendError> {
        self.inner.restore(cache, slot, range, bytes)
    }

    fn memory(&self) -> Memory {
        self.inner.memory()
    }

    fn arena(&self) -> Option<&Arena> {
        self.inner.arena()
    }

    fn run(&mut self, op: &Op, batch: &Batch, observer: Option<&mut dyn Observer>) -> Result<(), BackendError> {
        self.inner.run(op, batch, observer)?;
        let mut ledger = self.ledger.lock();
        match op {
            Op::Embed { .. } => ledger.selected = false,
            Op::SelectRows { .. } => ledger.selected = true,
            _ => {}
        }
        let job = self.job(op, batch, ledger.selected);
        ledger.op(self.engine, job);
        Ok(())
    }

    fn likely(&mut self, moe: &Op, like: Option<BufferId>, batch: &Batch) -> Result<Vec<usize>, BackendError> {
        self.inner.likely(moe, like, batch)
    }

    fn route(&mut self, moe: &Op, batch: &Batch) -> Result<Vec<(usize, f32)>, BackendError> {
        self.inner.route(moe, batch)
    }

    fn experts(&mut self, x: BufferId, experts: Experts<'_>, pairs: &[Pair]) -> Result<Vec<f32>, BackendError> {
        let products = self.inner.experts(x, experts, pairs)?;
        let mut rows: HashMap<usize, usize> = HashMap::new();
        pairs.iter().for_each(|(_, expert)| *rows.entry(*expert).or_default() += 1);
        let used = rows.iter().filter_map(|(expert, rows)| Some((experts.list.get(*expert)?, *rows)));
        let job = self.experts_job(used);
        self.ledger.lock().on_host(job);
        Ok(products)
    }

    fn slots(&mut self) -> Option<&mut dyn ExpertSlots> {
        self.inner.slots()?;
        Some(self)
    }

    fn surveyor(&mut self) -> Option<&mut dyn Surveyor> {
        self.inner.surveyor()
    }

    fn read(&mut self, buffer: BufferId) -> Result<Vec<f32>, BackendError> {
        let values = self.inner.read(buffer)?;
        if self.engine == Engine::Device {
            self.ledger.lock().crossing(size_of_val(&*values) as f64);
        }
        Ok(values)
    }

    fn write(&mut self, buffer: BufferId, values: &[f32]) -> Result<(), BackendError> {
        self.inner.write(buffer, values)?;
        if self.engine == Engine::Device {
            self.ledger.lock().crossing(size_of_val(values) as f64);
        }
        Ok(())
    }
}

/// The slots of a device that has some: [`Backend::slots`] asks before.
fn slots(inner: &mut Box<dyn Backend>) -> Result<&mut dyn ExpertSlots, BackendError> {
    let what = || "the device has no slots for experts".to_owned();
    inner.slots().ok_or_else(|| BackendError::Operand { op: "moe", what: what() })
}

impl ExpertSlots for Modelled {
    fn reserve(&mut self, count: usize, lent: usize, bytes: usize) -> Result<(), BackendError> {
        slots(&mut self.inner)?.reserve(count, lent, bytes)
    }

    fn release(&mut self, slot: usize) -> Result<(), BackendError> {
        slots(&mut self.inner)?.release(slot)
    }

    fn take_back(&mut self, slot: usize) -> Result<bool, BackendError> {
        slots(&mut self.inner)?.take_back(slot)
    }

    fn describe(&mut self, weight: Slotted) -> Result<WeightId, BackendError> {
        let bytes: usize = weight.planes.iter().map(Range::len).sum();
        let (described, record) = (weight.weight.clone(), weight.record);
        let id = slots(&mut self.inner)?.describe(weight)?;
        self.note(id, &described, bytes as f64);
        self.records.insert(id.0, record);
        Ok(id)
    }

    fn fill(&mut self, slot: usize, record: u32, parts: &[(usize, Bytes)]) -> Result<(), BackendError> {
        slots(&mut self.inner)?.fill(slot, record, parts)?;
        let bytes: usize = parts.iter().map(|(_, bytes)| bytes.len()).sum();
        self.slots.insert(record, slot);
        self.ledger.lock().fill(slot, bytes as f64);
        Ok(())
    }

    fn settle(&mut self) -> Result<(), BackendError> {
        slots(&mut self.inner)?.settle()?;
        self.ledger.lock().settle();
        Ok(())
    }

    fn begin(&mut self, moe: &Op, batch: &Batch) -> Result<Vec<(usize, f32)>, BackendError> {
        let chosen = slots(&mut self.inner)?.begin(moe, batch)?;
        let Op::Moe { router, experts, .. } = moe else { return Ok(chosen) };
        let mut rows: HashMap<usize, usize> = HashMap::new();
        chosen.iter().for_each(|(expert, _)| *rows.entry(*expert).or_default() += 1);
        let cost = self.cost(*router);
        let job = Job { bytes: cost.bytes, multiply_adds: cost.multiply * batch.rows() as f64, delay: 0.0 };
        let mut ledger = self.ledger.lock();
        ledger.op(self.engine, job);
        ledger.begin();
        self.mixture = Some(Mixture { experts: Arc::clone(experts), rows });
        Ok(chosen)
    }

    fn inputs(&mut self) -> Result<Vec<f32>, BackendError> {
        slots(&mut self.inner)?.inputs()
    }

    fn compute(&mut self, experts: &[usize]) -> Result<(), BackendError> {
        slots(&mut self.inner)?.compute(experts)?;
        let Some(Mixture { experts: list, rows }) = &self.mixture else { return Ok(()) };
        let used = experts.iter().filter_map(|e| Some((list.get(*e)?, rows.get(e).copied().unwrap_or(0))));
        let used: Vec<(&ExpertWeights, usize)> = used.filter(|(_, rows)| *rows > 0).collect();
        if used.is_empty() {
            return Ok(());
        }
        let slot = |(e, _): &(&ExpertWeights, usize)| self.slots.get(self.records.get(&e.gate.0)?).copied();
        let places: BTreeSet<usize> = used.iter().filter_map(slot).collect();
        let job = self.experts_job(used.into_iter());
        self.ledger.lock().in_slots(job, &places.into_iter().collect::<Vec<_>>());
        Ok(())
    }

    fn end(&mut self, pairs: &[usize], products: &[f32]) -> Result<(), BackendError> {
        self.mixture = None;
        self.ledger.lock().end();
        slots(&mut self.inner)?.end(pairs, products)
    }
}
