//! Causal grouped-query attention over the KV cache, with an online softmax.
//!
//! A task is one key/value head of a few neighbouring tokens: its queries share every load of keys and values. Keys are
//! visited in blocks of 32 that begin at multiples of 32, whatever the batch, so that a query's result depends neither on
//! how a prompt was cut nor on its neighbours.

use crate::cache::Cache;
use crate::cpu::Cpu;
use crate::math::{PlusTimes, Times, dot, exp, zip_map};
use crate::shards::Shards;
use ashlar_backend::{BackendError, Batch, BufferId, CacheId, Entries};
use ashlar_simd::{Kernel, Simd};
use std::ops::Range;

const OP: &str = "attention";
/// Keys per step of the softmax.
const BLOCK: usize = 32;
/// Queries of a task (tokens × query heads per key/value head), as far as tokens allow.
const QUERIES: usize = 16;

/// What kind of heads, and what they see.
pub struct Heads {
    /// Query heads.
    pub queries: usize,
    /// Key/value heads.
    pub keys: usize,
    /// Width of a head.
    pub dim: usize,
    /// Multiplier of the scores.
    pub scale: f32,
    /// Keys visible to a query, itself included.
    pub window: Option<usize>,
    /// One more score per query head, without a value; empty for none.
    pub sinks: Vec<f32>,
    /// Values are the first so many entries of keys.
    pub values_in_keys: Option<usize>,
    /// Pooled keys.
    pub entries: Option<Entries>,
}

impl Heads {
    /// Width of a value.
    fn value_dim(&self) -> usize {
        self.values_in_keys.unwrap_or(self.dim)
    }

    fn check(&self) -> Result<(), BackendError> {
        let pooled = self.entries.is_none() || self.keys == 1 && self.values_in_keys.is_some();
        if pooled
            && self.value_dim() <= self.dim
            && self.keys > 0
            && self.dim > 0
            && self.queries.is_multiple_of(self.keys)
            && self.window != Some(0)
        {
            return Ok(());
        }
        let what = format!(
            "{} query heads over {} key/value heads of {}, window {:?}",
            self.queries, self.keys, self.dim, self.window
        );
        Err(BackendError::Operand { op: OP, what })
    }
}

/// One task: rows of one sequence, one key/value head.
struct Tile {
    slot: usize,
    rows: Range<usize>,
    /// Position of the first row.
    position: usize,
    key_head: usize,
}

pub fn run(
    cpu: &mut Cpu,
    [q, k, v]: [BufferId; 3],
    cache: CacheId,
    heads: &Heads,
    out: BufferId,
    batch: &Batch,
) -> Result<(), BackendError> {
    heads.check()?;
    let (q_width, kv_width) = (heads.queries * heads.dim, heads.keys * heads.dim);
    let rows = batch.rows();
    let shared = heads.values_in_keys.is_some();
    let inputs = if shared { 2 } else { 3 };
    for (id, width) in [(q, q_width), (k, kv_width), (v, kv_width)].into_iter().take(inputs) {
        if cpu.buffers.input(id, width, OP)?.len() != rows * width {
            return Err(BackendError::Operand { op: OP, what: format!("a buffer does not hold {rows} rows") });
        }
    }
    let missing = || BackendError::Operand { op: OP, what: format!("no cache {}", cache.0) };
    let kv = cpu.caches.get_mut(cache.0 as usize).ok_or_else(missing)?;
    if kv.width != kv_width {
        let what = format!("the cache is {} wide, keys are {kv_width}", kv.width);
        return Err(BackendError::Operand { op: OP, what });
    }
    let keys = cpu.buffers.input(k, kv_width, OP)?;
    let values: &[f32] = if shared { &[] } else { cpu.buffers.input(v, kv_width, OP)? };
    for part in &batch.sequences {
        let of = part.rows.start * kv_width..part.rows.end * kv_width;
        kv.store(part, &keys[of.clone()], values.get(of).unwrap_or_default())?;
    }
    let mut y = cpu.buffers.take(out, [rows, heads.queries * heads.value_dim()], false, q, OP)?;
    let result = attend(cpu, q, cache, heads, batch, &mut y);
    cpu.buffers.put(out, y);
    result
}

/// The pooled keys of a layer, and who attends to which.
#[derive(Clone, Copy)]
struct Pooled<'a> {
    cache: &'a Cache,
    ratio: usize,
    /// Rows × width; `None` for all that are complete.
    selected: Option<(&'a [f32], usize)>,
}

