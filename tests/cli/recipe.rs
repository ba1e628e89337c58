//! Recipes that cannot be carried out: exit 2, the line, the nearest name, and nothing written.

use crate::support::{FIXTURES, Test, fixture};

/// `plan` and `convert` both refuse `yaml` for the fixture, saying `parts`, and leave nothing behind.
#[track_caller]
fn refused(name: &str, yaml: &str, parts: &[&str]) -> Test {
    let dir = tempfile::tempdir()?;
    let recipe = dir.path().join("recipe.yaml");
    std::fs::write(&recipe, yaml)?;
    let before = std::fs::read_dir(dir.path())?.count();
    let (src, out) = (fixture(name), dir.path().join("out"));
    ashlar!["plan", src, "--recipe", recipe].expect(2).says(parts);
    ashlar!["convert", src, "-o", out, "--recipe", recipe].expect(2).says(parts);
    assert_eq!(std::fs::read_dir(dir.path())?.count(), before, "something was written");
    Ok(())
}

#[test]
fn a_typo_in_a_class_names_line_and_nearest_class() -> Test {
    let yaml = "version: 1\nrules:\n  - {id: exp, match: {class: experst}, set: {format: q8}}\n";
    refused("demo-moe", yaml, &["recipe.yaml:3:", "experst", "`experts`"])
}

#[test]
fn a_rule_that_matches_nothing_names_its_line() -> Test {
    let yaml = "version: 1\nrules:\n  - {id: a, match: {class: attn}, set: {format: q8}}\n\n  - {id: far, match: {layers: \"40-50\"}, set: {format: q8}}\n";
    refused("tiny/llama", yaml, &["recipe.yaml:5:", "`far`", "matches no"])
}

#[test]
fn experts_of_a_dense_model_match_nothing() -> Test {
    let yaml = "version: 1\nrules:\n  - {id: exp, match: {class: experts}, set: {format: q8}}\n";
    refused("tiny/llama", yaml, &["recipe.yaml:3:", "`exp`", "matches no"])
}

#[test]
fn a_format_that_does_not_fit_names_line_tensor_and_remedy() -> Test {
    let yaml = "version: 1\nrules:\n  - {id: exp, match: {class: experts}, set: {format: i4, group: 128}}\n";
    refused("tiny/qwen3_moe", yaml, &["recipe.yaml:3:", "down_proj", "i4", "fallback"])
}

#[test]
fn an_unknown_key_names_line_and_nearest_key() -> Test {
    let yaml = "version: 1\nrules:\n  - id: attn\n    match: {class: attn}\n    set: {formt: q8}\n";
    refused("tiny/llama", yaml, &["recipe.yaml:5:", "formt", "`format`"])
}

#[test]
fn an_unknown_format_names_the_nearest() -> Test {
    let yaml = "version: 1\nrules:\n  - {id: attn, match: {class: attn}, set: {format: nf44}}\n";
    refused("tiny/llama", yaml, &["recipe.yaml:3:", "nf44", "`nf4`"])
}

#[test]
fn broken_yaml_names_the_line() -> Test {
    refused("tiny/llama", "version: 1\nrules: [\n", &["recipe.yaml:"])
}

#[test]
fn an_unknown_preset_names_the_nearest() -> Test {
    ashlar!["plan", fixture("tiny/llama"), "--recipe", "8bits"].expect(2).says(&["`8bit`"]);
    Ok(())
}

/// The presets that `plan --list-recipes` names.
fn presets() -> Vec<String> {
    let list = ashlar!["plan", "--list-recipes"].expect(0).stdout;
    // A name stands two columns in; the lines that go on with its description further.
    let names = list.lines().filter(|l| !l.starts_with("   ")).filter_map(|l| l.split_whitespace().next());
    names.map(str::to_owned).collect()
}

#[test]
fn every_preset_is_planned_against_every_fixture() -> Test {
    let presets = presets();
    assert!(presets.len() >= 3, "{presets:?}");
    // Presets made for one release name tensors that other models lack.
    let releases = [("deepseek-v3-", "deepseek_v3"), ("v4-", "deepseek_v4"), ("gpt-oss-", "gpt_oss")];
    for preset in &presets {
        let suits = |name: &str| releases.iter().all(|(own, of)| !preset.starts_with(own) || name.contains(of));
        for name in FIXTURES.iter().filter(|n| suits(n)) {
            let plan = ashlar!["plan", fixture(name), "--recipe", preset, "--json"].expect(0).json();
            let (total, bpw) = (plan["total_bytes"].as_u64(), plan["bpw"].as_f64());
            assert!(
                total.is_some_and(|b| b > 0) && bpw.is_some_and(|b| (3.0..=32.5).contains(&b)),
                "{preset} on {name}: {plan}"
            );
        }
    }
    Ok(())
}

#[test]
fn an_emitted_recipe_plans_to_the_same_bytes() -> Test {
    let dir = tempfile::tempdir()?;
    for (name, preset) in [("demo-moe", "4bit-experts"), ("tiny/llama", "8bit")] {
        let emitted = dir.path().join("resolved.yaml");
        let src = fixture(name);
        let first = ashlar!["plan", src, "--json", "--recipe", preset, "--emit", emitted].expect(0).json();
        let second = ashlar!["plan", src, "--json", "--recipe", emitted].expect(0).json();
        assert_eq!((&first["total_bytes"], &first["classes"]), (&second["total_bytes"], &second["classes"]), "{name}");
    }
    Ok(())
}

#[test]
fn explain_tells_the_rules_that_spoke_and_the_decision() -> Test {
    let src = fixture("demo-moe");
    let tensor = "model.layers.0.mlp.experts.3.down_proj.weight";
    let explain = |name: &str| ashlar!["plan", src, "--recipe", "4bit-experts", "--explain", name];
    let text = explain(tensor).expect(0).stdout;
    for part in [tensor, "class experts", "proj down", "layer 0", "expert 3"] {
        assert!(text.contains(part), "no `{part}` in:\n{text}");
    }
    explain("model.layers.0.mlp.experts.3.down_proj.weigth").expect(2).says(&["did you mean", tensor]);
    Ok(())
}
