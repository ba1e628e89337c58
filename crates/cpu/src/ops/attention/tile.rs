//! The kernel: up to 8 queries against one block of 64 keys, scores in registers, weights in first-level cache.
//!
//! Scores are `q · Kᵀ` with keys in the lanes: one chain of FMAs over the head per score. Weighted values have the
//! entries of a value in the lanes and run over the keys in turn. Neither order depends on how many queries share a tile,
//! so a query's result is the same bits in any company.

use crate::kv::{Block, Element};
use crate::math::exp;
use ashlar_backend::KV_PAGE;
use ashlar_simd::{Isa, Simd};
use std::ops::Range;

/// Vectors of keys in a block.
const PARTS: usize = KV_PAGE / 16;

/// Neighbouring queries that are computed together: 8, 4, 2 or 1.
#[derive(Clone, Debug)]
pub struct Tile {
    /// The first query.
    pub start: usize,
    /// How many.
    pub count: usize,
    /// What any of them sees.
    pub sees: Range<usize>,
}

/// The queries of a task, tile by tile.
pub struct Queries {
    /// Width of a head.
    dim: usize,
    /// Scaled; of a tile of n, n queries take turns entry by entry.
    packed: Vec<f32>,
    tiles: Vec<Tile>,
    /// The keys that every query sees.
    sees: Vec<Range<usize>>,
}

/// Softmax of every query of a task over the keys seen so far.
pub struct State {
    /// Greatest score.
    pub max: Vec<f32>,
    /// Σ e^(score − max).
    pub sum: Vec<f32>,
    /// Σ e^(score − max) · value, query by query.
    pub acc: Vec<[f32; 16]>,
    /// Vectors of a value.
    pub vectors: usize,
}

/// The most queries of a tile: what their sums leave of the registers.
fn most<S: Simd>() -> usize {
    if S::ISA == Isa::Avx512Vnni { 8 } else { 4 }
}

impl Queries {
    /// `heads`: the queries, `dim` values each, with what each sees.
    #[inline(always)]
    pub fn new<'q, S: Simd>(
        _s: S,
        dim: usize,
        scale: f32,
        heads: impl ExactSizeIterator<Item = (&'q [f32], Range<usize>)>,
    ) -> Self {
        let count = heads.len();
        let (mut packed, mut sees) = (vec![0.0; count * dim], Vec::with_capacity(count));
        let (mut start, mut size, mut tiles) = (0, 0, Vec::with_capacity(count / most::<S>() + 3));
        for (i, (head, seen)) in heads.enumerate() {
            if i == start + size {
                start = i;
                size = [8, 4, 2, 1].into_iter().find(|n| *n <= (count - i).min(most::<S>())).unwrap_or(1);
                tiles.push(Tile { start, count: size, sees: seen.clone() });
            }
            if let Some(Tile { sees, .. }) = tiles.last_mut() {
                *sees = sees.start.min(seen.start)..sees.end.max(seen.end);
            }
            for (to, q) in packed[start * dim + i - start..].iter_mut().step_by(size).zip(head) {
                *to = q * scale;
            }
            sees.push(seen);
        }
        Self { dim, packed, tiles, sees }
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.sees.len()
    }

    /// What any of them sees.
    pub fn all_see(&self) -> Range<usize> {
        let both = |a: Range<usize>, b: Range<usize>| a.start.min(b.start)..a.end.max(b.end);
        self.tiles.iter().map(|t| t.sees.clone()).reduce(both).unwrap_or(0..0)
    }

    /// From now on every query sees the same keys.
    pub fn see(&mut self, keys: &Range<usize>) {
        self.sees.fill(keys.clone());
        self.tiles.iter_mut().for_each(|t| t.sees = keys.clone());
    }
}

impl State {
    /// Nothing seen.
    pub fn new(queries: usize, vectors: usize) -> Self {
        let acc = vec![[0.0; 16]; queries * vectors];
        Self { max: vec![f32::NEG_INFINITY; queries], sum: vec![0.0; queries], acc, vectors }
    }

