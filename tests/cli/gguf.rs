//! GGUF files as sources: what llama.cpp's converter made of the tiny checkpoints, against those checkpoints and their
//! golden logits.

use crate::cli::convert::convert;
use crate::golden::golden;
use crate::support::{Test, ashlar, finish, fixture, logits, max_error_of_range, root, tensor_i64, write_ids};
use ashlar_runtime::{Tokenizer, side_dir};
use std::path::{Path, PathBuf};

fn file(name: &str) -> PathBuf {
    root().join("tests/fixtures/gguf").join(name)
}

/// Logits for the golden input of `name`, with f32 inputs and exact keys and values.
fn logits_of(model: &Path, name: &str, device: &str) -> Result<Vec<Vec<f32>>, Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    let (input, output) = (dir.path().join("ids.safetensors"), dir.path().join("logits.safetensors"));
    write_ids(&input, &tensor_i64(&golden(name), "input_ids"));
    let mut command = ashlar();
    command.arg("logits").arg(model).args(["--device", device, "--activations", "f32", "--kv", "f32"]);
    finish(command.arg("--input").arg(&input).arg("--output").arg(&output)).expect(0);
    Ok(logits(&output))
}

#[test]
fn logits_of_unquantized_and_mxfp4_files_are_the_golden_ones() -> Test {
    // A folder, a part of a split file, a single file: rows of q and k, experts, biases and sinks in their places.
    for (path, name) in [
        ("llama-split", "tiny/llama"),
        ("llama-split/llama-bf16-00002-of-00002.gguf", "tiny/llama"),
        ("gpt_oss-mxfp4.gguf", "tiny/gpt_oss"),
    ] {
        for (device, tolerance) in [("reference", 2e-4), ("cpu", 2e-3)] {
            let error = max_error_of_range(&logits_of(&file(path), name, device)?, &logits(&golden(name)));
            assert!(error <= tolerance, "{path} on {device}: {error} of the logit range");
        }
    }
    Ok(())
}

#[test]
fn eight_bit_files_have_bit_exact_packs_with_the_same_logits() -> Test {
    let dir = tempfile::tempdir()?;
    for (path, name) in [("llama-q8_0.gguf", "tiny/llama"), ("qwen3_moe-q8_0.gguf", "tiny/qwen3_moe")] {
        let pack = dir.path().join(path);
        convert(&file(path), &pack, Path::new("keep"), &[]);
        let report = ashlar!["verify", pack, "--against", file(path), "--json"].expect(0).json();
        assert_eq!(report["ok"], true);
        assert!(report.to_string().contains("\"q8\""), "{report}");
        let direct = logits_of(&file(path), name, "reference")?;
        assert_eq!(direct, logits_of(&pack, name, "reference")?, "{path}: a pack of the same bits");
        // 8 bits of random weights cost 0.015 of the range; of experts, rounding changes which ones are chosen.
        let error = max_error_of_range(&direct, &logits(&golden(name)));
        assert!(error <= 0.03 || name == "tiny/qwen3_moe", "{path}: {error} of the logit range");
    }
    Ok(())
}

#[test]
fn mxfp4_experts_arrive_in_the_pack_as_they_do_from_safetensors() -> Test {
    let dir = tempfile::tempdir()?;
    let (pack, other) = (dir.path().join("gguf"), dir.path().join("safetensors"));
    convert(&file("gpt_oss-mxfp4.gguf"), &pack, Path::new("keep"), &[]);
    convert(&fixture("tiny/gpt_oss"), &other, Path::new("keep"), &[]);
    // Norms and biases are f32 in the one and bf16 in the other; experts are the same bits.
    let report = ashlar!["verify", pack, "--against", fixture("tiny/gpt_oss"), "--json"].expect(0).json();
    let exact = report["tensors"].as_array().map_or(0, |all| {
        let mxfp4 = all.iter().filter(|t| t["format"] == "mxfp4");
        mxfp4.inspect(|t| assert_eq!(t["exact"], true, "{t}")).count()
    });
    assert!(report["ok"] == true && exact == 4 * 8 * 3, "{exact} experts: {report}");
    Ok(())
}

#[test]
fn the_tokenizer_of_a_file_is_that_of_its_checkpoint() -> Test {
    for (path, name) in [
        ("llama-q8_0.gguf", "tiny/llama"),
        ("qwen3_moe-q8_0.gguf", "tiny/qwen3_moe"),
        ("gpt_oss-mxfp4.gguf", "tiny/gpt_oss"),
    ] {
        let (made, own) = (Tokenizer::open(&side_dir(&file(path))?)?, Tokenizer::open(&fixture(name))?);
        let text = std::fs::read_to_string(fixture(name).join("tokenizer_golden.json"))?;
        let cases = text + "The quick brown fox, don't 1234567 ½ naïve 你好!\n\n  indented\ttabs <|im_end|> <think>";
        for special in [true, false] {
            let ids = own.encode(&cases, special)?;
            assert_eq!(made.encode(&cases, special)?, ids, "{path}");
            assert_eq!(made.decode(&ids, true)?, own.decode(&ids, true)?, "{path}");
        }
    }
    Ok(())
}

