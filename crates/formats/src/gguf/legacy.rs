//! Blocks of 32 values, one or two f16 each: a scale d and a minimum m.

use super::{half, word};

/// d, m, 16 bytes of codes (value j in the low nibble of byte j, j + 16 in the high one): d · code + m.
pub fn q4_1(block: &[u8], out: &mut [f32]) {
    let (d, m) = (half(block, 0), half(block, 2));
    let (low, high) = out.split_at_mut(16);
    for ((byte, a), b) in block[4..].iter().zip(low).zip(high) {
        *a = d * f32::from(byte & 15) + m;
        *b = d * f32::from(byte >> 4) + m;
    }
}

/// d, 32 fifth bits, nibbles as in [`q4_1`]: d · (code − 16).
pub fn q5_0(block: &[u8], out: &mut [f32]) {
    let (d, fifth) = (half(block, 0), word(block, 2));
    five_bits(fifth, &block[6..], out, |code| d * (code - 16.0));
}

/// d, m, 32 fifth bits, nibbles as in [`q4_1`]: d · code + m.
pub fn q5_1(block: &[u8], out: &mut [f32]) {
    let (d, m, fifth) = (half(block, 0), half(block, 2), word(block, 4));
    five_bits(fifth, &block[8..], out, |code| d * code + m);
}

fn five_bits(fifth: u32, nibbles: &[u8], out: &mut [f32], value: impl Fn(f32) -> f32) {
    let high = |at: usize| (fifth >> at & 1) as u8 * 16;
    let (first, second) = out.split_at_mut(16);
    for (j, ((byte, a), b)) in nibbles.iter().zip(first).zip(second).enumerate() {
        *a = value(f32::from(byte & 15 | high(j)));
        *b = value(f32::from(byte >> 4 | high(j + 16)));
    }
}
