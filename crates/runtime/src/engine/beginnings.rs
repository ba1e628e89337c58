//! Beginnings of prompts that need not be computed: blocks from the disk, and from other requests' slots.
//!
//! Everything comes in whole blocks of [`BLOCK`] tokens. A block is written to the disk as soon as its last token has been
//! fed; it is read between batches, a few at a time while others are being answered.

use super::Engine;
use crate::RuntimeError;
use crate::prefixes::{BLOCK, PrefixOptions, PrefixStore};
use ashlar_backend::Batch;
use std::ops::Range;
use std::time::{Duration, Instant};

/// How long those who are being answered wait for the disk, per batch.
const PAUSE: Duration = Duration::from_millis(10);

impl Engine {
    /// Keeps beginnings of texts in a directory from now on, and uses those that are there.
    ///
    /// # Errors
    /// [`RuntimeError::Prefixes`] if the device cannot save keys and values, or the directory cannot be used.
    pub fn keep_prefixes(&mut self, options: &PrefixOptions) -> Result<(), RuntimeError> {
        let saved_as = self.model.saved_as().map_err(|device| RuntimeError::Prefixes {
            dir: options.dir.display().to_string(),
            what: format!("{device} cannot save keys and values; leave --kv-dir out, or use --device cpu"),
        })?;
        if self.model.kv().forgets() && self.options.chunk > BLOCK {
            let chunk = self.options.chunk;
            tracing::warn!(
                chunk,
                "this model's windows forget within a chunk: with --chunk above {BLOCK} some beginnings are not kept"
            );
        }
        self.prefixes = Some(PrefixStore::open(options, &saved_as)?);
        Ok(())
    }

    /// Writes the blocks that a batch has completed.
    pub(super) fn keep(&mut self, batch: &Batch) {
        let Self { prefixes: Some(store), slots, model, .. } = self else { return };
        for part in &batch.sequences {
            let end = part.position + part.rows.len();
            let Some(running) = slots.get_mut(part.slot).filter(|_| end / BLOCK > part.position / BLOCK) else {
                continue;
            };
            running.extend_keys(store, end);
            for (number, key) in running.keys.iter().enumerate().take(end / BLOCK) {
                let block = block(number);
                if !store.wants(key) || !model.kv().goes_on(part.slot, block.end) {
                    continue;
                }
                let mut bytes = Vec::new();
                match model.save(part.slot, &block, &mut bytes) {
                    Ok(true) => store.put(*key, number as u64, bytes),
                    Ok(false) => {}
                    Err(error) => tracing::warn!(%error, ?block, "keys and values are not kept"),
                }
            }
        }
    }

    /// How many blocks of the beginning of a request that was given `slot` can be had from the disk, if that is more than the
    /// slot holds.
    pub(super) fn look_up(&mut self, slot: usize) {
        let Self { prefixes: Some(store), slots, model, .. } = self else { return };
        let Some(running) = slots.get_mut(slot) else { return };
        // The last token's logits are wanted: it has to be computed. A block that ends with it is of use where one can go back.
        let most = running.tokens().len().saturating_sub(usize::from(model.kv().forgets()));
        running.extend_keys(store, most);
        let known = store.known(running.keys.get(..most / BLOCK).unwrap_or_default());
        let gains = known * BLOCK >= running.fed_tokens().len() + BLOCK;
        running.until = (gains && model.kv().has_room(slot, known * BLOCK)).then_some(known);
    }

    /// Reads blocks that are there: all of them, or a few while somebody is being answered.
    pub(super) fn restore_some(&mut self) {
        let begin = Instant::now();
        let answering = self.slots.busy().any(|(_, r)| r.answers());
        loop {
            let reading = self.slots.busy().filter(|(_, r)| r.until.is_some());
            let Some(slot) = reading.min_by_key(|(_, r)| r.id).map(|(slot, _)| slot) else { return };
            if answering && begin.elapsed() >= PAUSE {
                return;
            }
            self.restore_next(slot);
        }
    }

    fn restore_next(&mut self, slot: usize) {
        let Self { prefixes: Some(store), slots, model, stats, .. } = self else { return };
        let Some(running) = slots.get_mut(slot) else { return };
        let (number, until) = (running.fed_tokens().len() / BLOCK, running.until.take().unwrap_or(0));
        let Some(key) = running.keys.get(number).filter(|_| number < until) else { return };
        // What is damaged is computed, and with it all that follows.
        let Some(bytes) = store.get(key) else { return };
        let block = block(number);
        if let Err(error) = model.restore(slot, &block, &bytes) {
            tracing::warn!(%error, ?block, "a block of keys and values could not be used");
            return running.start_anew();
        }
        let end = block.end.min(running.tokens().len().saturating_sub(1));
        stats.disk_tokens += running.gain(end) as u64;
        if number + 1 < until {
            running.until = Some(until);
        } else {
            stats.disk_hits += 1;
            store.used(running.keys.get(..until).unwrap_or_default());
        }
    }

    /// Gives requests that are still reading their prompts what other slots hold of the same beginning.
    pub(super) fn share(&mut self) {
        let wanting = |r: &super::Running| r.until.is_none() && r.tokens().len() - r.fed_tokens().len() > BLOCK;
        let wanting: Vec<usize> = self.slots.busy().filter(|(_, r)| wanting(r)).map(|(slot, _)| slot).collect();
        for slot in wanting {
            if let Some((from, end)) = self.holder_for(slot) {
                self.copy(from, slot, end);
            }
        }
    }

    /// The slot that holds most of what a request still has to read, and how many positions of it can be copied.
    fn holder_for(&self, slot: usize) -> Option<(usize, usize)> {
        let running = self.slots.busy().find(|(s, _)| *s == slot)?.1;
        let (most, held, kv) = (running.tokens().len() - 1, running.fed_tokens().len(), self.model.kv());
        let common = |(from, tokens): (usize, &[u32])| {
            let same = tokens.iter().zip(running.tokens()).take_while(|(a, b)| a == b).count();
            let end = same.min(most).min(kv.held(from)) / BLOCK * BLOCK;
            (end >= held + BLOCK && kv.goes_on(from, end)).then_some((from, end))
        };
        let others = self.slots.holders().filter(|(from, _)| *from != slot).filter_map(common);
        others.max_by_key(|(_, end)| *end).filter(|(_, end)| kv.has_room(slot, *end))
    }

    fn copy(&mut self, from: usize, to: usize, end: usize) {
        let Self { slots, model, stats, .. } = self;
        let Some(running) = slots.get_mut(to) else { return };
        let mut bytes = Vec::new();
        for number in running.fed_tokens().len() / BLOCK..end / BLOCK {
            bytes.clear();
            let block = block(number);
            // What windows forgot of the blocks before the last is of no use to the last either.
            let saved = model.save(from, &block, &mut bytes);
            if let Err(error) = saved.and_then(|_| model.restore(to, &block, &bytes)) {
                // A device that cannot.
                tracing::debug!(%error, "a beginning is not shared");
                model.release(to);
                return running.start_anew();
            }
        }
        stats.shared_hits += u64::from(!std::mem::replace(&mut running.shares, true));
        stats.shared_tokens += running.gain(end) as u64;
    }
}

fn block(number: usize) -> Range<usize> {
    number * BLOCK..(number + 1) * BLOCK
}
