//! Which blocks there are, in the order of their last use.

use super::{Key, PrefixStats};
use std::collections::{BTreeMap, HashMap, HashSet};

/// Blocks and counts; no files.
#[derive(Default)]
pub struct Index {
    known: HashMap<Key, Known>,
    /// By last use, the oldest first.
    order: BTreeMap<u64, Key>,
    clock: u64,
    /// On their way to the disk.
    queued: HashSet<Key>,
    queued_bytes: u64,
    stats: PrefixStats,
}

struct Known {
    bytes: u64,
    used: u64,
}

impl Index {
    pub fn has(&self, key: &Key) -> bool {
        self.known.contains_key(key)
    }

    pub fn wants(&self, key: &Key) -> bool {
        !self.known.contains_key(key) && !self.queued.contains(key)
    }

    /// A block is there, used last of all.
    pub fn add(&mut self, key: Key, bytes: u64) {
        self.forget(&key);
        self.clock += 1;
        self.known.insert(key, Known { bytes, used: self.clock });
        self.order.insert(self.clock, key);
        self.stats.blocks += 1;
        self.stats.bytes += bytes;
    }

    /// A block was used now.
    pub fn touch(&mut self, key: &Key) {
        if let Some(known) = self.known.get_mut(key) {
            self.clock += 1;
            self.order.remove(&known.used);
            known.used = self.clock;
            self.order.insert(self.clock, *key);
        }
    }

    /// Takes out the oldest blocks until the others have at most so many bytes.
    pub fn evict(&mut self, most: u64) -> Vec<Key> {
        let mut gone = Vec::new();
        while self.stats.bytes > most {
            let Some((_, key)) = self.order.pop_first() else { break };
            self.forget(&key);
            self.stats.evicted += 1;
            gone.push(key);
        }
        gone
    }

    /// Whether a block may wait to be written, of `most` bytes in all.
    pub fn queue(&mut self, key: Key, bytes: u64, most: u64) -> bool {
        let fits = self.queued_bytes.saturating_add(bytes) <= most;
        if fits {
            self.queued.insert(key);
            self.queued_bytes += bytes;
        } else {
            self.stats.skipped += 1;
        }
        fits
    }

    /// A block that waited was written, as a file of so many bytes, or was not.
    pub fn written(&mut self, key: Key, waited: u64, file: Option<u64>) {
        self.queued.remove(&key);
        self.queued_bytes = self.queued_bytes.saturating_sub(waited);
        match file {
            Some(bytes) => {
                self.stats.written += bytes;
                self.add(key, bytes);
            }
            None => self.stats.skipped += 1,
        }
    }

    pub fn read(&mut self, bytes: u64) {
        self.stats.read += bytes;
    }

    /// A block cannot be used after all.
    pub fn damaged(&mut self, key: &Key) {
        self.forget(key);
        self.stats.damaged += 1;
    }

    pub fn count_damaged(&mut self, files: u64) {
        self.stats.damaged += files;
    }

    pub fn stats(&self) -> PrefixStats {
        self.stats
    }

    fn forget(&mut self, key: &Key) {
        if let Some(known) = self.known.remove(key) {
            self.order.remove(&known.used);
            self.stats.blocks -= 1;
            self.stats.bytes -= known.bytes;
        }
    }
}
