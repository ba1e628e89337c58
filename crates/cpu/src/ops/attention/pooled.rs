//! Entries that stand for several tokens: which of them a token attends to.

use super::OP;
use crate::cpu::Cpu;
use crate::kv::Rows;
use ashlar_backend::{BackendError, Batch, Entries};

/// The pooled keys of a layer, and who attends to which.
#[derive(Clone, Copy)]
pub struct Pooled<'a> {
    cache: &'a Rows,
    ratio: usize,
    /// Rows × width; `None` for all that are complete.
    selected: Option<(&'a [f32], usize)>,
}

impl<'a> Pooled<'a> {
    /// Checks that every row's entries are there.
    pub fn new(cpu: &'a Cpu, entries: Entries, width: usize, batch: &Batch) -> Result<Self, BackendError> {
        let wrong = |what: String| BackendError::Operand { op: OP, what };
        let cache = cpu.caches.rows(entries.cache, width, OP)?;
        if entries.ratio == 0 {
            return Err(wrong("entries of no tokens".into()));
        }
        let selected = match entries.selected {
            Some(id) => Some(cpu.buffers.get(id, OP)?),
            None => None,
        };
        let pooled = Self { cache, ratio: entries.ratio, selected: selected.map(|b| (b.values.as_slice(), b.width)) };
        for part in &batch.sequences {
            for (i, row) in part.rows.clone().enumerate() {
                let complete = (part.position + i + 1) / entries.ratio;
                if complete > cache.held(part.slot) || pooled.numbers(row, complete).any(|n| n >= complete) {
                    return Err(wrong(format!("entries beyond the {complete} that are complete at row {row}")));
                }
            }
        }
        Ok(pooled)
    }

    /// The entries of a row at `position`, in ascending order.
    pub fn entries(self, slot: usize, row: usize, position: usize) -> Vec<&'a [f32]> {
        let (keys, _) = self.cache.slot(slot, self.cache.held(slot));
        let width = self.cache.width;
        self.numbers(row, (position + 1) / self.ratio).map(|n| &keys[n * width..(n + 1) * width]).collect()
    }

    fn numbers(self, row: usize, complete: usize) -> impl Iterator<Item = usize> + use<'a> {
        let selected = self.selected.map(|(all, width)| all.get(row * width..(row + 1) * width).unwrap_or_default());
        let all = if selected.is_some() { 0 } else { complete };
        (0..all).chain(selected.unwrap_or_default().iter().filter(|n| **n >= 0.0).map(|n| *n as usize))
    }
}
