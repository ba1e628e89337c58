//! `search`: the scale that minimises Σ importance · (w − ŵ)² over candidates around the largest magnitude.

use crate::fit::{Fit, Group, Method, Rounder};
use crate::lanes::{V, array, reciprocal, round};
use crate::rtn::{extremes, range};
use crate::{Quantizer, Rtn, Stats, Target, Tile, TileError, check, groups, two_level};
use ashlar_formats::{FormatError, Grid, Groups, Levels, Peak, Spec};
use ashlar_simd::{Isa, Simd};

/// Weighted search for group scales.
#[derive(Clone, Copy, Debug)]
pub struct Search;

impl Quantizer for Search {
    fn id(&self) -> &'static str {
        "search"
    }

    fn supports(&self, spec: &Spec) -> Result<(), FormatError> {
        match spec.grid()? {
            Grid::Groups(_) | Grid::TwoLevel(_) => Ok(()),
            _ => {
                let what = "method search chooses group scales, which this format has not; use method: rtn".into();
                Err(FormatError::Parameter { id: spec.id, what })
            }
        }
    }

    fn quantize(
        &self,
        target: Target<'_>,
        tile: Tile<'_>,
        stats: Stats<'_>,
        isa: Isa,
        out: &mut [&mut [u8]],
    ) -> Result<TileError, FormatError> {
        self.supports(target.spec)?;
        check(target, tile, stats, out)?;
        match target.spec.grid()? {
            Grid::Groups(grid) => groups::quantize(*self, &grid, target, tile, stats, isa, out),
            Grid::TwoLevel(grid) => two_level::quantize(*self, &grid, target, tile, stats, isa, out),
            _ => Rtn.quantize(target, tile, stats, isa, out),
        }
    }
}

/// Candidates per sign of the scale.
const STEPS: u8 = 20;
/// Candidates put the largest magnitude at this share of the outermost level …
const FIRST: f32 = 0.55;
/// … to this one, in even steps: below 1 the value is met and small ones get coarser, beyond 1 it clips.
const LAST: f32 = 1.25;
/// Rounds of "least squares for these codes, nearest codes for that scale" after the best candidate.
const ROUNDS: usize = 3;

impl Method for Search {
    /// Scores candidates by the error that the best scale for their codes would leave, refines the winner with the
    /// scale rounded to its storage type, and keeps round-to-nearest where that is no worse.
    #[inline(always)]
    fn fit<S: Simd, G: Rounder>(self, s: S, grid: &Groups, rounder: G, group: &Group<'_>) -> Fit {
        let plain = Rtn.fit(s, grid, rounder, group);
        let sums = Sums { s, rounder, group };
        let mut chosen = Chosen { error: array(s, sums.error(&plain).0), fit: plain };
        let mut trial = Trial { sums, gain: s.splat(0.0), scale: s.splat(0.0), zero: s.load(&plain.zero) };
        match (grid.peak, grid.levels) {
            (Peak::Exponent(_), _) => {
                for factor in [0.5, 2.0, 4.0] {
                    let scale = plain.scale.map(|x| (x * factor).min(grid.scale.max()));
                    let fit = Fit { scale, zero: plain.zero };
                    chosen.offer(&array(s, sums.error(&fit).0), &fit);
                }
                return chosen.fit;
            }
            (_, Levels::Linear { min, max, .. }) if grid.zero_point => trial.affine(min as f32, max as f32),
            (Peak::Absolute(level) | Peak::Signed(level), _) => trial.symmetric(level.abs()),
        }
        let (mut scale, zero) = (array(s, trial.scale), array(s, trial.zero));
        for _ in 0..ROUNDS {
            let fit = Fit { scale: scale.map(|x| grid.scale.round(x)), zero };
            let (error, refined) = sums.error(&fit);
            chosen.offer(&array(s, error), &fit);
            scale = array(s, refined);
        }
        chosen.fit
    }
}

/// The best fit with a stored scale so far, per lane.
struct Chosen {
    error: V,
    fit: Fit,
}

impl Chosen {
    #[inline(always)]
    fn offer(&mut self, error: &V, fit: &Fit) {
        for (i, &error) in error.iter().enumerate() {
            // False for NaN, which an overflowing candidate gives; a plain fit that overflows is replaced.
            if error < self.error[i] || (!self.error[i].is_finite() && error.is_finite()) {
                (self.error[i], self.fit.scale[i], self.fit.zero[i]) = (error, fit.scale[i], fit.zero[i]);
            }
        }
    }
}

/// Sums over one group.
#[derive(Clone, Copy)]
struct Sums<'a, S, G> {
    s: S,
    rounder: G,
    group: &'a Group<'a>,
}

