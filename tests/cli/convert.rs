//! Convert and verify: round trips, refusals, the same bytes whatever the threads, a damaged pack.

use crate::support::{FIXTURES, Test, ashlar, assert_same_files, finish, fixture, listing, root};
use std::path::{Path, PathBuf};

/// Every family of formats in one recipe.
pub const MIXED: &str = "version: 1
defaults: {format: keep}
rules:
  - {id: attn, match: {class: attn}, set: {format: q8}}
  - {id: exp, match: {class: experts}, set: {format: i4, group: 32}}
  - {id: zero, match: {class: experts, layers: 1}, set: {format: i4, group: 64, zero_point: true}}
  - {id: nf, match: {class: experts, layers: 2, proj: [gate, up]}, set: {format: nf4, outliers: {share: 0.01, sigma: 3}}}
  - {id: iq, match: {class: experts, layers: 3, proj: down}, set: {format: iq4nl}}
  - {id: mx, match: {class: experts, layers: 3, experts: [0, 1, 2]}, set: {format: mxfp4}}
  - {id: head, match: {class: lm_head}, set: {format: q8}}
  - {id: safe, match: {class: [router, norm]}, set: {format: keep, final: true}}
";

/// Converts with extra arguments and expects success.
#[track_caller]
pub fn convert(src: &Path, out: &Path, recipe: &Path, extra: &[&str]) {
    finish(ashlar().arg("convert").arg(src).arg("-o").arg(out).arg("--recipe").arg(recipe).args(extra)).expect(0);
}

/// A recipe file with this text.
pub fn recipe(dir: &Path, text: &str) -> std::io::Result<PathBuf> {
    let path = dir.join("recipe.yaml");
    std::fs::write(&path, text)?;
    Ok(path)
}

#[test]
fn every_fixture_converts_and_verifies() -> Test {
    let dir = tempfile::tempdir()?;
    for name in FIXTURES {
        let out = dir.path().join(name.replace('/', "-"));
        convert(&fixture(name), &out, Path::new("8bit"), &[]);
        let report = ashlar!["verify", out, "--against", fixture(name), "--json"].expect(0).json();
        assert_eq!(report["ok"], true, "{name}: {report}");
    }
    Ok(())
}

#[test]
fn convert_tells_size_and_error_per_class_as_json() -> Test {
    let dir = tempfile::tempdir()?;
    let out = dir.path().join("out");
    let summary =
        ashlar!["convert", fixture("demo-moe"), "-o", out, "--recipe", "4bit-experts", "--json"].expect(0).json();
    let classes = summary["classes"].as_array().ok_or("classes")?;
    let experts = classes.iter().find(|c| c["class"] == "experts").ok_or("experts")?;
    let error = experts["relative_error"].as_f64().ok_or("relative_error")?;
    assert!((0.001..0.12).contains(&error), "4 bits: {experts}");
    let on_disk: u64 =
        listing(&out).iter().filter(|(n, _)| n.ends_with(".safetensors")).map(|(_, b)| b.len() as u64).sum();
    assert_eq!(summary["total_bytes"].as_u64(), Some(on_disk));
    Ok(())
}

#[test]
fn plan_promises_exactly_the_bytes_that_convert_writes() -> Test {
    let dir = tempfile::tempdir()?;
    let (recipe, out, src) = (recipe(dir.path(), MIXED)?, dir.path().join("out"), fixture("demo-moe"));
    let plan = ashlar!["plan", src, "--json", "--recipe", recipe].expect(0).json();
    convert(&src, &out, &recipe, &[]);
    let on_disk: u64 =
        listing(&out).iter().filter(|(n, _)| n.ends_with(".safetensors")).map(|(_, b)| b.len() as u64).sum();
    assert_eq!(plan["total_bytes"].as_u64(), Some(on_disk));
    Ok(())
}

