//! What is taken of a source: without next-token layers, or by names alone.

use crate::support::{Test, ashlar, finish, fixture};
use std::path::{Path, PathBuf};

/// A fixture under an architecture that nobody knows.
fn mystery(dir: &Path) -> std::io::Result<PathBuf> {
    let (from, to) = (fixture("tiny/qwen3_moe"), dir.join("mystery"));
    std::fs::create_dir(&to)?;
    std::fs::copy(from.join("model.safetensors"), to.join("model.safetensors"))?;
    let config = std::fs::read_to_string(from.join("config.json"))?;
    std::fs::write(to.join("config.json"), config.replace("Qwen3MoeForCausalLM", "MysteryForCausalLM"))?;
    Ok(to)
}

#[test]
fn next_token_layers_can_be_left_out() -> Test {
    let dir = tempfile::tempdir()?;
    let src = fixture("tiny/deepseek_v3");
    let plan = ashlar!["plan", src, "--recipe", "keep", "--json"].expect(0).json();
    let without = plan["total_bytes_without_mtp"].as_u64().ok_or("total_bytes_without_mtp")?;
    let dropped = ashlar!["plan", src, "--recipe", "keep", "--json", "--drop", "mtp"].expect(0).json();
    assert_eq!(dropped["total_bytes"].as_u64(), Some(without));
    assert!(dropped["total_bytes_without_mtp"].is_null());
    let out = dir.path().join("out");
    ashlar!["convert", src, "-o", out, "--recipe", "keep", "--drop", "mtp"].expect(0).says(&["--drop mtp"]);
    let classes = ashlar!["inspect", out, "--json"].expect(0).json()["classes"].to_string();
    assert!(!classes.contains("\"mtp\""), "{classes}");
    let report = ashlar!["verify", out, "--against", src, "--json"].expect(0).json();
    assert_eq!(report["ok"], true);
    Ok(())
}

#[test]
fn an_unknown_architecture_is_refused_with_what_is_supported_and_a_hint() -> Test {
    let dir = tempfile::tempdir()?;
    let src = mystery(dir.path())?;
    let out = dir.path().join("out");
    ashlar!["convert", src, "-o", out, "--recipe", "8bit"].expect(1).says(&[
        "MysteryForCausalLM",
        "supported are",
        "Qwen3MoeForCausalLM",
        "--generic",
    ]);
    ashlar!["run", src, "-p", "x"].expect(1).says(&["MysteryForCausalLM", "no program that could run it"]);
    assert!(!out.exists());
    Ok(())
}

#[test]
fn an_unknown_architecture_converts_by_names_alone_and_does_not_run() -> Test {
    let dir = tempfile::tempdir()?;
    let (src, out) = (mystery(dir.path())?, dir.path().join("out"));
    let plan = ashlar!["plan", src, "--generic", "--recipe", "4bit-experts", "--json"].expect(0).json();
    let notes = plan["notes"].to_string();
    assert!(
        notes.contains("roles are guessed from names") && notes.contains("experts 72") && notes.contains("router 3"),
        "{notes}"
    );
    // The names of this one suggest what its family knows.
    let known = ashlar!["plan", fixture("tiny/qwen3_moe"), "--recipe", "4bit-experts", "--json"].expect(0).json();
    assert_eq!(plan["classes"], known["classes"]);
    let mut convert = ashlar();
    convert.arg("convert").arg(&src).arg("-o").arg(&out).args(["--recipe", "4bit-experts", "--generic"]);
    finish(&mut convert).expect(0).says(&["guessed"]);
    assert_eq!(ashlar!["verify", out, "--against", src, "--generic", "--json"].expect(0).json()["ok"], true);
    assert!(ashlar!["inspect", out, "--generic"].expect(0).stdout.contains("family unknown"));
    ashlar!["run", out, "-p", "x"].expect(1).says(&["MysteryForCausalLM", "no program that could run it"]);
    Ok(())
}
