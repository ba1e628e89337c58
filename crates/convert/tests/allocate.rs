//! Budgets on the bundled model: sizes are exact, bounds are told, choices keep their rules.

use ashlar_arch::{Class, ModelSpec, Proj};
use ashlar_convert::allocate::predict::Basis;
use ashlar_convert::allocate::{AllocateError, Allocation, Inputs, allocate, predict_choices};
use ashlar_convert::{ConvertError, Origin, plan};
use ashlar_recipe::{Choices, Recipe, emit, same};
use ashlar_source::Checkpoint;
use ashlar_tensor::Silent;
use std::collections::HashMap;
use std::path::Path;

const RECIPE: &str = "version: 1
budget: {bpw: 3, solve: [inner, attn]}
rules:
  - {id: ends, match: {class: [embed, lm_head]}, set: {format: q8}}
  - {id: attn, match: {class: attn}, set: {format: q6, allow: [k4, q6, q8]}}
  - {id: inner, match: {class: experts}, set: {format: k3}}
";

struct Bundled {
    checkpoint: Checkpoint,
    model: ModelSpec,
    choices: Choices,
}

fn bundled() -> Result<Bundled, Box<dyn std::error::Error>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/demo-moe");
    let checkpoint = Checkpoint::open(&path)?;
    let model = ashlar_arch::model_spec(checkpoint.config())?;
    let choices = Recipe::parse(RECIPE, "r")?.choose(&model, &checkpoint, None)?;
    Ok(Bundled { checkpoint, model, choices })
}

impl Bundled {
    fn bytes(&self, choices: &Choices) -> Result<u64, ConvertError> {
        let origin = Origin::checkpoint(&self.checkpoint, String::new());
        Ok(plan(&self.model, &self.checkpoint, choices, origin, 4 << 30)?.total_bytes)
    }

    fn solve(&self, target: u64) -> Result<(Choices, Allocation), AllocateError> {
        let size = |choices: &Choices| self.bytes(choices);
        let inputs =
            Inputs { store: &self.checkpoint, stats: None, hessian: &|_| false, size: &size, threads: Some(2) };
        let mut choices = self.choices.clone();
        let allocation = allocate(&mut choices, target, &inputs, &Silent)?;
        Ok((choices, allocation))
    }
}

#[test]
fn targets_are_met_from_below_within_half_a_percent_or_a_step_and_more_bytes_predict_less()
-> Result<(), Box<dyn std::error::Error>> {
    let model = bundled()?;
    let (_, middle) = model.solve(4_000_000)?;
    let (floor, ceiling) = (middle.floor_bytes.ok_or("floor")?, middle.ceiling_bytes.ok_or("ceiling")?);
    let mut before = f64::MAX;
    for i in 0..=12 {
        let target = floor + (ceiling - floor) * i / 12;
        let (choices, solved) = model.solve(target)?;
        assert_eq!(solved.total_bytes, model.bytes(&choices)?, "exact");
        assert!(solved.total_bytes <= target);
        // A model as small as this has groups that are percents of it: then not even the smallest next step may fit.
        let left = target - solved.total_bytes;
        let steps = solved.parts.iter().filter(|p| p.solved).flat_map(|p| {
            p.offers.iter().filter(|o| o.2 < p.kl).filter_map(|o| o.1.checked_sub(p.bytes)).filter(|more| *more > 0)
        });
        let smallest = steps.min().unwrap_or(u64::MAX);
        assert!(left as f64 <= 0.005 * target as f64 || left < smallest, "{target}: {left} left, {smallest} fit");
        assert!(solved.predicted.kl < before, "{target}");
        before = solved.predicted.kl;
    }
    Ok(())
}

