//! Work on all cores: a shared cursor, so that jobs start in order and no thread idles while there is work.

use crate::error::ConvertError;
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::Builder;

/// Calls `work` on every item, from at most `threads` threads, each with its own state. After the first failure no
/// further item is begun; of several failures that of the earliest item is returned. A panic is a failure.
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
            // The state is dropped after a panic, and nothing else is shared but what locks guard.
            let done = catch_unwind(AssertUnwindSafe(|| work(&mut own, item)));
            if let Err(e) = done.unwrap_or_else(|p| Err(panicked(&*p))) {
                stop.store(true, Ordering::Relaxed);
                return Err((index, e));
            }
        }
        Ok(())
    };
    let results: Vec<_> = std::thread::scope(|scope| {
        let others = 1..threads.clamp(1, items.len().max(1));
        // The calling thread works as well: where no others can be had, it is enough.
        let handles: Vec<_> = others.map_while(|_| Builder::new().spawn_scoped(scope, run).ok()).collect();
        let own = run();
        let joined = handles.into_iter().map(|h| h.join().unwrap_or_else(|p| Err((usize::MAX, panicked(&*p)))));
        joined.chain([own]).collect()
    });
    let failed = results.into_iter().filter_map(Result::err).min_by_key(|(index, _)| *index);
    failed.map_or(Ok(()), |(_, e)| Err(e))
}

/// A thread's last words as an error.
pub(crate) fn panicked(payload: &(dyn Any + Send)) -> ConvertError {
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    ConvertError::Panic { what: format!("a thread failed: {}", text.unwrap_or("it did not say why")) }
}

/// Threads to use when the user named none.
pub(crate) fn default_threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_is_done_once_whatever_the_number_of_threads() {
        let items: Vec<usize> = (0..500).collect();
        for threads in [0, 1, 3, 1000, usize::MAX] {
            let done: Vec<AtomicUsize> = items.iter().map(|_| AtomicUsize::new(0)).collect();
            let count = |(): &mut (), i: &usize| {
                done[*i].fetch_add(1, Ordering::SeqCst);
                Ok(())
            };
            for_each(threads, &items, || (), count).unwrap();
            assert!(done.iter().all(|d| d.load(Ordering::SeqCst) == 1));
        }
    }

    #[test]
    fn a_panic_is_an_error_and_the_earliest_of_several_failures_is_told() {
        let items: Vec<usize> = (0..100).collect();
        for threads in [1, 4] {
            let began = AtomicUsize::new(0);
            let fail = |(): &mut (), i: &usize| {
                began.fetch_add(1, Ordering::SeqCst);
                match i {
                    2 => panic!("at {i}"),
                    3.. => Err(ConvertError::Arch("later".into())),
                    _ => Ok(()),
                }
            };
            let error = for_each(threads, &items, || (), fail).unwrap_err().to_string();
            assert!(error.contains("at 2") && error.contains("report"), "{error}");
            assert!(began.load(Ordering::SeqCst) <= 3 + threads);
        }
    }
}
