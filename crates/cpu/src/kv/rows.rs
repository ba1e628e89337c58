//! Plain caches: two planes of f32 rows, `[slot][position][width]`.

use crate::buffers::memory;
use ashlar_backend::{BackendError, SequenceRows};
use ashlar_tensor::AlignedBytes;

/// One cache.
pub struct Rows {
    /// Values per position.
    pub width: usize,
    capacity: usize,
    keys: AlignedBytes,
    values: AlignedBytes,
    /// Positions held, per slot.
    held: Vec<usize>,
}

impl Rows {
    /// An empty cache. The zero pages it is made of take memory only as they are written.
    ///
    /// # Errors
    /// [`BackendError::Memory`] if the allocator refuses.
    pub fn new(sequences: usize, capacity: usize, width: usize) -> Result<Self, BackendError> {
        let len = sequences.saturating_mul(capacity).saturating_mul(width);
        let plane = || {
            let what = || format!("a cache of {sequences} × {capacity} positions");
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
            return Err(BackendError::Operand { op: "cache", what });
        }
        *held = end;
        let start = (part.slot * self.capacity + part.position) * self.width;
        for (plane, new) in [(&mut self.keys, k), (&mut self.values, v)] {
            bytemuck::cast_slice_mut::<u8, f32>(plane)[start..start + new.len()].copy_from_slice(new);
        }
        Ok(())
    }

    /// Forgets what a slot holds behind its first `positions`.
    pub fn truncate(&mut self, slot: usize, positions: usize) {
        if let Some(held) = self.held.get_mut(slot) {
            *held = positions.min(*held);
        }
    }

    /// Bytes of the positions held, both planes.
    pub fn bytes(&self) -> u64 {
        self.held.iter().map(|held| (held * self.width * 8) as u64).sum()
    }

    /// Positions that a slot holds.
    pub fn held(&self, slot: usize) -> usize {
        self.held.get(slot).copied().unwrap_or_default()
    }

    /// Both planes of the first `len` positions of a slot (len × width each).
    pub fn slot(&self, slot: usize, len: usize) -> (&[f32], &[f32]) {
        let range = slot * self.capacity * self.width..(slot * self.capacity + len) * self.width;
        let plane = |bytes| &bytemuck::cast_slice::<u8, f32>(bytes)[range.clone()];
        (plane(&self.keys), plane(&self.values))
    }
}
