//! Causal grouped-query attention over cached keys and values, block by block with an online softmax.
//!
//! The cast: `plan` cuts the work into tasks, `task` walks the blocks that the queries of one task see, `tile` is the
//! kernel, `scratch` lays out what kernels cannot read as it is stored, `pooled` adds the entries that stand for several
//! tokens.
//!
//! Arithmetic is fixed by positions alone. Keys are cut into blocks of a page and spans of [`SPAN`]; the softmax of a span
//! begins anew, and spans are merged in order. So spans may be computed by different threads (long contexts decode on
//! all cores), and a query's result depends neither on how a prompt was cut nor on its neighbours or threads.

mod ahead;
mod plan;
mod pooled;
mod scores;
mod scratch;
mod task;
mod tile;

use crate::cpu::Cpu;
use crate::kv::{F16, F32, NewRows, Q8};
use crate::shards::Shards;
use ashlar_backend::{BackendError, Batch, BufferId, CacheId, Entries, KV_PAGE, KvFormat};
use plan::Plan;
use pooled::Pooled;
pub use task::Partials;
use task::Tasks;

const OP: &str = "attention";
/// Positions whose softmax is computed without a look at others.
const SPAN: usize = 8 * KV_PAGE;

/// What kind of heads, and what they see.
pub struct Heads {
    /// Query heads.
    pub queries: usize,
    /// Key/value heads.
    pub keys: usize,
    /// Width of a head.
    pub dim: usize,
    /// Multiplier of the scores.
    pub scale: f32,
    /// Keys visible to a query, itself included.
    pub window: Option<usize>,
    /// One more score per query head, without a value; empty for none.
    pub sinks: Vec<f32>,
    /// Values are the first so many entries of keys.
    pub values_in_keys: Option<usize>,
    /// Pooled keys.
    pub entries: Option<Entries>,
}

impl Heads {
    /// Width of a value.
    fn value_dim(&self) -> usize {
        self.values_in_keys.unwrap_or(self.dim)
    }

    fn check(&self) -> Result<(), BackendError> {
        let pooled = self.entries.is_none() || self.keys == 1 && self.values_in_keys.is_some();
        if pooled
            && (1..=self.dim).contains(&self.value_dim())
            && self.keys > 0
            && self.queries.is_multiple_of(self.keys)
            && self.window != Some(0)
        {
            return Ok(());
        }
        let what = format!(
            "{} query heads over {} key/value heads of {}, window {:?}",
            self.queries, self.keys, self.dim, self.window
        );
        Err(BackendError::Operand { op: OP, what })
    }
}

pub fn run(
    cpu: &mut Cpu,
    [q, k, v]: [BufferId; 3],
    cache: CacheId,
    heads: &Heads,
    out: BufferId,
    batch: &Batch,
) -> Result<(), BackendError> {
    heads.check()?;
    let (q_width, kv_width) = (heads.queries * heads.dim, heads.keys * heads.dim);
    let rows = batch.rows();
    let shared = heads.values_in_keys.is_some();
    let inputs = if shared { 2 } else { 3 };
    for (id, width) in [(q, q_width), (k, kv_width), (v, kv_width)].into_iter().take(inputs) {
        if cpu.buffers.input(id, width, OP)?.len() != rows * width {
            return Err(BackendError::Operand { op: OP, what: format!("a buffer does not hold {rows} rows") });
        }
    }
    let (kv, pages) = cpu.caches.heads_mut(cache, OP)?;
    let held = kv.heads;
    let window = if heads.window.is_none() {
        held.window.is_none()
    } else {
        held.window.is_none_or(|w| Some(w) >= heads.window)
    };
    if (held.count, held.dim, held.values_in_keys) != (heads.keys, heads.dim, shared) || !window {
        let what = format!("keys are {} heads of {}, the cache is for {held:?}", heads.keys, heads.dim);
        return Err(BackendError::Operand { op: OP, what });
    }
    let keys = cpu.buffers.input(k, kv_width, OP)?;
    let values: &[f32] = if shared { &[] } else { cpu.buffers.input(v, kv_width, OP)? };
    for part in &batch.sequences {
        let of = part.rows.start * kv_width..part.rows.end * kv_width;
        let rows = NewRows { keys: &keys[of.clone()], values: values.get(of).unwrap_or_default() };
        kv.store(part, rows, pages, &cpu.pool)?;
    }
    let mut y = cpu.buffers.take(out, [rows, heads.queries * heads.value_dim()], false, q, OP)?;
    let mut partials = std::mem::take(&mut cpu.partials);
    let result = attend(cpu, q, cache, heads, batch, (&mut y, &mut partials));
    cpu.partials = partials;
    cpu.buffers.put(out, y);
    let (kv, pages) = cpu.caches.heads_mut(cache, OP)?;
    batch.sequences.iter().for_each(|part| kv.forget(part.slot, pages));
    result
}

fn attend(
    cpu: &Cpu,
    q: BufferId,
    cache: CacheId,
    heads: &Heads,
    batch: &Batch,
    (y, partials): (&mut [f32], &mut Partials),
) -> Result<(), BackendError> {
    let (cache, pages) = cpu.caches.heads(cache, OP)?;
    let queries = cpu.buffers.input(q, heads.queries * heads.dim, OP)?;
    let pooled = heads.entries.map(|e| Pooled::new(cpu, e, heads.dim, batch)).transpose()?;
    let plan = Plan::new(heads, batch, cpu.pool.threads());
    let partials = partials.share(&plan, heads.value_dim());
    let out = Shards::new(y);
    let tasks = Tasks { heads, cache, pages, pooled, queries, plan: &plan, partials: &partials, out: &out };
    let isa = cpu.isa;
    match cache.format {
        KvFormat::F32 => cpu.pool.run(plan.tasks.len(), &|i| isa.run(tasks.kernel::<F32>(i))),
        KvFormat::F16 => cpu.pool.run(plan.tasks.len(), &|i| isa.run(tasks.kernel::<F16>(i))),
        KvFormat::Q8 => cpu.pool.run(plan.tasks.len(), &|i| isa.run(tasks.kernel::<Q8>(i))),
    }
    Ok(())
}
