//! The thread pool: fork-join with little latency. Workers spin for a moment after a job and then park.
//!
//! [`Pool::run`] calls a closure for every index of a range. Every thread has a share of neighbouring indices, which it
//! takes in order: neighbours read neighbouring memory, and what one asks for ahead the next one finds. Who is done takes
//! from the far end of the fullest share. Which thread runs an index must not matter to the result: ops write each output
//! in exactly one index.
//!
//! A job is open while its state word says so; a worker enters by adding itself to the count in the same word. The
//! caller works too, then closes the job and waits only for workers that entered: one that wakes late finds it closed.

use std::any::Any;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

/// Rounds of spinning before a worker parks: some tens of microseconds, longer than the gaps between ops.
const SPINS: u32 = 20_000;
/// Rounds of spinning before the caller yields its core to a worker that was descheduled inside a job.
const CALLER_SPINS: u32 = 2_000;

/// Low 32 bits: workers inside the job; bit 32: open; above: job number.
const OPEN: u64 = 1 << 32;
const NUMBER: u64 = 1 << 33;

/// A borrowed job. Only dereferenced by workers inside it, while `Pool::run` has not returned.
#[derive(Clone, Copy)]
struct Job {
    body: *const (dyn Fn(usize) + Sync),
}

/// Indices that are still to run: the first in the low half, one past the last in the high half. Alone on its cache line.
#[repr(align(128))]
#[derive(Default)]
struct Share(AtomicU64);

impl Share {
    fn set(&self, indices: Range<u32>) {
        self.0.store(u64::from(indices.end) << 32 | u64::from(indices.start), Ordering::Relaxed);
    }

    fn left(share: u64) -> u64 {
        (share >> 32).saturating_sub(share & u64::from(u32::MAX))
    }

    /// Takes the first index that is left.
    fn first(&self) -> Option<usize> {
        let next = |share| (Self::left(share) > 0).then_some(share + 1);
        let share = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).ok()?;
        Some((share & u64::from(u32::MAX)) as usize)
    }

    /// Takes the last index that is left.
    fn last(&self) -> Option<usize> {
        let next = |share| (Self::left(share) > 0).then(|| share - (1 << 32));
        let share = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).ok()?;
        Some((share >> 32) as usize - 1)
    }
}

struct Shared {
    state: AtomicU64,
    /// Written by the caller while the job is closed and empty, read by workers that entered.
    job: std::cell::UnsafeCell<Option<Job>>,
    /// One per thread, the caller's first. Set while the job is closed and empty.
    shares: Vec<Share>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    parked: AtomicUsize,
    lock: Mutex<()>,
    wake: Condvar,
    stop: AtomicBool,
}

// SAFETY: `job` is written only while no worker is inside and the job is closed (`Pool::run` holds `turn`), and its
// pointers are used only between entering and leaving, during which `Pool::run` keeps what they point to alive. The
// pointees are `Sync`.
unsafe impl Sync for Shared {}
// SAFETY: as for `Sync`; nothing in it belongs to one thread.
unsafe impl Send for Shared {}

/// A fixed number of threads, the caller's included.
pub struct Pool {
    shared: Arc<Shared>,
    /// Held while a job runs: one at a time.
    turn: Mutex<()>,
    workers: Vec<JoinHandle<()>>,
}

impl Pool {
    /// A pool of `threads` (at least 1), of which `threads - 1` are spawned. Threads that the system refuses are left
    /// out: see [`Pool::threads`].
    pub fn new(threads: usize) -> Self {
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            job: std::cell::UnsafeCell::new(None),
            shares: (0..threads).map(|_| Share::default()).collect(),
            panic: Mutex::new(None),
            parked: AtomicUsize::new(0),
            lock: Mutex::new(()),
            wake: Condvar::new(),
            stop: AtomicBool::new(false),
        });
        let spawn = |i: usize| {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new().name(format!("ashlar-cpu-{i}")).spawn(move || work(&shared, i)).ok()
        };
        let workers = (1..threads).map_while(spawn).collect();
        Self { shared, turn: Mutex::new(()), workers }
    }

    /// Threads that take part, the caller's included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `body(0)`, …, `body(count - 1)`, each once, on any thread; returns when all are done. A panic of `body` is
    /// passed on. `body` must not run jobs of the same pool.
    pub fn run(&self, count: usize, body: &(dyn Fn(usize) + Sync)) {
        if count <= 1 || self.workers.is_empty() || count > u32::MAX as usize {
            (0..count).for_each(body);
            return;
        }
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let shared = &*self.shared;
        let threads = self.threads();
        let bound = |thread: usize| (count as u64 * thread as u64 / threads as u64) as u32;
        for (thread, share) in shared.shares.iter().enumerate() {
            share.set(bound(thread.min(threads))..bound((thread + 1).min(threads)));
        }
        // SAFETY: only the lifetime changes; the pointer is not used after `run` returns (see `Shared`).
        let body = unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), &'static (dyn Fn(usize) + Sync)>(body) };
        let job = Job { body };
        // SAFETY: the previous job is closed and empty, so no worker reads the cell.
        unsafe { *shared.job.get() = Some(job) };
        shared.state.fetch_add(NUMBER | OPEN, Ordering::SeqCst);
        if shared.parked.load(Ordering::SeqCst) > 0 {
            drop(shared.lock.lock().unwrap_or_else(PoisonError::into_inner));
            shared.wake.notify_all();
        }
        let mine = catch_unwind(AssertUnwindSafe(|| take_indices(job, &shared.shares, 0)));
        shared.state.fetch_and(!OPEN, Ordering::AcqRel);
        let mut spins = 0;
        while shared.state.load(Ordering::Acquire) & (OPEN - 1) != 0 {
            spins += 1;
            if spins < CALLER_SPINS { std::hint::spin_loop() } else { std::thread::yield_now() }
        }
        let theirs = shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(panic) = mine.err().or(theirs) {
            resume_unwind(panic);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        drop(self.shared.lock.lock().unwrap_or_else(PoisonError::into_inner));
        self.shared.wake.notify_all();
        for worker in self.workers.drain(..) {
            // A worker catches panics of jobs, so joining cannot fail.
            let _ = worker.join();
        }
    }
}

