//! Work that is split among threads without changing a bit of it: every chunk is done by one thread, in one way.

use std::sync::{Mutex, PoisonError};
use std::thread::Builder;

/// Below so many operations a thread costs more than it brings.
const WORTH_A_THREAD: usize = 1 << 21;

/// Calls `body` with every chunk of `len` values of `data` and its number, from at most `threads` threads. `operations`
/// says how much work all of it is.
pub fn chunks<T: Send>(
    threads: usize,
    operations: usize,
    data: &mut [T],
    len: usize,
    body: impl Fn(usize, &mut [T]) + Sync,
) {
    let threads = threads.min(operations / WORTH_A_THREAD + 1).min(data.len().div_ceil(len.max(1)));
    let queue = Mutex::new(data.chunks_mut(len.max(1)).enumerate());
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
    let work = || {
        while let Some((i, chunk)) = next() {
            body(i, chunk);
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads {
            // Where no thread is to be had, the others do its work.
            drop(Builder::new().spawn_scoped(scope, work));
        }
        work();
    });
}
