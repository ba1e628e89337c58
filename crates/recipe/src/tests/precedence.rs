use super::{Outcome, choose, fixture, format, store};
use crate::{Action, Recipe};

const DOWN: &str = "model.layers.1.mlp.down_proj.weight";
const UP: &str = "model.layers.1.mlp.up_proj.weight";
const NORM: &str = "model.layers.1.input_layernorm.weight";

fn rules(text: &str) -> String {
    format!("version: 1\nrules:\n{text}")
}

#[test]
fn later_rules_win_field_by_field() -> Outcome {
    let choices = choose(
        &rules(
            "  - {match: {class: mlp}, set: {format: i4, group: 64, method: rtn, device: cpu}}
  - {match: {proj: down}, set: {zero_point: true}}
  - {match: {proj: up}, set: {format: q8, device: 'cuda:0'}}
",
        ),
        "tiny/llama",
    )?;
    assert_eq!(format(&choices, DOWN), "i4:g64,zp");
    assert_eq!(format(&choices, UP), "q8");
    let up = choices.list.iter().find(|c| c.leaf.name == UP).ok_or("up")?;
    assert!(matches!(up.action, Action::Encode { method: "rtn", .. }));
    assert_eq!(up.device.as_deref(), Some("cuda:0"));
    Ok(())
}

#[test]
fn auto_undoes_a_tier_or_a_device() -> Outcome {
    let choices = choose(
        &rules(
            "  - {match: {class: mlp}, set: {device: 'cuda:0', tier: vram}}
  - {match: {proj: down}, set: {device: auto, tier: auto}}
",
        ),
        "tiny/llama",
    )?;
    let placed =
        |name: &str| choices.list.iter().find(|c| c.leaf.name == name).map(|c| (c.tier.clone(), c.device.clone()));
    assert_eq!(placed(UP), Some((Some("vram".into()), Some("cuda:0".into()))));
    assert_eq!(placed(DOWN), Some((None, None)));
    Ok(())
}

/// `group` belongs to the format it was given for; the same format again keeps it.
#[test]
fn another_format_starts_without_the_old_ones_parameters() -> Outcome {
    let choices = choose(
        &rules(
            "  - {match: {class: mlp}, set: {format: nf4, group: 64, outliers: {share: 1%, sigma: 3}}}
  - {match: {proj: down}, set: {format: q8}}
  - {match: {proj: up}, set: {format: nf4}}
  - {match: {proj: up, layers: 0}, set: {outliers: none}}
",
        ),
        "tiny/llama",
    )?;
    assert_eq!(format(&choices, "model.layers.0.mlp.up_proj.weight"), "nf4:g64");
    assert_eq!(format(&choices, DOWN), "q8");
    assert_eq!(format(&choices, UP), "nf4:g64+o2");
    Ok(())
}

#[test]
fn nothing_changes_after_a_final_rule() -> Outcome {
    let choices = choose(
        &rules(
            "  - {match: {proj: down}, set: {format: keep, final: true}}
  - {match: {class: mlp}, set: {format: q8, tier: ram}}
",
        ),
        "tiny/llama",
    )?;
    assert_eq!(format(&choices, DOWN), "bf16");
    assert_eq!(format(&choices, UP), "q8");
    let down = choices.list.iter().find(|c| c.leaf.name == DOWN).ok_or("down")?;
    assert_eq!((&down.action, &down.tier), (&Action::Keep, &None));
    Ok(())
}

#[test]
fn keys_are_anded_and_lists_ored() -> Outcome {
    let choices = choose(
        &rules("  - {match: {class: [attn, mlp], proj: [o, down], layers: [0, '-1']}, set: {format: q8}}\n"),
        "tiny/llama",
    )?;
    let chosen: Vec<_> =
        choices.list.iter().filter(|c| c.action != Action::Keep).map(|c| c.leaf.name.as_str()).collect();
    assert_eq!(
        chosen,
        [
            "model.layers.0.self_attn.o_proj.weight",
            "model.layers.0.mlp.down_proj.weight",
            "model.layers.2.self_attn.o_proj.weight",
            "model.layers.2.mlp.down_proj.weight"
        ]
    );
    Ok(())
}

#[test]
fn globs_cross_dots_and_regexes_match_fully() -> Outcome {
    let count = |recipe: String| -> Result<usize, Box<dyn std::error::Error>> {
        Ok(choose(&recipe, "tiny/llama")?.list.iter().filter(|c| c.action != Action::Keep).count())
    };
    assert_eq!(count(rules("  - {match: {name: 'model.layers.*_proj.weight'}, set: {format: q8}}\n"))?, 21);
    assert_eq!(
        count(rules("  - {match: {name: ['*.{gate,up}_proj.weight', lm_head.weight]}, set: {format: q8}}\n"))?,
        7
    );
    let regex = r"  - {match: {regex: 'model\.layers\.[01]\.mlp\..*'}, set: {format: q8}}";
    assert_eq!(count(rules(regex))?, 6);
    let part = r"  - {match: {regex: 'layers\.[01]\.mlp'}, set: {format: q8}, optional: true}";
    assert_eq!(count(rules(part))?, 0);
    Ok(())
}

