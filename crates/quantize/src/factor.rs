//! The Hessian of a layer's inputs, factored once and used for every row of every weight that reads these inputs.
//!
//! H = mean of x xᵀ, damped, is split as U D Uᵀ with U unit upper triangular. Then the loss of a row with errors e = w − ŵ
//! is e H eᵀ = Σ_j D_j (e_j + Σ_{i<j} e_i U_ij)²: when column j is rounded after all columns before it, the value to
//! round is w_j + Σ_{i<j} e_i U_ij, and what is left costs D_j times its square. This is LDLQ (Chee et al. 2023, QuIP,
//! §3), the same codes as GPTQ's (Frantar et al. 2022) without an inverse.

use ashlar_simd::{Isa, Kernel, Simd};

/// Columns whose coefficients lie side by side: as many sums as registers hold.
pub const PANEL: usize = 8;
/// Rows eliminated together.
const BLOCK: usize = 32;
/// Columns updated together; rows are padded to a multiple.
const TILE: usize = 64;
/// Dampings tried when the matrix is not positive, each ten times the one before.
const TRIES: usize = 3;

/// Why a Hessian cannot be factored.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum FactorError {
    /// It is not square, or its columns are no multiple of 8.
    #[error("a Hessian of {columns} columns has {values} values; expected {columns}², a multiple of 8 columns")]
    Shape {
        /// Inputs of the layer.
        columns: usize,
        /// Values given.
        values: usize,
    },
    /// A value is no number, or negative on the diagonal, or the diagonal is all zero.
    #[error("the Hessian has {value} at row {row}, column {column}; collect the statistics again")]
    Value {
        /// Row.
        row: usize,
        /// Column.
        column: usize,
        /// What is there.
        value: f32,
    },
    /// No damping made it positive definite.
    #[error("the Hessian is not positive definite even with {damping} of its mean diagonal added; use method: search")]
    NotPositive {
        /// The largest share tried.
        damping: f32,
    },
}

/// U and D of a damped Hessian.
#[derive(Clone, Debug)]
pub struct Factor {
    /// Panel p: row i = U_ij of the columns j = 8p …, for i < 8p + 8; zero for i ≥ j.
    panels: Vec<Vec<[f32; PANEL]>>,
    /// D, in units of the mean diagonal.
    diagonal: Vec<f32>,
    damping: f32,
}

impl Factor {
    /// The usual share of the mean diagonal that is added to it.
    pub const DAMPING: f32 = 0.01;

    /// Factors a k × k Hessian (row-major; its lower triangle is read) with `damping` · mean diagonal added to the
    /// diagonal, ten and a hundred times as much where that is not enough. Takes k² values of memory while it works, and
    /// half of that afterwards; k³/3 multiplications on the calling thread.
    ///
    /// # Errors
    /// [`FactorError`] if the matrix is no Hessian.
    pub fn new(hessian: &[f32], k: usize, damping: f32, isa: Isa) -> Result<Self, FactorError> {
        if k == 0 || !k.is_multiple_of(PANEL) || k.checked_mul(k) != Some(hessian.len()) {
            return Err(FactorError::Shape { columns: k, values: hessian.len() });
        }
        let mean = check(hessian, k)?;
        let mut damping = damping;
        for attempt in 0..TRIES {
            damping *= if attempt > 0 { 10.0 } else { 1.0 };
            let stride = k.next_multiple_of(TILE);
            let mut rows = vec![0.0f32; k * stride];
            // Damped and normalized, so that no size of activations over- or underflows, and the unit matrix stays one.
            for (i, (row, given)) in rows.chunks_exact_mut(stride).zip(hessian.chunks_exact(k)).enumerate() {
                for (j, (value, &given)) in row.iter_mut().zip(given).take(i + 1).enumerate() {
                    let added = if i == j { damping } else { 0.0 };
                    *value = (given / mean + added) / (1.0 + damping);
                }
            }
            if let Some(diagonal) = isa.run(Elimination { rows: &mut rows, stride, k }) {
                return Ok(Self { panels: panels(&rows, stride, k), diagonal, damping });
            }
        }
        Err(FactorError::NotPositive { damping })
    }

    /// Inputs of the layer.
    #[must_use]
    pub fn columns(&self) -> usize {
        self.diagonal.len()
    }

