use super::{FIXTURES, Outcome, choose, fixture, store, suits};
use crate::{Action, Choices, Recipe, emit, preset, presets, same};
use ashlar_arch::{Class, ModelSpec, model_spec};
use proptest::prelude::*;
use serde_json::json;
use std::time::Instant;

fn assert_same(a: &Choices, b: &Choices, emitted: &str) {
    assert_eq!(a.list.len(), b.list.len());
    for (a, b) in a.list.iter().zip(&b.list) {
        assert!(same(a, b), "{a:?}\n{b:?}\n{emitted}");
    }
}

#[test]
fn an_emitted_preset_makes_the_same_choices() -> Outcome {
    for name in FIXTURES {
        for preset in presets().filter(|p| suits(p, name)).filter_map(preset) {
            let choices = choose(preset, name)?;
            let emitted = emit(&choices);
            assert_same(&choices, &choose(&emitted, name).map_err(|e| format!("{e}\n{emitted}"))?, &emitted);
        }
    }
    Ok(())
}

#[test]
fn quality_gates_travel_with_the_resolved_recipe() -> Outcome {
    let gates = "version: 1\nvalidate: {kld_mean: 0.0000125, kld_p999: 2, top1: 87%}\nrules: []\n";
    let emitted = emit(&choose(gates, "demo-moe")?);
    assert!(emitted.ends_with("\nvalidate: {kld_mean: 0.0000125, kld_p999: 2, top1: 0.87}\n"), "{emitted}");
    assert_eq!(Recipe::parse(&emitted, "")?.validate(), Recipe::parse(gates, "")?.validate());
    let some = emit(&choose("version: 1\nvalidate: {top1: 0.9}\nrules: []\n", "demo-moe")?);
    assert!(some.ends_with("\nvalidate: {top1: 0.9}\n"), "{some}");
    Ok(())
}

