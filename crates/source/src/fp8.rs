//! FP8 weights and their block scales: two tensors of the file, one weight.
//!
//! As DeepSeek-V3 stores them: `x.weight` F8_E4M3 `[n, k]` and `x.weight_scale_inv` `[⌈n/b0⌉, ⌈k/b1⌉]` in F32, BF16 or
//! F8_E8M0, where `[b0, b1]` is `quantization_config.weight_block_size`; ŵ = code · scale (despite the name, the scale
//! multiplies).

use crate::SourceError;
use crate::header::TensorInfo;
use crate::text::clip;
use ashlar_tensor::Dtype;
use serde_json::Value;

/// What the name of a scale tensor ends with.
pub const SUFFIX: &str = "_scale_inv";

/// What it ends with in DeepSeek-V4's releases, in place of `weight`.
const SCALE: &str = ".scale";
const WEIGHT: &str = ".weight";

/// Names that the scales of a weight may have.
pub fn scale_names(weight: &str) -> Vec<String> {
    let other = weight.strip_suffix(WEIGHT).map(|stem| format!("{stem}{SCALE}"));
    std::iter::once(format!("{weight}{SUFFIX}")).chain(other).collect()
}

/// The weight that a tensor of scales belongs to, by its name; the second form is one only if such a weight exists.
pub fn weight_of(scale: &str) -> Option<(String, bool)> {
    match scale.strip_suffix(SUFFIX) {
        Some(weight) => Some((weight.to_owned(), true)),
        None => scale.strip_suffix(SCALE).map(|stem| (format!("{stem}{WEIGHT}"), false)),
    }
}

/// Whether `scale` (in `file`) holds one exponent per 32 inputs of `codes`, two 4-bit codes a byte; gives the weight's
/// inputs. As DeepSeek-V4 stores experts: I8 `[n, k/2]`, F8_E8M0 `[n, k/32]`; that is `mxfp4`.
pub fn packed_inputs(file: &str, codes: &TensorInfo, scale: &TensorInfo) -> Result<usize, SourceError> {
    let expected = match codes.shape.as_slice() {
        &[n, bytes] if bytes > 0 && bytes.is_multiple_of(16) => [n, bytes / 16],
        _ => {
            let (file, tensor, got) = (file.to_owned(), codes.name.clone(), codes.shape.clone());
            return Err(SourceError::Fp4Shape { file, tensor, got });
        }
    };
    if scale.shape != expected {
        return Err(SourceError::ScaleShape {
            file: file.to_owned(),
            tensor: scale.name.clone(),
            got: scale.shape.clone(),
            expected,
            weight: format!("{:?} bytes of two codes, 32 codes to a scale", codes.shape),
        });
    }
    let [_, groups] = expected;
    groups.checked_mul(32).ok_or_else(|| SourceError::Fp4Shape {
        file: file.to_owned(),
        tensor: codes.name.clone(),
        got: codes.shape.clone(),
    })
}

/// Largest block side that is believed: beyond it the block is the whole weight.
const MAX_BLOCK: u64 = 1 << 31;

/// `[b0, b1]` of the config; `tensor` is an FP8 weight that needs it.
pub fn block_size(config: &Value, tensor: &str) -> Result<[usize; 2], SourceError> {
    let value = config.get("quantization_config").and_then(|q| q.get("weight_block_size"));
    let side = |v: &Value| v.as_u64().filter(|b| (1..=MAX_BLOCK).contains(b)).and_then(|b| usize::try_from(b).ok());
    if let Some([b0, b1]) = value.and_then(Value::as_array).map(Vec::as_slice)
        && let (Some(b0), Some(b1)) = (side(b0), side(b1))
    {
        return Ok([b0, b1]);
    }
    let got = value.map_or_else(|| "missing".to_owned(), |v| clip(&v.to_string(), 40));
    Err(SourceError::BlockSize { tensor: tensor.to_owned(), got })
}

/// Checks that `scale` (in `file`) covers `weight` and gives the format's text, such as `fp8:128x128,f32`.
pub fn format(
    weight_file: &str,
    weight: &TensorInfo,
    file: &str,
    scale: &TensorInfo,
    block: [usize; 2],
) -> Result<String, SourceError> {
    let [b0, b1] = block;
    let &[n, k] = weight.shape.as_slice() else {
        let (file, tensor, got) = (weight_file.to_owned(), weight.name.clone(), weight.shape.clone());
        return Err(SourceError::Fp8Shape { file, tensor, got });
    };
    let scale_type = match scale.dtype {
        Dtype::F32 => "f32",
        Dtype::BF16 => "bf16",
        Dtype::F8E8M0 => "e8m0",
        other => {
            let (file, tensor) = (file.to_owned(), scale.name.clone());
            return Err(SourceError::ScaleDtype { file, tensor, got: other.name() });
        }
    };
    let expected = [n.div_ceil(b0), k.div_ceil(b1)];
    if scale.shape != expected {
        return Err(SourceError::ScaleShape {
            file: file.to_owned(),
            tensor: scale.name.clone(),
            got: scale.shape.clone(),
            expected,
            weight: format!("{:?} in blocks of {block:?}", weight.shape),
        });
    }
    Ok(format!("fp8:{b0}x{b1},{scale_type}"))
}
