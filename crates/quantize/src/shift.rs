//! [`Shift`]: how weights must move, before they are rounded, to make up for what has happened to their inputs.
//!
//! A weight that was to read x reads x̂ = x − δ in a model whose earlier weights are quantized. The ŵ that minimizes
//! E(w·x − ŵ·x̂)² is w + w·E[δ x̂ᵀ]·H⁻¹ with H = E[x̂ x̂ᵀ]; whatever is rounded after that costs what it always did, so that the
//! rounding itself needs no change (Li et al. 2025, GPTAQ, solve the same problem column by column).

use crate::factor::{Factor, PANEL};
use crate::lanes::{V, splat};
use ashlar_formats::x16::ROWS;
use ashlar_simd::{Isa, Kernel, Simd};
use std::sync::{Mutex, PoisonError};
use std::thread::Builder;

/// E[δ x̂ᵀ]·H⁻¹ for the inputs of a weight.
#[derive(Clone, Debug)]
pub struct Shift {
    /// Panel p: row i = the columns 8p … of row i.
    panels: Vec<Vec<[f32; PANEL]>>,
}

impl Shift {
    /// From E[δ x̂ᵀ] (k × k, row-major: a row per component of δ) and the factored Hessian of x̂, both in the same units. k³
    /// multiplications on up to `threads` threads, which change no bit; k² values besides `drift`. `None` unless `drift` is
    /// k × k.
    #[must_use]
    pub fn new(factor: &Factor, mut drift: Vec<f32>, isa: Isa, threads: usize) -> Option<Self> {
        let (k, scale) = (factor.columns(), factor.divisor());
        if k.checked_mul(k) != Some(drift.len()) {
            return None;
        }
        {
            let queue = Mutex::new(drift.chunks_mut(ROWS * k));
            let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
            let work = || {
                while let Some(rows) = next() {
                    isa.run(Solve { factor, rows, scale });
                }
            };
            std::thread::scope(|scope| {
                for _ in 1..threads.min(k / ROWS) {
                    // Where no thread is to be had, the others do its work.
                    drop(Builder::new().spawn_scoped(scope, work));
                }
                work();
            });
        }
        let panel = |first: usize| {
            let row = |row: &[f32]| row.get(first..).and_then(|r| r.first_chunk()).copied().unwrap_or_default();
            drift.chunks_exact(k).map(row).collect()
        };
        Some(Self { panels: (0..k).step_by(PANEL).map(panel).collect() })
    }

    /// Moves the rows of a tile, row-major.
    pub fn apply(&self, values: &mut [f32], isa: Isa) {
        isa.run(Apply { panels: &self.panels, values });
    }
}

/// Rows become lanes; missing ones are zero.
fn lanes(rows: &[f32], k: usize) -> Vec<V> {
    let mut x = vec![splat(0.0); k];
    for (lane, row) in rows.chunks_exact(k).take(ROWS).enumerate() {
        x.iter_mut().zip(row).for_each(|(x, v)| x[lane] = *v);
    }
    x
}

/// x = d · H⁻¹ for up to 16 rows d: first v·Uᵀ = d from the last column on, then y·U = v / D from the first.
struct Solve<'a> {
    factor: &'a Factor,
    rows: &'a mut [f32],
    scale: f32,
}

impl Kernel for Solve<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let k = self.factor.columns();
        let mut x = lanes(self.rows, k);
        for p in (0..k / PANEL).rev() {
            let (first, panel) = (p * PANEL, self.factor.panel(p));
            for m in (0..PANEL).rev() {
                let v = s.load(&x[first + m]);
                for i in first..first + m {
                    let less = s.sub(s.load(&x[i]), s.mul(v, s.splat(panel[i][m])));
                    s.store(less, &mut x[i]);
                }
            }
            let (before, rest) = x.split_at_mut(first);
            for (x, u) in before.iter_mut().zip(panel) {
                let mut value = s.load(x);
                for (v, u) in rest.iter().zip(u) {
                    value = s.fma(s.load(v), s.splat(-u), value);
                }
                s.store(value, x);
            }
        }
        for (x, d) in x.iter_mut().zip(self.factor.diagonal()) {
            s.store(s.div(s.load(x), s.splat(d * self.scale)), x);
        }
        for p in 0..k / PANEL {
            let (first, panel) = (p * PANEL, self.factor.panel(p));
            let (done, rest) = x.split_at_mut(first);
            let mut sums = [s.splat(0.0); PANEL];
            for (y, u) in done.iter().zip(panel) {
                let y = s.load(y);
                for (sum, u) in sums.iter_mut().zip(u) {
                    *sum = s.fma(y, s.splat(*u), *sum);
                }
            }
            for (j, sum) in sums.into_iter().enumerate() {
                let mut y = s.sub(s.load(&rest[j]), sum);
                for i in 0..j {
                    y = s.sub(y, s.mul(s.load(&rest[i]), s.splat(panel[first + i][j])));
                }
                s.store(y, &mut rest[j]);
            }
        }
        for (lane, row) in self.rows.chunks_exact_mut(k).enumerate() {
            row.iter_mut().zip(&x).for_each(|(v, x)| *v = x[lane]);
        }
    }
}

