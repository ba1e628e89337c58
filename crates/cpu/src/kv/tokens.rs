//! Rows of tokens until no window needs them: two f32 rows per position, of the last few positions of every slot.

use ashlar_backend::{BackendError, Held, KV_KEPT, KV_SAVED, SequenceRows, tokens_held};
use std::ops::Range;

/// One cache.
pub struct Tokens {
    /// Values per row.
    pub width: usize,
    capacity: usize,
    kept: usize,
    slots: Vec<Slot>,
}

#[derive(Default)]
struct Slot {
    held: Held,
    /// The position of the first row that is still there.
    first: usize,
    /// Rows of both kinds.
    planes: [Vec<f32>; 2],
}

/// The rows of a slot that are still there.
#[derive(Clone, Copy)]
pub struct Recent<'a> {
    /// The position of the first one.
    pub first: usize,
    /// positions × width
    pub kv: &'a [f32],
    /// positions × width
    pub gate: &'a [f32],
}

impl Tokens {
    /// An empty cache; `kept`: positions before the next one that a window may need.
    pub fn new(sequences: usize, capacity: usize, width: usize, kept: usize) -> Self {
        Self { width, capacity, kept, slots: (0..sequences).map(|_| Slot::default()).collect() }
    }

    /// Stores the rows of one sequence, cutting the slot back to `part.position` first, and forgets what no window needs.
    ///
    /// # Errors
    /// [`BackendError::Capacity`] if there is no such slot or position; [`BackendError::Operand`] if the rows would
    /// leave a gap or need what was forgotten.
    pub fn store(&mut self, part: &SequenceRows, kv: &[f32], gate: &[f32]) -> Result<(), BackendError> {
        let (slots, width) = (self.slots.len(), self.width);
        let Some(slot) = self.slots.get_mut(part.slot) else {
            return Err(BackendError::Capacity { what: "cache slots".into(), got: part.slot + 1, capacity: slots });
        };
        let end = part.position.saturating_add(part.rows.len());
        if end > self.capacity {
            let what = format!("positions of cache slot {}", part.slot);
            return Err(BackendError::Capacity { what, got: end, capacity: self.capacity });
        }
        slot.held.advance(part.slot, part.position, part.rows.len(), true)?;
        slot.cut(part.position, width);
        slot.forget(part.position, self.kept, width);
        for (plane, new) in slot.planes.iter_mut().zip([kv, gate]) {
            plane.extend_from_slice(new);
        }
        Ok(())
    }

    /// Forgets what a slot holds behind its first `positions`.
    pub fn truncate(&mut self, slot: usize, positions: usize) {
        let width = self.width;
        if let Some(slot) = self.slots.get_mut(slot)
            && positions < slot.held.positions
        {
            slot.held.positions = positions;
            slot.held.reached = if positions == 0 { 0 } else { slot.held.reached };
            slot.cut(positions, width);
        }
    }

    /// Appends the rows that whoever goes on at the end of `range` needs: their number, then both planes. None if some are
    /// forgotten already.
    ///
    /// # Errors
    /// [`BackendError::Operand`] if the positions are not held, or windows are longer than a block.
    pub fn save(&self, slot: usize, range: &Range<usize>, out: &mut Vec<u8>) -> Result<bool, BackendError> {
        let missing = || wrong(format!("no slot {slot}"));
        let slot = self.slots.get(slot).ok_or_else(missing)?;
        let goes_on = slot.held.saves(range)?;
        let first = self.first_of(range)?;
        if !goes_on || first < slot.first {
            out.extend_from_slice(&0u64.to_le_bytes());
            return Ok(false);
        }
        out.extend_from_slice(&((range.end - first) as u64).to_le_bytes());
        let rows = (first - slot.first) * self.width..(range.end - slot.first) * self.width;
        for plane in &slot.planes {
            let rows =
                plane.get(rows.clone()).ok_or_else(|| wrong(format!("rows {first}..{} are missing", range.end)))?;
            out.extend_from_slice(bytemuck::cast_slice(rows));
        }
        Ok(true)
    }

