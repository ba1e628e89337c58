//! Weighted search over inner scales, grids and the outer scale: what minimises Σ importance · (w − ŵ)².
//!
//! 1. Each group by itself: of candidates around its extreme value, the real scale and grid that would leave the least
//!    error, and how fast the error grows around it ([`Ideal`]).
//! 2. The outer scale whose multiples lie nearest to these, weighted by that growth.
//! 3. With this outer scale as stored, every group's inner scale and grid anew by their true error; from their codes the
//!    best outer scale by least squares; and again.
//!
//! The best of all rounds and of plain rounding is kept, row by row.

use super::plain::{error, limited, lowest, nearest};
use super::{Block, Chooser, Scales, group, spans};
use crate::fit::{Group, Pair, Rounder};
use crate::lanes::{V, abs, array, reciprocal, splat};
use crate::rtn::extremes;
use crate::{Rtn, Search};
use ashlar_formats::TwoLevel;
use ashlar_simd::Simd;
use std::ops::Range;

/// Outer scales tried per sign in step 2.
const OUTER_STEPS: u8 = 24;
/// They put the largest ideal scale at these shares of the outermost inner scale.
const OUTER_RANGE: (f32, f32) = (0.85, 1.15);

/// Candidates for a group's scale: how many per sign and grid, and which shares of the lowest level they put the extreme
/// value at; and rounds of step 3. Few levels had better clip, so that the range widens as bits go; the fine inner scales
/// of 4 bits and more gain nothing from a second round.
struct Reach {
    steps: u8,
    first: f32,
    last: f32,
    rounds: u8,
}

impl Reach {
    #[inline(always)]
    fn of(code_bits: usize) -> Self {
        match code_bits {
            0..=2 => Self { steps: 14, first: 0.4, last: 2.1, rounds: 2 },
            3 => Self { steps: 12, first: 0.5, last: 1.6, rounds: 2 },
            4 => Self { steps: 10, first: 0.6, last: 1.2, rounds: 1 },
            _ => Self { steps: 12, first: 0.85, last: 1.08, rounds: 1 },
        }
    }
}

impl Chooser for Search {
    const KEEPS_NORM: bool = true;

    #[inline(always)]
    fn choose<S: Simd, G: Rounder, const COUNT: usize>(
        self,
        s: S,
        grid: &TwoLevel,
        grids: Pair<G, COUNT>,
        block: &Block<'_>,
        scales: &mut Scales,
    ) {
        Rtn.choose(s, grid, grids, block, scales);
        let mut trial = scales.clone();
        let mut ideals = vec![Ideal::default(); scales.inner.len()];
        for (span, groups) in spans(grid, scales.inner.len()).enumerate() {
            for index in groups.clone() {
                ideals[index] = Ideal::of(s, grid, grids, &group(block, grid, index));
            }
            let job = Span { s, grid, grids, block, span, groups };
            let mut least = job.error(scales);
            let mut outer = job.outer(&ideals);
            for _ in 0..Reach::of(grid.code_bits()).rounds {
                trial.outer[span] = limited(grid, array(s, outer).map(|x| grid.outer.round(x)));
                let (error, refined) = job.inner(&ideals, &mut trial);
                job.keep(&trial, &error, &mut least, scales);
                outer = refined;
            }
        }
    }
}

/// What a group would choose by itself, per lane.
#[derive(Clone, Copy)]
pub struct Ideal {
    /// The scale.
    pub scale: V,
    /// Σ w q²: a scale that is off by d costs this times d².
    pub growth: V,
}

impl Default for Ideal {
    fn default() -> Self {
        Self { scale: splat(0.0), growth: splat(0.0) }
    }
}