    /// Nothing seen again.
    pub fn clear(&mut self) {
        self.max.fill(f32::NEG_INFINITY);
        self.sum.fill(0.0);
        self.acc.fill([0.0; 16]);
    }

    /// Adds what was seen of query `i` elsewhere: greatest score, sum, and weighted values.
    #[inline(always)]
    pub fn merge<S: Simd>(&mut self, s: S, i: usize, max: f32, sum: f32, values: &[[f32; 16]]) {
        if sum == 0.0 {
            return;
        }
        let acc = &mut self.acc[i * self.vectors..(i + 1) * self.vectors];
        if self.sum[i] == 0.0 {
            (self.max[i], self.sum[i]) = (max, sum);
            acc.copy_from_slice(values);
            return;
        }
        let both = self.max[i].max(max);
        let [old, new] = [self.max[i], max].map(|m| m - both);
        let (old, new) = (exp(s, s.splat(old)), exp(s, s.splat(new)));
        for (acc, v) in acc.iter_mut().zip(values) {
            s.store(s.fma(s.load(v), new, s.mul(s.load(acc), old)), acc);
        }
        let mut lanes = [0.0; 16];
        s.store(s.fma(s.splat(sum), new, s.mul(s.splat(self.sum[i]), old)), &mut lanes);
        (self.max[i], self.sum[i]) = (both, lanes[0]);
    }
}

/// Memory that the next block will read, asked for little by little.
pub struct Ahead<'a> {
    lines: &'a [[u8; 64]],
    /// Lines per step of a loop.
    per: usize,
}

impl<'a> Ahead<'a> {
    /// Nothing if the next block is not known.
    pub fn new(next: Option<&'a [u8]>) -> Self {
        Self { lines: next.unwrap_or_default().as_chunks().0, per: 0 }
    }

    /// From now on everything that is left is asked for within so many steps.
    fn within(&mut self, steps: usize) {
        self.per = self.lines.len().div_ceil(steps.max(1));
    }

    #[inline(always)]
    fn step<S: Simd>(&mut self, s: S) {
        let (now, rest) = self.lines.split_at(self.per.min(self.lines.len()));
        for line in now {
            s.prefetch(line);
        }
        self.lines = rest;
    }
}

/// Adds the keys of one block, which begins at position `base`, to the softmax of every query that sees any of them.
#[inline(always)]
pub fn attend<S: Simd, K: Element, V: Element>(
    s: S,
    queries: &Queries,
    block: &Block<'_, K, V>,
    base: usize,
    state: &mut State,
    mut ahead: Ahead<'_>,
) {
    for tile in &queries.tiles {
        let seen = within(&tile.sees, base);
        if seen.is_empty() {
            continue;
        }
        let job = Job { queries, block, base, tile: tile.clone(), seen };
        match (most::<S>(), tile.count) {
            (8, 8) => job.run::<S, 8, 2>(s, state, &mut ahead),
            (8, 4) => job.run::<S, 4, 4>(s, state, &mut ahead),
            (8, 2) => job.run::<S, 2, 4>(s, state, &mut ahead),
            (4, 4) => job.run::<S, 4, 1>(s, state, &mut ahead),
            (4, 2) => job.run::<S, 2, 2>(s, state, &mut ahead),
            _ => job.run::<S, 1, 4>(s, state, &mut ahead),
        }
    }
}

/// The part of `keys` in the block at `base`, counted from there.
fn within(keys: &Range<usize>, base: usize) -> Range<usize> {
    keys.start.saturating_sub(base).min(KV_PAGE)..keys.end.saturating_sub(base).min(KV_PAGE)
}

/// One tile and one block.
struct Job<'a, K: Element, V: Element> {
    queries: &'a Queries,
    block: &'a Block<'a, K, V>,
    base: usize,
    tile: Tile,
    /// What any query sees of the block.
    seen: Range<usize>,
}

