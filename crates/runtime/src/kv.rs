//! How much memory keys and values take, and whether that is allowed.
//!
//! Owns: which positions every slot holds and how far back it can go. The bytes follow from the shapes of the caches, so a
//! batch is refused before any layer has run. Where pages lie is the device's business.

use crate::{Kv, RuntimeError};
use ashlar_backend::{Batch, CacheShape, Held, can_go_on};

/// What the caches of a model hold.
pub struct KvUse {
    shapes: Vec<CacheShape>,
    format: Kv,
    budget: Option<u64>,
    slots: Vec<Held>,
    windowed: bool,
}

impl KvUse {
    /// Nothing held. `budget`: bytes for all sequences together.
    #[must_use]
    pub fn new(shapes: &[CacheShape], format: Kv, budget: Option<u64>, sequences: usize) -> Self {
        let windowed = shapes.iter().any(CacheShape::forgets);
        Self { shapes: shapes.to_vec(), format, budget, slots: vec![Held::default(); sequences], windowed }
    }

    /// How keys and values are stored.
    #[must_use]
    pub fn format(&self) -> Kv {
        self.format
    }

    /// Sequences there may be.
    #[must_use]
    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    /// Positions that a slot holds.
    #[must_use]
    pub fn held(&self, slot: usize) -> usize {
        self.slots.get(slot).map_or(0, |s| s.positions)
    }

    /// Where a slot can go on of which the first `position` positions are wanted: there, or at the beginning if a layer
    /// with a sliding window has forgotten what it needs.
    #[must_use]
    pub fn go_on(&self, slot: usize, position: usize) -> usize {
        let reached = self.slots.get(slot).map_or(0, |s| s.reached);
        if self.windowed && !can_go_on(reached, position) { 0 } else { position }
    }

    /// Bytes that one sequence of so many positions takes, if they come in chunks of `rows`.
    #[must_use]
    pub fn bytes(&self, positions: usize, rows: usize) -> u64 {
        let of = |shape: &CacheShape| shape.bytes(positions, rows.min(positions));
        self.shapes.iter().map(of).fold(0, u64::saturating_add)
    }

    /// Bytes they may take.
    #[must_use]
    pub fn budget(&self) -> Option<u64> {
        self.budget
    }

