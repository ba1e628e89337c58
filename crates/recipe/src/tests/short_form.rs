use super::{Outcome, choose, format, refused};

const RECIPE: &str = r#"
optimization_rules:
  - match: "model.layers.0-1"
    device: "cuda:0"
    precision: "int4"
  - {match: model.layers.1-2.mlp, device: cpu, precision: int8}
  - {match: "lm_head", precision: bf16}
"#;

#[test]
fn prefixes_have_inclusive_ranges_and_later_rules_win() -> Outcome {
    let choices = choose(RECIPE, "tiny/llama")?;
    let of = |name: &str| -> (String, Option<String>) {
        let device = choices.list.iter().find(|c| c.leaf.name == name).and_then(|c| c.device.clone());
        (format(&choices, name), device)
    };
    let (gpu, cpu) = (Some("cuda:0".to_owned()), Some("cpu".to_owned()));
    assert_eq!(of("model.layers.0.mlp.up_proj.weight"), ("i4:g32".into(), gpu.clone()));
    assert_eq!(of("model.layers.1.mlp.up_proj.weight"), ("q8".into(), cpu.clone()));
    assert_eq!(of("model.layers.2.mlp.up_proj.weight"), ("q8".into(), cpu));
    assert_eq!(of("model.layers.2.self_attn.q_proj.weight"), ("bf16".into(), None));
    assert_eq!(of("model.layers.0.input_layernorm.weight"), ("bf16".into(), gpu));
    assert_eq!(of("lm_head.weight"), ("bf16".into(), None));
    Ok(())
}

#[test]
fn what_no_rule_names_is_told() -> Outcome {
    let notes = choose(RECIPE, "tiny/llama")?.notes;
    let unnamed = notes.last().ok_or("a note")?;
    assert_eq!(
        unnamed,
        "8 tensors are named by no rule (defaults: format: keep, device: auto): model.embed_tokens.weight, \
         model.layers.2.input_layernorm.weight, model.layers.2.self_attn.q_proj.weight, \
         model.layers.2.self_attn.k_proj.weight, …"
    );
    Ok(())
}

#[test]
fn every_precision_word_is_known() -> Outcome {
    for (word, expected) in [
        ("int4", "i4:g32"),
        ("int8", "q8"),
        ("fp8", "fp8:128x128,f32"),
        ("nf4", "nf4:g64"),
        ("fp16", "f16"),
        ("bf16", "bf16"),
    ] {
        let recipe = format!("optimization_rules: [{{match: model.layers.*.mlp, precision: {word}}}]");
        assert_eq!(format(&choose(&recipe, "tiny/llama")?, "model.layers.2.mlp.up_proj.weight"), expected);
    }
    Ok(())
}

#[test]
fn mistakes_are_told_with_their_line() -> Outcome {
    let text = |recipe: &str| refused(recipe, "tiny/llama").map(|e| e.to_string());
    assert_eq!(
        text("optimization_rules:\n  - {match: model, precision: int5}\n")?,
        "recipe.yaml:2: rule `#1`: there is no precision `int5`; there are int4, int8, fp8, nf4, fp16, bf16; did you mean `int4`?"
    );
    assert_eq!(
        text("optimization_rules:\n  - {match: model.layer.0-1, precision: int4}\n")?,
        "recipe.yaml:2: rule `#1` matches no tensor: `match: model.layer.0-1`; `optional: true` allows that"
    );
    assert!(text("optimization_rules: [{match: model.layers.3-1, precision: int4}]")?.contains("runs backwards"));
    assert!(text("optimization_rules: [{match: model, precison: int4}]")?.contains("did you mean `precision`?"));
    assert!(text("rules: []\noptimization_rules: []")?.contains("exclude each other"));
    Ok(())
}
