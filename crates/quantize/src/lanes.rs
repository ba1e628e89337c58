//! Sixteen rows as the sixteen lanes of a vector: small helpers over [`Simd`]. No fused multiply-add and no reordered
//! sums, so that every ISA gives the same bits.

use ashlar_formats::x16::ROWS;
use ashlar_simd::Simd;

/// One f32 per row, in memory.
pub type V = [f32; ROWS];

/// The same value in every lane.
#[inline(always)]
pub fn splat(x: f32) -> V {
    [x; ROWS]
}

/// A vector's lanes.
#[inline(always)]
pub fn array<S: Simd>(s: S, x: S::F32) -> V {
    let mut out = splat(0.0);
    s.store(x, &mut out);
    out
}

/// |x|
#[inline(always)]
pub fn abs<S: Simd>(s: S, x: S::F32) -> S::F32 {
    s.max(x, s.sub(s.splat(0.0), x))
}

/// 1.5 · 2^23: adding it leaves no fraction bits, so the sum is rounded to an integer, ties to even.
const ROUND: f32 = 12_582_912.0;

/// The nearest integer, ties to even, for |x| < 2^22.
#[inline(always)]
pub fn round<S: Simd>(s: S, x: S::F32) -> S::F32 {
    let magic = s.splat(ROUND);
    s.sub(s.add(x, magic), magic)
}

/// 1/x, and 0 for 0: what turns a value into units of its scale.
#[inline(always)]
pub fn reciprocal<S: Simd>(s: S, x: S::F32) -> S::F32 {
    let zero = s.splat(0.0);
    s.if_gt(abs(s, x), zero, s.div(s.splat(1.0), x), zero)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ashlar_simd::{Isa, Kernel};

    struct Both<'a>(&'a V);

    impl Kernel for Both<'_> {
        type Output = (V, V, V);
        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> Self::Output {
            let x = s.load(self.0);
            (array(s, round(s, x)), array(s, reciprocal(s, x)), array(s, abs(s, x)))
        }
    }

    #[test]
    fn helpers_do_what_they_say_on_every_isa() {
        let x = [0.0, 0.5, -0.5, 1.5, 2.5, -2.5, 126.5, 127.49, -127.5, 3.0, 1e-30, 200_000.5, -4.0, 7.0, -0.0, 0.25];
        for isa in Isa::available() {
            let (rounded, reciprocals, absolute) = isa.run(Both(&x));
            assert_eq!(rounded, x.map(f32::round_ties_even));
            assert_eq!(reciprocals, x.map(|x| if x == 0.0 { 0.0 } else { 1.0 / x }));
            assert_eq!(absolute, x.map(f32::abs));
        }
    }
}
