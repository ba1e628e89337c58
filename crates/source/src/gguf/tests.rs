//! Headers, honest or not, and blocks against the vectors of `crates/formats/golden/gguf`.

use super::header::GgufHeader;
use super::types::TYPES;
use crate::Checkpoint;
use crate::testing::{GgufFile, Result, directory, expect, gguf_text, refusal};
use ashlar_formats::{Planes, Spec};
use ashlar_tensor::{Order, TensorStore};
use std::path::Path;

fn unhex(text: &serde_json::Value) -> Vec<u8> {
    let digit = |d: u8| (d as char).to_digit(16).unwrap_or(0) as u8;
    let digits = text.as_str().unwrap_or_default().as_bytes();
    digits.as_chunks::<2>().0.iter().map(|d| digit(d[0]) << 4 | digit(d[1])).collect()
}

/// The type's number, rows of 256 values in its blocks, and their values.
fn golden(name: &str) -> Result<(u32, Vec<u8>, Vec<f32>)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../formats/golden/gguf/blocks.json");
    let all: serde_json::Value = serde_json::from_slice(&std::fs::read(path)?)?;
    let case = &all[name.to_lowercase()];
    let values = unhex(&case["values"]).as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect::<Vec<_>>();
    let kind = TYPES.iter().find(|t| t.name == name).ok_or(name)?;
    let (blocks, times) = (unhex(&case["blocks"]), if values.len() % 256 == 0 { 1 } else { 4 });
    // Three rows of 64 values make three rows of 256 when all are taken four times.
    Ok((kind.id, blocks.repeat(times), values.repeat(times)))
}

fn values_of(checkpoint: &Checkpoint, name: &str) -> Result<Vec<f32>> {
    let entry = checkpoint.entry(name).ok_or(name)?;
    let (n, k) = match *entry.shape.as_slice() {
        [n, k] => (n, k),
        _ => (1, entry.elements() as usize),
    };
    let spec: Spec = entry.format.parse()?;
    let layout = spec.layout(Order::Rows, n, k)?;
    let sizes: Vec<_> = layout.planes.iter().map(|p| (p.kind, p.bytes)).collect();
    assert_eq!(sizes, entry.planes.iter().map(|p| (p.kind, p.bytes)).collect::<Vec<_>>(), "{name}: {}", entry.format);
    let planes =
        (0..entry.planes.len()).map(|p| checkpoint.map(entry, p)).collect::<std::result::Result<Vec<_>, _>>()?;
    let data: Vec<&[u8]> = planes.iter().map(|p| &**p).collect();
    let mut out = vec![0.0; n * k];
    spec.format()?.decode(&spec, &Planes { order: Order::Rows, n, k, first_row: 0, data: &data }, 0..n, &mut out)?;
    Ok(out)
}

#[test]
fn every_block_type_has_the_values_of_the_reference() -> Result {
    for kind in TYPES.iter().filter(|t| t.values > 1) {
        let (id, blocks, want) = golden(kind.name)?;
        let n = (want.len() / 256) as u64;
        let dir = directory(&[("m.gguf", &GgufFile::dense("qwen3", id, n, &blocks).bytes())])?;
        let checkpoint = Checkpoint::open(dir.path())?;
        assert_eq!(checkpoint.kind(), "GGUF");
        let name = "model.layers.0.mlp.down_proj.weight";
        assert_eq!(
            checkpoint.entry(name).map(|e| (e.format.as_str(), e.bytes())),
            Some((kind.format, blocks.len() as u64))
        );
        let got = values_of(&checkpoint, name)?;
        assert_eq!(got.len(), want.len());
        for (i, (got, want)) in got.iter().zip(&want).enumerate() {
            assert!(got == want, "{} value {i}: {got}, expected {want}", kind.name);
        }
    }
    Ok(())
}

