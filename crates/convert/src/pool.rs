//! Work on all cores: a shared cursor, so that jobs start in order and no thread idles while there is work.

use crate::error::ConvertError;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Calls `work` on every item, from `threads` threads, each with its own state. After the first failure no further
/// item is begun; of several failures that of the earliest item is returned.
pub(crate) fn for_each<T: Sync, S>(
    threads: usize,
    items: &[T],
    state: impl Fn() -> S + Sync,
    work: impl Fn(&mut S, &T) -> Result<(), ConvertError> + Sync,
) -> Result<(), ConvertError> {
    let (cursor, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    let run = || {
        let mut own = state();
        while !stop.load(Ordering::Relaxed) {
            let index = cursor.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(index) else { break };
            if let Err(e) = work(&mut own, item) {
                stop.store(true, Ordering::Relaxed);
                return Err((index, e));
            }
        }
        Ok(())
    };
    let results: Vec<_> = std::thread::scope(|scope| {
        let handles: Vec<_> = (0..threads.clamp(1, items.len().max(1))).map(|_| scope.spawn(run)).collect();
        handles.into_iter().map(|h| h.join().unwrap_or_else(|p| std::panic::resume_unwind(p))).collect()
    });
    let failed = results.into_iter().filter_map(Result::err).min_by_key(|(index, _)| *index);
    failed.map_or(Ok(()), |(_, e)| Err(e))
}

/// Threads to use when the user named none.
pub(crate) fn default_threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
