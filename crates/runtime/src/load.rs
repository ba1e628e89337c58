//! Loading: the operands of a program from a store onto a device.

use crate::RuntimeError;
use crate::program::Resources;
use ashlar_arch::Leaf;
use ashlar_backend::{Backend, BufferId, CacheId, Support, Weight, WeightId};
use ashlar_formats::Spec;
use ashlar_tensor::{Report, TensorStore};

/// Loads weights as a program asks for them.
pub struct Loader<'a> {
    store: &'a dyn TensorStore,
    backend: &'a mut dyn Backend,
    report: &'a dyn Report,
    sequences: usize,
    context: usize,
    rows: usize,
}

impl<'a> Loader<'a> {
    /// `sizes`: sequences, positions per sequence, rows per batch.
    pub fn new(
        store: &'a dyn TensorStore,
        backend: &'a mut dyn Backend,
        report: &'a dyn Report,
        [sequences, context, rows]: [usize; 3],
    ) -> Self {
        Self { store, backend, report, sequences, context, rows }
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
        let planes = (0..entry.planes.len()).map(|p| self.store.map(entry, p)).collect::<Result<_, _>>()?;
        let id = self.backend.load(Weight { name: leaf.name.clone(), spec, order: entry.order, n, k, planes })?;
        self.report.advance(entry.bytes(), &leaf.name);
        Ok(id)
    }

    fn buffer(&mut self, width: usize) -> Result<BufferId, RuntimeError> {
        Ok(self.backend.alloc(self.rows, width)?)
    }

    fn cache(&mut self, kv_width: usize) -> Result<CacheId, RuntimeError> {
        Ok(self.backend.alloc_cache(self.sequences, self.context, kv_width)?)
    }

    fn entries(&mut self, width: usize, ratio: usize) -> Result<CacheId, RuntimeError> {
        Ok(self.backend.alloc_cache(self.sequences, self.context / ratio.max(1), width)?)
    }
}