#[test]
fn the_bytes_do_not_depend_on_threads_memory_or_instruction_set() -> Test {
    let dir = tempfile::tempdir()?;
    let (recipe, src) = (recipe(dir.path(), MIXED)?, fixture("demo-moe"));
    let one = dir.path().join("one");
    convert(&src, &one, &recipe, &["--threads", "1"]);
    for (name, extra) in [("two", ["--threads", "2"]), ("five", ["--threads", "5"]), ("tight", ["--memory", "16MiB"])] {
        let out = dir.path().join(name);
        convert(&src, &out, &recipe, &extra);
        assert_same_files(&one, &out);
    }
    let portable = dir.path().join("portable");
    let mut command = ashlar();
    command
        .env("ASHLAR_ISA", "portable")
        .arg("convert")
        .arg(&src)
        .arg("-o")
        .arg(&portable)
        .arg("--recipe")
        .arg(&recipe);
    finish(&mut command).expect(0);
    assert_same_files(&one, &portable);
    Ok(())
}

#[test]
fn an_existing_output_needs_force() -> Test {
    let dir = tempfile::tempdir()?;
    let (out, src) = (dir.path().join("out"), fixture("tiny/llama"));
    convert(&src, &out, Path::new("8bit"), &[]);
    let before = listing(&out);
    let refused = ashlar!["convert", src, "-o", out, "--recipe", "4bit"].expect(2);
    refused.says(&["--force"]);
    assert_eq!(listing(&out), before, "the old pack is untouched");
    ashlar!["convert", src, "-o", out, "--recipe", "4bit", "--force"].expect(0);
    assert_ne!(listing(&out), before);
    Ok(())
}

#[test]
fn a_pack_can_be_converted_again() -> Test {
    let dir = tempfile::tempdir()?;
    let (first, second) = (dir.path().join("first"), dir.path().join("second"));
    convert(&fixture("tiny/llama"), &first, Path::new("8bit"), &[]);
    convert(&first, &second, Path::new("4bit"), &[]);
    ashlar!["verify", second].expect(0);
    Ok(())
}

#[test]
fn verify_finds_a_flipped_byte() -> Test {
    let dir = tempfile::tempdir()?;
    let out = dir.path().join("out");
    convert(&fixture("tiny/qwen3_moe"), &out, Path::new("8bit"), &[]);
    let shard = std::fs::read_dir(&out)?
        .filter_map(|e| Some(e.ok()?.path()))
        .find(|p| p.extension().is_some_and(|e| e == "safetensors"))
        .ok_or("a shard")?;
    let whole = std::fs::read(&shard)?;
    for share in [3, 2] {
        let mut bytes = whole.clone();
        let at = bytes.len() - bytes.len() / share;
        bytes[at] ^= 0x10;
        std::fs::write(&shard, &bytes)?;
        let report = ashlar!["verify", out, "--json"].expect(3).json();
        assert_eq!(report["ok"], false);
        assert!(!report["damaged"].as_array().ok_or("damaged")?.is_empty(), "{report}");
    }
    std::fs::write(&shard, &whole)?;
    ashlar!["verify", out].expect(0);
    Ok(())
}

#[test]
fn verify_against_another_model_is_found_wanting() -> Test {
    let dir = tempfile::tempdir()?;
    let out = dir.path().join("out");
    convert(&fixture("tiny/llama"), &out, Path::new("8bit"), &[]);
    let ran = ashlar!["verify", out, "--against", fixture("tiny/qwen2")];
    assert!(ran.code == 3 || ran.code == 1, "{ran:?}");
    Ok(())
}

#[test]
fn a_pack_is_not_mistaken_for_a_checkpoint_and_tells_its_recipe() -> Test {
    let dir = tempfile::tempdir()?;
    let out = dir.path().join("out");
    convert(&fixture("demo-moe"), &out, &root().join("recipes/4bit-experts.yaml"), &[]);
    let facts = ashlar!["inspect", out, "--json"].expect(0).json();
    assert_eq!(facts["kind"], "pack");
    assert!(facts["bpw"].as_f64().is_some_and(|b| b < 8.0), "{facts}");
    assert!(facts["pack"]["recipe"].as_str().is_some_and(|r| r.contains("version: 1")), "{facts}");
    let config: serde_json::Value = serde_json::from_slice(&std::fs::read(out.join("config.json"))?)?;
    assert_eq!(config["quantization_config"]["quant_method"], "ashlar");
    Ok(())
}
