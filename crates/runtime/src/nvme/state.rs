//! Who is in which slot, what is being read, what waits. Pure: the store's threads ask and tell.

use super::ahead::{Ahead, AheadUse};
use crate::routing::{Admission, Ema, ExpertCache};
use ashlar_pack::PAGE;
use ashlar_tensor::{AlignedBytes, Bytes};
use std::collections::{HashMap, VecDeque};
use std::ops::Range;

/// Half-life of uses, tokens: between the best of the recordings that were replayed (docs/routing.md).
pub const HALF_LIFE: f64 = 12.0;

/// What was read and what was found, since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct NvmeUse {
    /// Experts on disk.
    pub experts: usize,
    /// Of them, as many as memory holds.
    pub slots: usize,
    /// Bytes of all slots.
    pub slot_bytes: u64,
    /// Experts that were used and were there, or on their way.
    pub hits: u64,
    /// Experts that were used and were not.
    pub misses: u64,
    /// Experts that left for others.
    pub evictions: u64,
    /// Reads that were tried again.
    pub retries: u64,
    /// Bytes that came from the device.
    pub bytes: u64,
    /// Of them, those read at the start, before anyone asked.
    pub warm_bytes: u64,
    /// Seconds that ops waited for the disk.
    pub waited: f64,
    /// What came of reading before anyone asked.
    pub ahead: AheadUse,
    /// Reads at once.
    pub depth: usize,
    /// Bytes per second at that depth, as measured at the start; 0 if there was nothing to measure with.
    pub rate: f64,
}

/// A record.
#[derive(Debug)]
enum Held {
    Absent,
    /// Waits for a thread or for memory.
    Queued,
    /// On its way. `given_up`: its slot went to another one meanwhile.
    Reading {
        given_up: bool,
    },
    There(Bytes),
}

/// Slots, queue and the op at work.
pub struct State {
    cache: ExpertCache,
    ema: Ema,
    held: Vec<Held>,
    /// Buffers that no record is in.
    free: Vec<AlignedBytes>,
    /// Buffers whose record left while an op still had it.
    lent: Vec<Bytes>,
    queue: VecDeque<u32>,
    /// What is read when nobody waits.
    later: VecDeque<u32>,
    ahead: Ahead,
    failed: HashMap<u32, String>,
    /// The layer of every record.
    layers: Vec<usize>,
    /// Number of the last token, and the layer of the last op: one that is not behind it begins the next batch.
    token: u64,
    layer: usize,
    op: Op,
    /// Counters.
    pub used: NvmeUse,
    /// Threads that may read now.
    pub depth: usize,
    /// Threads that do.
    pub reading: usize,
    /// Ends the threads.
    pub stop: bool,
}

/// What the op at work uses.
#[derive(Default)]
struct Op {
    used: Vec<(u32, f64)>,
    windows: Vec<Range<usize>>,
    /// Windows whose records have slots or are on their way.
    admitted: usize,
    /// By place in `used`.
    handed: Vec<bool>,
}

const ALL: Admission = Admission { most: None, margin: None };

impl State {
    /// Nothing there. `layers`: that of every record; `slots`: buffers of equal size.
    pub fn new(layers: Vec<usize>, slots: Vec<AlignedBytes>) -> Self {
        let records = layers.len();
        let used = NvmeUse {
            experts: records,
            slots: slots.len(),
            slot_bytes: slots.iter().map(|s| s.len() as u64).sum(),
            ..NvmeUse::default()
        };
        Self {
            cache: ExpertCache::new(records, slots.len()),
            ema: Ema::new(records, HALF_LIFE),
            held: (0..records).map(|_| Held::Absent).collect(),
            free: slots,
            lent: Vec::new(),
            queue: VecDeque::new(),
            later: VecDeque::new(),
            ahead: Ahead::default(),
            failed: HashMap::new(),
            layers,
            token: 0,
            layer: 0,
            op: Op::default(),
            used,
            depth: 1,
            reading: 0,
            stop: false,
        }
    }

    /// An op begins, see [`ashlar_backend::Records::begin`].
    pub fn begin(&mut self, used: &[(u32, usize)], rows: usize) -> Vec<Range<usize>> {
        let layer = used.first().and_then(|(record, _)| self.layers.get(*record as usize)).copied();
        if layer.is_none_or(|layer| layer <= self.layer) || self.token == 0 {
            self.token += rows as u64;
        }
        self.layer = layer.unwrap_or_default();
        self.settle(used);
        let slots = self.used.slots.max(1);
        // Two windows are in memory at once, unless one holds all.
        let window = if used.len() <= slots { used.len().max(1) } else { (slots / 2).max(1) };
        let windows: Vec<Range<usize>> =
            (0..used.len()).step_by(window).map(|start| start..(start + window).min(used.len())).collect();
        let (token, ema) = (self.token, &mut self.ema);
        let used: Vec<(u32, f64)> = used.iter().map(|&(r, uses)| (r, ema.touch(r, token, uses, rows))).collect();
        self.op = Op { handed: vec![false; used.len()], used, windows: windows.clone(), admitted: 0 };
        self.admit(0);
        windows
    }

