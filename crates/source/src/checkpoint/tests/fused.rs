//! Fused MXFP4 experts are listed one by one, with the bytes of the rows that belong to each.

use super::*;
use crate::nibbles;
use crate::testing::{expect, file, header, refusal, tensor};

/// Two experts, 4 rows (gate and up alternating), 64 columns, and a bias; every byte tells where it lies.
fn parts(n: u64) -> [String; 3] {
    let (blocks, scales) = (2 * n * 2 * 16, 2 * n * 2);
    [
        tensor("l.experts.gate_up_proj_blocks", "U8", &[2, n, 2, 16], 0, blocks),
        tensor("l.experts.gate_up_proj_scales", "U8", &[2, n, 2], blocks, blocks + scales),
        tensor("l.experts.gate_up_proj_bias", "BF16", &[2, n], blocks + scales, blocks + scales + 4 * n),
    ]
}

fn weights(parts: &[String], len: u64) -> Vec<u8> {
    let data: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();
    file(&header(parts), &data)
}

#[test]
fn experts_and_projections_are_weights_of_their_own() -> Result {
    let bytes = weights(&parts(4), 256 + 16 + 16);
    let dir = directory(&[CONFIG, ("model.safetensors", &bytes)])?;
    let checkpoint = Checkpoint::open(dir.path())?;
    let names: Vec<&str> = checkpoint.entries().iter().map(|e| e.name.as_str()).collect();
    let expected: Vec<String> = ["0.gate_proj.bias", "0.gate_proj.weight", "0.up_proj.bias", "0.up_proj.weight"]
        .into_iter()
        .flat_map(|n| [n.to_owned(), n.replacen('0', "1", 1)])
        .map(|n| format!("l.experts.{n}"))
        .collect();
    let mut sorted: Vec<&str> = expected.iter().map(String::as_str).collect();
    sorted.sort_unstable();
    assert_eq!(names, sorted);
    let up = checkpoint.entry("l.experts.1.up_proj.weight").ok_or("there")?;
    assert_eq!((up.shape.as_slice(), up.format.as_str()), (&[2, 64][..], "mxfp4"));
    // Expert 1 begins at row 4; its up rows are 5 and 7 of 32 bytes, and 5 and 7 of 2 scales.
    let at = |i: usize| (i % 251) as u8;
    let mut codes: Vec<u8> = (160..192).chain(224..256).map(at).collect();
    nibbles::to_halves(&mut codes);
    assert_eq!(&*checkpoint.map(up, 0)?, codes);
    let mut part = [0; 40];
    checkpoint.read(up, 0, 20, &mut part)?;
    assert_eq!(part, codes[20..60]);
    assert_eq!(&*checkpoint.map(up, 1)?, [266, 267, 270, 271].map(at));
    let bias = checkpoint.entry("l.experts.0.gate_proj.bias").ok_or("there")?;
    assert_eq!((bias.shape.as_slice(), bias.format.as_str()), (&[2][..], "bf16"));
    assert_eq!(&*checkpoint.map(bias, 0)?, [272, 273, 276, 277].map(at));
    Ok(())
}

/// Rows beyond the chunk that is read at once.
#[test]
fn long_planes_are_read_in_pieces() -> Result {
    let (n, groups) = (3000u64, 20u64);
    let blocks = n * groups * 16;
    let parts = [
        tensor("x.experts.gate_up_proj_blocks", "U8", &[1, n, groups, 16], 0, blocks),
        tensor("x.experts.gate_up_proj_scales", "U8", &[1, n, groups], blocks, blocks + n * groups),
    ];
    let bytes = weights(&parts, blocks + n * groups);
    let dir = directory(&[CONFIG, ("model.safetensors", &bytes)])?;
    let checkpoint = Checkpoint::open(dir.path())?;
    let up = checkpoint.entry("x.experts.0.up_proj.weight").ok_or("there")?;
    let row = (groups * 16) as usize;
    let rows = (0..1500).flat_map(|r| (2 * r + 1) * row..(2 * r + 2) * row);
    let mut want: Vec<u8> = rows.map(|i| (i % 251) as u8).collect();
    nibbles::to_halves(&mut want);
    assert_eq!(&*checkpoint.map(up, 0)?, want);
    let mut part = vec![0; 400_000];
    checkpoint.read(up, 0, 12_345, &mut part)?;
    assert_eq!(part, want[12_345..412_345]);
    Ok(())
}

#[test]
fn halves_and_shapes_that_disagree_are_refused() -> Result {
    let refused = |parts: &[String], len| -> Result<String> {
        let bytes = weights(parts, len);
        refusal(directory(&[CONFIG, ("model.safetensors", &bytes)])?.path())
    };
    let [blocks, ..] = parts(4);
    expect(&refused(&[blocks], 256)?, &["gate_up_proj_blocks", "`l.experts.gate_up_proj_scales`, got none"])?;
    expect(&refused(&parts(3), 192 + 12 + 12)?, &["gate_up_proj_b", "a multiple of 2 rows"])?;
    let [blocks, ..] = parts(4);
    let scales = tensor("l.experts.gate_up_proj_scales", "U8", &[2, 4, 3], 256, 280);
    expect(&refused(&[blocks, scales], 280)?, &["gate_up_proj_scales", "[2, 4, 3]", "[2, 4, 2]"])?;
    let empty = |end: &str, shape: &[u64]| tensor(&format!("l.experts.down_proj_{end}"), "U8", shape, 0, 0);
    let huge = [empty("blocks", &[1 << 40, 0, 1, 16]), empty("scales", &[1 << 40, 0, 1])];
    expect(&refused(&huge, 0)?, &["none of them 0"])
}
