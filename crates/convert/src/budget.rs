//! A semaphore in bytes: what all buffers together may take.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Bytes to be shared among threads, first come, first served.
pub(crate) struct Budget {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    free: u64,
    next_ticket: u64,
    waiting: VecDeque<u64>,
}

impl Budget {
    pub fn new(bytes: u64) -> Self {
        Self {
            state: Mutex::new(State { free: bytes, next_ticket: 0, waiting: VecDeque::new() }),
            changed: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `bytes` are free and all who came before have been served. `bytes` must not exceed the budget.
    fn acquire(&self, bytes: u64) {
        let mut state = self.lock();
        let ticket = state.next_ticket;
        state.next_ticket += 1;
        state.waiting.push_back(ticket);
        while state.waiting.front() != Some(&ticket) || state.free < bytes {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.waiting.pop_front();
        state.free -= bytes;
        drop(state);
        self.changed.notify_all();
    }

    fn release(&self, bytes: u64) {
        self.lock().free += bytes;
        self.changed.notify_all();
    }

    fn contended(&self) -> bool {
        !self.lock().waiting.is_empty()
    }
}

/// One thread's share. It is kept from job to job, like the buffers it stands for, but handed back while others wait:
/// whoever waits holds nothing, so that all are served in turn.
pub(crate) struct Share<'a> {
    budget: &'a Budget,
    bytes: u64,
}

impl<'a> Share<'a> {
    pub fn new(budget: &'a Budget) -> Self {
        Self { budget, bytes: 0 }
    }

    /// Makes the share at least `bytes` large. `drop_buffers` is called before anything is handed back.
    pub fn ensure(&mut self, bytes: u64, drop_buffers: impl FnOnce()) {
        if bytes > self.bytes || (self.bytes > 0 && self.budget.contended()) {
            drop_buffers();
            self.budget.release(std::mem::take(&mut self.bytes));
            self.budget.acquire(bytes);
            self.bytes = bytes;
        }
    }
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        self.budget.release(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    #[test]
    fn shares_never_exceed_the_budget_and_large_requests_are_served() {
        let (budget, held, peak) = (Budget::new(100), AtomicU64::new(0), AtomicU64::new(0));
        std::thread::scope(|s| {
            for t in 0..6u64 {
                let (budget, held, peak) = (&budget, &held, &peak);
                s.spawn(move || {
                    let (mut share, mut mine) = (Share::new(budget), 0);
                    for i in 0..400u64 {
                        let want = if (i + t) % 50 == 0 { 100 } else { 10 + (i * 7 + t) % 30 };
                        share.ensure(want, || {
                            held.fetch_sub(mine, Ordering::SeqCst);
                            mine = 0;
                        });
                        held.fetch_add(want.saturating_sub(mine), Ordering::SeqCst);
                        mine = mine.max(want);
                        peak.fetch_max(held.load(Ordering::SeqCst), Ordering::SeqCst);
                    }
                    held.fetch_sub(mine, Ordering::SeqCst);
                });
            }
        });
        assert!(peak.load(Ordering::SeqCst) <= 100, "{peak:?}");
        assert_eq!(budget.lock().free, 100);
    }
}
