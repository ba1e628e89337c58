//! The one pool of device memory: which parts of it are taken. Pure bookkeeping; addresses are the device's.

use std::collections::BTreeMap;

/// Every allocation starts at a multiple of this.
const ALIGN: u64 = 256;

/// Taken and free parts of a range of addresses.
pub struct Pool {
    base: u64,
    /// Free parts by offset, never touching each other.
    free: BTreeMap<u64, u64>,
    taken: BTreeMap<u64, u64>,
}

impl Pool {
    /// A pool of `bytes` from `base` on, all free.
    pub fn new(base: u64, bytes: u64) -> Self {
        Self { base, free: BTreeMap::from([(0, bytes / ALIGN * ALIGN)]), taken: BTreeMap::new() }
    }

    /// Where it begins.
    pub fn start(&self) -> u64 {
        self.base
    }

    /// The address of `bytes` free ones, the first place where they fit; `None` if there is none.
    pub fn take(&mut self, bytes: u64) -> Option<u64> {
        let bytes = bytes.max(1).checked_next_multiple_of(ALIGN)?;
        let (&offset, &length) = self.free.iter().find(|(_, length)| **length >= bytes)?;
        self.free.remove(&offset);
        if length > bytes {
            self.free.insert(offset + bytes, length - bytes);
        }
        self.taken.insert(offset, bytes);
        Some(self.base + offset)
    }

    /// Gives back what [`Pool::take`] gave.
    pub fn give(&mut self, address: u64) {
        let Some(offset) = address.checked_sub(self.base) else { return };
        let Some(mut bytes) = self.taken.remove(&offset) else { return };
        let mut start = offset;
        if let Some((&before, &length)) = self.free.range(..offset).next_back()
            && before + length == offset
        {
            self.free.remove(&before);
            (start, bytes) = (before, bytes + length);
        }
        if let Some(length) = self.free.remove(&(start + bytes)) {
            bytes += length;
        }
        self.free.insert(start, bytes);
    }

    /// Bytes that are free, perhaps in several parts.
    pub fn free(&self) -> u64 {
        self.free.values().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_back_joins_its_neighbours() {
        let mut pool = Pool::new(4096, 1 << 20);
        let parts: Vec<u64> = (0..4).filter_map(|_| pool.take(1000)).collect();
        assert_eq!(parts, [4096, 4096 + 1024, 4096 + 2048, 4096 + 3072]);
        for part in [parts[1], parts[3], parts[2], parts[0]] {
            pool.give(part);
        }
        assert_eq!((pool.free(), pool.take(1 << 20)), (1 << 20, Some(4096)));
        assert_eq!(pool.take(1), None);
    }

    #[test]
    fn parts_never_overlap_and_holes_are_used_again() {
        let mut pool = Pool::new(0, 1 << 16);
        let mut held: Vec<(u64, u64)> = Vec::new();
        let mut seed = 1u64;
        for _ in 0..2000 {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            if seed >> 63 == 0 || held.is_empty() {
                let bytes = (seed >> 40) % 3000 + 1;
                let Some(at) = pool.take(bytes) else { continue };
                assert!(at % ALIGN == 0 && at + bytes <= 1 << 16);
                assert!(held.iter().all(|(a, b)| at + bytes <= *a || a + b <= at));
                held.push((at, bytes));
            } else {
                let (at, _) = held.swap_remove((seed >> 33) as usize % held.len());
                pool.give(at);
            }
        }
        held.into_iter().for_each(|(at, _)| pool.give(at));
        assert_eq!(pool.free(), 1 << 16);
    }

    #[test]
    fn sizes_no_machine_has_are_refused() {
        assert_eq!(Pool::new(0, 1 << 20).take(u64::MAX), None);
    }
}
