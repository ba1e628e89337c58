//! Placements: where rules put tensors, what they refuse, machines.

use super::{Outcome, fixture};
use crate::{DeviceShare, Hardware, Recipe, RecipeError, Resolved, parse_device, tier, tiers};
use ashlar_arch::Leaf;

/// `class proj layer expert → tier device`, one line per tensor that a rule places.
fn placed(text: &str, model: &str) -> Result<Vec<String>, Box<dyn std::error::Error>> {
    let model = fixture(model)?;
    let leaves: Vec<&Leaf> = model.loaded().collect();
    let places = Recipe::parse(text, "place.yaml")?.place(&leaves, None)?;
    let lines = leaves.iter().zip(&places.list).filter(|(_, place)| place.by.is_some());
    Ok(lines
        .map(|(leaf, place)| {
            let device = place.device.map_or("auto".to_owned(), |d| d.to_string());
            format!("{} {} {device}", leaf.name, place.tier.unwrap_or("auto"))
        })
        .collect())
}

fn refused(text: &str) -> Result<RecipeError, Box<dyn std::error::Error>> {
    let model = fixture("demo-moe")?;
    let leaves: Vec<&Leaf> = model.loaded().collect();
    match Recipe::parse(text, "place.yaml") {
        Err(error) => Ok(error),
        Ok(recipe) => Ok(recipe.place(&leaves, None).err().ok_or("accepted")?),
    }
}

#[test]
fn later_rules_win_field_by_field_and_auto_undoes() -> Outcome {
    let text = "version: 1
rules:
  - {match: {class: router}, set: {device: 'cuda:1', tier: vram}}
  - {match: {class: router, layers: 1}, set: {tier: ram}}
  - {match: {class: router, layers: 2}, set: {device: auto, tier: auto}}
  - {match: {class: router, layers: 3}, set: {device: cpu, final: true}}
  - {match: {class: router, layers: 3}, set: {device: cuda}}
  - {match: {class: experts}, set: {format: q8}}
";
    let router = |layer| format!("model.layers.{layer}.mlp.gate.weight");
    assert_eq!(
        placed(text, "demo-moe")?,
        [
            format!("{} vram cuda:1", router(0)),
            format!("{} ram cuda:1", router(1)),
            format!("{} auto auto", router(2)),
            format!("{} vram cpu", router(3)),
        ]
    );
    Ok(())
}

#[test]
fn the_short_form_places_by_dotted_prefix() -> Outcome {
    let text = "optimization_rules:
  - {match: \"model.layers.0-1.self_attn.o_proj\", device: \"cuda:0\", precision: \"int4\"}
  - {match: \"lm_head\", device: \"cpu\"}
";
    let o = |layer| format!("model.layers.{layer}.self_attn.o_proj.weight auto cuda:0");
    let found = placed(text, "tiny/qwen3_moe")?;
    assert_eq!(found[..2], [o(0), o(1)]);
    assert_eq!(found[2..], ["lm_head.weight auto cpu"]);
    Ok(())
}

#[test]
fn rules_that_place_nothing_and_names_that_are_none_are_told_with_line_and_nearest() -> Outcome {
    for (text, parts) in [
        (
            "version: 1\nrules:\n  - {id: x, match: {layers: 90}, set: {device: cpu}}",
            ["place.yaml:3:", "rule `x`", "matches no tensor", "this model has layers 0-3"],
        ),
        (
            "version: 1\nrules:\n  - {id: x, match: {name: \"*\"}, set: {device: \"cudo:0\"}}",
            ["place.yaml:3:", "there is no device `cudo:0`", "did you mean `cuda:0`?", "virtual:0"],
        ),
        (
            "version: 1\nrules:\n  - {id: x, match: {name: \"*\"}, set: {tier: varm}}",
            ["place.yaml:3:", "there is no tier `varm`", "did you mean", "vram"],
        ),
        (
            "version: 1\nhardware: {gpus: 1, ram: 64GiB, vrma: 8GiB}\nrules: []",
            ["place.yaml:2:", "`hardware` has no key `vrma`", "did you mean `vram`?", "`gpus` need `vram`"],
        ),
        (
            "version: 1\nhardware: {ram: 64GiB, ram_bandwidth: 70GB}\nrules: []",
            ["place.yaml:2:", "`ram_bandwidth`", "`70GB` is no bandwidth", "760GB/s"],
        ),
    ] {
        let said = refused(text)?.to_string();
        for part in parts {
            assert!(said.contains(part), "no `{part}` in {said}");
        }
    }
    Ok(())
}

#[test]
fn format_rules_may_match_nothing_where_only_places_count() -> Outcome {
    let text = "version: 1\nrules:\n  - {match: {layers: 90}, set: {format: q8}}\n  - {match: {class: embed}, set: {tier: ram}}";
    assert_eq!(placed(text, "demo-moe")?, ["model.embed_tokens.weight ram auto"]);
    assert!(!Recipe::parse("version: 1\nrules: [{match: {name: a}, set: {format: q8}}]", "")?.is_placement());
    Ok(())
}

#[test]
fn every_file_of_the_folder_is_a_machine_with_a_placement() -> Outcome {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recipes/tiers");
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        names.push(entry?.path().file_stem().and_then(|s| s.to_str()).ok_or("name")?.to_owned());
    }
    names.sort();
    assert_eq!(names, tiers().collect::<Vec<_>>());
    for name in tiers() {
        let text = tier(name).ok_or("tier")?;
        assert!(text.starts_with("# ") && text.lines().all(|l| l.len() <= 125), "{name}");
        let recipe = Recipe::parse(text, name)?;
        let hardware = recipe.hardware().ok_or("hardware")?;
        assert!(hardware.ram >= 32 << 30 && recipe.is_placement(), "{name}");
        assert_eq!(hardware.nvme > 0, name.ends_with("-nvme"), "{name}");
        for model in ["demo-moe", "tiny/llama", "tiny/deepseek_v4"] {
            let model = fixture(model)?;
            recipe.place(&model.loaded().collect::<Vec<_>>(), None)?;
        }
    }
    Ok(())
}

#[test]
fn a_machine_is_read_with_its_sizes_and_bandwidths() -> Outcome {
    let recipe = Recipe::parse(tier("rtx3080-10gb-64gb-nvme").ok_or("tier")?, "")?;
    let expected = Hardware {
        gpus: 1,
        vram: 10 << 30,
        ram: 64 << 30,
        nvme: 1_000_000_000_000,
        unified: false,
        vram_bandwidth: Some(760e9),
        ram_bandwidth: Some(70e9),
        link_bandwidth: Some(25e9),
        nvme_bandwidth: Some(7e9),
    };
    assert_eq!(recipe.hardware(), Some(expected));
    Ok(())
}

#[test]
fn what_a_placement_came_to_is_read_as_it_was_written() -> Outcome {
    let share = |device: &str, budget| DeviceShare {
        device: device.into(),
        budget,
        weights: 7,
        caches: 1 << 40,
        activations: 3,
        slots: if device == "cpu" { 0 } else { 5 },
    };
    let resolved = Resolved {
        context: 4096,
        chunk: 256,
        sequences: 2,
        kv: "f16".into(),
        devices: vec![share("cpu", None), share("virtual:0", Some(10 << 30))],
    };
    let recipe = Recipe::parse(&format!("version: 1\nrules: []\n{}", resolved.text()), "")?;
    assert_eq!(recipe.resolved(), Some(&resolved));
    assert_eq!(parse_device("virtual:0").map(|d| d.to_string()).as_deref(), Some("virtual:0"));
    Ok(())
}
