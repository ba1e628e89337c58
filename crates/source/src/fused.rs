//! Fused experts: tensors that hold all experts of a layer become one weight per expert and projection.
//!
//! As the MXFP4 releases store them (E experts, n outputs, k inputs):
//!
//! ```text
//! P.experts.X_blocks  U8 [E, n, k/32, 16]   32 codes of 4 bits each; byte j: element 2j low, 2j + 1 high
//! P.experts.X_scales  U8 [E, n, k/32]       exponents: value = e2m1 · 2^(scale − 127)
//! P.experts.X_bias       [E, n]             plain
//! ```
//! That is `mxfp4`, bit for bit, once the codes are in our order ([`crate::nibbles`]). Expert e is listed as `P.experts.e.X.weight` `[n, k]` and `P.experts.e.X.bias` `[n]`. The
//! rows of `gate_up_proj` alternate between gate and up: it is listed as `gate_proj` and `up_proj`, of n/2 rows each.

use crate::SourceError;
use crate::header::TensorInfo;
use ashlar_tensor::Dtype;

/// Ends of the names.
pub const BLOCKS: &str = "_blocks";
/// See [`BLOCKS`].
pub const SCALES: &str = "_scales";
/// See [`BLOCKS`].
pub const BIAS: &str = "_bias";

/// Bound of the weights that fused tensors are listed as: a header of a few bytes must not make gigabytes of names.
pub const MAX_LISTED: usize = 1 << 20;

/// Which rows of a fused tensor a projection has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rows {
    /// The first one.
    pub first: u64,
    /// From one to the next.
    pub step: u64,
}

/// Projections of a fused tensor.
pub fn projections(name: &str) -> Vec<(&str, Rows)> {
    match name {
        "gate_up_proj" => vec![("gate_proj", Rows { first: 0, step: 2 }), ("up_proj", Rows { first: 1, step: 2 })],
        other => vec![(other, Rows { first: 0, step: 1 })],
    }
}

/// Path (ending in `.experts`) and name of a fused tensor, given its full name without the ending.
pub fn split(stem: &str) -> Option<(&str, &str)> {
    stem.rsplit_once('.').filter(|(path, _)| path.ends_with(".experts"))
}

/// Sizes of a fused weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Experts.
    pub experts: usize,
    /// Rows of each.
    pub n: usize,
    /// Blocks of 32 columns.
    pub blocks: usize,
}

/// Sizes of codes and scales, which must agree.
pub fn sizes(file: &str, blocks: &TensorInfo, scales: &TensorInfo) -> Result<Sizes, SourceError> {
    let refuse = |info: &TensorInfo, expected: String| SourceError::Fused {
        file: file.to_owned(),
        tensor: info.name.clone(),
        expected,
        got: format!("{} {:?}", info.dtype, info.shape),
    };
    let &[experts, n, groups, 16] = blocks.shape.as_slice() else {
        return Err(refuse(blocks, "U8 [experts, n, k/32, 16]".into()));
    };
    if blocks.dtype != Dtype::U8 || experts == 0 || n == 0 || groups == 0 || experts > MAX_LISTED {
        return Err(refuse(blocks, format!("U8 [experts, n, k/32, 16], none of them 0, at most {MAX_LISTED} experts")));
    }
    if scales.dtype != Dtype::U8 || scales.shape != [experts, n, groups] {
        return Err(refuse(scales, format!("U8 {:?}, as `{}` has it", [experts, n, groups], blocks.name)));
    }
    divisible(file, blocks, n)?;
    Ok(Sizes { experts, n, blocks: groups })
}

/// Experts and rows of a fused bias.
pub fn bias_sizes(file: &str, bias: &TensorInfo) -> Result<[usize; 2], SourceError> {
    match *bias.shape.as_slice() {
        [experts, n] if experts > 0 && n > 0 && experts <= MAX_LISTED => {
            divisible(file, bias, n)?;
            Ok([experts, n])
        }
        _ => Err(SourceError::Fused {
            file: file.to_owned(),
            tensor: bias.name.clone(),
            expected: format!("[experts, n], none of them 0, at most {MAX_LISTED} experts"),
            got: format!("{:?}", bias.shape),
        }),
    }
}

/// Whether the rows can be dealt out to the projections.
fn divisible(file: &str, info: &TensorInfo, n: usize) -> Result<(), SourceError> {
    let stem = [BLOCKS, BIAS].iter().find_map(|end| info.name.strip_suffix(end)).and_then(split);
    let parts = stem.map_or(1, |(_, name)| projections(name).len());
    if n.is_multiple_of(parts) {
        return Ok(());
    }
    Err(SourceError::Fused {
        file: file.to_owned(),
        tensor: info.name.clone(),
        expected: format!("a multiple of {parts} rows per expert"),
        got: format!("{n} rows"),
    })
}

/// Fails when more weights would be listed than any real checkpoint has.
pub fn check_count(file: &str, info: &TensorInfo, listed: usize) -> Result<(), SourceError> {
    if listed <= MAX_LISTED {
        return Ok(());
    }
    Err(SourceError::Fused {
        file: file.to_owned(),
        tensor: info.name.clone(),
        expected: format!("at most {MAX_LISTED} weights in all"),
        got: format!("{listed}"),
    })
}
