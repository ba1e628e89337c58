//! A layer on two devices that write down what they are asked, and fail when told to.

use super::cache::SlotCache;
use super::records::Record;
use super::{Shared, Slots};
use crate::placement::SlotPlan;
use ashlar_arch::{Activation, Routing};
use ashlar_backend::{
    ActivationMode, Backend, BackendError, Batch, BufferId, CacheId, CacheShape, ExpertSlots, ExpertWeights, Experts,
    Memory, MoeOptions, Observer, Op, Pair, Slotted, Support, Weight, WeightId,
};
use ashlar_formats::Spec;
use ashlar_tensor::{AlignedBytes, Bytes};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

const EXPERTS: usize = 6;
const TOP_K: usize = 2;

/// What both devices did.
#[derive(Default)]
struct Log {
    /// Where rows go next.
    chosen: Vec<(usize, f32)>,
    /// Pairs that somebody computed, in the mixture at work.
    done: Vec<usize>,
    /// Records by slot.
    slots: Vec<Option<u32>>,
    begun: bool,
    ended: usize,
    fail_fill: bool,
    fail_host: bool,
}

struct Fake(Arc<Mutex<Log>>);

fn broken() -> BackendError {
    BackendError::Device { backend: "fake", what: "broken".into() }
}

impl Backend for Fake {
    fn describe(&self) -> String {
        "fake".into()
    }
    fn support(&self, _: &Spec) -> Support {
        Support::Native
    }
    fn activations(&self, _: &Spec) -> ActivationMode {
        ActivationMode::F32
    }
    fn load(&mut self, _: Weight) -> Result<WeightId, BackendError> {
        Err(broken())
    }
    fn alloc(&mut self, _: usize, _: usize) -> Result<BufferId, BackendError> {
        Err(broken())
    }
    fn alloc_cache(&mut self, _: &CacheShape) -> Result<CacheId, BackendError> {
        Err(broken())
    }
    fn truncate(&mut self, _: usize, _: usize) {}
    fn memory(&self) -> Memory {
        Memory::default()
    }
    fn run(&mut self, _: &Op, _: &Batch, _: Option<&mut dyn Observer>) -> Result<(), BackendError> {
        Err(broken())
    }
    fn experts(&mut self, _: BufferId, _: Experts<'_>, pairs: &[Pair]) -> Result<Vec<f32>, BackendError> {
        if self.0.lock().unwrap().fail_host { Err(broken()) } else { Ok(vec![1.0; pairs.len()]) }
    }
    fn slots(&mut self) -> Option<&mut dyn ExpertSlots> {
        Some(self)
    }
    fn read(&mut self, _: BufferId) -> Result<Vec<f32>, BackendError> {
        Err(broken())
    }
    fn write(&mut self, _: BufferId, _: &[f32]) -> Result<(), BackendError> {
        Ok(())
    }
}

impl ExpertSlots for Fake {
    fn reserve(&mut self, count: usize, _: usize, _: usize) -> Result<(), BackendError> {
        self.0.lock().unwrap().slots = vec![None; count];
        Ok(())
    }
    fn release(&mut self, _: usize) -> Result<(), BackendError> {
        Ok(())
    }
    fn take_back(&mut self, _: usize) -> Result<bool, BackendError> {
        Ok(true)
    }
    fn describe(&mut self, _: Slotted) -> Result<WeightId, BackendError> {
        Err(broken())
    }
    fn fill(&mut self, slot: usize, record: u32, parts: &[(usize, Bytes)]) -> Result<(), BackendError> {
        let mut log = self.0.lock().unwrap();
        assert!(!parts.is_empty());
        log.slots[slot] = None;
        if log.fail_fill {
            return Err(broken());
        }
        log.slots[slot] = Some(record);
        Ok(())
    }
    fn settle(&mut self) -> Result<(), BackendError> {
        Ok(())
    }
    fn begin(&mut self, _: &Op, _: &Batch) -> Result<Vec<(usize, f32)>, BackendError> {
        let mut log = self.0.lock().unwrap();
        assert!(!log.begun, "a mixture inside a mixture");
        (log.begun, log.done) = (true, Vec::new());
        Ok(log.chosen.clone())
    }
    fn inputs(&mut self) -> Result<Vec<f32>, BackendError> {
        Ok(Vec::new())
    }
    fn compute(&mut self, experts: &[usize]) -> Result<(), BackendError> {
        let mut log = self.0.lock().unwrap();
        for expert in experts {
            assert!(log.slots.contains(&Some(*expert as u32)), "expert {expert} is in no slot");
            let own = (0..).zip(&log.chosen).filter(|(_, (e, _))| e == expert).map(|(pair, _)| pair);
            let own: Vec<usize> = own.collect();
            log.done.extend(own);
        }
        Ok(())
    }
    fn end(&mut self, pairs: &[usize], products: &[f32]) -> Result<(), BackendError> {
        let mut log = self.0.lock().unwrap();
        (log.begun, log.ended) = (false, log.ended + 1);
        assert_eq!(pairs.len(), products.len());
        log.done.extend(pairs);
        Ok(())
    }
}

