//! Text from disk is text from memory; faults end a step, and never change it.

use super::disk::{Disk, Files};
use super::records::{Extent, Plan, Record};
use super::state::State;
use super::store::{ExpertStore, StoreOptions};
use ashlar_backend::Records;
use ashlar_pack::PAGE;
use ashlar_tensor::AlignedBytes;
use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// Pages whose bytes tell where they are; what happens to reads is up to a test.
struct Fake {
    fault: Fault,
    reads: Arc<AtomicUsize>,
}

#[derive(Clone, Copy, PartialEq)]
enum Fault {
    None,
    /// Of records whose number is odd, every read.
    Error,
    /// The first of every two reads.
    EveryOther,
    Short,
    Slow,
}

fn byte(offset: u64) -> u8 {
    (offset / PAGE as u64 * 7 + 3) as u8
}

impl Disk for Fake {
    fn read(&self, _file: usize, offset: u64, out: &mut [u8]) -> io::Result<usize> {
        assert!(offset.is_multiple_of(PAGE as u64) && out.len().is_multiple_of(PAGE));
        assert_eq!(out.as_ptr().align_offset(PAGE), 0);
        let number = self.reads.fetch_add(1, Ordering::SeqCst);
        for (i, page) in out.chunks_mut(PAGE).enumerate() {
            page.fill(byte(offset + (i * PAGE) as u64));
        }
        let odd = offset / (2 * PAGE as u64) % 2 == 1;
        match self.fault {
            Fault::Error if odd => Err(io::Error::from_raw_os_error(5)),
            Fault::EveryOther if number.is_multiple_of(2) => Err(io::Error::from_raw_os_error(5)),
            Fault::Short if odd => Ok(out.len() - PAGE),
            Fault::Slow => {
                std::thread::sleep(Duration::from_millis(2));
                Ok(out.len())
            }
            _ => Ok(out.len()),
        }
    }

    fn name(&self, _file: usize) -> String {
        "fake".into()
    }
}

/// `layers` × `experts` records of two pages.
fn plan(layers: usize, experts: usize) -> Plan {
    let record = |n: usize| Record {
        of: (n / experts, n % experts),
        extents: vec![Extent { file: 0, offset: (n * 2 * PAGE) as u64, len: 2 * PAGE, needed: 2 * PAGE - 100 }],
    };
    Plan { records: (0..layers * experts).map(record).collect(), ..Plan::default() }
}

fn store(plan: &Plan, fault: Fault, slots: usize) -> (ExpertStore, Arc<AtomicUsize>) {
    let reads = Arc::new(AtomicUsize::new(0));
    let disk = Fake { fault, reads: Arc::clone(&reads) };
    let budget = (slots * 3 * PAGE) as u64;
    (ExpertStore::open(plan, Box::new(disk), StoreOptions::of(budget)).unwrap(), reads)
}

/// Takes what an op uses and checks every byte; the numbers that came.
fn run(store: &ExpertStore, used: &[u32]) -> Result<Vec<u32>, String> {
    let wanted: Vec<(u32, usize)> = used.iter().map(|r| (*r, 1)).collect();
    let windows = store.begin(&wanted, 1);
    assert_eq!(windows.iter().flat_map(Clone::clone).collect::<Vec<_>>(), (0..used.len()).collect::<Vec<_>>());
    let mut all = Vec::new();
    for (number, window) in windows.iter().enumerate() {
        // Held until the window is done, as an op does.
        let mut held = Vec::new();
        loop {
            let arrived = store.take(number).map_err(|e| e.to_string())?;
            if arrived.is_empty() {
                break;
            }
            held.extend(arrived);
        }
        let numbers: BTreeSet<u32> = held.iter().map(|(record, _)| *record).collect();
        assert_eq!(numbers, used[window.clone()].iter().copied().collect());
        for (record, bytes) in &held {
            let first = u64::from(*record) * 2 * PAGE as u64;
            assert!(bytes[..PAGE].iter().all(|b| *b == byte(first)), "record {record}");
            assert!(bytes[PAGE..2 * PAGE].iter().all(|b| *b == byte(first + PAGE as u64)), "record {record}");
        }
        all.extend(numbers);
    }
    Ok(all)
}

/// Seeded.
fn random(seed: &mut u64, below: usize) -> usize {
    *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*seed >> 33) as usize % below
}

#[test]
fn whatever_the_slots_an_op_gets_each_of_its_records_once_with_the_right_bytes() {
    let plan = plan(3, 16);
    for slots in [2, 3, 7, 16, 48, 100] {
        let (store, _) = store(&plan, Fault::None, slots);
        let mut seed = slots as u64;
        for _ in 0..40 {
            for layer in 0..3 {
                let count = 1 + random(&mut seed, 16);
                let used: BTreeSet<u32> = (0..count).map(|_| (layer * 16 + random(&mut seed, 16)) as u32).collect();
                let used: Vec<u32> = used.into_iter().collect();
                assert_eq!(run(&store, &used).unwrap(), used, "{slots} slots");
            }
        }
        let counted = store.used();
        assert_eq!(counted.slots, slots.min(48));
        assert!(counted.bytes >= counted.misses * 2 * PAGE as u64);
        if slots >= 48 {
            assert_eq!((counted.evictions, counted.bytes), (0, 48 * 2 * PAGE as u64));
        } else {
            // Fewer than an op uses never hold what the next one wants.
            assert!(counted.evictions > 0 && (counted.hits > 0 || slots < 16), "{counted:?}");
        }
    }
}