impl<'a> Pooled<'a> {
    fn new(cpu: &'a Cpu, entries: Entries, width: usize, batch: &Batch) -> Result<Self, BackendError> {
        let wrong = |what: String| BackendError::Operand { op: OP, what };
        let cache = cpu.caches.get(entries.cache.0 as usize).filter(|c| c.width == width && entries.ratio > 0);
        let cache = cache.ok_or_else(|| wrong(format!("no cache {} of width {width}", entries.cache.0)))?;
        let selected = match entries.selected {
            Some(id) => Some(cpu.buffers.get(id, OP)?),
            None => None,
        };
        let pooled = Self { cache, ratio: entries.ratio, selected: selected.map(|b| (b.values.as_slice(), b.width)) };
        for part in &batch.sequences {
            for (i, row) in part.rows.clone().enumerate() {
                let complete = (part.position + i + 1) / entries.ratio;
                if complete > cache.held(part.slot) || pooled.numbers(row, complete).any(|n| n >= complete) {
                    return Err(wrong(format!("entries beyond the {complete} that are complete at row {row}")));
                }
            }
        }
        Ok(pooled)
    }

    /// The entries of a row, ascending.
    fn numbers(self, row: usize, complete: usize) -> impl Iterator<Item = usize> + use<'a> {
        let selected = self.selected.map(|(all, width)| all.get(row * width..(row + 1) * width).unwrap_or_default());
        let all = if selected.is_some() { 0 } else { complete };
        (0..all).chain(selected.unwrap_or_default().iter().filter(|n| **n >= 0.0).map(|n| *n as usize))
    }
}

fn attend(
    cpu: &Cpu,
    q: BufferId,
    cache: CacheId,
    heads: &Heads,
    batch: &Batch,
    y: &mut [f32],
) -> Result<(), BackendError> {
    let missing = || BackendError::Operand { op: OP, what: format!("no cache {}", cache.0) };
    let cache = cpu.caches.get(cache.0 as usize).ok_or_else(missing)?;
    let queries = cpu.buffers.input(q, heads.queries * heads.dim, OP)?;
    let tiles = tiles(heads, batch);
    let pooled = heads.entries.map(|e| Pooled::new(cpu, e, heads.dim, batch)).transpose()?;
    let (isa, out) = (cpu.isa, Shards::new(y));
    let kernel = |tile| TileKernel { tile, heads, cache, pooled, queries, out: &out };
    cpu.pool.run(tiles.len(), &|i| isa.run(kernel(&tiles[i])));
    Ok(())
}

fn tiles(heads: &Heads, batch: &Batch) -> Vec<Tile> {
    let step = (QUERIES * heads.keys / heads.queries).max(1);
    let mut tiles = Vec::new();
    for part in &batch.sequences {
        for start in part.rows.clone().step_by(step) {
            let rows = start..(start + step).min(part.rows.end);
            let position = part.position + start - part.rows.start;
            let tile = |key_head| Tile { slot: part.slot, rows: rows.clone(), position, key_head };
            tiles.extend((0..heads.keys).map(tile));
        }
    }
    // Late tokens see the most keys: their tasks go first, so that the last ones to finish are short.
    tiles.reverse();
    tiles
}

struct TileKernel<'a> {
    tile: &'a Tile,
    heads: &'a Heads,
    cache: &'a Cache,
    pooled: Option<Pooled<'a>>,
    queries: &'a [f32],
    out: &'a Shards<'a, f32>,
}

/// State of one query's softmax.
#[derive(Clone, Copy)]
struct Query {
    row: usize,
    head: usize,
    /// Keys it sees.
    first: usize,
    last: usize,
    max: f32,
    sum: f32,
}