#[test]
fn rows_of_q_and_k_of_the_first_architecture_come_back_in_order() -> Result {
    // A head of 4 rows; row r of the file holds r everywhere.
    let rows: Vec<u8> = (0..4).flat_map(|r| (r as f32).to_le_bytes().repeat(3)).collect();
    for (architecture, want) in [("llama", [0.0, 2.0, 1.0, 3.0]), ("qwen3", [0.0, 1.0, 2.0, 3.0])] {
        let ones = 1f32.to_le_bytes().repeat(3 * 256);
        let mut file = GgufFile::dense(architecture, 0, 3, &ones);
        let q = file.tensors.iter_mut().find(|t| t.0 == "blk.0.attn_q.weight").ok_or("q")?;
        q.3 = rows.clone();
        let dir = directory(&[("m.gguf", &file.bytes())])?;
        let checkpoint = Checkpoint::open(&dir.path().join("m.gguf"))?;
        let got = values_of(&checkpoint, "model.layers.0.self_attn.q_proj.weight")?;
        assert_eq!(got, want.iter().flat_map(|v| [*v; 3]).collect::<Vec<_>>(), "{architecture}");
        let others = values_of(&checkpoint, "model.layers.0.self_attn.v_proj.weight")?;
        assert_eq!(others, [1.0; 12]);
    }
    Ok(())
}

#[test]
fn experts_are_listed_one_by_one() -> Result {
    let ones = |count: usize| 1f32.to_le_bytes().repeat(count);
    let mut file = GgufFile::dense("qwen3moe", 0, 4, &ones(4 * 256)).number("qwen3moe.expert_count", 2);
    file = file.number("qwen3moe.expert_used_count", 1).tensor("blk.0.ffn_gate_inp.weight", &[4, 2], 0, &ones(8));
    let experts: Vec<u8> = (0..2 * 3 * 4).flat_map(|v| (v as f32).to_le_bytes()).collect();
    for name in ["gate", "up"] {
        file = file.tensor(&format!("blk.0.ffn_{name}_exps.weight"), &[4, 3, 2], 0, &experts);
    }
    let file = file.tensor("blk.0.ffn_down_exps.weight", &[3, 4, 2], 0, &experts);
    let dir = directory(&[("m.gguf", &file.bytes())])?;
    let checkpoint = Checkpoint::open(dir.path())?;
    let got = values_of(&checkpoint, "model.layers.0.mlp.experts.1.up_proj.weight")?;
    assert_eq!(got, (12..24).map(|v| v as f32).collect::<Vec<_>>());
    assert_eq!(
        checkpoint.entry("model.layers.0.mlp.experts.0.down_proj.weight").map(|e| e.shape.clone()),
        Some(vec![4, 3])
    );
    assert_eq!(checkpoint.config()["mlp_only_layers"], serde_json::json!([]));
    Ok(())
}

/// A part of a model.
fn part(number: u32, count: u32, tensors: u32) -> GgufFile {
    GgufFile::default().number("split.no", number).number("split.count", count).number("split.tensors.count", tensors)
}

#[test]
fn a_split_model_is_opened_by_any_part_or_its_folder() -> Result {
    let whole = GgufFile::dense("qwen3", 0, 3, &1f32.to_le_bytes().repeat(3 * 256));
    let first = whole.clone().number("split.no", 0).number("split.count", 2).number("split.tensors.count", 12);
    let extra = part(1, 2, 12).tensor("output.weight", &[3, 5], 0, &2f32.to_le_bytes().repeat(15));
    let (a, b) = ("x-00001-of-00002.gguf", "x-00002-of-00002.gguf");
    let dir = directory(&[(a, &first.bytes()), (b, &extra.bytes())])?;
    let one = Checkpoint::open(dir.path())?;
    assert_eq!(one.kind(), "GGUF in 2 files");
    assert_eq!(values_of(&one, "lm_head.weight")?, [2.0; 15]);
    assert_eq!(one.config()["tie_word_embeddings"], false);
    for name in [a, b] {
        assert_eq!(Checkpoint::open(&dir.path().join(name))?.identity(), one.identity());
    }
    for (parts, says) in [
        (vec![(a, first.clone())], "its part `x-00002-of-00002.gguf` is missing"),
        (vec![(a, first.clone()), (b, part(0, 2, 12))], "`split.no` is 0, expected 1"),
        (vec![(a, first.clone()), (b, part(1, 3, 12))], "`split.count` is 3, but there are 2"),
        (vec![(a, first.clone()), (b, part(1, 2, 12))], "`split.tensors.count` is 12, but the files hold 11"),
        (vec![(a, first.clone()), (b, first.clone())], "`split.no` is 0, expected 1"),
        (
            vec![(a, first), (b, part(1, 2, 12).tensor("token_embd.weight", &[3, 5], 0, &[0; 60]))],
            "tensor `token_embd.weight` is also in",
        ),
        (vec![("y.gguf", whole.clone()), ("z.gguf", whole)], "pass the one you mean"),
    ] {
        let files: Vec<_> = parts.iter().map(|(name, file)| (*name, file.bytes())).collect();
        let files: Vec<_> = files.iter().map(|(name, bytes)| (*name, &bytes[..])).collect();
        expect(&refusal(directory(&files)?.path())?, &[says])?;
    }
    Ok(())
}

