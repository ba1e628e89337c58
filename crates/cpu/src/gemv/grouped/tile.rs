//! The int8 product for many rows: weights of a few panels are expanded once to bytes that fit the L1 cache, zero points
//! and all, and every row of activations passes over them.
//!
//!   for each 256 rows, for each P panels, for each 256 columns:
//!       expand P · 16 × 256 weights and their scales            once per 256 rows
//!       for each R rows: R × P sums in registers                 see `Multiply`
//!
//! Expanding is the only part that knows the format, so that the product is compiled once per instruction set. Rows and
//! panels that are missing from a full tile are computed again and dropped. The operations on floats are those of
//! `int8.rs` in the same order, so that a row gives the same bits in any batch.

#![expect(clippy::needless_range_loop, reason = "an index names the same row, panel or vector in several arrays")]

use super::super::{COLUMNS, Job, PANEL, RowSet, Sink};
use super::codes::{Integers, VECTORS};
use super::int8::Panels;
use super::scales::Scaling;
use crate::inputs::{Inputs, Int8Group};
use ashlar_simd::{Kernel, Simd};
use std::ops::Range;

/// Rows from which expanding pays.
pub const LEAST_ROWS: usize = 5;
/// Blocks of 32 columns of a tile: with 4 panels 16 KiB of weights.
const BLOCKS: usize = 8;
/// Rows that pass over a tile: their codes for its columns stay in the L2 cache.
const ROW_CHUNK: usize = 256;

/// Panels of a tile on every ISA: with one register per vector 4, else the sums would not fit.
struct Width;

impl Kernel for Width {
    type Output = usize;
    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> usize {
        if wide::<S>() { 4 } else { 1 }
    }
}

#[inline(always)]
fn wide<S: Simd>() -> bool {
    S::ROWS >= 8
}

/// A cache line: a vector that lay across two would be read twice.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line<T>(T);

/// Expanded weights: signed bytes as [`Simd::dot`] wants them.
struct Tile {
    /// Panels.
    width: usize,
    /// `[block][vector of 4 columns][panel]`
    weights: Vec<Line<[u8; 64]>>,
    /// `[block][part][panel]`
    scales: Vec<Line<[f32; PANEL]>>,
}

/// Computes `panels` for all rows of the job.
pub fn drive<C: Integers, Z: Scaling>(kernel: &Panels<'_, C, Z>, job: &Job<'_>, panels: Range<usize>, sink: Sink<'_>) {
    let (isa, blocks) = (job.isa, kernel.inputs.k / COLUMNS);
    let width = isa.run(Width);
    let mut tile = Tile {
        width,
        weights: vec![Line([0; 64]); BLOCKS * VECTORS * width],
        scales: vec![Line([0.0; PANEL]); BLOCKS * Z::PARTS * width],
    };
    let mut sums = Vec::new();
    let unit = kernel.codes.unit();
    for start in (0..job.rows.len()).step_by(ROW_CHUNK) {
        let rows = start..(start + ROW_CHUNK).min(job.rows.len());
        for first in panels.clone().step_by(width) {
            let panels = first..(first + width).min(panels.end);
            sums.clear();
            sums.resize(rows.len() * width, Line([0.0; PANEL]));
            for begin in (0..blocks).step_by(BLOCKS) {
                let blocks = begin..(begin + BLOCKS).min(blocks);
                isa.run(Expand { kernel, panels: panels.clone(), blocks: blocks.clone(), tile: &mut tile });
                let (inputs, set, tile) = (kernel.inputs, job.rows, &tile);
                let (rows, sums) = (rows.clone(), &mut sums[..]);
                if Z::PARTS == 1 {
                    isa.run(Multiply::<1> { tile, inputs, set, rows, blocks, sums });
                } else {
                    isa.run(Multiply::<2> { tile, inputs, set, rows, blocks, sums });
                }
            }
            for (row, sums) in rows.clone().zip(sums.chunks_exact(width)) {
                for (panel, sums) in panels.clone().zip(sums) {
                    sink(row, panel, &sums.0.map(|y| y * unit));
                }
            }
        }
    }
}

struct Expand<'a, C, Z> {
    kernel: &'a Panels<'a, C, Z>,
    panels: Range<usize>,
    blocks: Range<usize>,
    tile: &'a mut Tile,
}

