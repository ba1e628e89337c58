//! What an engine has done, for its user.

use super::{Rate, UNKNOWN};
use crate::prefixes::PrefixStats;
use crate::{NvmeUse, SlotUse};
use ashlar_backend::{Batch, Memory};
use std::time::{Duration, Instant};

/// Weight of the newest step in what the last steps took.
const NEWEST: f64 = 0.1;
/// A step counts as at most so many times as slow as those before it.
const SLOWEST: f64 = 4.0;

/// Counts since the start, and the present state.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EngineStats {
    /// Requests that hold a slot.
    pub running: usize,
    /// Requests that wait for one.
    pub waiting: usize,
    /// Bytes of keys and values in use, by cache ([`crate::Model::cache_places`] tells where each lies).
    pub kv_by_cache: Vec<u64>,
    /// Bytes they may take in all.
    pub kv_most: u64,
    /// What every device keeps besides weights, by its name.
    pub memory: Vec<(String, Memory)>,
    /// The experts that are read from disk as they are used; `None` where none are.
    pub nvme: Option<NvmeUse>,
    /// Slots for experts on accelerators, by device.
    pub slots: Vec<(String, SlotUse)>,
    /// Tokens of prompts that went through the model.
    pub tokens_in: u64,
    /// The same, lately.
    pub rate_in: Rate,
    /// Tokens chosen.
    pub tokens_out: u64,
    /// The same, lately.
    pub rate_out: Rate,
    /// Rows of logits that stayed on the device, which told enough of them to choose a token.
    pub rows_surveyed: u64,
    /// Rows that it told too little of, and handed over.
    pub rows_fetched: u64,
    /// Requests that ended, in whatever way.
    pub ended: u64,
    /// Requests refused.
    pub refused: u64,
    /// Times a running request had to give way.
    pub preempted: u64,
    /// Requests that found the beginning of their prompt in a cache.
    pub prefix_hits: u64,
    /// Tokens found there.
    pub prefix_tokens: u64,
    /// Slots of ended requests whose keys and values were dropped to make room.
    pub dropped: u64,
    /// Requests that found it on disk.
    pub disk_hits: u64,
    /// Tokens found there.
    pub disk_tokens: u64,
    /// Requests that were given the beginning of another one's slot.
    pub shared_hits: u64,
    /// Tokens of these.
    pub shared_tokens: u64,
    /// What is on disk; `None` without a directory.
    pub prefixes: Option<PrefixStats>,
    /// Batches run.
    pub steps: u64,
    /// Seconds per token that was answered lately; 0 before the first.
    pub seconds_per_token: f64,
}

impl EngineStats {
    pub(super) fn started(&mut self, common: usize) {
        self.prefix_hits += u64::from(common > 0);
        self.prefix_tokens += common as u64;
    }

    pub(super) fn stepped(&mut self, batch: &Batch, took: Duration) {
        self.steps += 1;
        let answered = batch.sequences.iter().filter(|s| s.rows.len() == 1).count();
        if answered > 0 {
            let before = self.each();
            // The first step reads weights from disk: one slow step says little of the next ones.
            let now = (took.as_secs_f64() / answered as f64).min(SLOWEST * before);
            self.seconds_per_token = before + NEWEST * (now - before);
        }
    }

    pub(super) fn read(&mut self, tokens: usize) {
        self.tokens_in += tokens as u64;
        self.rate_in.add(tokens as u64, Instant::now());
    }

    pub(super) fn answered(&mut self) {
        self.tokens_out += 1;
        self.rate_out.add(1, Instant::now());
    }

    /// What so many tokens will take.
    pub(super) fn seconds_for(&self, tokens: usize) -> f64 {
        tokens as f64 * self.each()
    }

    fn each(&self) -> f64 {
        if self.seconds_per_token > 0.0 { self.seconds_per_token } else { UNKNOWN.as_secs_f64() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_slow_step_does_not_spoil_the_estimate_and_a_slow_machine_is_seen_as_one() {
        let mut stats = EngineStats::default();
        let mut step = |seconds: f64| {
            stats.stepped(&Batch::of(0, 0, &[1]), Duration::from_secs_f64(seconds));
            stats.seconds_for(100)
        };
        assert!(step(5.0) < 10.0);
        for _ in 0..40 {
            step(0.02);
        }
        assert!((step(0.02) - 2.0).abs() < 0.2);
        for _ in 0..60 {
            step(5.0);
        }
        assert!((step(5.0) - 500.0).abs() < 50.0);
    }
}
