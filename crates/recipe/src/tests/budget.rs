use super::{Outcome, choose, fixture, store};
use crate::{Action, Budget, ExpertUsage, Recipe, Size, emit};
use ashlar_arch::Class;

/// Expert e of layer l saw (e · 7 + l) mod 16 tokens.
struct Known;

impl ExpertUsage for Known {
    fn tokens(&self, layer: usize) -> Option<Vec<f64>> {
        Some((0..16).map(|e| ((e * 7 + layer) % 16) as f64).collect())
    }
}

/// The formats a choice may get.
fn candidates(choices: &crate::Choices, tensor: &str) -> Vec<String> {
    let choice = choices.list.iter().find(|c| c.leaf.name == tensor).expect("a tensor of the model");
    let name = |a: &Action| match a {
        Action::Keep => "keep".to_owned(),
        Action::Encode { spec, .. } => spec.to_string(),
    };
    choice.candidates.iter().map(name).collect()
}

#[test]
fn experts_are_picked_by_how_often_they_are_used_and_emitted_by_number() -> Outcome {
    let model = fixture("demo-moe")?;
    let recipe = "version: 1
rules:
  - {match: {class: experts}, set: {format: k2}}
  - {match: {class: experts, experts: {top: 25%}, layers: 1}, set: {format: k4}}
  - {match: {class: experts, experts: [{bottom: 1}, 3], layers: 0}, set: {format: keep}}
";
    let choices = Recipe::parse(recipe, "r")?.choose(&model, &store(&model, |_| "bf16"), Some(&Known))?;
    let of = |layer, format: &str| -> Vec<usize> {
        let here =
            choices.list.iter().filter(|c| c.leaf.role.layer == Some(layer) && c.leaf.role.class == Class::Experts);
        let mut experts: Vec<usize> =
            here.filter(|c| c.format() == format).filter_map(|c| c.leaf.role.expert).collect();
        experts.dedup();
        experts
    };
    // 7e + 1 mod 16 is 12 to 15 for these.
    assert_eq!(of(1, "k4"), [2, 4, 11, 13]);
    assert_eq!(of(0, "bf16"), [0, 3]);
    assert_eq!(of(2, "k2").len(), 16);
    let again = Recipe::parse(&emit(&choices), "e")?.choose(&model, &store(&model, |_| "bf16"), None)?;
    assert!(choices.list.iter().zip(&again.list).all(|(a, b)| crate::same(a, b)), "{}", emit(&choices));
    Ok(())
}

#[test]
fn the_solver_gets_the_tensors_whose_format_a_named_rule_set() -> Outcome {
    let recipe = "version: 1
budget: {total: 2.5MiB, solve: [mlp]}
rules:
  - {id: all, match: {name: '*'}, set: {format: q8, min_format: k4}}
  - {id: mlp, match: {class: mlp}, set: {format: k3, allow: [k4, k2, q8, k3, i4]}}
  - {id: down, match: {proj: down}, set: {min_format: k3}}
  - {id: edge, match: {class: mlp, layers: 0}, set: {format: q8}}
";
    let choices = choose(recipe, "tiny/llama")?;
    assert_eq!(candidates(&choices, "model.layers.1.mlp.gate_proj.weight"), ["k4", "i4:g32", "q8"]);
    assert_eq!(candidates(&choices, "model.layers.1.mlp.down_proj.weight"), ["k3", "k4", "i4:g32", "q8"]);
    for fixed in ["model.layers.0.mlp.gate_proj.weight", "model.layers.1.self_attn.q_proj.weight", "model.norm.weight"]
    {
        assert!(candidates(&choices, fixed).is_empty(), "{fixed}");
    }
    let parsed = Recipe::parse(recipe, "r")?;
    let solve = Some(vec!["mlp".to_owned()]);
    assert_eq!(parsed.budget(), Some(&Budget { size: Size::Bytes(5 << 19), solve: solve.clone() }));
    let other = parsed.with_size(Size::BitsPerWeight(3.0));
    assert_eq!(other.budget(), Some(&Budget { size: Size::BitsPerWeight(3.0), solve }));
    Ok(())
}

#[test]
fn a_size_alone_solves_every_rule_that_quantizes() -> Outcome {
    let model = fixture("tiny/llama")?;
    let recipe = "version: 1
rules:
  - {match: {class: mlp}, set: {format: k3}}
  - {match: {class: lm_head}, set: {format: f32}}
";
    let sized = Recipe::parse(recipe, "r")?.with_size(Size::BitsPerWeight(4.0));
    let choices = sized.choose(&model, &store(&model, |_| "bf16"), None)?;
    assert_eq!(candidates(&choices, "model.layers.0.mlp.up_proj.weight"), crate::ALLOWED);
    assert!(
        candidates(&choices, "lm_head.weight").is_empty()
            && candidates(&choices, "model.embed_tokens.weight").is_empty()
    );
    Ok(())
}

#[test]
fn what_is_quantized_already_may_stay() -> Outcome {
    let model = fixture("tiny/llama")?;
    let recipe = Recipe::parse("version: 1\nbudget: {bpw: 4}\nrules: [{match: {class: mlp}, set: {format: k3}}]", "r")?;
    let source = |name: &str| if name.contains("up_proj") { "q8" } else { "bf16" };
    let choices = recipe.choose(&model, &store(&model, source), None)?;
    let up = candidates(&choices, "model.layers.0.mlp.up_proj.weight");
    assert_eq!(up.last().map(String::as_str), Some("keep"), "{up:?}");
    assert!(!candidates(&choices, "model.layers.0.mlp.gate_proj.weight").contains(&"keep".to_owned()));
    Ok(())
}

#[test]
fn bounds_without_a_budget_are_told() -> Outcome {
    let choices =
        choose("version: 1\nrules: [{id: m, match: {class: mlp}, set: {format: k3, allow: [k2, k3]}}]", "tiny/llama")?;
    assert!(
        choices.notes.iter().any(|n| n.contains("(rules `m`)") && n.contains("--target-size")),
        "{:?}",
        choices.notes
    );
    assert!(choices.list.iter().all(|c| c.candidates.is_empty()));
    Ok(())
}
