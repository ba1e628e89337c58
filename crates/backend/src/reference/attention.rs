//! Causal grouped-query attention over the KV cache.

use super::{Reference, linear::dot};
use crate::{
    BackendError, Batch, BufferId, CacheId, CacheShape, Entries, EntryFormat, Held, KV_SAVED, KvFormat, SequenceRows,
    Stored, round_key,
};
use std::ops::Range;

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
    /// Pooled keys.
    pub entries: Option<Entries>,
}

impl Heads {
    fn value_dim(&self) -> usize {
        self.values_in_keys.unwrap_or(self.dim)
    }
}

/// Keys and values of one layer; a slot's vectors grow with its sequence.
pub struct Cache {
    shape: CacheShape,
    slots: Vec<Slot>,
    /// Whether an entry was ever so near a tie of its format that kernels may store another one.
    pub tie: bool,
}

#[derive(Clone, Default)]
struct Slot {
    /// positions × width
    keys: Vec<f32>,
    /// positions × width
    values: Vec<f32>,
}

impl Cache {
    pub fn new(shape: &CacheShape) -> Self {
        Self { shape: *shape, slots: vec![Slot::default(); shape.sequences], tie: false }
    }

    /// Forgets what a slot holds behind its first `positions`.
    pub fn truncate(&mut self, slot: usize, positions: usize) {
        let width = self.width();
        if let Some(slot) = self.slots.get_mut(slot) {
            slot.keys.truncate(positions * width);
            slot.values.truncate(positions * width);
        }
    }

    /// Cuts the slot back to `part.position` and appends the rows of k and v.
    pub fn append(&mut self, part: &SequenceRows, k: &[f32], v: &[f32]) -> Result<(), BackendError> {
        let (width, count, capacity) = (self.width(), self.slots.len(), self.shape.capacity);
        let end = part.position.saturating_add(part.rows.len());
        if end > capacity {
            let what = format!("positions of cache slot {}", part.slot);
            return Err(BackendError::Capacity { what, got: end, capacity });
        }
        let Some(slot) = self.slots.get_mut(part.slot) else {
            return Err(BackendError::Capacity { what: "cache slots".into(), got: part.slot + 1, capacity: count });
        };
        let held = slot.keys.len() / width.max(1);
        if part.position > held {
            let what = format!("slot {} holds {held} positions, the batch starts at {}", part.slot, part.position);
            return Err(BackendError::Operand { op: OP, what });
        }
        let rounds: [fn(KvFormat, &mut [f32]); 2] = [KvFormat::round_key, KvFormat::round_value];
        for ((kept, new), round) in [(&mut slot.keys, k), (&mut slot.values, v)].into_iter().zip(rounds) {
            kept.truncate(part.position * width);
            let start = kept.len();
            kept.extend_from_slice(new);
            match self.shape.stored {
                Stored::Heads(heads, format) => {
                    for head in kept[start..].chunks_mut(heads.dim.max(1)) {
                        heads.native.iter().for_each(|plain| round_key(*plain, head));
                        round(format, head);
                    }
                }
                Stored::Entries { format, .. } => {
                    for entry in kept[start..].chunks_mut(width.max(1)) {
                        self.tie |= format.is_on_a_tie(entry);
                        format.round(entry);
                    }
                }
                Stored::Tokens { .. } => {}
            }
        }
        Ok(())
    }

    /// Appends rows of both planes.
    pub fn save(&self, slot: usize, range: &Range<usize>, out: &mut Vec<u8>) -> Result<bool, BackendError> {
        let rows = self.rows(range)?;
        let slot = self.slots.get(slot).ok_or_else(|| wrong(format!("no slot {slot}")))?;
        for plane in [&slot.keys, &slot.values] {
            // Pooled entries have no values.
            let values = if plane.is_empty() { Some(&[][..]) } else { plane.get(rows.clone()) };
            let values = values.ok_or_else(|| wrong(format!("positions {range:?} are not held")))?;
            out.extend_from_slice(&(values.len() as u64).to_le_bytes());
            values.iter().for_each(|v| out.extend_from_slice(&v.to_le_bytes()));
        }
        Ok(true)
    }

    /// Takes them back.
    pub fn restore(&mut self, slot: usize, range: &Range<usize>, mut bytes: &[u8]) -> Result<(), BackendError> {
        let (rows, width) = (self.rows(range)?, self.width().max(1));
        if rows.end > self.shape.capacity.saturating_mul(width) {
            let what = format!("positions of cache slot {slot}");
            return Err(BackendError::Capacity { what, got: rows.end / width, capacity: self.shape.capacity });
        }
        let slot = self.slots.get_mut(slot).ok_or_else(|| wrong(format!("no slot {slot}")))?;
        for plane in [&mut slot.keys, &mut slot.values] {
            let (len, rest) = bytes.split_first_chunk().ok_or_else(|| wrong("too few bytes".into()))?;
            let len = usize::try_from(u64::from_le_bytes(*len)).unwrap_or(usize::MAX);
            let values = len.checked_mul(4).and_then(|n| rest.split_at_checked(n));
            let (values, rest) = values.ok_or_else(|| wrong("too few bytes".into()))?;
            if len > 0 && (len != rows.len() || plane.len() < rows.start) {
                return Err(wrong(format!("{len} values for positions {range:?} behind {}", plane.len() / width)));
            }
            plane.truncate(rows.start);
            plane.extend(values.as_chunks().0.iter().map(|v| f32::from_le_bytes(*v)));
            bytes = rest;
        }
        if bytes.is_empty() { Ok(()) } else { Err(wrong(format!("{} bytes too many", bytes.len()))) }
    }

