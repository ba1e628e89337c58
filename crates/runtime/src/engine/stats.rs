//! What an engine has done, for its user.

use super::UNKNOWN;
use crate::NvmeUse;
use crate::prefixes::PrefixStats;
use ashlar_backend::{Batch, Memory};
use std::time::Duration;

/// Weight of the newest step in what the last steps took.
const NEWEST: f64 = 0.1;

/// Counts since the start, and the present state.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EngineStats {
    /// Requests that hold a slot.
    pub running: usize,
    /// Requests that wait for one.
    pub waiting: usize,
    /// Bytes of keys and values in use.
    pub kv_used: u64,
    /// Bytes they may take.
    pub kv_budget: Option<u64>,
    /// What the devices keep besides weights.
    pub memory: Memory,
    /// The experts that are read from disk as they are used; `None` where none are.
    pub nvme: Option<NvmeUse>,
    /// Tokens of prompts that went through the model.
    pub tokens_in: u64,
    /// Tokens chosen.
    pub tokens_out: u64,
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
        self.tokens_in += (batch.rows() - answered) as u64;
        if answered > 0 {
            let now = took.as_secs_f64() / answered as f64;
            let before = if self.seconds_per_token > 0.0 { self.seconds_per_token } else { now };
            self.seconds_per_token = before + NEWEST * (now - before);
        }
    }

    /// What so many tokens will take.
    pub(super) fn seconds_for(&self, tokens: usize) -> f64 {
        let each = if self.seconds_per_token > 0.0 { self.seconds_per_token } else { UNKNOWN.as_secs_f64() };
        tokens as f64 * each
    }
}
