//! compressed-tensors, and what is stored like it: rows of codes, with their scales beside them. For a module of n outputs
//! and k inputs:
//!
//! ```text
//! 4 bits    X.weight_packed  I32 [n, k/8]    8 inputs a word, value + 8 of input i from bit 4i on
//!           X.weight_scale       [n, k/g]    F16 or BF16;  g = k where there is one per row
//!           X.weight_zero_point  I32 [n/8, k/g] (asymmetric)  8 outputs a word, zero + 8
//! 8 bits    X.weight         I8 [n, k]       X.weight_scale [n, k/g], [n, 1] or [1]
//! FP8       X.weight         F8_E4M3 [n, k]  X.weight_scale [n/128, k/128], [n, 1] or [1]
//! NVFP4     X.weight_packed  U8 [n, k/2]     X.weight_scale F8_E4M3 [n, k/16], X.weight_global_scale F32 [1] divides it
//!           X.weight         U8 [n, k/2]     as above, X.weight_scale_2 F32 [] multiplies it (ModelOpt)
//! MXFP4     X.weight_packed  U8 [n, k/2]     X.weight_scale U8 [n, k/32]
//! ```
//! What scales activations is left out: it belongs to another way of computing. Source: `compressors/` of
//! neuralmagic/compressed-tensors; `modelopt/torch/quantization` of NVIDIA's TensorRT-Model-Optimizer.

use super::gptq::in_order;
use super::{Claim, Listed, Tensors, i4, packed, regroup};
use crate::SourceError;
use crate::packed::{Layout, Packed};
use crate::place::{Form, Place};
use crate::shards::Found;
use ashlar_tensor::{Dtype, PlaneKind};

/// What may lie beside the codes of a module and is listed with them, or belongs to activations.
const PARTS: &[&str] = &[
    ".weight_scale",
    ".weight_scale_2",
    ".weight_global_scale",
    ".weight_zero_point",
    ".weight_shape",
    ".weight_g_idx",
    ".input_scale",
    ".input_zero_point",
    ".input_global_scale",
    ".output_scale",
];

pub fn claim(tensors: Tensors<'_>, found: &Found) -> Result<Claim, SourceError> {
    let name = found.info.name.as_str();
    if let Some(stem) = name.strip_suffix(".weight_packed") {
        return packed_weight(tensors, found, stem).map(Claim::Weight);
    }
    let scaled = |stem: &str| tensors.get(stem, ".weight_scale").is_some();
    if let Some(stem) = name.strip_suffix(".weight").filter(|stem| scaled(stem)) {
        return match found.info.dtype {
            Dtype::I8 => integers(tensors, found, stem).map(Claim::Weight),
            Dtype::F8E4M3 => floats(tensors, found, stem).map(Claim::Weight),
            Dtype::U8 => nvfp4(tensors, found, stem, ".weight_scale_2").map(Claim::Weight),
            _ => Ok(Claim::Plain),
        };
    }
    let Some(stem) = PARTS.iter().find_map(|end| name.strip_suffix(end)) else { return Ok(Claim::Plain) };
    let codes = tensors.get(stem, ".weight").filter(|w| matches!(w.info.dtype, Dtype::I8 | Dtype::F8E4M3 | Dtype::U8));
    let owner = tensors.get(stem, ".weight_packed").or(codes);
    Ok(if owner.is_some() { Claim::Part } else { Claim::Plain })
}

fn matrix(tensors: Tensors<'_>, found: &Found, expected: &str) -> Result<[usize; 2], SourceError> {
    match *found.info.shape.as_slice() {
        [n, k] if n > 0 && k > 0 => Ok([n, k]),
        ref got => Err(tensors.refuse(found, format!("has shape {got:?}, expected {expected}"))),
    }
}

/// Columns of which a byte or word holds so many, a multiple of 32.
fn columns(tensors: Tensors<'_>, found: &Found, stored: usize, each: usize) -> Result<usize, SourceError> {
    let k = stored.checked_mul(each).filter(|k| k.is_multiple_of(32));
    k.ok_or_else(|| {
        tensors.refuse(
            found,
            format!(
                "has rows of {stored} × {each} values, expected a multiple of 32 of them; use the unquantized release"
            ),
        )
    })
}

/// A weight of which only scales and codes have their places left to say.
fn listed(stem: &str, shape: [usize; 2], format: String, planes: Vec<(PlaneKind, Place)>) -> Listed {
    Listed { name: format!("{stem}.weight"), shape, format, planes }
}

fn pairs(found: &Found) -> Place {
    Place { form: Form::Rows { stride: None, pairs: true }, ..found.place() }
}

