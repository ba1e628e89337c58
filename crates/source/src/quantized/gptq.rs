//! GPTQ, as AutoGPTQ and GPTQModel write it, for a module of n outputs and k inputs in groups of g:
//!
//! ```text
//! X.qweight  I32 [k/8, n]     8 inputs a word, input i from bit 4i on
//! X.qzeros   I32 [k/g, n/8]   8 outputs a word; version 1 stores zero − 1, version 2 (`checkpoint_format: gptq_v2`) zero
//! X.scales   F16 [k/g, n]     ŵ = (code − zero) · scale
//! X.g_idx    I32 [k]          the group of each input
//! ```
//! Without act-order the group of input i is i/g. With it (`desc_act`) groups are scattered over the columns, which no
//! format here can say: such weights are refused, unless their g_idx is that of no order.
//! Source: `gptqmodel/nn_modules/qlinear` of GPTQModel.

use super::{Claim, Listed, Tensors, bits_of, config_error, group_of, i4, packed, regroup};
use crate::SourceError;
use crate::packed::{IN_ORDER, Layout, Packed};
use crate::shards::Found;
use ashlar_tensor::{Dtype, PlaneKind};
use serde_json::Value;

/// The parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gptq {
    /// `None`: a whole row.
    group: Option<usize>,
    /// What is added to stored zero points.
    plus: u8,
    /// Whether groups may be scattered.
    act_order: bool,
}

impl Gptq {
    pub fn read(section: &Value) -> Result<Self, SourceError> {
        bits_of(section, "bits")?;
        let plus = match section.get("checkpoint_format").and_then(Value::as_str) {
            None | Some("gptq") => 1,
            Some("gptq_v2") => 0,
            Some(_) => return Err(config_error(section, "checkpoint_format", "`gptq` or `gptq_v2`")),
        };
        let act_order = section.get("desc_act").and_then(Value::as_bool).unwrap_or(true);
        Ok(Self { group: group_of(section, "group_size")?, plus, act_order })
    }

    pub fn claim(&self, tensors: Tensors<'_>, found: &Found) -> Result<Claim, SourceError> {
        let name = found.info.name.as_str();
        let Some(stem) = name.strip_suffix(".qweight") else {
            let part = [".qzeros", ".scales", ".g_idx"].iter().find_map(|end| name.strip_suffix(end));
            let part = part.is_some_and(|stem| tensors.get(stem, ".qweight").is_some());
            return Ok(if part { Claim::Part } else { Claim::Plain });
        };
        let (Dtype::I32, &[words, n]) = (found.info.dtype, found.info.shape.as_slice()) else {
            let got = (found.info.dtype, &found.info.shape);
            return Err(
                tensors.refuse(found, format!("is {} of shape {:?}, expected I32 [inputs/8, outputs]", got.0, got.1))
            );
        };
        let k = words.checked_mul(8).ok_or_else(|| tensors.refuse(found, "has too many inputs"))?;
        let (scales, zeros) = (tensors.need(found, stem, ".scales")?, tensors.need(found, stem, ".qzeros")?);
        let group = self.group.unwrap_or(k);
        let ours = regroup(group).filter(|_| k.is_multiple_of(group) && n > 0 && n.is_multiple_of(8));
        let (ours, repeat) = ours.ok_or_else(|| {
            let message = format!(
                "has {k} inputs and {n} outputs, expected inputs that are a multiple of the group size, {group}, that of 32, \
                 and outputs that are one of 8"
            );
            tensors.refuse(found, message)
        })?;
        let groups = k.checked_div(group).unwrap_or(0);
        tensors.check(scales, &[Dtype::F16, Dtype::BF16], &[groups, n])?;
        tensors.check(zeros, &[Dtype::I32], &[groups, n.checked_div(8).unwrap_or(0)])?;
        if self.act_order
            && let Some(index) = tensors.get(stem, ".g_idx")
        {
            tensors.check(index, &[Dtype::I32], &[k])?;
            in_order(tensors, index, group)?;
        }
        let format = i4(ours, true, scales.info.dtype);
        let format = format.ok_or_else(|| tensors.refuse(scales, "has a dtype that scales cannot have"))?;
        let shape = [n, k];
        let (n, k, groups) = (n as u64, k as u64, groups as u64);
        let size = scales.info.dtype.size() as u64;
        let ours = groups.saturating_mul(repeat);
        let plane = |row, layout| Packed { n, row, layout };
        let zero = Layout::ZerosAcross { groups, shifts: IN_ORDER, plus: self.plus, repeat };
        let planes = vec![
            (PlaneKind::Codes, packed(found, plane(k >> 1, Layout::CodesDown { k }))),
            (
                PlaneKind::Scales,
                packed(scales, plane(ours.saturating_mul(size), Layout::ValuesAcross { groups, size, repeat })),
            ),
            (PlaneKind::Zeros, packed(zeros, plane(ours, zero))),
        ];
        Ok(Claim::Weight(Listed { name: format!("{stem}.weight"), shape, format, planes }))
    }
}

/// Fails unless the group of input i is i / group.
pub fn in_order(tensors: Tensors<'_>, index: &Found, group: usize) -> Result<(), SourceError> {
    let bytes = tensors.bytes(index)?;
    let groups = bytes.as_chunks::<4>().0.iter().map(|b| i64::from(i32::from_le_bytes(*b)));
    let wrong = groups.enumerate().find(|(i, g)| i.checked_div(group).and_then(|w| i64::try_from(w).ok()) != Some(*g));
    let Some((input, got)) = wrong else { return Ok(()) };
    let message = format!(
        "puts input {input} into group {got}: the groups of this weight are scattered over its columns (act-order, \
         `desc_act`), which no format here can keep; take a release without act-order, or the unquantized one"
    );
    Err(tensors.refuse(index, message))
}
