//! Rounding of activations to int8: the one definition that the reference and every kernel follow.

/// Values along k that share a scale.
pub const INT8_GROUP: usize = 32;

/// Rounds a group of activations to int8 and returns the scale: x̂ = code · scale.
///
/// All in f32: `scale = max|x| / 127`, `code = x · (127 / max|x|)` rounded half to even; all zero if max is 0. When the
/// reciprocal would overflow (max below 127 / `f32::MAX`) the group also rounds to zero.
/// |code| ≤ 127, so −128 never occurs. Kernels must produce these very codes: a different code is an error of a whole
/// step, not of a last bit.
///
/// `x` and `codes` have the same length, at most [`INT8_GROUP`].
pub fn round_int8(x: &[f32], codes: &mut [i8]) -> f32 {
    let max = x.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    let inverse = 127.0 / max;
    if !inverse.is_finite() {
        codes.fill(0);
        return 0.0;
    }
    for (code, v) in codes.iter_mut().zip(x) {
        *code = (v * inverse).round_ties_even() as i8;
    }
    max / 127.0
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_go_to_even_and_the_maximum_is_127() {
        let mut codes = [0i8; 5];
        let scale = round_int8(&[127.0, -127.0, 2.5, -3.5, 0.4], &mut codes);
        assert_eq!((codes, scale), ([127, -127, 2, -4, 0], 1.0));
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
        assert!((x[32] - 1.0).abs() < 1e-6 && (x[33] - 64.0 / 127.0).abs() < 1e-6);
    }
}
