//! The multiple-choice knapsack: one candidate per item, the least total cost within a number of bytes. Pure.
//!
//! Method: candidates that are both larger and worse go; from the smallest of every item, the steps along the lower
//! convex hulls are taken in the order of what they save per byte, as long as they fit (that is the Lagrangian
//! solution); what is left is filled with the best single steps that fit; then pairs are exchanged, one item giving
//! bytes to another, while that helps. For few items a second mix comes from a table over bytes (`table`); the better one
//! counts. Ties go to the earlier item, so the same input gives the same answer.
//!
//! The result costs no more than the Lagrangian solution, which in turn is within one step of the best possible.

/// What an item may become.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// What it takes.
    pub bytes: u64,
    /// What it costs; at least 0.
    pub cost: f64,
}

/// Pairs that are looked at in all, so that thousands of items stay a matter of a second.
const PAIRS: usize = 200_000_000;

/// The candidate of every item, or `None` if even the smallest exceed `budget` bytes. An item without candidates gets
/// index 0 and takes nothing.
#[must_use]
pub fn solve(items: &[Vec<Candidate>], budget: u64) -> Option<Vec<usize>> {
    let items: Vec<Item> = items.iter().map(|candidates| Item::new(candidates)).collect();
    let mut mix = Mix { chosen: vec![0; items.len()], items: &items, free: budget };
    for item in &items {
        mix.free = mix.free.checked_sub(item.steps.first().map_or(0, |s| s.bytes))?;
    }
    let table = table::mix(&items, mix.free).map(|chosen| mix.starting_from(chosen));
    mix.follow_hulls();
    mix.improve();
    let better = table.map(Mix::improved).filter(|other| other.cost() < mix.cost());
    Some(better.unwrap_or(mix).answer())
}

/// The bytes of the smallest mix and of the one that costs least.
#[must_use]
pub fn extremes(items: &[Vec<Candidate>]) -> (u64, u64) {
    let items: Vec<Item> = items.iter().map(|candidates| Item::new(candidates)).collect();
    let sum = |of: fn(&Item) -> Option<&Step>| items.iter().filter_map(of).map(|s| s.bytes).sum();
    (sum(|i| i.steps.first()), sum(|i| i.steps.last()))
}

/// A candidate that no other beats in both bytes and cost.
#[derive(Clone, Copy, Debug)]
struct Step {
    index: usize,
    bytes: u64,
    cost: f64,
}

#[derive(Debug)]
struct Item {
    /// Ascending in bytes, strictly descending in cost.
    steps: Vec<Step>,
    /// Positions in `steps` on the lower convex hull.
    hull: Vec<usize>,
}

impl Item {
    fn new(candidates: &[Candidate]) -> Self {
        let mut all: Vec<Step> =
            candidates.iter().enumerate().map(|(index, c)| Step { index, bytes: c.bytes, cost: c.cost }).collect();
        all.sort_by(|a, b| a.bytes.cmp(&b.bytes).then(a.cost.total_cmp(&b.cost)).then(a.index.cmp(&b.index)));
        let mut steps: Vec<Step> = Vec::new();
        for step in all {
            if steps.last().is_none_or(|last| step.cost < last.cost) {
                steps.push(step);
            }
        }
        let mut hull: Vec<(usize, Step)> = Vec::new();
        for (at, step) in steps.iter().enumerate() {
            while let [.., (_, a), (_, b)] = hull.as_slice() {
                if slope(a, b) > slope(b, step) {
                    break;
                }
                hull.pop();
            }
            hull.push((at, *step));
        }
        Self { steps, hull: hull.into_iter().map(|(at, _)| at).collect() }
    }
}

/// What a byte saves between two steps.
fn slope(from: &Step, to: &Step) -> f64 {
    (from.cost - to.cost) / (to.bytes - from.bytes).max(1) as f64
}

struct Mix<'a> {
    items: &'a [Item],
    /// Position in `steps` of every item.
    chosen: Vec<usize>,
    /// Bytes left.
    free: u64,
}

