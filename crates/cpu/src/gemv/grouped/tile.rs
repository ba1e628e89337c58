//! The int8 product for many rows: weights of a few panels are expanded once to bytes that fit the L1 cache, zero points
//! and all, and every row of activations passes over them.
//!
//!   for each 512 rows, for each P panels, for each 256 columns (128 with two scales per 32):
//!       expand P · 16 × 256 weights, and their scales times 8/8 … 15/8      once per 512 rows
//!       for each R rows: R × P sums in registers                            see `Multiply`
//!
//! An activation scale is m/8 · 2^e: m picks one of the eight multiples of a weight's scale, and 2^e comes with the
//! conversion of the integer sums ([`Int8Group`]). A group then costs one multiplication (an FMA) beside its dot products,
//! which on AVX-512 share their ports with multiplications, but not with the subtraction that ends the conversion.
//!
//! Expanding is the only part that knows the format, so that the product is compiled once per instruction set. Rows and
//! panels that are missing from a full tile are computed again and dropped. The sums are those of `int8.rs` to the bit,
//! so that a row gives the same in any batch. Codes of the next tile are asked for while this one is multiplied: else
//! every expansion would wait for memory.

#![expect(clippy::needless_range_loop, reason = "an index names the same row, panel or vector in several arrays")]

use super::super::{COLUMNS, Job, PANEL, RowSet, Sink};
use super::codes::{Integers, MOST_DIGITS, VECTORS};
use super::int8::Panels;
use super::scales::Scaling;
use crate::inputs::{Inputs, Int8Group, SLAB};
use ashlar_simd::{Isa, Kernel, Simd};
use ashlar_tensor::AlignedBytes;
use std::cell::RefCell;
use std::marker::PhantomData;
use std::ops::Range;

/// Rows from which expanding pays.
pub const LEAST_ROWS: usize = 32;
/// Scale vectors per panel of a tile: with 4 panels, 16 KiB of their multiples and 16 or 8 of weights. A tile lies within
/// a slab of the inputs.
const SCALES: usize = SLAB;
/// Blocks of a tile: where a level has several digits, each of them takes the room of a block.
const fn blocks<C: Integers, Z: Scaling>() -> usize {
    SCALES / Z::PARTS / C::DIGITS.next_power_of_two()
}
/// Rows that pass over a tile: their codes for its columns (256 KiB) and their sums (128 KiB) stay in the L2 cache.
const ROW_CHUNK: usize = 512;
/// Multiples of a weight's scale.
const EIGHTHS: usize = 8;

/// Panels of a tile where a vector is one register; else the sums would not fit. Tasks are multiples of it.
pub const WIDE: usize = 4;

/// Panels of a tile on every ISA.
struct Width;

impl Kernel for Width {
    type Output = usize;
    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> usize {
        if wide::<S>() { WIDE } else { 1 }
    }
}

const fn wide<S: Simd>() -> bool {
    S::ROWS >= 8
}

/// A cache line: a vector that lay across two would be read twice.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line<T>(T);

/// Whether a tile holds codes as they are, with their offset: where [`Simd::dot_small`] is faster than [`Simd::dot`]. No zero
/// point may be subtracted then.
#[inline(always)]
fn small<C: Integers, Z: Scaling>(isa: Isa) -> bool {
    isa == Isa::Avx2 && C::SMALL && !Z::ZEROS
}

/// The offset of codes that are held as they are, else 0: signed bytes come with that of the instruction set.
struct Offset<C, Z>(PhantomData<(C, Z)>);

impl<C: Integers, Z: Scaling> Kernel for Offset<C, Z> {
    type Output = i32;
    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> i32 {
        if small::<C, Z>(S::ISA) { C::offset::<S>() } else { 0 }
    }
}

/// Expanded weights: signed bytes as [`Simd::dot`] wants them, or small codes.
#[derive(Default)]
struct Tile {
    /// Panels.
    width: usize,
    /// `[block][digit][vector of 4 columns][panel]`
    weights: Vec<Line<[u8; 64]>>,
    /// `[block][digit][part][eighths][panel]`
    scales: Vec<Line<[f32; PANEL]>>,
}

