//! Causal grouped-query attention over the KV cache.

use super::{Reference, linear::dot};
use crate::{BackendError, Batch, BufferId, CacheId, SequenceRows};

const OP: &str = "attention";

/// What kind of heads, and what they see.
pub struct Heads {
    pub q: usize,
    pub kv: usize,
    pub dim: usize,
    pub scale: f32,
    pub window: Option<usize>,
    /// One per query head; empty for none.
    pub sinks: Vec<f32>,
    /// Values are the first so many entries of keys.
    pub values_in_keys: Option<usize>,
}

impl Heads {
    fn value_dim(&self) -> usize {
        self.values_in_keys.unwrap_or(self.dim)
    }
}

/// Keys and values of one layer; a slot's vectors grow with its sequence.
pub struct Cache {
    capacity: usize,
    width: usize,
    slots: Vec<Slot>,
}

#[derive(Clone, Default)]
struct Slot {
    /// positions × width
    keys: Vec<f32>,
    /// positions × width
    values: Vec<f32>,
}

impl Cache {
    pub fn new(sequences: usize, capacity: usize, width: usize) -> Self {
        Self { capacity, width, slots: vec![Slot::default(); sequences] }
    }

    /// Cuts the slot back to `part.position` and appends the rows of k and v.
    fn append(&mut self, part: &SequenceRows, k: &[f32], v: &[f32]) -> Result<&Slot, BackendError> {
        let (width, count) = (self.width, self.slots.len());
        let end = part.position.saturating_add(part.rows.len());
        if end > self.capacity {
            let what = format!("positions of cache slot {}", part.slot);
            return Err(BackendError::Capacity { what, got: end, capacity: self.capacity });
        }
        let Some(slot) = self.slots.get_mut(part.slot) else {
            return Err(BackendError::Capacity { what: "cache slots".into(), got: part.slot + 1, capacity: count });
        };
        let held = slot.keys.len() / width.max(1);
        if part.position > held {
            let what = format!("slot {} holds {held} positions, the batch starts at {}", part.slot, part.position);
            return Err(BackendError::Operand { op: OP, what });
        }
        for (kept, new) in [(&mut slot.keys, k), (&mut slot.values, v)] {
            kept.truncate(part.position * width);
            kept.extend_from_slice(new);
        }
        Ok(slot)
    }
}

pub fn run(
    r: &mut Reference,
    [q, k, v]: [BufferId; 3],
    cache: CacheId,
    heads: &Heads,
    out: BufferId,
    batch: &Batch,
) -> Result<(), BackendError> {
    if heads.kv == 0
        || heads.dim == 0
        || !heads.q.is_multiple_of(heads.kv)
        || heads.window == Some(0)
        || heads.value_dim() > heads.dim
    {
        let what = format!(
            "{} query heads over {} key/value heads of {}, window {:?}",
            heads.q, heads.kv, heads.dim, heads.window
        );
        return Err(BackendError::Operand { op: OP, what });
    }
    let (q_width, kv_width) = (heads.q * heads.dim, heads.kv * heads.dim);
    let mut inputs = [Vec::new(), Vec::new(), Vec::new()];
    let count = if heads.values_in_keys.is_some() { 2 } else { 3 };
    let wanted = [(q, q_width), (k, kv_width), (v, kv_width)];
    for ((id, width), input) in wanted.into_iter().take(count).zip(&mut inputs) {
        let buffer = r.input(id, width, OP)?;
        buffer.expect_rows(batch.rows(), OP)?;
        *input = buffer.values.clone();
    }
    let [q, k, v] = inputs;
    let missing = || BackendError::Operand { op: OP, what: format!("no cache {}", cache.0) };
    let cache = r.caches.get_mut(cache.0 as usize).ok_or_else(missing)?;
    if cache.width != kv_width {
        let what = format!("the cache is {} wide, keys are {kv_width}", cache.width);
        return Err(BackendError::Operand { op: OP, what });
    }
    let mut y = Vec::with_capacity(q.len());
    for part in &batch.sequences {
        let kv = part.rows.start * kv_width..part.rows.end * kv_width;
        let v = v.get(kv.clone()).unwrap_or_default();
        let slot = cache.append(part, &k[kv], v)?;
        for (i, row) in part.rows.clone().enumerate() {
            let q = &q[row * q_width..(row + 1) * q_width];
            y.extend(attend(q, slot, part.position + i, heads));
        }
    }
    r.store(out, heads.q * heads.value_dim(), y, OP)
}

/// All heads of one token at `position`.
fn attend(q: &[f32], slot: &Slot, position: usize, heads: &Heads) -> Vec<f32> {
    let first = heads.window.map_or(0, |w| (position + 1).saturating_sub(w));
    let (dim, width) = (heads.dim, heads.kv * heads.dim);
    let mut y = Vec::with_capacity(q.len());
    for (h, q) in q.chunks(dim).enumerate() {
        let start = h / (heads.q / heads.kv) * dim;
        let at = |j: usize| j * width + start..j * width + start + dim;
        let score = |j: usize| dot(q, &slot.keys[at(j)]) * f64::from(heads.scale);
        let scores: Vec<f64> = (first..=position).map(score).collect();
        let sink = heads.sinks.get(h).map_or(f64::NEG_INFINITY, |s| f64::from(*s));
        let max = scores.iter().copied().fold(sink, f64::max);
        let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
        let sum = weights.iter().sum::<f64>() + (sink - max).exp();
        let mut acc = vec![0.0f64; heads.value_dim()];
        let values = if heads.values_in_keys.is_some() { &slot.keys } else { &slot.values };
        for (w, j) in weights.iter().zip(first..) {
            for (a, v) in acc.iter_mut().zip(&values[at(j)]) {
                *a += w * f64::from(*v);
            }
        }
        y.extend(acc.iter().map(|a| (a / sum) as f32));
    }
    y
}
