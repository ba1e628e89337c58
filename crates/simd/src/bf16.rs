//! bfloat16 products where no instruction makes them: [`Simd::dot_bf16`] and [`Simd::dot_e4m3`] in f32, to the same bits.

use crate::Simd;

/// [`Simd::dot_bf16`].
#[inline(always)]
pub fn dot<S: Simd>(s: S, acc: S::F32, w: S::U8, x: S::U8) -> S::F32 {
    let (w, x, mask) = (s.lanes(w), s.lanes(x), s.splat_i32(!0xffff));
    let acc = s.fma(s.as_f32(s.and(w, mask)), s.as_f32(s.and(x, mask)), acc);
    s.fma(s.as_f32(s.shl(w, 16)), s.as_f32(s.shl(x, 16)), acc)
}

/// [`Simd::dot_e4m3`]: lane by lane the sum over the first two codes, and the one over the last two.
#[inline(always)]
pub fn dot_e4m3<S: Simd>(s: S, acc: [S::F32; 2], codes: S::U8, x: [i32; 2]) -> [S::F32; 2] {
    let lanes = s.lanes(codes);
    let mut acc = acc;
    for half in 0..2 {
        for upper in [true, false] {
            let b = 2 * half as u32 + u32::from(upper);
            // To the top byte, then down by 4: sign, exponent and mantissa are where f32 keeps them, and the value is 2^-120
            // of what it should be, subnormals included.
            let bits = s.and(s.sar(s.shl(lanes, 24 - 8 * b), 4), s.splat_i32(0x87f0_0000_u32.cast_signed()));
            let w = s.mul(s.as_f32(bits), s.splat(f32::from_bits((127 + 120) << 23)));
            let x = x[half].cast_unsigned();
            let x = f32::from_bits(if upper { x & 0xffff_0000 } else { x << 16 });
            acc[half] = s.fma(w, s.splat(x), acc[half]);
        }
    }
    acc
}
