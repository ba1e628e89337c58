//! Many requests on one model: continuous batching.
//!
//! Owns: the queue, which request holds which slot of the caches, what goes into a batch, what gives way when keys and
//! values take more than they may. A step runs one batch: a token of every request that is answering, and as much of
//! the prompts that still wait as the chunk allows. Requests come and go between steps. A row's logits do not depend on
//! what else is in a batch, so neither does a text.
//!
//! What a prompt begins with need not be computed if a slot or the disk holds it (`beginnings`).
//!
//! Under pressure first the caches of ended requests go, then the youngest running request gives its memory up and waits
//! again with the tokens it has; nothing is lost. Refuses: threads and clients (`server`), text formats (`chat`).

mod beginnings;
mod choose;
mod rate;
mod request;
mod schedule;
mod slots;
mod speech;
mod stats;

pub use rate::Rate;
pub use request::{Choice, Finished, Piece, Refused, Request, Sink, Ticket};
pub use stats::EngineStats;

use crate::prefixes::PrefixStore;
use crate::{Model, RuntimeError, StopReason, Tokenizer};
use ashlar_backend::Batch;
use request::Running;
use schedule::{Demand, plan};
use slots::Slots;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How an engine shares a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineOptions {
    /// Requests that may wait.
    pub queue: usize,
    /// Tokens of a batch.
    pub chunk: usize,
    /// Tokens of prompts in a batch while others are answering, so that these keep their pace.
    pub shared_chunk: usize,
}

/// A model that answers many requests at once.
pub struct Engine {
    model: Model,
    tokenizer: Arc<Tokenizer>,
    stop_tokens: Vec<u32>,
    options: EngineOptions,
    waiting: VecDeque<Running>,
    slots: Slots,
    stats: EngineStats,
    next: u64,
    /// Beginnings on disk.
    prefixes: Option<PrefixStore>,
    /// Whether slots can be given what others hold.
    shares: bool,
}

impl Engine {
    /// Shares `model`, which holds `sequences` sequences at a time ([`crate::OpenOptions::sequences`]).
    ///
    /// # Errors
    /// [`RuntimeError::Tokenizer`] if there is no usable tokenizer; [`RuntimeError::Option`] for a chunk of nothing.
    pub fn new(model: Model, options: EngineOptions) -> Result<Self, RuntimeError> {
        if options.chunk == 0 || options.shared_chunk == 0 {
            return Err(RuntimeError::Option { option: "--chunk", got: "0".into(), expected: "at least 1".into() });
        }
        let tokenizer = Arc::new(Tokenizer::open(model.dir())?);
        let stop_tokens = crate::stop::stop_tokens(model.dir(), model.config(), &tokenizer);
        let slots = Slots::new(model.sequences());
        let options = EngineOptions { chunk: options.chunk.min(model.chunk()), ..options };
        let (waiting, stats, shares) = (VecDeque::new(), EngineStats::default(), model.saved_as().is_ok());
        Ok(Self { model, tokenizer, stop_tokens, options, waiting, slots, stats, next: 0, prefixes: None, shares })
    }

