//! `gptq`: columns are rounded one after the other, and what each lost is made up for by those that follow (see
//! [`Factor`]). Scales and zero points of a group are searched when its first column is reached, on the values as the
//! columns before have left them, with D as importance. Outer scales are searched before, on the weights themselves.
//!
//! Sixteen rows are the lanes, as everywhere; row blocks go through a group together, so that its part of U is read once.

use crate::factor::{Factor, PANEL};
use crate::fit::{Fit, Group, Linear, Lut, MAX_GROUP, Method, Pair, Rounder};
use crate::lanes::{V, array, reciprocal, splat};
use crate::outliers::Outliers;
use crate::panel::{Sums, load, not_finite, peaks};
use crate::two_level::{self, WithGrids, nested::Nested};
use crate::{Quantizer, Search, Stats, Target, Tile, TileError, check, groups};
use ashlar_formats::x16::ROWS;
use ashlar_formats::{FormatError, Grid, Groups, Levels, Spec, TwoLevel};
use ashlar_simd::{Isa, Kernel, Simd};

/// Row blocks that go through the columns together.
const TOGETHER: usize = 4;

/// Rounding with error feedback.
#[derive(Clone, Copy, Debug)]
pub struct Gptq;

impl Quantizer for Gptq {
    fn id(&self) -> &'static str {
        "gptq"
    }

    fn supports(&self, spec: &Spec) -> Result<(), FormatError> {
        Search.supports(spec).map_err(|_| {
            let what = "method gptq chooses group scales, which this format has not; use method: rtn".into();
            FormatError::Parameter { id: spec.id, what }
        })
    }

    fn needs_hessian(&self) -> bool {
        true
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
        let Some(factor) = stats.factor else {
            let what = "method gptq needs the Hessian of the inputs; collect it, or use method: search".into();
            return Err(FormatError::Parameter { id: target.spec.id, what });
        };
        let job = Job { target, tile, factor, out };
        match target.spec.grid()? {
            Grid::Groups(grid) => uniform(&grid, job, isa),
            Grid::TwoLevel(grid) => {
                let unknown =
                    || FormatError::Parameter { id: target.spec.id, what: "gptq does not know its grids".into() };
                two_level::with_grids(&grid, WithNested { grid: &grid, job, isa }).unwrap_or_else(|| Err(unknown()))
            }
            _ => Search.quantize(target, tile, stats, isa, job.out),
        }
    }
}

/// How the groups of a format get their parameters, and where these and the codes go.
pub trait Scheme: Clone {
    /// How often the columns are gone through: once more for each choice of what [`Scheme::begin`] chooses.
    const PASSES: usize;
    /// How values become levels and codes.
    type Rounder: Rounder;
    /// The rounder.
    fn rounder(&self) -> Self::Rounder;
    /// Columns of a group.
    fn group(&self) -> usize;
    /// Chooses what must be chosen before any column is rounded, for values like these with these weights.
    fn begin<S: Simd>(&mut self, s: S, x: &[V], w: &[V]);
    /// Fits group number `index`.
    fn fit<S: Simd>(&mut self, s: S, index: usize, group: &Group<'_>) -> Fit;
    /// Names the value that overflows a scale, if one does.
    fn too_large(
        &self,
        id: &'static str,
        fit: &Fit,
        rows: &[f32],
        k: usize,
        first_row: usize,
        index: usize,
    ) -> Option<FormatError>;
    /// Writes a fitted group of row block `block`; lanes from `live` on stay zero bytes.
    fn store<S: Simd>(&self, s: S, place: Place, fit: &Fit, codes: &mut [[i32; ROWS]], out: &mut [&mut [u8]]);
    /// Writes what [`Scheme::begin`] chose.
    fn finish(&self, place: Place, out: &mut [&mut [u8]]);
}

/// A group within the planes of a tile.
#[derive(Clone, Copy)]
pub struct Place {
    pub k: usize,
    pub block: usize,
    pub group: usize,
    /// Rows that are no padding.
    pub live: usize,
}

/// Formats with a scale per group.
#[derive(Clone)]
struct Uniform<'a, G> {
    grid: &'a Groups,
    rounder: G,
}