impl<S: Simd, G: Rounder> Sums<'_, S, G> {
    /// Σ w x q and Σ w q² for the levels q nearest to x · inverse.
    #[inline(always)]
    fn products(&self, inverse: S::F32, zero: S::F32) -> (S::F32, S::F32) {
        let s = self.s;
        let bounds = self.rounder.bounds(s, zero);
        let (mut xq, mut qq) = (s.splat(0.0), s.splat(0.0));
        match self.group.w {
            None => {
                for x in self.group.x {
                    let x = s.load(x);
                    let q = self.rounder.level(s, s.mul(x, inverse), bounds);
                    xq = s.add(xq, s.mul(x, q));
                    qq = s.add(qq, s.mul(q, q));
                }
            }
            Some(w) => {
                for (x, w) in self.group.x.iter().zip(w) {
                    let x = s.load(x);
                    let q = self.rounder.level(s, s.mul(x, inverse), bounds);
                    let wq = s.mul(s.load(w), q);
                    xq = s.add(xq, s.mul(x, wq));
                    qq = s.add(qq, s.mul(q, wq));
                }
            }
        }
        (xq, qq)
    }

    /// Σ w (x − ŵ)² of a fit with storable scales, and the scale that would be best for its codes.
    #[inline(always)]
    fn error(&self, fit: &Fit) -> (S::F32, S::F32) {
        let s = self.s;
        let (scale, zero) = (s.load(&fit.scale), s.load(&fit.zero));
        let (inverse, bounds) = (reciprocal(s, scale), self.rounder.bounds(s, zero));
        let (mut error, mut xq, mut qq) = (s.splat(0.0), s.splat(0.0), s.splat(0.0));
        for (i, x) in self.group.x.iter().enumerate() {
            let x = s.load(x);
            let w = self.group.w.and_then(|w| w.get(i)).map_or(s.splat(1.0), |w| s.load(w));
            let q = self.rounder.level(s, s.mul(x, inverse), bounds);
            let d = s.sub(x, s.mul(q, scale));
            let wq = s.mul(w, q);
            error = s.add(error, s.mul(s.mul(d, d), w));
            xq = s.add(xq, s.mul(x, wq));
            qq = s.add(qq, s.mul(q, wq));
        }
        (error, s.if_gt(qq, s.splat(0.0), s.div(xq, qq), s.splat(0.0)))
    }
}

/// Candidates for one group and the best of them by gain, per lane.
struct Trial<'a, S: Simd, G> {
    sums: Sums<'a, S, G>,
    gain: S::F32,
    scale: S::F32,
    zero: S::F32,
}

impl<S: Simd, G: Rounder> Trial<'_, S, G> {
    /// Scales of both signs that put the extreme value near the outermost level.
    #[inline(always)]
    fn symmetric(&mut self, level: f32) {
        let s = self.sums.s;
        let zero = s.splat(self.sums.rounder.zero());
        let inverse = reciprocal(s, extremes(s, self.sums.group.x));
        for step in 0..STEPS {
            let reach = level * (FIRST + (LAST - FIRST) / f32::from(STEPS - 1) * f32::from(step));
            self.candidate(s.mul(s.splat(reach), inverse), zero);
            self.candidate(s.mul(s.splat(-reach), inverse), zero);
        }
    }

    /// Scales that make the codes span most of the values' range, each with the nearest zero points.
    #[inline(always)]
    fn affine(&mut self, code_min: f32, code_max: f32) {
        let s = self.sums.s;
        let (low, high) = range(s, self.sums.group.x);
        let (min, max, half) = (s.splat(code_min), s.splat(code_max), s.splat(0.5));
        let middle = s.mul(s.add(low, high), half);
        let span = reciprocal(s, s.sub(high, low));
        for step in 0..STEPS {
            let reach = (code_max - code_min) * (0.9 + 0.6 / f32::from(STEPS - 1) * f32::from(step));
            let inverse = s.mul(s.splat(reach), span);
            let centred = s.sub(s.mul(s.add(min, max), half), s.mul(middle, inverse));
            for shift in [-1.0, 0.0, 1.0] {
                let zero = s.max(min, s.min(max, s.add(centred, s.splat(shift))));
                self.candidate(inverse, round(s, zero));
            }
        }
    }

    /// Scores the codes that these reciprocal scales give by Σ w x² − min over scales of Σ w (x − scale · q)²
    /// = (Σ w x q)² / Σ w q².
    #[inline(always)]
    fn candidate(&mut self, inverse: S::F32, zero: S::F32) {
        let s = self.sums.s;
        let (xq, qq) = self.sums.products(inverse, zero);
        let scale = s.div(xq, qq);
        let gain = s.mul(xq, scale);
        // A comparison with NaN (0/0, or an overflow) is false.
        self.scale = s.if_gt(gain, self.gain, scale, self.scale);
        self.zero = s.if_gt(gain, self.gain, zero, self.zero);
        self.gain = s.max(gain, self.gain);
    }
}
