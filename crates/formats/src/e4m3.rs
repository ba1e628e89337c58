//! E4M3 (the "fn" kind: no infinities, one NaN per sign): 4 exponent bits biased by 7, 3 mantissa bits, ±448 at most.

/// The largest value.
pub const MAX: f32 = 448.0;

/// The value of a code; 0x7f and 0xff are NaN.
#[inline]
#[must_use]
pub fn to_f32(code: u8) -> f32 {
    let (exponent, mantissa) = ((code >> 3) & 15, f32::from(code & 7));
    let magnitude = match (exponent, code & 7) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa / 512.0,
        _ => (1.0 + mantissa / 8.0) * f32::from_bits((u32::from(exponent) + 120) << 23),
    };
    if code & 0x80 == 0 { magnitude } else { -magnitude }
}

/// The code nearest to x, ties to even; beyond ±448 the largest.
#[inline(always)]
#[must_use]
pub fn from_f32(x: f32) -> u8 {
    let bits = x.to_bits();
    let sign = (bits >> 24) & 0x80;
    let abs = bits & 0x7fff_ffff;
    let normal = abs.wrapping_add(0x7_ffff + ((abs >> 20) & 1)).wrapping_sub(120 << 23) >> 20;
    // 2^14 has an ulp of 2^-9, the spacing of e4m3 subnormals: the addition itself rounds.
    let subnormal = (f32::from_bits(abs) + 16384.0).to_bits().wrapping_sub(16384f32.to_bits());
    let finite = if abs < 0x3c80_0000 { subnormal } else { normal };
    (sign | if abs > 0x43e0_0000 { 0x7e } else { finite.min(0x7e) }) as u8
}

/// The value of every code.
#[must_use]
pub fn table() -> [f32; 256] {
    let mut table = [0.0; 256];
    for (code, value) in (0..=u8::MAX).zip(&mut table) {
        *value = to_f32(code);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_codes_have_their_values() {
        for (code, value) in
            [(0x00, 0.0), (0x01, 0.001_953_125), (0x08, 0.015_625), (0x38, 1.0), (0x7e, 448.0), (0xb8, -1.0)]
        {
            assert_eq!(to_f32(code), value);
        }
        assert!(to_f32(0x7f).is_nan() && to_f32(0xff).is_nan());
        assert_eq!(to_f32(0x80).to_bits(), (-0.0f32).to_bits());
    }

    #[test]
    fn every_code_survives_and_ties_go_to_even() {
        for code in (0..=0xffu8).filter(|c| c & 0x7f != 0x7f) {
            assert_eq!(from_f32(to_f32(code)), code);
        }
        for code in 0..0x7eu8 {
            let (a, b) = (to_f32(code), to_f32(code + 1));
            let tie = (a + b) / 2.0;
            assert_eq!(from_f32(tie), if code % 2 == 0 { code } else { code + 1 }, "{tie}");
            assert_eq!(from_f32(tie.next_up()), code + 1);
            assert_eq!(from_f32(tie.next_down()), code);
        }
        assert_eq!((from_f32(1e9), from_f32(-449.0), from_f32(f32::MAX)), (0x7e, 0xfe, 0x7e));
    }
}
