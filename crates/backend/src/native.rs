//! How DeepSeek-V4 keeps keys: the rounding it was trained with, and what is stored of it.
//!
//! A key (which is the value too) has its first values in E4M3 under one power of two per 64, the rotated ones in bf16. Keys
//! of the indexer are turned by a Hadamard matrix, as their queries are, and have E2M1 under one power of two per 32.
//! Storing keeps exactly what rounding leaves. Source: `act_quant` and `fp4_act_quant` of the release's
//! `inference/kernel.py`, and `inference/model.py`, which says where they are applied.

use ashlar_formats::e4m3;
use half::{bf16, f16};

/// Values that share a scale in E4M3.
pub const FP8_GROUP: usize = 64;
/// Values that share a scale in E2M1.
pub const FP4_GROUP: usize = 32;

/// Magnitudes of E2M1, by code.
const E2M1: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
/// The middles between them.
const MIDDLES: [f32; 7] = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0];

/// How pooled entries are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryFormat {
    /// As computed.
    F32,
    /// IEEE half.
    F16,
    /// The first `plain` values in E4M3, the others in bf16.
    Fp8 {
        /// How many.
        plain: usize,
    },
    /// Turned by a Hadamard matrix, then E2M1. The width is a power of two, 32 at least.
    Fp4,
}

/// How far sums in f32 may lie from those of the reference, relative.
const TIE: f32 = 2e-6;

impl EntryFormat {
    /// Bytes of an entry.
    #[must_use]
    pub fn bytes(self, width: usize) -> usize {
        match self {
            Self::F32 => 4 * width,
            Self::F16 => 2 * width,
            Self::Fp8 { plain } => {
                let plain = plain.min(width);
                plain + plain.div_ceil(FP8_GROUP) + 2 * (width - plain)
            }
            Self::Fp4 => width / 2 + width.div_ceil(FP4_GROUP),
        }
    }

    /// Whether entries of that width can be stored so.
    #[must_use]
    pub fn takes(self, width: usize) -> bool {
        match self {
            Self::F32 | Self::F16 => true,
            Self::Fp8 { plain } => plain <= width,
            Self::Fp4 => width.is_power_of_two() && width >= FP4_GROUP,
        }
    }

    /// Stores an entry in [`EntryFormat::bytes`] bytes.
    pub fn encode(self, entry: &[f32], out: &mut [u8]) {
        match self {
            Self::F32 => {
                out.as_chunks_mut().0.iter_mut().zip(entry).for_each(|(to, v)| *to = v.to_le_bytes());
            }
            Self::F16 => {
                out.as_chunks_mut().0.iter_mut().zip(entry).for_each(|(to, v)| *to = crate::to_f16(*v).to_le_bytes());
            }
            Self::Fp8 { plain } => encode_fp8(entry.split_at(plain.min(entry.len())), out),
            Self::Fp4 => {
                let mut turned = entry.to_vec();
                hadamard(&mut turned);
                encode_fp4(&turned, out);
            }
        }
    }

    /// What storing kept of an entry. Of [`EntryFormat::Fp4`] it stays turned.
    pub fn decode(self, bytes: &[u8], out: &mut [f32]) {
        match self {
            Self::F32 => out.iter_mut().zip(bytes.as_chunks().0).for_each(|(v, b)| *v = f32::from_le_bytes(*b)),
            Self::F16 => {
                out.iter_mut().zip(bytes.as_chunks().0).for_each(|(v, b)| *v = f16::from_le_bytes(*b).to_f32())
            }
            Self::Fp8 { plain } => decode_fp8(bytes, out.split_at_mut(plain.min(out.len()))),
            Self::Fp4 => decode_fp4(bytes, out),
        }
    }

    /// Replaces an entry by what storing keeps of it.
    pub fn round(self, entry: &mut [f32]) {
        if self != Self::F32 {
            let mut bytes = vec![0; self.bytes(entry.len())];
            self.encode(entry, &mut bytes);
            self.decode(&bytes, entry);
        }
    }

    /// Whether one of the values lies so near the border between two of those that can be stored that sums in f32 may
    /// legitimately come to the other.
    pub(crate) fn is_on_a_tie(self, entry: &[f32]) -> bool {
        let stored = |factor: f32| {
            let scaled: Vec<f32> = entry.iter().map(|v| v * factor).collect();
            let mut bytes = vec![0; self.bytes(entry.len())];
            self.encode(&scaled, &mut bytes);
            bytes
        };
        self != Self::F32 && stored(1.0 + TIE) != stored(1.0 - TIE)
    }

