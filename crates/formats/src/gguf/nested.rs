//! Blocks of 256 values whose groups have small integer scales under an f16.

use super::half;

/// Byte and shift of the two low bits of value `at`, as [`q2_k`] and [`q3_k`] have them.
fn pair(codes: &[u8], at: usize) -> u8 {
    codes[at / 128 * 32 + at % 32] >> (at % 128 / 32 * 2) & 3
}

/// 16 bytes of scale and minimum (a nibble each), 64 of codes, d, dmin: (d · scale) · code − dmin · minimum, per 16.
pub fn q2_k(block: &[u8], out: &mut [f32]) {
    let (scales, codes) = (&block[..16], &block[16..80]);
    let (d, dmin) = (half(block, 80), half(block, 82));
    for (group, values) in out.chunks_exact_mut(16).enumerate() {
        let scale = d * f32::from(scales[group] & 15);
        let minimum = dmin * f32::from(scales[group] >> 4);
        for (i, value) in values.iter_mut().enumerate() {
            *value = scale * f32::from(pair(codes, group * 16 + i)) - minimum;
        }
    }
}

/// 32 bytes of third bits (a clear bit subtracts 4), 64 of codes, 12 of 6-bit scales, d: (d · (scale − 32)) · code, per 16.
pub fn q3_k(block: &[u8], out: &mut [f32]) {
    let (third, codes, scales) = (&block[..32], &block[32..96], &block[96..108]);
    let d = half(block, 108);
    for (group, values) in out.chunks_exact_mut(16).enumerate() {
        let low = scales[group % 8] >> (group / 8 * 4) & 15;
        let high = scales[8 + group % 4] >> (group / 4 * 2) & 3;
        let scale = d * (f32::from(low | high << 4) - 32.0);
        for (i, value) in values.iter_mut().enumerate() {
            let at = group * 16 + i;
            let below = if third[at % 32] >> (at / 32) & 1 == 1 { 0.0 } else { 4.0 };
            *value = scale * (f32::from(pair(codes, at)) - below);
        }
    }
}

/// The 6-bit scale and minimum of one of 8 groups, in 12 bytes.
fn scale_and_minimum(packed: &[u8], group: usize) -> (f32, f32) {
    let (scale, minimum) = if group < 4 {
        (packed[group] & 63, packed[group + 4] & 63)
    } else {
        let low = packed[group + 4];
        (low & 15 | packed[group - 4] >> 6 << 4, low >> 4 | packed[group] >> 6 << 4)
    };
    (f32::from(scale), f32::from(minimum))
}

/// d, dmin, 12 bytes of scales and minima, 128 of codes (64 values share 32 bytes): (d · scale) · code − dmin · minimum.
pub fn q4_k(block: &[u8], out: &mut [f32]) {
    let (d, dmin, packed, codes) = (half(block, 0), half(block, 2), &block[4..16], &block[16..144]);
    for (group, values) in out.chunks_exact_mut(32).enumerate() {
        let (scale, minimum) = scale_and_minimum(packed, group);
        let (scale, minimum) = (d * scale, dmin * minimum);
        for (value, byte) in values.iter_mut().zip(&codes[group / 2 * 32..]) {
            *value = scale * f32::from(byte >> (group % 2 * 4) & 15) - minimum;
        }
    }
}

/// As [`q4_k`], with 32 bytes of fifth bits (bit g of byte i: value i of group g) before the codes.
pub fn q5_k(block: &[u8], out: &mut [f32]) {
    let (d, dmin, packed) = (half(block, 0), half(block, 2), &block[4..16]);
    let (fifth, codes) = (&block[16..48], &block[48..176]);
    for (group, values) in out.chunks_exact_mut(32).enumerate() {
        let (scale, minimum) = scale_and_minimum(packed, group);
        let (scale, minimum) = (d * scale, dmin * minimum);
        for ((value, byte), high) in values.iter_mut().zip(&codes[group / 2 * 32..]).zip(fifth) {
            let code = byte >> (group % 2 * 4) & 15 | (high >> group & 1) << 4;
            *value = scale * f32::from(code) - minimum;
        }
    }
}

/// The levels of `iq4nl`.
const LEVELS: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// d, 16 bits of high scale bits, 4 bytes of low nibbles, 128 of codes: (d · (scale − 32)) · level, per 32.
pub fn iq4_xs(block: &[u8], out: &mut [f32]) {
    let d = half(block, 0);
    let above = u16::from_le_bytes([block[2], block[3]]);
    for (group, values) in out.chunks_exact_mut(32).enumerate() {
        let low = block[4 + group / 2] >> (group % 2 * 4) & 15;
        let high = (above >> (2 * group) & 3) as u8;
        let scale = d * (f32::from(low | high << 4) - 32.0);
        let (first, second) = values.split_at_mut(16);
        for ((byte, a), b) in block[8 + group * 16..].iter().zip(first).zip(second) {
            *a = scale * f32::from(LEVELS[usize::from(byte & 15)]);
            *b = scale * f32::from(LEVELS[usize::from(byte >> 4)]);
        }
    }
}