#[test]
fn a_read_that_fails_once_is_tried_again_and_one_that_fails_twice_names_file_and_expert() {
    let plan = plan(2, 8);
    let (once, _) = store(&plan, Fault::EveryOther, 4);
    // One thread at a time: the second try of a read follows its first.
    assert!(once.used().retries > 0);
    let (broken, _) = store(&plan, Fault::Error, 4);
    assert_eq!(run(&broken, &[0, 2, 4]).unwrap(), [0, 2, 4]);
    for used in [&[1][..], &[0, 3, 6], &[0, 2, 4, 5, 6, 7]] {
        let error = run(&broken, used).unwrap_err();
        assert!(error.contains("fake: expert ") && error.contains("os error 5"), "{error}");
        assert!(error.contains("check the disk"), "{error}");
    }
    // What failed is no longer taken to be there, and the others still are right.
    assert!(run(&broken, &[1]).is_err());
    assert_eq!(run(&broken, &[6, 8, 10, 12, 14]).unwrap(), [6, 8, 10, 12, 14]);
}

#[test]
fn a_short_read_is_no_record_and_a_slow_disk_only_takes_longer() {
    let plan = plan(2, 8);
    let (short, _) = store(&plan, Fault::Short, 4);
    let error = run(&short, &[0, 1]).unwrap_err();
    assert!(error.contains("expert 1 of layer 0") && error.contains("only 4096 came"), "{error}");
    let (slow, _) = store(&plan, Fault::Slow, 3);
    let all: Vec<u32> = (0..8).collect();
    assert_eq!(run(&slow, &all).unwrap(), all);
    assert!(slow.used().waited > 0.0);
}

/// Records of 3 MiB, which are read in parts when nothing else is.
#[test]
fn a_large_record_is_read_in_parts_at_once_and_one_part_that_fails_or_is_short_fails_it() {
    let pages = 3 * (1 << 20) / PAGE;
    let record = |n: usize| Record {
        of: (0, n),
        extents: vec![Extent {
            file: 0,
            offset: (n * pages * PAGE) as u64,
            len: pages * PAGE,
            needed: pages * PAGE - 7,
        }],
    };
    let plan = Plan { records: (0..40).map(record).collect(), ..Plan::default() };
    for (fault, fails) in [(Fault::None, false), (Fault::EveryOther, true), (Fault::Short, true)] {
        let reads = Arc::new(AtomicUsize::new(0));
        let disk = Fake { fault, reads: Arc::clone(&reads) };
        let budget = 3 * (plan.slot() + PAGE) as u64;
        let store = ExpertStore::open(&plan, Box::new(disk), StoreOptions::of(budget)).unwrap();
        let before = reads.load(Ordering::SeqCst);
        for wanted in [20, 31] {
            store.begin(&[(wanted, 1)], 1);
            match store.take(0) {
                Ok(arrived) => {
                    let (record, bytes) = &arrived[0];
                    assert_eq!((*record, bytes.len()), (wanted, pages * PAGE));
                    let first = u64::from(wanted) * (pages * PAGE) as u64;
                    let right = |(i, page): (usize, &[u8])| page.iter().all(|b| *b == byte(first + (i * PAGE) as u64));
                    assert!(bytes.chunks(PAGE).enumerate().all(right), "record {record}");
                }
                Err(error) => assert!(fails, "{error}"),
            }
        }
        let parts = reads.load(Ordering::SeqCst) - before;
        assert!(fault != Fault::None || parts > 2, "{parts} reads of two records");
    }
}

#[test]
fn memory_that_cannot_be_had_means_fewer_slots_and_none_for_two_experts_an_error() {
    let plan = plan(2, 8);
    let disk = || Box::new(Fake { fault: Fault::None, reads: Arc::default() });
    let granted = |count: usize| {
        let left = AtomicUsize::new(count);
        move |len| {
            let some = left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok();
            some.then(|| AlignedBytes::zeroed(len)).flatten()
        }
    };
    let five = granted(5);
    let store = ExpertStore::open(&plan, disk(), StoreOptions { budget: 1 << 30, alloc: &five }).unwrap();
    assert_eq!(store.used().slots, 5);
    let all: Vec<u32> = (0..8).collect();
    assert_eq!(run(&store, &all).unwrap(), all);
    let one = granted(1);
    let error = ExpertStore::open(&plan, disk(), StoreOptions { budget: 1 << 30, alloc: &one }).err().unwrap();
    assert!(error.to_string().contains("memory for 1 of 2 experts"), "{error}");
    let error = ExpertStore::open(&plan, disk(), StoreOptions::of(100)).err().unwrap();
    assert!(error.to_string().contains("--ram-limit"), "{error}");
}