#[test]
fn gate_and_up_agree_bounds_hold_and_rules_that_are_not_solved_stay() -> Result<(), Box<dyn std::error::Error>> {
    let model = bundled()?;
    let (choices, solved) = model.solve(4_100_000)?;
    assert_eq!(solved.basis, Basis::Prior);
    let mut gates: HashMap<_, String> = HashMap::new();
    for c in &choices.list {
        let role = &c.leaf.role;
        match role.class {
            Class::Attn if c.leaf.shape.len() == 2 => {
                assert!(["k4", "q6", "q8"].contains(&c.format().as_str()), "{c:?}")
            }
            Class::Embed | Class::LmHead => assert_eq!(c.format(), "q8"),
            Class::Router | Class::Norm => assert_eq!(c.format(), "bf16"),
            _ => {}
        }
        if let (Class::Experts, Some(Proj::Gate | Proj::Up)) = (role.class, role.proj) {
            let first = gates.entry((role.layer, role.expert)).or_insert_with(|| c.format()).clone();
            assert_eq!(first, c.format());
        }
        assert!(c.candidates.is_empty());
    }
    let explained = ashlar_recipe::explain(&choices, "model.layers.1.mlp.experts.3.up_proj.weight")?;
    assert!(explained.contains("solver, group 1.experts.gate_up"), "{explained}");
    // The frozen recipe decides the same without a solver.
    let frozen = Recipe::parse(&emit(&choices), "e")?.choose(&model.model, &model.checkpoint, None)?;
    assert!(choices.list.iter().zip(&frozen.list).all(|(a, b)| same(a, b)));
    assert!(emit(&choices).lines().count() < 60, "{}", emit(&choices));
    Ok(())
}

#[test]
fn the_same_inputs_give_the_same_mix_on_any_number_of_threads() -> Result<(), Box<dyn std::error::Error>> {
    let model = bundled()?;
    let size = |choices: &Choices| model.bytes(choices);
    let solve = |threads| -> Result<Allocation, AllocateError> {
        let inputs =
            Inputs { store: &model.checkpoint, stats: None, hessian: &|_| false, size: &size, threads: Some(threads) };
        allocate(&mut model.choices.clone(), 4_000_000, &inputs, &Silent)
    };
    assert_eq!(solve(1)?, solve(3)?);
    Ok(())
}

#[test]
fn what_cannot_be_reached_names_the_bound() -> Result<(), Box<dyn std::error::Error>> {
    let model = bundled()?;
    let (_, solved) = model.solve(4_000_000)?;
    let (floor, ceiling) = (solved.floor_bytes.ok_or("floor")?, solved.ceiling_bytes.ok_or("ceiling")?);
    let error = model.solve(floor - 1).expect_err("below").to_string();
    assert!(
        error.contains(&floor.to_string()) && error.contains("q8, by rule") && error.contains("min_format"),
        "{error}"
    );
    let error = model.solve(ceiling * 2).expect_err("above").to_string();
    assert!(error.contains(&ceiling.to_string()), "{error}");
    assert_eq!(model.solve(floor)?.1.total_bytes, floor);
    let none = Recipe::parse("version: 1\nbudget: {bpw: 3}\nrules: []", "r")?;
    let mut choices = none.choose(&model.model, &model.checkpoint, None)?;
    let size = |choices: &Choices| model.bytes(choices);
    let inputs = Inputs { store: &model.checkpoint, stats: None, hessian: &|_| false, size: &size, threads: None };
    assert!(matches!(allocate(&mut choices, 1 << 20, &inputs, &Silent), Err(AllocateError::Nothing)));
    Ok(())
}

#[test]
fn a_mix_that_the_solver_did_not_choose_is_predicted_like_one_it_did() -> Result<(), Box<dyn std::error::Error>> {
    let model = bundled()?;
    let (choices, solved) = model.solve(4_000_000)?;
    let size = |choices: &Choices| model.bytes(choices);
    let inputs = Inputs { store: &model.checkpoint, stats: None, hessian: &|_| false, size: &size, threads: None };
    let predicted = predict_choices(&choices, &inputs, &Silent)?;
    assert_eq!(predicted.total_bytes, solved.total_bytes);
    // Other rows are sampled when experts are grouped by their formats.
    assert!((predicted.predicted.kl / solved.predicted.kl - 1.0).abs() < 0.05, "{predicted:?}");
    Ok(())
}