/// Memory of a thread, kept from task to task: pages that came and went would cost as much as the product of a tile.
#[derive(Default)]
struct Scratch {
    tile: Tile,
    /// `[row][panel]`, f32 × 16
    sums: Option<AlignedBytes>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Computes `panels` for all rows of the job.
pub fn drive<C: Integers, Z: Scaling>(kernel: &Panels<'_, C, Z>, job: &Job<'_>, panels: Range<usize>, sink: Sink<'_>) {
    SCRATCH.with_borrow_mut(|scratch| {
        let width = job.isa.run(Width);
        scratch.tile.width = width;
        let vectors = blocks::<C, Z>() * C::DIGITS * width;
        scratch.tile.weights.resize(vectors * VECTORS, Line([0; 64]));
        scratch.tile.scales.resize(vectors * Z::PARTS * EIGHTHS, Line([0.0; PANEL]));
        for start in (0..job.rows.len()).step_by(ROW_CHUNK) {
            let rows = start..(start + ROW_CHUNK).min(job.rows.len());
            for first in panels.clone().step_by(width) {
                let after = first + width..(first + 2 * width).min(panels.end);
                let panels = first..(first + width).min(panels.end);
                let sums = sums(kernel, job, rows.clone(), [panels.clone(), after], scratch);
                for (row, sums) in rows.clone().zip(sums.chunks_exact(width)) {
                    sink(row, panels.start, &sums[..panels.len()]);
                }
            }
        }
    });
}

/// The products of some rows and the panels of one tile, `[row][panel]`; `after` are the panels of the next.
fn sums<'s, C: Integers, Z: Scaling>(
    kernel: &Panels<'_, C, Z>,
    job: &Job<'_>,
    rows: Range<usize>,
    [panels, after]: [Range<usize>; 2],
    scratch: &'s mut Scratch,
) -> &'s [[f32; PANEL]] {
    let (isa, inputs, set) = (job.isa, kernel.inputs, job.rows);
    let (step, all) = (blocks::<C, Z>(), kernel.inputs.k / COLUMNS);
    let Scratch { tile, sums } = scratch;
    let bytes = ROW_CHUNK.min(job.rows.len()) * tile.width * size_of::<[f32; PANEL]>();
    if sums.as_ref().is_none_or(|held| held.len() < bytes) {
        *sums = AlignedBytes::zeroed(bytes);
    }
    let sums: &mut [[f32; PANEL]] = sums.as_mut().map_or(&mut [], |held| bytemuck::cast_slice_mut(held));
    let mut ahead = Vec::new();
    for begin in (0..all).step_by(step) {
        let blocks = begin..(begin + step).min(all);
        isa.run(Expand { kernel, panels: panels.clone(), blocks: blocks.clone(), tile });
        ahead.clear();
        if blocks.end < all {
            kernel.lines(panels.clone(), blocks.end..(blocks.end + step).min(all), &mut ahead);
        } else {
            kernel.lines(after.clone(), 0..step.min(all), &mut ahead);
        }
        let (rows, tile, ahead, sums) = (rows.clone(), &*tile, &ahead[..], &mut *sums);
        const { assert!(C::DIGITS == 1 || C::DIGITS == MOST_DIGITS && Z::PARTS == 1) };
        let offset = isa.run(Offset::<C, Z>(PhantomData));
        match (C::DIGITS, Z::PARTS, offset) {
            (1, 1, 0) => isa.run(Multiply::<1, 1, false> { tile, inputs, set, rows, blocks, ahead, offset, sums }),
            (1, 1, _) => isa.run(Multiply::<1, 1, true> { tile, inputs, set, rows, blocks, ahead, offset, sums }),
            (1, _, 0) => isa.run(Multiply::<1, 2, false> { tile, inputs, set, rows, blocks, ahead, offset, sums }),
            (1, _, _) => isa.run(Multiply::<1, 2, true> { tile, inputs, set, rows, blocks, ahead, offset, sums }),
            (.., 0) => {
                isa.run(Multiply::<MOST_DIGITS, 1, false> { tile, inputs, set, rows, blocks, ahead, offset, sums })
            }
            _ => isa.run(Multiply::<MOST_DIGITS, 1, true> { tile, inputs, set, rows, blocks, ahead, offset, sums }),
        }
    }
    sums
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
        let (tables, units) = (kernel.codes.tables(s), kernel.codes.units());
        let offset = s.repeat(&[C::offset::<S>() as u8; 16]);
        for (p, panel) in panels.enumerate() {
            for (i, block) in blocks.clone().enumerate() {
                let codes = kernel.block(panel, block);
                for part in 0..Z::PARTS {
                    let (scale, zero) = kernel.scaling.at(s, panel, block, part);
                    // A zero point of a row, in every byte of its lane.
                    let lanes = s.and(s.to_i32(zero), s.splat_i32(255));
                    let pairs = s.or(lanes, s.shl(lanes, 8));
                    let zeros = s.as_bytes(s.or(pairs, s.shl(pairs, 16)));
                    for digit in 0..C::DIGITS {
                        let i = i * C::DIGITS + digit;
                        for eighths in 0..EIGHTHS {
                            let at = ((i * Z::PARTS + part) * EIGHTHS + eighths) * tile.width + p;
                            let factor = s.splat((1.0 + eighths as f32 / 8.0) * units[digit]);
                            s.store(s.mul(scale, factor), &mut tile.scales[at].0);
                        }
                        for v in part * VECTORS / Z::PARTS..(part + 1) * VECTORS / Z::PARTS {
                            let mut w = C::digit(s, tables, codes, v, digit);
                            if !small::<C, Z>(S::ISA) && (Z::ZEROS || C::offset::<S>() != S::OFFSET) {
                                w = s.sub_bytes(w, offset);
                                if Z::ZEROS {
                                    w = s.sub_bytes(w, zeros);
                                }
                                w = s.weights(w);
                            }
                            s.store_bytes(w, &mut tile.weights[(i * VECTORS + v) * tile.width + p].0);
                        }
                    }
                }
            }
        }
    }
}

