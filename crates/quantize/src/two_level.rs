//! Quantizes tiles of formats with inner and outer scales: a row block is transposed as a whole, since its outer scales
//! depend on all of its groups; then its groups are encoded one by one.
//!
//! [`plain`] and [`search`] choose the scales, [`norm`] stretches them, [`store`] writes what they chose, [`nested`] serves `gptq`.

pub mod nested;
mod norm;
pub mod plain;
pub mod search;
mod store;
#[cfg(test)]
mod tests;

use crate::fit::{Group, Linear, Lut, Pair, Rounder};
use crate::groups::encode;
use crate::lanes::{V, splat};
use crate::outliers::Outliers;
use crate::panel::{Sums, load, not_finite, peaks};
use crate::{Stats, Target, Tile, TileError};
use ashlar_formats::x16::ROWS;
use ashlar_formats::{FormatError, Levels, TwoLevel};
use ashlar_simd::{Isa, Kernel, Simd};
use std::ops::Range;
use store::Planes;

/// Outer scales, inner scales and grids of a row block.
#[derive(Clone, Debug, Default)]
pub struct Scales {
    /// Storable, one per span.
    pub outer: Vec<V>,
    /// Integers, one per group.
    pub inner: Vec<V>,
    /// 0 or 1, one per group.
    pub grid: Vec<V>,
}

/// A way to choose scales.
pub trait Chooser: Copy {
    /// Whether, where the importance of columns is known, outer scales are stretched until the codes keep the weighted norm
    /// of what they stand for (see [`norm`]).
    const KEEPS_NORM: bool;
    /// Chooses the scales of the groups and spans of a row block of `block.x.len()` columns.
    fn choose<S: Simd, G: Rounder, const COUNT: usize>(
        self,
        s: S,
        grid: &TwoLevel,
        grids: Pair<G, COUNT>,
        block: &Block<'_>,
        scales: &mut Scales,
    );
}

/// A row block, transposed: one vector per column, one lane per row.
#[derive(Clone, Copy)]
pub struct Block<'a> {
    /// Values; zero in padding rows and where an outlier was taken out.
    pub x: &'a [V],
    /// Importance of each value, zero where an outlier was taken out; `None` when all are one.
    pub w: Option<&'a [V]>,
}

impl<'a> Block<'a> {
    /// Some of the columns.
    #[inline(always)]
    pub fn columns(&self, columns: Range<usize>) -> Block<'a> {
        Block {
            x: self.x.get(columns.clone()).unwrap_or_default(),
            w: self.w.map(|w| w.get(columns).unwrap_or_default()),
        }
    }
}

impl Scales {
    /// The scale of a group as a decoder computes it.
    #[inline(always)]
    pub fn scale(&self, grid: &TwoLevel, group: usize) -> V {
        product(&self.outer[span_of(grid, group)], &self.inner[group])
    }

    fn resize(&mut self, groups: usize, spans: usize) {
        self.outer.resize(spans, splat(0.0));
        self.inner.resize(groups, splat(0.0));
        self.grid.resize(groups, splat(0.0));
    }
}

/// An outer times an inner scale.
#[inline(always)]
fn product(outer: &V, inner: &V) -> V {
    std::array::from_fn(|lane| outer[lane] * inner[lane])
}

/// The span that a group belongs to.
#[inline(always)]
pub fn span_of(grid: &TwoLevel, group: usize) -> usize {
    grid.span.map_or(0, |span| group * grid.group / span)
}

/// The groups of each span of `groups` groups.
pub fn spans(grid: &TwoLevel, groups: usize) -> impl Iterator<Item = Range<usize>> + use<> {
    let per_span = grid.span.map_or(groups, |span| span / grid.group).max(1);
    (0..groups).step_by(per_span).map(move |start| start..(start + per_span).min(groups))
}

/// Something to do with the grids of a format, whatever they are.
pub trait WithGrids {
    /// What it computes.
    type Output;
    /// Does it.
    fn run<G: Rounder, const COUNT: usize>(self, grids: Pair<G, COUNT>) -> Self::Output;
}

/// Runs `job` with the rounder of the format's grids; `None` if there is none for such grids.
pub fn with_grids<J: WithGrids>(grid: &TwoLevel, job: J) -> Option<J::Output> {
    match *grid.grids {
        [Levels::Table(a), Levels::Table(b)] => match grid.code_bits() {
            2 => Some(job.run(Pair([Lut::<2>::new(a), Lut::<2>::new(b)]))),
            3 => Some(job.run(Pair([Lut::<3>::new(a), Lut::<3>::new(b)]))),
            4 => Some(job.run(Pair([Lut::<4>::new(a), Lut::<4>::new(b)]))),
            _ => None,
        },
        [Levels::Linear { min, max, zero }] => {
            let mask = (1 << grid.code_bits()) - 1;
            Some(job.run(Pair([Linear { min: min as f32, max: max as f32, zero: zero as f32, mask }])))
        }
        _ => None,
    }
}

/// Quantizes a tile with the scales that `chooser` chooses.
pub fn quantize<C: Chooser>(
    chooser: C,
    grid: &TwoLevel,
    target: Target<'_>,
    tile: Tile<'_>,
    stats: Stats<'_>,
    isa: Isa,
    out: &mut [&mut [u8]],
) -> Result<TileError, FormatError> {
    let job = Job { chooser, grid, target, tile, stats, isa, out };
    let unknown = || FormatError::Parameter { id: target.spec.id, what: "no method knows its grids".into() };
    with_grids(grid, job).unwrap_or_else(|| Err(unknown()))
}

