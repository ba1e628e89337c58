//! Who computes what: units of queries, cut into spans of keys where there are too few units for the threads.
//!
//! Free to look at threads: nothing here changes a bit of the result.

use super::{Heads, SPAN};
use ashlar_backend::Batch;
use std::ops::Range;

/// Queries of a unit, so that keys are read from memory once for all of them.
const MANY: usize = 64;
/// The same where there are few units.
const FEW: usize = 16;
/// Tasks per thread that keep all busy to the end.
const TASKS_PER_THREAD: usize = 4;
/// Tasks per thread where spans are apart. A task that goes on to the next span finds its keys in the cache already.
const APART_PER_THREAD: usize = 32;
/// The most vectors of 16 that results of spans may take together: 64 MiB.
const PARTIAL_VECTORS: usize = 1 << 20;

/// Neighbouring tokens of one sequence, some heads of one group.
#[derive(Clone, Debug)]
pub struct Unit {
    pub slot: usize,
    /// Rows of the batch.
    pub rows: Range<usize>,
    /// Position of the first row.
    pub position: usize,
    pub key_head: usize,
    /// Query heads, among all.
    pub heads: Range<usize>,
    /// Spans of keys that any query sees.
    pub spans: Range<usize>,
    /// Where its results of spans begin, in queries × spans; only where they are apart.
    pub partials: usize,
}

impl Unit {
    /// Queries.
    pub fn len(&self) -> usize {
        self.rows.len() * self.heads.len()
    }

    /// The keys that a row sees.
    pub fn sees(&self, row: usize, window: Option<usize>) -> Range<usize> {
        let end = self.position + (row - self.rows.start) + 1;
        window.map_or(0, |w| end.saturating_sub(w))..end
    }
}

/// One index of the pool.
#[derive(Clone, Debug)]
pub struct Task {
    /// Which unit.
    pub unit: usize,
    /// Its spans.
    pub spans: Range<usize>,
}

/// All units and tasks.
pub struct Plan {
    pub units: Vec<Unit>,
    pub tasks: Vec<Task>,
    /// Whether spans of a unit are tasks of their own.
    pub apart: bool,
    /// Queries × spans of all units, if they are apart.
    pub partials: usize,
}

impl Plan {
    pub fn new(heads: &Heads, batch: &Batch, threads: usize) -> Self {
        let wanted = TASKS_PER_THREAD * threads;
        let mut units = units(heads, batch, if heads.entries.is_some() { FEW } else { MANY });
        if units.iter().map(|u| u.spans.len()).sum::<usize>() < wanted {
            units = self::units(heads, batch, FEW);
        }
        let partials: usize = units.iter().map(|u| u.len() * u.spans.len()).sum();
        let vectors = heads.value_dim().div_ceil(16);
        // Entries are merged behind the spans: one task does both.
        let apart = heads.entries.is_none()
            && units.len() < wanted
            && units.iter().any(|u| u.spans.len() > 1)
            && partials.saturating_mul(vectors) <= PARTIAL_VECTORS;
        let all: usize = units.iter().map(|u| u.spans.len()).sum();
        let step = (all / (APART_PER_THREAD * threads)).max(1);
        let mut tasks: Vec<Task> = Vec::new();
        let mut next = 0;
        for (unit, u) in units.iter_mut().enumerate() {
            u.partials = next;
            next += u.len() * u.spans.len();
            if apart {
                let end = u.spans.end;
                let cut = u.spans.clone().step_by(step);
                tasks.extend(cut.map(|span| Task { unit, spans: span..(span + step).min(end) }));
            } else {
                tasks.push(Task { unit, spans: u.spans.clone() });
            }
        }
        // Late tokens see the most keys: their tasks go first, so that the last ones to finish are short.
        tasks.reverse();
        Self { units, tasks, apart, partials: if apart { partials } else { 0 } }
    }
}