impl Ideal {
    /// Scores candidates of both signs in every grid by the error that the best scale for their codes would leave:
    /// Σ w x² − (Σ w x q)² / Σ w q².
    #[inline(always)]
    pub fn of<S: Simd, G: Rounder, const COUNT: usize>(
        s: S,
        grid: &TwoLevel,
        grids: Pair<G, COUNT>,
        group: &Group<'_>,
    ) -> Self {
        let reach = Reach::of(grid.code_bits());
        let inverse = s.mul(reciprocal(s, extremes(s, group.x)), s.splat(lowest(grid)));
        let (mut gain, mut scale, mut growth) = (s.splat(0.0), s.splat(0.0), s.splat(0.0));
        for step in 0..reach.steps {
            let share = reach.first + (reach.last - reach.first) / f32::from(reach.steps - 1) * f32::from(step);
            for sign in [1.0, -1.0] {
                for rounder in grids.0 {
                    let (xq, qq) = products(s, rounder, s.mul(inverse, s.splat(sign * share)), group);
                    let best = s.div(xq, qq);
                    let found = s.mul(xq, best);
                    // A comparison with NaN (0/0, or an overflow) is false.
                    scale = s.if_gt(found, gain, best, scale);
                    growth = s.if_gt(found, gain, qq, growth);
                    gain = s.max(found, gain);
                }
            }
        }
        Self { scale: array(s, scale), growth: array(s, growth) }
    }
}

/// Σ w x q and Σ w q² for the levels q nearest to x · inverse.
#[inline(always)]
pub fn products<S: Simd, G: Rounder>(s: S, grid: G, inverse: S::F32, group: &Group<'_>) -> (S::F32, S::F32) {
    let bounds = grid.bounds(s, s.splat(grid.zero()));
    let (mut xq, mut qq) = (s.splat(0.0), s.splat(0.0));
    match group.w {
        None => {
            for x in group.x {
                let x = s.load(x);
                let q = grid.level(s, s.mul(x, inverse), bounds);
                xq = s.add(xq, s.mul(x, q));
                qq = s.add(qq, s.mul(q, q));
            }
        }
        Some(w) => {
            for (x, w) in group.x.iter().zip(w) {
                let x = s.load(x);
                let q = grid.level(s, s.mul(x, inverse), bounds);
                let wq = s.mul(s.load(w), q);
                xq = s.add(xq, s.mul(x, wq));
                qq = s.add(qq, s.mul(q, wq));
            }
        }
    }
    (xq, qq)
}

/// The best of some inner scales of a group, with a given outer scale, per lane.
pub struct Best<S: Simd> {
    pub error: S::F32,
    pub inner: S::F32,
    pub grid: S::F32,
}

impl<S: Simd> Best<S> {
    /// The inner scale nearest to the ideal one and its neighbours, in every grid, by their true error.
    #[inline(always)]
    pub fn of<G: Rounder, const COUNT: usize>(
        s: S,
        grid: &TwoLevel,
        grids: Pair<G, COUNT>,
        outer: S::F32,
        ideal: &Ideal,
        group: &Group<'_>,
    ) -> Self {
        let middle = nearest(s, grid, s.mul(s.load(&ideal.scale), reciprocal(s, outer)));
        let zero = s.splat(0.0);
        let mut best = Self { error: s.splat(f32::INFINITY), inner: middle, grid: zero };
        for shift in [0.0, -1.0, 1.0] {
            let moved = s.add(middle, s.splat(shift * grid.inner.step() as f32));
            let inner = if shift == 0.0 { middle } else { nearest(s, grid, moved) };
            for (index, rounder) in grids.0.into_iter().enumerate() {
                let error = error(s, rounder, s.mul(outer, inner), group);
                best.inner = s.if_gt(best.error, error, inner, best.inner);
                best.grid = s.if_gt(best.error, error, s.splat(index as f32), best.grid);
                best.error = s.min(error, best.error);
            }
        }
        best
    }
}

/// One span of a row block.
struct Span<'a, S, G, const COUNT: usize> {
    s: S,
    grid: &'a TwoLevel,
    grids: Pair<G, COUNT>,
    block: &'a Block<'a>,
    span: usize,
    groups: Range<usize>,
}

