//! The kernel: up to 8 queries against one block of 64 keys, scores in registers, weights in first-level cache.
//!
//! Scores (`scores.rs`) have keys in the lanes. Weighted values have the entries of a value in the lanes and run over the
//! keys in turn. Neither order depends on how many queries share a tile, so a query's result is the same bits in any
//! company.

use super::ahead::Ahead;
use super::scores::{Parts, Rows, Scores};
use crate::kv::{Block, Element};
use crate::math::exp;
use ashlar_backend::KV_PAGE;
use ashlar_simd::{Kernel, Simd};
use std::ops::Range;

/// Vectors of keys in a block.
pub const PARTS: usize = KV_PAGE / 16;

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
    pub dim: usize,
    /// Scaled; of a tile of n, n queries take turns entry by entry.
    packed: Vec<f32>,
    /// The same as integers; empty unless they were asked for.
    pub parts: Parts,
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
const fn most<S: Simd>() -> usize {
    if S::ROWS >= 8 { 8 } else { 4 }
}

impl Queries {
    /// `heads`: the queries, `dim` values each, with what each sees. `split`: as integers, too.
    #[inline(always)]
    pub fn new<'q, S: Simd>(
        s: S,
        dim: usize,
        scale: f32,
        split: bool,
        heads: impl ExactSizeIterator<Item = (&'q [f32], Range<usize>)>,
    ) -> Self {
        let count = heads.len();
        let (mut packed, mut sees) = (vec![0.0; count * dim], Vec::with_capacity(count));
        let mut parts = if split { Parts::new(count, dim) } else { Parts::default() };
        let (mut start, mut size, mut tiles) = (0, 0, Vec::with_capacity(count / most::<S>() + 3));
        for (i, (head, seen)) in heads.enumerate() {
            if i == start + size {
                start = i;
                size = [8, 4, 2, 1].into_iter().find(|n| *n <= (count - i).min(most::<S>())).unwrap_or(1);
                tiles.push(Tile { start, count: size, sees: seen.clone() });
            }
            if let Some(tile) = tiles.last_mut() {
                tile.sees = tile.sees.start.min(seen.start)..tile.sees.end.max(seen.end);
                if split {
                    parts.set(s, tile, i, head, scale);
                }
            }
            for (to, q) in packed[start * dim + i - start..].iter_mut().step_by(size).zip(head) {
                *to = q * scale;
            }
            sees.push(seen);
        }
        Self { dim, packed, parts, tiles, sees }
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.sees.len()
    }