/// The product of a tile with some rows; `DIGITS`: of a level; `PARTS`: weight scales per 32 columns; `SMALL`: codes
/// are held as they are.
struct Multiply<'a, const DIGITS: usize, const PARTS: usize, const SMALL: bool> {
    tile: &'a Tile,
    inputs: Inputs<'a>,
    set: RowSet<'a>,
    rows: Range<usize>,
    blocks: Range<usize>,
    /// What the next tile is made of.
    ahead: &'a [&'a [u8; 64]],
    /// What small codes come with.
    offset: i32,
    /// `[row][panel]`, set by the first blocks and added to by the others.
    sums: &'a mut [[f32; PANEL]],
}

impl<const DIGITS: usize, const PARTS: usize, const SMALL: bool> Kernel for Multiply<'_, DIGITS, PARTS, SMALL> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // R · P integer sums, as many float ones and P weights stay in registers.
        if const { wide::<S>() } { self.all::<S, 3, WIDE>(s) } else { self.all::<S, 3, 1>(s) }
    }
}

impl<const DIGITS: usize, const PARTS: usize, const SMALL: bool> Multiply<'_, DIGITS, PARTS, SMALL> {
    #[inline(always)]
    fn all<S: Simd, const R: usize, const P: usize>(self, s: S) {
        let count = self.rows.len();
        let mut ahead = self.ahead.chunks(self.ahead.len().div_ceil(count.div_ceil(R)).max(1));
        for first in (0..count).step_by(R) {
            let mut x: [&[Int8Group]; R] = [&[]; R];
            let mut acc = [[s.splat(0.0); P]; R];
            for r in 0..R {
                let row = (first + r).min(count - 1);
                x[r] = self.groups(row);
                for p in 0..P {
                    if self.blocks.start > 0 {
                        acc[r][p] = s.load(&self.sums[row * P + p]);
                    }
                }
            }
            for line in ahead.next().unwrap_or_default() {
                s.prefetch(*line);
            }
            let weights = self.tile.weights.as_chunks::<P>().0.as_chunks::<VECTORS>().0;
            let scales = self.tile.scales.as_chunks::<P>().0.as_chunks::<EIGHTHS>().0.as_chunks::<PARTS>().0;
            let digits = weights.as_chunks::<DIGITS>().0.iter().zip(scales.as_chunks::<DIGITS>().0);
            for (block, (weights, scales)) in digits.take(self.blocks.len()).enumerate() {
                let mut groups = [&x[0][block]; R];
                for r in 1..R {
                    groups[r] = &x[r][block];
                }
                for digit in 0..DIGITS {
                    step::<S, R, P, PARTS, SMALL>(s, &weights[digit], &scales[digit], groups, self.offset, &mut acc);
                }
            }
            for r in 0..R.min(count - first) {
                for p in 0..P {
                    s.store(acc[r][p], &mut self.sums[(first + r) * P + p]);
                }
            }
        }
    }

    /// The groups of the tile's columns in row `row` of these.
    #[inline(always)]
    fn groups(&self, row: usize) -> &[Int8Group] {
        let slab = self.blocks.start / SLAB;
        let within = self.blocks.start - slab * SLAB..self.blocks.end - slab * SLAB;
        &self.inputs.int8(self.set.get(self.rows.start + row), slab)[within]
    }
}

/// One block of 32 columns: R × P panels.
#[inline(always)]
fn step<S: Simd, const R: usize, const P: usize, const PARTS: usize, const SMALL: bool>(
    s: S,
    weights: &[[Line<[u8; 64]>; P]; VECTORS],
    scales: &[[[Line<[f32; PANEL]>; P]; EIGHTHS]; PARTS],
    x: [&Int8Group; R],
    offset: i32,
    acc: &mut [[S::F32; P]; R],
) {
    for part in 0..PARTS {
        let mut dots = [[s.splat_i32(0); P]; R];
        for r in 0..R {
            let own = if SMALL { x[r].minus(PARTS, part).wrapping_mul(offset) } else { 0 };
            dots[r] = [s.splat_i32(x[r].start(PARTS, part).wrapping_add(own)); P];
        }
        for v in part * VECTORS / PARTS..(part + 1) * VECTORS / PARTS {
            let mut w = [s.bytes(&weights[v][0].0); P];
            for p in 1..P {
                w[p] = s.bytes(&weights[v][p].0);
            }
            for r in 0..R {
                for p in 0..P {
                    let x = x[r].words[v];
                    dots[r][p] = if SMALL { s.dot_small(dots[r][p], w[p], x) } else { s.dot(dots[r][p], w[p], x) };
                }
            }
        }
        for r in 0..R {
            let (base, scales) = (s.splat(x[r].base), &scales[part][x[r].eighths()]);
            for p in 0..P {
                // Exact: an integer below 2^22 times a power of two.
                let d = s.sub(s.as_f32(dots[r][p]), base);
                acc[r][p] = s.fma(d, s.load(&scales[p].0), acc[r][p]);
            }
        }
    }
}
