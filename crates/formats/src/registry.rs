//! Every format, by id. The only place that lists them.

use crate::float::Float;
use crate::fp8::Fp8;
use crate::fp8_row::Fp8Row;
use crate::gguf;
use crate::i4::{I4, I4_BF16};
use crate::integer::Integer;
use crate::k::{FOUR_BITS, THREE_BITS, TWO_BITS, TWO_BITS_HIGH};
use crate::lut4::{IQ4NL, MXFP4, NF4};
use crate::nvfp4::Nvfp4;
use crate::q6::Q6;
use crate::q8::{Q8, Q8_WIDE};
use crate::{Format, FormatError};
use ashlar_tensor::Dtype;

/// All formats, alphabetical by id.
static REGISTRY: &[&dyn Format] = &[
    &Float(Dtype::BF16),
    &Float(Dtype::F16),
    &Float(Dtype::F32),
    &Fp8,
    &I4,
    &IQ4NL,
    &TWO_BITS,
    &TWO_BITS_HIGH,
    &THREE_BITS,
    &FOUR_BITS,
    &MXFP4,
    &NF4,
    &Q6,
    &Q8,
];

/// What models hold besides weights, and blocks of other programs' files: kept, never chosen.
static KEPT: &[&dyn Format] = &[
    &Integer,
    &I4_BF16,
    &Q8_WIDE,
    &Fp8Row,
    &Nvfp4 { divides: false },
    &Nvfp4 { divides: true },
    &gguf::Q4_1,
    &gguf::Q5_0,
    &gguf::Q5_1,
    &gguf::Q2_K,
    &gguf::Q3_K,
    &gguf::Q4_K,
    &gguf::Q5_K,
    &gguf::IQ4_XS,
    &gguf::IQ2_XXS,
    &gguf::IQ2_XS,
    &gguf::IQ3_XXS,
];

/// The format of that id.
///
/// # Errors
/// [`FormatError::Unknown`].
pub fn format(id: &str) -> Result<&'static dyn Format, FormatError> {
    REGISTRY.iter().chain(KEPT).find(|f| f.id() == id).copied().ok_or_else(|| FormatError::Unknown(id.to_owned()))
}

/// The ids of all formats that a recipe can ask for, alphabetical.
pub fn ids() -> impl Iterator<Item = &'static str> {
    REGISTRY.iter().map(|f| f.id())
}

/// The ids of formats that are read and kept, and that no recipe can ask for.
pub fn kept_ids() -> impl Iterator<Item = &'static str> {
    KEPT.iter().map(|f| f.id())
}
