//! One task: some queries over one or all of the spans they see.

use super::ahead::Ahead;
use super::plan::{Plan, Task, Unit};
use super::pooled::Pooled;
use super::scores::Scores;
use super::scratch::Scratch;
use super::tile::{Queries, State, attend};
use super::{Heads, SPAN};
use crate::kv::{KvCache, Pages};
use crate::math::{Times, zip_map};
use crate::shards::Shards;
use ashlar_backend::KV_PAGE;
use ashlar_simd::{Kernel, Simd};
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Results of spans that different tasks compute, until the last of a unit merges them. Kept from op to op: fresh memory
/// would cost as much as merging.
#[derive(Default)]
pub struct Partials {
    vectors: usize,
    acc: Vec<[f32; 16]>,
    /// Greatest score and sum.
    softmax: Vec<[f32; 2]>,
    /// Per unit: spans that are still to come.
    missing: Vec<AtomicUsize>,
}

/// The same, written side by side.
pub struct Shared<'a> {
    vectors: usize,
    acc: Shards<'a, [f32; 16]>,
    softmax: Shards<'a, [f32; 2]>,
    missing: &'a [AtomicUsize],
}

impl Partials {
    /// Bytes held.
    pub fn bytes(&self) -> u64 {
        (size_of_val(&*self.acc) + size_of_val(&*self.softmax)) as u64
    }

    /// Room for what `plan` computes apart.
    pub fn share(&mut self, plan: &Plan, value_dim: usize) -> Shared<'_> {
        self.vectors = value_dim.div_ceil(16);
        let (acc, softmax) = (plan.partials * self.vectors, plan.partials);
        // Every span is written before it is read: what is left from earlier may stay.
        self.acc.resize(acc.max(self.acc.len()), [0.0; 16]);
        self.softmax.resize(softmax.max(self.softmax.len()), [0.0; 2]);
        self.missing.clear();
        self.missing.extend(plan.units.iter().map(|u| AtomicUsize::new(u.spans.len())));
        let (acc, softmax) = (Shards::new(&mut self.acc), Shards::new(&mut self.softmax));
        Shared { vectors: self.vectors, acc, softmax, missing: &self.missing }
    }
}

impl Shared<'_> {
    /// Keeps what unit `unit` saw of its span number `span`.
    fn keep(&self, unit: &Unit, span: usize, state: &State) {
        let first = unit.partials + (span - unit.spans.start) * unit.len();
        let all = first..first + unit.len();
        // SAFETY: a (unit, span) is one task's, and the merge waits until all tasks of the unit are done.
        let acc = unsafe { self.acc.slice(all.start * self.vectors..all.end * self.vectors) };
        // SAFETY: as above.
        let softmax = unsafe { self.softmax.slice(all) };
        acc.copy_from_slice(&state.acc);
        for (to, (max, sum)) in softmax.iter_mut().zip(state.max.iter().zip(&state.sum)) {
            *to = [*max, *sum];
        }
    }

    /// Whether the task that asks, done with all its spans, is the last of its unit.
    fn is_last(&self, task: &Task) -> bool {
        // Release what this task kept, acquire what the others did.
        let done = task.spans.len();
        self.missing[task.unit].fetch_sub(done, Ordering::AcqRel) == done
    }

    /// Merges all spans of a unit in order.
    #[inline(always)]
    fn merge<S: Simd>(&self, s: S, unit: &Unit, total: &mut State) {
        let all = unit.partials..unit.partials + unit.len() * unit.spans.len();
        // SAFETY: all tasks of the unit are done, so that nobody else uses its part.
        let acc = unsafe { self.acc.slice(all.start * self.vectors..all.end * self.vectors) };
        // SAFETY: as above.
        let softmax = unsafe { self.softmax.slice(all) };
        for (i, (values, [max, sum])) in acc.chunks_exact(self.vectors).zip(softmax).enumerate() {
            total.merge(s, i % unit.len(), *max, *sum, values);
        }
    }
}

/// What all tasks of an op share.
pub struct Tasks<'a> {
    pub heads: &'a Heads,
    pub cache: &'a KvCache,
    pub pages: &'a Pages,
    pub pooled: Option<Pooled<'a>>,
    /// rows × (heads · dim)
    pub queries: &'a [f32],
    pub plan: &'a Plan,
    pub partials: &'a Shared<'a>,
    /// rows × (heads · value_dim)
    pub out: &'a Shards<'a, f32>,
}

impl Tasks<'_> {
    /// Task number `i`, over keys stored as `E`.
    pub fn kernel<E: Scores>(&self, i: usize) -> TaskKernel<'_, E> {
        let task = &self.plan.tasks[i];
        TaskKernel { all: self, task, unit: &self.plan.units[task.unit], element: PhantomData }
    }
}

/// One task.
pub struct TaskKernel<'a, E> {
    all: &'a Tasks<'a>,
    task: &'a Task,
    unit: &'a Unit,
    element: PhantomData<E>,
}