    /// The values of a range of positions.
    fn rows(&self, range: &Range<usize>) -> Result<Range<usize>, BackendError> {
        let ratio = match self.shape.stored {
            Stored::Entries { ratio, .. } => ratio.max(1),
            Stored::Tokens { .. } | Stored::Heads(..) => 1,
        };
        if !KV_SAVED.is_multiple_of(ratio) {
            return Err(wrong(format!("entries of {ratio} positions cannot be saved in blocks of {KV_SAVED}")));
        }
        Held { positions: range.end, reached: range.end }.saves(range)?;
        Ok(range.start / ratio * self.width()..range.end / ratio * self.width())
    }

    /// Bytes held, all of them f32.
    pub fn bytes(&self) -> u64 {
        self.slots.iter().map(|s| 4 * (s.keys.len() + s.values.len()) as u64).sum()
    }

    /// Values per position.
    pub fn width(&self) -> usize {
        self.shape.width()
    }

    /// How it stores entries.
    pub fn format(&self) -> EntryFormat {
        match self.shape.stored {
            Stored::Entries { format, .. } => format,
            Stored::Tokens { .. } | Stored::Heads(..) => EntryFormat::F32,
        }
    }

    /// Keys of a slot, positions × width.
    pub fn keys(&self, slot: usize) -> &[f32] {
        self.slots.get(slot).map_or(&[], |s| &s.keys)
    }

    /// Values of a slot, positions × width.
    pub fn values(&self, slot: usize) -> &[f32] {
        self.slots.get(slot).map_or(&[], |s| &s.values)
    }
}

fn wrong(what: String) -> BackendError {
    BackendError::Operand { op: "cache", what }
}

pub fn run(
    r: &mut Reference,
    [q, k, v]: [BufferId; 3],
    cache_id: CacheId,
    heads: &Heads,
    out: BufferId,
    batch: &Batch,
) -> Result<(), BackendError> {
    if heads.kv == 0
        || heads.dim == 0
        || !heads.q.is_multiple_of(heads.kv)
        || heads.window == Some(0)
        || heads.value_dim() > heads.dim
        || heads.entries.is_some() && (heads.kv != 1 || heads.values_in_keys.is_none())
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
    let cache = r.cache_mut(cache_id, kv_width, OP)?;
    for part in &batch.sequences {
        let kv = part.rows.start * kv_width..part.rows.end * kv_width;
        cache.append(part, &k[kv.clone()], v.get(kv).unwrap_or_default())?;
    }
    let cache = r.cache(cache_id, kv_width, OP)?;
    let mut y = Vec::with_capacity(q.len());
    for part in &batch.sequences {
        let Some(slot) = cache.slots.get(part.slot) else { continue };
        for (i, row) in part.rows.clone().enumerate() {
            let q = &q[row * q_width..(row + 1) * q_width];
            let position = part.position + i;
            let first = heads.window.map_or(0, |w| (position + 1).saturating_sub(w));
            let at = |j: usize| j * kv_width..(j + 1) * kv_width;
            let values = if heads.values_in_keys.is_some() { &slot.keys } else { &slot.values };
            let mut seen: Vec<[&[f32]; 2]> = (first..=position).map(|j| [&slot.keys[at(j)], &values[at(j)]]).collect();
            if let Some(entries) = heads.entries {
                seen.extend(visible(r, entries, part.slot, position, row, kv_width)?.into_iter().map(|e| [e, e]));
            }
            y.extend(attend(q, &seen, heads));
        }
    }
    r.store(out, heads.q * heads.value_dim(), y, OP)
}

/// The entries that a token attends to.
fn visible(
    r: &Reference,
    entries: Entries,
    slot: usize,
    position: usize,
    row: usize,
    width: usize,
) -> Result<Vec<&[f32]>, BackendError> {
    let keys = r.cache(entries.cache, width, OP)?.keys(slot);
    let complete = (position + 1) / entries.ratio.max(1);
    let numbers: Vec<usize> = match entries.selected {
        Some(id) => r.buffer(id, OP)?.row(row).iter().filter(|n| **n >= 0.0).map(|n| *n as usize).collect(),
        None => (0..complete).collect(),
    };
    let entry = |n: usize| {
        let found = keys.get(n * width..(n + 1) * width).filter(|_| n < complete);
        let what = || format!("entry {n} of {complete} at position {position}");
        found.ok_or_else(|| BackendError::Operand { op: OP, what: what() })
    };
    numbers.into_iter().map(entry).collect()
}

/// All heads of one token; `seen` are the keys and values it attends to, all heads of each.
fn attend(q: &[f32], seen: &[[&[f32]; 2]], heads: &Heads) -> Vec<f32> {
    let dim = heads.dim;
    let mut y = Vec::with_capacity(q.len());
    for (h, q) in q.chunks(dim).enumerate() {
        let at = h / (heads.q / heads.kv) * dim..(h / (heads.q / heads.kv) + 1) * dim;
        let score = |key: &[f32]| dot(q, &key[at.clone()]) * f64::from(heads.scale);
        let scores: Vec<f64> = seen.iter().map(|[key, _]| score(key)).collect();
        let sink = heads.sinks.get(h).map_or(f64::NEG_INFINITY, |s| f64::from(*s));
        let max = scores.iter().copied().fold(sink, f64::max);
        let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
        let sum = weights.iter().sum::<f64>() + (sink - max).exp();
        let mut acc = vec![0.0f64; heads.value_dim()];
        for (w, [_, value]) in weights.iter().zip(seen) {
            for (a, v) in acc.iter_mut().zip(&value[at.clone()]) {
                *a += w * f64::from(*v);
            }
        }
        y.extend(acc.iter().map(|a| (a / sum) as f32));
    }
    y
}
