//! Quantizes tiles of formats with group scales: transposes, fits, encodes, measures.

use crate::fit::{Fit, Group, Linear, Lut, MAX_GROUP, Method, Rounder};
use crate::lanes::{V, reciprocal, splat};
use crate::outliers::Outliers;
use crate::panel::{Sums, load, not_finite, peaks};
use crate::{Stats, Target, Tile, TileError};
use ashlar_formats::x16::ROWS;
use ashlar_formats::{FormatError, Groups, Levels, Peak};
use ashlar_simd::{Isa, Kernel, Simd};

/// Quantizes a tile with `method`.
pub fn quantize<M: Method>(
    method: M,
    grid: &Groups,
    target: Target<'_>,
    tile: Tile<'_>,
    stats: Stats<'_>,
    isa: Isa,
    out: &mut [&mut [u8]],
) -> Result<TileError, FormatError> {
    if grid.group > MAX_GROUP {
        let what = format!("groups of {} exceed the {MAX_GROUP} columns that quantizers take at once", grid.group);
        return Err(FormatError::Parameter { id: target.spec.id, what });
    }
    let job = Job { method, grid, target, tile, stats, out };
    match grid.levels {
        Levels::Linear { min, max, zero } => {
            let mask = (1 << grid.width.bits()) - 1;
            isa.run(Rounded { rounder: Linear { min: min as f32, max: max as f32, zero: zero as f32, mask }, job })
        }
        Levels::Table(table) => isa.run(Rounded { rounder: Lut::<4>::new(table), job }),
    }
}

/// A job and its way of rounding.
struct Rounded<'a, 'b, M, G> {
    rounder: G,
    job: Job<'a, 'b, M>,
}

impl<M: Method, G: Rounder> Kernel for Rounded<'_, '_, M, G> {
    type Output = Result<TileError, FormatError>;

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) -> Self::Output {
        let mut error = TileError::default();
        let zeros = || [splat(0.0); MAX_GROUP];
        let mut buffers = Buffers { x: zeros(), w: zeros(), decoded: zeros(), codes: [[0; ROWS]; MAX_GROUP] };
        for block in 0..self.job.tile.rows().div_ceil(ROWS) {
            error += self.job.row_block(s, self.rounder, block, &mut buffers)?;
        }
        Ok(error)
    }
}

struct Job<'a, 'b, M> {
    method: M,
    grid: &'a Groups,
    target: Target<'a>,
    tile: Tile<'a>,
    stats: Stats<'a>,
    out: &'a mut [&'b mut [u8]],
}

/// Buffers of one group, reused.
struct Buffers {
    x: [V; MAX_GROUP],
    w: [V; MAX_GROUP],
    decoded: [V; MAX_GROUP],
    codes: [[i32; ROWS]; MAX_GROUP],
}

impl<M: Method> Job<'_, '_, M> {
    #[inline(always)]
    fn row_block<S: Simd, G: Rounder>(
        &mut self,
        s: S,
        rounder: G,
        block: usize,
        buffers: &mut Buffers,
    ) -> Result<TileError, FormatError> {
        let (k, width) = (self.tile.k, self.grid.group);
        let first = block * ROWS;
        let live = (self.tile.rows() - first).min(ROWS);
        let rows = self.tile.values.get(first * k..(first + live) * k).unwrap_or_default();
        let slots = self.target.spec.outlier_slots;
        let mut outliers = Outliers::choose(rows, k, slots, self.target.outlier_sigma);
        let mut sums = Sums::default();
        for group in 0..k / width {
            let columns = group * width..(group + 1) * width;
            let (x, w) = (&mut buffers.x[..width], &mut buffers.w[..width]);
            load(s, rows, k, columns.start, x);
            let weighted = self.weights(columns.start, &mut outliers, x, w);
            let Some(peak) = peaks(s, x) else {
                return Err(not_finite(rows, k, self.tile.first_row + first));
            };
            let fit = self.method.fit(s, self.grid, rounder, &Group { x, w: weighted.then_some(&*w), peak });
            if fit.scale.iter().any(|f| !f.is_finite()) {
                let start = (self.tile.first_row + first, columns.start);
                return Err(too_large(self.target.spec.id, self.grid, &fit, rows, k, start));
            }
            let (decoded, codes) = (&mut buffers.decoded[..width], &mut buffers.codes[..width]);
            encode(s, rounder, (&fit.scale, &fit), live, x, decoded, codes);
            outliers.finish(self.target.spec.id, self.tile.first_row + first, columns, x, decoded)?;
            sums.add(s, x, decoded);
            store(s, self.grid, block * (k / width) + group, &fit, live, codes, self.out);
        }
        if slots > 0
            && let Some(plane) = self.out.last_mut()
        {
            outliers.store(plane, slots, first);
        }
        Ok(sums.error(outliers.overflow))
    }

