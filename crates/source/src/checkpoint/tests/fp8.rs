//! FP8 weights and their scales become one entry, or an error.

use super::*;
use crate::testing::{expect, file, header, refusal, tensor};

const FP8: &[u8] = br#"{"quantization_config": {"quant_method": "fp8", "weight_block_size": [2, 4]}}"#;

/// A 3 × 6 weight and scales of `shape` and `dtype`.
fn pair(dtype: &str, shape: &[u64], scale_bytes: u64) -> Vec<u8> {
    let end = 18 + scale_bytes;
    let parts = [tensor("x.weight", "F8_E4M3", &[3, 6], 0, 18), tensor("x.weight_scale_inv", dtype, shape, 18, end)];
    let data: Vec<u8> = (0..end).map(|i| i as u8).collect();
    file(&header(&parts), &data)
}

fn refused(config: &[u8], weights: &[u8]) -> Result<String> {
    refusal(directory(&[("config.json", config), ("model.safetensors", weights)])?.path())
}

#[test]
fn weight_and_scales_are_one_entry_with_two_planes() -> Result {
    for (dtype, text, size) in [("F32", "f32", 4), ("BF16", "bf16", 2), ("F8_E8M0", "e8m0", 1)] {
        let dir = directory(&[("config.json", FP8), ("model.safetensors", &pair(dtype, &[2, 2], 4 * size))])?;
        let checkpoint = Checkpoint::open(dir.path())?;
        let [entry] = checkpoint.entries() else { return Err("expected one entry".into()) };
        assert_eq!((entry.format.clone(), entry.order), (format!("fp8:2x4,{text}"), Order::Rows));
        assert_eq!((entry.name.as_str(), entry.shape.as_slice()), ("x.weight", &[3, 6][..]));
        let planes: Vec<_> = entry.planes.iter().map(|p| (p.kind, p.bytes)).collect();
        assert_eq!(planes, [(PlaneKind::Codes, 18), (PlaneKind::Scales, 4 * size)]);
        let mut scale = [0];
        checkpoint.read(entry, 1, 0, &mut scale)?;
        assert_eq!((scale, checkpoint.map(entry, 1)?[0]), ([18], 18));
    }
    Ok(())
}

#[test]
fn scales_may_lie_in_another_shard_than_the_weight() -> Result {
    let index = index(&[("x.weight", "1.safetensors"), ("x.weight_scale_inv", "2.safetensors")]);
    let codes = file(&header(&[tensor("x.weight", "F8_E4M3", &[3, 6], 0, 18)]), &[7; 18]);
    let scales = file(&header(&[tensor("x.weight_scale_inv", "F32", &[2, 2], 0, 16)]), &[9; 16]);
    let dir = directory(&[
        ("config.json", FP8),
        ("model.safetensors.index.json", index.as_bytes()),
        ("1.safetensors", &codes),
        ("2.safetensors", &scales),
    ])?;
    let checkpoint = Checkpoint::open(dir.path())?;
    let entry = &checkpoint.entries()[0];
    assert_eq!((entry.file.as_str(), &*checkpoint.map(entry, 1)?), ("1.safetensors", &[9; 16][..]));
    Ok(())
}

#[test]
fn fp8_without_scales_is_refused() -> Result {
    let weights = file(&header(&[tensor("x.weight", "F8_E4M3", &[3, 6], 0, 18)]), &[0; 18]);
    expect(&refused(FP8, &weights)?, &["model.safetensors: tensor `x.weight`", "`x.weight_scale_inv`, got none"])
}

#[test]
fn scales_without_an_fp8_weight_are_refused() -> Result {
    let scales = tensor("x.weight_scale_inv", "F32", &[1], 0, 4);
    let alone = file(&header(std::slice::from_ref(&scales)), &[0; 4]);
    expect(&refused(FP8, &alone)?, &["tensor `x.weight_scale_inv`", "F8_E4M3 weight `x.weight`, got none"])?;
    let beside = file(&header(&[scales, tensor("x.weight", "BF16", &[1], 4, 6)]), &[0; 6]);
    expect(&refused(FP8, &beside)?, &["tensor `x.weight_scale_inv`", "got one of dtype BF16"])
}

#[test]
fn scales_that_do_not_cover_the_weight_are_refused() -> Result {
    for shape in [&[1, 2][..], &[2, 3], &[4], &[2, 2, 1], &[2, 1]] {
        let bytes = 4 * shape.iter().product::<u64>();
        let message = refused(FP8, &pair("F32", shape, bytes))?;
        expect(
            &message,
            &["`x.weight_scale_inv`", &format!("has shape {shape:?}, expected [2, 2]"), "blocks of [2, 4]"],
        )?;
    }
    Ok(())
}

#[test]
fn scales_of_another_dtype_are_refused() -> Result {
    let message = refused(FP8, &pair("F16", &[2, 2], 8))?;
    expect(&message, &["`x.weight_scale_inv`", "as F16, expected F32, BF16 or F8_E8M0"])
}

#[test]
fn fp8_that_is_no_matrix_is_refused() -> Result {
    let parts = [tensor("x", "F8_E4M3", &[4], 0, 4), tensor("x_scale_inv", "F32", &[1], 4, 8)];
    expect(&refused(FP8, &file(&header(&parts), &[0; 8]))?, &["tensor `x`", "[4], expected a matrix"])
}

#[test]
fn a_missing_or_absurd_block_size_is_refused() -> Result {
    let weights = pair("F32", &[2, 2], 16);
    expect(&refused(b"{}", &weights)?, &["weight_block_size is missing", "`x.weight`"])?;
    for size in ["[0, 4]", "[2]", "[2, 4, 1]", "128", "[-1, 4]", "[1.5, 4]", "[99999999999, 4]", "\"128\"", "null"] {
        let config = format!("{{\"quantization_config\": {{\"weight_block_size\": {size}}}}}");
        expect(&refused(config.as_bytes(), &weights)?, &["config.json", "two positive integers"])?;
    }
    Ok(())
}
