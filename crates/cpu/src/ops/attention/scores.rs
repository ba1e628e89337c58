//! Scores of one block: `q · Kᵀ` with keys in the lanes, one sum over the head per score.
//!
//! Keys of floats meet queries in f32, entry by entry. Keys of 8-bit codes meet queries that are split into three parts
//! of 8 bits ([`Parts`]): three integer dot products, each exact, say more than a chain of f32 FMAs would, and on CPUs
//! with VNNI they take less time than converting codes and multiplying in f32.

#![expect(clippy::needless_range_loop, reason = "an index names the same query, part or vector in several arrays")]

use super::ahead::Ahead;
use super::tile::{PARTS, Queries, Tile};
use crate::kv::{Element, F16, F32, Q8};
use ashlar_backend::KV_PAGE;
use ashlar_simd::Simd;
use std::ops::Range;

/// A tile's scores, one row per query.
pub type Rows<const R: usize> = [[f32; KV_PAGE]; R];

/// Stored keys that queries can meet: floats, unless an element says otherwise.
pub trait Scores: Element + Sized {
    /// Whether queries must be split.
    const SPLIT: bool = false;

    /// rows[r][16 part …] = q[r] · keys for the vectors of keys `parts`, `C` of them at a time.
    #[inline(always)]
    fn scores<S: Simd, const R: usize, const C: usize>(
        s: S,
        (queries, tile): (&Queries, &Tile),
        keys: &[[Self::Keys; PARTS]],
        parts: &Range<usize>,
        rows: &mut Rows<R>,
        ahead: &mut Ahead<'_>,
    ) {
        floats::<S, Self, R, C>(s, queries.packed::<R>(tile), keys, parts, rows, ahead);
    }
}

impl Scores for F32 {}

impl Scores for F16 {}

impl Scores for Q8 {
    const SPLIT: bool = true;
    #[inline(always)]
    fn scores<S: Simd, const R: usize, const C: usize>(
        s: S,
        (queries, tile): (&Queries, &Tile),
        keys: &[[Self::Keys; PARTS]],
        parts: &Range<usize>,
        rows: &mut Rows<R>,
        ahead: &mut Ahead<'_>,
    ) {
        // Three sums per score and vector of keys: 24 of 32 registers where a vector is one register, else 6 of 16.
        if const { S::ROWS < 8 } {
            codes::<S, R, 1, 1>(s, queries, tile, keys, parts, rows, ahead);
        } else if const { R == 8 } {
            codes::<S, R, 8, 1>(s, queries, tile, keys, parts, rows, ahead);
        } else if const { R == 4 } {
            codes::<S, R, 4, 2>(s, queries, tile, keys, parts, rows, ahead);
        } else if const { R == 2 } {
            codes::<S, R, 2, 4>(s, queries, tile, keys, parts, rows, ahead);
        } else {
            codes::<S, R, 1, 4>(s, queries, tile, keys, parts, rows, ahead);
        }
    }
}

/// Keys of floats, one entry per row of `keys`.
#[inline(always)]
fn floats<S: Simd, K: Element, const R: usize, const C: usize>(
    s: S,
    q: &[[f32; R]],
    keys: &[[K::Keys; PARTS]],
    parts: &Range<usize>,
    rows: &mut Rows<R>,
    ahead: &mut Ahead<'_>,
) {
    // Two entries per step: asking ahead and counting then cost little.
    let ((q, last_q), (keys, last_keys)) = (q.as_chunks::<2>(), keys.as_chunks::<2>());
    ahead.within(q.len() * parts.len() / C);
    for part in parts.clone().step_by(C) {
        let mut sums = [[s.splat(0.0); C]; R];
        for (q, keys) in q.iter().zip(keys) {
            ahead.step(s);
            for i in 0..2 {
                entry::<S, K, R, C>(s, &q[i], &keys[i], part, &mut sums);
            }
        }
        for (q, keys) in last_q.iter().zip(last_keys) {
            entry::<S, K, R, C>(s, q, keys, part, &mut sums);
        }
        for r in 0..R {
            let Some(row) = rows[r].as_chunks_mut::<16>().0[part..].first_chunk_mut::<C>() else { return };
            for c in 0..C {
                s.store(sums[r][c], &mut row[c]);
            }
        }
    }
}

/// sums[r] += q[r] · one entry of keys
#[inline(always)]
fn entry<S: Simd, K: Element, const R: usize, const C: usize>(
    s: S,
    q: &[f32; R],
    keys: &[K::Keys; PARTS],
    part: usize,
    sums: &mut [[S::F32; C]; R],
) {
    let Some(keys) = keys[part..].first_chunk::<C>() else { return };
    let mut k = [s.splat(0.0); C];
    for c in 0..C {
        k[c] = K::load_key(s, &keys[c], 0);
    }
    for r in 0..R {
        let q = s.splat(q[r]);
        for c in 0..C {
            sums[r][c] = s.fma(q, k[c], sums[r][c]);
        }
    }
}

/// Parts that a query is split into.
const SPLITS: usize = 3;
/// How much finer each part is than the one before: |remainder| ≤ unit / 2 = 127 · unit / 254.
const FINER: f32 = 254.0;

