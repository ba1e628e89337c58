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

/// Architectures that keep all experts of a layer in one tensor `[experts, rows, columns]`.
#[test]
fn experts_in_one_tensor_are_quantized_like_others() -> Test {
    let dir = tempfile::tempdir()?;
    let (src, out) = (dir.path().join("fused"), dir.path().join("out"));
    std::fs::create_dir(&src)?;
    let values = |n: usize| -> Vec<u8> {
        (0..n).flat_map(|i| (((i as f32 * 0.37).sin().to_bits() >> 16) as u16).to_le_bytes()).collect()
    };
    let shapes: [(&str, &[usize]); 4] = [
        ("model.embed_tokens.weight", &[96, 64]),
        ("model.layers.0.mlp.experts.gate_up_proj", &[3, 80, 64]),
        ("model.layers.0.mlp.experts.down_proj", &[3, 64, 64]),
        ("model.layers.0.input_layernorm.weight", &[64]),
    ];
    let data: Vec<Vec<u8>> = shapes.iter().map(|(_, s)| values(s.iter().product())).collect();
    let views = shapes.iter().zip(&data).map(|((name, shape), data)| {
        safetensors::tensor::TensorView::new(safetensors::Dtype::BF16, shape.to_vec(), data).map(|view| (*name, view))
    });
    let views: Vec<_> = views.collect::<Result<_, _>>()?;
    std::fs::write(src.join("model.safetensors"), safetensors::serialize(views, None)?)?;
    std::fs::write(src.join("config.json"), r#"{"architectures": ["MysteryForCausalLM"]}"#)?;
    ashlar!["convert", src, "-o", out, "--recipe", "4bit-experts", "--generic"].expect(0);
    let inspected = ashlar!["inspect", out, "--generic", "--json"].expect(0).json();
    let classes = inspected["classes"].as_array().ok_or("classes")?;
    let experts = classes.iter().find(|c| c["class"] == "experts").ok_or("experts")?;
    let bpw = experts["bpw"].as_f64().ok_or("bpw")?;
    assert!((4.0..5.0).contains(&bpw), "{experts}");
    assert_eq!(ashlar!["verify", out, "--against", src, "--generic", "--json"].expect(0).json()["ok"], true);
    Ok(())
}