impl<K: Element, V: Element> Job<'_, K, V> {
    /// `R` queries, `C` vectors of keys or of a value at a time.
    #[inline(always)]
    fn run<S: Simd, const R: usize, const C: usize>(self, s: S, state: &mut State, ahead: &mut Ahead<'_>) {
        let Self { queries, block, tile, seen, .. } = &self;
        let q = &queries.packed[tile.start * queries.dim..][..R * queries.dim];
        let q = q.as_chunks::<R>().0;
        let mut weights = [[0.0f32; KV_PAGE]; R];
        // Parts of 16 keys, in steps of C.
        let parts = seen.start / 16 / C * C..seen.end.div_ceil(16).next_multiple_of(C).min(PARTS);
        // The first tile of a block asks for all of the next one.
        ahead.within(q.len() * parts.len() / C);
        for part in parts.clone().step_by(C) {
            scores::<S, K, R, C>(s, q, block.keys, part, &mut weights, ahead);
        }
        let factors = self.softmax::<S, R>(s, &mut weights, &parts, state);
        let vectors = state.vectors;
        let acc = &mut state.acc[tile.start * vectors..(tile.start + R) * vectors];
        if block.value_scales.is_empty() {
            sums::<S, V, R, C>(s, &weights, seen, block.values, [vectors, 0, vectors], &factors, acc);
            return;
        }
        for (group, scales) in block.value_scales.chunks(PARTS).enumerate() {
            let mut weights = weights;
            scale::<S, R>(s, scales, &parts, &mut weights);
            let first = group * block.value_group;
            let end = (first + block.value_group).min(vectors);
            sums::<S, V, R, C>(s, &weights, seen, block.values, [vectors, first, end], &factors, acc);
        }
    }

    /// Turns scores into weights e^(score − max so far); returns what brings earlier sums to the new maximum.
    #[inline(always)]
    fn softmax<S: Simd, const R: usize>(
        &self,
        s: S,
        weights: &mut [[f32; KV_PAGE]; R],
        parts: &Range<usize>,
        state: &mut State,
    ) -> [f32; 16] {
        scale::<S, R>(s, self.block.key_scales, parts, weights);
        let mut changes = [0.0; 16];
        let (max, sum) = (&mut state.max[self.tile.start..][..R], &mut state.sum[self.tile.start..][..R]);
        let mut sums = [0.0; R];
        for r in 0..R {
            let row = &mut weights[r];
            let own = within(&self.queries.sees[self.tile.start + r], self.base);
            if own.is_empty() {
                row.fill(0.0);
                continue;
            }
            row[parts.start * 16..own.start].fill(f32::NEG_INFINITY);
            row[own.end..parts.end * 16].fill(f32::NEG_INFINITY);
            let row = &mut row.as_chunks_mut::<16>().0[parts.clone()];
            let mut greatest = s.splat(max[r]);
            for part in row.iter() {
                greatest = s.max(s.load(part), greatest);
            }
            let new = s.greatest(greatest);
            let (top, mut total) = (s.splat(new), s.splat(0.0));
            for part in row {
                let weight = exp(s, s.sub(s.load(part), top));
                total = s.add(total, weight);
                s.store(weight, part);
            }
            sums[r] = s.sum(total);
            changes[r] = max[r] - new;
            max[r] = new;
        }
        let mut factors = [0.0; 16];
        s.store(exp(s, s.load(&changes)), &mut factors);
        for r in 0..R {
            sum[r] = sum[r] * factors[r] + sums[r];
        }
        factors
    }
}

