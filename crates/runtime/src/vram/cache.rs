//! Who is in which slot of an accelerator, and who should be. Pure: a step asks and acts.

use crate::nvme::HALF_LIFE;
use crate::routing::{Admission, Ema, ExpertCache};

/// A fill is worth it only where a score is more than so many times the lowest (docs/routing.md).
const HYSTERESIS: f64 = 1.1;
/// Slots that prompts stream experts through, two to take turns.
const RING: usize = 2;
/// Fewer slots are not worth a ring.
const LEAST_WITH_RING: usize = 8;

/// What slots were good for, since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SlotUse {
    /// Experts that take turns.
    pub experts: usize,
    /// In so many slots.
    pub slots: usize,
    /// Bytes of all slots.
    pub bytes: u64,
    /// Pairs (token, expert) of decoding that the accelerator computed.
    pub hits: u64,
    /// Pairs of decoding that the host computed.
    pub misses: u64,
    /// Pairs of prompts that the accelerator computed.
    pub prompt_hits: u64,
    /// Pairs of prompts that the host computed.
    pub prompt_misses: u64,
    /// Experts that were brought into a slot after a step.
    pub fills: u64,
    /// Experts of prompts that were streamed through the accelerator.
    pub streamed: u64,
    /// Slots whose memory keys and values have now.
    pub released: usize,
    /// Experts that left because keys and values needed the memory.
    pub stolen: u64,
    /// Bytes that were copied to the accelerator.
    pub copied: u64,
    /// Tokens of a prompt from which on an expert is streamed; `None` where that never pays.
    pub streams_from: Option<usize>,
}

impl SlotUse {
    /// The share of decoding's pairs that the accelerator computed; `None` before the first.
    #[must_use]
    pub fn hit_rate(&self) -> Option<f64> {
        let all = self.hits + self.misses;
        (all > 0).then(|| self.hits as f64 / all as f64)
    }
}

/// What one step uses of a layer: records, and how many of its pairs go to each.
pub type Uses = [(u32, usize)];

/// The slots of one accelerator.
pub struct SlotCache {
    cache: ExpertCache,
    ema: Ema,
    /// By record.
    slot: Vec<Option<usize>>,
    free: Vec<usize>,
    ring: Vec<usize>,
    /// Number of the last token, and the first record of the last layer: one that is not behind it begins the next batch.
    token: u64,
    last: Option<u32>,
    /// Counters.
    pub used: SlotUse,
}

impl SlotCache {
    /// Empty, for so many records.
    #[must_use]
    pub fn new(records: usize, slots: usize, slot_bytes: u64) -> Self {
        let ring = if slots >= LEAST_WITH_RING { RING } else { 0 };
        let own = slots - ring;
        let bytes = slot_bytes.saturating_mul(slots as u64);
        Self {
            cache: ExpertCache::new(records, own),
            ema: Ema::new(records, HALF_LIFE),
            slot: vec![None; records],
            free: (0..own).rev().collect(),
            ring: (own..slots).collect(),
            token: 0,
            last: None,
            used: SlotUse { experts: records, slots, bytes, ..SlotUse::default() },
        }
    }

    /// Whether a record is in a slot.
    #[must_use]
    pub fn holds(&self, record: u32) -> bool {
        self.slot.get(record as usize).is_some_and(Option::is_some)
    }

    /// A slot for a record that nobody asked for yet, if one is free.
    pub fn preload(&mut self, record: u32) -> Option<usize> {
        if self.holds(record) {
            return None;
        }
        let slot = self.free.pop()?;
        self.cache.preload(record);
        self.take(record, slot);
        Some(slot)
    }

    /// The slots that experts are streamed through.
    #[must_use]
    pub fn ring(&self) -> &[usize] {
        &self.ring
    }

    /// A layer step of `rows` tokens used these records. Returns who comes into which slot, the best first: `decoding` brings in at most one per
    /// layer and token, as a prompt does for each of its tokens.
    pub fn step(&mut self, uses: &Uses, rows: usize) -> Vec<(u32, usize)> {
        let first = uses.first().map(|(record, _)| *record);
        if first <= self.last || self.token == 0 {
            self.token += rows as u64;
        }
        self.last = first;
        let (token, ema) = (self.token, &mut self.ema);
        let scored: Vec<(u32, f64)> = uses.iter().map(|&(r, uses)| (r, ema.touch(r, token, uses, rows))).collect();
        let admission = Admission { most: Some(rows), margin: Some(HYSTERESIS.log2()) };
        let mut moves = Vec::new();
        self.cache.fill(&scored, &[], admission, &mut |new, old| moves.push((new, old)));
        let mut fills = Vec::new();
        for (new, old) in moves {
            let left = old.and_then(|old| self.slot.get_mut(old as usize)?.take());
            if let Some(slot) = left.or_else(|| self.free.pop()) {
                self.take(new, slot);
                fills.push((new, slot));
            }
        }
        fills
    }