impl<G: Rounder> Scheme for Uniform<'_, G> {
    const PASSES: usize = 1;
    type Rounder = G;

    #[inline(always)]
    fn rounder(&self) -> G {
        self.rounder
    }

    #[inline(always)]
    fn group(&self) -> usize {
        self.grid.group
    }

    #[inline(always)]
    fn begin<S: Simd>(&mut self, _s: S, _x: &[V], _w: &[V]) {}

    #[inline(always)]
    fn fit<S: Simd>(&mut self, s: S, _index: usize, group: &Group<'_>) -> Fit {
        Search.fit(s, self.grid, self.rounder, group)
    }

    fn too_large(
        &self,
        id: &'static str,
        fit: &Fit,
        rows: &[f32],
        k: usize,
        first_row: usize,
        index: usize,
    ) -> Option<FormatError> {
        let overflows = fit.scale.iter().any(|f| !f.is_finite());
        overflows.then(|| groups::too_large(id, self.grid, fit, rows, k, (first_row, index * self.grid.group)))
    }

    #[inline(always)]
    fn store<S: Simd>(&self, s: S, place: Place, fit: &Fit, codes: &mut [[i32; ROWS]], out: &mut [&mut [u8]]) {
        let at = place.block * (place.k / self.grid.group) + place.group;
        groups::store(s, self.grid, at, fit, place.live, codes, out);
    }

    fn finish(&self, _place: Place, _out: &mut [&mut [u8]]) {}
}

fn uniform(grid: &Groups, job: Job<'_, '_>, isa: Isa) -> Result<TileError, FormatError> {
    match grid.levels {
        Levels::Linear { min, max, zero } => {
            let mask = (1 << grid.width.bits()) - 1;
            let rounder = Linear { min: min as f32, max: max as f32, zero: zero as f32, mask };
            isa.run(With { scheme: Uniform { grid, rounder }, job })
        }
        Levels::Table(table) => isa.run(With { scheme: Uniform { grid, rounder: Lut::<4>::new(table) }, job }),
    }
}

struct WithNested<'a, 'b> {
    grid: &'a TwoLevel,
    job: Job<'a, 'b>,
    isa: Isa,
}

impl WithGrids for WithNested<'_, '_> {
    type Output = Result<TileError, FormatError>;

    fn run<G: Rounder, const COUNT: usize>(self, grids: Pair<G, COUNT>) -> Self::Output {
        self.isa.run(With { scheme: Nested::new(self.grid, grids), job: self.job })
    }
}

struct Job<'a, 'b> {
    target: Target<'a>,
    tile: Tile<'a>,
    factor: &'a Factor,
    out: &'a mut [&'b mut [u8]],
}

/// A job and the format's scheme.
struct With<'a, 'b, C> {
    scheme: C,
    job: Job<'a, 'b>,
}

/// A row block on its way through the columns.
struct Lanes<C> {
    scheme: C,
    outliers: Outliers,
    /// Number in the tile.
    block: usize,
    /// Rows that are no padding.
    live: usize,
    /// The weights.
    x: Vec<V>,
    /// w − ŵ of the columns done.
    errors: Vec<V>,
    /// What was rounded: the weights as the columns before them had left them, zero where an outlier was taken out.
    moved: Vec<V>,
    sums: Sums,
}

/// Buffers of one group.
struct Buffers {
    x: [V; MAX_GROUP],
    w: [V; MAX_GROUP],
    decoded: [V; MAX_GROUP],
    codes: [[i32; ROWS]; MAX_GROUP],
}