    /// Fills `w` with the importance of every value; false if all are one.
    #[inline(always)]
    fn weights(&self, first: usize, outliers: &mut Outliers, x: &mut [V], w: &mut [V]) -> bool {
        if self.stats.importance.is_none() && outliers.is_empty() {
            return false;
        }
        let importance = self.stats.importance.and_then(|i| i.get(first..first + x.len()));
        for (column, w) in w.iter_mut().enumerate() {
            *w = splat(importance.and_then(|i| i.get(column)).copied().unwrap_or(1.0));
        }
        outliers.take(first, x, w);
        true
    }
}

/// Writes codes and parameters of group number `at` of a tile (row block by row block); lanes from `live` on stay zero
/// bytes.
#[inline(always)]
pub fn store<S: Simd>(
    s: S,
    grid: &Groups,
    at: usize,
    fit: &Fit,
    live: usize,
    codes: &[[i32; ROWS]],
    out: &mut [&mut [u8]],
) {
    let bytes = grid.group * ROWS * grid.width.bits() / 8;
    if let Some(panels) = out.get_mut(0).and_then(|p| p.get_mut(at * bytes..(at + 1) * bytes)) {
        grid.width.pack(s, codes, panels);
    }
    if let Some(scales) = out.get_mut(1) {
        for (lane, &scale) in fit.scale.iter().enumerate() {
            grid.scale.store(if lane < live { scale } else { 0.0 }, scales, at * ROWS + lane);
        }
    }
    if grid.zero_point
        && let Some(zeros) = out.get_mut(2).and_then(|p| p.get_mut(at * ROWS..(at + 1) * ROWS))
    {
        for (lane, (zero, &fitted)) in zeros.iter_mut().zip(&fit.zero).enumerate() {
            *zero = if lane < live { fitted as u8 } else { 0 };
        }
    }
}

/// Names the value that made a scale overflow, in the group of `rows` (the first is row `first_row` of the weight) that
/// starts at `column`.
#[cold]
pub fn too_large(
    id: &'static str,
    grid: &Groups,
    fit: &Fit,
    rows: &[f32],
    k: usize,
    (first_row, column): (usize, usize),
) -> FormatError {
    let lane = fit.scale.iter().position(|s| !s.is_finite()).unwrap_or(0);
    let start = lane * k + column;
    let group = rows.get(start..start + grid.group).unwrap_or_default();
    let (at, value) =
        group.iter().enumerate().fold((0, 0.0f32), |best, (i, &v)| if v.abs() > best.1.abs() { (i, v) } else { best });
    let reach = match grid.peak {
        Peak::Absolute(level) | Peak::Signed(level) => level.abs(),
        Peak::Exponent(e) => f32::from(2u16.pow(u32::from(e))),
    };
    FormatError::TooLarge { id, row: first_row + lane, column: column + at, value, limit: grid.scale.max() * reach }
}

/// Codes and decoded values of a group: the nearest levels of x / `rounding`, which `fit` then scales. Lanes from `live`
/// on get code 0.
#[inline(always)]
pub fn encode<S: Simd, G: Rounder>(
    s: S,
    rounder: G,
    (rounding, fit): (&V, &Fit),
    live: usize,
    x: &[V],
    decoded: &mut [V],
    codes: &mut [[i32; ROWS]],
) {
    let scale = s.load(&fit.scale);
    let (inverse, bounds) = (reciprocal(s, s.load(rounding)), rounder.bounds(s, s.load(&fit.zero)));
    let mask = s.load_i32(&std::array::from_fn(|lane| if lane < live { -1 } else { 0 }));
    for ((x, decoded), codes) in x.iter().zip(decoded).zip(codes) {
        let y = s.mul(s.load(x), inverse);
        s.store(s.mul(rounder.level(s, y, bounds), scale), decoded);
        s.store_i32(s.and(rounder.code(s, y, bounds), mask), codes);
    }
}
