//! What a method decides for one group of 16 rows, and how a level is found for a value.

use crate::lanes::{V, round, splat};
use ashlar_formats::scale::{f16_bits, f16_to_f32};
use ashlar_formats::{Groups, ScaleType, Table};
use ashlar_simd::Simd;

/// Most columns a group can have.
pub const MAX_GROUP: usize = 128;

/// One group of 16 rows, transposed: one vector per column, one lane per row.
#[derive(Clone, Copy)]
pub struct Group<'a> {
    /// Values; zero in padding rows and where an outlier was taken out.
    pub x: &'a [V],
    /// Importance of each value, zero where an outlier was taken out; `None` when all are one.
    pub w: Option<&'a [V]>,
    /// max |x| per lane.
    pub peak: V,
}

/// Parameters of one group: value = (code − zero) · scale.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fit {
    /// A storable scale, as [`ScaleType::round`] returns it; infinite where the group exceeds the scale type.
    pub scale: V,
    /// Zero point, an integer.
    pub zero: V,
}

/// A method: chooses scales and zero points.
pub trait Method: Copy {
    /// Fits one group.
    fn fit<S: Simd, G: Rounder>(self, s: S, grid: &Groups, rounder: G, group: &Group<'_>) -> Fit;
}

/// A grid's way from values in units of their scales to levels and codes.
pub trait Rounder: Copy {
    /// The nearest levels.
    fn level<S: Simd>(self, s: S, y: S::F32, bounds: Bounds<S>) -> S::F32;
    /// The codes of the nearest levels.
    fn code<S: Simd>(self, s: S, y: S::F32, bounds: Bounds<S>) -> S::I32;
    /// The levels' bounds for these zero points.
    fn bounds<S: Simd>(self, s: S, zero: S::F32) -> Bounds<S>;
    /// The zero point of a grid without zero points of its own.
    fn zero(self) -> f32;
}

/// Outermost levels per lane. Only linear grids look at them, since a zero point moves them.
#[derive(Clone, Copy)]
pub struct Bounds<S: Simd> {
    low: S::F32,
    high: S::F32,
    zero: S::F32,
    /// Which of two grids; only [`Pair`] looks at it.
    grid: S::F32,
}

/// Codes min..=max around a zero.
#[derive(Clone, Copy)]
pub struct Linear {
    pub min: f32,
    pub max: f32,
    pub zero: f32,
    /// Bits that a code keeps.
    pub mask: i32,
}

impl Rounder for Linear {
    #[inline(always)]
    fn level<S: Simd>(self, s: S, y: S::F32, bounds: Bounds<S>) -> S::F32 {
        round(s, s.max(s.min(y, bounds.high), bounds.low))
    }

    #[inline(always)]
    fn code<S: Simd>(self, s: S, y: S::F32, bounds: Bounds<S>) -> S::I32 {
        let code = s.add(self.level(s, y, bounds), bounds.zero);
        s.and(s.to_i32(code), s.splat_i32(self.mask))
    }

    #[inline(always)]
    fn bounds<S: Simd>(self, s: S, zero: S::F32) -> Bounds<S> {
        let (low, high) = (s.sub(s.splat(self.min), zero), s.sub(s.splat(self.max), zero));
        Bounds { low, high, zero, grid: s.splat(0.0) }
    }

    #[inline(always)]
    fn zero(self) -> f32 {
        self.zero
    }
}

/// A table of 2^BITS levels, searched by halving: BITS compares, each with the border that the ones before picked.
#[derive(Clone, Copy)]
pub struct Lut<const BITS: u32> {
    levels: V,
    codes: V,
    /// Between neighbouring levels; the last is never passed.
    borders: V,
}

impl<const BITS: u32> Lut<BITS> {
    pub fn new(table: &Table) -> Self {
        let mut borders = splat(f32::INFINITY);
        borders[..15].copy_from_slice(&table.borders());
        Self { levels: table.levels, codes: table.codes.map(f32::from), borders }
    }

    /// How many borders are below y.
    #[inline(always)]
    fn index<S: Simd>(self, s: S, y: S::F32) -> S::I32 {
        let borders = s.load(&self.borders);
        let mut index = s.splat_i32(0);
        for bit in (0..BITS).rev() {
            let step = 1 << bit;
            let border = s.pick(borders, s.add_i32(index, s.splat_i32(step - 1)));
            let passed = s.add_i32(index, s.splat_i32(step));
            index = s.bits(s.if_gt(y, border, s.as_f32(passed), s.as_f32(index)));
        }
        index
    }
}

impl<const BITS: u32> Rounder for Lut<BITS> {
    #[inline(always)]
    fn level<S: Simd>(self, s: S, y: S::F32, _bounds: Bounds<S>) -> S::F32 {
        s.pick(s.load(&self.levels), self.index(s, y))
    }

    #[inline(always)]
    fn code<S: Simd>(self, s: S, y: S::F32, _bounds: Bounds<S>) -> S::I32 {
        s.to_i32(s.pick(s.load(&self.codes), self.index(s, y)))
    }

    #[inline(always)]
    fn bounds<S: Simd>(self, _s: S, zero: S::F32) -> Bounds<S> {
        Bounds { low: zero, high: zero, zero, grid: zero }
    }

    #[inline(always)]
    fn zero(self) -> f32 {
        0.0
    }
}

/// One grid, or two of which each lane uses the one that its zero point (0 or 1) names.
#[derive(Clone, Copy)]
pub struct Pair<G, const COUNT: usize>(pub [G; COUNT]);

impl<G: Rounder, const COUNT: usize> Rounder for Pair<G, COUNT> {
    #[inline(always)]
    fn level<S: Simd>(self, s: S, y: S::F32, bounds: Bounds<S>) -> S::F32 {
        let first = self.0[0].level(s, y, bounds);
        if COUNT == 1 {
            return first;
        }
        s.if_gt(bounds.grid, s.splat(0.5), self.0[COUNT - 1].level(s, y, bounds), first)
    }

    #[inline(always)]
    fn code<S: Simd>(self, s: S, y: S::F32, bounds: Bounds<S>) -> S::I32 {
        let first = self.0[0].code(s, y, bounds);
        if COUNT == 1 {
            return first;
        }
        let second = self.0[COUNT - 1].code(s, y, bounds);
        s.bits(s.if_gt(bounds.grid, s.splat(0.5), s.as_f32(second), s.as_f32(first)))
    }

    #[inline(always)]
    fn bounds<S: Simd>(self, s: S, zero: S::F32) -> Bounds<S> {
        Bounds { grid: zero, ..self.0[0].bounds(s, s.splat(self.0[0].zero())) }
    }

    #[inline(always)]
    fn zero(self) -> f32 {
        0.0
    }
}

/// Rounds scales to their storage type; where that leaves `peak` beyond `reach` + ½ steps (a subnormal f16 rounded down,
/// or to zero), takes the next larger one.
#[inline(always)]
pub fn storable(scale: ScaleType, wanted: &V, peak: &V, reach: f32) -> V {
    let mut out = splat(0.0);
    for i in 0..out.len() {
        let rounded = scale.round(wanted[i]);
        let short = scale == ScaleType::F16 && rounded.abs() * (reach + 0.5) < peak[i];
        out[i] = if short { next_f16(rounded, wanted[i]) } else { rounded };
    }
    out
}

/// The f16 after `x` away from zero, with the sign of `sign`.
#[inline(always)]
fn next_f16(x: f32, sign: f32) -> f32 {
    let next = f16_to_f32((f16_bits(x.abs()) + 1).min(0x7c00));
    if sign < 0.0 { -next } else { next }
}