    /// Takes them back.
    ///
    /// # Errors
    /// [`BackendError::Operand`] if the bytes are not those of such rows.
    pub fn restore(&mut self, slot: usize, range: &Range<usize>, bytes: &[u8]) -> Result<(), BackendError> {
        let (first, width, capacity) = (self.first_of(range)?, self.width, self.capacity);
        let slot = self.slots.get_mut(slot).filter(|_| range.end <= capacity);
        let slot = slot.ok_or_else(|| wrong(format!("no slot for positions up to {}", range.end)))?;
        slot.held.restores(range)?;
        let (count, rows) = bytes.split_first_chunk().ok_or_else(|| wrong("too few bytes".into()))?;
        let count = usize::try_from(u64::from_le_bytes(*count)).unwrap_or(usize::MAX);
        if (count != 0 && count != range.end - first) || rows.len() as u64 != count as u64 * width as u64 * 8 {
            return Err(wrong(format!("{} bytes are not {count} rows of {width} values, twice", rows.len())));
        }
        let (kv, gate) = rows.split_at(rows.len() / 2);
        let values = |bytes: &[u8]| bytes.as_chunks().0.iter().map(|v| f32::from_ne_bytes(*v)).collect();
        *slot = Slot { held: Held::restored(range.end), first: range.end - count, planes: [values(kv), values(gate)] };
        Ok(())
    }

    /// The first position that is needed to go on behind a range.
    fn first_of(&self, range: &Range<usize>) -> Result<usize, BackendError> {
        let needed = range.end.saturating_sub(self.kept);
        if self.kept <= KV_SAVED {
            Ok(needed.max(range.start))
        } else {
            Err(wrong(format!("windows of {} positions cannot be saved in blocks of {KV_SAVED}", self.kept)))
        }
    }

    /// Bytes of the rows held.
    pub fn bytes(&self) -> u64 {
        self.slots.iter().flat_map(|s| &s.planes).map(|plane| 4 * plane.len() as u64).sum()
    }

    /// What is there of a slot.
    pub fn recent(&self, slot: usize) -> Recent<'_> {
        match self.slots.get(slot) {
            Some(slot) => Recent { first: slot.first, kv: &slot.planes[0], gate: &slot.planes[1] },
            None => Recent { first: 0, kv: &[], gate: &[] },
        }
    }
}

impl Slot {
    fn cut(&mut self, positions: usize, width: usize) {
        if positions == 0 {
            *self = Self { held: self.held, ..Self::default() };
        }
        let rows = positions.saturating_sub(self.first);
        self.planes.iter_mut().for_each(|plane| plane.truncate(rows * width));
    }

    /// Forgets rows that no sequence can need that goes on at `position`, or is cut back from where it was. Not every time:
    /// the others have to move.
    fn forget(&mut self, position: usize, kept: usize, width: usize) {
        let held = position.saturating_sub(self.first);
        if held <= tokens_held(kept) {
            return;
        }
        let gone = position.saturating_sub(KV_KEPT + kept).saturating_sub(self.first);
        for plane in &mut self.planes {
            plane.drain(..(gone * width).min(plane.len()));
        }
        self.first += gone;
    }
}

fn wrong(what: String) -> BackendError {
    BackendError::Operand { op: "cache", what }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(position: usize, rows: usize) -> SequenceRows {
        SequenceRows { slot: 0, rows: 0..rows, position }
    }

    /// Rows whose values are their position.
    fn store(tokens: &mut Tokens, position: usize, rows: usize) -> Result<(), BackendError> {
        let values: Vec<f32> = (position..position + rows).flat_map(|p| [p as f32; 2]).collect();
        tokens.store(&part(position, rows), &values, &values)
    }

    #[test]
    fn memory_does_not_grow_with_the_sequence_and_what_windows_need_is_there() {
        let mut tokens = Tokens::new(1, 10_000, 2, 8);
        let mut most = 0;
        for step in 0..900 {
            store(&mut tokens, step * 11, 11).unwrap();
            most = most.max(tokens.bytes());
            let recent = tokens.recent(0);
            assert!(recent.first == 0 || recent.first + KV_KEPT + 8 <= step * 11);
            assert_eq!(recent.kv.first().copied(), Some(recent.first as f32));
            assert_eq!(recent.gate.len(), (step * 11 + 11 - recent.first) * 2);
        }
        assert!(most <= ((tokens_held(8) + 11) * 16) as u64, "{most}");
    }

    #[test]
    fn a_sequence_can_be_cut_back_a_little_and_from_the_beginning() {
        let mut tokens = Tokens::new(1, 10_000, 2, 8);
        store(&mut tokens, 0, 2000).unwrap();
        assert!(store(&mut tokens, 2000 - KV_KEPT - 1, 1).is_err());
        store(&mut tokens, 2000 - KV_KEPT, 1).unwrap();
        let recent = tokens.recent(0);
        assert!(recent.first + 8 <= 2000 - KV_KEPT);
        tokens.truncate(0, 0);
        assert_eq!(tokens.bytes(), 0);
        store(&mut tokens, 0, 3).unwrap();
        assert!(store(&mut tokens, 5, 1).is_err(), "a gap");
        assert!(store(&mut tokens, 0, 10_001).is_err());
    }
}
