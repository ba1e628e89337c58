//! Pages of several sizes, taken from the system in slabs and used again.

use crate::buffers::memory;
use ashlar_backend::BackendError;
use ashlar_tensor::AlignedBytes;

/// Bytes of a slab, or one page if that is more. Slabs of whole huge pages keep address translation out of the way.
const SLAB: usize = 8 << 20;
/// Alignment that huge pages want.
const HUGE: usize = 2 << 20;

/// A page of a class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageId(u32);

/// All pages.
#[derive(Default)]
pub struct Pages(Vec<Class>);

/// Pages of one size.
struct Class {
    page_bytes: usize,
    slabs: Vec<AlignedBytes>,
    free: Vec<PageId>,
}

/// Where the pages of a class lie.
#[derive(Clone, Copy)]
pub struct Place {
    page_bytes: usize,
    per_slab: usize,
}

impl Place {
    /// Slab and offset.
    pub fn of(self, id: PageId) -> (usize, usize) {
        let index = id.0 as usize;
        (index / self.per_slab, index % self.per_slab * self.page_bytes)
    }
}

impl Pages {
    /// The class of pages of that many bytes.
    pub fn class(&mut self, page_bytes: usize) -> usize {
        match self.0.iter().position(|c| c.page_bytes == page_bytes) {
            Some(class) => class,
            None => {
                self.0.push(Class { page_bytes, slabs: Vec::new(), free: Vec::new() });
                self.0.len() - 1
            }
        }
    }

    /// A free page, with whatever was in it.
    ///
    /// # Errors
    /// [`BackendError::Memory`].
    pub fn take(&mut self, class: usize) -> Result<PageId, BackendError> {
        let class = &mut self.0[class];
        if let Some(id) = class.free.pop() {
            return Ok(id);
        }
        let place = class.place();
        let bytes = place.per_slab.saturating_mul(class.page_bytes);
        let refused = || memory(bytes / 4, format!("{} pages of keys and values", place.per_slab));
        let mut slab = AlignedBytes::zeroed(bytes).ok_or_else(refused)?;
        ask_for_huge_pages(&mut slab);
        let first = class.slabs.len() * place.per_slab;
        class.slabs.push(slab);
        let ids = (first..first + place.per_slab).map(|i| PageId(i as u32));
        // The last one is taken first: the lowest address.
        class.free.extend(ids.rev());
        class.free.pop().ok_or_else(refused)
    }

    /// Gives a page back.
    pub fn give(&mut self, class: usize, id: PageId) {
        self.0[class].free.push(id);
    }

    /// The bytes of a page.
    pub fn page(&self, class: usize, id: PageId) -> &[u8] {
        let class = &self.0[class];
        let (slab, start) = class.place().of(id);
        &class.slabs[slab][start..start + class.page_bytes]
    }

    /// The same, to be written.
    pub fn page_mut(&mut self, class: usize, id: PageId) -> &mut [u8] {
        let class = &mut self.0[class];
        let (slab, start) = class.place().of(id);
        &mut class.slabs[slab][start..start + class.page_bytes]
    }

    /// Bytes of a page of a class.
    pub fn page_bytes(&self, class: usize) -> usize {
        self.0[class].page_bytes
    }

    /// The slabs of a class, to be written, and where its pages lie in them.
    pub fn slabs(&mut self, class: usize) -> (&mut [AlignedBytes], Place) {
        let class = &mut self.0[class];
        let place = class.place();
        (&mut class.slabs, place)
    }

    /// Bytes of the pages in use.
    pub fn used(&self) -> u64 {
        self.0.iter().map(|c| ((c.slabs.len() * c.place().per_slab - c.free.len()) * c.page_bytes) as u64).sum()
    }
}

impl Class {
    fn place(&self) -> Place {
        Place { page_bytes: self.page_bytes, per_slab: (SLAB / self.page_bytes.max(1)).max(1) }
    }
}

/// Asks the system to back the aligned inside of a slab by huge pages. A refusal only costs speed.
#[cfg(target_os = "linux")]
fn ask_for_huge_pages(slab: &mut [u8]) {
    let skip = slab.as_ptr().align_offset(HUGE);
    let Some(inside) = slab.get_mut(skip..).filter(|inside| inside.len() >= HUGE) else { return };
    let len = inside.len() / HUGE * HUGE;
    // SAFETY: the range lies inside one allocation, and this advice changes neither contents nor mapping.
    unsafe { libc::madvise(inside.as_mut_ptr().cast(), len, libc::MADV_HUGEPAGE) };
}

#[cfg(not(target_os = "linux"))]
fn ask_for_huge_pages(_slab: &mut [u8]) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_distinct_and_used_again() {
        let mut pages = Pages::default();
        let (small, large) = (pages.class(1 << 20), pages.class(SLAB + 64));
        assert_eq!(pages.class(1 << 20), small);
        let ids: Vec<PageId> = (0..20).map(|_| pages.take(small).unwrap()).collect();
        let mut starts: Vec<*const u8> = ids.iter().map(|id| pages.page(small, *id).as_ptr()).collect();
        starts.sort_unstable();
        starts.dedup();
        assert_eq!(starts.len(), 20);
        let one = pages.take(large).unwrap();
        assert_eq!(pages.page(large, one).len(), SLAB + 64);
        assert_eq!(pages.used(), (20 << 20) + SLAB as u64 + 64);
        pages.give(small, ids[3]);
        assert_eq!(pages.take(small).unwrap(), ids[3]);
    }
}
