//! `q8`: 8-bit symmetric integers with one f16 scale per 32 values along k. 8.5 bits per weight.
//!
//! Planes of an n × k weight (k a multiple of 32), before panel order:
//!   codes   i8   n × k
//!   scales  f16  n × k/32   ŵ = code · scale
//!
//! Bound: |w − ŵ| ≤ |scale|/2 for |w| ≤ 127 · |scale|; outside, w clips. −128 is never written, and read as what it is.
//! The same values as GGUF Q8_0. Page: `docs/formats/q8.md`.

use crate::grouped::Grouped;
use crate::x16::Width;
use crate::{Levels, Peak, ScaleType, Variant};

/// The format.
pub const Q8: Grouped = Grouped {
    id: "q8",
    variants: &[Variant { text: "", group: 32, zero_point: false, scale: Some(ScaleType::F16) }],
    width: Width::Eight,
    levels: Levels::Linear { min: -127, max: 127, zero: 0 },
    peak: Peak::Absolute(127.0),
};

/// The same with bf16 or f32 scales, as other programs' checkpoints have them: kept, never chosen.
pub const Q8_WIDE: Grouped = Grouped {
    id: "q8_wide",
    variants: &[
        Variant { text: "bf16", group: 32, zero_point: false, scale: Some(ScaleType::BF16) },
        Variant { text: "f32", group: 32, zero_point: false, scale: Some(ScaleType::F32) },
    ],
    ..Q8
};
