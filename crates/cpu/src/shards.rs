//! One output written by many tasks, each its own part.

use std::marker::PhantomData;
use std::ops::Range;

/// A mutable slice that tasks of the pool share.
pub struct Shards<'a, T> {
    ptr: *mut T,
    len: usize,
    owner: PhantomData<&'a mut [T]>,
}

// SAFETY: a `Shards` is a `&mut [T]` handed out in parts; `slice` leaves disjointness to its callers.
unsafe impl<T: Send> Sync for Shards<'_, T> {}

impl<'a, T> Shards<'a, T> {
    /// Takes hold of the whole slice.
    pub fn new(all: &'a mut [T]) -> Self {
        Self { ptr: all.as_mut_ptr(), len: all.len(), owner: PhantomData }
    }

    /// The part `range`.
    ///
    /// # Panics
    /// If the range lies outside the slice: an op computed a wrong offset.
    ///
    /// # Safety
    /// While the result lives, no other part that overlaps it may be in use.
    #[allow(clippy::mut_from_ref, reason = "that is what this type is for; see the safety contract")]
    pub unsafe fn slice(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {}", self.len);
        // SAFETY: the range lies inside the slice borrowed for `'a`; the caller vouches for exclusiveness.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.add(range.start), range.len()) }
    }
}
