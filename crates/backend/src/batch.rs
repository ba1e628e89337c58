//! What one step runs on: tokens, the sequences they belong to, the rows whose logits are wanted.

use crate::BackendError;
use std::ops::Range;

/// Rows of a batch that belong to one sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SequenceRows {
    /// Slot in every KV cache.
    pub slot: usize,
    /// Rows of the batch.
    pub rows: Range<usize>,
    /// Position of the first of them. At most the number of positions the slot holds; if less, the slot forgets what
    /// lay at and beyond it (that is how a sequence is cut back or started anew).
    pub position: usize,
}

/// The tokens of one step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Token ids, one per row: the rows of the table that [`crate::Op::Embed`] reads.
    pub tokens: Vec<u32>,
    /// The ids, where `tokens` are rows of another table (a stretch of a model that runs alone); else empty.
    pub ids: Vec<u32>,
    /// Which rows belong to which sequence; together they cover all rows, in order, each slot at most once.
    pub sequences: Vec<SequenceRows>,
    /// Rows whose logits are wanted.
    pub outputs: Vec<usize>,
}

impl Batch {
    /// `tokens` of one sequence from `position` on, without outputs.
    #[must_use]
    pub fn of(slot: usize, position: usize, tokens: &[u32]) -> Self {
        let rows = 0..tokens.len();
        let sequences = vec![SequenceRows { slot, rows, position }];
        Self { tokens: tokens.to_vec(), sequences, ..Self::default() }
    }

    /// The token ids, whatever table `tokens` are rows of.
    #[must_use]
    pub fn ids(&self) -> &[u32] {
        if self.ids.is_empty() { &self.tokens } else { &self.ids }
    }

    /// Number of rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.tokens.len()
    }

    /// The position of every row.
    #[must_use]
    pub fn positions(&self) -> Vec<usize> {
        self.sequences.iter().flat_map(|s| (0..s.rows.len()).map(|i| s.position + i)).collect()
    }

    /// Whether the parts agree with each other. Backends call it at the head of [`crate::Backend::run`].
    ///
    /// # Errors
    /// [`BackendError::Operand`] if sequences do not cover the rows in order, a slot occurs twice, or an output row
    /// does not exist.
    pub fn check(&self) -> Result<(), BackendError> {
        let bad = |what: String| Err(BackendError::Operand { op: "batch", what });
        let mut next = 0;
        for (i, s) in self.sequences.iter().enumerate() {
            if s.rows.start != next || s.rows.end < s.rows.start {
                return bad(format!("sequence {i} has rows {:?}, expected to start at {next}", s.rows));
            }
            if self.sequences.iter().take(i).any(|other| other.slot == s.slot) {
                return bad(format!("slot {} occurs twice", s.slot));
            }
            next = s.rows.end;
        }
        if next != self.rows() {
            return bad(format!("sequences cover {next} rows of {}", self.rows()));
        }
        if self.ids().len() != self.rows() {
            return bad(format!("{} ids for {} rows", self.ids.len(), self.rows()));
        }
        match self.outputs.iter().find(|&&row| row >= self.rows()) {
            Some(row) => bad(format!("output row {row} of {}", self.rows())),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences_that_leave_a_gap_or_share_a_slot_are_refused() {
        let two =
            |a: SequenceRows, b: SequenceRows| Batch { tokens: vec![0; 4], sequences: vec![a, b], ..Batch::default() };
        let part = |slot, rows: Range<usize>| SequenceRows { slot, rows, position: 0 };
        assert!(two(part(0, 0..2), part(1, 2..4)).check().is_ok());
        assert!(two(part(0, 0..2), part(1, 3..4)).check().is_err());
        assert!(two(part(0, 0..2), part(0, 2..4)).check().is_err());
        assert!(two(part(0, 0..2), part(1, 2..3)).check().is_err());
    }

    #[test]
    fn an_output_row_outside_the_batch_is_refused() {
        let mut batch = Batch::of(0, 0, &[1, 2]);
        batch.outputs = vec![1];
        assert!(batch.check().is_ok());
        batch.outputs = vec![2];
        assert!(batch.check().is_err());
    }
}