#[test]
fn inspect_and_plan_show_what_a_file_is() -> Test {
    let shown = ashlar!["inspect", file("qwen3_moe-q8_0.gguf")].expect(0).stdout;
    for part in ["checkpoint as GGUF, family qwen3_moe", "8 experts in each of 3 layers", "q8", "f32"] {
        assert!(shown.contains(part), "{shown}");
    }
    let json = ashlar!["inspect", file("llama-split"), "--json"].expect(0).json();
    assert_eq!(json["files"], "GGUF in 2 files");
    let checkpoint = ashlar!["inspect", fixture("tiny/llama"), "--json"].expect(0).json();
    assert_eq!((&json["parameters"], &json["max_position"]), (&checkpoint["parameters"], &checkpoint["max_position"]));
    let formats: Vec<_> = json["formats"].as_array().ok_or("formats")?.iter().map(|f| f["format"].as_str()).collect();
    assert_eq!(formats, [Some("bf16"), Some("f32")]);
    let plan = ashlar!["plan", file("qwen3_moe-q8_0.gguf"), "--recipe", "4bit", "--json"].expect(0).json();
    assert!(plan["total_bytes"].as_u64().is_some_and(|b| b > 100_000), "{plan}");
    Ok(())
}

#[test]
fn a_file_runs_evaluates_and_converts_like_its_checkpoint() -> Test {
    let dir = tempfile::tempdir()?;
    let said = |model: &Path| {
        let run = ashlar![
            "run",
            model,
            "-p",
            "the quick",
            "--raw",
            "--max-tokens",
            "12",
            "--temperature",
            "0",
            "--device",
            "reference"
        ];
        run.expect(0).stdout
    };
    assert_eq!(said(&file("llama-split")), said(&fixture("tiny/llama")));
    let text = dir.path().join("text");
    std::fs::write(&text, "the quick brown fox jumps over the lazy dog. ".repeat(40))?;
    let perplexity = |model: &Path| -> Result<f64, Box<dyn std::error::Error>> {
        let eval =
            ashlar!["eval", model, "--text", text, "--ctx", "64", "--json", "--device", "reference"].expect(0).json();
        Ok(eval["perplexity"].as_f64().ok_or("perplexity")?)
    };
    let (ours, theirs) = (perplexity(&file("llama-split"))?, perplexity(&fixture("tiny/llama"))?);
    assert!((ours / theirs - 1.0).abs() < 1e-5, "{ours} and {theirs}");
    // The output may lie beside the file.
    let (pack, beside) = (dir.path().join("pack"), dir.path().join("model.gguf"));
    std::fs::copy(file("qwen3_moe-q8_0.gguf"), &beside)?;
    convert(&beside, &pack, Path::new("4bit"), &[]);
    for name in ["tokenizer.json", "tokenizer_config.json", "generation_config.json", "config.json"] {
        assert!(pack.join(name).is_file(), "{name}");
    }
    assert_eq!(ashlar!["verify", pack, "--json"].expect(0).json()["ok"], true);
    Ok(())
}

#[test]
fn what_cannot_be_read_is_refused_with_what_is_supported() -> Test {
    let dir = tempfile::tempdir()?;
    let good = std::fs::read(file("llama-q8_0.gguf"))?;
    let path = dir.path().join("m.gguf");
    let replaced = |from: &[u8], to: &[u8]| {
        let at = good.windows(from.len()).position(|w| w == from).expect("it is there");
        let mut bytes = good.clone();
        bytes[at..at + to.len()].copy_from_slice(to);
        bytes
    };
    std::fs::write(&path, replaced(b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0mamba"))?;
    ashlar!["inspect", path].expect(1).says(&["m.gguf", "`mamba` is not supported", "gpt-oss"]);
    // The type follows the two dimensions of a tensor's name.
    let name = b"blk.0.ffn_down.weight";
    let at = good.windows(name.len()).position(|w| w == name).ok_or("ffn_down")? + name.len() + 4 + 16;
    let mut odd = good.clone();
    odd[at..at + 4].copy_from_slice(&29u32.to_le_bytes());
    std::fs::write(&path, odd)?;
    ashlar!["convert", path, "-o", dir.path().join("out"), "--recipe", "8bit"].expect(1).says(&[
        "blk.0.ffn_down.weight",
        "IQ1_M",
        "supported are F32, F16, BF16, Q8_0",
    ]);
    std::fs::write(&path, &good[..good.len() - 4096])?;
    ashlar!["run", path, "-p", "x"].expect(1).says(&["m.gguf", "it is truncated"]);
    Ok(())
}