    /// The R queries of a tile, entry by entry.
    #[inline(always)]
    pub fn packed<const R: usize>(&self, tile: &Tile) -> &[[f32; R]] {
        self.packed[tile.start * self.dim..][..R * self.dim].as_chunks::<R>().0
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

/// Adds the keys of one block, which begins at position `base`, to the softmax of every query that sees any of them.
#[inline(always)]
pub fn attend<S: Simd, K: Scores, V: Element>(
    s: S,
    queries: &Queries,
    block: &Block<'_, K, V>,
    base: usize,
    state: &mut State,
    mut ahead: Ahead<'_>,
) {
    // Scales lie behind the values that are asked for while keys are read, and would come too late. Two to a line.
    for line in block.key_scales.iter().chain(block.value_scales).step_by(2) {
        s.prefetch(line);
    }
    for tile in &queries.tiles {
        let seen = within(&tile.sees, base);
        if seen.is_empty() {
            continue;
        }
        let job = Job { queries, block, base, tile: tile.clone(), seen, state, ahead: &mut ahead };
        // Constant conditions, so that no code is made for the tiles of other instruction sets.
        match tile.count {
            8 if const { most::<S>() == 8 } => s.apart(Shaped::<_, _, 8, 2>(job)),
            4 if const { most::<S>() == 8 } => s.apart(Shaped::<_, _, 4, 4>(job)),
            2 if const { most::<S>() == 8 } => s.apart(Shaped::<_, _, 2, 4>(job)),
            4 if const { most::<S>() == 4 } => s.apart(Shaped::<_, _, 4, 1>(job)),
            2 if const { most::<S>() == 4 } => s.apart(Shaped::<_, _, 2, 2>(job)),
            _ => s.apart(Shaped::<_, _, 1, 4>(job)),
        }
    }
}

/// The part of `keys` in the block at `base`, counted from there.
fn within(keys: &Range<usize>, base: usize) -> Range<usize> {
    keys.start.saturating_sub(base).min(KV_PAGE)..keys.end.saturating_sub(base).min(KV_PAGE)
}

/// One tile and one block.
struct Job<'a, 'l, K: Scores, V: Element> {
    queries: &'a Queries,
    block: &'a Block<'a, K, V>,
    base: usize,
    tile: Tile,
    /// What any query sees of the block.
    seen: Range<usize>,
    state: &'a mut State,
    ahead: &'a mut Ahead<'l>,
}

/// A job of `R` queries, `C` vectors of keys or of a value at a time.
struct Shaped<'a, 'l, K: Scores, V: Element, const R: usize, const C: usize>(Job<'a, 'l, K, V>);

impl<K: Scores, V: Element, const R: usize, const C: usize> Kernel for Shaped<'_, '_, K, V, R, C> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Job { queries, block, base, tile, seen, state, ahead } = self.0;
        let mut weights: Rows<R> = [[0.0; KV_PAGE]; R];
        // Parts of 16 keys, in steps of C.
        let parts = seen.start / 16 / C * C..seen.end.div_ceil(16).next_multiple_of(C).min(PARTS);
        // The first tile of a block asks for all that there is to ask for.
        ahead.keys();
        K::scores::<S, R, C>(s, (queries, &tile), block.keys, &parts, &mut weights, ahead);
        if !block.key_scales.is_empty() {
            weights = scaled::<S, R>(s, block.key_scales, &parts, &weights);
        }
        let all = tile.start..tile.start + R;
        let (max, sum) = (&mut state.max[all.clone()], &mut state.sum[all.clone()]);
        let factors = softmax::<S, R>(s, &mut weights, &parts, (&queries.sees[all], base), max, sum);
        let vectors = state.vectors;
        let acc = &mut state.acc[tile.start * vectors..(tile.start + R) * vectors];
        ahead.values();
        let mut job = Sums::<V> { keys: seen.clone(), values: block.values, vectors, factors, acc, ahead };
        let (mut scales, group) = (block.value_scales, block.value_group.max(1));
        if scales.is_empty() {
            job.ahead.within(seen.len() * vectors / (2 * C));
            return job.sums::<S, R, C>(s, &weights, 0..vectors);
        }
        job.ahead.within(seen.len() * vectors / (2 * C.min(2 * group)));
        let mut first = 0;
        while first < vectors {
            let (own, rest) = scales.split_at(PARTS.min(scales.len()));
            let scaled = scaled::<S, R>(s, own, &parts, &weights);
            if const { C >= 4 } && C == 2 * group && first + C <= vectors {
                let (next, rest) = rest.split_at(PARTS.min(rest.len()));
                let both = [scaled, self::scaled::<S, R>(s, next, &parts, &weights)];
                job.weigh::<S, R, C, 2>(s, both.each_ref(), first);
                (first, scales) = (first + C, rest);
            } else {
                let end = (first + group).min(vectors);
                job.sums::<S, R, C>(s, &scaled, first..end);
                (first, scales) = (end, rest);
            }
        }
    }
}

