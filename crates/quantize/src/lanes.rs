//! Sixteen rows as the sixteen lanes of a vector: plain loops that the compiler turns into SIMD inside
//! [`ashlar_simd::Isa::vectorize`]. No fused multiply-add and no reordered sums, so every ISA gives the same result.

use ashlar_formats::x16::ROWS;

/// One f32 per row.
pub type V = [f32; ROWS];

/// The same value in every lane.
#[inline(always)]
pub fn splat(x: f32) -> V {
    [x; ROWS]
}

/// f(a) per lane.
#[inline(always)]
pub fn map<T: Copy + Default>(a: &V, f: impl Fn(f32) -> T) -> [T; ROWS] {
    let mut out = [T::default(); ROWS];
    for i in 0..ROWS {
        out[i] = f(a[i]);
    }
    out
}

/// f(a, b) per lane.
#[inline(always)]
pub fn zip<T: Copy + Default>(a: &V, b: &V, f: impl Fn(f32, f32) -> T) -> [T; ROWS] {
    let mut out = [T::default(); ROWS];
    for i in 0..ROWS {
        out[i] = f(a[i], b[i]);
    }
    out
}

/// The lanes of `a` where `take` holds, else those of `b`.
#[inline(always)]
pub fn select(take: &[bool; ROWS], a: &V, b: &V) -> V {
    let mut out = *b;
    for i in 0..ROWS {
        out[i] = if take[i] { a[i] } else { b[i] };
    }
    out
}

/// The larger; as `maxps`, without NaN rules.
#[inline(always)]
pub fn max(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

/// The smaller; as `minps`, without NaN rules.
#[inline(always)]
pub fn min(a: f32, b: f32) -> f32 {
    if a < b { a } else { b }
}

/// 1.5 · 2^23: adding it leaves no fraction bits, so the sum is rounded to an integer, ties to even.
const ROUND: f32 = 12_582_912.0;

/// The nearest integer, ties to even, for |x| < 2^22. Two additions on every ISA, where `round_ties_even` is a call on
/// baseline x86-64.
#[inline(always)]
pub fn round(x: f32) -> f32 {
    (x + ROUND) - ROUND
}

/// An integer-valued |x| < 2^22 as two's complement.
#[inline(always)]
pub fn to_bits(x: f32) -> u32 {
    (x + ROUND).to_bits().wrapping_sub(ROUND.to_bits())
}

/// 1/x, and 0 for 0: what turns a value into units of its scale.
#[inline(always)]
pub fn reciprocal(x: f32) -> f32 {
    let inverse = 1.0 / x;
    if x == 0.0 { 0.0 } else { inverse }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_to_nearest_even() {
        for x in [0.0f32, 0.5, -0.5, 1.5, 2.5, -2.5, 126.5, 127.49, -127.5, 3.0, 1e-30, 200_000.5] {
            assert_eq!(round(x), x.round_ties_even(), "{x}");
            assert_eq!(to_bits(round(x)) as i32, x.round_ties_even() as i32, "{x}");
        }
        assert_eq!((reciprocal(0.0), reciprocal(-4.0)), (0.0, -0.25));
    }
}
