//! The builds of a model: what every preset makes of it, worked out as it is asked for.

use crate::exit::{Failure, OrUsage};
use crate::model::{Model, Source};
use crate::recipe;
use ashlar_arch::{Class, Ffn, ModelSpec};
use ashlar_formats::Spec;
use ashlar_recipe::{Action, Choice};
use ashlar_runtime::fit::{Needs, Work};
use ashlar_runtime::routing::LayerBytes;
use ashlar_tensor::Order;
use std::collections::HashMap;

/// Presets of models that the catalogue does not know, the best first: with routed experts, and without.
const EXPERTS: [&str; 4] = ["8bit", "4bit-experts", "3bit-experts", "2bit-experts"];
const DENSE: [&str; 3] = ["8bit", "4bit", "3bit"];

/// Tokens that go through a model at once.
pub const CHUNK: usize = 512;

/// A model in the formats of a recipe.
#[derive(Clone)]
pub struct Build {
    /// The preset or recipe.
    pub recipe: String,
    /// Weights of the pack, next-token layers apart.
    pub bytes: u64,
    /// How many values are quantized, and not copied.
    pub quantized: u64,
    pub needs: Needs,
    /// What a token does with weights, by format.
    pub work: Vec<Work>,
    /// Bytes of every layer, and of what every token reads behind them.
    pub layers: (Vec<LayerBytes>, u64),
}

/// The builds of one model.
pub struct Builds {
    recipes: Vec<String>,
    made: Vec<Option<Build>>,
    context: usize,
}

impl Builds {
    /// Of a model, with one recipe or with all presets made for it.
    ///
    /// # Errors
    /// If the architecture is not known.
    pub fn of(model: &Model, recipe: Option<&str>, context: usize) -> Result<Self, Failure> {
        let recipes: Vec<String> = match (recipe, &model.source) {
            (Some(recipe), _) => vec![recipe.to_owned()],
            (None, Source::Catalogue(release)) => release.presets.clone(),
            (None, _) => presets(model.spec()?),
        };
        Ok(Self { made: vec![None; recipes.len()], recipes, context })
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.recipes.len()
    }

    /// Build number `i` of `model`, which is always the same.
    ///
    /// # Errors
    /// If the recipe cannot be applied to the model.
    pub fn get(&mut self, model: &Model, i: usize) -> Result<Build, Failure> {
        let (Some(name), Some(place)) = (self.recipes.get(i), self.made.get_mut(i)) else {
            return Err(anyhow::anyhow!("there is no build {i}").into());
        };
        if let Some(build) = place {
            return Ok(build.clone());
        }
        let build = make(model, name, self.context)?;
        Ok(place.insert(build).clone())
    }
}

fn presets(spec: &ModelSpec) -> Vec<String> {
    let experts = spec.layers.iter().any(|layer| matches!(layer.ffn, Ffn::Moe(_)));
    let names: &[&str] = if experts { &EXPERTS } else { &DENSE };
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn make(model: &Model, name: &str, context: usize) -> Result<Build, Failure> {
    let choices = recipe::open(name)?.choose(model.leaves.as_slice(), model.store(), None).or_usage()?;
    let mut bytes = HashMap::new();
    let mut tensors = HashMap::new();
    let mut quantized = 0;
    for choice in choices.list.iter().filter(|c| c.leaf.role.class != Class::Mtp) {
        let stored = stored(model, choice)?;
        bytes.insert(choice.leaf.name.as_str(), stored);
        tensors.insert(choice.leaf.name.as_str(), (stored, format(model, choice)));
        if matches!(choice.action, Action::Encode { .. }) {
            quantized += choice.leaf.params();
        }
    }
    let needs = Needs::of(model.spec()?, &bytes, context, CHUNK);
    let work = Work::of(model.spec()?, &tensors);
    let layers = LayerBytes::of(model.spec()?, &|name| bytes.get(name).copied());
    Ok(Build { recipe: name.to_owned(), bytes: bytes.values().sum(), quantized, needs, work, layers })
}

/// The format of a tensor in the pack.
fn format(model: &Model, choice: &Choice) -> String {
    match &choice.action {
        Action::Keep => model.store().entry(&choice.leaf.name).map(|e| e.format.clone()).unwrap_or_default(),
        Action::Encode { spec, .. } => spec.to_string(),
    }
}

/// Bytes of a tensor in the pack; padding between tensors is below a thousandth.
fn stored(model: &Model, choice: &Choice) -> Result<u64, Failure> {
    match &choice.action {
        Action::Keep => Ok(model.store().entry(&choice.leaf.name).map_or(0, ashlar_tensor::Entry::bytes)),
        Action::Encode { spec, .. } => {
            let spec: &Spec = spec;
            Ok(spec.layout(Order::X16, choice.n, choice.k).map_err(anyhow::Error::new)?.bytes())
        }
    }
}
