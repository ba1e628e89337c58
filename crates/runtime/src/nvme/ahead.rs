//! Reading experts before their turn: what was guessed, what came of it, and whether it pays.
//!
//! A guess is the next layer's router on what this layer's experts read; layers whose experts follow from the tokens are no guess. Guessed
//! experts are read when nobody waits for the disk, and never in place of ones that score higher. When less than half of what was
//! read so was used lately, guessing stops for a while.

use std::collections::HashMap;

/// How much of the past the share of useful reads remembers: some 50 reads.
const KEPT: f64 = 0.98;
/// Below this share of useful reads they cost more than they bring.
const LEAST: f64 = 0.5;
/// Layers for which nothing is read once that is so.
const PAUSE: u32 = 2000;
/// The share to begin with, and after a pause.
const START: f64 = 0.75;

/// What came of looking ahead.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AheadUse {
    /// Uses of experts in layers that were guessed.
    pub uses: u64,
    /// Of them, those that the guess named.
    pub named: u64,
    /// Of them, those that were not in memory when it was made.
    pub absent: u64,
    /// Of these, those that were read ahead.
    pub covered: u64,
    /// Experts read ahead and used, and read in vain.
    pub useful: u64,
    /// See `useful`.
    pub wasted: u64,
    /// Of those read ahead, the ones that were known for certain.
    pub certain: u64,
    /// Times that guessing was given up for a while.
    pub pauses: u64,
}

/// A layer's guess.
#[derive(Clone, Debug, Default)]
struct Guess {
    records: Vec<u32>,
    /// Of them, those that were not there and are read.
    read: Vec<u32>,
    certain: bool,
}

/// Guesses that wait for their layer.
#[derive(Debug)]
pub struct Ahead {
    guesses: HashMap<usize, Guess>,
    share: f64,
    pause: u32,
    /// Counters.
    pub used: AheadUse,
}

impl Default for Ahead {
    fn default() -> Self {
        Self { guesses: HashMap::new(), share: START, pause: 0, used: AheadUse::default() }
    }
}

impl Ahead {
    /// Whether a guess may be acted on.
    pub fn pays(&mut self, certain: bool) -> bool {
        if self.pause > 0 && !certain {
            self.pause -= 1;
        }
        certain || self.pause == 0
    }

    /// Remembers a guess until its layer comes: what it names, and what of that is read.
    pub fn guess(&mut self, layer: usize, records: &[u32], read: Vec<u32>, certain: bool) {
        self.used.certain += if certain { read.len() as u64 } else { 0 };
        self.guesses.insert(layer, Guess { records: records.to_vec(), read, certain });
    }

    /// The layer has come and uses these, ascending; `there`: whether a record is in memory or asked for. Returns what was read in
    /// vain.
    pub fn settle(&mut self, layer: usize, used: &[u32], there: impl Fn(u32) -> bool) -> Vec<u32> {
        let Some(guess) = self.guesses.remove(&layer) else { return Vec::new() };
        let is_used = |r: &&u32| used.binary_search(r).is_ok();
        let vain: Vec<u32> = guess.read.iter().filter(|r| !is_used(r)).copied().collect();
        let useful = guess.read.len() - vain.len();
        let covered = guess.read.iter().filter(is_used).filter(|r| there(**r)).count();
        if !guess.certain {
            self.used.uses += used.len() as u64;
            self.used.named += guess.records.iter().filter(is_used).count() as u64;
            self.used.absent += (used.iter().filter(|r| !there(**r)).count() + covered) as u64;
            self.used.covered += covered as u64;
            for hit in [(useful, 1.0), (vain.len(), 0.0)] {
                (0..hit.0).for_each(|_| self.share = self.share * KEPT + (1.0 - KEPT) * hit.1);
            }
            if self.share < LEAST {
                (self.share, self.pause) = (START, PAUSE);
                self.used.pauses += 1;
            }
        }
        self.used.useful += useful as u64;
        self.used.wasted += vain.len() as u64;
        vain
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_named_read_and_used_is_told_apart() {
        let mut ahead = Ahead::default();
        // 1 was there; 2 and 3 are read; 2 is used, and 5, which nobody named.
        ahead.guess(4, &[1, 2, 3], vec![2, 3], false);
        assert_eq!(ahead.settle(3, &[1], |_| true), [] as [u32; 0]);
        assert_eq!(ahead.settle(4, &[1, 2, 5], |r| r != 5), [3]);
        let want = AheadUse { uses: 3, named: 2, absent: 2, covered: 1, useful: 1, wasted: 1, certain: 0, pauses: 0 };
        assert_eq!(ahead.used, want);
        assert_eq!(ahead.settle(4, &[1], |_| true), [] as [u32; 0], "once");
    }

    #[test]
    fn guesses_in_vain_stop_for_a_while_and_certain_ones_never() {
        let mut ahead = Ahead::default();
        let mut acted = 0;
        for _ in 0..PAUSE + 200 {
            if ahead.pays(false) {
                acted += 1;
                ahead.guess(0, &[1], vec![1], false);
                ahead.settle(0, &[2], |_| true);
            }
            assert!(ahead.pays(true));
        }
        assert!(acted < 200 && ahead.used.pauses > 0, "{acted} {:?}", ahead.used);
        let mut good = Ahead::default();
        for _ in 0..500 {
            assert!(good.pays(false));
            good.guess(0, &[1, 2], vec![1, 2], false);
            good.settle(0, &[1, 2], |_| true);
        }
    }
}
