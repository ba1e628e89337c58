//! Two-level formats under `gptq`: outer scales are searched on the weights themselves, inner scales and grids when a group
//! is reached.

use super::plain::error;
use super::search::{Best, Ideal};
use super::store::{Planes, too_large};
use super::{Block, Chooser, Scales, span_of};
use crate::Search;
use crate::fit::{Fit, Group, Pair, Rounder};
use crate::gptq::{Place, Scheme};
use crate::lanes::{V, array};
use ashlar_formats::x16::ROWS;
use ashlar_formats::{FormatError, TwoLevel};
use ashlar_simd::Simd;

/// The scales of one row block.
#[derive(Clone)]
pub struct Nested<'a, G, const COUNT: usize> {
    grid: &'a TwoLevel,
    grids: Pair<G, COUNT>,
    scales: Scales,
}

impl<'a, G: Rounder, const COUNT: usize> Nested<'a, G, COUNT> {
    /// Nothing chosen yet.
    pub fn new(grid: &'a TwoLevel, grids: Pair<G, COUNT>) -> Self {
        Self { grid, grids, scales: Scales::default() }
    }
}

impl<G: Rounder, const COUNT: usize> Scheme for Nested<'_, G, COUNT> {
    const PASSES: usize = 2;
    type Rounder = Pair<G, COUNT>;

    #[inline(always)]
    fn rounder(&self) -> Self::Rounder {
        self.grids
    }

    #[inline(always)]
    fn group(&self) -> usize {
        self.grid.group
    }

    #[inline(always)]
    fn begin<S: Simd>(&mut self, s: S, x: &[V], w: &[V]) {
        self.scales.resize(x.len() / self.grid.group, self.grid.spans(x.len()));
        Search.choose(s, self.grid, self.grids, &Block { x, w: Some(w) }, &mut self.scales);
    }

    /// The best inner scale for the values as they are now; the one that was best for the weights where that is no worse.
    #[inline(always)]
    fn fit<S: Simd>(&mut self, s: S, index: usize, group: &Group<'_>) -> Fit {
        let outer = s.load(&self.scales.outer[span_of(self.grid, index)]);
        let ideal = Ideal::of(s, self.grid, self.grids, group);
        let best = Best::of(s, self.grid, self.grids, outer, &ideal, group);
        let (inner, which) = (s.load(&self.scales.inner[index]), s.load(&self.scales.grid[index]));
        let scale = s.mul(outer, inner);
        let first = error(s, self.grids.0[0], scale, group);
        let second = if COUNT == 1 { first } else { error(s, self.grids.0[COUNT - 1], scale, group) };
        let before = s.if_gt(which, s.splat(0.5), second, first);
        self.scales.inner[index] = array(s, s.if_gt(before, best.error, best.inner, inner));
        self.scales.grid[index] = array(s, s.if_gt(before, best.error, best.grid, which));
        Fit { scale: self.scales.scale(self.grid, index), zero: self.scales.grid[index] }
    }

    fn too_large(
        &self,
        id: &'static str,
        _fit: &Fit,
        rows: &[f32],
        k: usize,
        first_row: usize,
        _index: usize,
    ) -> Option<FormatError> {
        too_large(id, self.grid, &self.scales, rows, k, first_row)
    }

    #[inline(always)]
    fn store<S: Simd>(&self, s: S, place: Place, _fit: &Fit, codes: &mut [[i32; ROWS]], out: &mut [&mut [u8]]) {
        let planes = Planes { grid: self.grid, k: place.k, block: place.block };
        let chosen = (&self.scales.inner[place.group], &self.scales.grid[place.group]);
        planes.group(s, place.group, place.live, chosen, codes, out);
    }

    fn finish(&self, place: Place, out: &mut [&mut [u8]]) {
        Planes { grid: self.grid, k: place.k, block: place.block }.outer(place.live, &self.scales.outer, out);
    }
}