#[test]
fn experts_are_chosen_one_by_one() -> Outcome {
    let choices = choose(
        &rules(
            "  - {match: {class: experts}, set: {format: i4}}
  - {match: {experts: '0-2,-1', layers: 1, proj: gate}, set: {format: q8}}
",
        ),
        "demo-moe",
    )?;
    let q8: Vec<_> = choices.list.iter().filter(|c| c.format() == "q8").filter_map(|c| c.leaf.role.expert).collect();
    assert_eq!(q8, [0, 1, 2, 15]);
    assert_eq!(choices.list.iter().filter(|c| c.format() == "i4:g32").count(), 4 * 16 * 3 - 4);
    Ok(())
}

#[test]
fn vectors_and_routers_are_never_quantized_and_this_is_told() -> Outcome {
    let choices = choose(&rules("  - {match: {name: '*'}, set: {format: q8}}\n"), "demo-moe")?;
    assert_eq!(format(&choices, NORM), "bf16");
    assert_eq!(format(&choices, "model.layers.0.mlp.gate.weight"), "bf16");
    assert_eq!(
        choices.notes,
        ["21 vectors and routers stay as they are: quantized formats are for the other matrices"]
    );
    Ok(())
}

#[test]
fn vectors_take_floating_point_formats() -> Outcome {
    let choices = choose(&rules("  - {match: {class: norm}, set: {format: f32}}\n"), "tiny/llama")?;
    assert_eq!(format(&choices, NORM), "f32");
    let norm = choices.list.iter().find(|c| c.leaf.name == NORM).ok_or("norm")?;
    assert_eq!((norm.n, norm.k), (1, 128));
    Ok(())
}

#[test]
fn fallbacks_are_used_in_order_and_told() -> Outcome {
    let recipe = "version: 1
fallback: [nf4, iq4nl, q8]
rules:
  - {id: exp, match: {class: experts}, set: {format: nf4, group: 64, outliers: {share: 0.01, sigma: 3}}}
";
    let choices = choose(recipe, "tiny/mixtral")?;
    assert_eq!(format(&choices, "model.layers.0.block_sparse_moe.experts.0.w1.weight"), "nf4:g64+o2");
    assert_eq!(format(&choices, "model.layers.0.block_sparse_moe.experts.0.w2.weight"), "iq4nl+o1");
    let [note] = choices.notes.as_slice() else { return Err(format!("{:?}", choices.notes).into()) };
    assert!(note.starts_with(
        "rule `exp` (line 4): tensor `model.layers.0.block_sparse_moe.experts.0.w2.weight` and 15 more: "
    ));
    assert!(note.ends_with("fallback to iq4nl+o1"), "{note}");
    Ok(())
}

#[test]
fn outliers_carry_their_cut_off() -> Outcome {
    let choices = choose(
        &rules("  - {match: {class: mlp}, set: {format: nf4, outliers: {share: 1%, sigma: 3}}}\n"),
        "tiny/llama",
    )?;
    let up = choices.list.iter().find(|c| c.leaf.name == UP).ok_or("up")?;
    assert_eq!(up.outliers.map(|o| (o.share, o.sigma)), Some((0.01, 3.0)));
    assert!(choices.list.iter().filter(|c| c.action == Action::Keep).all(|c| c.outliers.is_none()));
    Ok(())
}

#[test]
fn what_the_source_has_already_is_kept() -> Outcome {
    let model = fixture("tiny/llama")?;
    let source = |name: &str| match name {
        n if n.ends_with("up_proj.weight") => "fp8:128x128,e8m0",
        n if n.ends_with("down_proj.weight") => "i4:g64",
        _ => "bf16",
    };
    let of = |recipe: &str| Recipe::parse(&rules(recipe), "r")?.choose(&model, &store(&model, source), None);
    let fp8 = of("  - {match: {class: mlp}, set: {format: fp8}}\n")?;
    assert_eq!(format(&fp8, UP), "fp8:128x128,e8m0");
    assert_eq!(format(&fp8, DOWN), "fp8:128x128,f32");
    assert_eq!(
        fp8.notes,
        ["3 tensors are quantized in the source already and are encoded anew, which adds to their error"]
    );
    let i4 = of("  - {match: {proj: down}, set: {format: i4, group: 64}}\n")?;
    assert!(i4.list.iter().all(|c| c.action == Action::Keep));
    let other = of("  - {match: {proj: down}, set: {format: i4, group: 32}}\n")?;
    assert_eq!(format(&other, DOWN), "i4:g32");
    let bf16 = of("  - {match: {class: attn}, set: {format: bf16}}\n")?;
    assert!(bf16.list.iter().all(|c| c.action == Action::Keep));
    Ok(())
}

#[test]
fn rules_without_effect_and_ranges_outside_the_model_are_told() -> Outcome {
    let recipe = rules(
        "  - {id: a, match: {class: mlp}, set: {format: i4}}
  - {id: b, match: {class: [mlp, attn], layers: 0-31}, set: {format: q8}}
",
    );
    let notes = choose(&recipe, "tiny/llama")?.notes;
    assert_eq!(
        notes,
        [
            "rule `a` (line 3): other rules decide the format of every tensor it matches",
            "rule `b` (line 4) reaches outside the model: layers 0-31 (this model has layers 0-2)",
        ]
    );
    Ok(())
}

#[test]
fn thresholds_are_read() -> Outcome {
    let recipe = Recipe::parse("version: 1\nvalidate: {kld_mean: 0.1, top1: 87%}\n", "r")?;
    assert_eq!((recipe.validate().kld_mean, recipe.validate().top1), (Some(0.1), Some(0.87)));
    assert_eq!(recipe.notes(), [""; 0]);
    Ok(())
}