#[test]
fn layers_and_experts_are_emitted_as_ranges() -> Outcome {
    let recipe = "version: 1
rules:
  - {match: {class: experts}, set: {format: i4}}
  - {match: {class: experts, proj: down, layers: '0,-1'}, set: {format: q8}}
  - {match: {class: experts, proj: up, layers: 1-2, experts: '0-3,8'}, set: {format: nf4}}
";
    assert_eq!(
        emit(&choose(recipe, "demo-moe")?),
        "version: 1
defaults: {format: keep, method: auto}
rules:
  - {id: r1, match: {class: experts}, set: {format: i4, group: 32, method: auto}}
  - {id: r2, match: {class: experts, proj: up, layers: \"1-2\", experts: \"0-3,8\"}, set: {format: nf4, group: 64, method: auto}}
  - {id: r3, match: {class: experts, proj: down, layers: \"0,3\"}, set: {format: q8, group: 32, method: auto}}
"
    );
    Ok(())
}

#[test]
fn placements_are_emitted_where_any_tensor_has_one() -> Outcome {
    let recipe = "version: 1\nrules:\n  - {match: {class: norm}, set: {tier: vram}}\n  - {match: {class: mlp}, set: {device: cpu}}\n";
    assert_eq!(
        emit(&choose(recipe, "tiny/llama")?),
        "version: 1
defaults: {format: keep, method: auto}
rules:
  - {id: r1, match: {class: mlp}, set: {format: keep, tier: auto, device: cpu}}
  - {id: r2, match: {class: norm}, set: {format: keep, tier: vram, device: auto}}
"
    );
    Ok(())
}

#[test]
fn keeping_everything_is_emitted_as_no_rules() -> Outcome {
    let emitted = emit(&choose("version: 1", "tiny/llama")?);
    assert_eq!(emitted, "version: 1\ndefaults: {format: keep, method: auto}\nrules: []\n");
    Ok(())
}

/// 58 layers of 256 experts and 3 dense ones, as large as the largest published models: 45 000 tensors.
fn huge() -> Result<ModelSpec, ashlar_arch::ArchError> {
    model_spec(&json!({
        "architectures": ["Qwen3MoeForCausalLM"], "hidden_size": 7168, "intermediate_size": 18432,
        "moe_intermediate_size": 2048, "num_hidden_layers": 61, "num_attention_heads": 128, "num_key_value_heads": 8,
        "head_dim": 128, "vocab_size": 129_280, "rms_norm_eps": 1e-6, "num_experts": 256, "num_experts_per_tok": 8,
        "max_position_embeddings": 4096, "mlp_only_layers": [0, 1, 2]
    }))
}

/// The times are printed, not asserted: they depend on the machine.
#[test]
fn choices_for_45000_tensors_survive_emission() -> Outcome {
    let model = huge()?;
    let store = store(&model, |_| "bf16");
    let recipe = "version: 1
rules:
  - {match: {name: '*'}, set: {format: q8}}
  - {match: {class: experts}, set: {format: i4}}
  - {match: {class: experts, proj: down, layers: '0-9,-5..-1'}, set: {format: nf4, outliers: {share: 1%, sigma: 3}}}
  - {match: {experts: '0-31,100-140', layers: 20-40}, set: {format: iq4nl}}
  - {match: {name: 'model.layers.*.mlp.experts.7.*'}, set: {format: q8}}
  - {match: {regex: 'model\\.layers\\.\\d+\\.mlp\\.experts\\.(1|2|3)\\..*_proj\\.weight'}, set: {format: mxfp4}}
";
    let start = Instant::now();
    let choices = Recipe::parse(recipe, "r")?.choose(&model, &store, None)?;
    let choosing = start.elapsed();
    assert_eq!(choices.list.len(), model.tensors().count());
    assert!(choices.list.len() > 40_000);
    let mut experts = choices.list.iter().filter(|c| c.leaf.role.class == Class::Experts);
    assert!(experts.all(|c| matches!(c.action, Action::Encode { .. })), "an expert was kept");
    let emitted = emit(&choices);
    let emitting = start.elapsed() - choosing;
    assert_same(&choices, &Recipe::parse(&emitted, "e")?.choose(&model, &store, None)?, &emitted);
    println!("choose {choosing:?}, emit {emitting:?} ({} rules)", emitted.lines().count() - 3);
    Ok(())
}

/// Every expert of every layer apart: the emitted recipe stays within what `Recipe::parse` reads.
#[test]
fn scattered_experts_of_a_huge_model_survive_emission() -> Outcome {
    let model = huge()?;
    let store = store(&model, |_| "bf16");
    let mut recipe = "version: 1\nrules:\n  - {match: {class: experts}, set: {format: i4}}\n".to_owned();
    for layer in 3..61 {
        let experts: Vec<_> = (0..256).filter(|e| (e * 7 + layer * 3) % 5 == 0).map(|e| e.to_string()).collect();
        let experts = experts.join(",");
        recipe.push_str(&format!("  - {{match: {{layers: {layer}, experts: \"{experts}\"}}, set: {{format: q8}}}}\n"));
    }
    let choices = Recipe::parse(&recipe, "r")?.choose(&model, &store, None)?;
    let emitted = emit(&choices);
    assert_same(&choices, &Recipe::parse(&emitted, "e")?.choose(&model, &store, None)?, "");
    Ok(())
}

fn any_match() -> impl Strategy<Value = String> {
    let class = prop_oneof![Just("attn"), Just("mlp"), Just("experts"), Just("embed"), Just("[norm, lm_head]")];
    let proj = prop_oneof![Just("q"), Just("[gate, down]"), Just("up"), Just("o")];
    let span = prop_oneof![Just("0"), Just("0-1"), Just("-1"), Just("1..-1"), Just("0,2,5")];
    let name = prop_oneof![
        Just("'*'"),
        Just("'*.weight'"),
        Just("'*layernorm*'"),
        Just("['*bias', '*.1.*']"),
        Just("lm_head.weight")
    ];
    prop_oneof![
        class.clone().prop_map(|c| format!("class: {c}")),
        (class, span.clone()).prop_map(|(c, s)| format!("class: {c}, layers: '{s}'")),
        (proj.clone(), span.clone()).prop_map(|(p, s)| format!("proj: {p}, layers: '{s}'")),
        (proj, span.clone()).prop_map(|(p, s)| format!("proj: {p}, experts: '{s}'")),
        (span.clone(), span).prop_map(|(l, e)| format!("layers: '{l}', experts: '{e}'")),
        name.prop_map(|n| format!("name: {n}")),
    ]
}

fn any_set() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("format: keep"),
        Just("format: q8"),
        Just("format: i4, group: 64"),
        Just("format: i4, zero_point: true, method: rtn"),
        Just("format: nf4, group: 32"),
        Just("outliers: none"),
        Just("format: nf4, outliers: {share: 1%, sigma: 3}"),
        Just("format: iq4nl, outliers: {share: 0.0123, sigma: 2.5}, device: 'cuda:1'"),
        Just("format: f32"),
        Just("format: f16, tier: ram"),
        Just("format: q8, final: true"),
        Just("device: cpu"),
        Just("tier: vram"),
        Just("method: search"),
    ]
    .prop_map(str::to_owned)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_emitted_recipe_makes_the_same_choices(
        fixture_index in 0..FIXTURES.len(),
        rules in proptest::collection::vec((any_match(), any_set()), 0..8),
    ) {
        let name = FIXTURES[fixture_index];
        let mut recipe = "version: 1\nfallback: [iq4nl, q8, keep]\nrules:\n".to_owned();
        for (m, s) in &rules {
            recipe.push_str(&format!("  - {{match: {{{m}}}, set: {{{s}}}, optional: true}}\n"));
        }
        // A class of vectors cannot be quantized by name; such recipes are refused, which is not the point here.
        if let Ok(choices) = choose(&recipe, name) {
            let emitted = emit(&choices);
            let again = choose(&emitted, name);
            prop_assert!(again.is_ok(), "{recipe}\n{emitted}\n{:?}", again.err());
            let again = again.expect("checked");
            for (a, b) in choices.list.iter().zip(&again.list) {
                prop_assert!(same(a, b), "{recipe}\n{emitted}\n{a:?}\n{b:?}");
            }
            prop_assert_eq!(emit(&again), emitted);
        }
    }

    #[test]
    fn any_text_is_accepted_or_refused(text in "(version|rules|match|set|class|: |\\n|  |- |\\{|\\}|\\[|\\]|[a-z0-9*&!%'\",.-]){0,60}") {
        let _ = Recipe::parse(&text, "r");
    }

    #[test]
    fn any_value_of_any_key_is_accepted_or_refused(
        key in "class|proj|layers|experts|name|regex|format|group|outliers|method|device|tier",
        value in "[a-z0-9*.,(){}\\[\\]%+-]{0,12}",
    ) {
        let quoted = format!("'{value}'");
        for value in [&value, &quoted] {
            let recipe = format!("version: 1\nrules:\n  - {{match: {{{key}: {value}}}, set: {{{key}: {value}}}}}\n");
            if let Ok(recipe) = Recipe::parse(&recipe, "r") {
                let model = fixture("tiny/qwen3").expect("fixture");
                let _ = recipe.choose(&model, &store(&model, |_| "bf16"), None);
            }
        }
    }
}
