//! Several files become one: every array is a sum over tokens, so arrays of the same name add up.

use super::write::{Data, Head, stream};
use super::{Shares, StatsError, StatsFile, StatsOrigin};
use ashlar_source::TensorInfo;
use ashlar_tensor::Dtype;
use std::collections::BTreeMap;
use std::path::Path;

/// What the sum of statistics was gathered from.
///
/// # Errors
/// [`StatsError::OtherModel`] unless all are of the same model.
pub fn merge_origins(inputs: &[StatsFile]) -> Result<StatsOrigin, StatsError> {
    let mut all = inputs.first().map(|f| f.origin().clone()).unwrap_or_default();
    for file in inputs.get(1..).unwrap_or_default() {
        file.check_model(&all.source)?;
        let origin = file.origin();
        all.tokens = all.tokens.saturating_add(origin.tokens);
        all.ctx = all.ctx.max(origin.ctx);
        let new: Vec<_> = origin.texts.iter().filter(|t| !all.texts.contains(t)).cloned().collect();
        all.texts.extend(new);
    }
    Ok(all)
}

/// Writes the sum of `inputs`, array by array: memory holds one array. Sums run in f64, in the order of the inputs.
///
/// # Errors
/// [`StatsError`] if shapes differ, or reading or writing fails.
pub fn merge(inputs: &[StatsFile], origin: &StatsOrigin, out: &Path) -> Result<(), StatsError> {
    let mut arrays: BTreeMap<&str, (&TensorInfo, Vec<&StatsFile>)> = BTreeMap::new();
    for file in inputs {
        for info in file.arrays() {
            let (first, files) = arrays.entry(&info.name).or_insert((info, Vec::new()));
            if (first.dtype, &first.shape) != (info.dtype, &info.shape) {
                let what = format!("has the shape {:?}, another file has {:?}", info.shape, first.shape);
                return Err(file.array(&info.name, what));
            }
            files.push(file);
        }
    }
    let head = |(name, (i, _)): (&&str, &(&TensorInfo, _))| Head {
        name: (*name).to_owned(),
        dtype: i.dtype,
        shape: i.shape.clone(),
    };
    let heads = arrays.iter().map(head).collect();
    let shares = shares(inputs)?;
    stream(out, origin, &shares, heads, |name| {
        let Some((info, files)) = arrays.get(name) else { return Ok(Vec::new()) };
        let parts = files.iter().filter_map(|f| f.find(name).map(|i| f.bytes(i)));
        let parts = parts.collect::<Result<Vec<_>, _>>()?;
        Ok(match parts.as_slice() {
            [only] => only.clone(),
            _ => sum(info.dtype, &parts).to_bytes(),
        })
    })
}

/// Who shares whose Hessian in the sum. The inputs must agree.
fn shares(inputs: &[StatsFile]) -> Result<Shares, StatsError> {
    let mut all = Shares::new();
    for file in inputs {
        for (tensor, with) in file.shares() {
            let before = all.entry(tensor.clone()).or_insert_with(|| with.clone());
            if before != with {
                let what = format!("is shared with `{with}`, in another file with `{before}`");
                return Err(file.array(&format!("hessian.{tensor}"), what));
            }
        }
    }
    Ok(all)
}

fn sum(dtype: Dtype, parts: &[Vec<u8>]) -> Data {
    if dtype == Dtype::I64 {
        let mut sums: Vec<i64> = Vec::new();
        for part in parts {
            let part = part.as_chunks().0;
            sums.resize(part.len(), 0);
            sums.iter_mut().zip(part).for_each(|(s, b)| *s = s.saturating_add(i64::from_le_bytes(*b)));
        }
        return Data::I64(sums);
    }
    let mut sums: Vec<f64> = Vec::new();
    for part in parts {
        let values: Vec<f64> = match dtype {
            Dtype::F32 => part.as_chunks().0.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect(),
            _ => part.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b)).collect(),
        };
        sums.resize(values.len(), 0.0);
        sums.iter_mut().zip(values).for_each(|(s, v)| *s += v);
    }
    match dtype {
        Dtype::F32 => Data::F32(sums.into_iter().map(|s| s as f32).collect()),
        _ => Data::F64(sums),
    }
}
