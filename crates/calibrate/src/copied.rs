//! [`Copied`]: weights as copies that go when their part goes.

use ashlar_tensor::{AlignedBytes, Bytes, Entry, StoreError, TensorStore};
use std::io;

/// The weights of another store, read instead of mapped. The pages of a mapping stay with the process as long as its file
/// is open, so that a walk over mapped layers would end with all of them in its resident memory.
pub struct Copied<'a>(pub &'a dyn TensorStore);

impl TensorStore for Copied<'_> {
    fn entries(&self) -> &[Entry] {
        self.0.entries()
    }

    fn entry(&self, name: &str) -> Option<&Entry> {
        self.0.entry(name)
    }

    fn read(&self, entry: &Entry, plane: usize, offset: u64, out: &mut [u8]) -> Result<(), StoreError> {
        self.0.read(entry, plane, offset, out)
    }

    fn map(&self, entry: &Entry, plane: usize) -> Result<Bytes, StoreError> {
        let unknown = || StoreError::Unknown { tensor: entry.name.clone(), plane };
        let len = entry.planes.get(plane).ok_or_else(unknown)?.bytes;
        let memory = || StoreError::Io {
            file: entry.file.clone(),
            tensor: entry.name.clone(),
            offset: 0,
            len,
            source: io::ErrorKind::OutOfMemory.into(),
        };
        let mut bytes = usize::try_from(len).ok().and_then(AlignedBytes::zeroed).ok_or_else(memory)?;
        self.0.read(entry, plane, 0, &mut bytes)?;
        Ok(bytes.into())
    }
}