    /// Compares what was guessed of the layer at work with what it uses; what was read in vain has its own score again.
    fn settle(&mut self, used: &[(u32, usize)]) {
        let used: Vec<u32> = used.iter().map(|(record, _)| *record).collect();
        let cache = &self.cache;
        for record in self.ahead.settle(self.layer, &used, |r| cache.holds(r)) {
            self.cache.rescore(record, self.ema.score(record));
            // Too late: nobody reads it any more.
            if let Some(at) = self.later.iter().position(|r| *r == record) {
                self.later.remove(at);
                self.cache.remove(record);
                if let Some(held) = self.held.get_mut(record as usize) {
                    *held = Held::Absent;
                }
            }
        }
        self.used.ahead = self.ahead.used;
    }

    /// Records of one layer that an op will use later in this batch, see [`ashlar_backend::Records::ahead`]. They take the slots of
    /// lower scores, seen as if they were used already.
    pub fn look_ahead(&mut self, records: &[u32], certain: bool) {
        let Some(&layer) = records.first().and_then(|r| self.layers.get(*r as usize)) else { return };
        let mut read = Vec::new();
        if self.ahead.pays(certain) {
            let admission = Admission { most: None, margin: Some(0.0) };
            for &record in records {
                let score = self.ema.if_used(record, self.token + 1);
                let mut moved = None;
                if !self.cache.holds(record) {
                    self.cache.fill(&[(record, score)], records, admission, &mut |_, old| moved = Some(old));
                }
                let Some(old) = moved else { continue };
                if let Some(old) = old {
                    self.used.evictions += 1;
                    self.evict(old);
                }
                self.want(record);
                if self.queue.back() == Some(&record) {
                    self.queue.pop_back();
                    self.later.push_back(record);
                }
                read.push(record);
            }
        }
        self.ahead.guess(layer, records, read, certain);
        self.used.ahead = self.ahead.used;
    }

    /// Gives the records of windows up to `last` slots.
    fn admit(&mut self, last: usize) {
        while self.op.admitted <= last && self.op.admitted < self.op.windows.len() {
            let number = self.op.admitted;
            self.op.admitted += 1;
            let of = |number: usize| self.op.windows.get(number).and_then(|w| self.op.used.get(w.clone()));
            let used = of(number).unwrap_or_default().to_vec();
            let before = number.checked_sub(1).and_then(of).unwrap_or_default();
            let kept: Vec<u32> = before.iter().map(|(record, _)| *record).collect();
            for (record, _) in &used {
                // Somebody waits for it now.
                if let Some(at) = self.later.iter().position(|r| r == record) {
                    self.later.remove(at);
                    self.queue.push_back(*record);
                }
            }
            let mut moves = Vec::new();
            let found = self.cache.fill(&used, &kept, ALL, &mut |new, old| moves.push((new, old)));
            self.used.hits += found.hits as u64;
            self.used.misses += found.misses as u64;
            for (new, old) in moves {
                if let Some(old) = old {
                    self.used.evictions += 1;
                    self.evict(old);
                }
                self.want(new);
            }
        }
    }

    /// Brings a record in before anyone asks, if a slot is free.
    pub fn preload(&mut self, record: u32) -> bool {
        let held = self.cache.len();
        if !self.cache.holds(record) {
            self.cache.preload(record);
        }
        let new = self.cache.len() > held;
        if new {
            self.want(record);
        }
        new
    }

    fn want(&mut self, record: u32) {
        let Some(held) = self.held.get_mut(record as usize) else { return };
        match held {
            Held::Absent => {
                *held = Held::Queued;
                self.failed.remove(&record);
                self.queue.push_back(record);
            }
            Held::Reading { given_up } => *given_up = false,
            Held::Queued | Held::There(_) => {}
        }
    }

    fn evict(&mut self, record: u32) {
        let Some(held) = self.held.get_mut(record as usize) else { return };
        match std::mem::replace(held, Held::Absent) {
            Held::Absent => {}
            Held::Queued => {
                self.queue.retain(|r| *r != record);
                self.later.retain(|r| *r != record);
            }
            Held::Reading { .. } => *held = Held::Reading { given_up: true },
            Held::There(bytes) => self.lent.push(bytes),
        }
        self.reclaim();
    }