fn header_error(file: &GgufFile) -> Result<String> {
    match GgufHeader::parse("m.gguf", &file.bytes()) {
        Ok(_) => Err("was accepted".into()),
        Err(e) => Ok(e.to_string()),
    }
}

#[test]
fn lying_headers_are_refused_with_what_is_wrong() -> Result {
    let tensor = |dims: &[u64], kind: u32, bytes: usize| GgufFile::default().tensor("t", dims, kind, &vec![0; bytes]);
    let array = |kind: u32, count: u64| [&kind.to_le_bytes()[..], &count.to_le_bytes()].concat();
    let cases = [
        (GgufFile { counts: Some((1 << 40, 0)), ..GgufFile::default() }, "at most 65536 are read"),
        (GgufFile { counts: Some((0, 1 << 60)), ..GgufFile::default() }, "at most 65536 are read"),
        (GgufFile { counts: Some((3, 0)), ..GgufFile::default() }, "is empty"),
        (GgufFile::default().raw("k", 8, &u64::MAX.to_le_bytes()), "at most 16777216 are allowed"),
        (GgufFile::default().raw("k", 8, &1_000_000u64.to_le_bytes()), "k needs 1000000 bytes"),
        (GgufFile::default().raw("k", 9, &array(0, u64::MAX)), "at most 4194304 in all"),
        (GgufFile::default().raw("k", 9, &array(10, 4_000_000)), "k needs 8 bytes"),
        (GgufFile::default().raw("k", 9, &array(9, 1)), "an array of arrays"),
        (GgufFile::default().raw("k", 77, &[]), "unknown type 77"),
        (GgufFile::default().raw("k", 7, &[2]), "expected 0 or 1"),
        (GgufFile::default().number("k", 1).number("k", 1), "key `k` is listed twice"),
        (GgufFile::default().number("general.alignment", 0), "expected a power of two"),
        (GgufFile::default().number("general.alignment", 48), "expected a power of two"),
        (tensor(&[], 0, 4), "0 dimensions"),
        (tensor(&[1; 5], 0, 4), "5 dimensions"),
        (tensor(&[0, 4], 0, 0), "are zero or overflow"),
        (tensor(&[1 << 40, 1 << 40], 0, 4), "are zero or overflow"),
        (tensor(&[1 << 61], 30, 4), "are zero or overflow"),
        (tensor(&[33], 8, 34), "expected a multiple of 32 for Q8_0"),
        (tensor(&[256], 19, 50), "is stored as IQ1_S, which is not supported; supported are F32"),
        (tensor(&[256], 999, 50), "is stored as number 999"),
        (tensor(&[64], 0, 32), "the file has"),
        (GgufFile { offsets: vec![8], ..tensor(&[4], 0, 64) }, "expected a multiple of 32"),
        (GgufFile { offsets: vec![u64::MAX - 31], ..tensor(&[4], 0, 64) }, "it is truncated"),
        (GgufFile { offsets: vec![0, 0], ..tensor(&[4], 0, 64).tensor("u", &[4], 0, &[0; 16]) }, "overlap"),
        (tensor(&[4], 0, 16).tensor("t", &[4], 0, &[0; 16]), "tensor `t` is listed twice"),
        (GgufFile::default().tensor("a\nb", &[4], 0, &[0; 16]), "holds a control character"),
    ];
    for (file, says) in cases {
        expect(&header_error(&file)?, &["m.gguf", says])?;
    }
    for (bytes, says) in [
        (&b"GG"[..], "the magic number needs 4 bytes"),
        (b"GGML\x03\0\0\0", "does not begin with `GGUF`"),
        (b"GGUF\x01\0\0\0", "version 1"),
        (b"GGUF\0\0\0\x03", "big-endian"),
    ] {
        let error = GgufHeader::parse("m.gguf", bytes).err().ok_or("was accepted")?;
        expect(&error.to_string(), &[says])?;
    }
    Ok(())
}