impl<C: Scheme> Kernel for With<'_, '_, C> {
    type Output = Result<TileError, FormatError>;

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) -> Self::Output {
        let blocks = self.job.tile.rows().div_ceil(ROWS);
        let zeros = [splat(0.0); MAX_GROUP];
        let mut buffers = Buffers { x: zeros, w: zeros, decoded: zeros, codes: [[0; ROWS]; MAX_GROUP] };
        let mut error = TileError::default();
        for first in (0..blocks).step_by(TOGETHER) {
            let mut together = Vec::with_capacity(TOGETHER);
            for block in first..(first + TOGETHER).min(blocks) {
                together.push(self.job.begin(s, &self.scheme, block)?);
            }
            for pass in 0..C::PASSES {
                for lanes in together.iter_mut().filter(|_| pass > 0) {
                    self.job.again(s, lanes);
                }
                for group in 0..self.job.tile.k / self.scheme.group() {
                    for lanes in &mut together {
                        self.job.group(s, lanes, group, &mut buffers)?;
                    }
                }
            }
            for lanes in together {
                let place = Place { k: self.job.tile.k, block: lanes.block, group: 0, live: lanes.live };
                lanes.scheme.finish(place, self.job.out);
                if self.job.target.spec.outlier_slots > 0
                    && let Some(plane) = self.job.out.last_mut()
                {
                    lanes.outliers.store(plane, self.job.target.spec.outlier_slots, lanes.block * ROWS);
                }
                error += lanes.sums.error(lanes.outliers.overflow);
            }
        }
        Ok(error)
    }
}