fn layer() -> Shared {
    let id = WeightId(0);
    let experts: Arc<[ExpertWeights]> =
        vec![ExpertWeights { gate: id, up: id, down: id, biases: None }; EXPERTS].into();
    let op = Op::Moe {
        x: BufferId(0),
        router: id,
        routing: Routing { top_k: TOP_K, ..Routing::default() },
        options: MoeOptions::default(),
        experts: Arc::clone(&experts),
        activation: Activation::Silu,
        out: BufferId(1),
    };
    let (records, router) = ((0..EXPERTS as u32).collect(), "router".to_owned());
    let (x, activation, top_k) = ((BufferId(0), 1), Activation::Silu, TOP_K);
    Shared { device: 0, host: 1, op, x, experts, activation, top_k, records, router }
}

fn slots(count: usize) -> Slots {
    let record = |_| {
        let mut record = Record::default();
        record.add(&[AlignedBytes::zeroed(8).unwrap().into()]);
        record
    };
    let plan = SlotPlan { count, lent: 0, bytes: 8, experts: EXPERTS, uses: TOP_K };
    let cache = SlotCache::new(EXPERTS, count, 8);
    Slots { cache, records: (0..EXPERTS).map(record).collect(), plan, caches: 0, released: Vec::new() }
}

fn devices(log: &Arc<Mutex<Log>>, count: usize) -> Vec<Box<dyn Backend>> {
    let mut device = Fake(Arc::clone(log));
    device.reserve(count, 0, 8).unwrap();
    vec![Box::new(device), Box::new(Fake(Arc::clone(log)))]
}

#[test]
fn every_pair_is_computed_once_whoever_is_in_a_slot_and_long_prompts_stream() {
    for (count, from) in [(0, None), (2, None), (12, Some(13)), (12, Some(1)), (12, None)] {
        let log = Arc::new(Mutex::new(Log::default()));
        let (layer, mut slots, mut devices) = (layer(), slots(count), devices(&log, count));
        slots.cache.used.streams_from = from;
        let mut seed = 7u64;
        for step in 0..200 {
            let rows = if step % 9 == 0 { 12 } else { 1 };
            let mut pick = || {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (seed >> 33) as usize % EXPERTS
            };
            let row =
                |first: usize, second: usize| [(first, 0.5), ((first + 1 + second % (EXPERTS - 1)) % EXPERTS, 0.5)];
            log.lock().unwrap().chosen = (0..rows).flat_map(|_| row(pick(), pick())).collect();
            layer.run(&mut devices, &mut slots, &Batch::of(0, 0, &vec![0; rows]), None).unwrap();
            let log = log.lock().unwrap();
            let done: BTreeSet<usize> = log.done.iter().copied().collect();
            assert_eq!((log.done.len(), done.len()), (rows * TOP_K, rows * TOP_K));
            // What the cache believes is what the device holds, but for the slots that are streamed through.
            for record in 0..EXPERTS as u32 {
                let there = log.slots.iter().take(count - slots.cache.ring().len()).any(|r| *r == Some(record));
                assert_eq!(there, slots.cache.holds(record), "record {record}");
            }
        }
        let used = slots.cache.used;
        assert_eq!(used.hits + used.misses + used.prompt_hits + used.prompt_misses, (23 * 12 + 177) * 2);
        assert_eq!(used.streamed > 0, from == Some(1), "{used:?}");
    }
}

#[test]
fn a_copy_that_fails_fails_its_step_and_nobody_believes_the_slot() {
    let log = Arc::new(Mutex::new(Log { chosen: vec![(0, 0.5), (3, 0.5)], fail_fill: true, ..Log::default() }));
    let (layer, mut slots, mut devices) = (layer(), slots(4), devices(&log, 4));
    let batch = Batch::of(0, 0, &[0]);
    assert!(layer.run(&mut devices, &mut slots, &batch, None).is_err());
    assert!((0..EXPERTS as u32).all(|record| !slots.cache.holds(record)));
    log.lock().unwrap().fail_fill = false;
    for _ in 0..3 {
        layer.run(&mut devices, &mut slots, &batch, None).unwrap();
    }
    assert!(slots.cache.holds(0) && slots.cache.holds(3));
    // Of several that a prompt brings in, none that was to follow is believed either.
    *log.lock().unwrap() =
        Log { chosen: vec![(1, 0.5), (4, 0.5), (5, 0.5), (2, 0.5)], fail_fill: true, ..Log::default() };
    let (mut slots, mut devices) = (self::slots(4), self::devices(&log, 4));
    assert!(layer.run(&mut devices, &mut slots, &Batch::of(0, 0, &[0; 2]), None).is_err());
    assert!((0..EXPERTS as u32).all(|record| !slots.cache.holds(record)));
}

#[test]
fn a_host_that_fails_ends_the_mixture_and_the_next_one_begins_anew() {
    let log = Arc::new(Mutex::new(Log { chosen: vec![(0, 0.5), (3, 0.5)], fail_host: true, ..Log::default() }));
    let (layer, mut slots, mut devices) = (layer(), slots(0), devices(&log, 0));
    let batch = Batch::of(0, 0, &[0]);
    let error = layer.run(&mut devices, &mut slots, &batch, None).unwrap_err().to_string();
    assert!(error.contains("broken") && log.lock().unwrap().ended == 1, "{error}");
    log.lock().unwrap().fail_host = false;
    layer.run(&mut devices, &mut slots, &batch, None).unwrap();
    assert_eq!(slots.cache.used.misses, 2);
}
