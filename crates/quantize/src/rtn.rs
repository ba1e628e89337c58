//! `rtn`: the scale that just reaches the largest magnitude of the group, then round to nearest.

use crate::fit::{Fit, Group, Method, Rounder, storable};
use crate::lanes::{V, max, min, reciprocal, round, splat, zip};
use crate::{Quantizer, Stats, Target, Tile, TileError, blocks, check, floats, groups};
use ashlar_formats::scale::{e8m0_floor, e8m0_to_f32};
use ashlar_formats::{FormatError, Grid, Groups, Levels, Peak, Spec};
use ashlar_simd::Isa;

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
            Grid::Float(dtype) => floats::quantize(dtype, target.spec.id, tile, out),
            Grid::Groups(grid) => groups::quantize(*self, &grid, target, tile, stats, isa, out),
            Grid::Blocks(scale) => blocks::quantize(scale, target, tile, isa, out),
            _ => Err(FormatError::Parameter { id: target.spec.id, what: "method rtn does not know its grid".into() }),
        }
    }
}

impl Method for Rtn {
    #[inline(always)]
    fn fit<G: Rounder>(self, grid: &Groups, rounder: G, group: &Group<'_>) -> Fit {
        let zero = splat(rounder.zero());
        match (grid.peak, grid.levels) {
            (_, Levels::Linear { min, max, .. }) if grid.zero_point => affine(grid, min as f32, max as f32, group.x),
            (Peak::Absolute(level), _) => {
                let wanted = group.peak.map(|p| p / level);
                Fit { scale: storable(grid.scale, &wanted, &group.peak, level), zero }
            }
            (Peak::Signed(level), _) => {
                let wanted = extremes(group.x).map(|e| e / level);
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
pub fn extremes(x: &[V]) -> V {
    let mut extreme = splat(0.0);
    for column in x {
        extreme = zip(&extreme, column, |e, v| if v.abs() > e.abs() { v } else { e });
    }
    extreme
}

/// Smallest and largest value per lane, zero included.
#[inline(always)]
pub fn range(x: &[V]) -> (V, V) {
    let (mut low, mut high) = (splat(0.0), splat(0.0));
    for column in x {
        low = zip(&low, column, min);
        high = zip(&high, column, max);
    }
    (low, high)
}

/// Scale and zero point that make the codes min..=max span the values and zero.
#[inline(always)]
fn affine(grid: &Groups, code_min: f32, code_max: f32, x: &[V]) -> Fit {
    let (low, high) = range(x);
    let steps = code_max - code_min;
    let span = zip(&low, &high, |l, h| h * 0.5 - l * 0.5);
    let wanted = span.map(|s| s / (steps * 0.5));
    let scale = storable(grid.scale, &wanted, &zip(&low, &high, |l, h| max(-l, h)), steps);
    let zero = zip(&low, &scale, |l, s| max(code_min, min(code_max, round(code_min - l * reciprocal(s)))));
    Fit { scale, zero }
}