    fn take(&mut self, record: u32, slot: usize) {
        if let Some(of) = self.slot.get_mut(record as usize) {
            *of = Some(slot);
        }
    }

    /// Gives up a slot: one that is free, else that of the coldest record, else one of the ring.
    pub fn shrink(&mut self) -> Option<usize> {
        let of_record = |cache: &mut Self| {
            let record = cache.cache.coldest()?;
            cache.cache.remove(record);
            cache.used.stolen += 1;
            cache.slot.get_mut(record as usize)?.take()
        };
        let slot = match self.free.pop().or_else(|| of_record(self)) {
            Some(slot) => slot,
            None => self.ring.pop()?,
        };
        self.recount();
        Some(slot)
    }

    /// Gets a slot back.
    pub fn grow(&mut self, slot: usize) {
        if self.used.slots >= LEAST_WITH_RING && self.ring.len() < RING {
            self.ring.push(slot);
        } else {
            self.free.push(slot);
        }
        self.recount();
    }

    fn recount(&mut self) {
        self.cache.set_capacity(self.cache.len() + self.free.len());
    }

    /// A record could not be brought in: its slot is free again.
    pub fn give_up(&mut self, record: u32) {
        self.cache.remove(record);
        if let Some(slot) = self.slot.get_mut(record as usize).and_then(Option::take) {
            self.free.push(slot);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever happens, every slot has one record or is free, and every record has at most one slot.
    fn check(cache: &SlotCache, released: &[usize]) {
        let mut taken: Vec<usize> = cache.slot.iter().flatten().copied().collect();
        assert_eq!(taken.len(), cache.cache.len());
        taken.extend(&cache.free);
        taken.extend(&cache.ring);
        taken.extend(released);
        taken.sort_unstable();
        assert_eq!(taken, (0..cache.used.slots).collect::<Vec<_>>());
        for record in 0..cache.slot.len() as u32 {
            assert_eq!(cache.holds(record), cache.cache.holds(record));
        }
    }

    #[test]
    fn slots_are_neither_lost_nor_shared_whatever_is_used_and_whatever_fails() {
        let mut random = 1u64;
        let mut next = |below: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % below
        };
        for slots in [0, 1, 2, 7, 8, 20, 64] {
            let mut cache = SlotCache::new(64, slots, 10);
            assert_eq!(cache.ring().len(), if slots >= 8 { 2 } else { 0 });
            let mut released = Vec::new();
            while cache.preload(next(64) as u32).is_some() && next(4) > 0 {}
            check(&cache, &released);
            for step in 0..400 {
                let layer = (step % 4) * 16;
                let rows = if next(20) == 0 { 9 } else { 1 };
                let mut uses: Vec<(u32, usize)> = (0..next(6)).map(|_| (layer + next(16) as u32, 1)).collect();
                uses.sort_unstable();
                uses.dedup_by_key(|u| u.0);
                let fills = cache.step(&uses, rows);
                assert!(fills.len() <= rows, "{fills:?}");
                check(&cache, &released);
                for (record, _) in fills {
                    assert!(uses.iter().any(|(used, _)| *used == record) && cache.holds(record));
                    if next(7) == 0 {
                        cache.give_up(record);
                        check(&cache, &released);
                    }
                }
                if next(5) == 0 {
                    released.extend(cache.shrink());
                } else if next(5) == 0 {
                    released.pop().into_iter().for_each(|slot| cache.grow(slot));
                }
                check(&cache, &released);
            }
        }
    }

    #[test]
    fn what_is_used_often_comes_to_stay_and_once_used_does_not_displace_it() {
        let mut cache = SlotCache::new(8, 2, 1);
        for _ in 0..8 {
            cache.step(&[(0, 1), (1, 1)], 1);
        }
        assert!(cache.holds(0) && cache.holds(1));
        assert_eq!(cache.step(&[(5, 1)], 1), []);
        assert!(cache.holds(0) && cache.holds(1) && !cache.holds(5));
    }
}