    /// What entries of this format are compared with instead of a query: turned and rounded as they are.
    pub fn round_query(self, query: &mut [f32]) {
        if self == Self::Fp4 {
            self.round(query);
        }
    }
}

/// Replaces the first `plain` values of a key by E4M3, the others by bf16.
pub fn round_key(plain: usize, key: &mut [f32]) {
    EntryFormat::Fp8 { plain }.round(key);
}

/// Codes, the others in bf16, then the exponents of the scales.
fn encode_fp8((plain, others): (&[f32], &[f32]), out: &mut [u8]) {
    let (codes, rest) = out.split_at_mut(plain.len());
    let (halves, scales) = rest.split_at_mut(2 * others.len());
    for ((values, codes), scale) in plain.chunks(FP8_GROUP).zip(codes.chunks_mut(FP8_GROUP)).zip(scales) {
        *scale = exponent(values, 1e-4, e4m3::MAX);
        let inverse = power(*scale).recip();
        codes.iter_mut().zip(values).for_each(|(code, v)| *code = e4m3::from_f32(v * inverse));
    }
    let halves = halves.as_chunks_mut().0.iter_mut();
    halves.zip(others).for_each(|(to, v)| *to = bf16::from_f32(*v).to_le_bytes());
}

fn decode_fp8(bytes: &[u8], (plain, others): (&mut [f32], &mut [f32])) {
    let (codes, rest) = bytes.split_at(plain.len().min(bytes.len()));
    let (halves, scales) = rest.split_at((2 * others.len()).min(rest.len()));
    for ((values, codes), scale) in plain.chunks_mut(FP8_GROUP).zip(codes.chunks(FP8_GROUP)).zip(scales) {
        let scale = power(*scale);
        values.iter_mut().zip(codes).for_each(|(v, code)| *v = e4m3::to_f32(*code) * scale);
    }
    others.iter_mut().zip(halves.as_chunks().0).for_each(|(v, b)| *v = bf16::from_le_bytes(*b).to_f32());
}

/// Two codes per byte, the lower half first, then the exponents of the scales.
fn encode_fp4(values: &[f32], out: &mut [u8]) {
    let (codes, scales) = out.split_at_mut(values.len() / 2);
    for ((values, codes), scale) in values.chunks(FP4_GROUP).zip(codes.chunks_mut(FP4_GROUP / 2)).zip(scales) {
        *scale = exponent(values, 6.0 * f32::MIN_POSITIVE, 6.0);
        let inverse = power(*scale).recip();
        for (byte, [low, high]) in codes.iter_mut().zip(values.as_chunks().0) {
            *byte = e2m1(low * inverse) | e2m1(high * inverse) << 4;
        }
    }
}

fn decode_fp4(bytes: &[u8], out: &mut [f32]) {
    let (codes, scales) = bytes.split_at((out.len() / 2).min(bytes.len()));
    for ((values, codes), scale) in out.chunks_mut(FP4_GROUP).zip(codes.chunks(FP4_GROUP / 2)).zip(scales) {
        let scale = power(*scale);
        for ([low, high], byte) in values.as_chunks_mut().0.iter_mut().zip(codes) {
            *low = of_e2m1(byte & 15) * scale;
            *high = of_e2m1(byte >> 4) * scale;
        }
    }
}

/// The exponent, biased by 127, of the least power of two by which the greatest magnitude comes to `max` at most.
fn exponent(values: &[f32], least: f32, max: f32) -> u8 {
    let greatest = values.iter().fold(least, |m, v| m.max(v.abs()));
    let bits = (greatest / max).to_bits();
    let up = u32::from(bits & 0x7f_ffff != 0);
    // Zero would be no power of two: such a group is all zeros anyway.
    ((bits >> 23) + up).clamp(1, 254) as u8
}

fn power(exponent: u8) -> f32 {
    f32::from_bits(u32::from(exponent) << 23)
}

/// The nearest code of a magnitude up to 6, ties to even.
fn e2m1(v: f32) -> u8 {
    let magnitude = v.abs();
    let below = MIDDLES.iter().filter(|m| magnitude > **m).count();
    let tie = MIDDLES.get(below).is_some_and(|m| magnitude == *m) && below % 2 == 1;
    let code = (below + usize::from(tie)) as u8;
    if v.is_sign_negative() { code | 8 } else { code }
}

