//! Codes of two-level formats as integers. Several codes are looked up from one nibble, and a high plane chooses.

use super::super::grouped::codes::{Integers, Panel, Table, nibbles};
use super::super::levels::Levels;
use ashlar_simd::Simd;

/// Codes whose levels come from a grid.
pub trait GridCodes: Integers {
    /// Bits of a code in the code plane and in the plane of high codes.
    const BITS: (usize, usize);
    /// Whether these levels suit.
    fn serves(levels: &Levels) -> bool;
    /// From levels that do.
    fn new(levels: &Levels) -> Self;
}

impl GridCodes for Table {
    const BITS: (usize, usize) = (4, 0);
    fn serves(levels: &Levels) -> bool {
        levels.within(-127..=127)
    }
    fn new(levels: &Levels) -> Self {
        Self { levels: levels.first(), unit: 1.0 }
    }
}

/// Levels of few bits lie within ±64: unsigned with this added, they suit every dot-product instruction.
const MIDDLE: i32 = 64;

fn unsigned<const N: usize>(levels: &Levels) -> [u8; N] {
    levels.first().map(|level| (i32::from(level) + MIDDLE) as u8)
}

/// Tables for a nibble that holds two 2-bit codes: of the low one and of the high one.
fn pairs(levels: [u8; 4]) -> [[u8; 16]; 2] {
    [std::array::from_fn(|nibble| levels[nibble & 3]), std::array::from_fn(|nibble| levels[nibble >> 2])]
}

/// The nibbles that hold the 2-bit codes of columns 4v …, and which half of them does.
#[inline(always)]
fn crumbs<S: Simd>(s: S, low: &[[u8; 64]], v: usize) -> (S::U8, usize) {
    let vector = s.bytes(&low[v / 4]);
    (if v % 4 < 2 { s.low_nibbles(vector) } else { s.high_nibbles(vector) }, v % 2)
}

/// 2-bit indices.
#[derive(Clone, Copy)]
pub struct TwoBits {
    tables: [[u8; 16]; 2],
}

impl GridCodes for TwoBits {
    const BITS: (usize, usize) = (2, 0);
    fn serves(levels: &Levels) -> bool {
        levels.within(-64..=63)
    }
    fn new(levels: &Levels) -> Self {
        Self { tables: pairs(unsigned(levels)) }
    }
}

impl Integers for TwoBits {
    const LOW: usize = 2;
    type Tables<S: Simd> = [S::U8; 2];
    #[inline(always)]
    fn offset<S: Simd>() -> i32 {
        MIDDLE
    }
    #[inline(always)]
    fn tables<S: Simd>(&self, s: S) -> [S::U8; 2] {
        [s.repeat(&self.tables[0]), s.repeat(&self.tables[1])]
    }
    #[inline(always)]
    fn weights<S: Simd>(s: S, tables: [S::U8; 2], panel: Panel<'_>, v: usize) -> S::U8 {
        let (nibbles, half) = crumbs(s, panel.low, v);
        s.lookup(tables[half], nibbles)
    }
    #[inline(always)]
    fn dot<S: Simd>(s: S, acc: S::I32, w: S::U8, x: i32) -> S::I32 {
        s.dot_small(acc, w, x)
    }
}

/// 2-bit indices and masks of the bit above.
#[derive(Clone, Copy)]
pub struct ThreeBits {
    /// Levels 0 to 3, and 4 to 7.
    tables: [[[u8; 16]; 2]; 2],
}

impl GridCodes for ThreeBits {
    const BITS: (usize, usize) = (2, 1);
    fn serves(levels: &Levels) -> bool {
        levels.within(-64..=63)
    }
    fn new(levels: &Levels) -> Self {
        let [a, b, c, d, e, f, g, h] = unsigned(levels);
        Self { tables: [pairs([a, b, c, d]), pairs([e, f, g, h])] }
    }
}

impl Integers for ThreeBits {
    const LOW: usize = 2;
    const HIGH: usize = 1;
    type Tables<S: Simd> = [[S::U8; 2]; 2];
    #[inline(always)]
    fn offset<S: Simd>() -> i32 {
        MIDDLE
    }
    #[inline(always)]
    fn tables<S: Simd>(&self, s: S) -> [[S::U8; 2]; 2] {
        let [[a, b], [c, d]] = &self.tables;
        [[s.repeat(a), s.repeat(b)], [s.repeat(c), s.repeat(d)]]
    }
    #[inline(always)]
    fn weights<S: Simd>(s: S, [zero, one]: [[S::U8; 2]; 2], panel: Panel<'_>, v: usize) -> S::U8 {
        let (nibbles, half) = crumbs(s, panel.low, v);
        let mask = panel.high[0].as_chunks::<8>().0[v];
        s.select(u64::from_le_bytes(mask), s.lookup(one[half], nibbles), s.lookup(zero[half], nibbles))
    }
    #[inline(always)]
    fn dot<S: Simd>(s: S, acc: S::I32, w: S::U8, x: i32) -> S::I32 {
        s.dot_small(acc, w, x)
    }
}

/// 6-bit integers of which `SIX_ZERO` means zero: nibbles and two bits above.
#[derive(Clone, Copy)]
pub struct SixBits;

const SIX_ZERO: i32 = 32;

impl GridCodes for SixBits {
    const BITS: (usize, usize) = (4, 2);
    fn serves(levels: &Levels) -> bool {
        (0..).zip(levels.integers).all(|(code, level)| code - SIX_ZERO == i32::from(level))
    }
    fn new(_: &Levels) -> Self {
        Self
    }
}

impl Integers for SixBits {
    const LOW: usize = 4;
    const HIGH: usize = 2;
    const SMALL: bool = true;
    type Tables<S: Simd> = ();
    #[inline(always)]
    fn offset<S: Simd>() -> i32 {
        SIX_ZERO
    }
    #[inline(always)]
    fn tables<S: Simd>(&self, _: S) {}
    #[inline(always)]
    fn weights<S: Simd>(s: S, (): (), panel: Panel<'_>, v: usize) -> S::U8 {
        // Bits 2j and 2j + 1 of every byte, j = v mod 4, are brought to 4 and 5.
        let high = s.lanes(s.bytes(&panel.high[v / 4]));
        let moved = match v % 4 {
            0 => s.shl(high, 4),
            1 => s.shl(high, 2),
            2 => high,
            _ => s.shr(high, 2),
        };
        let above = s.and(moved, s.splat_i32(0x3030_3030));
        s.as_bytes(s.or(s.lanes(nibbles(s, panel.low, v)), above))
    }
    #[inline(always)]
    fn dot<S: Simd>(s: S, acc: S::I32, w: S::U8, x: i32) -> S::I32 {
        s.dot_small(acc, w, x)
    }
}
