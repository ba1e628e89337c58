//! A part of a row block as vectors: one per column, one lane per row; and the error sums over them.

use crate::TileError;
use crate::lanes::{V, max, splat};
use ashlar_formats::FormatError;
use ashlar_formats::x16::ROWS;

/// Transposes columns `first..first + x.len()` of up to 16 rows; lanes without a row are zero.
#[inline(always)]
pub fn load(rows: &[f32], k: usize, first: usize, x: &mut [V]) {
    let count = rows.len() / k;
    for lane in 0..ROWS {
        let values = rows.get(lane * k + first..).and_then(|r| r.get(..x.len()));
        match values.filter(|_| lane < count) {
            Some(values) => x.iter_mut().zip(values).for_each(|(column, &value)| column[lane] = value),
            None => x.iter_mut().for_each(|column| column[lane] = 0.0),
        }
    }
}

/// max |x| per lane; not finite if any x of the lane is not. Compares bits, so that NaN counts as largest.
#[inline(always)]
pub fn peaks(x: &[V]) -> V {
    let mut peak = [0u32; ROWS];
    for column in x {
        for (peak, value) in peak.iter_mut().zip(column) {
            let bits = value.to_bits() & 0x7fff_ffff;
            *peak = if bits > *peak { bits } else { *peak };
        }
    }
    peak.map(f32::from_bits)
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
    pub fn add(&mut self, x: &[V], decoded: &[V]) {
        let (mut error, mut norm, mut max_abs) = (splat(0.0), splat(0.0), self.max_abs);
        for (x, decoded) in x.iter().zip(decoded) {
            for i in 0..ROWS {
                let d = x[i] - decoded[i];
                error[i] += d * d;
                norm[i] += x[i] * x[i];
                max_abs[i] = max(d.abs(), max_abs[i]);
            }
        }
        self.max_abs = max_abs;
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
            max_abs: self.max_abs.iter().fold(0.0, |a, &b| max(a, b)),
            outlier_overflow,
        }
    }
}