impl Mix<'_> {
    /// Another mix of the same items, with the positions `chosen`; this one is at the smallest.
    fn starting_from(&self, chosen: Vec<usize>) -> Self {
        let mut mix = Mix { items: self.items, chosen: self.chosen.clone(), free: self.free };
        chosen.into_iter().enumerate().for_each(|(item, to)| mix.take(item, to));
        mix
    }

    fn improve(&mut self) {
        self.fill();
        self.exchange();
    }

    fn improved(mut self) -> Self {
        self.improve();
        self
    }

    fn cost(&self) -> f64 {
        (0..self.items.len()).filter_map(|i| self.step(i)).map(|s| s.cost).sum()
    }

    fn step(&self, item: usize) -> Option<&Step> {
        self.items.get(item)?.steps.get(*self.chosen.get(item)?)
    }

    fn take(&mut self, item: usize, to: usize) {
        let bytes = |at: usize| self.items.get(item).and_then(|i| i.steps.get(at)).map_or(0, |s| s.bytes);
        let Some(&from) = self.chosen.get(item) else { return };
        self.free = (self.free + bytes(from)).saturating_sub(bytes(to));
        if let Some(chosen) = self.chosen.get_mut(item) {
            *chosen = to;
        }
    }

    /// Steps along the hulls, the best per byte first, until one does not fit.
    fn follow_hulls(&mut self) {
        let mut moves: Vec<(f64, usize, usize, u64)> = Vec::new();
        for (number, item) in self.items.iter().enumerate() {
            for pair in item.hull.windows(2) {
                let [a, b] = *pair else { continue };
                if let (Some(from), Some(to)) = (item.steps.get(a), item.steps.get(b)) {
                    moves.push((slope(from, to), number, b, to.bytes - from.bytes));
                }
            }
        }
        moves.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
        for (_, item, to, bytes) in moves {
            if bytes > self.free {
                return;
            }
            self.take(item, to);
        }
    }

    /// The best single steps that still fit.
    fn fill(&mut self) {
        loop {
            let mut best: Option<(f64, usize, usize)> = None;
            for (number, item) in self.items.iter().enumerate() {
                let Some(now) = self.step(number) else { continue };
                let at = self.chosen.get(number).copied().unwrap_or(0);
                for (to, step) in item.steps.iter().enumerate().skip(at + 1) {
                    if step.bytes - now.bytes > self.free {
                        break;
                    }
                    let gain = slope(now, step);
                    if best.is_none_or(|(most, ..)| gain > most) {
                        best = Some((gain, number, to));
                    }
                }
            }
            match best {
                Some((_, item, to)) => self.take(item, to),
                None => return,
            }
        }
    }

    /// One item gives bytes to another, the best such pair first.
    fn exchange(&mut self) {
        let steps: usize = self.items.iter().map(|i| i.steps.len()).sum();
        let passes = PAIRS / (steps * steps).max(1);
        for _ in 0..passes {
            let Some((down, up)) = self.best_pair() else { return };
            self.take(down.0, down.1);
            self.take(up.0, up.1);
            self.fill();
        }
    }

    fn best_pair(&self) -> Option<((usize, usize), (usize, usize))> {
        // Less than this is rounding.
        let (mut best, mut pair) = (1e-9 * self.cost(), None);
        for (a, item) in self.items.iter().enumerate() {
            let Some(now) = self.step(a) else { continue };
            let at = self.chosen.get(a).copied().unwrap_or(0);
            for (to, lower) in item.steps.iter().enumerate().take(at) {
                let free = self.free + (now.bytes - lower.bytes);
                let lost = lower.cost - now.cost;
                if let Some((saved, up)) = self.best_use(a, free, lost + best) {
                    (best, pair) = (saved - lost, Some(((a, to), up)));
                }
            }
        }
        pair
    }

    /// What another item than `not` saves most with `free` bytes, if that is more than `least`.
    fn best_use(&self, not: usize, free: u64, least: f64) -> Option<(f64, (usize, usize))> {
        let (mut most, mut found) = (least, None);
        for (b, item) in self.items.iter().enumerate().filter(|(b, _)| *b != not) {
            let Some(now) = self.step(b) else { continue };
            let at = self.chosen.get(b).copied().unwrap_or(0);
            for (to, higher) in item.steps.iter().enumerate().skip(at + 1) {
                if higher.bytes - now.bytes > free {
                    break;
                }
                if now.cost - higher.cost > most {
                    (most, found) = (now.cost - higher.cost, Some((b, to)));
                }
            }
        }
        found.map(|up| (most, up))
    }

    fn answer(&self) -> Vec<usize> {
        (0..self.items.len()).map(|item| self.step(item).map_or(0, |s| s.index)).collect()
    }
}

mod table;
#[cfg(test)]
mod tests;
