//! Pooled entries, each in the bytes of its format: `[slot][entry][bytes]`.

use crate::buffers::memory;
use ashlar_backend::{BackendError, EntryFormat, KV_SAVED, SequenceRows};
use ashlar_tensor::AlignedBytes;
use std::ops::Range;

/// One cache.
pub struct Entries {
    /// Values of an entry.
    pub width: usize,
    /// Positions of an entry.
    ratio: usize,
    /// How they are stored.
    pub format: EntryFormat,
    capacity: usize,
    stored: AlignedBytes,
    /// Entries held, per slot.
    held: Vec<usize>,
}

impl Entries {
    /// An empty cache. The zero pages it is made of take memory only as they are written.
    ///
    /// # Errors
    /// [`BackendError::Memory`] if the allocator refuses, [`BackendError::Operand`] if entries of that width cannot be stored
    /// so.
    pub fn new(
        sequences: usize,
        capacity: usize,
        [width, ratio]: [usize; 2],
        format: EntryFormat,
    ) -> Result<Self, BackendError> {
        if !format.takes(width) {
            let what = format!("entries of {width} values cannot be stored as {format:?}");
            return Err(BackendError::Operand { op: "cache", what });
        }
        let len = sequences.checked_mul(capacity).and_then(|n| n.checked_mul(format.bytes(width)));
        let stored = len.and_then(AlignedBytes::zeroed);
        let what = || format!("a cache of {sequences} × {capacity} entries");
        let stored = stored.ok_or_else(|| memory(len.unwrap_or(usize::MAX), what()))?;
        Ok(Self { width, ratio: ratio.max(1), format, capacity, stored, held: vec![0; sequences] })
    }

    /// Stores entries of one sequence, cutting the slot back to `part.position` first.
    ///
    /// # Errors
    /// [`BackendError::Capacity`] if there is no such slot or place; [`BackendError::Operand`] if the entries would leave
    /// a gap.
    pub fn store(&mut self, part: &SequenceRows, entries: &[f32]) -> Result<(), BackendError> {
        let (slots, bytes) = (self.held.len(), self.format.bytes(self.width));
        let Some(held) = self.held.get_mut(part.slot) else {
            return Err(BackendError::Capacity { what: "cache slots".into(), got: part.slot + 1, capacity: slots });
        };
        let end = part.position.saturating_add(part.rows.len());
        if end > self.capacity {
            let what = format!("entries of cache slot {}", part.slot);
            return Err(BackendError::Capacity { what, got: end, capacity: self.capacity });
        }
        if part.position > *held {
            let what = format!("slot {} holds {held} entries, the new ones start at {}", part.slot, part.position);
            return Err(BackendError::Operand { op: "cache", what });
        }
        *held = end;
        let start = (part.slot * self.capacity + part.position) * bytes;
        let places = self.stored[start..].chunks_exact_mut(bytes.max(1));
        entries.chunks_exact(self.width.max(1)).zip(places).for_each(|(entry, to)| self.format.encode(entry, to));
        Ok(())
    }

    /// Forgets what a slot holds behind its first `entries`.
    pub fn truncate(&mut self, slot: usize, entries: usize) {
        if let Some(held) = self.held.get_mut(slot) {
            *held = entries.min(*held);
        }
    }

    /// Appends the stored bytes of the entries of a range of positions.
    ///
    /// # Errors
    /// [`BackendError::Operand`] if they are not held.
    pub fn save(&self, slot: usize, range: &Range<usize>, out: &mut Vec<u8>) -> Result<bool, BackendError> {
        let entries = self.of(range)?;
        let missing = || wrong(format!("slot {slot} holds {} entries, {entries:?} are to be saved", self.held(slot)));
        let bytes = self.stored.get(self.place(slot, &entries)).filter(|_| entries.end <= self.held(slot));
        out.extend_from_slice(bytes.ok_or_else(missing)?);
        Ok(true)
    }

    /// Takes them back.
    ///
    /// # Errors
    /// [`BackendError::Operand`] if they would leave a gap or are not as many bytes as entries have.
    pub fn restore(&mut self, slot: usize, range: &Range<usize>, bytes: &[u8]) -> Result<(), BackendError> {
        let entries = self.of(range)?;
        let (place, held) = (self.place(slot, &entries), self.held(slot));
        let to = self.stored.get_mut(place).filter(|to| to.len() == bytes.len() && entries.start <= held);
        let to = to.filter(|_| entries.end <= self.capacity);
        let slots = self.held.get_mut(slot);
        let (Some(to), Some(slots)) = (to, slots) else {
            return Err(wrong(format!(
                "{} bytes for entries {entries:?} of slot {slot}, which holds {held}",
                bytes.len()
            )));
        };
        to.copy_from_slice(bytes);
        *slots = entries.end;
        Ok(())
    }

    fn of(&self, range: &Range<usize>) -> Result<Range<usize>, BackendError> {
        if KV_SAVED.is_multiple_of(self.ratio) {
            return Ok(range.start / self.ratio..range.end / self.ratio);
        }
        Err(wrong(format!("entries of {} positions cannot be saved in blocks of {KV_SAVED}", self.ratio)))
    }

    /// Where entries lie.
    fn place(&self, slot: usize, entries: &Range<usize>) -> Range<usize> {
        let (bytes, first) = (self.format.bytes(self.width), slot * self.capacity);
        (first + entries.start) * bytes..(first + entries.end) * bytes
    }

    /// Bytes of the entries held.
    pub fn bytes(&self) -> u64 {
        self.held.iter().map(|held| (held * self.format.bytes(self.width)) as u64).sum()
    }

    /// Entries that a slot holds.
    pub fn held(&self, slot: usize) -> usize {
        self.held.get(slot).copied().unwrap_or_default()
    }

    /// What storing kept of entry `n` of a slot; zeros if it is not there.
    pub fn read(&self, slot: usize, n: usize, out: &mut [f32]) {
        let bytes = self.format.bytes(self.width);
        let start = (slot * self.capacity + n) * bytes;
        match self.stored.get(start..start + bytes).filter(|_| n < self.held(slot)) {
            Some(stored) => self.format.decode(stored, out),
            None => out.fill(0.0),
        }
    }
}

fn wrong(what: String) -> BackendError {
    BackendError::Operand { op: "cache", what }
}