fn of_e2m1(code: u8) -> f32 {
    let magnitude = E2M1.get(usize::from(code & 7)).copied().unwrap_or_default();
    if code & 8 == 0 { magnitude } else { -magnitude }
}

/// x · H / sqrt(n), H the Hadamard matrix in Sylvester's order; n is a power of two.
fn hadamard(x: &mut [f32]) {
    let mut half = 1;
    while half < x.len() {
        for pair in x.chunks_mut(2 * half) {
            let (low, high) = pair.split_at_mut(half);
            for (a, b) in low.iter_mut().zip(high) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
        half *= 2;
    }
    let factor = (x.len() as f64).powf(-0.5) as f32;
    x.iter_mut().for_each(|v| *v *= factor);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waves(n: usize) -> Vec<f32> {
        (0..n).map(|i| (i as f32 * 0.37).sin() * (1.0 + (i / 50) as f32)).collect()
    }

    #[test]
    fn an_entry_takes_the_bytes_that_were_promised() {
        // Published for the release's width: 584 with a byte of padding, and 68.
        assert_eq!((EntryFormat::Fp8 { plain: 448 }.bytes(512), EntryFormat::Fp4.bytes(128)), (583, 68));
        assert!(EntryFormat::Fp4.takes(128) && !EntryFormat::Fp4.takes(96) && !EntryFormat::Fp4.takes(16));
    }

    #[test]
    fn rounding_twice_changes_nothing() {
        for format in [EntryFormat::F16, EntryFormat::Fp8 { plain: 448 }] {
            let mut once = waves(512);
            format.round(&mut once);
            let mut twice = once.clone();
            format.round(&mut twice);
            assert_eq!(once, twice, "{format:?}");
        }
    }

    #[test]
    fn fp8_errs_by_half_a_step_and_scales_are_powers_of_two() {
        let exact = waves(512);
        let mut rounded = exact.clone();
        round_key(448, &mut rounded);
        for (part, kept) in exact[..448].chunks(64).zip(rounded.chunks(64)) {
            let greatest = part.iter().fold(0.0f32, |m, v| m.max(v.abs()));
            let step = (greatest / 448.0).log2().ceil().exp2();
            assert!(part.iter().zip(kept).all(|(a, b)| (a - b).abs() <= (a.abs() / 16.0).max(step / 1024.0)));
        }
        assert!(exact[448..].iter().zip(&rounded[448..]).all(|(a, b)| (a - b).abs() <= a.abs() / 256.0));
        // 448 itself needs no larger scale, a little more does.
        let (mut a, mut b) = ([448.0f32; 64], [449.0f32; 64]);
        round_key(64, &mut a);
        round_key(64, &mut b);
        assert_eq!((a[0], b[0]), (448.0, 448.0));
        let mut c = [460.0f32; 64];
        c[1] = 25.0;
        round_key(64, &mut c);
        assert_eq!((c[0], c[1]), (448.0, 24.0), "in steps of a scale of two");
    }

    #[test]
    fn codes_of_fp4_go_to_the_nearest_and_ties_to_even() {
        for (v, want) in [
            (0.25, 0.0),
            (0.26, 0.5),
            (0.75, 1.0),
            (1.25, 1.0),
            (1.75, 2.0),
            (2.5, 2.0),
            (3.5, 4.0),
            (5.0, 4.0),
            (5.1, 6.0),
        ] {
            assert_eq!((of_e2m1(e2m1(v)), of_e2m1(e2m1(-v))), (want, -want), "{v}");
        }
    }

    #[test]
    fn turning_twice_gives_back_and_keeps_products() {
        let (x, y) = (waves(128), waves(256)[128..].to_vec());
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum::<f64>();
        let (mut a, mut b) = (x.clone(), y.clone());
        hadamard(&mut a);
        hadamard(&mut b);
        assert!((dot(&a, &b) - dot(&x, &y)).abs() < 1e-3);
        hadamard(&mut a);
        assert!(a.iter().zip(&x).all(|(a, b)| (a - b).abs() < 1e-5));
        // By hand: the second row of H is + - + -.
        let mut small = [1.0, 2.0, 3.0, 5.0];
        hadamard(&mut small);
        assert_eq!(small, [5.5, -1.5, -2.5, 0.5]);
    }
}
