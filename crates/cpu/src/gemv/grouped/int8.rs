//! Integer dot products of codes and int8 activations.
//!
//!   for each 32 columns:  d = Σ code · x          exact, i32, one lane per row
//!                         y += f32(d) · (weight scale · activation scale)
//!
//! The dot-product instruction wants unsigned weights, so it sees code + offset; the accumulator starts at
//! −offset · Σx, for which the inputs bring −Σx along. A group longer than 32 columns has several activation scales, so
//! its parts are scaled one by one. What varies between formats is a type, so that the loop has no branches.

use super::super::{COLUMNS, PanelKernel};
use super::f32::Scaling;
use crate::inputs::{Inputs, Int8Group};
use ashlar_simd::Simd;

/// Vectors of 4 columns × 16 rows in a panel.
const VECTORS: usize = COLUMNS / 4;

/// What codes mean as integers.
pub trait Integers: Copy {
    /// 64-byte vectors of a stored panel.
    const STORED: usize;
    /// The value of a code is its integer times this.
    fn unit(&self) -> f32;
    /// What [`Integers::dot`] adds to every weight: 0 or a power of two.
    fn offset<S: Simd>() -> i32;
    /// A constant of the inner loop.
    fn prepare<S: Simd>(&self, s: S) -> S::U8;
    /// Columns 4v … 4v + 3 of a panel.
    fn weights<S: Simd>(s: S, prepared: S::U8, panel: &[[u8; 64]], v: usize) -> S::U8;
    /// acc + Σ (w + offset) · x over 4 columns.
    fn dot<S: Simd>(s: S, acc: S::I32, w: S::U8, x: i32) -> S::I32;
}

/// Signed bytes.
#[derive(Clone, Copy)]
pub struct Bytes;

impl Integers for Bytes {
    const STORED: usize = 8;
    #[inline(always)]
    fn unit(&self) -> f32 {
        1.0
    }
    #[inline(always)]
    fn offset<S: Simd>() -> i32 {
        S::OFFSET
    }
    #[inline(always)]
    fn prepare<S: Simd>(&self, s: S) -> S::U8 {
        s.bytes(&[0; 64])
    }
    #[inline(always)]
    fn weights<S: Simd>(s: S, _: S::U8, panel: &[[u8; 64]], v: usize) -> S::U8 {
        s.weights(s.bytes(&panel[v]))
    }
    #[inline(always)]
    fn dot<S: Simd>(s: S, acc: S::I32, w: S::U8, x: i32) -> S::I32 {
        s.dot(acc, w, x)
    }
}

/// Columns 4v … of a panel of 4-bit codes.
#[inline(always)]
fn nibbles<S: Simd>(s: S, panel: &[[u8; 64]], v: usize) -> S::U8 {
    let vector = s.bytes(&panel[v / 2]);
    if v.is_multiple_of(2) { s.low_nibbles(vector) } else { s.high_nibbles(vector) }
}

/// Unsigned 4-bit codes, of which `ZERO` means zero.
#[derive(Clone, Copy)]
pub struct Nibbles<const ZERO: i32>;

impl<const ZERO: i32> Integers for Nibbles<ZERO> {
    const STORED: usize = 4;
    #[inline(always)]
    fn unit(&self) -> f32 {
        1.0
    }
    #[inline(always)]
    fn offset<S: Simd>() -> i32 {
        ZERO
    }
    #[inline(always)]
    fn prepare<S: Simd>(&self, s: S) -> S::U8 {
        s.bytes(&[0; 64])
    }
    #[inline(always)]
    fn weights<S: Simd>(s: S, _: S::U8, panel: &[[u8; 64]], v: usize) -> S::U8 {
        nibbles(s, panel, v)
    }
    #[inline(always)]
    fn dot<S: Simd>(s: S, acc: S::I32, w: S::U8, x: i32) -> S::I32 {
        s.dot_small(acc, w, x)
    }
}

/// 4-bit indices into a table of integers.
#[derive(Clone, Copy)]
pub struct Table {
    /// Levels, in units.
    pub levels: [i8; 16],
    /// A power of two.
    pub unit: f32,
}

impl Integers for Table {
    const STORED: usize = 4;
    #[inline(always)]
    fn unit(&self) -> f32 {
        self.unit
    }
    #[inline(always)]
    fn offset<S: Simd>() -> i32 {
        S::OFFSET
    }
    #[inline(always)]
    fn prepare<S: Simd>(&self, s: S) -> S::U8 {
        s.table(&self.levels)
    }
    #[inline(always)]
    fn weights<S: Simd>(s: S, table: S::U8, panel: &[[u8; 64]], v: usize) -> S::U8 {
        s.lookup(table, nibbles(s, panel, v))
    }
    #[inline(always)]
    fn dot<S: Simd>(s: S, acc: S::I32, w: S::U8, x: i32) -> S::I32 {
        s.dot(acc, w, x)
    }
}

/// The kernel.
pub struct Panels<'a, C, Z> {
    /// The code plane.
    pub bytes: &'a [u8],
    /// What codes mean.
    pub codes: C,
    /// Scales and zero points.
    pub scaling: Z,
    /// Rounded activations.
    pub inputs: Inputs<'a>,
}

impl<C: Integers, Z: Scaling> PanelKernel for Panels<'_, C, Z> {
    #[inline(always)]
    fn rows<S: Simd>() -> usize {
        S::ROWS
    }

    #[inline(always)]
    fn panel<S: Simd, const M: usize>(&self, s: S, panel: usize, rows: [usize; M]) -> [S::F32; M] {
        let blocks = self.inputs.k / COLUMNS;
        let stored = &self.bytes.as_chunks::<64>().0[panel * blocks * C::STORED..][..blocks * C::STORED];
        let mut x: [&[Int8Group]; M] = [&[]; M];
        for (x, row) in x.iter_mut().zip(rows) {
            *x = &self.inputs.int8(row)[..blocks];
        }
        let prepared = self.codes.prepare(s);
        let mut acc = [s.splat(0.0); M];
        for (block, codes) in stored.chunks_exact(C::STORED).enumerate() {
            let scale = self.scaling.scale(s, panel, block);
            let zero = if Z::ZEROS { self.scaling.zero(s, panel, block) } else { s.splat(0.0) };
            let mut dots = [s.splat_i32(0); M];
            if C::offset::<S>() != 0 {
                for t in 0..M {
                    dots[t] = s.shl(s.splat_i32(x[t][block].minus_sum), C::offset::<S>().trailing_zeros());
                }
            }
            for v in 0..VECTORS {
                let w = C::weights(s, prepared, codes, v);
                for t in 0..M {
                    dots[t] = C::dot(s, dots[t], w, x[t][block].words[v]);
                }
            }
            for t in 0..M {
                let mut d = s.to_f32(dots[t]);
                if Z::ZEROS {
                    // Exact: both products are integers below 2^24.
                    d = s.fma(zero, s.splat(x[t][block].minus_sum as f32), d);
                }
                acc[t] = s.fma(d, s.mul(scale, s.splat(x[t][block].scale)), acc[t]);
            }
        }
        for a in &mut acc {
            *a = s.mul(*a, s.splat(self.codes.unit()));
        }
        acc
    }
}