#[test]
fn an_op_that_was_given_up_leaves_nothing_behind_that_the_next_one_stumbles_over() {
    let plan = plan(1, 16);
    let (store, reads) = store(&plan, Fault::Slow, 4);
    let all: Vec<(u32, usize)> = (0..16).map(|r| (r, 1)).collect();
    for _ in 0..10 {
        store.begin(&all, 1);
        let some = store.take(0).unwrap();
        assert!(!some.is_empty());
        drop(some);
    }
    assert_eq!(run(&store, &[3, 9, 15]).unwrap(), [3, 9, 15]);
    assert!(reads.load(Ordering::SeqCst) > 0);
}

#[test]
fn what_is_read_ahead_is_there_when_its_layer_comes_and_vain_reads_are_counted() {
    // What is read at the start, the first experts of every layer, is not what is used.
    let plan = plan(3, 64);
    let (store, _) = store(&plan, Fault::None, 12);
    for _ in 0..50 {
        assert_eq!(run(&store, &[10, 11]).unwrap(), [10, 11]);
        store.ahead(&[74, 75], false);
        store.ahead(&[138, 139], true);
        assert_eq!(run(&store, &[74, 75]).unwrap(), [74, 75]);
        assert_eq!(run(&store, &[138, 140]).unwrap(), [138, 140]);
    }
    let ahead = store.used().ahead;
    assert_eq!((ahead.uses, ahead.named), (100, 100));
    assert!(ahead.wasted > 0 && ahead.certain > 0 && ahead.useful > 0, "{ahead:?}");
    assert!(ahead.covered <= ahead.absent);
}

/// Every order of reads that ends, ops that take and ops that stop half way.
#[test]
fn no_order_of_events_loses_a_buffer_or_puts_a_record_in_two() {
    for seed in 0..60 {
        let mut seed = seed;
        let slots = 2 + random(&mut seed, 9);
        let buffers = (0..slots).map(|_| AlignedBytes::zeroed(3 * PAGE).unwrap()).collect();
        let mut state = State::new((0..24).map(|r| r / 8).collect(), buffers);
        state.depth = 1 + random(&mut seed, 4);
        let mut reading = Vec::new();
        let mut held = Vec::new();
        for _ in 0..60 {
            let layer = random(&mut seed, 3) as u32;
            let used: BTreeSet<u32> = (0..8).map(|_| layer * 8 + random(&mut seed, 8) as u32).collect();
            let used: Vec<(u32, usize)> = used.into_iter().map(|r| (r, 1)).collect();
            if random(&mut seed, 2) == 0 {
                let guess: BTreeSet<u32> = (0..4).map(|_| layer * 8 + random(&mut seed, 8) as u32).collect();
                state.look_ahead(&guess.into_iter().collect::<Vec<_>>(), random(&mut seed, 3) == 0);
                state.check();
                if let Some(next) = state.next() {
                    reading.push(next);
                }
            }
            let windows = state.begin(&used, 1);
            state.check();
            'op: for window in 0..windows.len() {
                held.clear();
                loop {
                    reading.extend(std::iter::from_fn(|| state.next()));
                    state.check();
                    match state.take(window) {
                        Ok(Some(arrived)) if arrived.is_empty() => break,
                        Ok(Some(arrived)) => held.extend(arrived),
                        Ok(None) => {}
                        Err(_) => break 'op,
                    }
                    if !reading.is_empty() {
                        let (record, buffer) = reading.swap_remove(random(&mut seed, reading.len()));
                        let read = if random(&mut seed, 20) == 0 { Err("fails".into()) } else { Ok(2 * PAGE) };
                        state.done(record, buffer, read);
                        state.check();
                    }
                }
                if random(&mut seed, 10) == 0 {
                    break;
                }
            }
            held.clear();
        }
    }
}

#[test]
fn files_of_a_folder_are_read_as_they_are_and_missing_ones_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f");
    std::fs::write(&path, (0..PAGE + 5).map(|i| byte(i as u64)).collect::<Vec<_>>()).unwrap();
    let files = Files::open(std::slice::from_ref(&path)).unwrap();
    let mut heap = AlignedBytes::zeroed(4 * PAGE).unwrap();
    let start = super::state::first_page(&heap);
    let out = &mut heap[start..start + 2 * PAGE];
    assert_eq!(files.read(0, 0, out).unwrap(), PAGE + 5);
    assert!(out[PAGE..PAGE + 5].iter().all(|b| *b == byte(PAGE as u64)));
    assert!(files.read(1, 0, out).is_err() && files.name(0).ends_with('f'));
    let (missing, _) = Files::open(&[dir.path().join("none")]).err().unwrap();
    assert!(missing.ends_with("none"));
}
