//! AWQ, as AutoAWQ writes it (version `gemm`), for a module of n outputs and k inputs in groups of g:
//!
//! ```text
//! X.qweight  I32 [k, n/8]     8 outputs a word; nibble i holds output 0 2 4 6 1 3 5 7 of the eight
//! X.qzeros   I32 [k/g, n/8]   the same
//! X.scales   F16 [k/g, n]     ŵ = (code − zero) · scale
//! ```
//! Source: `awq/modules/linear/gemm.py` of AutoAWQ.

use super::{Claim, Listed, Tensors, bits_of, config_error, group_of, i4, packed, regroup};
use crate::SourceError;
use crate::packed::{Layout, Packed};
use crate::shards::Found;
use ashlar_tensor::{Dtype, PlaneKind};
use serde_json::Value;

/// The parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Awq {
    /// `None`: a whole row.
    group: Option<usize>,
}

/// The bit at which a word holds output 0, 1, … of its eight.
const SHIFTS: [u8; 8] = [0, 16, 4, 20, 8, 24, 12, 28];

impl Awq {
    pub fn read(section: &Value) -> Result<Self, SourceError> {
        let bits = if section.get("bits").is_some() { "bits" } else { "w_bit" };
        bits_of(section, bits)?;
        let version = section.get("version").and_then(Value::as_str);
        if version.is_some_and(|v| !v.eq_ignore_ascii_case("gemm")) {
            return Err(config_error(section, "version", "`gemm`; only that packing is supported"));
        }
        let group = if section.get("group_size").is_some() { "group_size" } else { "q_group_size" };
        Ok(Self { group: group_of(section, group)? })
    }

    pub fn claim(&self, tensors: Tensors<'_>, found: &Found) -> Result<Claim, SourceError> {
        let name = found.info.name.as_str();
        let Some(stem) = name.strip_suffix(".qweight") else {
            let part = [".qzeros", ".scales"].iter().find_map(|end| name.strip_suffix(end));
            let part = part.is_some_and(|stem| tensors.get(stem, ".qweight").is_some());
            return Ok(if part { Claim::Part } else { Claim::Plain });
        };
        let (Dtype::I32, &[k, words]) = (found.info.dtype, found.info.shape.as_slice()) else {
            let got = (found.info.dtype, &found.info.shape);
            return Err(
                tensors.refuse(found, format!("is {} of shape {:?}, expected I32 [inputs, outputs/8]", got.0, got.1))
            );
        };
        let n = words.checked_mul(8).ok_or_else(|| tensors.refuse(found, "has too many outputs"))?;
        let (scales, zeros) = (tensors.need(found, stem, ".scales")?, tensors.need(found, stem, ".qzeros")?);
        let group = self.group.unwrap_or(k);
        let ours = regroup(group).filter(|_| k.is_multiple_of(group) && n > 0);
        let (ours, repeat) = ours.ok_or_else(|| {
            tensors.refuse(
                found,
                format!("has {k} inputs, expected a multiple of the group size, {group}, and that of 32"),
            )
        })?;
        let groups = k.checked_div(group).unwrap_or(0);
        tensors.check(scales, &[Dtype::F16, Dtype::BF16], &[groups, n])?;
        tensors.check(zeros, &[Dtype::I32], &[groups, words])?;
        let format = i4(ours, true, scales.info.dtype);
        let format = format.ok_or_else(|| tensors.refuse(scales, "has a dtype that scales cannot have"))?;
        let (n, k, groups) = (n as u64, k as u64, groups as u64);
        let size = scales.info.dtype.size() as u64;
        let ours = groups.saturating_mul(repeat);
        let plane = |row, layout| Packed { n, row, layout };
        let planes = vec![
            (PlaneKind::Codes, packed(found, plane(k >> 1, Layout::CodesAcross { k, shifts: SHIFTS }))),
            (
                PlaneKind::Scales,
                packed(scales, plane(ours.saturating_mul(size), Layout::ValuesAcross { groups, size, repeat })),
            ),
            (
                PlaneKind::Zeros,
                packed(zeros, plane(ours, Layout::ZerosAcross { groups, shifts: SHIFTS, plus: 0, repeat })),
            ),
        ];
        let shape = [usize::try_from(n).unwrap_or(0), usize::try_from(k).unwrap_or(0)];
        Ok(Claim::Weight(Listed { name: format!("{stem}.weight"), shape, format, planes }))
    }
}
