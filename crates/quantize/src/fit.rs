//! What a method decides for one group of 16 rows, and how a level is found for a value.

use crate::lanes::{V, max, min, round, splat, to_bits};
use ashlar_formats::x16::ROWS;
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
    fn fit<G: Rounder>(self, grid: &Groups, rounder: G, group: &Group<'_>, scratch: &mut Scratch) -> Fit;
}

/// Room for the passes over one group.
pub struct Scratch {
    /// Values in units of their scales.
    pub y: [V; MAX_GROUP],
    /// Levels.
    pub q: [V; MAX_GROUP],
}

impl Scratch {
    pub fn new() -> Self {
        Self { y: [splat(0.0); MAX_GROUP], q: [splat(0.0); MAX_GROUP] }
    }
}

/// out = x · factor per lane.
#[inline(always)]
pub fn scale(x: &[V], factor: &V, out: &mut [V]) {
    for (x, out) in x.iter().zip(out) {
        for i in 0..ROWS {
            out[i] = x[i] * factor[i];
        }
    }
}

/// A grid's way from values in units of their scales to levels and codes. Whole groups at a time: one long loop over
/// memory, or one of exactly 16 lanes that ends in a store, is what compilers turn into vectors reliably.
pub trait Rounder: Copy {
    /// The nearest levels.
    fn levels(self, y: &[V], bounds: &Bounds, out: &mut [V]);
    /// The codes of the nearest levels.
    fn codes(self, y: &[V], bounds: &Bounds, out: &mut [[u32; ROWS]]);
    /// The levels' bounds for these zero points.
    fn bounds(self, zero: &V) -> Bounds;
    /// The zero point of a grid without zero points of its own.
    fn zero(self) -> f32;
}

/// Outermost levels per lane. Only linear grids look at them, since a zero point moves them.
#[derive(Clone, Copy)]
pub struct Bounds {
    low: V,
    high: V,
    zero: V,
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
    fn levels(self, y: &[V], bounds: &Bounds, out: &mut [V]) {
        for (y, out) in y.iter().zip(out) {
            for i in 0..ROWS {
                out[i] = round(max(min(y[i], bounds.high[i]), bounds.low[i]));
            }
        }
    }

    #[inline(always)]
    fn codes(self, y: &[V], bounds: &Bounds, out: &mut [[u32; ROWS]]) {
        for (y, out) in y.iter().zip(out) {
            for i in 0..ROWS {
                let level = round(max(min(y[i], bounds.high[i]), bounds.low[i]));
                out[i] = to_bits(level + bounds.zero[i]) & self.mask;
            }
        }
    }

    #[inline(always)]
    fn bounds(self, zero: &V) -> Bounds {
        Bounds { low: zero.map(|z| self.min - z), high: zero.map(|z| self.max - z), zero: *zero }
    }

    #[inline(always)]
    fn zero(self) -> f32 {
        self.zero
    }
}

/// A table of 16 levels. A chain of selects rather than a search: 15 compares of whole vectors beat a gather.
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
    fn levels(self, y: &[V], _bounds: &Bounds, out: &mut [V]) {
        let (levels, borders) = (self.table.levels, self.borders);
        for (&y, out) in y.as_flattened().iter().zip(out.as_flattened_mut()) {
            let mut level = levels[0];
            for i in 0..borders.len() {
                level = if y > borders[i] { levels[i + 1] } else { level };
            }
            *out = level;
        }
    }

    #[inline(always)]
    fn codes(self, y: &[V], _bounds: &Bounds, out: &mut [[u32; ROWS]]) {
        let (codes, borders) = (self.table.codes.map(u32::from), self.borders);
        for (&y, out) in y.as_flattened().iter().zip(out.as_flattened_mut()) {
            let mut code = codes[0];
            for i in 0..borders.len() {
                code = if y > borders[i] { codes[i + 1] } else { code };
            }
            *out = code;
        }
    }

    #[inline(always)]
    fn bounds(self, zero: &V) -> Bounds {
        Bounds { low: *zero, high: *zero, zero: *zero }
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