impl<S: Simd, G: Rounder, const COUNT: usize> Span<'_, S, G, COUNT> {
    /// Step 2: Σ growth · (ideal − outer · inner)² over the groups, least.
    #[inline(always)]
    fn outer(&self, ideals: &[Ideal]) -> S::F32 {
        let (s, grid) = (self.s, self.grid);
        let ideals = ideals.get(self.groups.clone()).unwrap_or_default();
        let mut extreme = s.splat(0.0);
        for ideal in ideals {
            let scale = s.load(&ideal.scale);
            extreme = s.if_gt(abs(s, scale), abs(s, extreme), scale, extreme);
        }
        let unit = s.div(extreme, s.splat(grid.inner.bounds().0 as f32));
        let (mut least, mut chosen) = (s.splat(f32::INFINITY), unit);
        for step in 0..OUTER_STEPS {
            let (first, last) = OUTER_RANGE;
            let share = first + (last - first) / f32::from(OUTER_STEPS - 1) * f32::from(step);
            for sign in [1.0, -1.0] {
                let outer = s.mul(unit, s.splat(share * sign));
                let inverse = reciprocal(s, outer);
                let mut cost = s.splat(0.0);
                for ideal in ideals {
                    let scale = s.load(&ideal.scale);
                    let off = s.sub(scale, s.mul(outer, nearest(s, grid, s.mul(scale, inverse))));
                    cost = s.add(cost, s.mul(s.mul(off, off), s.load(&ideal.growth)));
                }
                chosen = s.if_gt(least, cost, outer, chosen);
                least = s.min(cost, least);
            }
        }
        chosen
    }

    /// Step 3: chooses inner scales and grids for the outer scale in `trial`. Returns the error, and the outer scale that
    /// would be best for the codes.
    #[inline(always)]
    fn inner(&self, ideals: &[Ideal], trial: &mut Scales) -> (V, S::F32) {
        let s = self.s;
        let outer = s.load(&trial.outer[self.span]);
        let (mut total, mut wanted, mut units) = (s.splat(0.0), s.splat(0.0), s.splat(0.0));
        for index in self.groups.clone() {
            let group = group(self.block, self.grid, index);
            let best = Best::of(s, self.grid, self.grids, outer, &ideals[index], &group);
            total = s.add(total, best.error);
            trial.inner[index] = array(s, best.inner);
            trial.grid[index] = array(s, best.grid);
            let (xq, qq) = self.sums(best.inner, best.grid, outer, &group);
            wanted = s.add(wanted, s.mul(xq, best.inner));
            units = s.add(units, s.mul(qq, s.mul(best.inner, best.inner)));
        }
        (array(s, total), s.if_gt(units, s.splat(0.0), s.div(wanted, units), outer))
    }

    /// Σ w x q and Σ w q² for the levels of the chosen grid.
    #[inline(always)]
    fn sums(&self, inner: S::F32, grid: S::F32, outer: S::F32, group: &Group<'_>) -> (S::F32, S::F32) {
        let s = self.s;
        let inverse = reciprocal(s, s.mul(outer, inner));
        let first = products(s, self.grids.0[0], inverse, group);
        if COUNT == 1 {
            return first;
        }
        let second = products(s, self.grids.0[COUNT - 1], inverse, group);
        let half = s.splat(0.5);
        (s.if_gt(grid, half, second.0, first.0), s.if_gt(grid, half, second.1, first.1))
    }

    /// The error that these scales leave.
    #[inline(always)]
    fn error(&self, scales: &Scales) -> V {
        let s = self.s;
        let mut total = s.splat(0.0);
        for index in self.groups.clone() {
            let group = group(self.block, self.grid, index);
            let scale = s.load(&scales.scale(self.grid, index));
            let first = error(s, self.grids.0[0], scale, &group);
            let second = if COUNT == 1 { first } else { error(s, self.grids.0[COUNT - 1], scale, &group) };
            total = s.add(total, s.if_gt(s.load(&scales.grid[index]), s.splat(0.5), second, first));
        }
        array(s, total)
    }

    /// Keeps the rows of `trial` that leave less error.
    #[inline(always)]
    fn keep(&self, trial: &Scales, error: &V, least: &mut V, scales: &mut Scales) {
        let s = self.s;
        let (new, old) = (s.load(error), s.load(least));
        take(s, old, new, &trial.outer[self.span], &mut scales.outer[self.span]);
        for index in self.groups.clone() {
            take(s, old, new, &trial.inner[index], &mut scales.inner[index]);
            take(s, old, new, &trial.grid[index], &mut scales.grid[index]);
        }
        s.store(s.min(new, old), least);
    }
}

/// Copies the lanes where a > b.
#[inline(always)]
fn take<S: Simd>(s: S, a: S::F32, b: S::F32, from: &V, to: &mut V) {
    let taken = s.if_gt(a, b, s.load(from), s.load(to));
    s.store(taken, to);
}
