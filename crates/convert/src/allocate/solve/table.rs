//! Few items, exactly but for rounding: dynamic programming over bytes.
//!
//! With few items the steps are large beside the budget, and exchanging pairs can end far from the best mix. The table
//! holds the least cost for every number of byte units; sizes are rounded up to units, so its answer always fits.

use super::{Item, Step};

/// Beyond so many items the Lagrangian solution is as good, and rounding to units would cost more than it saves.
pub const MOST_ITEMS: usize = 64;
/// Units that the budget is cut into: sizes are off by at most items / units of it.
const UNITS: usize = 1 << 14;

/// Positions in `steps` of every item, for `free` bytes beyond the smallest mix. `None` for too many items.
pub fn mix(items: &[Item], free: u64) -> Option<Vec<usize>> {
    if items.len() > MOST_ITEMS {
        return None;
    }
    let unit = free.div_ceil(UNITS as u64).max(1);
    let units = usize::try_from(free / unit).ok()?;
    let mut least = vec![0.0; units + 1];
    let mut chosen: Vec<Vec<u32>> = Vec::with_capacity(items.len());
    for item in items {
        let sizes = sizes(item, unit);
        let mut next = vec![f64::INFINITY; units + 1];
        let mut choice = vec![0u32; units + 1];
        for (at, (step, size)) in item.steps.iter().zip(&sizes).enumerate().filter(|(_, (_, size))| **size <= units) {
            let better = next.iter_mut().zip(&mut choice).skip(*size).zip(&least);
            better.for_each(|((best, choice), before)| {
                let cost = before + step.cost;
                if cost < *best {
                    (*best, *choice) = (cost, at as u32);
                }
            });
        }
        if !item.steps.is_empty() {
            least = next;
        }
        chosen.push(choice);
    }
    let mut left = units;
    let mut mix = vec![0; items.len()];
    for ((item, choice), slot) in items.iter().zip(&chosen).zip(&mut mix).rev() {
        let at = choice.get(left).map_or(0, |c| *c as usize);
        left = left.checked_sub(sizes(item, unit).get(at).copied().unwrap_or(0))?;
        *slot = at;
    }
    Some(mix)
}

/// Units that each step takes more than the smallest.
fn sizes(item: &Item, unit: u64) -> Vec<usize> {
    let smallest = item.steps.first().map_or(0, |s| s.bytes);
    let units = |s: &Step| usize::try_from((s.bytes - smallest).div_ceil(unit)).unwrap_or(usize::MAX);
    item.steps.iter().map(units).collect()
}
