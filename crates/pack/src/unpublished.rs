//! [`Unpublished`]: what is finished of a pack that is still being written, as a [`TensorStore`].

use crate::layout::Layout;
use crate::reader::entries;
use ashlar_tensor::{AlignedBytes, Bytes, Entry, StoreError, TensorStore};
use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;

/// The tensors of a layout whose bytes are in place; which those are, the caller knows. Bytes are copied, never mapped:
/// the files are still written to.
#[derive(Debug)]
pub struct Unpublished<'a> {
    layout: &'a Layout,
    files: &'a [File],
    entries: Vec<Entry>,
    /// (record, tensor) of each entry.
    places: Vec<(usize, usize)>,
}

impl<'a> Unpublished<'a> {
    pub(crate) fn new(layout: &'a Layout, files: &'a [File]) -> Self {
        let file = |shard: usize| layout.shards.get(shard).map(|s| s.file.clone()).unwrap_or_default();
        let (entries, places) = entries(layout.records.iter(), file);
        Self { layout, files, entries, places }
    }
}

impl TensorStore for Unpublished<'_> {
    fn entries(&self) -> &[Entry] {
        &self.entries
    }

    fn read(&self, entry: &Entry, plane: usize, offset: u64, out: &mut [u8]) -> Result<(), StoreError> {
        let name = || entry.name.clone();
        let found = || {
            let index = self.entries.binary_search_by(|e| e.name.cmp(&entry.name)).ok()?;
            let (record, tensor) = *self.places.get(index)?;
            let record = self.layout.records.get(record)?;
            let tensor = record.tensors.get(tensor)?;
            Some((self.files.get(record.shard)?, tensor.offset, tensor.planes.get(plane)?))
        };
        let (file, start, stored) = found().ok_or_else(|| StoreError::Unknown { tensor: name(), plane })?;
        let (len, end) = (out.len() as u64, offset.saturating_add(out.len() as u64));
        if end > stored.bytes {
            return Err(StoreError::Range { tensor: name(), plane, offset, end, bytes: stored.bytes });
        }
        let offset = start + stored.offset + offset;
        let io = |source| StoreError::Io { file: entry.file.clone(), tensor: name(), offset, len, source };
        file.read_exact_at(out, offset).map_err(io)
    }

    fn map(&self, entry: &Entry, plane: usize) -> Result<Bytes, StoreError> {
        let len = entry.planes.get(plane).map_or(0, |p| p.bytes);
        let short = || StoreError::Io {
            file: entry.file.clone(),
            tensor: entry.name.clone(),
            offset: 0,
            len,
            source: ErrorKind::OutOfMemory.into(),
        };
        let mut bytes = usize::try_from(len).ok().and_then(AlignedBytes::zeroed).ok_or_else(short)?;
        self.read(entry, plane, 0, &mut bytes)?;
        Ok(bytes.into())
    }
}
