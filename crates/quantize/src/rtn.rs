//! `rtn`: the scale that just reaches the largest magnitude of the group, then round to nearest.

use crate::fit::{Fit, Group, Method, Rounder, storable};
use crate::lanes::{V, abs, array, reciprocal, round, splat};
use crate::{Quantizer, Stats, Target, Tile, TileError, blocks, check, floats, groups, two_level};
use ashlar_formats::scale::{e8m0_floor, e8m0_to_f32};
use ashlar_formats::{FormatError, Grid, Groups, Levels, Peak, Spec};
use ashlar_simd::{Isa, Simd};

/// Round to nearest.
#[derive(Clone, Copy, Debug)]
pub struct Rtn;

impl Quantizer for Rtn {
    fn id(&self) -> &'static str {
        "rtn"
    }

    fn supports(&self, spec: &Spec) -> Result<(), FormatError> {
        spec.grid().map(|_| ())
    }

    fn quantize(
        &self,
        target: Target<'_>,
        tile: Tile<'_>,
        stats: Stats<'_>,
        isa: Isa,
        out: &mut [&mut [u8]],
    ) -> Result<TileError, FormatError> {
        check(target, tile, stats, out)?;
        match target.spec.grid()? {
            Grid::Float(dtype) => floats::quantize(dtype, target.spec.id, tile, isa, out),
            Grid::Groups(grid) => groups::quantize(*self, &grid, target, tile, stats, isa, out),
            Grid::TwoLevel(grid) => two_level::quantize(*self, &grid, target, tile, stats, isa, out),
            Grid::Blocks(scale) => blocks::quantize(scale, target, tile, isa, out),
            _ => Err(FormatError::Parameter { id: target.spec.id, what: "method rtn does not know its grid".into() }),
        }
    }
}

impl Method for Rtn {
    #[inline(always)]
    fn fit<S: Simd, G: Rounder>(self, s: S, grid: &Groups, rounder: G, group: &Group<'_>) -> Fit {
        let zero = splat(rounder.zero());
        match (grid.peak, grid.levels) {
            (_, Levels::Linear { min, max, .. }) if grid.zero_point => affine(s, grid, min as f32, max as f32, group.x),
            (Peak::Absolute(level), _) => {
                let wanted = array(s, s.div(s.load(&group.peak), s.splat(level)));
                Fit { scale: storable(grid.scale, &wanted, &group.peak, level), zero }
            }
            (Peak::Signed(level), _) => {
                let wanted = array(s, s.div(extremes(s, group.x), s.splat(level)));
                Fit { scale: storable(grid.scale, &wanted, &group.peak, level.abs()), zero }
            }
            (Peak::Exponent(e), _) => {
                let scale = |p| if p == 0.0 { 0.0 } else { e8m0_to_f32(e8m0_floor(p).saturating_sub(e)) };
                Fit { scale: group.peak.map(scale), zero }
            }
        }
    }
}

/// The value of largest magnitude per lane, the first of equals.
#[inline(always)]
pub fn extremes<S: Simd>(s: S, x: &[V]) -> S::F32 {
    let mut extreme = s.splat(0.0);
    for column in x {
        let x = s.load(column);
        extreme = s.if_gt(abs(s, x), abs(s, extreme), x, extreme);
    }
    extreme
}

/// Smallest and largest value per lane, zero included.
#[inline(always)]
pub fn range<S: Simd>(s: S, x: &[V]) -> (S::F32, S::F32) {
    let (mut low, mut high) = (s.splat(0.0), s.splat(0.0));
    for column in x {
        let x = s.load(column);
        low = s.min(x, low);
        high = s.max(x, high);
    }
    (low, high)
}

/// Scale and zero point that make the codes min..=max span the values and zero.
#[inline(always)]
fn affine<S: Simd>(s: S, grid: &Groups, code_min: f32, code_max: f32, x: &[V]) -> Fit {
    let (low, high) = range(s, x);
    let (min, max) = (s.splat(code_min), s.splat(code_max));
    let half = s.splat(0.5);
    // Halved first: the difference of two large values of opposite sign may overflow.
    let half_span = s.sub(s.mul(high, half), s.mul(low, half));
    let wanted = s.div(half_span, s.mul(s.sub(max, min), half));
    let peak = s.max(high, s.sub(s.splat(0.0), low));
    let scale = storable(grid.scale, &array(s, wanted), &array(s, peak), code_max - code_min);
    let steps = s.mul(low, reciprocal(s, s.load(&scale)));
    // Bounded before it is rounded; a scale that rounded down may put `low` below the codes.
    let zero = round(s, s.max(min, s.min(max, s.sub(min, steps))));
    Fit { scale, zero: array(s, zero) }
}
