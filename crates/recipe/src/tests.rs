//! Recipes against the fixtures: what they decide, what they refuse and how they say so.

use crate::{Choices, Recipe, RecipeError, emit, explain, preset, presets, same};
use ashlar_arch::{ModelSpec, model_spec};
use ashlar_tensor::{Bytes, Entry, Order, StoreError, TensorStore};
use std::error::Error;
use std::path::PathBuf;

pub type Outcome = Result<(), Box<dyn Error>>;

/// Entries without bytes: recipes read headers only.
pub struct Headers(Vec<Entry>);

impl TensorStore for Headers {
    fn entries(&self) -> &[Entry] {
        &self.0
    }

    fn read(&self, entry: &Entry, plane: usize, offset: u64, out: &mut [u8]) -> Result<(), StoreError> {
        let end = offset + out.len() as u64;
        Err(StoreError::Range { tensor: entry.name.clone(), plane, offset, end, bytes: 0 })
    }

    fn map(&self, entry: &Entry, plane: usize) -> Result<Bytes, StoreError> {
        Err(StoreError::Range { tensor: entry.name.clone(), plane, offset: 0, end: 0, bytes: 0 })
    }
}

/// A store that holds every tensor of the model in the format `format` gives it.
pub fn store(model: &ModelSpec, format: impl Fn(&str) -> &'static str) -> Headers {
    let entry = |leaf: &ashlar_arch::Leaf| Entry {
        name: leaf.name.clone(),
        shape: leaf.shape.clone(),
        format: format(&leaf.name).to_owned(),
        order: Order::Rows,
        planes: Vec::new(),
        file: "model.safetensors".to_owned(),
    };
    let mut entries: Vec<_> = model.tensors().map(entry).collect();
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    Headers(entries)
}

pub const FIXTURES: [&str; 13] = [
    "tiny/llama",
    "tiny/qwen2",
    "tiny/qwen3",
    "tiny/qwen2_moe",
    "tiny/qwen3_moe",
    "tiny/mixtral",
    "tiny/gpt_oss",
    "tiny/deepseek_v2",
    "tiny/deepseek_v3",
    "tiny/deepseek_v3_bf16",
    "tiny/deepseek_v4",
    "tiny/deepseek_v4_bf16",
    "demo-moe",
];

pub fn fixture(name: &str) -> Result<ModelSpec, Box<dyn Error>> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name).join("config.json");
    Ok(model_spec(&serde_json::from_slice(&std::fs::read(path)?)?)?)
}

pub fn choose(recipe: &str, name: &str) -> Result<Choices, Box<dyn Error>> {
    let model = fixture(name)?;
    Ok(Recipe::parse(recipe, "recipe.yaml")?.choose(&model, &store(&model, |_| "bf16"), None)?)
}

/// The format a choice ends with.
pub fn format(choices: &Choices, tensor: &str) -> String {
    choices.list.iter().find(|c| c.leaf.name == tensor).map_or("no such tensor".to_owned(), |c| c.format())
}

pub fn refused(recipe: &str, name: &str) -> Result<RecipeError, Box<dyn Error>> {
    let model = fixture(name)?;
    let parsed = match Recipe::parse(recipe, "recipe.yaml") {
        Ok(parsed) => parsed,
        Err(error) => return Ok(error),
    };
    match parsed.choose(&model, &store(&model, |_| "bf16"), None) {
        Ok(choices) => Err(format!("accepted: {:?}", choices.notes).into()),
        Err(error) => Ok(error),
    }
}

/// Whether a preset is for models like a fixture; those of one release name tensors that others lack.
pub fn suits(preset: &str, fixture: &str) -> bool {
    let releases = [("deepseek-v3-", "deepseek_v3"), ("v4-", "deepseek_v4"), ("gpt-oss-", "gpt_oss")];
    releases.iter().all(|(own, family)| !preset.starts_with(own) || fixture.contains(family))
}

#[test]
fn every_preset_plans_on_every_fixture() -> Outcome {
    for name in FIXTURES {
        for preset_name in presets().filter(|p| suits(p, name)) {
            let text = preset(preset_name).ok_or("preset")?;
            let choices = choose(text, name).map_err(|e| format!("{preset_name} on {name}: {e}"))?;
            assert_eq!(choices.list.len(), fixture(name)?.tensors().count());
            let again = choose(&emit(&choices), name).map_err(|e| format!("{}\n{e}", emit(&choices)))?;
            for (a, b) in choices.list.iter().zip(&again.list) {
                assert!(same(a, b), "{preset_name} on {name}: {a:?}\n{b:?}\n{}", emit(&choices));
            }
        }
    }
    Ok(())
}

#[test]
fn explain_shows_role_rules_and_decision() -> Outcome {
    let recipe = "version: 1
defaults: {format: keep}
rules:
  - {id: exp, match: {class: experts}, set: {format: i4, device: cpu}}
  - {id: down, match: {class: experts, proj: down}, set: {format: nf4}}
  - {id: edge, match: {layers: -1}, set: {tier: ram, final: true}}
  - {id: late, match: {name: '*.experts.7.*'}, set: {format: q8}}
";
    let choices = choose(recipe, "demo-moe")?;
    assert_eq!(
        explain(&choices, "model.layers.3.mlp.experts.7.down_proj.weight")?,
        "model.layers.3.mlp.experts.7.down_proj.weight [256, 128] bf16
  class experts, proj down, layer 3, expert 7
  defaults: format: keep
  rule `exp` (line 4): format: i4, device: cpu
  rule `down` (line 5): format: nf4
  rule `edge` (line 6): tier: ram, final: true
  rule `late` (line 7): no, `edge` was final
  = nf4:g64, method auto, 17408 bytes, 4.250 bits per weight, tier ram, device cpu"
    );
    let error = explain(&choices, "model.layers.3.mlp.experts.7.dwon_proj.weight").expect_err("no such tensor");
    assert!(error.to_string().ends_with("did you mean `model.layers.3.mlp.experts.7.down_proj.weight`?"), "{error}");
    Ok(())
}

mod budget;
mod emitted;
mod errors;
mod placements;
mod precedence;
mod presets_and_docs;
mod releases;
mod short_form;
