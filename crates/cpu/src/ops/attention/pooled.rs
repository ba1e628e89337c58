//! Entries that stand for several tokens: which of them a token attends to.

use super::OP;
use crate::cpu::Cpu;
use crate::kv::Entries as Cache;
use ashlar_backend::{BackendError, Batch, Entries};

/// The pooled keys of a layer, and who attends to which.
#[derive(Clone, Copy)]
pub struct Pooled<'a> {
    cache: &'a Cache,
    ratio: usize,
    /// Rows × width; `None` for all that are complete.
    selected: Option<(&'a [f32], usize)>,
}

impl<'a> Pooled<'a> {
    /// Checks that every row's entries are there.
    pub fn new(cpu: &'a Cpu, entries: Entries, width: usize, batch: &Batch) -> Result<Self, BackendError> {
        let wrong = |what: String| BackendError::Operand { op: OP, what };
        let cache = cpu.caches.entries(entries.cache, width, OP)?;
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

    /// The numbers of the entries of a row at `position`, in ascending order.
    pub fn seen(self, row: usize, position: usize) -> Vec<usize> {
        self.numbers(row, (position + 1) / self.ratio).collect()
    }

    /// Entries side by side: numbers × width.
    pub fn read(self, slot: usize, numbers: &[usize], out: &mut Vec<f32>) {
        let width = self.cache.width;
        out.resize(numbers.len() * width, 0.0);
        out.chunks_exact_mut(width.max(1)).zip(numbers).for_each(|(to, n)| self.cache.read(slot, *n, to));
    }

    fn numbers(self, row: usize, complete: usize) -> impl Iterator<Item = usize> + use<'a> {
        let selected = self.selected.map(|(all, width)| all.get(row * width..(row + 1) * width).unwrap_or_default());
        let all = if selected.is_some() { 0 } else { complete };
        (0..all).chain(selected.unwrap_or_default().iter().filter(|n| **n >= 0.0).map(|n| *n as usize))
    }
}