    /// D: what a unit of squared error costs in each column once later columns have made up for it.
    #[must_use]
    pub fn diagonal(&self) -> &[f32] {
        &self.diagonal
    }

    /// The share of the mean diagonal that was added.
    #[must_use]
    pub fn damping(&self) -> f32 {
        self.damping
    }

    /// U_ij of the columns of panel `index`, one row per i.
    pub(crate) fn panel(&self, index: usize) -> &[[f32; PANEL]] {
        self.panels.get(index).map_or(&[], |p| p)
    }
}

/// The mean diagonal of a matrix of finite numbers whose diagonal is not negative.
fn check(hessian: &[f32], k: usize) -> Result<f32, FactorError> {
    let mut sum = 0.0f64;
    for (row, values) in hessian.chunks_exact(k).enumerate() {
        let bad = values.iter().take(row + 1).position(|v| !v.is_finite());
        let value = values.get(row).copied().unwrap_or(f32::NAN);
        if let Some(column) = bad.or((value < 0.0).then_some(row)) {
            return Err(FactorError::Value { row, column, value: values.get(column).copied().unwrap_or(f32::NAN) });
        }
        sum += f64::from(value);
    }
    let mean = (sum / k as f64) as f32;
    if mean > 0.0 && mean.is_finite() { Ok(mean) } else { Err(FactorError::Value { row: 0, column: 0, value: mean }) }
}

fn panels(rows: &[f32], stride: usize, k: usize) -> Vec<Vec<[f32; PANEL]>> {
    let panel = |first: usize| {
        let columns = rows.get(first * stride..).unwrap_or_default();
        let mut panel = vec![[0.0; PANEL]; first + PANEL];
        for (j, column) in columns.chunks_exact(stride).take(PANEL).enumerate() {
            for (out, &u) in panel.iter_mut().zip(column).take(first + j) {
                out[j] = u;
            }
        }
        panel
    };
    (0..k).step_by(PANEL).map(panel).collect()
}

/// Turns the lower triangle of a symmetric matrix into Uᵀ (its unit diagonal left out), from the last row up.
struct Elimination<'a> {
    rows: &'a mut [f32],
    stride: usize,
    k: usize,
}

impl Kernel for Elimination<'_> {
    /// D, or nothing if the matrix is not positive definite.
    type Output = Option<Vec<f32>>;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Option<Vec<f32>> {
        let Self { rows, stride, k } = self;
        let mut diagonal = vec![0.0; k];
        for end in (1..=k.div_ceil(BLOCK)).rev() {
            let (first, end) = ((end - 1) * BLOCK, (end * BLOCK).min(k));
            let (above, block) = rows.split_at_mut(first * stride);
            let block = block.get_mut(..(end - first) * stride)?;
            for j in (first..end).rev() {
                diagonal[j] = row(s, block, stride, first, j)?;
            }
            trailing(s, above, block, stride, diagonal.get(first..end)?);
        }
        Some(diagonal)
    }
}

/// Divides row j by its diagonal, which it returns, and subtracts it from the rows of its block above.
#[inline(always)]
fn row<S: Simd>(s: S, block: &mut [f32], stride: usize, first: usize, j: usize) -> Option<f32> {
    let (before, rest) = block.split_at_mut((j - first) * stride);
    let row = rest.get_mut(..stride)?;
    let d = *row.get(j)?;
    // Rounding leaves about k ulps; what is smaller than that is noise. False for NaN.
    if d.is_nan() || d <= 1e-6 {
        return None;
    }
    for value in row.as_chunks_mut::<16>().0 {
        let scaled = s.div(s.load(value), s.splat(d));
        s.store(scaled, value);
    }
    for (i, other) in before.chunks_exact_mut(stride).enumerate() {
        let by = s.splat(d * *row.get(first + i)?);
        // Up to column j; beyond a row's diagonal lies what nobody reads.
        for (value, u) in other.as_chunks_mut::<16>().0.iter_mut().zip(row.as_chunks::<16>().0).take(j / 16 + 1) {
            let less = s.sub(s.load(value), s.mul(by, s.load(u)));
            s.store(less, value);
        }
    }
    Some(d)
}

