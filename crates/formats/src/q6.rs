//! `q6`: 6-bit integers with an 8-bit scale per 16 values and an f16 scale per 256. 6.5625 bits per weight.
//!
//! ŵ = (code − 32) · (outer · inner). The last 256 columns of a row may be fewer. The same values as GGUF Q6_K. Page:
//! `docs/formats/q6.md`.

use crate::two_level::{Nested, variant};
use crate::x16::Width;
use crate::{Inner, Levels, ScaleType, TwoLevel};

static GRIDS: [Levels; 1] = [Levels::Linear { min: 0, max: 63, zero: 32 }];

/// The format.
pub static Q6: Nested = Nested {
    id: "q6",
    variants: &[variant(16, ScaleType::F16)],
    grid: TwoLevel {
        low: Width::Four,
        high: Some(Width::Two),
        group: 16,
        span: Some(256),
        outer: ScaleType::F16,
        inner: Inner::Signed,
        grids: &GRIDS,
    },
};