    /// Takes back what ops no longer hold.
    fn reclaim(&mut self) {
        for bytes in std::mem::take(&mut self.lent) {
            match bytes.try_into_heap() {
                Ok(buffer) => self.free.push(buffer),
                Err(bytes) => self.lent.push(bytes),
            }
        }
    }

    /// The next record to read and a buffer for it, if a thread may.
    pub fn next(&mut self) -> Option<(u32, AlignedBytes)> {
        if self.reading >= self.depth || self.waiting() == 0 {
            return None;
        }
        self.reclaim();
        let buffer = self.free.pop()?;
        let Some(record) = self.queue.pop_front().or_else(|| self.later.pop_front()) else {
            self.free.push(buffer);
            return None;
        };
        if let Some(held) = self.held.get_mut(record as usize) {
            *held = Held::Reading { given_up: false };
        }
        self.reading += 1;
        Some((record, buffer))
    }

    /// A read ended: so many bytes from the start of the buffer's first page on, or why not.
    pub fn done(&mut self, record: u32, buffer: AlignedBytes, read: Result<usize, String>) {
        self.reading -= 1;
        let Some(held) = self.held.get_mut(record as usize) else { return };
        let given_up = matches!(held, Held::Reading { given_up: true });
        *held = Held::Absent;
        match read {
            Ok(len) if !given_up => {
                self.used.bytes += len as u64;
                let all = Bytes::from(buffer);
                let start = first_page(&all);
                if let (Some(bytes), Some(held)) = (all.slice(start, len), self.held.get_mut(record as usize)) {
                    *held = Held::There(bytes);
                }
            }
            Ok(len) => {
                self.used.bytes += len as u64;
                self.free.push(buffer);
            }
            Err(why) => {
                self.free.push(buffer);
                if !given_up {
                    self.cache.remove(record);
                    self.failed.insert(record, why);
                }
            }
        }
    }

    /// What of a window is there and was not handed out; `None` to wait.
    ///
    /// # Errors
    /// Why a record of the window did not come.
    pub fn take(&mut self, window: usize) -> Result<Option<Vec<(u32, Bytes)>>, String> {
        self.reclaim();
        self.admit(window + 1);
        let places = self.op.windows.get(window).cloned().unwrap_or_default();
        let (mut arrived, mut left) = (Vec::new(), 0);
        for place in places {
            let (Some((record, _)), Some(handed)) = (self.op.used.get(place), self.op.handed.get_mut(place)) else {
                continue;
            };
            if *handed {
                continue;
            }
            if let Some(why) = self.failed.remove(record) {
                return Err(why);
            }
            match self.held.get(*record as usize) {
                Some(Held::There(bytes)) => {
                    *handed = true;
                    arrived.push((*record, bytes.clone()));
                }
                // It failed for an op before this one, and that one did not ask: it is read again.
                Some(Held::Absent) => return Err(format!("record {record} was not read")),
                _ => left += 1,
            }
        }
        Ok(if arrived.is_empty() && left > 0 { None } else { Some(arrived) })
    }

    /// The bytes of a record, if they are in memory.
    pub fn held(&self, record: u32) -> Option<Bytes> {
        match self.held.get(record as usize) {
            Some(Held::There(bytes)) => Some(bytes.clone()),
            _ => None,
        }
    }

    /// Records that wait for a thread.
    pub fn waiting(&self) -> usize {
        self.queue.len() + self.later.len()
    }

    /// Whether nothing waits or is on its way.
    pub fn is_idle(&self) -> bool {
        self.waiting() == 0 && self.reading == 0
    }

    /// What every moment must hold: no more records than slots, and every buffer in exactly one place.
    #[cfg(test)]
    pub fn check(&self) {
        let there = self.held.iter().filter(|h| matches!(h, Held::There(_))).count();
        assert_eq!(there + self.free.len() + self.lent.len() + self.reading, self.used.slots);
        assert!(self.cache.len() <= self.used.slots);
        for (record, held) in self.held.iter().enumerate() {
            let resident = !matches!(held, Held::Absent | Held::Reading { given_up: true });
            assert_eq!(self.cache.holds(record as u32), resident, "record {record}: {held:?}");
        }
        let queued = self.held.iter().filter(|h| matches!(h, Held::Queued)).count();
        assert_eq!(queued, self.waiting());
    }
}

/// Where the first page of a buffer begins.
pub fn first_page(buffer: &[u8]) -> usize {
    buffer.as_ptr().align_offset(PAGE).min(PAGE)
}
