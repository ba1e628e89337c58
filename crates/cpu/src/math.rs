//! Elementwise functions and reductions over rows of f32, the same bits on every ISA.

use ashlar_arch::Activation;
use ashlar_simd::{Kernel, Simd};

/// e^x. Relative error below 3e-7 for −87 < x < 88; 0 below −88; clamped above 88.3; NaN gives 0.
///
/// x = n·ln 2 + r with |r| ≤ ln 2 / 2, e^r by its Taylor polynomial of degree 7 (remainder < 6e-9).
#[inline(always)]
pub fn exp<S: Simd>(s: S, x: S::F32) -> S::F32 {
    let x = s.min(s.max(x, s.splat(-88.0)), s.splat(88.3));
    let n = s.to_i32(s.mul(x, s.splat(std::f32::consts::LOG2_E)));
    let nf = s.to_f32(n);
    // ln 2 in two parts: the first has few bits, so that n times it is exact.
    let r = s.fma(nf, s.splat(-0.693_359_4), x);
    let r = s.fma(nf, s.splat(2.121_944_4e-4), r);
    let mut p = s.splat(1.0 / 5040.0);
    for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = s.fma(p, r, s.splat(c));
    }
    s.mul(p, s.as_f32(s.shl(s.add_i32(n, s.splat_i32(127)), 23)))
}

/// x / (1 + e^−x)
#[inline(always)]
pub fn silu<S: Simd>(s: S, x: S::F32) -> S::F32 {
    s.div(x, s.add(s.splat(1.0), exp(s, s.sub(s.splat(0.0), x))))
}

/// Up to 16 values, padded with zeros.
#[inline(always)]
pub fn load_part<S: Simd>(s: S, x: &[f32]) -> S::F32 {
    let mut lanes = [0.0; 16];
    for (lane, v) in lanes.iter_mut().zip(x) {
        *lane = *v;
    }
    s.load(&lanes)
}

/// Σ a·b in f32: four partial sums of 16 lanes, chunk by chunk in turn.
#[inline(always)]
pub fn dot<S: Simd>(s: S, a: &[f32], b: &[f32]) -> f32 {
    let ((a, a_tail), (b, b_tail)) = (a.as_chunks::<16>(), b.as_chunks::<16>());
    let mut sums = [s.splat(0.0); 4];
    // Whole turns apart from the rest, so that the sums have constant indices and stay in registers.
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<4>(), b.as_chunks::<4>());
    for (a, b) in a.iter().zip(b) {
        for i in 0..4 {
            sums[i] = s.fma(s.load(&a[i]), s.load(&b[i]), sums[i]);
        }
    }
    for ((sum, a), b) in sums.iter_mut().zip(a_rest).zip(b_rest) {
        *sum = s.fma(s.load(a), s.load(b), *sum);
    }
    if !a_tail.is_empty() {
        sums[0] = s.fma(load_part(s, a_tail), load_part(s, b_tail), sums[0]);
    }
    s.sum(s.add(s.add(sums[0], sums[1]), s.add(sums[2], sums[3])))
}

/// A function of two values, in lanes. Not a closure: closures cannot be `#[inline(always)]`, and one that is compiled
/// apart from the ISA calls every instruction as a function.
pub trait Pairwise<S: Simd> {
    /// f(y, x)
    fn at(&self, s: S, y: S::F32, x: S::F32) -> S::F32;
}

/// y + x · factor
pub struct PlusTimes<V>(pub V);
/// x · factor
pub struct Times<V>(pub V);
/// y · factor · x
struct TimesBoth<V>(V);
/// silu(y) · x
struct SiluTimes;

impl<S: Simd> Pairwise<S> for PlusTimes<S::F32> {
    #[inline(always)]
    fn at(&self, s: S, y: S::F32, x: S::F32) -> S::F32 {
        s.fma(x, self.0, y)
    }
}

impl<S: Simd> Pairwise<S> for Times<S::F32> {
    #[inline(always)]
    fn at(&self, s: S, _: S::F32, x: S::F32) -> S::F32 {
        s.mul(x, self.0)
    }
}

impl<S: Simd> Pairwise<S> for TimesBoth<S::F32> {
    #[inline(always)]
    fn at(&self, s: S, y: S::F32, x: S::F32) -> S::F32 {
        s.mul(s.mul(y, self.0), x)
    }
}

impl<S: Simd> Pairwise<S> for SiluTimes {
    #[inline(always)]
    fn at(&self, s: S, y: S::F32, x: S::F32) -> S::F32 {
        s.mul(silu(s, y), x)
    }
}

/// y = f(y, x), 16 lanes at a time.
#[inline(always)]
pub fn zip_map<S: Simd>(s: S, y: &mut [f32], x: &[f32], f: &impl Pairwise<S>) {
    let ((y, y_tail), (x, x_tail)) = (y.as_chunks_mut::<16>(), x.as_chunks::<16>());
    for (y, x) in y.iter_mut().zip(x) {
        let v = f.at(s, s.load(y), s.load(x));
        s.store(v, y);
    }
    if !y_tail.is_empty() {
        let mut lanes = [0.0; 16];
        s.store(f.at(s, load_part(s, y_tail), load_part(s, x_tail)), &mut lanes);
        for (y, lane) in y_tail.iter_mut().zip(lanes) {
            *y = lane;
        }
    }
}

