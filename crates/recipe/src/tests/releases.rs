//! The catalogue against figures that others have published or counted, and the presets made for its models.

use super::Outcome;
use crate::{Action, Recipe, catalogue, catalogued, preset};
use ashlar_arch::Class;
use ashlar_tensor::TensorStore;

/// Bytes of a release's tensors of a class.
fn stored(name: &str, class: impl Fn(Class) -> bool) -> Result<u64, Box<dyn std::error::Error>> {
    let release = catalogued(name).ok_or("no such model")??;
    let leaves = release.spec.tensors().filter(|l| class(l.role.class));
    Ok(leaves.filter_map(|l| release.entry(&l.name)).map(|e| e.bytes()).sum())
}

#[test]
fn every_model_has_the_parameters_that_others_count() -> Outcome {
    let mut wrong = Vec::new();
    for name in catalogue() {
        let release = catalogued(name).ok_or("no such model")??;
        assert_eq!(release.name, name);
        let weights = release.spec.loaded().filter(|l| release.entry(&l.name).is_some_and(|e| e.format != "i64"));
        let parameters: u64 = weights.map(ashlar_arch::Leaf::params).sum();
        if release.parameters.is_some_and(|p| p != parameters) {
            wrong.push(format!("{name}: {parameters}, expected {:?}", release.parameters));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    Ok(())
}

#[test]
fn every_file_of_the_folder_is_in_the_catalogue() -> Outcome {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recipes/models");
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        names.push(entry?.path().file_stem().and_then(|s| s.to_str()).ok_or("name")?.to_owned());
    }
    names.sort();
    assert_eq!(names, catalogue().collect::<Vec<_>>());
    Ok(())
}

/// Figures of guides to the release: the sum of its files' tensors, and of some of their parts.
#[test]
fn the_bytes_of_a_release_in_fp4_and_fp8_are_those_of_its_files() -> Outcome {
    let name = "deepseek-v4-flash";
    assert_eq!(stored(name, |_| true)?, 159_609_485_896);
    assert_eq!(stored(name, |c| c == Class::Mtp)?, 3_593_787_756);
    assert_eq!(stored(name, |c| c == Class::Experts)?, 147_169_738_752);
    assert_eq!(stored(name, |c| c == Class::Embed || c == Class::LmHead)?, 2_118_123_520);
    assert_eq!(stored(name, |c| c == Class::SharedExpert)?, 1_082_196_480);
    assert_eq!(stored(name, |c| c == Class::Hyper)?, 135_537_756);
    Ok(())
}

#[test]
fn next_token_layers_have_the_parameters_that_others_count() -> Outcome {
    for (name, expected) in [("deepseek-v3", 13_463_426_304_u64), ("deepseek-v4-flash", 6_610_048_891)] {
        let release = catalogued(name).ok_or("no such model")??;
        let parameters: u64 = release.spec.mtp.iter().map(ashlar_arch::Leaf::params).sum();
        assert_eq!(parameters, expected, "{name}");
    }
    Ok(())
}

/// What they make of it, `cargo xtask sizes --check` plans.
#[test]
fn every_model_has_presets_made_for_it() -> Outcome {
    for name in catalogue() {
        let release = catalogued(name).ok_or("no such model")??;
        assert!(release.presets.len() >= 3, "{name}");
        for recipe in &release.presets {
            Recipe::parse(preset(recipe).ok_or(format!("{name}: there is no preset {recipe}"))?, recipe)?;
        }
    }
    Ok(())
}

#[test]
fn a_model_is_found_by_its_repository_too() -> Outcome {
    assert_eq!(catalogued("deepseek-ai/deepseek-v4-flash").ok_or("no such model")??.name, "deepseek-v4-flash");
    assert!(catalogued("deepseek-ai/none").is_none());
    Ok(())
}

#[test]
fn presets_of_a_release_quantize_its_experts_and_leave_its_fp8_alone() -> Outcome {
    for (name, recipe) in [
        ("deepseek-v3", "deepseek-v3-4bit-experts"),
        ("kimi-k2", "deepseek-v3-3bit-experts"),
        ("deepseek-r1", "deepseek-v3-2bit-experts"),
        ("deepseek-v4-flash", "v4-flash-2bit-experts"),
        ("deepseek-v4-flash", "v4-flash-103gb"),
        ("deepseek-v4-flash", "v4-flash-136gb"),
        ("deepseek-v4-pro", "v4-pro-2bit-experts"),
        ("deepseek-v4-pro", "v4-pro-3bit-experts"),
    ] {
        let release = catalogued(name).ok_or("no such model")??;
        let recipe = Recipe::parse(preset(recipe).ok_or("no such preset")?, recipe)?;
        let choices = recipe.choose(&release.spec, &release, None)?;
        for choice in &choices.list {
            let encoded = matches!(choice.action, Action::Encode { .. });
            let native = choice.source_format.starts_with("fp8");
            let expert = choice.leaf.role.class == Class::Experts;
            assert!(!(encoded && native && !expert), "{name}: `{}` would be encoded anew", choice.leaf.name);
        }
        assert!(choices.list.iter().any(|c| c.leaf.role.class == Class::Experts && c.action != Action::Keep));
    }
    Ok(())
}