struct Job<'a, 'b, C> {
    chooser: C,
    grid: &'a TwoLevel,
    target: Target<'a>,
    tile: Tile<'a>,
    stats: Stats<'a>,
    isa: Isa,
    out: &'a mut [&'b mut [u8]],
}

impl<C: Chooser> WithGrids for Job<'_, '_, C> {
    type Output = Result<TileError, FormatError>;

    fn run<G: Rounder, const COUNT: usize>(self, grids: Pair<G, COUNT>) -> Self::Output {
        self.isa.run(Rounded { grids, job: self })
    }
}

/// A job and its way of rounding.
struct Rounded<'a, 'b, C, G, const COUNT: usize> {
    grids: Pair<G, COUNT>,
    job: Job<'a, 'b, C>,
}

impl<C: Chooser, G: Rounder, const COUNT: usize> Kernel for Rounded<'_, '_, C, G, COUNT> {
    type Output = Result<TileError, FormatError>;

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) -> Self::Output {
        let k = self.job.tile.k;
        let mut buffers = Buffers { x: vec![splat(0.0); k], ..Buffers::default() };
        buffers.scales.resize(k / self.job.grid.group, self.job.grid.spans(k));
        let mut error = TileError::default();
        for block in 0..self.job.tile.rows().div_ceil(ROWS) {
            error += self.job.row_block(s, self.grids, block, &mut buffers)?;
        }
        Ok(error)
    }
}

/// Buffers of a row block, reused.
#[derive(Default)]
struct Buffers {
    x: Vec<V>,
    w: Vec<V>,
    scales: Scales,
    /// The outer scales that values are divided by to find their codes.
    rounding: Vec<V>,
}

impl<C: Chooser> Job<'_, '_, C> {
    #[inline(always)]
    fn row_block<S: Simd, G: Rounder, const COUNT: usize>(
        &mut self,
        s: S,
        grids: Pair<G, COUNT>,
        block: usize,
        buffers: &mut Buffers,
    ) -> Result<TileError, FormatError> {
        let (k, grid, first) = (self.tile.k, self.grid, block * ROWS);
        let live = (self.tile.rows() - first).min(ROWS);
        let rows = self.tile.values.get(first * k..(first + live) * k).unwrap_or_default();
        let (slots, id, first_row) = (self.target.spec.outlier_slots, self.target.spec.id, self.tile.first_row + first);
        let mut outliers = Outliers::choose(rows, k, slots, self.target.outlier_sigma);
        let Buffers { x, w, scales, rounding } = buffers;
        load(s, rows, k, 0, x);
        let weighted = weights(self.stats.importance, &mut outliers, x, w);
        if peaks(s, x).is_none() {
            return Err(not_finite(rows, k, first_row));
        }
        let weighed = Block { x, w: weighted.then_some(&*w) };
        self.chooser.choose(s, grid, grids, &weighed, scales);
        rounding.clone_from(&scales.outer);
        if C::KEEPS_NORM && self.stats.importance.is_some() {
            norm::keep(s, grid, grids, &weighed, scales);
        }
        if let Some(error) = store::too_large(id, grid, scales, rows, k, first_row) {
            return Err(error);
        }
        let planes = Planes { grid, k, block };
        let mut sums = Sums::default();
        for group in 0..k / grid.group {
            let columns = group * grid.group..(group + 1) * grid.group;
            let (mut decoded, mut codes) = ([splat(0.0); MAX_GROUP], [[0; ROWS]; MAX_GROUP]);
            let (decoded, codes) = (&mut decoded[..grid.group], &mut codes[..grid.group]);
            let x = x.get_mut(columns.clone()).unwrap_or_default();
            let fit = crate::fit::Fit { scale: scales.scale(grid, group), zero: scales.grid[group] };
            let rounding = product(&rounding[span_of(grid, group)], &scales.inner[group]);
            encode(s, grids, (&rounding, &fit), live, x, decoded, codes);
            outliers.next(columns.clone());
            outliers.finish(id, first_row, columns, x, decoded)?;
            sums.add(s, x, decoded);
            planes.group(s, group, live, (&scales.inner[group], &scales.grid[group]), codes, self.out);
        }
        planes.outer(live, &scales.outer, self.out);
        if slots > 0
            && let Some(plane) = self.out.last_mut()
        {
            outliers.store(plane, slots, first);
        }
        Ok(sums.error(outliers.overflow))
    }
}

/// Most columns a group can have.
const MAX_GROUP: usize = 32;

/// Fills `w` with the importance of every value and takes the outliers out; false if all are one.
fn weights(importance: Option<&[f32]>, outliers: &mut Outliers, x: &mut [V], w: &mut Vec<V>) -> bool {
    if importance.is_none() && outliers.is_empty() {
        return false;
    }
    w.clear();
    match importance {
        Some(importance) => w.extend(importance.iter().map(|&i| splat(i))),
        None => w.resize(x.len(), splat(1.0)),
    }
    outliers.take(0, x, w);
    true
}

/// A group of a block.
#[inline(always)]
pub fn group<'a>(block: &Block<'a>, grid: &TwoLevel, group: usize) -> Group<'a> {
    let part = block.columns(group * grid.group..(group + 1) * grid.group);
    Group { x: part.x, w: part.w, peak: splat(0.0) }
}