    /// Bytes in use.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.used_besides(usize::MAX)
    }

    /// Bytes in use by every cache, in the order of the model's.
    #[must_use]
    pub fn by_cache(&self) -> Vec<u64> {
        let of =
            |shape: &CacheShape| self.slots.iter().map(|s| shape.bytes(s.positions, 0)).fold(0, u64::saturating_add);
        self.shapes.iter().map(of).collect()
    }

    /// Bytes they may take: the budget, or what all slots take at full length.
    #[must_use]
    pub fn most(&self) -> u64 {
        let full = self.shapes.iter().map(CacheShape::reserved).fold(0, u64::saturating_add);
        self.budget.map_or(full, |budget| budget.min(full))
    }

    /// Bytes in use by other slots than this one.
    #[must_use]
    pub fn used_besides(&self, slot: usize) -> u64 {
        let others = self.slots.iter().enumerate().filter(|(i, _)| *i != slot);
        others.map(|(_, s)| self.bytes(s.positions, 0)).fold(0, u64::saturating_add)
    }

    /// The most positions that one sequence alone may have, fed `rows` at a time, up to `context`.
    #[must_use]
    pub fn fit(&self, context: usize, rows: usize) -> usize {
        let Some(budget) = self.budget else { return context };
        // More positions never take less: halve the interval.
        let (mut good, mut bad) = (0, context + 1);
        while good + 1 < bad {
            let middle = good.midpoint(bad);
            if self.bytes(middle, rows) <= budget { good = middle } else { bad = middle }
        }
        good
    }

    /// Whether one sequence of so many positions can ever be held.
    ///
    /// # Errors
    /// [`RuntimeError::KvBudget`].
    pub fn check(&self, what: &str, positions: usize, rows: usize) -> Result<(), RuntimeError> {
        self.compare(what, self.bytes(positions, rows), positions, rows)
    }

    /// Whether the budget allows for what a batch adds.
    ///
    /// # Errors
    /// [`RuntimeError::KvBudget`]; nothing has changed then.
    pub fn allow(&self, batch: &Batch) -> Result<(), RuntimeError> {
        if self.budget.is_none() {
            return Ok(());
        }
        self.compare("the batch", self.after(batch, &|_| true), usize::MAX, batch.rows())
    }

    /// Bytes of some caches, chosen by number, when a batch has run.
    #[must_use]
    pub fn after(&self, batch: &Batch, counts: &dyn Fn(usize) -> bool) -> u64 {
        let mut needed = 0u64;
        for (slot, held) in self.slots.iter().enumerate() {
            let part = batch.sequences.iter().find(|s| s.slot == slot);
            let (positions, rows) = match part {
                Some(part) => (part.position.saturating_add(part.rows.len()), part.rows.len()),
                None => (held.positions, 0),
            };
            let counted = self.shapes.iter().enumerate().filter(|(cache, _)| counts(*cache));
            let bytes = counted.map(|(_, shape)| shape.bytes(positions, rows.min(positions)));
            needed = bytes.fold(needed, u64::saturating_add);
        }
        needed
    }

    fn compare(&self, what: &str, needed: u64, context: usize, rows: usize) -> Result<(), RuntimeError> {
        match self.budget {
            Some(budget) if needed > budget => {
                let context = context.min(self.shapes.iter().map(|s| s.capacity).max().unwrap_or(0));
                let (fit, format) = (self.fit(context, rows), self.format.name());
                Err(RuntimeError::KvBudget { what: what.to_owned(), needed, budget, fit, format })
            }
            _ => Ok(()),
        }
    }

    /// What is stored, and how: whoever stores the same can read it.
    pub(crate) fn saved_as(&self) -> String {
        self.shapes.iter().map(|shape| format!("{:?};", shape.stored)).collect()
    }

    /// Whether a layer forgets what lies behind its window.
    pub(crate) fn forgets(&self) -> bool {
        self.windowed
    }

    /// Whether nothing is forgotten that a sequence needs which goes on at `position`.
    pub(crate) fn goes_on(&self, slot: usize, position: usize) -> bool {
        self.go_on(slot, position) == position
    }

    /// Whether a slot may hold so many positions beside what the others hold.
    pub(crate) fn has_room(&self, slot: usize, positions: usize) -> bool {
        let needed = self.used_besides(slot).saturating_add(self.bytes(positions, 0));
        self.budget.is_none_or(|budget| needed <= budget)
    }

    /// A slot got its first positions from elsewhere.
    pub(crate) fn restored(&mut self, slot: usize, positions: usize) {
        if let Some(held) = self.slots.get_mut(slot) {
            *held = if self.windowed { Held::restored(positions) } else { Held { positions, reached: positions } };
        }
    }

    /// A batch begins: what its slots hold from its positions on is gone.
    pub(crate) fn begin(&mut self, batch: &Batch) {
        for part in &batch.sequences {
            self.truncate(part.slot, part.position);
        }
    }

    /// A batch has run.
    pub(crate) fn end(&mut self, batch: &Batch) {
        for part in &batch.sequences {
            if let Some(held) = self.slots.get_mut(part.slot) {
                let reached = if part.position == 0 { 0 } else { held.reached };
                held.positions = part.position + part.rows.len();
                held.reached = reached.max(held.positions);
            }
        }
    }

    /// A slot is cut back.
    pub(crate) fn truncate(&mut self, slot: usize, positions: usize) {
        if let Some(held) = self.slots.get_mut(slot) {
            held.positions = positions.min(held.positions);
            if positions == 0 {
                held.reached = 0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ashlar_backend::{KV_PAGE, KvFormat, KvHeads, Stored};

    fn kv(budget: Option<u64>) -> KvUse {
        let heads = |window| KvHeads { count: 2, dim: 16, values_in_keys: false, window, native: None };
        let stored = |window| Stored::Heads(heads(window), KvFormat::F16);
        let shape = |window| CacheShape { sequences: 2, capacity: 4096, rows: 256, stored: stored(window) };
        KvUse::new(&[shape(None), shape(Some(128))], KvFormat::F16.into(), budget, 2)
    }

    /// Of one layer.
    const PAGE: u64 = 2 * (16 + 16) * 2 * KV_PAGE as u64;

    #[test]
    fn a_window_takes_no_more_however_long_the_sequence() {
        let kv = kv(None);
        assert_eq!(kv.bytes(64, 64), 2 * PAGE);
        assert!(kv.bytes(4096, 64) < (64 + 9) * PAGE, "{}", kv.bytes(4096, 64) / PAGE);
        assert_eq!((kv.fit(4096, 64), kv.used()), (4096, 0));
    }

    #[test]
    fn what_fits_is_allowed_and_the_next_position_is_not() {
        let kv = kv(Some(20 * PAGE));
        let fit = kv.fit(4096, 1);
        assert!(kv.check("this", fit, 1).is_ok());
        let text = kv.check("this", fit + 1, 1).unwrap_err().to_string();
        assert!(text.contains("this needs") && text.contains(&format!("{fit} positions")), "{text}");
    }

    #[test]
    fn other_sequences_count() {
        let mut kv = kv(Some(4 * PAGE));
        let one = Batch::of(0, 0, &[0; 64]);
        kv.allow(&one).unwrap();
        kv.end(&one);
        assert!(kv.allow(&Batch::of(1, 0, &[0; 65])).is_err());
        let two = Batch::of(1, 0, &[0; 64]);
        kv.allow(&two).unwrap();
        kv.end(&two);
        assert_eq!((kv.used(), kv.by_cache(), kv.most()), (4 * PAGE, vec![2 * PAGE; 2], 4 * PAGE));
        assert!(kv.allow(&Batch::of(0, 64, &[0])).is_err());
        kv.truncate(1, 0);
        kv.allow(&Batch::of(0, 64, &[0])).unwrap();
    }

    #[test]
    fn going_back_behind_a_window_means_starting_anew() {
        let mut kv = kv(None);
        kv.end(&Batch::of(0, 0, &[0; 1000]));
        assert_eq!((kv.go_on(0, 900), kv.go_on(0, 700)), (900, 0));
    }
}
