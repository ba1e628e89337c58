//! The budget of a device's memory: what is reserved of it, for what, and never more than there is.
//!
//! Owns: how many bytes a weight, a buffer and a cache are charged with, so that a plan made without the device and the
//! device itself come to the same sum. Refuses: where bytes lie, which is the device's own.

use crate::{BackendError, CacheShape, Weight};

/// Everything in an arena begins at a multiple of this many bytes.
pub const ARENA_ALIGN: u64 = 256;

/// Planes of an expert begin at multiples of this many bytes of its slot.
pub const SLOT_ALIGN: usize = 256;

/// What memory is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Weights.
    Weights,
    /// Keys and values, and what else is kept of earlier tokens.
    Caches,
    /// Buffers of activations.
    Activations,
    /// Slots of experts.
    Slots,
}

/// Bytes by what they are for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reserved {
    /// Weights.
    pub weights: u64,
    /// Caches at full length.
    pub caches: u64,
    /// Buffers with all rows.
    pub activations: u64,
    /// Slots that experts take turns in.
    pub slots: u64,
}

impl Reserved {
    /// All bytes.
    #[must_use]
    pub fn total(&self) -> u64 {
        [self.caches, self.activations, self.slots].into_iter().fold(self.weights, u64::saturating_add)
    }

    /// Counts a weight whose planes have so many bytes together.
    pub fn add_weight(&mut self, bytes: u64) {
        self.add(Purpose::Weights, bytes);
    }

    /// Counts a buffer.
    pub fn add_buffer(&mut self, rows: usize, width: usize) {
        self.add(Purpose::Activations, buffer_bytes(rows, width));
    }

    /// Counts a cache.
    pub fn add_cache(&mut self, shape: &CacheShape) {
        self.add(Purpose::Caches, shape.reserved());
    }

    /// Counts slots.
    pub fn add_slots(&mut self, count: usize, bytes: usize) {
        self.add(Purpose::Slots, slot_bytes(bytes).saturating_mul(count as u64));
    }

    fn add(&mut self, purpose: Purpose, bytes: u64) {
        let of = match purpose {
            Purpose::Weights => &mut self.weights,
            Purpose::Caches => &mut self.caches,
            Purpose::Activations => &mut self.activations,
            Purpose::Slots => &mut self.slots,
        };
        *of = of.saturating_add(aligned(bytes));
    }
}

fn aligned(bytes: u64) -> u64 {
    bytes.checked_next_multiple_of(ARENA_ALIGN).unwrap_or(u64::MAX)
}

/// What a slot for records of up to `bytes` is charged with.
#[must_use]
pub fn slot_bytes(bytes: usize) -> u64 {
    aligned(bytes as u64)
}

fn buffer_bytes(rows: usize, width: usize) -> u64 {
    (rows as u64).saturating_mul(width as u64).saturating_mul(4)
}

/// A budget and what is reserved of it.
#[derive(Clone, Debug)]
pub struct Arena {
    backend: &'static str,
    budget: u64,
    reserved: Reserved,
}

impl Arena {
    /// Nothing reserved of `budget` bytes. `backend` is who errors speak of.
    #[must_use]
    pub fn new(backend: &'static str, budget: u64) -> Self {
        Self { backend, budget, reserved: Reserved::default() }
    }

    /// The most bytes it may ever hold.
    #[must_use]
    pub fn budget(&self) -> u64 {
        self.budget
    }

    /// What is reserved.
    #[must_use]
    pub fn reserved(&self) -> Reserved {
        self.reserved
    }

    /// Makes room for a weight.
    ///
    /// # Errors
    /// [`BackendError::Memory`]; nothing is reserved then.
    pub fn weight(&mut self, weight: &Weight) -> Result<(), BackendError> {
        let bytes = weight.planes.iter().map(|plane| plane.len() as u64).sum();
        self.reserve(Purpose::Weights, bytes, || format!("tensor `{}`", weight.name))
    }

    /// Makes room for a buffer.
    ///
    /// # Errors
    /// As [`Arena::weight`].
    pub fn buffer(&mut self, rows: usize, width: usize) -> Result<(), BackendError> {
        self.reserve(Purpose::Activations, buffer_bytes(rows, width), || format!("a buffer of {rows} × {width}"))
    }

    /// Makes room for a cache at full length.
    ///
    /// # Errors
    /// As [`Arena::weight`].
    pub fn cache(&mut self, shape: &CacheShape) -> Result<(), BackendError> {
        self.reserve(Purpose::Caches, shape.reserved(), || {
            format!("a cache of {} sequences of {} positions", shape.sequences, shape.capacity)
        })
    }

    /// Makes room for slots.
    ///
    /// # Errors
    /// As [`Arena::weight`].
    pub fn slots(&mut self, count: usize, bytes: usize) -> Result<(), BackendError> {
        let all = slot_bytes(bytes).saturating_mul(count as u64);
        self.reserve(Purpose::Slots, all, || format!("{count} slots for experts of {bytes} bytes"))
    }

    fn reserve(&mut self, purpose: Purpose, bytes: u64, what: impl FnOnce() -> String) -> Result<(), BackendError> {
        let (needed, free) = (aligned(bytes), self.budget.saturating_sub(self.reserved.total()));
        if needed > free {
            return Err(BackendError::Memory {
                backend: self.backend,
                what: what(),
                needed,
                free,
                remedy: "place less on this device, or give it a larger --vram-limit".into(),
            });
        }
        self.reserved.add(purpose, bytes);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reservations_are_aligned_and_never_exceed_the_budget() {
        let mut arena = Arena::new("test", 1024);
        arena.buffer(3, 5).unwrap();
        arena.buffer(8, 16).unwrap();
        assert_eq!(arena.reserved(), Reserved { activations: 256 + 512, ..Reserved::default() });
        let error = arena.buffer(1, 65).unwrap_err().to_string();
        assert!(error.contains("1 × 65 needs 512 bytes, 256 are free"), "{error}");
        arena.buffer(1, 64).unwrap();
        assert_eq!((arena.reserved().total(), arena.budget()), (1024, 1024));
        assert!(arena.buffer(1, 1).is_err());
        arena.buffer(0, 64).unwrap();
    }

    #[test]
    fn sizes_beyond_counting_are_refused() {
        let mut arena = Arena::new("test", u64::MAX - 1);
        assert!(arena.buffer(usize::MAX, usize::MAX).is_err());
        assert_eq!(arena.reserved(), Reserved::default());
    }
}
