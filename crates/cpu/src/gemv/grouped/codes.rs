//! What codes mean as integers: the part of a format that integer kernels differ in.

use super::super::COLUMNS;
use ashlar_simd::Simd;

/// Vectors of 4 columns × 16 rows in a panel.
pub const VECTORS: usize = COLUMNS / 4;

/// The most [`Integers::DIGITS`].
pub const MOST_DIGITS: usize = 3;

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
    /// Integers that make up a level: 1 unless levels are no multiples of a unit.
    const DIGITS: usize = 1;
    /// Whether what [`Integers::weights`] gives is below 128: some instruction sets multiply that faster.
    const SMALL: bool = false;
    /// Constants of the inner loop.
    type Tables<S: Simd>: Copy;
    /// The value of a code is its integer times this: a power of two, unless there are several digits.
    fn unit(&self) -> f32 {
        1.0
    }
    /// The value of a code is Σ integer · unit over its digits.
    fn units(&self) -> [f32; MOST_DIGITS] {
        [self.unit(), 0.0, 0.0]
    }
    /// What [`Integers::weights`] adds to every integer: 0 or a power of two.
    fn offset<S: Simd>() -> i32;
    /// The constants.
    fn tables<S: Simd>(&self, s: S) -> Self::Tables<S>;
    /// Columns 4v … 4v + 3 of a panel, the first digit.
    fn weights<S: Simd>(s: S, tables: Self::Tables<S>, panel: Panel<'_>, v: usize) -> S::U8;
    /// The same, any digit.
    #[inline(always)]
    fn digit<S: Simd>(s: S, tables: Self::Tables<S>, panel: Panel<'_>, v: usize, digit: usize) -> S::U8 {
        let _ = digit;
        Self::weights(s, tables, panel, v)
    }
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
    const SMALL: bool = true;
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

/// 4-bit indices into a table of any levels, each as the sum of three integers of 7 bits: exact to 2^-20 of the greatest
/// level. Three integer dot products take less time than four conversions and four multiplications in f32, and like all
/// integers they suit tiles.
#[derive(Clone, Copy)]
pub struct Digits {
    /// With [`DIGITS_MIDDLE`] added.
    tables: [[u8; 16]; MOST_DIGITS],
    units: [f32; MOST_DIGITS],
}

/// Digits lie within ±63: unsigned with this added, they suit every dot-product instruction.
const DIGITS_MIDDLE: i32 = 64;

impl Digits {
    /// Of these levels.
    pub fn new(levels: &[f32; 16]) -> Self {
        // A remainder is at most half a unit: 63 of the next.
        const FINER: f32 = 126.0;
        let first = levels.iter().fold(0.0f32, |m, l| m.max(l.abs())) / 63.0;
        let units = [first, first / FINER, first / (FINER * FINER)];
        let (mut tables, mut rest) = ([[DIGITS_MIDDLE as u8; 16]; MOST_DIGITS], levels.map(f64::from));
        for (table, unit) in tables.iter_mut().zip(units.map(f64::from)).filter(|(_, unit)| *unit > 0.0) {
            for (digit, rest) in table.iter_mut().zip(&mut rest) {
                let near = (*rest / unit).round().clamp(-63.0, 63.0);
                *rest -= near * unit;
                *digit = (DIGITS_MIDDLE + near as i32) as u8;
            }
        }
        Self { tables, units }
    }
}

impl Integers for Digits {
    const LOW: usize = 4;
    const DIGITS: usize = MOST_DIGITS;
    const SMALL: bool = true;
    type Tables<S: Simd> = [S::U8; MOST_DIGITS];
    fn units(&self) -> [f32; MOST_DIGITS] {
        self.units
    }
    #[inline(always)]
    fn offset<S: Simd>() -> i32 {
        DIGITS_MIDDLE
    }
    #[inline(always)]
    fn tables<S: Simd>(&self, s: S) -> [S::U8; MOST_DIGITS] {
        [s.repeat(&self.tables[0]), s.repeat(&self.tables[1]), s.repeat(&self.tables[2])]
    }
    #[inline(always)]
    fn weights<S: Simd>(s: S, tables: Self::Tables<S>, panel: Panel<'_>, v: usize) -> S::U8 {
        Self::digit(s, tables, panel, v, 0)
    }
    #[inline(always)]
    fn digit<S: Simd>(s: S, tables: Self::Tables<S>, panel: Panel<'_>, v: usize, digit: usize) -> S::U8 {
        s.lookup(tables[digit], nibbles(s, panel.low, v))
    }
    #[inline(always)]
    fn dot<S: Simd>(s: S, acc: S::I32, w: S::U8, x: i32) -> S::I32 {
        s.dot_small(acc, w, x)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_of_nf4_add_up_to_its_levels() {
        let grid = "nf4:g64".parse::<ashlar_formats::Spec>().unwrap().grid().unwrap();
        let levels = crate::gemv::levels::Levels::of(&grid).unwrap().values;
        let digits = Digits::new(&levels);
        for (code, level) in levels.iter().enumerate() {
            let of = |(table, unit): (&[u8; 16], f32)| f64::from(i32::from(table[code]) - 64) * f64::from(unit);
            let sum: f64 = digits.tables.iter().zip(digits.units).map(of).sum();
            assert!((sum - f64::from(*level)).abs() < 1e-6, "{code}: {sum} {level}");
            assert!(digits.tables.iter().all(|t| (1..128).contains(&t[code])));
        }
    }
}