    /// The model.
    #[must_use]
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Its tokenizer.
    #[must_use]
    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.tokenizer
    }

    /// Tokens that end an answer.
    #[must_use]
    pub fn stop_tokens(&self) -> &[u32] {
        &self.stop_tokens
    }

    /// Nothing runs and nothing waits.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.slots.busy().next().is_none()
    }

    /// Requests that can run and wait at the same time.
    #[must_use]
    pub fn places(&self) -> usize {
        self.options.queue.saturating_add(self.model.sequences())
    }

    /// What has happened so far, and what is happening.
    #[must_use]
    pub fn stats(&self) -> EngineStats {
        let running = self.slots.busy().count();
        let (kv_by_cache, kv_most) = (self.model.kv().by_cache(), self.model.kv().most());
        let prefixes = self.prefixes.as_ref().map(PrefixStore::stats);
        let (waiting, memory, nvme) = (self.waiting.len(), self.model.memory_by_device(), self.model.nvme());
        let slots = self.model.slots();
        EngineStats { running, waiting, kv_by_cache, kv_most, memory, nvme, slots, prefixes, ..self.stats.clone() }
    }

    /// Takes a request, which starts as soon as there is room.
    ///
    /// # Errors
    /// [`Refused`] if it can never be answered, or the queue is full. Its sink hears nothing then.
    pub fn submit(&mut self, request: Request) -> Result<Ticket, Refused> {
        let admitted = self.admit(request);
        self.stats.refused += u64::from(admitted.is_err());
        admitted
    }

    fn admit(&mut self, request: Request) -> Result<Ticket, Refused> {
        let vocab = self.model.spec().vocab_size;
        if let Some(id) = request.prompt.iter().find(|id| **id as usize >= vocab) {
            let (got, expected) = (format!("token {id}"), format!("tokens below {vocab}"));
            return Err(RuntimeError::Option { option: "prompt", got, expected }.into());
        }
        let prompt = request.prompt.len();
        let wanted = request.options.max_tokens.map_or(prompt, |max| prompt.saturating_add(max));
        let most = wanted.min(self.model.context());
        self.model.check("the prompt", prompt)?;
        self.model.kv().check("prompt and answer", most, self.options.chunk.min(prompt))?;
        // A free slot is as good as a place in the queue.
        let free = self.slots.free();
        if self.waiting.len() >= self.options.queue.saturating_add(free) {
            return Err(Refused::Full { waiting: self.waiting.len(), seconds: self.seconds_ahead() });
        }
        let running = Running::new(self.next, request, &self.tokenizer)?;
        let ticket = Ticket {
            id: self.next,
            ahead: (self.waiting.len() + 1).saturating_sub(free),
            seconds: if self.waiting.len() < free { 0.0 } else { self.seconds_ahead() },
        };
        self.next += 1;
        self.waiting.push_back(running);
        Ok(ticket)
    }

    /// Ends a request now; what its cache holds may serve others.
    pub fn cancel(&mut self, id: u64) {
        if let Some(at) = self.waiting.iter().position(|r| r.id == id) {
            if let Some(running) = self.waiting.remove(at) {
                self.end(running, Ok(StopReason::Cancelled));
            }
        } else if let Some(slot) = self.slots.of(id) {
            self.stop(slot, Ok(StopReason::Cancelled));
        }
    }

    /// Ends everything that runs or waits.
    pub fn cancel_all(&mut self) {
        let ids: Vec<u64> = self.waiting.iter().chain(self.slots.busy().map(|(_, r)| r)).map(|r| r.id).collect();
        ids.into_iter().for_each(|id| self.cancel(id));
    }

    /// Runs one batch. Returns whether there was anything to run.
    ///
    /// # Errors
    /// [`RuntimeError`] if the device fails: every request that was in the batch has been told, the others go on with the
    /// next step.
    pub fn step(&mut self) -> Result<bool, RuntimeError> {
        self.start_waiting();
        self.restore_some();
        if self.shares {
            self.share();
        }
        let Some(batch) = self.next_batch() else { return Ok(false) };
        let begin = Instant::now();
        let rows = match self.model.step(&batch).and_then(|()| self.rows(&batch)) {
            Ok(rows) => rows,
            Err(error) => {
                let slots: Vec<usize> = batch.sequences.iter().map(|s| s.slot).collect();
                slots.into_iter().for_each(|slot| self.stop(slot, Err(error.to_string())));
                return Err(error);
            }
        };
        self.stats.stepped(&batch, begin.elapsed());
        self.keep(&batch);
        self.hand_out(&batch, rows);
        Ok(true)
    }

    /// Seconds until what runs and waits is done, as far as the last steps tell.
    fn seconds_ahead(&self) -> f64 {
        let left = self.waiting.iter().chain(self.slots.busy().map(|(_, r)| r)).map(Running::tokens_left);
        self.stats.seconds_for(left.sum::<usize>())
    }

    /// Moves requests from the queue into slots, as long as there are slots and their prompts fit.
    fn start_waiting(&mut self) {
        while let Some(first) = self.waiting.front() {
            let needed = self.prompt_bytes(first);
            let Some((slot, common)) = self.slots.choose(first.tokens(), self.model.kv()) else { return };
            if !self.make_room(needed, slot) {
                return;
            }
            let Some(mut running) = self.waiting.pop_front() else { return };
            running.start(common);
            self.stats.started(common);
            self.slots.occupy(slot, running);
            self.look_up(slot);
        }
    }

    fn prompt_bytes(&self, running: &Running) -> u64 {
        self.model.kv().bytes(running.tokens().len() + 1, self.options.chunk)
    }

    /// Whether so many bytes more can be held, after dropping caches of ended requests other than `keep`'s.
    fn make_room(&mut self, needed: u64, keep: usize) -> bool {
        let Some(budget) = self.model.kv().budget() else { return true };
        // What running requests will still need of their own prompts counts as taken.
        let promised: u64 = self.slots.busy().map(|(_, r)| self.prompt_bytes(r)).sum();
        if promised.saturating_add(needed) > budget {
            return self.slots.busy().next().is_none();
        }
        while self.model.kv().used_besides(keep).saturating_add(needed) > budget {
            if !self.drop_oldest(keep) {
                break;
            }
        }
        true
    }

    /// Drops what the slot other than `keep` holds whose request ended longest ago; false if there is none.
    fn drop_oldest(&mut self, keep: usize) -> bool {
        let Some(slot) = self.slots.drop_oldest(keep) else { return false };
        self.model.release(slot);
        self.stats.dropped += 1;
        true
    }

    /// The next batch that fits the budget, after whoever must give way has.
    fn next_batch(&mut self) -> Option<Batch> {
        loop {
            // Those whose blocks are being read wait for them.
            let ready = self.slots.busy().filter(|(_, r)| r.until.is_none());
            let demands: Vec<Demand> = ready.map(|(slot, r)| r.demand(slot)).collect();
            let batch = plan(&demands, self.options)?;
            if self.model.kv().allow(&batch).is_ok() {
                return Some(batch);
            }
            if self.drop_oldest(usize::MAX) {
                continue;
            }
            if self.slots.busy().nth(1).is_some() {
                self.give_way();
            } else if let Some(demand) = demands.first() {
                // Alone, and the budget is full: this is as long as a text can be.
                self.stop(demand.slot, Ok(StopReason::Context));
            }
        }
    }

    /// The youngest request gives its memory up and waits again, first in the queue, with the tokens it has.
    fn give_way(&mut self) {
        let youngest = self.slots.busy().max_by_key(|(_, r)| r.id).map(|(slot, _)| slot);
        if let Some((slot, running)) = youngest.and_then(|slot| Some((slot, self.slots.leave(slot)?))) {
            self.slots.forget(slot);
            self.model.release(slot);
            self.stats.preempted += 1;
            self.waiting.push_front(running);
        }
    }

    /// Ends the request of a slot and keeps what the slot holds for requests that begin the same way.
    fn stop(&mut self, slot: usize, how: Result<StopReason, String>) {
        let failed = how.is_err();
        if let Some(running) = self.slots.leave(slot) {
            self.end(running, how);
        }
        if failed {
            self.slots.forget(slot);
            self.model.release(slot);
        }
    }

    fn end(&mut self, running: Running, how: Result<StopReason, String>) {
        self.stats.ended += 1;
        running.finish(how);
    }
}

/// Time of a token when nothing has run yet.
const UNKNOWN: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests;