fn units(heads: &Heads, batch: &Batch, queries: usize) -> Vec<Unit> {
    let group = heads.queries / heads.keys;
    // Entries differ from token to token.
    let step = if heads.entries.is_some() { 1 } else { (queries / group).max(1) };
    let mut units = Vec::new();
    for part in &batch.sequences {
        for start in part.rows.clone().step_by(step) {
            let rows = start..(start + step).min(part.rows.end);
            let position = part.position + start - part.rows.start;
            let first = heads.window.map_or(0, |w| (position + 1).saturating_sub(w));
            let spans = first / SPAN..(position + rows.len()).div_ceil(SPAN);
            for key_head in 0..heads.keys {
                let all = key_head * group..(key_head + 1) * group;
                for first in all.clone().step_by(queries) {
                    let (rows, spans) = (rows.clone(), spans.clone());
                    let heads = first..(first + queries).min(all.end);
                    units.push(Unit { slot: part.slot, rows, position, key_head, heads, spans, partials: 0 });
                }
            }
        }
    }
    units
}

#[cfg(test)]
mod tests {
    use super::*;
    use ashlar_backend::SequenceRows;
    use std::collections::HashSet;

    fn heads(queries: usize, keys: usize, window: Option<usize>) -> Heads {
        let (dim, scale, sinks) = (64, 1.0, Vec::new());
        Heads { queries, keys, dim, scale, window, sinks, values_in_keys: None, entries: None }
    }

    fn batch(parts: &[(usize, usize)]) -> Batch {
        let mut row = 0;
        let sequences = parts.iter().enumerate().map(|(slot, &(position, count))| {
            row += count;
            SequenceRows { slot, rows: row - count..row, position }
        });
        let sequences: Vec<_> = sequences.collect();
        Batch { tokens: vec![0; row], sequences, ..Batch::default() }
    }

    #[test]
    fn every_query_meets_every_span_that_it_sees_exactly_once() {
        for (queries, keys, window) in [(32, 4, None), (8, 8, Some(100)), (128, 1, None), (5, 1, Some(2000))] {
            for threads in [1, 2, 64] {
                let heads = heads(queries, keys, window);
                let batch = batch(&[(0, 70), (5000, 1), (700, 3)]);
                let plan = Plan::new(&heads, &batch, threads);
                let mut met = HashSet::new();
                for task in &plan.tasks {
                    let unit = &plan.units[task.unit];
                    for row in unit.rows.clone() {
                        for span in task.spans.clone() {
                            assert!(unit.heads.clone().all(|h| met.insert((row, h, span))));
                        }
                    }
                }
                let positions = batch.positions();
                for (row, position) in positions.iter().enumerate() {
                    let first = window.map_or(0, |w| (position + 1).saturating_sub(w));
                    for span in first / SPAN..=position / SPAN {
                        assert!((0..queries).all(|h| met.contains(&(row, h, span))), "{row} {span}");
                    }
                }
            }
        }
    }

    #[test]
    fn one_token_behind_a_long_context_has_work_for_every_thread() {
        let plan = Plan::new(&heads(32, 4, None), &batch(&[(32_000, 1)]), 16);
        assert!(plan.apart && plan.tasks.len() == 4 * 63, "{}", plan.tasks.len());
        let fewer = Plan::new(&heads(32, 4, None), &batch(&[(32_000, 1)]), 2);
        assert!(fewer.apart && fewer.tasks.len() == 4 * 21, "{}", fewer.tasks.len());
        let prefill = Plan::new(&heads(32, 4, None), &batch(&[(4096, 512)]), 2);
        assert!(!prefill.apart && prefill.units.iter().all(|u| u.len() == 64));
    }

    #[test]
    fn a_window_leaves_out_the_spans_before_it() {
        let plan = Plan::new(&heads(8, 8, Some(128)), &batch(&[(10_000, 1)]), 2);
        assert!(plan.units.iter().all(|u| u.spans == (9873 / SPAN..20)));
    }
}
