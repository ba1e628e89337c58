//! Inner scales times outer scales, and the choice between two grids as a zero point.
//!
//! The second grid of every format is the first one moved by a constant: level + shift · bit = level − zero with
//! zero = −shift · bit. What remains of a group's parameter is its scale.

use super::super::grouped::scales::{ScaleKind, Scaling};
use super::super::{COLUMNS, PANEL};
use crate::loaded::Loaded;
use ashlar_formats::parameters::block_bytes;
use ashlar_formats::{Inner, TwoLevel};
use ashlar_simd::Simd;
use std::marker::PhantomData;

/// How parameters are stored and read, as a type for the same reason as [`ScaleKind`].
pub trait Parameters: Copy {
    /// Bits of one.
    const BITS: usize;
    /// Whether they choose between two grids.
    const DUAL: bool;
    /// The parameters of 16 rows from [`block_bytes`] bytes.
    fn load<S: Simd>(s: S, bytes: &[u8]) -> S::I32;
}

/// Two's-complement bytes.
#[derive(Clone, Copy)]
pub struct Signed;

/// Grid and unsigned scale in 8 bits.
#[derive(Clone, Copy)]
pub struct Dual8;

/// The same in 6 bits: a plane of nibbles, and one of the two bits above.
#[derive(Clone, Copy)]
pub struct Dual6;

/// The same in 5 bits.
#[derive(Clone, Copy)]
pub struct Dual5;

impl Parameters for Signed {
    const BITS: usize = 8;
    const DUAL: bool = false;
    #[inline(always)]
    fn load<S: Simd>(s: S, bytes: &[u8]) -> S::I32 {
        s.sar(s.shl(Dual8::load(s, bytes), 24), 24)
    }
}

impl Parameters for Dual8 {
    const BITS: usize = 8;
    const DUAL: bool = true;
    #[inline(always)]
    fn load<S: Simd>(s: S, bytes: &[u8]) -> S::I32 {
        bytes.first_chunk().map_or_else(|| s.splat_i32(0), |bytes| s.load_u8(bytes))
    }
}

/// A nibble for each of 16 rows.
#[inline(always)]
fn nibbles<S: Simd>(s: S, [low, high]: [[u8; 4]; 2]) -> S::I32 {
    const SHIFTS: [i32; PANEL] = [0, 4, 8, 12, 16, 20, 24, 28, 0, 4, 8, 12, 16, 20, 24, 28];
    let both = s.halves(i32::from_le_bytes(low), i32::from_le_bytes(high));
    s.and(s.shr_each(both, s.load_i32(&SHIFTS)), s.splat_i32(15))
}

impl Parameters for Dual6 {
    const BITS: usize = 6;
    const DUAL: bool = true;
    #[inline(always)]
    fn load<S: Simd>(s: S, bytes: &[u8]) -> S::I32 {
        const SHIFTS: [i32; PANEL] = [0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30];
        let Some(&[a, b, c]) = bytes.as_chunks::<4>().0.first_chunk() else { return s.splat_i32(0) };
        let above = s.shr_each(s.splat_i32(i32::from_le_bytes(c)), s.load_i32(&SHIFTS));
        s.or(nibbles(s, [a, b]), s.shl(s.and(above, s.splat_i32(3)), 4))
    }
}

impl Parameters for Dual5 {
    const BITS: usize = 5;
    const DUAL: bool = true;
    #[inline(always)]
    fn load<S: Simd>(s: S, bytes: &[u8]) -> S::I32 {
        const SHIFTS: [i32; PANEL] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
        let Some(&[a, b, c, d, e, f, g, h, i, j]) = bytes.first_chunk() else { return s.splat_i32(0) };
        let above = s.shr_each(s.splat_i32(i32::from(u16::from_le_bytes([i, j]))), s.load_i32(&SHIFTS));
        s.or(nibbles(s, [[a, b, c, d], [e, f, g, h]]), s.shl(s.and(above, s.splat_i32(1)), 4))
    }
}

/// The planes of scales; `K`: how outer scales are stored; `PARTS`: groups in 32 columns.
#[derive(Clone, Copy)]
pub struct InnerOuter<'a, P, K, const PARTS: usize> {
    inner: &'a [u8],
    outer: &'a [u8],
    /// Groups along k.
    groups: usize,
    /// Outer scales along k.
    spans: usize,
    /// log2 of the blocks of 32 columns per outer scale.
    shift: u32,
    /// inner scale = step · u − zero
    step: f32,
    zero: f32,
    /// Bits of the f32 that a group of the second grid has as its zero point.
    moved: i32,
    kind: PhantomData<(P, K)>,
}

impl<'a, P: Parameters, K: ScaleKind, const PARTS: usize> InnerOuter<'a, P, K, PARTS> {
    /// The scales of a weight whose second grid lies `moved` above the first.
    pub fn new(weight: &'a Loaded, grid: &TwoLevel, moved: f32) -> Self {
        let first = if grid.high.is_some() { 2 } else { 1 };
        let (k, span) = (weight.weight.k, grid.span.unwrap_or(usize::MAX / 2 + 1));
        let (step, zero) = match grid.inner {
            Inner::Signed => (1, 0),
            Inner::Dual { step, zero, .. } => (step, zero),
        };
        Self {
            inner: weight.plane(first),
            outer: weight.plane(first + 1),
            groups: k / grid.group,
            spans: grid.spans(k),
            shift: (span / COLUMNS).trailing_zeros(),
            step: step as f32,
            zero: zero as f32,
            moved: (-moved).to_bits().cast_signed(),
            kind: PhantomData,
        }
    }
}

impl<P: Parameters, K: ScaleKind, const PARTS: usize> Scaling for InnerOuter<'_, P, K, PARTS> {
    const ZEROS: bool = P::DUAL;
    const PARTS: usize = PARTS;

    #[inline(always)]
    fn at<S: Simd>(&self, s: S, panel: usize, block: usize, part: usize) -> (S::F32, S::F32) {
        let at = (panel * self.groups + block * PARTS + part) * const { block_bytes(P::BITS) };
        let parameters = P::load(s, &self.inner[at..at + block_bytes(P::BITS)]);
        let at = panel * self.spans + (block >> self.shift);
        let outer = K::load(s, &self.outer[at * K::BYTES..(at + 1) * K::BYTES]);
        if !P::DUAL {
            return (s.mul(outer, s.to_f32(parameters)), s.splat(0.0));
        }
        // Exact: small integers.
        let inner = s.fma(s.to_f32(s.shr(parameters, 1)), s.splat(self.step), s.splat(-self.zero));
        let second = s.sar(s.shl(parameters, 31), 31);
        (s.mul(outer, inner), s.as_f32(s.and(second, s.splat_i32(self.moved))))
    }

    #[inline(always)]
    fn prefetch<S: Simd>(&self, s: S, block: usize) {
        if let Some(inner) = self.inner.get(block * PARTS * const { block_bytes(P::BITS) }) {
            s.prefetch(inner);
        }
        // A scale for the whole width, if there is one, is in the cache already.
        if let Some(outer) = self.outer.get((block >> self.shift) * K::BYTES) {
            s.prefetch(outer);
        }
    }
}
