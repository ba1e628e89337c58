//! `nf4`, `iq4nl`, `mxfp4`: a 4-bit code is an index into a table of 16 values. ŵ = table[code] · scale.
//!
//! Planes of an n × k weight (k a multiple of the group g), before panel order:
//!   codes   u4              n × k
//!   scales  f16 or e8m0     n × k/g
//!
//! `nf4`: the quantiles of a normal distribution, QLoRA (Dettmers et al. 2023, appendix E), as bitsandbytes has them.
//! `iq4nl`: the 16 levels of GGUF IQ4_NL. `mxfp4`: E2M1 with a power-of-two scale per 32, OCP Microscaling 1.0.
//! A further table is a constant and a [`Grouped`] here. Pages: `docs/formats/{nf4,iq4nl,mxfp4}.md`.

use crate::grouped::Grouped;
use crate::x16::Width;
use crate::{Levels, Peak, ScaleType, Table, Variant};

const INDEX: [u8; 16] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];

static NF4_TABLE: Table = Table {
    levels: [
        -1.0,
        -0.696_192_8,
        -0.525_073_05,
        -0.394_917_5,
        -0.284_441_38,
        -0.184_773_43,
        -0.091_050_036,
        0.0,
        0.079_580_3,
        0.160_930_2,
        0.246_112_3,
        0.337_915_24,
        0.440_709_83,
        0.562_617,
        0.722_956_84,
        1.0,
    ],
    codes: INDEX,
};

static IQ4NL_TABLE: Table = Table {
    levels: [-127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0, 89.0, 113.0],
    codes: INDEX,
};

/// Codes are sign and magnitude: 0 to 7 are +0 to +6, 8 to 15 are −0 to −6. −0 (code 8) is read, never written.
static E2M1_TABLE: Table = Table {
    levels: [-6.0, -4.0, -3.0, -2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 6.0],
    codes: [15, 14, 13, 12, 11, 10, 9, 0, 1, 2, 3, 4, 5, 6, 7, 7],
};

const fn variant(text: &'static str, group: usize, scale: ScaleType) -> Variant {
    Variant { text, group, zero_point: false, scale: Some(scale) }
}

/// `nf4`.
pub const NF4: Grouped = Grouped {
    id: "nf4",
    variants: &[variant("g64", 64, ScaleType::F16), variant("g32", 32, ScaleType::F16)],
    width: Width::Four,
    levels: Levels::Table(&NF4_TABLE),
    peak: Peak::Absolute(1.0),
};

/// `iq4nl`.
pub const IQ4NL: Grouped = Grouped {
    id: "iq4nl",
    variants: &[variant("", 32, ScaleType::F16)],
    width: Width::Four,
    levels: Levels::Table(&IQ4NL_TABLE),
    peak: Peak::Signed(-127.0),
};

/// `mxfp4`.
pub const MXFP4: Grouped = Grouped {
    id: "mxfp4",
    variants: &[variant("", 32, ScaleType::E8M0)],
    width: Width::Four,
    levels: Levels::Table(&E2M1_TABLE),
    peak: Peak::Exponent(2),
};
