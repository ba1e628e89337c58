//! `i4`: 4-bit integers with one f16 scale per 32, 64 or 128 values along k, optionally a zero point per group.
//!
//! Planes of an n × k weight (k a multiple of the group g), before panel order:
//!   codes   u4   n × k
//!   scales  f16  n × k/g
//!   zeros   u8   n × k/g    only with `zp`
//! ŵ = (code − zero) · scale, zero = 8 without `zp`. Scales may be negative: then code 0, the level −8, serves a
//! positive extreme.
//!
//! Bound: |w − ŵ| ≤ |scale|/2 for w between the outermost levels. The same values as GGUF Q4_0, AWQ, GPTQ (without
//! act-order) and compressed-tensors pack-quantized. Page: `docs/formats/i4.md`.

use crate::grouped::Grouped;
use crate::x16::Width;
use crate::{Levels, Peak, ScaleType, Variant};

const fn variant(text: &'static str, group: usize, zero_point: bool) -> Variant {
    Variant { text, group, zero_point, scale: Some(ScaleType::F16) }
}

/// The format.
pub const I4: Grouped = Grouped {
    id: "i4",
    variants: &[
        variant("g32", 32, false),
        variant("g64", 64, false),
        variant("g128", 128, false),
        variant("g32,zp", 32, true),
        variant("g64,zp", 64, true),
        variant("g128,zp", 128, true),
    ],
    width: Width::Four,
    levels: Levels::Linear { min: 0, max: 15, zero: 8 },
    peak: Peak::Absolute(7.0),
};

const fn brain(text: &'static str, group: usize, zero_point: bool) -> Variant {
    Variant { text, group, zero_point, scale: Some(ScaleType::BF16) }
}

/// The same with bf16 scales, as other programs' checkpoints have them: kept, never chosen.
pub const I4_BF16: Grouped = Grouped {
    id: "i4_bf16",
    variants: &[
        brain("g32", 32, false),
        brain("g64", 64, false),
        brain("g128", 128, false),
        brain("g32,zp", 32, true),
        brain("g64,zp", 64, true),
        brain("g128,zp", 128, true),
    ],
    ..I4
};
