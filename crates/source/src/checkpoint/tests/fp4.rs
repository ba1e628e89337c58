//! Packed 4-bit codes with exponents, and FP8 whose scales are called `.scale`.

use super::*;
use crate::nibbles;
use crate::testing::{expect, file, header, refusal, tensor};

const CONFIG: (&str, &[u8]) =
    ("config.json", br#"{"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}"#);

fn weights(parts: &[String], len: u64) -> Vec<u8> {
    let data: Vec<u8> = (0..len).map(|i| (i * 7 % 251) as u8).collect();
    file(&header(parts), &data)
}

#[test]
fn packed_codes_are_mxfp4_in_our_order() -> Result {
    let parts = [tensor("x.w1.weight", "I8", &[2, 32], 0, 64), tensor("x.w1.scale", "F8_E8M0", &[2, 2], 64, 68)];
    let bytes = weights(&parts, 68);
    let dir = directory(&[CONFIG, ("model.safetensors", &bytes)])?;
    let checkpoint = Checkpoint::open(dir.path())?;
    let [entry] = checkpoint.entries() else { return Err("expected one entry".into()) };
    assert_eq!((entry.name.as_str(), entry.format.as_str()), ("x.w1.weight", "mxfp4"));
    assert_eq!(entry.shape, [2, 64]);
    let mut codes: Vec<u8> = (0..64).map(|i| (i * 7 % 251) as u8).collect();
    nibbles::to_halves(&mut codes);
    assert_eq!(&*checkpoint.map(entry, 0)?, codes);
    let mut part = [0; 20];
    checkpoint.read(entry, 0, 7, &mut part)?;
    assert_eq!(part, codes[7..27]);
    assert_eq!(&*checkpoint.map(entry, 1)?, [64, 65, 66, 67].map(|i: u64| (i * 7 % 251) as u8));
    Ok(())
}

#[test]
fn fp8_with_short_scale_names_is_paired() -> Result {
    let parts = [tensor("a.weight", "F8_E4M3", &[2, 64], 0, 128), tensor("a.scale", "F8_E8M0", &[1, 1], 128, 129)];
    let dir = directory(&[CONFIG, ("model.safetensors", &weights(&parts, 129))])?;
    let checkpoint = Checkpoint::open(dir.path())?;
    let formats: Vec<_> = checkpoint.entries().iter().map(|e| (e.name.as_str(), e.format.as_str())).collect();
    assert_eq!(formats, [("a.weight", "fp8:128x128,e8m0")]);
    Ok(())
}

/// Neither integers without exponents nor tensors that happen to be called scale are taken for a half of a weight.
#[test]
fn what_is_no_pair_stays_alone() -> Result {
    let parts = [
        tensor("a.scale", "F32", &[1], 0, 4),
        tensor("a.weight", "F32", &[1], 4, 8),
        tensor("b.weight", "I8", &[2, 16], 8, 40),
        tensor("c.scale", "F8_E8M0", &[1], 40, 41),
    ];
    let dir = directory(&[CONFIG, ("model.safetensors", &weights(&parts, 41))])?;
    let checkpoint = Checkpoint::open(dir.path())?;
    let formats: Vec<_> = checkpoint.entries().iter().map(|e| e.format.as_str()).collect();
    assert_eq!(formats, ["f32", "f32", "i8", "f8_e8m0"]);
    Ok(())
}

#[test]
fn scales_that_do_not_cover_the_codes_are_refused() -> Result {
    let refused = |shape: &[u64], scales: &[u64]| -> Result<String> {
        let (codes, end) = (shape.iter().product(), scales.iter().product::<u64>());
        let parts =
            [tensor("x.weight", "I8", shape, 0, codes), tensor("x.scale", "F8_E8M0", scales, codes, codes + end)];
        let bytes = weights(&parts, codes + end);
        refusal(directory(&[CONFIG, ("model.safetensors", &bytes)])?.path())
    };
    expect(&refused(&[2, 32], &[2, 1])?, &["`x.scale`", "[2, 1]", "[2, 2]"])?;
    expect(&refused(&[2, 24], &[2, 1])?, &["`x.weight`", "[2, 24]", "multiple of 32"])
}