/// Queries as integers: q = Σ over the parts of code · unit, with codes within ±127 and an error below 2^-24 of the
/// greatest entry.
#[derive(Default)]
pub struct Parts {
    /// Tile by tile; of a tile of n, n queries take turns every four entries: the codes of four entries, part by part.
    words: Vec<[i32; SPLITS]>,
    /// −Σ codes per query.
    minus_sums: Vec<[i32; SPLITS]>,
    units: Vec<[f32; SPLITS]>,
}

/// Words of a query.
fn words(dim: usize) -> usize {
    dim.div_ceil(4)
}

impl Parts {
    /// Room for that many queries.
    pub fn new(count: usize, dim: usize) -> Self {
        let words = vec![[0; SPLITS]; count * words(dim)];
        Self { words, minus_sums: vec![[0; SPLITS]; count], units: vec![[0.0; SPLITS]; count] }
    }

    /// Splits query number `i` of `tile`, times `scale`.
    #[inline(always)]
    pub fn set<S: Simd>(&mut self, s: S, tile: &Tile, i: usize, head: &[f32], scale: f32) {
        let (sixteens, rest) = head.as_chunks::<16>();
        let mut last = [0.0; 16];
        last[..rest.len()].copy_from_slice(rest);
        let mut greatest = s.splat(0.0);
        for q in sixteens.iter().chain([&last]) {
            let q = s.mul(s.load(q), s.splat(scale));
            greatest = s.max(s.as_f32(s.and(s.bits(q), s.splat_i32(i32::MAX))), greatest);
        }
        let first = s.greatest(greatest) / 127.0;
        let units = [first, first / FINER, first / (FINER * FINER)];
        self.units[i] = units;
        if units[SPLITS - 1] < f32::MIN_POSITIVE {
            // So small that every score is 0 to more digits than f32 has.
            return;
        }
        let all = words(head.len());
        let own = &mut self.words[tile.start * all..][..tile.count * all];
        for (chunk, q) in sixteens.iter().chain([&last]).enumerate() {
            let mut rest = s.mul(s.load(q), s.splat(scale));
            for p in 0..SPLITS {
                let near = s.mul(rest, s.splat(1.0 / units[p]));
                let codes = s.to_i32(s.min(s.max(near, s.splat(-127.0)), s.splat(127.0)));
                rest = s.fma(s.to_f32(codes), s.splat(-units[p]), rest);
                self.minus_sums[i][p] -= s.sum_i32(codes);
                let mut bytes = [0; 16];
                s.store_i8(codes, &mut bytes);
                let to = own.iter_mut().skip(4 * chunk * tile.count + i - tile.start).step_by(tile.count);
                for (to, bytes) in to.zip(bytes.as_chunks::<4>().0) {
                    to[p] = i32::from_le_bytes(*bytes);
                }
            }
        }
    }
}

/// Keys of codes, four entries per row of `keys`: `Q` of the `R` queries at a time.
#[inline(always)]
fn codes<S: Simd, const R: usize, const Q: usize, const C: usize>(
    s: S,
    queries: &Queries,
    tile: &Tile,
    keys: &[[[u8; 64]; PARTS]],
    parts: &Range<usize>,
    rows: &mut Rows<R>,
    ahead: &mut Ahead<'_>,
) {
    let split = &queries.parts;
    let words = words(queries.dim);
    let q = split.words[tile.start * words..][..R * words].as_chunks::<R>().0;
    let (minus_sums, units) = (&split.minus_sums[tile.start..][..R], &split.units[tile.start..][..R]);
    ahead.within(words * parts.len() / C * (R / Q).max(1));
    for part in parts.clone().step_by(C) {
        for first in (0..R).step_by(Q) {
            let mut sums = [[[s.splat_i32(0); SPLITS]; C]; Q];
            for r in 0..Q {
                for p in 0..SPLITS {
                    sums[r].iter_mut().for_each(|sums| {
                        sums[p] = s.splat_i32(minus_sums[(first + r) % R][p] * S::OFFSET);
                    });
                }
            }
            for (q, keys) in q.iter().zip(keys) {
                ahead.step(s);
                let Some(keys) = keys[part..].first_chunk::<C>() else { return };
                let mut k = [s.bytes(&keys[0]); C];
                for c in 0..C {
                    k[c] = s.weights(s.bytes(&keys[c]));
                }
                for r in 0..Q {
                    for p in 0..SPLITS {
                        for c in 0..C {
                            sums[r][c][p] = s.dot(sums[r][c][p], k[c], q[(first + r) % R][p]);
                        }
                    }
                }
            }
            for r in 0..Q {
                let units = units[(first + r) % R];
                for c in 0..C {
                    // Whole numbers below 2^24, exact, for heads of up to 1024.
                    let mut sum = s.mul(s.to_f32(sums[r][c][2]), s.splat(units[2]));
                    sum = s.fma(s.to_f32(sums[r][c][1]), s.splat(units[1]), sum);
                    sum = s.fma(s.to_f32(sums[r][c][0]), s.splat(units[0]), sum);
                    s.store(sum, &mut rows[(first + r) % R].as_chunks_mut::<16>().0[part + c]);
                }
            }
        }
    }
}
