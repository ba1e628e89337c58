//! [`Ledger`]: the clock of all devices of a model, and what waits for what.

use super::ModelledUse;
use ashlar_backend::{Clock, Engine, Job, Speeds, Ticket};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The ledger of a model, which its devices share.
#[derive(Clone)]
pub(crate) struct Shared(Arc<Mutex<Ledger>>);

/// Jobs of one run.
pub(crate) struct Ledger {
    clock: Clock,
    /// What the next op waits for.
    last: Vec<Ticket>,
    /// The mixture at work: what its parts wait for, and its parts.
    begun: Option<Vec<Ticket>>,
    parts: Vec<Ticket>,
    /// By slot: the copy into it, and the last that computed with it.
    filling: HashMap<usize, Ticket>,
    using: HashMap<usize, Ticket>,
    /// Whether only the rows whose logits are wanted are left of the batch.
    pub selected: bool,
    used: ModelledUse,
}

impl Shared {
    pub fn new(speeds: Speeds, machine: &str) -> Self {
        Self(Arc::new(Mutex::new(Ledger {
            clock: Clock::new(speeds),
            last: Vec::new(),
            begun: None,
            parts: Vec::new(),
            filling: HashMap::new(),
            using: HashMap::new(),
            selected: false,
            used: ModelledUse { machine: machine.to_owned(), ..ModelledUse::default() },
        })))
    }

    pub fn lock(&self) -> MutexGuard<'_, Ledger> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ledger {
    /// An op that begins when the one before has ended.
    pub fn op(&mut self, engine: Engine, mut job: Job) {
        if engine == Engine::Device {
            job.delay += self.clock.speeds().launch;
        }
        self.last = vec![self.clock.submit(engine, job, &self.last)];
    }

    /// A mixture begins behind its router: the accelerator's and the host's parts wait for no more than that.
    pub fn begin(&mut self) {
        self.begun = Some(self.last.clone());
        self.parts.clear();
    }

    /// The accelerator computes with these slots.
    pub fn in_slots(&mut self, job: Job, slots: &[usize]) {
        let mut after = self.begun.clone().unwrap_or_else(|| self.last.clone());
        after.extend(slots.iter().filter_map(|slot| self.filling.get(slot)));
        let ticket = self.clock.submit(Engine::Device, job, &after);
        self.using.extend(slots.iter().map(|slot| (*slot, ticket)));
        self.parts.push(ticket);
    }

    /// The host computes its part, after the rows were handed over.
    pub fn on_host(&mut self, mut job: Job) {
        job.delay += self.clock.speeds().handshake;
        let after = self.begun.clone().unwrap_or_else(|| self.last.clone());
        let ticket = self.clock.submit(Engine::Host, job, &after);
        if self.begun.is_some() {
            self.parts.push(ticket);
        } else {
            self.last = vec![ticket];
        }
    }

    /// The mixture has ended when its parts have.
    pub fn end(&mut self) {
        self.begun = None;
        let parts = std::mem::take(&mut self.parts);
        if !parts.is_empty() {
            self.last = parts;
        }
    }

    /// A copy into a slot, behind what the executor asked for before it and what still computes with the slot.
    pub fn fill(&mut self, slot: usize, bytes: f64) {
        let mut after = self.begun.clone().unwrap_or_else(|| self.last.clone());
        after.extend(self.using.get(&slot));
        let ticket = self.clock.submit(Engine::Link, Job::bytes(bytes), &after);
        self.filling.insert(slot, ticket);
    }

    /// Rows that cross the link.
    pub fn crossing(&mut self, bytes: f64) {
        if self.begun.is_none() {
            let job = Job { delay: self.clock.speeds().handshake / 2.0, ..Job::bytes(bytes) };
            self.last = vec![self.clock.submit(Engine::Link, job, &self.last)];
        }
    }

    /// Everything that was done before the first token is done, copies to slots too.
    pub fn settle(&mut self) {
        self.clock.wait_all();
        self.filling.clear();
        self.using.clear();
        self.last.clear();
    }

    /// Goes on until everything that an op would wait for has ended; the time then.
    pub fn wait(&mut self) -> f64 {
        for ticket in std::mem::take(&mut self.last) {
            self.clock.wait(ticket);
        }
        let clock = &self.clock;
        self.filling.retain(|_, ticket| !clock.has_ended(*ticket));
        self.using.retain(|_, ticket| !clock.has_ended(*ticket));
        self.clock.now()
    }

    /// A batch that began then has run: what it took is booked.
    pub fn book(&mut self, begun: f64, tokens: usize, prompt: bool) {
        let seconds = self.wait() - begun;
        let to = if prompt { &mut self.used.prompt } else { &mut self.used.decode };
        *to = (to.0 + tokens as u64, to.1 + seconds);
    }

    pub fn used(&self) -> ModelledUse {
        self.used.clone()
    }
}