/// weights[r][16 part …] = q[r] · keys, `C` vectors of keys.
#[inline(always)]
fn scores<S: Simd, K: Element, const R: usize, const C: usize>(
    s: S,
    q: &[[f32; R]],
    keys: &[[K::Vector; 4]],
    part: usize,
    weights: &mut [[f32; KV_PAGE]; R],
    ahead: &mut Ahead<'_>,
) {
    let mut sums = [[s.splat(0.0); C]; R];
    for (q, keys) in q.iter().zip(keys) {
        ahead.step(s);
        let Some(keys) = keys[part..].first_chunk::<C>() else { return };
        let mut k = [s.splat(0.0); C];
        for c in 0..C {
            k[c] = K::load(s, &keys[c]);
        }
        for r in 0..R {
            let q = s.splat(q[r]);
            for c in 0..C {
                sums[r][c] = s.fma(q, k[c], sums[r][c]);
            }
        }
    }
    for r in 0..R {
        let Some(row) = weights[r].as_chunks_mut::<16>().0[part..].first_chunk_mut::<C>() else { return };
        for c in 0..C {
            s.store(sums[r][c], &mut row[c]);
        }
    }
}

/// Multiplies by the scale of every key or value, where there are scales.
#[inline(always)]
fn scale<S: Simd, const R: usize>(s: S, scales: &[[u8; 32]], parts: &Range<usize>, weights: &mut [[f32; KV_PAGE]; R]) {
    for row in weights.iter_mut() {
        let row = &mut row.as_chunks_mut::<16>().0[parts.clone()];
        for (part, scale) in row.iter_mut().zip(scales.iter().skip(parts.start)) {
            s.store(s.mul(s.load(part), s.load_f16(scale)), part);
        }
    }
}

/// [`weigh`] for the vectors `v` to `end` of values.
#[inline(always)]
fn sums<S: Simd, V: Element, const R: usize, const C: usize>(
    s: S,
    weights: &[[f32; KV_PAGE]; R],
    keys: &Range<usize>,
    values: &[V::Vector],
    [vectors, mut v, end]: [usize; 3],
    factors: &[f32; 16],
    acc: &mut [[f32; 16]],
) {
    while v + C <= end {
        weigh::<S, V, R, C>(s, weights, keys, values, [vectors, v], factors, acc);
        v += C;
    }
    if C > 2 && v + 2 <= end {
        weigh::<S, V, R, 2>(s, weights, keys, values, [vectors, v], factors, acc);
        v += 2;
    }
    while v < end {
        weigh::<S, V, R, 1>(s, weights, keys, values, [vectors, v], factors, acc);
        v += 1;
    }
}

/// acc[r] = acc[r] · factors[r] + Σ over the keys of weights[r] · value, `C` vectors of values from number `v` on.
#[inline(always)]
fn weigh<S: Simd, V: Element, const R: usize, const C: usize>(
    s: S,
    weights: &[[f32; KV_PAGE]; R],
    keys: &Range<usize>,
    values: &[V::Vector],
    [vectors, v]: [usize; 2],
    factors: &[f32; 16],
    acc: &mut [[f32; 16]],
) {
    let mut sums = [[s.splat(0.0); C]; R];
    for r in 0..R {
        let factor = s.splat(factors[r]);
        for c in 0..C {
            sums[r][c] = s.mul(s.load(&acc[r * vectors + v + c]), factor);
        }
    }
    for (key, row) in keys.clone().zip(values[keys.start * vectors + v..].chunks(vectors)) {
        let Some(row) = row.first_chunk::<C>() else { return };
        let mut value = [s.splat(0.0); C];
        for c in 0..C {
            value[c] = V::load(s, &row[c]);
        }
        for r in 0..R {
            // `key` is below 64: the mask spares a check.
            let weight = s.splat(weights[r][key & (KV_PAGE - 1)]);
            for c in 0..C {
                sums[r][c] = s.fma(weight, value[c], sums[r][c]);
            }
        }
    }
    for r in 0..R {
        for c in 0..C {
            s.store(sums[r][c], &mut acc[r * vectors + v + c]);
        }
    }
}
