//! Round to nearest: every group's extreme value would meet the outermost level, the extreme group's scale the outermost
//! inner scale; other groups get the nearest inner scale, and the grid that leaves the lesser error.

use super::{Block, Chooser, Scales, group, spans};
use crate::Rtn;
use crate::fit::{Group, Pair, Rounder, storable};
use crate::lanes::{V, abs, array, reciprocal, round};
use crate::rtn::extremes;
use ashlar_formats::{Levels, TwoLevel};
use ashlar_simd::Simd;

impl Chooser for Rtn {
    const KEEPS_NORM: bool = false;

    #[inline(always)]
    fn choose<S: Simd, G: Rounder, const COUNT: usize>(
        self,
        s: S,
        grid: &TwoLevel,
        grids: Pair<G, COUNT>,
        block: &Block<'_>,
        scales: &mut Scales,
    ) {
        for (span, groups) in spans(grid, scales.inner.len()).enumerate() {
            let mut extreme = s.splat(0.0);
            for index in groups.clone() {
                let found = extremes(s, group(block, grid, index).x);
                extreme = s.if_gt(abs(s, found), abs(s, extreme), found, extreme);
            }
            let outer = outer(s, grid, extreme);
            scales.outer[span] = outer;
            for index in groups {
                let group = group(block, grid, index);
                let inner = nearest(s, grid, outer_units(s, grid, extremes(s, group.x), &outer));
                scales.inner[index] = array(s, inner);
                let scale = s.mul(inner, s.load(&outer));
                let first = error(s, grids.0[0], scale, &group);
                let second = if COUNT == 1 { first } else { error(s, grids.0[COUNT - 1], scale, &group) };
                scales.grid[index] = array(s, s.if_gt(first, second, s.splat(1.0), s.splat(0.0)));
            }
        }
    }
}

/// The lowest level, the one of largest magnitude.
pub fn lowest(grid: &TwoLevel) -> f32 {
    match grid.grids.first() {
        Some(Levels::Linear { min, zero, .. }) => (min - zero) as f32,
        Some(Levels::Table(table)) => table.levels[0],
        None => 1.0,
    }
}

/// The stored outer scale whose smallest inner scale puts `extreme` at the lowest level: the smallest that needs no
/// clipping.
#[inline(always)]
fn outer<S: Simd>(s: S, grid: &TwoLevel, extreme: S::F32) -> V {
    let product = lowest(grid) * grid.inner.bounds().0 as f32;
    let wanted = array(s, s.div(extreme, s.splat(product)));
    let peak = array(s, abs(s, extreme));
    limited(grid, storable(grid.outer, &wanted, &peak, product))
}

/// Bounded so that no level becomes infinite; infinite scales stay, to be refused.
#[inline(always)]
pub fn limited(grid: &TwoLevel, outer: V) -> V {
    let product = grid.reach() * grid.inner.bounds().0.unsigned_abs() as f32;
    // A little less than what overflows, whichever way the products are rounded.
    let limit = f32::MAX / product * (1.0 - 1e-6);
    outer.map(|scale| if scale.is_finite() { scale.clamp(-limit, limit) } else { scale })
}

/// The scale that puts `extreme` at the lowest level, in units of the outer scale.
#[inline(always)]
fn outer_units<S: Simd>(s: S, grid: &TwoLevel, extreme: S::F32, outer: &V) -> S::F32 {
    s.mul(s.div(extreme, s.splat(lowest(grid))), reciprocal(s, s.load(outer)))
}

/// The nearest inner scale.
#[inline(always)]
pub fn nearest<S: Simd>(s: S, grid: &TwoLevel, units: S::F32) -> S::F32 {
    let (low, high) = grid.inner.bounds();
    let (low, step) = (s.splat(low as f32), s.splat(grid.inner.step() as f32));
    let bounded = s.max(s.min(units, s.splat(high as f32)), low);
    s.add(s.mul(round(s, s.div(s.sub(bounded, low), step)), step), low)
}

/// Σ w (x − ŵ)² of a group with this scale.
#[inline(always)]
pub fn error<S: Simd, G: Rounder>(s: S, grid: G, scale: S::F32, group: &Group<'_>) -> S::F32 {
    let (inverse, bounds) = (reciprocal(s, scale), grid.bounds(s, s.splat(grid.zero())));
    let mut error = s.splat(0.0);
    match group.w {
        None => {
            for x in group.x {
                let x = s.load(x);
                let d = s.sub(x, s.mul(grid.level(s, s.mul(x, inverse), bounds), scale));
                error = s.add(error, s.mul(d, d));
            }
        }
        Some(w) => {
            for (x, w) in group.x.iter().zip(w) {
                let x = s.load(x);
                let d = s.sub(x, s.mul(grid.level(s, s.mul(x, inverse), bounds), scale));
                error = s.add(error, s.mul(s.mul(d, d), s.load(w)));
            }
        }
    }
    error
}
