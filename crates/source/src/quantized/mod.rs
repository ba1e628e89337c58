//! Weights that other programs have quantized, as planes of our formats: AWQ, GPTQ, compressed-tensors and what is stored
//! like it. Every code, scale and zero point is kept; only places change ([`crate::packed`]).
//!
//! What `quantization_config.quant_method` says decides how the tensors of a module belong together. A module's weight is
//! listed under its usual name, `X.weight`. Refused: what would need its columns in another order, or other widths.

mod awq;
mod compressed;
mod gptq;

use crate::SourceError;
use crate::header::TensorInfo;
use crate::packed::Packed;
use crate::place::{Form, Place};
use crate::shard::{Shard, buffer};
use crate::shards::Found;
use crate::text::clip;
use ashlar_tensor::{Dtype, PlaneKind};
use serde_json::Value;
use std::collections::BTreeMap;

/// Methods whose scales lie beside rows of codes.
const COMPRESSED: &[&str] = &["compressed-tensors", "modelopt", "fbgemm_fp8", "fp8"];

/// How the weights of a checkpoint are quantized.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// Words of codes across outputs.
    Awq(awq::Awq),
    /// Words of codes down inputs.
    Gptq(gptq::Gptq),
    /// Rows of codes beside their scales.
    Compressed,
}

/// What a tensor of the file is.
pub enum Claim {
    /// A tensor as it stands.
    Plain,
    /// Part of a weight that another tensor lists.
    Part,
    /// A weight.
    Weight(Listed),
}

/// A weight made of several tensors.
pub struct Listed {
    pub name: String,
    pub shape: [usize; 2],
    pub format: String,
    pub planes: Vec<(PlaneKind, Place)>,
}

/// The tensors of all shards.
#[derive(Clone, Copy)]
pub struct Tensors<'a> {
    pub found: &'a BTreeMap<String, Found>,
    pub shards: &'a [Shard],
}

impl<'a> Tensors<'a> {
    /// The tensor `stem` + `end`.
    pub fn get(&self, stem: &str, end: &str) -> Option<&'a Found> {
        self.found.get(&format!("{stem}{end}"))
    }

    /// That tensor, which a weight of `found` needs.
    pub fn need(&self, found: &Found, stem: &str, end: &str) -> Result<&'a Found, SourceError> {
        self.get(stem, end).ok_or_else(|| self.refuse(found, format!("expected `{stem}{end}` beside it, got none")))
    }

    /// What is wrong with a tensor.
    pub fn refuse(&self, found: &Found, message: impl Into<String>) -> SourceError {
        let file = self.shards.get(found.shard).map(|s| s.name.clone()).unwrap_or_default();
        SourceError::Quantized { file, tensor: found.info.name.clone(), message: message.into() }
    }

    /// Fails unless the tensor has that dtype and shape.
    pub fn check(&self, found: &Found, dtypes: &[Dtype], shape: &[usize]) -> Result<(), SourceError> {
        let TensorInfo { dtype, shape: got, .. } = &found.info;
        if dtypes.contains(dtype) && got == shape {
            return Ok(());
        }
        let names = dtypes.iter().map(|d| d.name()).collect::<Vec<_>>().join(" or ");
        Err(self.refuse(found, format!("is {dtype} of shape {got:?}, expected {names} of shape {shape:?}")))
    }

    /// The bytes of a small tensor.
    pub fn bytes(&self, found: &Found) -> Result<Vec<u8>, SourceError> {
        let place = found.place();
        let shard = self.shards.get(place.shard).ok_or_else(|| self.refuse(found, "has no file"))?;
        let mut bytes = buffer(&shard.name, "a tensor", place.bytes)?;
        shard
            .read_exact_at(&mut bytes, place.offset)
            .map_err(|e| self.refuse(found, format!("cannot be read: {e}")))?;
        Ok(bytes)
    }
}

/// The scheme of a config; `None` where weights are stored in a way that needs none.
///
/// # Errors
/// [`SourceError::QuantizedConfig`] if the scheme is known and its parameters are not supported.
pub fn scheme(config: &Value) -> Result<Option<Scheme>, SourceError> {
    let Some(section) = config.get("quantization_config").or_else(|| config.get("compression_config")) else {
        return Ok(None);
    };
    match section.get("quant_method").and_then(Value::as_str) {
        Some("awq") => awq::Awq::read(section).map(|s| Some(Scheme::Awq(s))),
        Some("gptq") => gptq::Gptq::read(section).map(|s| Some(Scheme::Gptq(s))),
        Some(method) if COMPRESSED.contains(&method) => Ok(Some(Scheme::Compressed)),
        _ => Ok(None),
    }
}

impl Scheme {
    /// What the tensor is under this scheme.
    ///
    /// # Errors
    /// [`SourceError`] if it is part of a weight whose parts do not fit each other, or cannot be kept.
    pub fn claim(&self, tensors: Tensors<'_>, found: &Found) -> Result<Claim, SourceError> {
        match self {
            Self::Awq(scheme) => scheme.claim(tensors, found),
            Self::Gptq(scheme) => scheme.claim(tensors, found),
            Self::Compressed => compressed::claim(tensors, found),
        }
    }
}

/// A value of the config for which there is a bound.
fn bits_of(section: &Value, key: &str) -> Result<(), SourceError> {
    match section.get(key).and_then(Value::as_u64) {
        Some(4) => Ok(()),
        _ => Err(config_error(section, key, "4; only 4-bit weights of this kind are supported")),
    }
}

/// The group size of the config: `None` for -1, a whole row.
fn group_of(section: &Value, key: &str) -> Result<Option<usize>, SourceError> {
    match section.get(key).and_then(Value::as_i64) {
        Some(-1) => Ok(None),
        Some(group @ 32..=65536) if group % 32 == 0 => Ok(usize::try_from(group).ok()),
        _ => Err(config_error(section, key, "-1 or a multiple of 32")),
    }
}

fn config_error(section: &Value, key: &str, expected: &'static str) -> SourceError {
    let got = section.get(key).map_or_else(|| "missing".to_owned(), |v| clip(&v.to_string(), 60));
    SourceError::QuantizedConfig { key: key.to_owned(), expected, got }
}

/// Our groups for scales that each stand for `group` columns: the largest that divides it, and how many of them.
fn regroup(group: usize) -> Option<(usize, u64)> {
    let ours = [128, 64, 32].into_iter().find(|g| group > 0 && group.is_multiple_of(*g))?;
    Some((ours, group.checked_div(ours)? as u64))
}

/// `i4` with these scales; `None` if no variant has them.
fn i4(group: usize, zeros: bool, scales: Dtype) -> Option<String> {
    let id = match scales {
        Dtype::F16 => "i4",
        Dtype::BF16 => "i4_bf16",
        _ => return None,
    };
    Some(format!("{id}:g{group}{}", if zeros { ",zp" } else { "" }))
}

/// A place of packed values.
fn packed(found: &Found, form: Packed) -> Place {
    Place { bytes: form.bytes(), form: Form::Packed(form), element: 1, ..found.place() }
}

#[cfg(test)]
mod tests;