/// Subtracts the finished rows of `block` from all rows above, tile by tile of columns.
#[inline(always)]
fn trailing<S: Simd>(s: S, above: &mut [f32], block: &[f32], stride: usize, diagonal: &[f32]) {
    let count = above.len() / stride;
    for tile in 0..count.div_ceil(TILE) {
        let start = tile * TILE;
        let mut finished = [[[0.0f32; 16]; TILE / 16]; BLOCK];
        for (row, kept) in block.chunks_exact(stride).zip(&mut finished) {
            let values = row.get(start..start + TILE).unwrap_or_default();
            for (kept, values) in kept.iter_mut().zip(values.as_chunks::<16>().0) {
                *kept = *values;
            }
        }
        for (i, row) in above.chunks_exact_mut(stride).enumerate().skip(start) {
            let mut by = [0.0f32; BLOCK];
            for ((by, d), row) in by.iter_mut().zip(diagonal).zip(block.chunks_exact(stride)) {
                *by = d * row.get(i).copied().unwrap_or(0.0);
            }
            let values = row.get_mut(start..start + TILE).unwrap_or_default();
            let (values, _) = values.as_chunks_mut::<16>();
            let Some(values) = values.first_chunk_mut::<{ TILE / 16 }>() else { continue };
            let mut sums = [s.splat(0.0); TILE / 16];
            for (sum, value) in sums.iter_mut().zip(&*values) {
                *sum = s.load(value);
            }
            for (by, finished) in by.iter().zip(&finished) {
                let by = s.splat(*by);
                for (sum, u) in sums.iter_mut().zip(finished) {
                    *sum = s.sub(*sum, s.mul(by, s.load(u)));
                }
            }
            for (sum, value) in sums.iter().zip(values) {
                s.store(*sum, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::hessian;

    #[test]
    fn u_d_u_gives_the_damped_matrix_back() -> Result<(), FactorError> {
        for k in [8, 96, 200] {
            let h = hessian(k, 300, 31);
            let factor = Factor::new(&h, k, Factor::DAMPING, Isa::Portable)?;
            let mean = (0..k).map(|i| f64::from(h[i * k + i])).sum::<f64>() / k as f64;
            let u = |i: usize, j: usize| match i.cmp(&j) {
                std::cmp::Ordering::Less => f64::from(factor.panel(j / PANEL)[i][j % PANEL]),
                std::cmp::Ordering::Equal => 1.0,
                std::cmp::Ordering::Greater => 0.0,
            };
            for i in 0..k {
                for j in 0..=i {
                    let got: f64 = (i..k).map(|m| u(i, m) * f64::from(factor.diagonal()[m]) * u(j, m)).sum();
                    let added = if i == j { 0.01 } else { 0.0 };
                    let want = (f64::from(h[i * k + j]) / mean + added) / 1.01;
                    assert!((got - want).abs() < 1e-4, "{k}: {i} {j}: {got} {want}");
                }
            }
        }
        Ok(())
    }

    #[test]
    fn every_isa_factors_to_the_same_bits() -> Result<(), FactorError> {
        let (k, h) = (136, hessian(136, 200, 32));
        let want = Factor::new(&h, k, 0.01, Isa::Portable)?;
        for isa in Isa::available() {
            let got = Factor::new(&h, k, 0.01, isa)?;
            assert!(got.panels == want.panels && got.diagonal == want.diagonal, "{isa}");
        }
        Ok(())
    }

    #[test]
    fn what_is_no_hessian_is_refused() {
        let new = |h: &[f32], k| Factor::new(h, k, 0.01, Isa::Portable).unwrap_err();
        assert!(matches!(new(&[0.0; 63], 8), FactorError::Shape { .. }));
        assert!(matches!(new(&[1.0; 9], 3), FactorError::Shape { .. }));
        assert!(matches!(new(&[0.0; 64], 8), FactorError::Value { .. }));
        let mut h = vec![0.0; 64];
        (0..8).for_each(|i| h[9 * i] = 1.0);
        h[8 * 5 + 2] = f32::NAN;
        assert!(matches!(new(&h, 8), FactorError::Value { row: 5, column: 2, .. }));
        h[8 * 5 + 2] = 5.0;
        assert!(matches!(new(&h, 8), FactorError::NotPositive { .. }));
    }

    #[test]
    fn a_singular_hessian_is_damped_until_it_is_not() -> Result<(), FactorError> {
        let k = 64;
        let factor = Factor::new(&vec![1.0; k * k], k, 0.01, Isa::Portable)?;
        assert!(factor.diagonal().iter().all(|d| *d > 0.0));
        Ok(())
    }
}
