//! Which weights cost most: the reference with a part of its weights taken from the model, part by part.
//!
//! A part's cost is measured alone, beside untouched others. Costs of parts need not add up to the cost of all, but their
//! order tells where bits would help. Nothing is written: the mixed model is an [`Overlay`].

use super::figures::Estimate;
use super::{Windows, compare};
use crate::{Model, OpenOptions, Opened, Overlay, RuntimeError, open};
use ashlar_arch::{Leaf, ModelSpec, Role};
use ashlar_tensor::{Report, TensorStore};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Mixed models that run in step with one run of the reference.
const AT_ONCE: usize = 4;

/// What a part is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grouping {
    /// All weights of a class.
    Class,
    /// All weights of a layer.
    Layer,
    /// The weights of a class in a layer.
    LayerClass,
}

/// How to ablate.
#[derive(Clone, Copy, Debug)]
pub struct AblationOptions {
    /// What a part is.
    pub grouping: Grouping,
    /// Parts at most; those with the most parameters are taken.
    pub parts: usize,
    /// Whether the model was made from the reference, so that tensors of the same format are known to be the same.
    pub same_source: bool,
}

/// Costs of parts.
#[derive(Clone, Debug, PartialEq)]
pub struct Ablation {
    /// What a part is.
    pub grouping: Grouping,
    /// Tokens scored for each part.
    pub tokens: usize,
    /// Most costly first.
    pub parts: Vec<PartCost>,
    /// Parts that were not measured.
    pub left_out: usize,
}

/// The cost of one part.
#[derive(Clone, Debug, PartialEq)]
pub struct PartCost {
    /// The class; `None` for a whole layer.
    pub class: Option<&'static str>,
    /// The layer; `None` for weights outside the layers, or of all layers.
    pub layer: Option<usize>,
    /// Weights that differ.
    pub tensors: usize,
    /// Their parameters.
    pub parameters: u64,
    /// Their bytes in the model.
    pub bytes: u64,
    /// Their bytes in the reference.
    pub reference_bytes: u64,
    /// Mean KL(reference ‖ reference with this part of the model).
    pub kl: Estimate,
    /// Share of predictions whose most probable token is still the same.
    pub top1: f64,
}

impl PartCost {
    /// `experts`, `layer 3`, `layer 3 experts`.
    #[must_use]
    pub fn label(&self) -> String {
        match (self.layer, self.class) {
            (Some(layer), Some(class)) => format!("layer {layer} {class}"),
            (Some(layer), None) => format!("layer {layer}"),
            (None, class) => class.unwrap_or("other").to_owned(),
        }
    }
}

/// (layer, class) of a part; layers before weights outside of them.
type Key = (Option<usize>, Option<&'static str>);

impl Grouping {
    fn key(self, role: &Role) -> Key {
        match (self, role.layer) {
            (Self::Class, _) => (None, Some(role.class.name())),
            (Self::Layer, Some(layer)) => (Some(layer), None),
            (Self::LayerClass, Some(layer)) => (Some(layer), Some(role.class.name())),
            (_, None) => (None, Some(role.class.name())),
        }
    }
}

/// Measures what each part of `model` costs. `options.context` must hold the windows. `None` if `cancel` was set.
///
/// # Errors
/// [`RuntimeError`] if the two are not the same architecture or cannot run.
pub fn ablate(
    [model, reference]: [&Path; 2],
    options: &OpenOptions,
    ablation: AblationOptions,
    windows: &Windows,
    cancel: &AtomicBool,
    report: &dyn Report,
) -> Result<Option<Ablation>, RuntimeError> {
    let mut whole = Model::open(reference, options, report)?;
    let (base, over) = (open(reference, report)?, open(model, report)?);
    let mut parts = parts(&base.spec, &*base.store, &*over.store, ablation);
    parts.sort_by_key(|p| std::cmp::Reverse(p.0.parameters));
    let left_out = parts.len().saturating_sub(ablation.parts);
    parts.truncate(ablation.parts);
    let Opened { store, config, spec, dir, .. } = base;
    let (base, over): (Arc<dyn TensorStore>, Arc<dyn TensorStore>) = (Arc::from(store), Arc::from(over.store));
    let mix = |names: &[String]| {
        let overlay = Overlay::new(Arc::clone(&base), Arc::clone(&over), names.iter().map(String::as_str))?;
        let mixed = Opened {
            store: Box::new(overlay),
            config: config.clone(),
            spec: spec.clone(),
            dir: dir.clone(),
            is_pack: false,
            identity: String::new(),
            placement: None,
        };
        Model::load(mixed, options, report)
    };
    let total = parts.len();
    let (mut costs, mut tokens) = (Vec::new(), 0);
    for batch in parts.chunks(AT_ONCE) {
        let mut models = batch.iter().map(|(_, names)| mix(names)).collect::<Result<Vec<_>, _>>()?;
        let stage = format!("parts {}-{} of {total}", costs.len() + 1, costs.len() + batch.len());
        let Some(found) = compare(&stage, &mut models, &mut whole, windows, cancel, report)? else { return Ok(None) };
        for ((cost, _), c) in batch.iter().zip(found) {
            tokens = c.model.tokens;
            let kl = Estimate { value: c.kl.mean, ci95: c.kl.ci95 };
            costs.push(PartCost { kl, top1: c.top1, ..cost.clone() });
        }
    }
    costs.sort_by(|a, b| b.kl.value.total_cmp(&a.kl.value).then_with(|| a.label().cmp(&b.label())));
    Ok(Some(Ablation { grouping: ablation.grouping, tokens, parts: costs, left_out }))
}

/// Parts that differ, each with the names of its weights; costs are not known yet.
fn parts(
    spec: &ModelSpec,
    base: &dyn TensorStore,
    over: &dyn TensorStore,
    options: AblationOptions,
) -> Vec<(PartCost, Vec<String>)> {
    let mut all: BTreeMap<Key, (PartCost, Vec<String>)> = BTreeMap::new();
    for leaf in spec.tensors() {
        let Leaf { name, role, .. } = leaf;
        let (Some(theirs), Some(ours)) = (base.entry(name), over.entry(name)) else { continue };
        if options.same_source && theirs.format == ours.format {
            continue;
        }
        let (layer, class) = options.grouping.key(role);
        let (part, names) = all.entry((layer, class)).or_insert_with(|| {
            let kl = Estimate { value: 0.0, ci95: [0.0; 2] };
            let none =
                PartCost { class, layer, tensors: 0, parameters: 0, bytes: 0, reference_bytes: 0, kl, top1: 1.0 };
            (none, Vec::new())
        });
        part.tensors += 1;
        part.parameters += ours.elements();
        part.bytes += ours.bytes();
        part.reference_bytes += theirs.bytes();
        names.push(name.clone());
    }
    all.into_values().collect()
}
