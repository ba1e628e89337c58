//! [`ExpertStore`]: threads that read records, and the op that waits for them.

use super::records::{Extent, Record};
use super::state::{NvmeUse, State, first_page};
use super::{Disk, Plan};
use crate::RuntimeError;
use ashlar_backend::{Arrived, BackendError, Records};
use ashlar_pack::PAGE;
use ashlar_tensor::{AlignedBytes, Bytes};
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

/// Numbers of reads at once that are tried at the start. Fewer are never much better, and on a busy machine they may seem so.
const DEPTHS: [usize; 3] = [4, 8, 16];
/// Bytes that are read with each.
const TRIED: usize = 48 << 20;
/// A depth must be so much better than a lower one to be taken.
const BETTER: f64 = 1.05;
/// Parts of a record that are read at once are not smaller: below it, a read costs more than it brings.
const LEAST_PART: usize = 1 << 20;
/// Slots below which nothing can run: one is computed with while the next is read.
const LEAST_SLOTS: usize = 2;

/// How a store is made.
#[derive(Clone, Copy)]
pub struct StoreOptions<'a> {
    /// Bytes of memory for experts.
    pub budget: u64,
    /// Where memory comes from.
    pub alloc: &'a dyn Fn(usize) -> Option<AlignedBytes>,
}

impl StoreOptions<'_> {
    /// So many bytes of the heap.
    #[must_use]
    pub fn of(budget: u64) -> Self {
        Self { budget, alloc: &AlignedBytes::zeroed }
    }
}

struct Shared {
    disk: Box<dyn Disk>,
    records: Vec<Record>,
    state: Mutex<State>,
    /// There may be something to read.
    work: Condvar,
    /// A read ended.
    ended: Condvar,
}

/// Experts on disk and the slots for them in memory. Dropping it waits for reads at work.
pub struct ExpertStore {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl ExpertStore {
    /// Takes memory for slots, reads some experts to find out how many reads at once are best, and returns with these in memory.
    /// Where less memory can be had than asked for, there are fewer slots.
    ///
    /// # Errors
    /// [`RuntimeError::Nvme`] if there is no memory for two experts, no thread can be had or the disk fails.
    pub fn open(plan: &Plan, disk: Box<dyn Disk>, options: StoreOptions<'_>) -> Result<Self, RuntimeError> {
        let slot = plan.slot() + PAGE;
        let wanted = usize::try_from(options.budget / slot as u64).unwrap_or(usize::MAX).min(plan.records.len());
        let least = LEAST_SLOTS.min(plan.records.len());
        let slots: Vec<AlignedBytes> = (0..wanted).map_while(|_| (options.alloc)(slot)).collect();
        if slots.len() < least {
            return Err(RuntimeError::Nvme(format!(
                "there is memory for {} of {least} experts at least, of {slot} bytes each; give a larger --ram-limit, use a \
                 shorter --context, or a pack of fewer bits",
                slots.len()
            )));
        }
        let state = State::new(plan.records.iter().map(|r| r.of.0).collect(), slots);
        let records = plan.records.clone();
        let (state, work, ended) = (Mutex::new(state), Condvar::new(), Condvar::new());
        let shared = Arc::new(Shared { disk, records, state, work, ended });
        let mut threads = Vec::new();
        for number in 0..DEPTHS.into_iter().max().unwrap_or(1) {
            let shared = Arc::clone(&shared);
            let thread = std::thread::Builder::new().name(format!("nvme-{number}")).spawn(move || shared.read());
            match thread {
                Ok(thread) => threads.push(thread),
                Err(error) if threads.is_empty() => {
                    return Err(RuntimeError::Nvme(format!("no thread can be had to read experts: {error}")));
                }
                Err(_) => break,
            }
        }
        let store = Self { shared, threads };
        store.measure();
        Ok(store)
    }

    /// Counters since the start.
    #[must_use]
    pub fn used(&self) -> NvmeUse {
        self.shared.lock().used
    }

    /// These records of one layer, ascending, will be used by an op later in this batch: for certain, or as far as can be
    /// guessed. Nothing depends on it but time.
    pub fn ahead(&self, records: &[u32], certain: bool) {
        let mut state = self.shared.lock();
        state.look_ahead(records, certain);
        self.shared.wake(&state);
    }

    /// The bytes of a record, if they are in memory now. While someone has them, their slot is not used for anything else.
    #[must_use]
    pub fn held(&self, record: u32) -> Option<Bytes> {
        self.shared.lock().held(record)
    }

