//! A part of a row block as vectors: one per column, one lane per row; and the error sums over them.

use crate::TileError;
use crate::lanes::{V, abs, array, splat};
use ashlar_formats::FormatError;
use ashlar_formats::x16::ROWS;
use ashlar_simd::Simd;

/// Transposes columns `first..first + x.len()` (a multiple of 16) of up to 16 rows; lanes without a row are zero.
#[inline(always)]
pub fn load<S: Simd>(s: S, rows: &[f32], k: usize, first: usize, x: &mut [V]) {
    for (i, out) in x.as_chunks_mut::<ROWS>().0.iter_mut().enumerate() {
        let mut block = [s.splat(0.0); ROWS];
        for (row, values) in block.iter_mut().zip(rows.chunks_exact(k)) {
            if let Some(values) = values.get(first + i * ROWS..).and_then(|v| v.first_chunk()) {
                *row = s.load(values);
            }
        }
        for _ in 0..4 {
            let old = block;
            for i in 0..ROWS / 2 {
                (block[2 * i], block[2 * i + 1]) = s.zip(old[i], old[i + ROWS / 2]);
            }
        }
        for (column, out) in block.iter().zip(out) {
            s.store(*column, out);
        }
    }
}

/// max |x| per lane, or `None` if any x is not finite.
#[inline(always)]
pub fn peaks<S: Simd>(s: S, x: &[V]) -> Option<V> {
    let mut peak = s.splat(0.0);
    // x · 0 is 0 for finite x and NaN otherwise, and NaN stays in a sum.
    let mut taint = s.splat(0.0);
    for column in x {
        let x = s.load(column);
        peak = s.max(abs(s, x), peak);
        taint = s.add(taint, s.mul(x, s.splat(0.0)));
    }
    (s.sum(taint) == 0.0).then(|| array(s, peak))
}

/// Names the first value of the row block that is NaN or infinite.
#[cold]
pub fn not_finite(rows: &[f32], k: usize, first_row: usize) -> FormatError {
    let at = rows.iter().position(|v| !v.is_finite()).unwrap_or(0);
    FormatError::NotFinite { row: first_row + at / k, column: at % k, value: rows.get(at).copied().unwrap_or(f32::NAN) }
}

/// Error sums of a row block: f32 within a group, f64 across groups.
pub struct Sums {
    error: [f64; ROWS],
    norm: [f64; ROWS],
    max_abs: V,
}

impl Default for Sums {
    fn default() -> Self {
        Self { error: [0.0; ROWS], norm: [0.0; ROWS], max_abs: splat(0.0) }
    }
}

impl Sums {
    /// Adds one group: its values and what they decode to.
    #[inline(always)]
    pub fn add<S: Simd>(&mut self, s: S, x: &[V], decoded: &[V]) {
        let (mut error, mut norm, mut max_abs) = (s.splat(0.0), s.splat(0.0), s.load(&self.max_abs));
        for (x, decoded) in x.iter().zip(decoded) {
            let x = s.load(x);
            let d = s.sub(x, s.load(decoded));
            error = s.add(error, s.mul(d, d));
            norm = s.add(norm, s.mul(x, x));
            max_abs = s.max(abs(s, d), max_abs);
        }
        s.store(max_abs, &mut self.max_abs);
        let (error, norm) = (array(s, error), array(s, norm));
        for i in 0..ROWS {
            self.error[i] += f64::from(error[i]);
            self.norm[i] += f64::from(norm[i]);
        }
    }

    /// The sums over all lanes.
    pub fn error(&self, outlier_overflow: u64) -> TileError {
        TileError {
            squared_error: self.error.iter().sum(),
            squared_norm: self.norm.iter().sum(),
            max_abs: self.max_abs.iter().fold(0.0, |a: f32, &b| a.max(b)),
            outlier_overflow,
        }
    }
}
