//! [`ExpertCache`]: a fixed number of slots for experts, and who gets them. Scores come from outside (`score`), so that one
//! set of slots serves every policy, and the simulator and a running model alike.

use std::collections::BTreeSet;

/// Which experts that were not there are brought in.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Admission {
    /// At most so many per layer and token; `None` for all.
    pub most: Option<usize>,
    /// Only if it scores more than the one that leaves, plus this; `None` to bring it in whatever it scores.
    pub margin: Option<f64>,
}

/// What one layer step found and did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Filled {
    /// Experts that were there.
    pub hits: usize,
    /// Experts that were not.
    pub misses: usize,
    /// Experts that were brought in.
    pub fills: usize,
}

/// Slots for experts. An expert is a number below the count given at the start.
#[derive(Clone, Debug)]
pub struct ExpertCache {
    capacity: usize,
    resident: Vec<bool>,
    score: Vec<f64>,
    /// Residents by score, the lowest first.
    order: BTreeSet<(u64, u32)>,
}

/// A key that sorts as the number does; there are no NaN.
fn key(score: f64) -> u64 {
    let bits = score.to_bits();
    if bits >> 63 == 0 { bits | 1 << 63 } else { !bits }
}

impl ExpertCache {
    /// Empty, for `experts` of all layers together.
    #[must_use]
    pub fn new(experts: usize, capacity: usize) -> Self {
        let score = vec![f64::NEG_INFINITY; experts];
        Self { capacity, resident: vec![false; experts], score, order: BTreeSet::new() }
    }

    /// Brings an expert in, if a slot is free.
    pub fn preload(&mut self, expert: u32) {
        if self.order.len() < self.capacity {
            self.insert(expert);
        }
    }

    /// Experts that are there.
    #[must_use]
    pub fn len(&self) -> usize {
        self.order.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// Whether it is there.
    #[must_use]
    pub fn holds(&self, expert: u32) -> bool {
        self.resident.get(expert as usize) == Some(&true)
    }

    /// The expert of the lowest score.
    #[must_use]
    pub fn coldest(&self) -> Option<u32> {
        self.order.first().map(|(_, expert)| *expert)
    }

    /// Changes the number of slots; experts that are there beyond it stay until they are removed.
    pub fn set_capacity(&mut self, capacity: usize) {
        self.capacity = capacity;
    }

    /// Gives its slot up, if it has one.
    pub fn remove(&mut self, expert: u32) {
        let i = expert as usize;
        if let (Some(resident), Some(score)) = (self.resident.get_mut(i), self.score.get(i))
            && std::mem::replace(resident, false)
        {
            self.order.remove(&(key(*score), expert));
        }
    }

    fn insert(&mut self, expert: u32) {
        let i = expert as usize;
        if let (Some(resident), Some(score)) = (self.resident.get_mut(i), self.score.get(i)) {
            *resident = true;
            self.order.insert((key(*score), expert));
        }
    }

    /// Changes a score.
    pub fn rescore(&mut self, expert: u32, score: f64) {
        let i = expert as usize;
        let Some(old) = self.score.get_mut(i) else { return };
        let before = std::mem::replace(old, score);
        if self.resident.get(i) == Some(&true) {
            self.order.remove(&(key(before), expert));
            self.order.insert((key(score), expert));
        }
    }

    /// A token uses experts, each once, whose scores are now as given. Those that are not there may take the slots of the
    /// lowest scores, never of one that this step uses.
    pub fn step(&mut self, used: &[(u32, f64)], admission: Admission) -> Filled {
        self.fill(used, &[], admission, &mut |_, _| {})
    }

    /// As [`ExpertCache::step`]. Neither do those of `kept` leave; `brought` is told who is brought in, and who left for that.
    pub fn fill(
        &mut self,
        used: &[(u32, f64)],
        kept: &[u32],
        admission: Admission,
        brought: &mut dyn FnMut(u32, Option<u32>),
    ) -> Filled {
        let mut missing: Vec<(u32, f64)> = used.iter().copied().filter(|(e, _)| !self.holds(*e)).collect();
        let (misses, hits) = (missing.len(), used.len() - missing.len());
        used.iter().for_each(|(expert, score)| self.rescore(*expert, *score));
        // The best first; equal ones by number.
        missing.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        let mut fills = 0;
        for (expert, score) in missing.into_iter().take(admission.most.unwrap_or(usize::MAX)) {
            let mut left = None;
            if self.order.len() >= self.capacity {
                let free = |(_, e): &&(u64, u32)| !used.iter().any(|(u, _)| u == e) && !kept.contains(e);
                let Some(&(_, victim)) = self.order.iter().find(free) else { continue };
                let lowest = self.score.get(victim as usize).copied().unwrap_or(f64::NEG_INFINITY);
                if admission.margin.is_some_and(|margin| score <= lowest + margin) {
                    continue;
                }
                self.remove(victim);
                left = Some(victim);
            }
            self.insert(expert);
            brought(expert, left);
            fills += 1;
        }
        Filled { hits, misses, fills }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALWAYS: Admission = Admission { most: None, margin: None };

    #[test]
    fn the_lowest_score_leaves_but_never_one_in_use() {
        let mut cache = ExpertCache::new(8, 2);
        assert_eq!(cache.step(&[(0, 1.0), (1, 2.0)], ALWAYS), Filled { hits: 0, misses: 2, fills: 2 });
        assert_eq!(cache.step(&[(2, 3.0)], ALWAYS), Filled { hits: 0, misses: 1, fills: 1 });
        assert_eq!(cache.step(&[(1, 4.0)], ALWAYS), Filled { hits: 1, misses: 0, fills: 0 });
        // 2 has the lowest score and is used by the same step: nobody can leave.
        assert_eq!(cache.step(&[(2, 5.0), (1, 5.0), (3, 9.0)], ALWAYS), Filled { hits: 2, misses: 1, fills: 0 });
        assert_eq!(cache.len(), 2);
    }

    #[test]
    fn a_margin_and_a_cap_hold_fills_back() {
        let mut cache = ExpertCache::new(8, 2);
        cache.step(&[(0, -1.0), (1, 1.0)], ALWAYS);
        let careful = Admission { most: Some(1), margin: Some(0.5) };
        assert_eq!(cache.step(&[(2, -0.6)], careful).fills, 0);
        assert_eq!(cache.step(&[(2, -0.4), (3, 7.0)], careful), Filled { hits: 0, misses: 2, fills: 1 });
        assert_eq!(cache.step(&[(3, 7.0)], careful).hits, 1);
    }

    #[test]
    fn keys_sort_as_numbers_do() {
        let all = [f64::NEG_INFINITY, -2.0, -0.5, 0.0, 0.5, 2.0, f64::INFINITY].map(key);
        assert!(all.is_sorted());
    }

    #[test]
    fn no_slots_no_hits() {
        let mut cache = ExpertCache::new(4, 0);
        for _ in 0..3 {
            assert_eq!(cache.step(&[(1, 1.0)], ALWAYS), Filled { hits: 0, misses: 1, fills: 0 });
        }
        assert!(cache.is_empty());
    }
}