/// Runs indices until none is left, of the own share first.
fn take_indices(job: Job, shares: &[Share], own: usize) {
    // SAFETY: the caller of this function is inside the job, so `Pool::run` has not returned and the closure lives.
    let body = unsafe { &*job.body };
    while let Some(index) = shares.get(own).and_then(Share::first) {
        body(index);
    }
    let left = |share: &&Share| Share::left(share.0.load(Ordering::Relaxed));
    while let Some(fullest) = shares.iter().max_by_key(left).filter(|share| left(share) > 0) {
        if let Some(index) = fullest.last() {
            body(index);
        }
    }
}

/// A worker's life.
fn work(shared: &Shared, own: usize) {
    let mut done = 0;
    while let Some(number) = wait_for_job(shared, done) {
        done = number;
        if !enter(shared, number) {
            continue;
        }
        // SAFETY: entering an open job orders this read after the caller's write, and the caller writes again only
        // after this worker has left.
        if let Some(job) = unsafe { *shared.job.get() }
            && let Err(panic) = catch_unwind(AssertUnwindSafe(|| take_indices(job, &shared.shares, own)))
        {
            *shared.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic);
        }
        shared.state.fetch_sub(1, Ordering::Release);
    }
}

/// Adds this worker to job `number` if it is still open.
fn enter(shared: &Shared, number: u64) -> bool {
    let open = |state: u64| (state & OPEN != 0 && state / NUMBER == number).then_some(state + 1);
    shared.state.fetch_update(Ordering::AcqRel, Ordering::Acquire, open).is_ok()
}

/// The number of the next open job after `done`; `None` when the pool goes away.
fn wait_for_job(shared: &Shared, done: u64) -> Option<u64> {
    let ready = || {
        let state = shared.state.load(Ordering::SeqCst);
        (state & OPEN != 0 && state / NUMBER != done).then_some(state / NUMBER)
    };
    loop {
        for _ in 0..SPINS {
            if let Some(number) = ready() {
                return Some(number);
            }
            if shared.stop.load(Ordering::Relaxed) {
                return None;
            }
            std::hint::spin_loop();
        }
        let mut guard = shared.lock.lock().unwrap_or_else(PoisonError::into_inner);
        shared.parked.fetch_add(1, Ordering::SeqCst);
        // Announced first, looked again second: the caller publishes first and looks for parked workers second.
        while ready().is_none() && !shared.stop.load(Ordering::SeqCst) {
            guard = shared.wake.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        shared.parked.fetch_sub(1, Ordering::SeqCst);
        drop(guard);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_index_runs_exactly_once() {
        for threads in [1, 2, 3, 7] {
            let pool = Pool::new(threads);
            for count in [0usize, 1, 2, 5, 100] {
                let hits: Vec<AtomicUsize> = (0..count).map(|_| AtomicUsize::new(0)).collect();
                for _ in 0..50 {
                    pool.run(count, &|i| {
                        hits[i].fetch_add(1, Ordering::Relaxed);
                    });
                }
                assert!(hits.iter().all(|h| h.load(Ordering::Relaxed) == 50), "{threads} threads, {count} indices");
            }
        }
    }

    #[test]
    fn parked_workers_wake_up() {
        let pool = Pool::new(3);
        for _ in 0..3 {
            std::thread::sleep(std::time::Duration::from_millis(20));
            let sum = AtomicUsize::new(0);
            pool.run(64, &|i| {
                sum.fetch_add(i, Ordering::Relaxed);
            });
            assert_eq!(sum.load(Ordering::Relaxed), 64 * 63 / 2);
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        let pool = Pool::new(2);
        let result = catch_unwind(AssertUnwindSafe(|| pool.run(8, &|i| assert!(i != 5, "index five"))));
        assert!(result.is_err());
        let sum = AtomicUsize::new(0);
        pool.run(4, &|i| {
            sum.fetch_add(i, Ordering::Relaxed);
        });
        assert_eq!(sum.load(Ordering::Relaxed), 6);
    }
}