/// `row[i] = row[i] · weight[i] / sqrt(mean(row²) + eps)`. Zhang & Sennrich 2019, eq. 4, with `eps` as in Llama.
#[inline(always)]
pub fn rms_norm<S: Simd>(s: S, row: &mut [f32], weight: &[f32], eps: f32) {
    let mean = dot(s, row, row) / row.len().max(1) as f32;
    zip_map(s, row, weight, &TimesBoth(s.splat(1.0 / (mean + eps).sqrt())));
}

/// `gate = activation(gate, up)`, as [`ashlar_backend::gated`] defines it.
pub struct Gated<'a> {
    /// In and out.
    pub gate: &'a mut [f32],
    /// As long as `gate`.
    pub up: &'a [f32],
    /// Which one.
    pub activation: Activation,
}

impl Kernel for Gated<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match self.activation {
            Activation::Silu => zip_map(s, self.gate, self.up, &SiluTimes),
            Activation::ClampedSilu { limit } => {
                clamp(self.gate, limit);
                let up: Vec<f32> = self.up.iter().map(|u| u.clamp(-limit.abs(), limit.abs())).collect();
                zip_map(s, self.gate, &up, &SiluTimes);
            }
            // g · sigmoid(a · g) is silu(a · g) / a.
            Activation::ClampedSwish { limit, alpha } => {
                clamp(self.gate, limit);
                self.gate.iter_mut().for_each(|g| *g *= alpha);
                let up: Vec<f32> = self.up.iter().map(|u| (u.clamp(-limit.abs(), limit.abs()) + 1.0) / alpha).collect();
                zip_map(s, self.gate, &up, &SiluTimes);
            }
        }
    }
}

/// Values above `limit` become `limit`.
#[inline(always)]
fn clamp(values: &mut [f32], limit: f32) {
    values.iter_mut().for_each(|v| *v = v.min(limit));
}

#[cfg(test)]
mod tests {
    use super::*;
    use ashlar_simd::Isa;

    struct Map<F>(Vec<f32>, F);
    struct Exp;
    struct Silu;
    impl<S: Simd> Pairwise<S> for Exp {
        #[inline(always)]
        fn at(&self, s: S, _: S::F32, x: S::F32) -> S::F32 {
            exp(s, x)
        }
    }
    impl<S: Simd> Pairwise<S> for Silu {
        #[inline(always)]
        fn at(&self, s: S, _: S::F32, x: S::F32) -> S::F32 {
            silu(s, x)
        }
    }
    macro_rules! map {
        ($f:ty) => {
            impl Kernel for Map<$f> {
                type Output = Vec<f32>;
                #[inline(always)]
                fn run<S: Simd>(mut self, s: S) -> Vec<f32> {
                    let x = self.0.clone();
                    zip_map(s, &mut self.0, &x, &self.1);
                    self.0
                }
            }
        };
    }
    map!(Exp);
    map!(Silu);

    #[test]
    fn exp_is_within_3e_7_and_ends_in_zero() {
        let x: Vec<f32> = (-86_000..88_000).map(|i| i as f32 / 1000.0).collect();
        for isa in Isa::available() {
            let worst = isa
                .run(Map(x.clone(), Exp))
                .iter()
                .zip(&x)
                .fold(0.0f64, |worst, (got, x)| worst.max((f64::from(*got) / f64::from(*x).exp() - 1.0).abs()));
            assert!(worst < 3e-7, "{isa}: {worst:e}");
            assert_eq!(isa.run(Map(vec![f32::NEG_INFINITY, -1000.0, 0.0], Exp)), [0.0, 0.0, 1.0]);
        }
    }

    #[test]
    fn silu_of_extremes_is_zero_or_the_identity() {
        for isa in Isa::available() {
            let y = isa.run(Map(vec![-1e4, -1.0, 0.0, 1.0, 1e4], Silu));
            let want = [0.0, -0.268_941_42, 0.0, 0.731_058_6, 1e4];
            assert!(y.iter().zip(want).all(|(y, w)| (y - w).abs() <= 2e-7 * w.abs().max(1.0)), "{isa}: {y:?}");
        }
    }

    #[test]
    fn dot_of_any_length_is_the_same_bits_on_every_isa() {
        struct Dot<'a>(&'a [f32]);
        impl Kernel for Dot<'_> {
            type Output = u32;
            #[inline(always)]
            fn run<S: Simd>(self, s: S) -> u32 {
                dot(s, self.0, self.0).to_bits()
            }
        }
        for len in [0, 1, 15, 16, 17, 64, 129, 1000] {
            let x: Vec<f32> = (0..len).map(|i| (i as f32 * 0.7).sin()).collect();
            let exact: f64 = x.iter().map(|v| f64::from(*v).powi(2)).sum();
            let want = Isa::Portable.run(Dot(&x));
            assert!((f64::from(f32::from_bits(want)) - exact).abs() <= 1e-6 * exact);
            assert!(Isa::available().iter().all(|isa| isa.run(Dot(&x)) == want), "{len}");
        }
    }
}
