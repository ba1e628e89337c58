//! What codes mean as integers: the part of a format that integer kernels differ in.

use super::super::COLUMNS;
use ashlar_simd::Simd;

/// Vectors of 4 columns × 16 rows in a panel.
pub const VECTORS: usize = COLUMNS / 4;

/// One panel of codes.
#[derive(Clone, Copy)]
pub struct Panel<'a> {
    /// [`Integers::LOW`] vectors of the code plane.
    pub low: &'a [[u8; 64]],
    /// [`Integers::HIGH`] vectors of the plane of high codes.
    pub high: &'a [[u8; 64]],
}

/// What codes mean as integers.
pub trait Integers: Copy {
    /// 64-byte vectors of a panel in the code plane.
    const LOW: usize;
    /// The same in the plane of high codes.
    const HIGH: usize = 0;
    /// Constants of the inner loop.
    type Tables<S: Simd>: Copy;
    /// The value of a code is its integer times this.
    fn unit(&self) -> f32 {
        1.0
    }
    /// What [`Integers::weights`] adds to every integer: 0 or a power of two.
    fn offset<S: Simd>() -> i32;
    /// The constants.
    fn tables<S: Simd>(&self, s: S) -> Self::Tables<S>;
    /// Columns 4v … 4v + 3 of a panel.
    fn weights<S: Simd>(s: S, tables: Self::Tables<S>, panel: Panel<'_>, v: usize) -> S::U8;
    /// acc + Σ (w + offset) · x over 4 columns.
    fn dot<S: Simd>(s: S, acc: S::I32, w: S::U8, x: i32) -> S::I32;
}

/// Signed bytes.
#[derive(Clone, Copy)]
pub struct Bytes;

impl Integers for Bytes {
    const LOW: usize = 8;
    type Tables<S: Simd> = ();
    #[inline(always)]
    fn offset<S: Simd>() -> i32 {
        S::OFFSET
    }
    #[inline(always)]
    fn tables<S: Simd>(&self, _: S) {}
    #[inline(always)]
    fn weights<S: Simd>(s: S, (): (), panel: Panel<'_>, v: usize) -> S::U8 {
        s.weights(s.bytes(&panel.low[v]))
    }
    #[inline(always)]
    fn dot<S: Simd>(s: S, acc: S::I32, w: S::U8, x: i32) -> S::I32 {
        s.dot(acc, w, x)
    }
}

/// Columns 4v … of a panel of 4-bit codes.
#[inline(always)]
pub fn nibbles<S: Simd>(s: S, low: &[[u8; 64]], v: usize) -> S::U8 {
    let vector = s.bytes(&low[v / 2]);
    if v.is_multiple_of(2) { s.low_nibbles(vector) } else { s.high_nibbles(vector) }
}

/// Unsigned 4-bit codes, of which `ZERO` means zero.
#[derive(Clone, Copy)]
pub struct Nibbles<const ZERO: i32>;

impl<const ZERO: i32> Integers for Nibbles<ZERO> {
    const LOW: usize = 4;
    type Tables<S: Simd> = ();
    #[inline(always)]
    fn offset<S: Simd>() -> i32 {
        ZERO
    }
    #[inline(always)]
    fn tables<S: Simd>(&self, _: S) {}
    #[inline(always)]
    fn weights<S: Simd>(s: S, (): (), panel: Panel<'_>, v: usize) -> S::U8 {
        nibbles(s, panel.low, v)
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
    const LOW: usize = 4;
    type Tables<S: Simd> = S::U8;
    #[inline(always)]
    fn unit(&self) -> f32 {
        self.unit
    }
    #[inline(always)]
    fn offset<S: Simd>() -> i32 {
        S::OFFSET
    }
    #[inline(always)]
    fn tables<S: Simd>(&self, s: S) -> S::U8 {
        s.table(&self.levels)
    }
    #[inline(always)]
    fn weights<S: Simd>(s: S, table: S::U8, panel: Panel<'_>, v: usize) -> S::U8 {
        s.lookup(table, nibbles(s, panel.low, v))
    }
    #[inline(always)]
    fn dot<S: Simd>(s: S, acc: S::I32, w: S::U8, x: i32) -> S::I32 {
        s.dot(acc, w, x)
    }
}