#[test]
fn every_truncation_of_a_file_is_refused() -> Result {
    let bytes = GgufFile::dense("qwen3", 0, 3, &1f32.to_le_bytes().repeat(3 * 256)).text("x", "y").bytes();
    // The last tensor ends where the file does, but for the padding.
    for len in (0..bytes.len() - 32).step_by(7) {
        assert!(GgufHeader::parse("m", &bytes[..len]).is_err(), "{len} of {}", bytes.len());
    }
    GgufHeader::parse("m", &bytes)?;
    Ok(())
}

#[test]
fn models_that_are_not_supported_are_refused_by_name() -> Result {
    let down = 1f32.to_le_bytes().repeat(3 * 256);
    let dense = |name: &str| GgufFile::dense(name, 0, 3, &down);
    for (file, says) in [
        (dense("mamba"), "`mamba` is not supported; supported are llama, qwen2"),
        (
            dense("qwen3").tensor("blk.0.ssm_a", &[4], 0, &[0; 16]),
            "tensor `blk.0.ssm_a` is not known of architecture `qwen3`",
        ),
        (dense("qwen3").float("qwen3.final_logit_softcapping", 30.0), "softcapping` is not supported"),
        (dense("qwen3").number("qwen3.rope.dimension_count", 2), "rope.dimension_count` is 2 and a head is 4 wide"),
        (dense("qwen3").text("qwen3.rope.scaling.type", "longrope"), "`longrope` is not supported"),
        (
            dense("llama").tensor("rope_freqs.weight", &[2], 0, &[0, 0, 0x80, 0x3f, 0, 0, 0xe0, 0x40]),
            "no known rule of rope",
        ),
        (
            GgufFile::default().text("general.architecture", "qwen3"),
            "`qwen3.embedding_length`: expected a whole number, got nothing",
        ),
        (GgufFile::default().number("general.architecture", 3), "`general.architecture`: expected a name, got 3"),
        (GgufFile::default(), "`general.architecture`: expected a name, got nothing"),
    ] {
        let dir = directory(&[("m.gguf", &file.bytes())])?;
        expect(&refusal(dir.path())?, &["m.gguf", says])?;
    }
    Ok(())
}

#[test]
fn tokenizer_files_are_made_once_and_live_as_long_as_they_are_used() -> Result {
    let list = |texts: &[&str]| {
        let head = [&8u32.to_le_bytes()[..], &(texts.len() as u64).to_le_bytes()].concat();
        texts.iter().fold(head, |all, t| [all, gguf_text(t)].concat())
    };
    let file = GgufFile::dense("qwen3", 0, 3, &1f32.to_le_bytes().repeat(3 * 256))
        .text("general.license", "mit")
        .text("tokenizer.ggml.model", "gpt2")
        .text("tokenizer.ggml.pre", "qwen2")
        .raw("tokenizer.ggml.tokens", 9, &list(&["a", "b", "ab"]))
        .raw("tokenizer.ggml.merges", 9, &list(&["a b"]));
    let dir = directory(&[("m.gguf", &file.bytes()), ("LICENSE", b"text")])?;
    let checkpoint = Checkpoint::open(dir.path())?;
    let side = checkpoint.side_dir();
    let names: Vec<_> = checkpoint.side_files().iter().filter_map(|p| Some(p.file_name()?.to_owned())).collect();
    assert_eq!(names, ["LICENSE", "README.md", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]);
    assert_eq!(checkpoint.notes(), [""; 0]);
    drop(checkpoint);
    assert!(std::fs::read_to_string(side.join("tokenizer.json"))?.contains("\"merges\""));
    let path = side.to_path_buf();
    drop(side);
    assert!(!path.exists());
    // A tokenizer.json beside the file counts more.
    std::fs::write(dir.path().join("tokenizer.json"), "{}")?;
    assert_eq!(&*Checkpoint::open(dir.path())?.side_dir(), dir.path());
    Ok(())
}
