//! Which Hessians a statistics file holds.
#![allow(clippy::unwrap_used, reason = "tests")]

use ashlar_calibrate::{Options, calibrate, default_texts};
use ashlar_convert::stats::StatsFile;
use ashlar_tensor::Silent;
use std::path::Path;

/// For every weight of a layer of the fixture that has a Hessian of its own: what follows the layer's number, and columns.
fn hessians(model: &str, layer: usize) -> Vec<(String, usize)> {
    let dir = tempfile::tempdir().unwrap();
    let (path, out) =
        (Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(model), dir.path().join("s"));
    let options = Options { ctx: 32, tokens: Some(64), hessians: true, threads: Some(2), ..Options::default() };
    calibrate(&path, &default_texts()[..1], &out, &options, &Silent).unwrap();
    let file = StatsFile::open(&out).unwrap();
    let mark = format!("layers.{layer}.");
    let own = file.arrays().iter().filter_map(|a| {
        let rest = a.name.strip_prefix("hessian.")?.split_once(&mark)?.1.strip_suffix(".weight")?;
        // k(k + 1)/2 values.
        (!rest.contains(".experts.")).then(|| (rest.to_owned(), (2 * a.shape[0]).isqrt()))
    });
    own.collect()
}

#[test]
fn the_pieces_of_latent_attention_have_one_each() {
    // kv_a shares q_a's; up that of gate; the experts' gate and up that of the router.
    let want = [
        ("mlp.gate", 128),
        ("mlp.shared_experts.down_proj", 64),
        ("mlp.shared_experts.gate_proj", 128),
        ("self_attn.kv_b_proj", 128),
        ("self_attn.o_proj", 128),
        ("self_attn.q_a_proj", 128),
        ("self_attn.q_b_proj", 64),
    ];
    let found = hessians("tiny/deepseek_v3_bf16", 1);
    let found: Vec<_> = found.iter().map(|(name, k)| (name.as_str(), *k)).collect();
    assert_eq!(found, want);
}

#[test]
fn compressed_attention_has_one_per_piece_and_the_mixing_of_lanes_none() {
    let found = hessians("tiny/deepseek_v4_bf16", 1);
    let names: Vec<_> = found.iter().map(|(name, _)| name.as_str()).collect();
    for piece in ["attn.wq_a", "attn.wq_b", "attn.wo_a", "attn.wo_b", "attn.compressor.wkv", "ffn.gate"] {
        assert!(names.contains(&piece), "{piece} is missing: {names:?}");
    }
    let shared = ["attn.wkv", "attn.compressor.wgate"];
    assert!(names.iter().all(|name| !name.starts_with("hc_") && !shared.contains(name)), "{names:?}");
}