/// Scales of `rows` × `groups`, or one per row, or one for all, each for as many of `ours` as it takes.
fn scales(tensors: Tensors<'_>, found: &Found, rows: usize, ours: usize) -> Result<Place, SourceError> {
    let size = found.info.dtype.size() as u64;
    let (groups, shared) = match *found.info.shape.as_slice() {
        [] | [1] | [1, 1] if rows != 1 => (1, true),
        [r] if r == rows => (1, false),
        [r, groups] if r == rows && groups > 0 => (groups, false),
        ref got => {
            let message = format!("has shape {got:?}, expected [{rows}, {ours}], [{rows}, 1] or [1]");
            return Err(tensors.refuse(found, message));
        }
    };
    if !ours.is_multiple_of(groups) {
        let message =
            format!("has {groups} scales a row, expected a divisor of {ours}: groups of a multiple of 32 inputs");
        return Err(tensors.refuse(found, message));
    }
    let (ours, groups) = (ours as u64, groups as u64);
    if ours == groups && !shared {
        return Ok(found.place());
    }
    let repeat = ours.checked_div(groups).unwrap_or(1);
    let layout = Layout::Values { groups, size, repeat, shared };
    Ok(packed(found, Packed { n: rows as u64, row: ours.saturating_mul(size), layout }))
}

fn packed_weight(tensors: Tensors<'_>, found: &Found, stem: &str) -> Result<Listed, SourceError> {
    match found.info.dtype {
        Dtype::I32 => four_bits(tensors, found, stem),
        Dtype::U8 if tensors.get(stem, ".weight_global_scale").is_some() => {
            nvfp4(tensors, found, stem, ".weight_global_scale")
        }
        Dtype::U8 => mxfp4(tensors, found, stem),
        other => Err(tensors.refuse(found, format!("is {other}, expected I32 or U8"))),
    }
}

fn four_bits(tensors: Tensors<'_>, found: &Found, stem: &str) -> Result<Listed, SourceError> {
    let [n, words] = matrix(tensors, found, "[outputs, inputs/8]")?;
    let k = columns(tensors, found, words, 8)?;
    let scale = tensors.need(found, stem, ".weight_scale")?;
    // Two words for eight values of 8 bits would look like a wider matrix: its own shape tells.
    if let Some(shape) = tensors.get(stem, ".weight_shape") {
        let bytes = tensors.bytes(shape)?;
        let said: Vec<i64> = bytes.as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b)).collect();
        // Zeros: a file of which only the header is here.
        if said.iter().any(|s| *s != 0) && said != [i64::try_from(n).unwrap_or(0), i64::try_from(k).unwrap_or(0)] {
            let message = format!("says {said:?}, expected [{n}, {k}]: only 4-bit words of whole groups are supported");
            return Err(tensors.refuse(shape, message));
        }
    }
    let groups = scale.info.shape.get(1).copied().unwrap_or(1).max(1);
    let group = k.checked_div(groups).filter(|_| k.is_multiple_of(groups));
    let (ours, _) = group.and_then(regroup).ok_or_else(|| {
        tensors.refuse(scale, format!("has {groups} scales for {k} inputs, expected groups of a multiple of 32 inputs"))
    })?;
    if let (Some(index), Some(group)) = (tensors.get(stem, ".weight_g_idx"), group) {
        tensors.check(index, &[Dtype::I32], &[k])?;
        in_order(tensors, index, group)?;
    }
    let zeros = tensors.get(stem, ".weight_zero_point");
    let format = i4(ours, zeros.is_some(), scale.info.dtype)
        .ok_or_else(|| tensors.refuse(scale, format!("is {}, expected F16 or BF16", scale.info.dtype)))?;
    let per_row = k.checked_div(ours).unwrap_or(0);
    let mut planes = vec![(PlaneKind::Codes, pairs(found)), (PlaneKind::Scales, scales(tensors, scale, n, per_row)?)];
    if let Some(zeros) = zeros {
        tensors.check(zeros, &[Dtype::I32], &[n.div_ceil(8), groups])?;
        let repeat = per_row.checked_div(groups).unwrap_or(1) as u64;
        let layout = Layout::ZerosDown { groups: groups as u64, repeat };
        planes.push((PlaneKind::Zeros, packed(zeros, Packed { n: n as u64, row: per_row as u64, layout })));
    }
    Ok(listed(stem, [n, k], format, planes))
}

