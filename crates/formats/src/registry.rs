//! Every format, by id. The only place that lists them.

use crate::float::Float;
use crate::fp8::Fp8;
use crate::i4::I4;
use crate::integer::Integer;
use crate::k::{FOUR_BITS, THREE_BITS, TWO_BITS, TWO_BITS_HIGH};
use crate::lut4::{IQ4NL, MXFP4, NF4};
use crate::q6::Q6;
use crate::q8::Q8;
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

/// What models hold besides weights: kept, never chosen.
static KEPT: &[&dyn Format] = &[&Integer];

/// The format of that id.
///
/// # Errors
/// [`FormatError::Unknown`].
pub fn format(id: &str) -> Result<&'static dyn Format, FormatError> {
    REGISTRY.iter().chain(KEPT).find(|f| f.id() == id).copied().ok_or_else(|| FormatError::Unknown(id.to_owned()))
}

/// The ids of all formats, alphabetical.
pub fn ids() -> impl Iterator<Item = &'static str> {
    REGISTRY.iter().map(|f| f.id())
}