/// w += w · M
struct Apply<'a> {
    panels: &'a [Vec<[f32; PANEL]>],
    values: &'a mut [f32],
}

impl Kernel for Apply<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let k = self.panels.len() * PANEL;
        let blocks: Vec<Vec<V>> = self.values.chunks(ROWS * k).map(|rows| lanes(rows, k)).collect();
        for (p, panel) in self.panels.iter().enumerate() {
            for (rows, x) in self.values.chunks_mut(ROWS * k).zip(&blocks) {
                let mut sums = [s.splat(0.0); PANEL];
                for (x, m) in x.iter().zip(panel) {
                    let x = s.load(x);
                    for (sum, m) in sums.iter_mut().zip(m) {
                        *sum = s.fma(x, s.splat(*m), *sum);
                    }
                }
                let mut moved = [splat(0.0); PANEL];
                sums.into_iter().zip(&mut moved).for_each(|(sum, out)| s.store(sum, out));
                for (lane, row) in rows.chunks_exact_mut(k).enumerate() {
                    let out = row.get_mut(p * PANEL..(p + 1) * PANEL).unwrap_or_default();
                    out.iter_mut().zip(&moved).for_each(|(v, m)| *v += m[lane]);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::FactorError;
    use crate::tests::hessian;

    fn drift(k: usize) -> Vec<f32> {
        (0..k * k).map(|i| ((i * 7919) % 1013) as f32 / 1013.0 - 0.5).collect()
    }

    #[test]
    fn moved_weights_solve_the_normal_equations() -> Result<(), FactorError> {
        let (k, n, damping) = (40, 21, 0.1);
        let (h, d) = (hessian(k, 300, 5), drift(k));
        let factor = Factor::new(&h, k, damping, Isa::Portable)?;
        let mean = (0..k).map(|i| h[i * k + i]).sum::<f32>() / k as f32;
        let w: Vec<f32> = (0..n * k).map(|i| ((i * 31) % 17) as f32 - 8.0).collect();
        let mut moved = w.clone();
        Shift::new(&factor, d.clone(), Isa::Portable, 1).unwrap().apply(&mut moved, Isa::Portable);
        // (w' − w)·(H + damping) = w·E[δ x̂ᵀ]
        for r in 0..n {
            for j in 0..k {
                let (mut left, mut right) = (0.0, 0.0);
                for i in 0..k {
                    let (a, b) = (i.max(j), i.min(j));
                    let added = if i == j { damping * (h[i * k + i] + 0.01 * mean) } else { 0.0 };
                    let h = f64::from(h[a * k + b]) + f64::from(added);
                    left += (f64::from(moved[r * k + i]) - f64::from(w[r * k + i])) * h;
                    right += f64::from(w[r * k + i]) * f64::from(d[i * k + j]);
                }
                assert!((left - right).abs() < 2e-2, "{r} {j}: {left} {right}");
            }
        }
        Ok(())
    }

    #[test]
    fn neither_threads_nor_isa_change_a_bit() -> Result<(), FactorError> {
        let (k, damping) = (72, 0.01);
        let factor = Factor::new(&hessian(k, 300, 6), k, damping, Isa::Portable)?;
        let moved = |isa, threads| {
            let mut w: Vec<f32> = (0..33 * k).map(|i| ((i * 31) % 17) as f32 - 8.0).collect();
            Shift::new(&factor, drift(k), isa, threads).unwrap().apply(&mut w, isa);
            w
        };
        let want = moved(Isa::Portable, 1);
        for isa in Isa::available() {
            assert!(moved(isa, 3) == want, "{isa}");
        }
        assert!(Shift::new(&factor, vec![0.0; 3], Isa::Portable, 1).is_none());
        Ok(())
    }
}
