//! Loading: the operands of a program from a store onto a device.

use crate::RuntimeError;
use crate::caches::Caches;
use crate::program::{Pooled, Resources, Sizes};
use crate::vram::{OnDisk, Record};
use ashlar_arch::Leaf;
use ashlar_backend::{
    Backend, BufferId, CacheId, CacheShape, KvFormat, KvHeads, Records, Slotted, Stored, Streamed, Support, Weight,
    WeightId,
};
use ashlar_formats::Spec;
use ashlar_tensor::{Bytes, Entry, Report, TensorStore};
use std::ops::Range;
use std::sync::Arc;

/// Loads weights as a program asks for them.
pub struct Loader<'a> {
    store: &'a dyn TensorStore,
    backend: &'a mut dyn Backend,
    report: &'a dyn Report,
    rows: usize,
    caches: Caches,
}

impl<'a> Loader<'a> {
    /// `sizes`: sequences, positions per sequence, rows per batch.
    pub fn new(
        store: &'a dyn TensorStore,
        backend: &'a mut dyn Backend,
        report: &'a dyn Report,
        [sequences, context, rows]: [usize; 3],
    ) -> Self {
        let sizes = Sizes { sequences, context, rows, kv: KvFormat::F32.into() };
        Self { store, backend, report, rows, caches: Caches::new(sizes) }
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
        load_weight(self.store, self.backend, leaf, self.report, None)
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

/// Brings one weight onto a device. With `kept`, it is to stay in memory: huge pages are asked for, and its mapped planes are
/// added there.
///
/// # Errors
/// [`RuntimeError`] if it is missing, of a format that the device cannot run, or too large.
pub(crate) fn load_weight(
    store: &dyn TensorStore,
    backend: &mut dyn Backend,
    leaf: &Leaf,
    report: &dyn Report,
    kept: Option<&mut Vec<Bytes>>,
) -> Result<WeightId, RuntimeError> {
    load_planes(store, backend, leaf, report, planes(store, leaf)?, kept)
}

/// The planes of a weight.
///
/// # Errors
/// [`RuntimeError`] if it is missing or cannot be read.
pub(crate) fn planes(store: &dyn TensorStore, leaf: &Leaf) -> Result<Vec<Bytes>, RuntimeError> {
    let entry = store.entry(&leaf.name).ok_or_else(|| RuntimeError::Missing(leaf.name.clone()))?;
    Ok((0..entry.planes.len()).map(|p| store.map(entry, p)).collect::<Result<_, _>>()?)
}

/// As [`load_weight`], of planes that are known.
///
/// # Errors
/// As [`load_weight`].
pub(crate) fn load_planes(
    store: &dyn TensorStore,
    backend: &mut dyn Backend,
    leaf: &Leaf,
    report: &dyn Report,
    planes: Vec<Bytes>,
    kept: Option<&mut Vec<Bytes>>,
) -> Result<WeightId, RuntimeError> {
    let (entry, weight) = described(store, backend, leaf)?;
    let weight = Weight { planes, ..weight };
    if let Some(kept) = kept {
        let mapped = weight.planes.iter().filter(|plane| plane.is_mapped());
        mapped.clone().for_each(Bytes::prefer_huge_pages);
        kept.extend(mapped.cloned());
    }
    let id = backend.load(weight)?;
    report.advance(entry.bytes(), &leaf.name);
    Ok(id)
}

/// Where a matrix lies that is copied into slots.
pub(crate) enum SlotSource<'a> {
    /// In the host's memory: its planes.
    Memory(&'a [Bytes]),
    /// On disk.
    Disk(OnDisk<'a>),
}

/// The values of a tensor, on the host.
///
/// # Errors
/// [`RuntimeError`] if it is missing, or cannot be decoded.
pub(crate) fn values(store: &dyn TensorStore, leaf: &Leaf) -> Result<Vec<f32>, RuntimeError> {
    let (_, mut weight) = described(store, &ashlar_backend::Reference::default(), leaf)?;
    weight.planes = planes(store, leaf)?;
    let mut values = vec![0.0; weight.n * weight.k];
    weight.decode(0..weight.n, &mut values)?;
    Ok(values)
}

/// Tells an accelerator of a matrix of an expert that takes turns in its slots, and adds it to the expert's record.
///
/// # Errors
/// As [`load_weight`].
pub(crate) fn load_slotted(
    store: &dyn TensorStore,
    backend: &mut dyn Backend,
    leaf: &Leaf,
    (number, record): (u32, &mut Record),
    from: SlotSource<'_>,
) -> Result<WeightId, RuntimeError> {
    let (_, weight) = described(store, backend, leaf)?;
    let planes = match from {
        SlotSource::Disk(place) => record.add_on_disk(place),
        SlotSource::Memory(planes) => record.add(planes),
    };
    let device = backend.describe();
    let slots = backend.slots().ok_or_else(|| {
        let why = "it has no slots that experts could take turns in; place them with `tier: ram` or `vram`".to_owned();
        RuntimeError::Device { device, why }
    })?;
    Ok(slots.describe(Slotted { weight, record: number, planes })?)
}

/// Tells a device of a weight that comes when it is used: from which records, which one, where its planes lie there.
///
/// # Errors
/// As [`load_weight`].
pub(crate) fn load_streamed(
    store: &dyn TensorStore,
    backend: &mut dyn Backend,
    leaf: &Leaf,
    report: &dyn Report,
    (records, record, planes): (Arc<dyn Records>, u32, Vec<Range<usize>>),
) -> Result<WeightId, RuntimeError> {
    let (entry, weight) = described(store, backend, leaf)?;
    let id = backend.load_streamed(Streamed { weight, records, record, planes })?;
    report.advance(entry.bytes(), &leaf.name);
    Ok(id)
}

/// A weight that the device can run, without its planes.
fn described<'s>(
    store: &'s dyn TensorStore,
    backend: &dyn Backend,
    leaf: &Leaf,
) -> Result<(&'s Entry, Weight), RuntimeError> {
    let entry = store.entry(&leaf.name).ok_or_else(|| RuntimeError::Missing(leaf.name.clone()))?;
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
    if let Support::Unsupported(why) = backend.support(&spec) {
        let (tensor, format) = (leaf.name.clone(), entry.format.clone());
        return Err(RuntimeError::Unsupported { tensor, format, device: backend.describe(), why });
    }
    Ok((entry, Weight { name: leaf.name.clone(), spec, order: entry.order, n, k, planes: Vec::new() }))
}
