//! The Hessian of a layer's inputs, factored once and used for every row of every weight that reads these inputs.
//!
//! H = mean of x xᵀ, damped (GPTQ's damping, but relative to each column), is split as U D Uᵀ with U unit upper triangular. Then the loss of a row with errors e = w − ŵ
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
/// Multiplications of one elimination step from which on it is shared by threads.
const WORTH: usize = 1 << 22;
/// The share of the damping that columns without inputs get.
const FLOOR: f32 = 0.01;
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
    #[error("the Hessian is not positive definite even with {damping} of its diagonal added; use method: search")]
    NotPositive {
        /// The largest share of the diagonal tried.
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
    divisor: f32,
}

impl Factor {
    /// The usual share of the diagonal that is added to it. Of 0.01 to 0.3, this left the least error on text that was not
    /// in the calibration (trained 22 M mixture of experts, k2 and k3; 3 % less than 0.01).
    pub const DAMPING: f32 = 0.1;

    /// Factors a k × k Hessian (row-major; its lower triangle is read) with `damping` of each diagonal value added to it,
    /// and a hundredth of that of the mean diagonal for columns that saw nothing; ten and a hundred times as much where
    /// that is not enough. Shares of each column's own value make the result follow when inputs are scaled and weights
    /// inversely: a few strong channels do not drown the others. Takes k² values of memory while it works, and
    /// half of that afterwards; k³/6 multiplications on the calling thread.
    ///
    /// # Errors
    /// [`FactorError`] if the matrix is no Hessian.
    pub fn new(hessian: &[f32], k: usize, damping: f32, isa: Isa) -> Result<Self, FactorError> {
        Self::with_threads(hessian, k, damping, isa, 1)
    }

