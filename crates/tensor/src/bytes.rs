//! Bytes that many owners share: a heap buffer aligned to 64 bytes, or a part of a mapped file.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::fmt;
use std::fs::File;
use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

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
    Map { map: memmap2::Mmap, advised: AtomicBool },
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
    /// Safe to call though the kernel cannot promise immutability: whoever changes the file meanwhile changes the bytes
    /// under every reader, and whoever truncates it ends the process (SIGBUS). Every program that maps weights lives with
    /// this, and the crates that call it may not hold `unsafe`; `convert`, which must survive bad disks, reads instead.
    ///
    /// # Errors
    /// What the operating system reports.
    pub fn map_file(file: &File) -> std::io::Result<Self> {
        // SAFETY: a mapping is only sound while no one truncates the file; ashlar maps packs and checkpoints, which it
        // never modifies in place, and documents that others must not either (docs/format.md, "while in use").
        let map = unsafe { memmap2::Mmap::map(file)? };
        let len = map.len();
        Ok(Self { owner: Arc::new(Owner::Map { map, advised: AtomicBool::new(false) }), start: 0, len })
    }

    /// The part `start..start + len`, sharing the same owner; `None` if it does not lie inside.
    #[must_use]
    pub fn slice(&self, start: usize, len: usize) -> Option<Self> {
        let end = start.checked_add(len)?;
        (end <= self.len).then(|| Self { owner: Arc::clone(&self.owner), start: self.start + start, len })
    }

    /// Asks for huge pages under the whole mapping these bytes are part of, once. Pages of a file that the system reads
    /// from now on come 2 MiB at a time where the file system can, and are mapped with one entry each; what is in
    /// memory already stays as it is. Nothing happens where there is no mapping or no such pages.
    pub fn prefer_huge_pages(&self) {
        #[cfg(target_os = "linux")]
        if let Owner::Map { map, advised } = &*self.owner
            && !advised.swap(true, Ordering::Relaxed)
        {
            // A wish: systems without huge pages refuse it, and all goes on with small ones.
            let _ = map.advise(memmap2::Advice::HugePage);
        }
    }

    /// Reads these bytes of a mapped file into memory and maps their pages, so that no access waits later. Blocks.
    ///
    /// # Errors
    /// What the operating system reports, systems that cannot do this included (Linux before 5.14, others).
    pub fn populate(&self) -> std::io::Result<()> {
        match &*self.owner {
            #[cfg(target_os = "linux")]
            Owner::Map { map, .. } => map.advise_range(memmap2::Advice::PopulateRead, self.start, self.len),
            #[cfg(not(target_os = "linux"))]
            Owner::Map { .. } => Err(std::io::ErrorKind::Unsupported.into()),
            Owner::Heap(_) => Ok(()),
        }
    }

    /// The whole heap buffer that these bytes are part of, to be filled anew.
    ///
    /// # Errors
    /// The bytes, if others hold some of them or they are mapped.
    pub fn try_into_heap(self) -> Result<AlignedBytes, Self> {
        let Self { owner, start, len } = self;
        let kept = |owner| Self { owner, start, len };
        match Arc::try_unwrap(owner) {
            Ok(Owner::Heap(heap)) => Ok(heap),
            Ok(map) => Err(kept(Arc::new(map))),
            Err(shared) => Err(kept(shared)),
        }
    }

    /// Whether the bytes are part of a mapped file.
    #[must_use]
    pub fn is_mapped(&self) -> bool {
        matches!(*self.owner, Owner::Map { .. })
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
            Owner::Map { map, .. } => map,
        };
        all.get(self.start..self.start + self.len).unwrap_or_default()
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bytes({} bytes{})", self.len, if self.is_mapped() { ", mapped" } else { "" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::error::Error;
    use std::io::Write;

    type Result<T = ()> = std::result::Result<T, Box<dyn Error>>;

    fn counted(len: usize) -> Bytes {
        let mut heap = AlignedBytes::zeroed(len).expect("memory");
        for (i, b) in heap.iter_mut().enumerate() {
            *b = i as u8;
        }
        heap.into()
    }

    #[test]
    fn buffers_start_aligned_and_zero_for_any_length() {
        for len in [0, 1, 63, 64, 65, 4096, 1 << 20] {
            let heap = AlignedBytes::zeroed(len).expect("memory");
            assert_eq!((heap.len(), heap.as_ptr().align_offset(ALIGN)), (len, 0));
            assert!(heap.iter().all(|b| *b == 0));
        }
    }

    #[test]
    fn lengths_no_machine_has_are_refused_instead_of_aborting() {
        for len in [usize::MAX, isize::MAX as usize, (1 << 62) + 1] {
            assert!(AlignedBytes::zeroed(len).is_none());
        }
    }

    #[test]
    fn slices_keep_the_owner_alive() {
        let slice = counted(100).slice(10, 5).expect("inside");
        assert_eq!(&*slice, [10, 11, 12, 13, 14]);
    }

    #[test]
    fn a_buffer_comes_back_whole_from_its_last_holder() -> Result {
        let all = counted(100);
        let part = all.slice(10, 5).expect("inside");
        let all = all.try_into_heap().err().expect("two hold it");
        drop(all);
        let heap = part.try_into_heap().expect("one holds it");
        assert_eq!((heap.len(), heap[99]), (100, 99));
        let mut file = tempfile::tempfile()?;
        file.write_all(b"ashlar")?;
        let map = Bytes::map_file(&file)?.try_into_heap().err().expect("mapped");
        assert_eq!(&*map, b"ashlar");
        Ok(())
    }

    #[test]
    fn mapped_bytes_are_those_of_the_file() -> Result {
        let mut file = tempfile::tempfile()?;
        file.write_all(b"ashlar")?;
        let map = Bytes::map_file(&file)?;
        drop(file);
        assert_eq!((&*map, map.is_mapped()), (&b"ashlar"[..], true));
        assert_eq!(map.slice(3, 3).as_deref(), Some(&b"lar"[..]));
        assert!(!counted(1).is_mapped());
        Ok(())
    }

    #[test]
    fn populating_changes_no_byte_wherever_the_part_begins() -> Result {
        let mut file = tempfile::tempfile()?;
        let content: Vec<u8> = (0..20_000_u32).map(|i| i as u8).collect();
        file.write_all(&content)?;
        let map = Bytes::map_file(&file)?;
        map.prefer_huge_pages();
        map.prefer_huge_pages();
        for (start, len) in [(0, 20_000), (4097, 1), (19_999, 1), (5, 0)] {
            let part = map.slice(start, len).expect("inside");
            if cfg!(target_os = "linux") {
                part.populate()?;
            }
            assert_eq!(*part, content[start..start + len]);
        }
        counted(3).populate()?;
        Ok(())
    }

    #[test]
    fn an_empty_file_maps_to_no_bytes() -> Result {
        assert!(Bytes::map_file(&tempfile::tempfile()?)?.is_empty());
        Ok(())
    }

    #[test]
    fn a_directory_cannot_be_mapped() -> Result {
        let dir = tempfile::tempdir()?;
        if let Ok(file) = File::open(dir.path()) {
            assert!(Bytes::map_file(&file).is_err());
        }
        Ok(())
    }

    #[test]
    fn bytes_cross_threads() {
        let bytes = counted(256);
        std::thread::scope(|scope| {
            for start in 0..4 {
                let part = bytes.slice(start * 64, 64);
                scope.spawn(move || assert_eq!(part.expect("inside")[1], (start * 64 + 1) as u8));
            }
        });
    }

    proptest! {
        #[test]
        fn a_slice_is_the_part_it_names_or_nothing(len in 0_usize..200, a in 0_usize..220, b in 0_usize..220, c in 0_usize..220, d in any::<usize>()) {
            let all = counted(len);
            let expected = a.checked_add(b).and_then(|end| all.get(a..end)).map(<[u8]>::to_vec);
            let slice = all.slice(a, b);
            prop_assert_eq!(slice.as_deref(), expected.as_deref());
            prop_assert!(all.slice(a, d).is_none_or(|s| s.len() == d && a + d <= len));
            if let Some(slice) = slice {
                let expected = c.checked_add(b).and_then(|end| slice.get(c..end));
                let part = slice.slice(c, b);
                prop_assert_eq!(part.as_deref(), expected);
            }
        }
    }
}
