//! [`Virtual`]: a device that is not there. It has a budget of its own and shares no activations with others, and computes
//! with the kernels of another backend: what is placed on it gives the same bits as that backend alone.
//!
//! Owns: the accounting of an accelerator, which reserves everything before the first token. Refuses: speed; it is as fast
//! as what it computes with.

mod slots;

use crate::{
    ActivationMode, Arena, Backend, BackendError, Batch, BufferId, CacheId, CacheShape, ExpertSlots, Memory, Observer,
    Op, Support, Weight, WeightId,
};
use ashlar_formats::Spec;
use slots::{Mixture, Store};
use std::ops::Range;
use std::sync::Arc;

/// A device with a budget, on the kernels of another.
pub struct Virtual {
    inner: Box<dyn Backend>,
    arena: Arena,
    store: Arc<Store>,
    mixture: Option<Mixture>,
}

impl Virtual {
    /// A device of `budget` bytes that computes as `inner` does, which must be fresh.
    #[must_use]
    pub fn new(inner: Box<dyn Backend>, budget: u64) -> Self {
        let (store, mixture) = (Arc::default(), None);
        Self { inner, arena: Arena::new("virtual device", budget), store, mixture }
    }
}

impl Backend for Virtual {
    fn describe(&self) -> String {
        format!("virtual device on {}", self.inner.describe())
    }

    fn support(&self, spec: &Spec) -> Support {
        self.inner.support(spec)
    }

    fn notes(&self) -> Vec<String> {
        self.inner.notes()
    }

    fn activations(&self, spec: &Spec) -> ActivationMode {
        self.inner.activations(spec)
    }

    fn load(&mut self, weight: Weight) -> Result<WeightId, BackendError> {
        self.arena.weight(&weight)?;
        self.inner.load(weight)
    }

    fn alloc(&mut self, rows: usize, width: usize) -> Result<BufferId, BackendError> {
        self.arena.buffer(rows, width)?;
        self.inner.alloc(rows, width)
    }

    fn alloc_cache(&mut self, shape: &CacheShape) -> Result<CacheId, BackendError> {
        self.arena.cache(shape)?;
        self.inner.alloc_cache(shape)
    }

    fn truncate(&mut self, slot: usize, positions: usize) {
        self.inner.truncate(slot, positions);
    }

    fn saved_as(&self) -> Option<String> {
        self.inner.saved_as()
    }

    fn save(
        &mut self,
        cache: CacheId,
        slot: usize,
        range: Range<usize>,
        out: &mut Vec<u8>,
    ) -> Result<bool, BackendError> {
        self.inner.save(cache, slot, range, out)
    }

    fn restore(&mut self, cache: CacheId, slot: usize, range: Range<usize>, bytes: &[u8]) -> Result<(), BackendError> {
        self.inner.restore(cache, slot, range, bytes)
    }

    fn memory(&self) -> Memory {
        self.inner.memory()
    }

    fn arena(&self) -> Option<&Arena> {
        Some(&self.arena)
    }

    fn run(&mut self, op: &Op, batch: &Batch, observer: Option<&mut dyn Observer>) -> Result<(), BackendError> {
        self.inner.run(op, batch, observer)
    }

    fn likely(&mut self, moe: &Op, like: Option<BufferId>, batch: &Batch) -> Result<Vec<usize>, BackendError> {
        self.inner.likely(moe, like, batch)
    }

    fn slots(&mut self) -> Option<&mut dyn ExpertSlots> {
        // Weights that come and go reach the kernels as streamed ones do.
        if self.inner.streams() { Some(self) } else { None }
    }

    fn read(&mut self, buffer: BufferId) -> Result<Vec<f32>, BackendError> {
        self.inner.read(buffer)
    }

    fn write(&mut self, buffer: BufferId, values: &[f32]) -> Result<(), BackendError> {
        self.inner.write(buffer, values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::{self, Tolerances};
    use crate::{KvFormat, KvHeads, Reference, Stored};

    fn device(budget: u64) -> Virtual {
        Virtual::new(Box::<Reference>::default(), budget)
    }

    #[test]
    fn it_computes_what_its_kernels_compute() {
        let report = conformance::run(&mut || Box::new(device(1 << 30)), &Tolerances { relative: 0.0 });
        assert!(report.ran() > 100 && report.failures().is_empty(), "{report}");
    }

    #[test]
    fn everything_is_reserved_before_the_first_token() {
        let mut b = device(10_000);
        let heads = KvHeads { count: 1, dim: 16, values_in_keys: false, window: None, native: None };
        let stored = Stored::Heads(heads, KvFormat::F16);
        b.alloc(4, 16).unwrap();
        b.alloc_cache(&CacheShape { sequences: 2, capacity: 64, rows: 4, stored }).unwrap();
        let reserved = b.arena().unwrap().reserved();
        assert_eq!((reserved.activations, reserved.caches), (256, 2 * 64 * 2 * 16 * 2));
        let error = b.alloc_cache(&CacheShape { sequences: 1, capacity: 65, rows: 4, stored }).unwrap_err().to_string();
        assert!(
            error.starts_with("virtual device: a cache of 1 sequences of 65 positions needs 8192 bytes"),
            "{error}"
        );
        assert_eq!(b.arena().unwrap().reserved(), reserved);
    }
}
