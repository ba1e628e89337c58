//! Blocks of 256 values that index a codebook of magnitudes; signs are apart, 7 bits for 8 values: the eighth makes the
//! number of negative ones even.

use super::grids::{IQ2_XS, IQ2_XXS, IQ3_XXS};
use super::{half, word};

/// What the 2-bit indices of a codebook stand for. The fourth is not used.
const TWO_BITS: [f32; 4] = [8.0, 25.0, 43.0, 0.0];
/// What the 3-bit indices stand for.
const THREE_BITS: [f32; 8] = [4.0, 12.0, 20.0, 28.0, 36.0, 44.0, 52.0, 62.0];

/// The sign of value `at` of 8, from its 7 bits.
fn sign(bits: u32, at: usize) -> f32 {
    let bits = bits & 127;
    let all = bits | (bits.count_ones() & 1) << 7;
    if all >> at & 1 == 1 { -1.0 } else { 1.0 }
}

/// Value `at` of an entry whose indices have so many bits.
fn index(entry: u16, bits: usize, at: usize) -> usize {
    usize::from(entry >> (bits * at)) & ((1 << bits) - 1)
}

/// d, then per 32 values 4 bytes of entries and 32 bits: 4 × 7 of signs, 4 of scale. (d · (½ + scale) · ¼) · magnitude.
pub fn iq2_xxs(block: &[u8], out: &mut [f32]) {
    let d = half(block, 0);
    for (group, values) in out.chunks_exact_mut(32).enumerate() {
        let at = 2 + 8 * group;
        let bits = word(block, at + 4);
        let scale = d * (0.5 + (bits >> 28) as f32) * 0.25;
        for (i, values) in values.chunks_exact_mut(8).enumerate() {
            let entry = IQ2_XXS[usize::from(block[at + i])];
            for (j, value) in values.iter_mut().enumerate() {
                *value = scale * TWO_BITS[index(entry, 2, j)] * sign(bits >> (7 * i), j);
            }
        }
    }
}

/// d, then per 8 values 16 bits: 9 of entry, 7 of signs; 8 bytes of scales, a nibble per 16. As [`iq2_xxs`].
pub fn iq2_xs(block: &[u8], out: &mut [f32]) {
    let (d, scales) = (half(block, 0), &block[66..74]);
    for (group, values) in out.chunks_exact_mut(8).enumerate() {
        let bits = u16::from_le_bytes([block[2 + 2 * group], block[3 + 2 * group]]);
        let scale = scales[group / 4] >> (group / 2 % 2 * 4) & 15;
        let scale = d * (0.5 + f32::from(scale)) * 0.25;
        let entry = IQ2_XS[usize::from(bits & 511)];
        for (j, value) in values.iter_mut().enumerate() {
            *value = scale * TWO_BITS[index(entry, 2, j)] * sign(u32::from(bits >> 9), j);
        }
    }
}

/// d, 64 bytes of entries for 4 values each, then per 32 values 32 bits as in [`iq2_xxs`]. (d · (½ + scale) · ½) · magnitude.
pub fn iq3_xxs(block: &[u8], out: &mut [f32]) {
    let d = half(block, 0);
    for (group, values) in out.chunks_exact_mut(32).enumerate() {
        let bits = word(block, 66 + 4 * group);
        let scale = d * (0.5 + (bits >> 28) as f32) * 0.5;
        for (i, values) in values.chunks_exact_mut(4).enumerate() {
            let entry = IQ3_XXS[usize::from(block[2 + 8 * group + i])];
            for (j, value) in values.iter_mut().enumerate() {
                let sign = sign(bits >> (7 * (i / 2)), i % 2 * 4 + j);
                *value = scale * THREE_BITS[index(entry, 3, j)] * sign;
            }
        }
    }
}
