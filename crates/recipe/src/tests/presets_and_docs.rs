use super::{Outcome, choose, format};
use crate::{preset, presets};

#[test]
fn presets_do_what_their_names_say() -> Outcome {
    let of = |name: &str| choose(preset(name).ok_or("preset")?, "demo-moe");
    let (expert, q, router, embed) = (
        "model.layers.1.mlp.experts.3.up_proj.weight",
        "model.layers.1.self_attn.q_proj.weight",
        "model.layers.1.mlp.gate.weight",
        "model.embed_tokens.weight",
    );
    for (name, expected) in [
        ("8bit", ["q8", "q8", "bf16", "q8"]),
        ("4bit", ["i4:g32", "q8", "bf16", "q8"]),
        ("4bit-experts", ["i4:g32", "q8", "bf16", "q8"]),
        ("4bit-best", ["k4", "q8", "bf16", "q8"]),
        ("nf4-outliers", ["nf4:g64+o3", "q8", "bf16", "q8"]),
        ("mxfp4", ["mxfp4", "q8", "bf16", "q8"]),
        ("fp8", ["fp8:128x128,f32", "fp8:128x128,f32", "bf16", "bf16"]),
        ("3bit", ["k3", "q8", "bf16", "q8"]),
        ("3bit-experts", ["k3", "q8", "bf16", "q8"]),
        ("2bit-experts", ["k3", "q8", "bf16", "q8"]),
        ("auto", ["k4", "q6", "bf16", "q6"]),
        ("keep", ["bf16"; 4]),
    ] {
        let choices = of(name)?;
        assert_eq!([expert, q, router, embed].map(|t| format(&choices, t)), expected, "{name}");
    }
    Ok(())
}

#[test]
fn every_file_of_the_folder_is_a_preset_and_says_for_whom() -> Outcome {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recipes");
    let mut names: Vec<String> = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_file() {
            names.push(path.file_stem().and_then(|s| s.to_str()).ok_or("name")?.to_owned());
        }
    }
    names.sort();
    assert_eq!(names, presets().collect::<Vec<_>>());
    for text in presets().filter_map(preset) {
        assert!(text.starts_with("# ") && text.lines().all(|l| l.len() <= 125), "{text}");
    }
    Ok(())
}

/// The fenced `yaml` blocks of the documentation: whole recipes plan on the bundled model, `# error` ones are refused.
#[test]
fn the_examples_of_the_documentation_work() -> Outcome {
    let docs = include_str!("../../../../docs/recipes.md");
    let mut examples = 0;
    for block in docs.split("```yaml\n").skip(1) {
        let text = block.split("```").next().unwrap_or_default();
        let text = if text.contains("version:") || text.contains("optimization_rules:") {
            text.to_owned()
        } else {
            format!("version: 1\nrules:\n{text}")
        };
        if text.contains("# error") {
            assert!(choose(&text, "demo-moe").is_err(), "{text}");
        } else {
            choose(&text, "demo-moe").map_err(|e| format!("{e}\n{text}"))?;
        }
        examples += 1;
    }
    assert!(examples >= 8, "{examples}");
    Ok(())
}