impl<C: Integers, Z: Scaling> Kernel for Expand<'_, C, Z> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { kernel, panels, blocks, tile } = self;
        let tables = kernel.codes.tables(s);
        let offset = s.repeat(&[C::offset::<S>() as u8; 16]);
        for (p, panel) in panels.enumerate() {
            for (i, block) in blocks.clone().enumerate() {
                let codes = kernel.block(panel, block);
                for part in 0..Z::PARTS {
                    let (scale, zero) = kernel.scaling.at(s, panel, block, part);
                    s.store(scale, &mut tile.scales[(i * Z::PARTS + part) * tile.width + p].0);
                    // A zero point of a row, in every byte of its lane.
                    let lanes = s.and(s.to_i32(zero), s.splat_i32(255));
                    let pairs = s.or(lanes, s.shl(lanes, 8));
                    let zeros = s.as_bytes(s.or(pairs, s.shl(pairs, 16)));
                    for v in part * VECTORS / Z::PARTS..(part + 1) * VECTORS / Z::PARTS {
                        let mut w = s.sub_bytes(C::weights(s, tables, codes, v), offset);
                        if Z::ZEROS {
                            w = s.sub_bytes(w, zeros);
                        }
                        s.store_bytes(s.weights(w), &mut tile.weights[(i * VECTORS + v) * tile.width + p].0);
                    }
                }
            }
        }
    }
}

/// The product of a tile with some rows; `PARTS`: weight scales per 32 columns.
struct Multiply<'a, const PARTS: usize> {
    tile: &'a Tile,
    inputs: Inputs<'a>,
    set: RowSet<'a>,
    rows: Range<usize>,
    blocks: Range<usize>,
    /// `[row][panel]`, added to.
    sums: &'a mut [Line<[f32; PANEL]>],
}

impl<const PARTS: usize> Kernel for Multiply<'_, PARTS> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // R · P integer sums and as many float ones stay in registers; two parts need as many again.
        match (wide::<S>(), PARTS) {
            (true, 1) => self.all::<S, 3, 4>(s),
            (true, _) => self.all::<S, 2, 4>(s),
            (false, 1) => self.all::<S, 3, 1>(s),
            (false, _) => self.all::<S, 2, 1>(s),
        }
    }
}

impl<const PARTS: usize> Multiply<'_, PARTS> {
    #[inline(always)]
    fn all<S: Simd, const R: usize, const P: usize>(self, s: S) {
        let count = self.rows.len();
        for first in (0..count).step_by(R) {
            let mut x: [&[Int8Group]; R] = [&[]; R];
            let mut acc = [[s.splat(0.0); P]; R];
            for r in 0..R {
                let row = (first + r).min(count - 1);
                x[r] = &self.inputs.int8(self.set.get(self.rows.start + row))[self.blocks.clone()];
                for p in 0..P {
                    acc[r][p] = s.load(&self.sums[row * P + p].0);
                }
            }
            let weights = self.tile.weights.as_chunks::<P>().0.as_chunks::<VECTORS>().0;
            let scales = self.tile.scales.as_chunks::<P>().0.as_chunks::<PARTS>().0;
            for (block, (weights, scales)) in weights.iter().zip(scales).take(self.blocks.len()).enumerate() {
                let mut groups = [&x[0][block]; R];
                for r in 1..R {
                    groups[r] = &x[r][block];
                }
                step::<S, R, P, PARTS>(s, weights, scales, groups, &mut acc);
            }
            for r in 0..R.min(count - first) {
                for p in 0..P {
                    s.store(acc[r][p], &mut self.sums[(first + r) * P + p].0);
                }
            }
        }
    }
}

/// One block of 32 columns: R × P panels.
#[inline(always)]
fn step<S: Simd, const R: usize, const P: usize, const PARTS: usize>(
    s: S,
    weights: &[[Line<[u8; 64]>; P]; VECTORS],
    scales: &[[Line<[f32; PANEL]>; P]; PARTS],
    x: [&Int8Group; R],
    acc: &mut [[S::F32; P]; R],
) {
    let mut sums = [[s.splat(0.0); P]; R];
    for part in 0..PARTS {
        let mut dots = [[s.splat_i32(0); P]; R];
        if S::OFFSET != 0 {
            for r in 0..R {
                dots[r] = [s.shl(s.splat_i32(x[r].minus(PARTS, part)), S::OFFSET.trailing_zeros()); P];
            }
        }
        for v in part * VECTORS / PARTS..(part + 1) * VECTORS / PARTS {
            let mut w = [s.bytes(&weights[v][0].0); P];
            for p in 1..P {
                w[p] = s.bytes(&weights[v][p].0);
            }
            for r in 0..R {
                for p in 0..P {
                    dots[r][p] = s.dot(dots[r][p], w[p], x[r].words[v]);
                }
            }
        }
        for p in 0..P {
            let scale = s.load(&scales[part][p].0);
            for r in 0..R {
                let d = s.to_f32(dots[r][p]);
                sums[r][p] = if part == 0 { s.mul(d, scale) } else { s.fma(d, scale, sums[r][p]) };
            }
        }
    }
    for r in 0..R {
        let scale = s.splat(x[r].scale);
        for p in 0..P {
            acc[r][p] = s.fma(sums[r][p], scale, acc[r][p]);
        }
    }
}
