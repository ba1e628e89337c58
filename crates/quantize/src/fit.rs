//! What a method decides for one group of 16 rows, and how a level is found for a value.

use crate::lanes::{V, max, min, reciprocal, round, splat, to_bits};
use ashlar_formats::{Groups, ScaleType, Table};

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
    fn fit<G: Rounder>(self, grid: &Groups, rounder: G, group: &Group<'_>) -> Fit;
}

/// A grid's way from a value in units of its scale to a level and a code. `low` and `high` bound the levels; only
/// linear grids look at them, since a zero point moves them.
pub trait Rounder: Copy {
    /// The nearest level.
    fn level(self, y: f32, low: f32, high: f32) -> f32;
    /// The code of the nearest level.
    fn code(self, y: f32, low: f32, high: f32, zero: f32) -> u32;
    /// The levels' bounds for a zero point.
    fn bounds(self, zero: f32) -> (f32, f32);
    /// The zero point of a grid without zero points of its own.
    fn zero(self) -> f32;
}

/// Codes min..=max around a zero.
#[derive(Clone, Copy)]
pub struct Linear {
    pub min: f32,
    pub max: f32,
    pub zero: f32,
    /// Bits that a code keeps.
    pub mask: u32,
}

impl Rounder for Linear {
    #[inline(always)]
    fn level(self, y: f32, low: f32, high: f32) -> f32 {
        round(max(min(y, high), low))
    }

    #[inline(always)]
    fn code(self, y: f32, low: f32, high: f32, zero: f32) -> u32 {
        to_bits(self.level(y, low, high) + zero) & self.mask
    }

    #[inline(always)]
    fn bounds(self, zero: f32) -> (f32, f32) {
        (self.min - zero, self.max - zero)
    }

    #[inline(always)]
    fn zero(self) -> f32 {
        self.zero
    }
}

/// A table of 16 levels. A chain of selects rather than a search: 15 compares in vector lanes beat a gather.
#[derive(Clone, Copy)]
pub struct Lut {
    table: &'static Table,
    borders: [f32; 15],
}

impl Lut {
    pub fn new(table: &'static Table) -> Self {
        Self { table, borders: table.borders() }
    }
}

impl Rounder for Lut {
    #[inline(always)]
    fn level(self, y: f32, _low: f32, _high: f32) -> f32 {
        let mut level = self.table.levels[0];
        for (border, &next) in self.borders.iter().zip(&self.table.levels[1..]) {
            level = if y > *border { next } else { level };
        }
        level
    }

    #[inline(always)]
    fn code(self, y: f32, _low: f32, _high: f32, _zero: f32) -> u32 {
        let mut code = u32::from(self.table.codes[0]);
        for (border, &next) in self.borders.iter().zip(&self.table.codes[1..]) {
            code = if y > *border { u32::from(next) } else { code };
        }
        code
    }

    #[inline(always)]
    fn bounds(self, _zero: f32) -> (f32, f32) {
        (self.table.levels[0], self.table.levels[15])
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
        let next = scale.round(next_f16(rounded, wanted[i]));
        let short = scale == ScaleType::F16 && rounded.abs() * (reach + 0.5) < peak[i];
        out[i] = if short { next } else { rounded };
    }
    out
}

/// The f16 after `x` away from zero, with the sign of `sign`.
#[inline(always)]
fn next_f16(x: f32, sign: f32) -> f32 {
    use ashlar_formats::scale::{f16_bits, f16_to_f32};
    let next = f16_to_f32((f16_bits(x.abs()) + 1).min(0x7c00));
    if sign < 0.0 { -next } else { next }
}

/// What all passes over a fitted group need: reciprocal scales and the levels' bounds.
#[derive(Clone, Copy)]
pub struct Units {
    pub inverse: V,
    pub low: V,
    pub high: V,
}

impl Units {
    #[inline(always)]
    pub fn new<G: Rounder>(rounder: G, fit: &Fit) -> Self {
        let mut units = Self { inverse: splat(0.0), low: splat(0.0), high: splat(0.0) };
        for i in 0..fit.scale.len() {
            units.inverse[i] = reciprocal(fit.scale[i]);
            (units.low[i], units.high[i]) = rounder.bounds(fit.zero[i]);
        }
        units
    }
}
