//! KV caches: f32 keys and values, `[slot][position][kv_width]`.

use crate::buffers::memory;
use ashlar_backend::{BackendError, SequenceRows};
use ashlar_tensor::AlignedBytes;

/// The cache of one layer.
pub struct Cache {
    /// Values per position.
    pub width: usize,
    capacity: usize,
    keys: AlignedBytes,
    values: AlignedBytes,
    /// Positions held, per slot.
    held: Vec<usize>,
}

impl Cache {
    /// An empty cache. The zero pages it is made of take memory only as they are written.
    ///
    /// # Errors
    /// [`BackendError::Memory`] if the allocator refuses.
    pub fn new(sequences: usize, capacity: usize, width: usize) -> Result<Self, BackendError> {
        let len = sequences.saturating_mul(capacity).saturating_mul(width);
        let plane = || {
            let what = || format!("a KV cache of {sequences} × {capacity} positions");
            len.checked_mul(4).and_then(AlignedBytes::zeroed).ok_or_else(|| memory(len, what()))
        };
        Ok(Self { width, capacity, keys: plane()?, values: plane()?, held: vec![0; sequences] })
    }

    /// Stores the rows of one sequence, cutting the slot back to `part.position` first.
    ///
    /// # Errors
    /// [`BackendError::Capacity`] if there is no such slot or position; [`BackendError::Operand`] if the rows would
    /// leave a gap.
    pub fn store(&mut self, part: &SequenceRows, k: &[f32], v: &[f32]) -> Result<(), BackendError> {
        let slots = self.held.len();
        let Some(held) = self.held.get_mut(part.slot) else {
            return Err(BackendError::Capacity { what: "cache slots".into(), got: part.slot + 1, capacity: slots });
        };
        let end = part.position.saturating_add(part.rows.len());
        if end > self.capacity {
            let what = format!("positions of cache slot {}", part.slot);
            return Err(BackendError::Capacity { what, got: end, capacity: self.capacity });
        }
        if part.position > *held {
            let what = format!("slot {} holds {held} positions, the batch starts at {}", part.slot, part.position);
            return Err(BackendError::Operand { op: "attention", what });
        }
        *held = end;
        let start = (part.slot * self.capacity + part.position) * self.width;
        for (plane, new) in [(&mut self.keys, k), (&mut self.values, v)] {
            bytemuck::cast_slice_mut::<u8, f32>(plane)[start..start + new.len()].copy_from_slice(new);
        }
        Ok(())
    }

    /// Positions that a slot holds.
    pub fn held(&self, slot: usize) -> usize {
        self.held.get(slot).copied().unwrap_or_default()
    }

    /// Keys and values of the first `len` positions of a slot (len × width each).
    pub fn slot(&self, slot: usize, len: usize) -> (&[f32], &[f32]) {
        let range = slot * self.capacity * self.width..(slot * self.capacity + len) * self.width;
        let plane = |bytes| &bytemuck::cast_slice::<u8, f32>(bytes)[range.clone()];
        (plane(&self.keys), plane(&self.values))
    }
}