    /// The same bits as [`Factor::new`], by up to `threads` threads where a step is large enough to be shared (from about
    /// 600 columns on).
    ///
    /// # Errors
    /// [`FactorError`] if the matrix is no Hessian.
    pub fn with_threads(
        hessian: &[f32],
        k: usize,
        damping: f32,
        isa: Isa,
        threads: usize,
    ) -> Result<Self, FactorError> {
        if k == 0 || !k.is_multiple_of(PANEL) || k.checked_mul(k) != Some(hessian.len()) {
            return Err(FactorError::Shape { columns: k, values: hessian.len() });
        }
        let mean = check(hessian, k)?;
        let mut damping = damping;
        for attempt in 0..TRIES {
            damping *= if attempt > 0 { 10.0 } else { 1.0 };
            let stride = k.next_multiple_of(TILE);
            let normal = 1.0 + damping * (1.0 + FLOOR);
            let mut rows = vec![0.0f32; k * stride];
            // Damped and normalized, so that no size of activations over- or underflows, and the unit matrix stays one.
            for (i, (row, given)) in rows.chunks_exact_mut(stride).zip(hessian.chunks_exact(k)).enumerate() {
                for (j, (value, &given)) in row.iter_mut().zip(given).take(i + 1).enumerate() {
                    let added = if i == j { damping * (given / mean + FLOOR) } else { 0.0 };
                    *value = (given / mean + added) / normal;
                }
            }
            if let Some(diagonal) = eliminate(&mut rows, stride, k, isa, threads) {
                return Ok(Self { panels: panels(&rows, stride, k), diagonal, damping, divisor: mean * normal });
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

    /// The share of the diagonal that was added.
    #[must_use]
    pub fn damping(&self) -> f32 {
        self.damping
    }

    /// What the damped Hessian was divided by: it is this times U D Uᵀ.
    #[must_use]
    pub fn divisor(&self) -> f32 {
        self.divisor
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

/// Turns the lower triangle of a symmetric matrix into Uᵀ (its unit diagonal left out), from the last row up. Returns D, or
/// nothing if the matrix is not positive definite.
fn eliminate(rows: &mut [f32], stride: usize, k: usize, isa: Isa, threads: usize) -> Option<Vec<f32>> {
    let mut diagonal = vec![0.0; k];
    for end in (1..=k.div_ceil(BLOCK)).rev() {
        let (first, end) = ((end - 1) * BLOCK, (end * BLOCK).min(k));
        let (above, block) = rows.split_at_mut(first * stride);
        let block = block.get_mut(..(end - first) * stride)?;
        let diagonal = diagonal.get_mut(first..end)?;
        isa.run(Finish { block, stride, first, diagonal })?;
        let (block, diagonal) = (&*block, &*diagonal);
        let threads = if first * first / 2 * BLOCK < WORTH { 1 } else { threads };
        std::thread::scope(|scope| {
            for (start, part) in parts(above, stride, threads).into_iter().rev() {
                let job = Trailing { above: part, start, block, stride, diagonal };
                // The first part, which comes last, is this thread's.
                if start == 0 {
                    isa.run(job);
                } else {
                    scope.spawn(move || isa.run(job));
                }
            }
        });
    }
    Some(diagonal)
}

/// Cuts a triangle of rows into pieces of like area, at most one per thread; each with the number of its first row.
fn parts(mut above: &mut [f32], stride: usize, threads: usize) -> Vec<(usize, &mut [f32])> {
    let rows = above.len() / stride;
    let (mut parts, mut start) = (Vec::new(), 0);
    for part in 1..=threads.max(1) {
        let end =
            if part == threads.max(1) { rows } else { (rows as f64 * (part as f64 / threads as f64).sqrt()) as usize };
        let (piece, rest) = above.split_at_mut((end - start) * stride);
        above = rest;
        if end > start {
            parts.push((start, piece));
        }
        start = end;
    }
    parts
}

/// Finishes the rows of a block.
struct Finish<'a> {
    block: &'a mut [f32],
    stride: usize,
    /// Number of its first row.
    first: usize,
    /// D of its rows.
    diagonal: &'a mut [f32],
}

impl Kernel for Finish<'_> {
    type Output = Option<()>;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Option<()> {
        for j in (0..self.diagonal.len()).rev() {
            self.diagonal[j] = row(s, self.block, self.stride, self.first, self.first + j)?;
        }
        Some(())
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
        let by = s.splat(-d * *row.get(first + i)?);
        // Up to column j; beyond a row's diagonal lies what nobody reads.
        for (value, u) in other.as_chunks_mut::<16>().0.iter_mut().zip(row.as_chunks::<16>().0).take(j / 16 + 1) {
            let less = s.fma(by, s.load(u), s.load(value));
            s.store(less, value);
        }
    }
    Some(d)
}

/// Subtracts the finished rows of `block` from rows above, tile by tile of columns.
struct Trailing<'a> {
    above: &'a mut [f32],
    /// Number of the first of the rows above.
    start: usize,
    block: &'a [f32],
    stride: usize,
    /// D of the block's rows.
    diagonal: &'a [f32],
}

impl Kernel for Trailing<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { above, start, block, stride, diagonal } = self;
        let end = start + above.len() / stride;
        for column in (0..end).step_by(TILE) {
            let mut finished = [[[0.0f32; 16]; TILE / 16]; BLOCK];
            for (row, kept) in block.chunks_exact(stride).zip(&mut finished) {
                let values = row.get(column..column + TILE).unwrap_or_default();
                for (kept, values) in kept.iter_mut().zip(values.as_chunks::<16>().0) {
                    *kept = *values;
                }
            }
            // Rows before the tile have nothing below the diagonal in it.
            let skipped = column.saturating_sub(start);
            for (i, row) in above.chunks_exact_mut(stride).enumerate().skip(skipped) {
                let mut by = [0.0f32; BLOCK];
                for ((by, d), row) in by.iter_mut().zip(diagonal).zip(block.chunks_exact(stride)) {
                    *by = -d * row.get(start + i).copied().unwrap_or(0.0);
                }
                let values = row.get_mut(column..column + TILE).unwrap_or_default();
                let Some(values) = values.as_chunks_mut::<16>().0.first_chunk_mut::<{ TILE / 16 }>() else { continue };
                let mut sums = values.map(|value| s.load(&value));
                for (by, finished) in by.iter().zip(&finished) {
                    let by = s.splat(*by);
                    for (sum, u) in sums.iter_mut().zip(finished) {
                        *sum = s.fma(by, s.load(u), *sum);
                    }
                }
                for (sum, value) in sums.into_iter().zip(values) {
                    s.store(sum, value);
                }
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
                    let h = f64::from(h[i * k + j]) / mean;
                    let added = if i == j { 0.1 * (h + 0.01) } else { 0.0 };
                    let want = (h + added) / 1.101;
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
            let got = Factor::with_threads(&h, k, 0.01, isa, 2)?;
            assert!(got.panels == want.panels && got.diagonal == want.diagonal, "{isa}");
        }
        Ok(())
    }

    #[test]
    fn threads_change_no_bit() -> Result<(), FactorError> {
        let isa = Isa::available().pop().unwrap();
        // Large enough that steps are shared.
        let k = 712;
        assert!((k - BLOCK) * (k - BLOCK) / 2 * BLOCK > WORTH);
        let h = hessian(k, 800, 33);
        let want = Factor::new(&h, k, 0.01, isa)?;
        for threads in [2, 3, 7] {
            let got = Factor::with_threads(&h, k, 0.01, isa, threads)?;
            assert!(got.panels == want.panels && got.diagonal == want.diagonal, "{threads} threads");
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
