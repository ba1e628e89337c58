//! Bytes that many owners share: a heap buffer aligned to 64 bytes, or a part of a mapped file.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::fmt;
use std::fs::File;
use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::Arc;

const ALIGN: usize = 64;

/// A zero-initialised heap buffer whose start is 64-byte aligned.
pub struct AlignedBytes {
    ptr: NonNull<u8>,
    len: usize,
}

// SAFETY: `AlignedBytes` owns its allocation exclusively, like `Vec<u8>`.
unsafe impl Send for AlignedBytes {}
// SAFETY: shared access only reads; mutation needs `&mut`.
unsafe impl Sync for AlignedBytes {}

impl AlignedBytes {
    /// A zeroed buffer of `len` bytes, or `None` if the allocator refuses.
    #[must_use]
    pub fn zeroed(len: usize) -> Option<Self> {
        let layout = Layout::from_size_align(len.max(1), ALIGN).ok()?;
        // SAFETY: `layout` has a non-zero size.
        let ptr = unsafe { alloc_zeroed(layout) };
        NonNull::new(ptr).map(|ptr| Self { ptr, len })
    }
}

impl Drop for AlignedBytes {
    fn drop(&mut self) {
        if let Ok(layout) = Layout::from_size_align(self.len.max(1), ALIGN) {
            // SAFETY: `ptr` came from `alloc_zeroed` with this same layout.
            unsafe { dealloc(self.ptr.as_ptr(), layout) };
        }
    }
}

impl Deref for AlignedBytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: `ptr` is valid for `len` initialised bytes for as long as `self` lives.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.len) }
    }
}

impl std::ops::DerefMut for AlignedBytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.len) }
    }
}

enum Owner {
    Heap(AlignedBytes),
    Map(memmap2::Mmap),
}

/// Immutable shared bytes; clones and slices are cheap.
#[derive(Clone)]
pub struct Bytes {
    owner: Arc<Owner>,
    start: usize,
    len: usize,
}

impl Bytes {
    /// Maps a whole file read-only.
    ///
    /// # Errors
    /// What the operating system reports.
    pub fn map_file(file: &File) -> std::io::Result<Self> {
        // SAFETY: a mapping is only sound while no one truncates the file; ashlar maps packs and checkpoints, which it
        // never modifies in place, and documents that others must not either (docs/format.md, "while in use").
        let map = unsafe { memmap2::Mmap::map(file)? };
        let len = map.len();
        Ok(Self { owner: Arc::new(Owner::Map(map)), start: 0, len })
    }

    /// The part `start..start + len`, sharing the same owner; `None` if it does not lie inside.
    #[must_use]
    pub fn slice(&self, start: usize, len: usize) -> Option<Self> {
        let end = start.checked_add(len)?;
        (end <= self.len).then(|| Self { owner: Arc::clone(&self.owner), start: self.start + start, len })
    }

    /// Whether the bytes are part of a mapped file.
    #[must_use]
    pub fn is_mapped(&self) -> bool {
        matches!(*self.owner, Owner::Map(_))
    }
}

impl From<AlignedBytes> for Bytes {
    fn from(heap: AlignedBytes) -> Self {
        let len = heap.len();
        Self { owner: Arc::new(Owner::Heap(heap)), start: 0, len }
    }
}

impl Deref for Bytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        let all: &[u8] = match &*self.owner {
            Owner::Heap(heap) => heap,
            Owner::Map(map) => map,
        };
        all.get(self.start..self.start + self.len).unwrap_or_default()
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bytes({} bytes{})", self.len, if self.is_mapped() { ", mapped" } else { "" })
    }
}
