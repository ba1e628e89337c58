//! Rounding of activations to int8: the one definition that the reference and every kernel follow.

/// Values along k that share a scale.
pub const INT8_GROUP: usize = 32;

/// The scale of a group whose largest magnitude is `max`: max / 127 rounded up to four significant bits, m / 8 · 2^e with
/// 8 ≤ m < 16. A scale below 2^-100 is 0, one above 2^100 is infinite.
///
/// Few distinct m let kernels multiply them into the weights' scales once for many rows, and the power of two costs
/// nothing: prefill then needs one multiplication per group and output instead of two. Rounding up lengthens a step by
/// 4.7 % in the mean, at most by 12.5 %.
#[inline(always)]
#[must_use]
pub fn int8_scale(max: f32) -> f32 {
    const LARGEST: f32 = f32::from_bits((127 + 100) << 23);
    const DROPPED: u32 = (1 << 20) - 1;
    let exact = max / 127.0;
    if exact > LARGEST {
        return f32::INFINITY;
    }
    if exact < 1.0 / LARGEST {
        return 0.0;
    }
    f32::from_bits((exact.to_bits() + DROPPED) & !DROPPED)
}

/// Rounds a group of activations to int8 and returns the scale: x̂ = code · scale.
///
/// All in f32: `scale` as [`int8_scale`] says, `code = x · (1 / scale)` rounded half to even; all zero if the scale is 0.
/// |code| ≤ 127, so −128 never occurs. Kernels must produce these very codes: a different code is an error of a whole
/// step, not of a last bit. Infinities and values beyond 2^107 give an infinite scale: the outputs are no numbers either.
///
/// `x` and `codes` have the same length, at most [`INT8_GROUP`].
pub fn round_int8(x: &[f32], codes: &mut [i8]) -> f32 {
    let scale = int8_scale(x.iter().fold(0.0f32, |m, v| m.max(v.abs())));
    if scale == 0.0 {
        codes.fill(0);
        return 0.0;
    }
    let inverse = 1.0 / scale;
    for (code, v) in codes.iter_mut().zip(x) {
        *code = (v * inverse).round_ties_even() as i8;
    }
    scale
}

/// Replaces each value of `x` (one row) by what [`round_int8`] keeps of it.
pub fn round_row(x: &mut [f32]) {
    let mut codes = [0i8; INT8_GROUP];
    for group in x.chunks_mut(INT8_GROUP) {
        let codes = &mut codes[..group.len()];
        let scale = round_int8(group, codes);
        for (v, code) in group.iter_mut().zip(codes.iter()) {
            *v = f32::from(*code) * scale;
        }
    }
}

/// `x` as bfloat16: the nearest, ties to even; what is below the least normal number becomes 0, as the dot products of CPUs
/// read it.
#[must_use]
pub fn round_bf16(x: f32) -> f32 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) & 0xffff_0000;
    if rounded & 0x7f80_0000 == 0 { 0.0 } else { f32::from_bits(rounded) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bf16_is_the_nearest_with_ties_to_even_and_without_subnormals() {
        for (x, want) in
            [(1.0, 1.0), (1.0 + 1.0 / 256.0, 1.0), (1.0 + 3.0 / 256.0, 1.015_625), (-3.3e38, -3.296_5e38), (1e-39, 0.0)]
        {
            assert!((round_bf16(x) - want).abs() <= want.abs() * 1e-4, "{x}: {}", round_bf16(x));
        }
        assert!(round_bf16(f32::NAN).is_nan() && round_bf16(f32::INFINITY) == f32::INFINITY);
        for i in 0..100_000u32 {
            let x = (i as f32 * 0.37).sin() * (i as f32 * 0.001).exp2();
            assert_eq!(round_bf16(x), half::bf16::from_f32(x).to_f32(), "{x}");
        }
    }

    #[test]
    fn ties_go_to_even_and_the_maximum_is_127() {
        let mut codes = [0i8; 5];
        let scale = round_int8(&[127.0, -127.0, 2.5, -3.5, 0.4], &mut codes);
        assert_eq!((codes, scale), ([127, -127, 2, -4, 0], 1.0));
    }

    #[test]
    fn scales_are_the_next_of_eight_per_octave() {
        assert_eq!([127.0, 127.1, 142.0, 143.0].map(int8_scale), [1.0, 1.125, 1.125, 1.25]);
        let mut max = 1e-20f32;
        while max < 1e20 {
            let (scale, exact) = (int8_scale(max), max / 127.0);
            assert!((exact..exact * 1.125 + f32::MIN_POSITIVE).contains(&scale), "{max}: {scale}");
            let mantissa = scale.to_bits() & 0x7f_ffff;
            assert_eq!(mantissa % (1 << 20), 0, "{scale}");
            max *= 1.0137;
        }
        assert_eq!([0.0, 1e-35, 1e33, f32::INFINITY].map(int8_scale), [0.0, 0.0, f32::INFINITY, f32::INFINITY]);
    }

    #[test]
    fn zeros_and_the_smallest_numbers_round_to_zero() {
        for x in [[0.0f32; 32], [1e-45; 32]] {
            let mut codes = [9i8; 32];
            assert_eq!(round_int8(&x, &mut codes), 0.0);
            assert_eq!(codes, [0; 32]);
        }
    }

    #[test]
    fn each_group_of_32_has_its_own_scale() {
        let mut x = [1.0f32; 64];
        x[0] = 127.0 * 4.0;
        x[1] = 1.9;
        x[33] = 0.5;
        round_row(&mut x);
        assert_eq!(&x[..3], &[508.0, 0.0, 0.0]);
        // 1/127 = 1.0079 · 2^-7 becomes 1.125 · 2^-7.
        let step = 1.125 / 128.0;
        assert_eq!(&x[32..34], &[114.0 * step, 57.0 * step]);
    }
}
