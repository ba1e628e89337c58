//! `search`: the scale that minimises Σ importance · (w − ŵ)² over candidates around the largest magnitude.

use crate::fit::{Fit, Group, Method, Rounder, Scratch, scale};
use crate::lanes::{V, map, max, min, reciprocal, round, splat, zip};
use crate::rtn::{extremes, range};
use crate::{Quantizer, Rtn, Stats, Target, Tile, TileError, check, groups};
use ashlar_formats::x16::ROWS;
use ashlar_formats::{FormatError, Grid, Groups, Levels, Peak, Spec};
use ashlar_simd::Isa;

/// Weighted search for group scales.
#[derive(Clone, Copy, Debug)]
pub struct Search;

impl Quantizer for Search {
    fn id(&self) -> &'static str {
        "search"
    }

    fn supports(&self, spec: &Spec) -> Result<(), FormatError> {
        match spec.grid()? {
            Grid::Groups(_) => Ok(()),
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
    fn fit<G: Rounder>(self, grid: &Groups, rounder: G, group: &Group<'_>, scratch: &mut Scratch) -> Fit {
        let plain = Rtn.fit(grid, rounder, group, scratch);
        let mut trial = Trial { grid, rounder, group, scratch, gain: splat(0.0), best: plain };
        let mut chosen = Chosen { error: trial.error(&plain).0, fit: plain };
        match (grid.peak, grid.levels) {
            (Peak::Exponent(_), _) => {
                for factor in [0.5, 2.0, 4.0] {
                    let scale = map(&plain.scale, |s| min(s * factor, grid.scale.max()));
                    let fit = Fit { scale, zero: plain.zero };
                    chosen.offer(&trial.error(&fit).0, &fit);
                }
                return chosen.fit;
            }
            (_, Levels::Linear { min, max, .. }) if grid.zero_point => trial.affine(min as f32, max as f32),
            (Peak::Absolute(level) | Peak::Signed(level), _) => trial.symmetric(level.abs()),
        }
        let mut next = trial.best;
        for _ in 0..ROUNDS {
            let fit = Fit { scale: map(&next.scale, |s| grid.scale.round(s)), zero: next.zero };
            let (error, refined) = trial.error(&fit);
            chosen.offer(&error, &fit);
            next.scale = refined;
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
        for i in 0..ROWS {
            // Also false for NaN, which an overflowing candidate gives; a plain fit that overflows is replaced.
            let better = error[i] < self.error[i] || (!self.error[i].is_finite() && error[i].is_finite());
            self.error[i] = if better { error[i] } else { self.error[i] };
            self.fit.scale[i] = if better { fit.scale[i] } else { self.fit.scale[i] };
            self.fit.zero[i] = if better { fit.zero[i] } else { self.fit.zero[i] };
        }
    }
}

/// Candidates for one group and the best of them by gain, per lane.
struct Trial<'a, G> {
    grid: &'a Groups,
    rounder: G,
    group: &'a Group<'a>,
    scratch: &'a mut Scratch,
    gain: V,
    best: Fit,
}

impl<G: Rounder> Trial<'_, G> {
    /// Scales of both signs that put the extreme value near the outermost level.
    #[inline(always)]
    fn symmetric(&mut self, level: f32) {
        let extreme = extremes(self.group.x);
        let zero = splat(self.rounder.zero());
        for step in 0..STEPS {
            let reach = level * (FIRST + (LAST - FIRST) / f32::from(STEPS - 1) * f32::from(step));
            for reach in [reach, -reach] {
                let inverse = map(&extreme, |e| reach * reciprocal(e));
                self.candidate(&inverse, &zero);
            }
        }
    }

    /// Scales that make the codes span most of the values' range, each with the nearest zero points.
    #[inline(always)]
    fn affine(&mut self, code_min: f32, code_max: f32) {
        let (low, high) = range(self.group.x);
        let middle = zip(&low, &high, |l, h| (l + h) * 0.5);
        let span = zip(&low, &high, |l, h| h - l);
        for step in 0..STEPS {
            let reach = (code_max - code_min) * (0.9 + 0.6 / f32::from(STEPS - 1) * f32::from(step));
            let inverse = map(&span, |s| reach * reciprocal(s));
            for shift in [-1.0, 0.0, 1.0] {
                let centred = zip(&middle, &inverse, |m, inverse| round((code_min + code_max) * 0.5 - m * inverse));
                let zero = map(&centred, |z| max(code_min, min(code_max, z + shift)));
                self.candidate(&inverse, &zero);
            }
        }
    }

    /// Scores the codes that these reciprocal scales give by Σ w x² − min over scales of Σ w (x − scale · q)²
    /// = (Σ w x q)² / Σ w q².
    #[inline(always)]
    fn candidate(&mut self, inverse: &V, zero: &V) {
        let (xq, qq) = self.products(inverse, zero);
        for i in 0..ROWS {
            let gain = xq[i] * xq[i] / qq[i];
            let better = gain > self.gain[i];
            self.gain[i] = if better { gain } else { self.gain[i] };
            self.best.scale[i] = if better { xq[i] / qq[i] } else { self.best.scale[i] };
            self.best.zero[i] = if better { zero[i] } else { self.best.zero[i] };
        }
    }

    /// Σ w x q and Σ w q² for the levels q nearest to x · inverse.
    #[inline(always)]
    fn products(&mut self, inverse: &V, zero: &V) -> (V, V) {
        let n = self.group.x.len();
        let (y, q) = (&mut self.scratch.y[..n], &mut self.scratch.q[..n]);
        scale(self.group.x, inverse, y);
        self.rounder.levels(y, &self.rounder.bounds(zero), q);
        let (mut xq, mut qq) = (splat(0.0), splat(0.0));
        match self.group.w {
            None => {
                for (x, q) in self.group.x.iter().zip(q) {
                    for i in 0..ROWS {
                        xq[i] += x[i] * q[i];
                        qq[i] += q[i] * q[i];
                    }
                }
            }
            Some(w) => {
                for ((x, q), w) in self.group.x.iter().zip(q).zip(w) {
                    for i in 0..ROWS {
                        let wq = w[i] * q[i];
                        xq[i] += x[i] * wq;
                        qq[i] += q[i] * wq;
                    }
                }
            }
        }
        (xq, qq)
    }

    /// Σ w (x − ŵ)² of a fit with storable scales, and the scale that would be best for its codes.
    #[inline(always)]
    fn error(&mut self, fit: &Fit) -> (V, V) {
        let inverse = map(&fit.scale, reciprocal);
        let (xq, qq) = self.products(&inverse, &fit.zero);
        let mut error = splat(0.0);
        let q = &self.scratch.q[..self.group.x.len()];
        match self.group.w {
            None => {
                for (x, q) in self.group.x.iter().zip(q) {
                    for i in 0..ROWS {
                        let d = x[i] - q[i] * fit.scale[i];
                        error[i] += d * d;
                    }
                }
            }
            Some(w) => {
                for ((x, q), w) in self.group.x.iter().zip(q).zip(w) {
                    for i in 0..ROWS {
                        let d = x[i] - q[i] * fit.scale[i];
                        error[i] += d * d * w[i];
                    }
                }
            }
        }
        (error, zip(&xq, &qq, |xq, qq| if qq > 0.0 { xq / qq } else { 0.0 }))
    }
}