fn integers(tensors: Tensors<'_>, found: &Found, stem: &str) -> Result<Listed, SourceError> {
    let [n, stored] = matrix(tensors, found, "[outputs, inputs]")?;
    let k = columns(tensors, found, stored, 1)?;
    if let Some(zeros) = tensors.get(stem, ".weight_zero_point") {
        return Err(
            tensors.refuse(zeros, "8-bit weights with zero points are not supported; use the unquantized release")
        );
    }
    let scale = tensors.need(found, stem, ".weight_scale")?;
    let format = match scale.info.dtype {
        Dtype::F16 => "q8",
        Dtype::BF16 => "q8_wide:bf16",
        Dtype::F32 => "q8_wide:f32",
        other => return Err(tensors.refuse(scale, format!("is {other}, expected F16, BF16 or F32"))),
    };
    let places = vec![(PlaneKind::Codes, found.place()), (PlaneKind::Scales, scales(tensors, scale, n, k >> 5)?)];
    Ok(listed(stem, [n, k], format.to_owned(), places))
}

/// Side of the blocks of FP8.
const BLOCK: usize = 128;

fn floats(tensors: Tensors<'_>, found: &Found, stem: &str) -> Result<Listed, SourceError> {
    let [n, stored] = matrix(tensors, found, "[outputs, inputs]")?;
    let k = columns(tensors, found, stored, 1)?;
    let scale = tensors.need(found, stem, ".weight_scale")?;
    let kind = match scale.info.dtype {
        Dtype::F32 => "f32",
        Dtype::BF16 => "bf16",
        other => return Err(tensors.refuse(scale, format!("is {other}, expected F32 or BF16"))),
    };
    let (down, across) = (n.div_ceil(BLOCK), k.div_ceil(BLOCK));
    let by_row = matches!(*scale.info.shape.as_slice(), [r] | [r, 1] if r == n && n != 1);
    let blocks = scale.info.shape == [down, across] && !by_row;
    let (format, place) = if by_row {
        (format!("fp8_row:{kind}"), scale.place())
    } else if blocks {
        (format!("fp8:128x128,{kind}"), scale.place())
    } else if matches!(scale.info.shape.as_slice(), [] | [1] | [1, 1]) {
        let size = scale.info.dtype.size() as u64;
        let layout = Layout::Values { groups: 1, size, repeat: across as u64, shared: true };
        let form = Packed { n: down as u64, row: size.saturating_mul(across as u64), layout };
        (format!("fp8:128x128,{kind}"), packed(scale, form))
    } else {
        let got = &scale.info.shape;
        let message = format!("has shape {got:?}, expected [{down}, {across}], [{n}, 1] or [1]");
        return Err(tensors.refuse(scale, message));
    };
    Ok(listed(stem, [n, k], format, vec![(PlaneKind::Codes, found.place()), (PlaneKind::Scales, place)]))
}

fn nvfp4(tensors: Tensors<'_>, found: &Found, stem: &str, global: &str) -> Result<Listed, SourceError> {
    let [n, bytes] = matrix(tensors, found, "[outputs, inputs/2]")?;
    let k = columns(tensors, found, bytes, 2)?;
    let (scale, outer) = (tensors.need(found, stem, ".weight_scale")?, tensors.need(found, stem, global)?);
    tensors.check(scale, &[Dtype::F8E4M3], &[n, k >> 4])?;
    if outer.info.dtype != Dtype::F32 || !matches!(outer.info.shape.as_slice(), [] | [1]) {
        let (dtype, shape) = (outer.info.dtype, &outer.info.shape);
        return Err(tensors.refuse(outer, format!("is {dtype} of shape {shape:?}, expected one F32")));
    }
    let format = if global == ".weight_scale_2" { "nvfp4" } else { "nvfp4_div" };
    let layout = Layout::Values { groups: 1, size: 4, repeat: 1, shared: true };
    let planes = vec![
        (PlaneKind::Codes, pairs(found)),
        (PlaneKind::Scales, scale.place()),
        (PlaneKind::OuterScales, packed(outer, Packed { n: n as u64, row: 4, layout })),
    ];
    Ok(listed(stem, [n, k], format.to_owned(), planes))
}

fn mxfp4(tensors: Tensors<'_>, found: &Found, stem: &str) -> Result<Listed, SourceError> {
    let [n, bytes] = matrix(tensors, found, "[outputs, inputs/2]")?;
    let k = columns(tensors, found, bytes, 2)?;
    let scale = tensors.need(found, stem, ".weight_scale")?;
    tensors.check(scale, &[Dtype::U8, Dtype::F8E8M0], &[n, k >> 5])?;
    Ok(listed(
        stem,
        [n, k],
        "mxfp4".to_owned(),
        vec![(PlaneKind::Codes, pairs(found)), (PlaneKind::Scales, scale.place())],
    ))
}