/// Turns scores into weights e^(score − max so far), of those keys of the block at `base` that each query sees; returns
/// what brings earlier sums to the new maximum.
#[inline(always)]
fn softmax<S: Simd, const R: usize>(
    s: S,
    weights: &mut Rows<R>,
    parts: &Range<usize>,
    (sees, base): (&[Range<usize>], usize),
    max: &mut [f32],
    sum: &mut [f32],
) -> [f32; 16] {
    let mut changes = [0.0; 16];
    let mut sums = [0.0; R];
    for r in 0..R {
        let row = &mut weights[r];
        let own = within(&sees[r], base);
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

/// Rows times the scale of every key or value.
#[inline(always)]
fn scaled<S: Simd, const R: usize>(s: S, scales: &[[u8; 32]], parts: &Range<usize>, rows: &Rows<R>) -> Rows<R> {
    let mut out = [[0.0; KV_PAGE]; R];
    for (part, scale) in scales.iter().enumerate().take(parts.end).skip(parts.start) {
        let scale = s.load_f16(scale);
        for (to, from) in out.iter_mut().zip(rows) {
            let (to, from) = (&mut to.as_chunks_mut::<16>().0[part], &from.as_chunks::<16>().0[part]);
            s.store(s.mul(s.load(from), scale), to);
        }
    }
    out
}

/// The weighted values of one tile and block.
struct Sums<'a, 'l, V: Element> {
    /// The keys that any query sees.
    keys: Range<usize>,
    values: &'a [V::Vector],
    /// Vectors of a value.
    vectors: usize,
    /// What brings earlier sums to the new maximum, per query.
    factors: [f32; 16],
    /// Query by query.
    acc: &'a mut [[f32; 16]],
    ahead: &'a mut Ahead<'l>,
}

impl<V: Element> Sums<'_, '_, V> {
    /// [`Sums::weigh`] for these vectors of values.
    #[inline(always)]
    fn sums<S: Simd, const R: usize, const C: usize>(&mut self, s: S, weights: &Rows<R>, vectors: Range<usize>) {
        let mut v = vectors.start;
        while v + C <= vectors.end {
            self.weigh::<S, R, C, 1>(s, [weights], v);
            v += C;
        }
        if C > 2 && v + 2 <= vectors.end {
            self.weigh::<S, R, 2, 1>(s, [weights], v);
            v += 2;
        }
        while v < vectors.end {
            self.weigh::<S, R, 1, 1>(s, [weights], v);
            v += 1;
        }
    }

    /// acc[r] = acc[r] · factors[r] + Σ over the keys of weights[r] · value, `C` vectors of values from number `v` on. Each of
    /// the `G` sets of weights is for C / G of them.
    #[inline(always)]
    fn weigh<S: Simd, const R: usize, const C: usize, const G: usize>(
        &mut self,
        s: S,
        weights: [&Rows<R>; G],
        v: usize,
    ) {
        let (vectors, acc) = (self.vectors, &mut *self.acc);
        let mut sums = [[s.splat(0.0); C]; R];
        for r in 0..R {
            let factor = s.splat(self.factors[r]);
            for c in 0..C {
                sums[r][c] = s.mul(s.load(&acc[r * vectors + v + c]), factor);
            }
        }
        // Two keys per step, as for scores.
        let mut key = self.keys.start;
        while key + 2 <= self.keys.end {
            self.ahead.step(s);
            for i in 0..2 {
                let Some(row) = self.values.get((key + i) * vectors + v..) else { return };
                add::<S, V, R, C, G>(s, weights, key + i, row, &mut sums);
            }
            key += 2;
        }
        if key < self.keys.end {
            let Some(row) = self.values.get(key * vectors + v..) else { return };
            add::<S, V, R, C, G>(s, weights, key, row, &mut sums);
        }
        for r in 0..R {
            for c in 0..C {
                s.store(sums[r][c], &mut acc[r * vectors + v + c]);
            }
        }
    }
}

/// sums[r] += weights[r] · the value of one key
#[inline(always)]
fn add<S: Simd, V: Element, const R: usize, const C: usize, const G: usize>(
    s: S,
    weights: [&Rows<R>; G],
    key: usize,
    row: &[V::Vector],
    sums: &mut [[S::F32; C]; R],
) {
    let Some(row) = row.first_chunk::<C>() else { return };
    let mut value = [s.splat(0.0); C];
    for c in 0..C {
        value[c] = V::load(s, &row[c]);
    }
    for r in 0..R {
        for c in 0..C {
            // `key` is below 64: the mask spares a check.
            let weight = s.splat(weights[c * G / C][r][key & (KV_PAGE - 1)]);
            sums[r][c] = s.fma(weight, value[c], sums[r][c]);
        }
    }
}