impl Kernel for TileKernel<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let &Heads { dim, scale, .. } = self.heads;
        let width = self.cache.width;
        let start = self.tile.key_head * dim;
        let end = self.tile.position + self.tile.rows.len();
        let (keys, values) = self.cache.slot(self.tile.slot, end);
        let values = if self.heads.values_in_keys.is_some() { keys } else { values };
        let value_dim = self.heads.value_dim();
        let mut queries = self.tile_queries();
        let mut acc = vec![0.0f32; queries.len() * value_dim];
        let begin = queries.iter().map(|q| q.first).min().unwrap_or(0) / BLOCK * BLOCK;
        for block in (begin..end).step_by(BLOCK) {
            for (query, acc) in queries.iter_mut().zip(acc.chunks_exact_mut(value_dim.max(1))) {
                let seen = query.first.max(block)..(query.last + 1).min(block + BLOCK);
                if seen.is_empty() {
                    continue;
                }
                let q = &self.queries[(query.row * self.heads.queries + query.head) * dim..][..dim];
                let mut scores = [f32::NEG_INFINITY; BLOCK];
                for j in seen.clone() {
                    scores[j - block] = dot(s, q, &keys[j * width + start..][..dim]) * scale;
                }
                rescale(s, query, &mut scores, acc);
                for j in seen {
                    let weight = s.splat(scores[j - block]);
                    zip_map(s, acc, &values[j * width + start..][..value_dim], &PlusTimes(weight));
                }
            }
        }
        if let Some(pooled) = self.pooled {
            self.attend_pooled(s, pooled, &mut queries, &mut acc);
        }
        for (query, acc) in queries.iter().zip(acc.chunks_exact(value_dim.max(1))) {
            let at = (query.row * self.heads.queries + query.head) * value_dim;
            // SAFETY: a (row, head) is one query of one tile.
            let out = unsafe { self.out.slice(at..at + value_dim) };
            zip_map(s, out, acc, &Times(s.splat(1.0 / query.sum)));
        }
    }
}

impl TileKernel<'_> {
    /// Goes on with the pooled keys, in blocks of their own order, which no batch changes.
    #[inline(always)]
    fn attend_pooled<S: Simd>(&self, s: S, pooled: Pooled<'_>, queries: &mut [Query], acc: &mut [f32]) {
        let &Heads { queries: heads, dim, scale, .. } = self.heads;
        let value_dim = self.heads.value_dim();
        let (keys, _) = pooled.cache.slot(self.tile.slot, pooled.cache.held(self.tile.slot));
        for (query, acc) in queries.iter_mut().zip(acc.chunks_exact_mut(value_dim.max(1))) {
            let q = &self.queries[(query.row * heads + query.head) * dim..][..dim];
            let numbers: Vec<usize> = pooled.numbers(query.row, (query.last + 1) / pooled.ratio).collect();
            for numbers in numbers.chunks(BLOCK) {
                let mut scores = [f32::NEG_INFINITY; BLOCK];
                for (score, n) in scores.iter_mut().zip(numbers) {
                    *score = dot(s, q, &keys[n * dim..][..dim]) * scale;
                }
                rescale(s, query, &mut scores, acc);
                for (score, n) in scores.iter().zip(numbers) {
                    zip_map(s, acc, &keys[n * dim..][..value_dim], &PlusTimes(s.splat(*score)));
                }
            }
        }
    }

    fn tile_queries(&self) -> Vec<Query> {
        let &Heads { queries, keys, window, ref sinks, .. } = self.heads;
        let shared = queries / keys;
        let mut all = Vec::with_capacity(self.tile.rows.len() * shared);
        for (i, row) in self.tile.rows.clone().enumerate() {
            let last = self.tile.position + i;
            let first = window.map_or(0, |w| (last + 1).saturating_sub(w));
            for head in self.tile.key_head * shared..(self.tile.key_head + 1) * shared {
                // A sink is a score that was seen before all others, with a value of 0.
                let (max, sum) = sinks.get(head).map_or((f32::NEG_INFINITY, 0.0), |sink| (*sink, 1.0));
                all.push(Query { row, head, first, last, max, sum });
            }
        }
        all
    }
}

/// Turns scores into weights e^(score − max so far), and brings what was summed before to the new maximum.
#[inline(always)]
fn rescale<S: Simd>(s: S, query: &mut Query, scores: &mut [f32; BLOCK], acc: &mut [f32]) {
    let old = query.max;
    query.max = scores.iter().fold(old, |m, v| m.max(*v));
    let max = s.splat(query.max);
    let mut sum = s.splat(0.0);
    for part in scores.as_chunks_mut::<16>().0 {
        let weights = exp(s, s.sub(s.load(part), max));
        sum = s.add(sum, weights);
        s.store(weights, part);
    }
    let mut factor = [0.0; 16];
    s.store(exp(s, s.splat(old - query.max)), &mut factor);
    query.sum = query.sum * factor[0] + s.sum(sum);
    if factor[0] != 1.0 {
        let factor = s.splat(factor[0]);
        for part in acc.chunks_mut(16) {
            let scaled = s.mul(crate::math::load_part(s, part), factor);
            let mut lanes = [0.0; 16];
            s.store(scaled, &mut lanes);
            part.copy_from_slice(&lanes[..part.len()]);
        }
    }
}
