//! How scales are stored, and rounding to what can be stored.
//!
//! The conversions here are branch-free so that encoders run them in lanes; they agree with the `half` crate bit for bit
//! (tests compare every f16).

/// How scales are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ScaleType {
    /// IEEE half.
    F16,
    /// bfloat16.
    BF16,
    /// IEEE single.
    F32,
    /// Power of two, biased by 127: byte 0 is 2^-127, byte 254 is 2^127, 255 is NaN.
    E8M0,
}

impl ScaleType {
    /// Bytes of one scale.
    #[must_use]
    pub const fn size(self) -> usize {
        match self {
            Self::F16 | Self::BF16 => 2,
            Self::F32 => 4,
            Self::E8M0 => 1,
        }
    }

    /// The largest finite scale.
    #[must_use]
    pub const fn max(self) -> f32 {
        match self {
            Self::F16 => 65504.0,
            // the largest bf16, 0x7f7f
            Self::BF16 => f32::from_bits(0x7f7f_0000),
            Self::F32 => f32::MAX,
            Self::E8M0 => f32::from_bits(254 << 23),
        }
    }

    /// Scale number `index` of a plane; `None` where the plane ends.
    #[inline]
    #[must_use]
    pub fn load(self, plane: &[u8], index: usize) -> Option<f32> {
        let at = index * self.size();
        match self {
            Self::F16 => Some(f16_to_f32(u16::from_le_bytes(*plane.get(at..)?.first_chunk()?))),
            Self::BF16 => Some(f32::from_bits(u32::from(u16::from_le_bytes(*plane.get(at..)?.first_chunk()?)) << 16)),
            Self::F32 => Some(f32::from_le_bytes(*plane.get(at..)?.first_chunk()?)),
            Self::E8M0 => plane.get(at).map(|&b| e8m0_to_f32(b)),
        }
    }

    /// Rounds to the nearest storable scale, ties to even (E8M0: the power of two at or below, in magnitude).
    #[inline(always)]
    #[must_use]
    pub fn round(self, scale: f32) -> f32 {
        match self {
            Self::F16 => f16_to_f32(f16_bits(scale)),
            Self::BF16 => f32::from_bits(u32::from(bf16_bits(scale)) << 16),
            Self::F32 => scale,
            Self::E8M0 => e8m0_to_f32(e8m0_floor(scale)),
        }
    }

    /// Writes a scale that [`ScaleType::round`] returned as number `index` of a plane. Outside the plane: no effect.
    #[inline(always)]
    pub fn store(self, scale: f32, plane: &mut [u8], index: usize) {
        let at = index * self.size();
        let Some(out) = plane.get_mut(at..at + self.size()) else { return };
        match self {
            Self::F16 => out.copy_from_slice(&f16_bits(scale).to_le_bytes()),
            Self::BF16 => out.copy_from_slice(&bf16_bits(scale).to_le_bytes()),
            Self::F32 => out.copy_from_slice(&scale.to_le_bytes()),
            Self::E8M0 => out.copy_from_slice(&[e8m0_floor(scale)]),
        }
    }
}

/// 2^(byte − 127); 255 is NaN.
#[inline(always)]
#[must_use]
pub fn e8m0_to_f32(byte: u8) -> f32 {
    match byte {
        0 => f32::from_bits(0x0040_0000),
        255 => f32::NAN,
        b => f32::from_bits(u32::from(b) << 23),
    }
}

/// The byte of the largest power of two ≤ |x|, 0 for anything smaller than 2^-126.
#[inline(always)]
#[must_use]
pub fn e8m0_floor(x: f32) -> u8 {
    ((x.to_bits() >> 23) & 0xff).min(254) as u8
}

/// f32 to IEEE half, nearest, ties to even; beyond the range infinity; NaN becomes infinity (encoders never see it).
#[inline(always)]
#[must_use]
pub fn f16_bits(x: f32) -> u16 {
    let bits = x.to_bits();
    let sign = (bits >> 16) & 0x8000;
    let abs = bits & 0x7fff_ffff;
    // Adding half an ulp of the result, minus one when the kept part is even, rounds ties to even; 112 re-biases.
    let normal = abs.wrapping_add(0xfff + ((abs >> 13) & 1)).wrapping_sub(112 << 23) >> 13;
    // 0.5 has an ulp of 2^-24, the spacing of f16 subnormals: the addition itself rounds.
    let subnormal = (f32::from_bits(abs) + 0.5).to_bits().wrapping_sub(0.5f32.to_bits());
    let finite = if abs < 0x3880_0000 { subnormal } else { normal };
    // 65520 is halfway between the largest f16 and the next power of two.
    (sign | if abs >= 0x477f_f000 { 0x7c00 } else { finite }) as u16
}

/// IEEE half to f32, exact.
#[inline(always)]
#[must_use]
pub fn f16_to_f32(bits: u16) -> f32 {
    let sign = u32::from(bits & 0x8000) << 16;
    let abs = u32::from(bits & 0x7fff);
    // The f16's exponent field is re-biased by a multiplication with 2^112, which is exact for subnormals too.
    let finite = (f32::from_bits(abs << 13) * f32::from_bits((127 + 112) << 23)).to_bits();
    let special = 0x7f80_0000 | (abs << 13);
    f32::from_bits(sign | if abs >= 0x7c00 { special } else { finite })
}

/// f32 to bfloat16, nearest, ties to even; beyond the range infinity.
#[inline(always)]
#[must_use]
pub fn bf16_bits(x: f32) -> u16 {
    let bits = x.to_bits();
    (bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16) as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::{bf16, f16};

    #[test]
    fn every_f16_agrees_with_the_half_crate() {
        for bits in 0..=u16::MAX {
            let want = f16::from_bits(bits);
            if want.is_nan() {
                assert!(f16_to_f32(bits).is_nan());
            } else {
                assert_eq!(f16_to_f32(bits).to_bits(), want.to_f32().to_bits());
                assert_eq!(f16_bits(want.to_f32()), bits);
            }
        }
    }

    #[test]
    fn rounding_to_f16_and_bf16_agrees_with_the_half_crate() {
        // A stride that visits every exponent and many mantissas, plus all ties between neighbouring f16.
        let strided = (0..0x7f80_0000u32).step_by(9973);
        let ties = (0..0x7bffu16).map(|b| {
            let (a, c) = (f64::from(f16::from_bits(b).to_f32()), f64::from(f16::from_bits(b + 1).to_f32()));
            (((a + c) / 2.0) as f32).to_bits()
        });
        for abs in strided.chain(ties) {
            for bits in [abs, abs | 0x8000_0000] {
                let x = f32::from_bits(bits);
                assert_eq!(f16_bits(x), f16::from_f32(x).to_bits(), "{x:e}");
                assert_eq!(bf16_bits(x), bf16::from_f32(x).to_bits(), "{x:e}");
            }
        }
    }

    #[test]
    fn e8m0_is_a_biased_exponent() {
        assert_eq!((e8m0_to_f32(0), e8m0_to_f32(127), e8m0_to_f32(128)), (2f32.powi(-127), 1.0, 2.0));
        assert!(e8m0_to_f32(255).is_nan());
        assert_eq!((e8m0_floor(0.0), e8m0_floor(1.0), e8m0_floor(-3.9), e8m0_floor(f32::MAX)), (0, 127, 128, 254));
        for byte in 1..=254 {
            assert_eq!(e8m0_floor(e8m0_to_f32(byte)), byte);
        }
    }
}