    /// Fills slots with the experts that come first, a few at a time with more and more reads at once, and stays with the best. A read
    /// that fails here fails again when someone asks for it.
    fn measure(&self) {
        let mut order = spread(&self.shared.records).into_iter();
        let mut best: Option<(usize, f64)> = None;
        for depth in DEPTHS.into_iter().filter(|d| *d <= self.threads.len()) {
            let mut state = self.shared.lock();
            state.depth = depth;
            let (before, begin) = (state.used.bytes, Instant::now());
            let mut wanted = 0;
            while wanted < TRIED {
                let Some(record) = order.next() else { break };
                if !state.preload(record) {
                    break;
                }
                wanted += self.shared.records.get(record as usize).map_or(0, Record::bytes);
            }
            self.shared.wake(&state);
            drop(state);
            let state = self.shared.wait_idle();
            let rate = (state.used.bytes - before) as f64 / begin.elapsed().as_secs_f64();
            // A part that is too small measures nothing.
            if wanted < TRIED {
                break;
            }
            if best.is_none_or(|(_, other)| rate > BETTER * other) {
                best = Some((depth, rate));
            }
        }
        let mut state = self.shared.lock();
        let (depth, rate) = best.unwrap_or((4.min(self.threads.len()), 0.0));
        (state.depth, state.used.depth, state.used.rate) = (depth, depth, rate);
        state.used.warm_bytes = state.used.bytes;
    }
}

/// Records with the first experts of all layers first.
fn spread(records: &[Record]) -> Vec<u32> {
    let mut order: Vec<u32> = (0..records.len() as u32).collect();
    order.sort_by_key(|r| records.get(*r as usize).map(|record| (record.of.1, record.of.0)));
    order
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes as many threads as there is work for. A thread that ends a read looks for more by itself.
    fn wake(&self, state: &State) {
        (0..state.waiting().min(state.depth)).for_each(|_| self.work.notify_one());
    }

    fn wait_idle(&self) -> MutexGuard<'_, State> {
        let mut state = self.lock();
        while !state.is_idle() {
            state = self.ended.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state
    }

    /// What a thread does until the store ends.
    fn read(&self) {
        let mut state = self.lock();
        while !state.stop {
            let Some((record, mut buffer)) = state.next() else {
                state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            // What few records leave of the reads that the disk does best at once is used for parts of them.
            let parts = state.depth / (state.reading + state.waiting()).max(1);
            drop(state);
            let mut read = self.fetch(record, &mut buffer, parts);
            let again = read.is_err();
            if again {
                read = self.fetch(record, &mut buffer, 1);
            }
            state = self.lock();
            state.used.retries += u64::from(again);
            state.done(record, buffer, read);
            self.ended.notify_all();
        }
    }

    /// Reads a record to the first page of a buffer, up to so many parts of it at once; returns its length, or what messages say.
    fn fetch(&self, number: u32, buffer: &mut AlignedBytes, parts: usize) -> Result<usize, String> {
        let Some(record) = self.records.get(number as usize) else {
            return Err(format!("there is no record {number}"));
        };
        let mut at = first_page(buffer);
        let start = at;
        for extent in &record.extents {
            let told = |what: String| {
                let (layer, expert) = record.of;
                format!(
                    "{}: expert {expert} of layer {layer}: cannot read {} bytes at {}: {what}; check the disk, or download \
                     the file again",
                    self.disk.name(extent.file),
                    extent.needed,
                    extent.offset
                )
            };
            let out = buffer.get_mut(at..at + extent.len).ok_or_else(|| told("the slot is too small".into()))?;
            match read_parts(&*self.disk, extent, out, parts) {
                Ok(read) if read >= extent.needed => at += extent.len,
                Ok(read) => return Err(told(format!("only {read} came"))),
                Err(error) => return Err(told(error.to_string())),
            }
        }
        Ok(at - start)
    }
}

/// Reads an extent, up to so many parts of it at once, none of them small; the bytes that came before the first that did not.
fn read_parts(disk: &dyn Disk, extent: &Extent, out: &mut [u8], parts: usize) -> std::io::Result<usize> {
    let most = (extent.len / LEAST_PART).max(1);
    let each = extent.len.div_ceil(parts.clamp(1, most)).next_multiple_of(PAGE);
    let (first, rest) = out.split_at_mut(each.min(extent.len));
    let one = &|number: usize, out: &mut [u8]| disk.read(extent.file, extent.offset + (number * each) as u64, out);
    if rest.is_empty() {
        return one(0, first);
    }
    let read: Vec<std::io::Result<usize>> = std::thread::scope(|scope| {
        let spawn = |(i, part)| std::thread::Builder::new().spawn_scoped(scope, move || one(i + 1, part));
        let threads: Vec<_> = rest.chunks_mut(each).enumerate().map(spawn).collect();
        let ended = |_| Err(std::io::Error::other("a thread that read ended early"));
        let mut all = vec![one(0, first)];
        all.extend(threads.into_iter().map(|thread| thread.and_then(|t| t.join().unwrap_or_else(ended))));
        all
    });
    let mut came = 0;
    for part in read {
        let part = part?;
        came += part;
        if part < each {
            break;
        }
    }
    Ok(came)
}

impl Records for ExpertStore {
    fn begin(&self, used: &[(u32, usize)], rows: usize) -> Vec<Range<usize>> {
        let mut state = self.shared.lock();
        let windows = state.begin(used, rows);
        self.shared.wake(&state);
        windows
    }

    fn take(&self, window: usize) -> Result<Vec<Arrived>, BackendError> {
        let mut state = self.shared.lock();
        loop {
            let taken = state.take(window);
            self.shared.wake(&state);
            match taken {
                Ok(Some(arrived)) => return Ok(arrived),
                Ok(None) => {
                    let begin = Instant::now();
                    state = self.shared.ended.wait(state).unwrap_or_else(PoisonError::into_inner);
                    state.used.waited += begin.elapsed().as_secs_f64();
                }
                Err(what) => return Err(BackendError::Device { backend: "nvme", what }),
            }
        }
    }
}

impl Drop for ExpertStore {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.work.notify_all();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
