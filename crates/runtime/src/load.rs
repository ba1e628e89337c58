//! Loading: the operands of a program from a store onto a device.

use crate::caches::{Caches, Kv};
use crate::program::{Pooled, Resources};
use crate::{Residency, RuntimeError};
use ashlar_arch::Leaf;
use ashlar_backend::{Backend, BufferId, CacheId, CacheShape, KvHeads, Stored, Support, Weight, WeightId};
use ashlar_formats::Spec;
use ashlar_tensor::{Bytes, Report, TensorStore};

/// Loads weights as a program asks for them.
pub struct Loader<'a> {
    store: &'a dyn TensorStore,
    backend: &'a mut dyn Backend,
    report: &'a dyn Report,
    rows: usize,
    caches: Caches,
    residency: Residency,
    mapped: Vec<Bytes>,
}

impl<'a> Loader<'a> {
    /// `sizes`: sequences, positions per sequence, rows per batch.
    pub fn new(
        store: &'a dyn TensorStore,
        backend: &'a mut dyn Backend,
        report: &'a dyn Report,
        [sequences, context, rows]: [usize; 3],
    ) -> Self {
        let residency = Residency::OnDemand { free: 0 };
        Self { store, backend, report, rows, caches: Caches::new(sequences, context), residency, mapped: Vec::new() }
    }

    /// Asks for huge pages under weights that are to stay in memory, and remembers them.
    #[must_use]
    pub fn residency(self, residency: Residency) -> Self {
        Self { residency, ..self }
    }

    /// Takes the mapped weights that are to stay in memory, in the order of their use.
    pub fn take_mapped(&mut self) -> Vec<Bytes> {
        std::mem::take(&mut self.mapped)
    }

    /// Stores keys and values so.
    #[must_use]
    pub fn kv(self, kv: Kv) -> Self {
        Self { caches: self.caches.kv(kv), ..self }
    }

    /// The caches that were asked for.
    #[must_use]
    pub fn caches(&self) -> &[CacheShape] {
        self.caches.shapes()
    }

    fn alloc(&mut self, stored: Stored) -> Result<CacheId, RuntimeError> {
        let shape = self.caches.add(stored);
        Ok(self.backend.alloc_cache(&shape)?)
    }
}

impl Resources for Loader<'_> {
    type Error = RuntimeError;

    fn weight(&mut self, leaf: &Leaf) -> Result<WeightId, RuntimeError> {
        let entry = self.store.entry(&leaf.name).ok_or_else(|| RuntimeError::Missing(leaf.name.clone()))?;
        let (n, k) = match *leaf.shape.as_slice() {
            [n, k] => (n, k),
            [k] => (1, k),
            _ => (0, 0),
        };
        let spec: Spec = entry.format.parse().map_err(|e| RuntimeError::Weight {
            file: entry.file.clone(),
            tensor: leaf.name.clone(),
            format: entry.format.clone(),
            source: Box::new(e),
        })?;
        if let Support::Unsupported(why) = self.backend.support(&spec) {
            let (tensor, format) = (leaf.name.clone(), entry.format.clone());
            return Err(RuntimeError::Unsupported { tensor, format, device: self.backend.describe(), why });
        }
        let planes = (0..entry.planes.len()).map(|p| self.store.map(entry, p)).collect::<Result<Vec<_>, _>>()?;
        if self.residency == Residency::Kept {
            let mapped = planes.iter().filter(|plane| plane.is_mapped());
            mapped.clone().for_each(Bytes::prefer_huge_pages);
            self.mapped.extend(mapped.cloned());
        }
        let id = self.backend.load(Weight { name: leaf.name.clone(), spec, order: entry.order, n, k, planes })?;
        self.report.advance(entry.bytes(), &leaf.name);
        Ok(id)
    }

    fn buffer(&mut self, width: usize) -> Result<BufferId, RuntimeError> {
        Ok(self.backend.alloc(self.rows, width)?)
    }

    fn cache(&mut self, heads: KvHeads) -> Result<CacheId, RuntimeError> {
        self.alloc(self.caches.heads(heads))
    }

    fn tokens(&mut self, pooled: Pooled) -> Result<CacheId, RuntimeError> {
        self.alloc(Caches::tokens(pooled))
    }

    fn entries(&mut self, pooled: Pooled) -> Result<CacheId, RuntimeError> {
        self.alloc(self.caches.entries(pooled))
    }
}
