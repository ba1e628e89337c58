//! Loading: the operands of a program from a store onto a device.

use crate::RuntimeError;
use crate::program::Resources;
use ashlar_arch::Leaf;
use ashlar_backend::{Backend, BufferId, CacheId, Support, Weight, WeightId};
use ashlar_formats::Spec;
use ashlar_tensor::{Report, TensorStore};
use std::collections::BTreeMap;

/// Loads weights as a program asks for them.
pub struct Loader<'a> {
    store: &'a dyn TensorStore,
    backend: &'a mut dyn Backend,
    report: &'a dyn Report,
    sequences: usize,
    context: usize,
    rows: usize,
    /// Formats that the device decodes: how, and how many tensors.
    fallbacks: BTreeMap<String, (String, usize)>,
}

impl<'a> Loader<'a> {
    /// `sizes`: sequences, positions per sequence, rows per batch.
    pub fn new(
        store: &'a dyn TensorStore,
        backend: &'a mut dyn Backend,
        report: &'a dyn Report,
        [sequences, context, rows]: [usize; 3],
    ) -> Self {
        Self { store, backend, report, sequences, context, rows, fallbacks: BTreeMap::new() }
    }

    /// Notes every format that runs through decoding instead of a kernel of its own.
    pub fn tell_fallbacks(&self) {
        for (format, (how, tensors)) in &self.fallbacks {
            self.report.note(&format!("{tensors} tensors of format {format}: no kernel of their own here, {how}"));
        }
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
        let spec: Spec = entry.format.parse().map_err(|source| RuntimeError::Weight {
            file: entry.file.clone(),
            tensor: leaf.name.clone(),
            format: entry.format.clone(),
            source,
        })?;
        match self.backend.support(&spec) {
            Support::Native => {}
            Support::ViaDecode(how) => {
                self.fallbacks.entry(entry.format.clone()).or_insert((how, 0)).1 += 1;
            }
            Support::Unsupported(why) => {
                let device = self.backend.describe();
                return Err(RuntimeError::Unsupported {
                    tensor: leaf.name.clone(),
                    format: entry.format.clone(),
                    device,
                    why,
                });
            }
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
}