impl<E: Scores> Kernel for TaskKernel<'_, E> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Tasks { heads, plan, partials, .. } = *self.all;
        let mut queries = self.queries(s);
        let vectors = heads.value_dim().div_ceil(16);
        let mut part = State::new(queries.len(), vectors);
        let mut total = self.before(queries.len(), vectors);
        let mut scratch = Scratch::new(0, if heads.values_in_keys.is_some() { vectors } else { 0 });
        for span in self.task.spans.clone() {
            part.clear();
            self.span(s, &queries, span, &mut part, &mut scratch);
            if plan.apart {
                partials.keep(self.unit, span, &part);
            } else {
                merge(s, &mut total, &part);
            }
        }
        if plan.apart {
            if !partials.is_last(self.task) {
                return;
            }
            partials.merge(s, self.unit, &mut total);
        }
        if let Some(pooled) = self.all.pooled {
            self.entries(s, pooled, &mut queries, &mut part, &mut total);
        }
        self.write(s, &total);
    }
}

/// Adds to `total` what was seen of every query.
#[inline(always)]
fn merge<S: Simd>(s: S, total: &mut State, part: &State) {
    let vectors = part.vectors;
    for (i, values) in part.acc.chunks_exact(vectors).enumerate() {
        total.merge(s, i, part.max[i], part.sum[i], values);
    }
}

impl<E: Scores> TaskKernel<'_, E> {
    #[inline(always)]
    fn queries<S: Simd>(&self, s: S) -> Queries {
        let &Heads { queries: all, dim, scale, window, .. } = self.all.heads;
        let (unit, width) = (self.unit, self.unit.heads.len());
        let query = |i: usize| {
            let (row, head) = (unit.rows.start + i / width, unit.heads.start + i % width);
            (&self.all.queries[(row * all + head) * dim..][..dim], unit.sees(row, window))
        };
        Queries::new(s, dim, scale, E::SPLIT, (0..unit.len()).map(query))
    }

    /// The softmax before the first key: a sink is a score that was seen before all others, with a value of 0.
    fn before(&self, count: usize, vectors: usize) -> State {
        let mut state = State::new(count, vectors);
        for (i, head) in self.unit.heads.clone().cycle().take(count).enumerate() {
            if let Some(sink) = self.all.heads.sinks.get(head) {
                (state.max[i], state.sum[i]) = (*sink, 1.0);
            }
        }
        state
    }

    /// All blocks of one span.
    #[inline(always)]
    fn span<S: Simd>(&self, s: S, queries: &Queries, span: usize, state: &mut State, scratch: &mut Scratch) {
        let Tasks { heads, cache, pages, .. } = *self.all;
        let seen = queries.all_see();
        let keys: Range<usize> = seen.start.max(span * SPAN)..seen.end.min((span + 1) * SPAN);
        for page in keys.start / KV_PAGE..keys.end.div_ceil(KV_PAGE) {
            let Some(block) = cache.block::<E>(pages, self.unit.slot, page, self.unit.key_head) else { continue };
            let parts = |page| cache.parts(pages, self.unit.slot, page, self.unit.key_head);
            let ahead = Ahead::new(parts(page)[1], parts(page + 1)[0]);
            if heads.values_in_keys.is_some() {
                scratch.values_of_keys::<S, E>(s, block.keys);
                attend(s, queries, &scratch.with(&block), page * KV_PAGE, state, ahead);
            } else {
                attend(s, queries, &block, page * KV_PAGE, state, ahead);
            }
        }
    }

    /// Goes on with pooled keys, in blocks and spans of their own order. The unit is one row.
    #[inline(always)]
    fn entries<S: Simd>(&self, s: S, pooled: Pooled<'_>, queries: &mut Queries, part: &mut State, total: &mut State) {
        let entries = pooled.seen(self.unit.rows.start, self.unit.position);
        let (dim, mut rows) = (self.all.heads.dim, Vec::new());
        let mut scratch = Scratch::new(self.all.heads.dim, part.vectors);
        for span in entries.chunks(SPAN) {
            part.clear();
            for block in span.chunks(KV_PAGE) {
                pooled.read(self.unit.slot, block, &mut rows);
                scratch.gather(s, &rows.chunks_exact(dim).collect::<Vec<_>>());
                queries.see(&(0..block.len()));
                attend(s, queries, &scratch.block(), 0, part, Ahead::new(&[], &[]));
            }
            merge(s, total, part);
        }
    }

    /// Divides by the sums.
    #[inline(always)]
    fn write<S: Simd>(&self, s: S, state: &State) {
        let (all, dim, heads) = (self.all.heads.queries, self.all.heads.value_dim(), self.unit.heads.len());
        for (i, acc) in state.acc.chunks_exact(state.vectors).enumerate() {
            let (row, head) = (self.unit.rows.start + i / heads, self.unit.heads.start + i % heads);
            let at = (row * all + head) * dim;
            // SAFETY: a (row, head) is one query of one unit, which one task writes.
            let out = unsafe { self.all.out.slice(at..at + dim) };
            zip_map(s, out, &acc.as_flattened()[..dim], &Times(s.splat(1.0 / state.sum[i])));
        }
    }
}