impl<'a> Job<'a, '_> {
    fn rows(&self, block: usize) -> &'a [f32] {
        self.tile.values.chunks(ROWS * self.tile.k).nth(block).unwrap_or_default()
    }

    /// Reads a row block and chooses its outer scales.
    #[inline(always)]
    fn begin<S: Simd, C: Scheme>(&self, s: S, scheme: &C, block: usize) -> Result<Lanes<C>, FormatError> {
        let (k, rows) = (self.tile.k, self.rows(block));
        let mut x = vec![splat(0.0); k];
        load(s, rows, k, 0, &mut x);
        if peaks(s, &x).is_none() {
            return Err(not_finite(rows, k, self.tile.first_row + block * ROWS));
        }
        let outliers = Outliers::choose(rows, k, self.target.spec.outlier_slots, self.target.outlier_sigma);
        let mut scheme = scheme.clone();
        let mut base = x.clone();
        let mut w: Vec<V> = self.factor.diagonal().iter().map(|&d| splat(d)).collect();
        outliers.clone().take(0, &mut base, &mut w);
        scheme.begin(s, &base, &w);
        let (errors, moved) = (vec![splat(0.0); k], vec![splat(0.0); k]);
        Ok(Lanes { scheme, outliers, block, live: rows.len() / k.max(1), x, errors, moved, sums: Sums::default() })
    }

    /// Makes a row block ready for another pass: outer scales are chosen for what the last one rounded.
    #[inline(always)]
    fn again<S: Simd, C: Scheme>(&self, s: S, lanes: &mut Lanes<C>) {
        lanes.outliers.rewind();
        lanes.sums = Sums::default();
        let mut w: Vec<V> = self.factor.diagonal().iter().map(|&d| splat(d)).collect();
        lanes.outliers.clone().take(0, &mut lanes.moved, &mut w);
        lanes.scheme.begin(s, &lanes.moved, &w);
    }

    /// Fits, rounds and writes one group of a row block.
    #[inline(always)]
    fn group<S: Simd, C: Scheme>(
        &mut self,
        s: S,
        lanes: &mut Lanes<C>,
        index: usize,
        buffers: &mut Buffers,
    ) -> Result<(), FormatError> {
        let width = lanes.scheme.group();
        let (first, id) = (index * width, self.target.spec.id);
        let first_row = self.tile.first_row + lanes.block * ROWS;
        let (x, w) = (&mut buffers.x[..width], &mut buffers.w[..width]);
        for (panel, out) in x.as_chunks_mut::<PANEL>().0.iter_mut().enumerate() {
            self.moved(s, lanes, first, first + panel * PANEL, out);
        }
        for (w, &d) in w.iter_mut().zip(self.factor.diagonal().get(first..).unwrap_or_default()) {
            *w = splat(d);
        }
        lanes.outliers.take(first, x, w);
        let Some(peak) = peaks(s, x) else {
            return Err(FormatError::NotFinite { row: first_row, column: first, value: f32::NAN });
        };
        let fit = lanes.scheme.fit(s, index, &Group { x, w: Some(w), peak });
        if let Some(error) = lanes.scheme.too_large(id, &fit, self.rows(lanes.block), self.tile.k, first_row, index) {
            return Err(error);
        }
        let (decoded, codes) = (&mut buffers.decoded[..width], &mut buffers.codes[..width]);
        self.round(s, lanes, (first, first_row), &fit, decoded, codes)?;
        let x = lanes.x.get(first..first + width).unwrap_or_default();
        lanes.sums.add(s, x, decoded);
        let place = Place { k: self.tile.k, block: lanes.block, group: index, live: lanes.live };
        lanes.scheme.store(s, place, &fit, codes, self.out);
        Ok(())
    }

    /// The values of the 8 columns from `column` on as the errors before column `end` ask for: x_j + Σ_{i < end} e_i U_ij.
    #[inline(always)]
    fn moved<S: Simd, C>(&self, s: S, lanes: &Lanes<C>, end: usize, column: usize, out: &mut [V; PANEL]) {
        let mut sums = [s.splat(0.0); PANEL];
        let panel = self.factor.panel(column / PANEL);
        for (e, u) in lanes.errors.iter().zip(panel).take(end) {
            let e = s.load(e);
            for (sum, &u) in sums.iter_mut().zip(u) {
                *sum = s.fma(e, s.splat(u), *sum);
            }
        }
        let x = lanes.x.get(column..).unwrap_or_default();
        for ((out, sum), x) in out.iter_mut().zip(sums).zip(x) {
            s.store(s.add(s.load(x), sum), out);
        }
    }

    /// Rounds the columns of a group in order. The errors of earlier ones in the group move each before it is rounded.
    #[inline(always)]
    fn round<S: Simd, C: Scheme>(
        &self,
        s: S,
        lanes: &mut Lanes<C>,
        (first, first_row): (usize, usize),
        fit: &Fit,
        decoded: &mut [V],
        codes: &mut [[i32; ROWS]],
    ) -> Result<(), FormatError> {
        let rounder = lanes.scheme.rounder();
        let scale = s.load(&fit.scale);
        let (inverse, bounds) = (reciprocal(s, scale), rounder.bounds(s, s.load(&fit.zero)));
        let live = lanes.live;
        let mask = s.load_i32(&std::array::from_fn(|lane| if lane < live { -1 } else { 0 }));
        let width = decoded.len();
        for panel in (0..width).step_by(PANEL) {
            let mut moved = [splat(0.0); PANEL];
            self.moved(s, lanes, first + panel, first + panel, &mut moved);
            let part = self.factor.panel((first + panel) / PANEL).get(first + panel..).unwrap_or_default();
            for j in 0..PANEL {
                let column = first + panel + j;
                let mut y = s.load(&moved[j]);
                for (i, u) in part.iter().enumerate().take(j) {
                    y = s.fma(s.load(&lanes.errors[first + panel + i]), s.splat(u[j]), y);
                }
                let mut value = array(s, y);
                lanes.outliers.meet(column, &mut value);
                lanes.moved[column] = value;
                let y = s.mul(s.load(&value), inverse);
                s.store_i32(s.and(rounder.code(s, y, bounds), mask), &mut codes[panel + j]);
                let decoded = &mut decoded[panel + j];
                s.store(s.mul(rounder.level(s, y, bounds), scale), decoded);
                lanes.outliers.settle(self.target.spec.id, first_row, column, decoded)?;
                s.store(s.sub(s.load(&lanes.x[column]), s.load(decoded)), &mut lanes.errors[column]);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
