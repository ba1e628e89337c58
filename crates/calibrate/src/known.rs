//! [`PartKnowledge`]: what a conversion that calibrates on its way knows of the part it is at.

use crate::hessian::Hessian;
use crate::parts::{inputs, leaves};
use crate::tally::{Seen, Tally};
use ashlar_arch::{Class, Leaf, ModelSpec, Proj};
use ashlar_convert::stats::{SHRINK_TOKENS, importance};
use ashlar_convert::{ConvertError, Knowledge};
use ashlar_runtime::program::Part;
use serde_json::Value;
use std::collections::HashMap;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// At plan time: the promise that every weight that a program multiplies by will have its Hessian. While converting: the
/// sums over the inputs of the part that is being converted.
pub struct PartKnowledge {
    identity: String,
    weights: HashMap<String, Weight>,
    now: RwLock<Now>,
}

/// A weight with inputs.
struct Weight {
    k: usize,
    /// The weight whose sums it shares, or its own name.
    inputs: String,
    kind: Kind,
}

enum Kind {
    Dense,
    /// Gate or up of an expert, with the router that reads the same tokens.
    Half(Option<String>),
    Down,
}

#[derive(Default)]
struct Now {
    /// The first has all moments; a further one the Hessians of a group of experts.
    tallies: Vec<Tally>,
    /// Mean of x² per column over the tokens of all experts' down projections.
    downs: Option<Vec<f64>>,
    provenance: Value,
}

impl PartKnowledge {
    /// The promise for a model; `identity` tells what goes through it.
    #[must_use]
    pub fn new(spec: &ModelSpec, identity: String) -> Self {
        let mut weights = HashMap::new();
        for part in parts(spec) {
            let shared = inputs(spec, part);
            let leaves = leaves(spec, part);
            let router = leaves.iter().find(|l| l.role.class == Class::Router && l.shape.len() == 2);
            for leaf in &leaves {
                let ([_, k], false) = (leaf.shape.as_slice(), leaf.role.class == Class::Norm) else { continue };
                let kind = match (leaf.role.class, leaf.role.proj) {
                    (Class::Experts, Some(Proj::Down)) => Kind::Down,
                    (Class::Experts, _) => Kind::Half(router.map(|r| r.name.clone())),
                    _ => Kind::Dense,
                };
                let inputs = match &kind {
                    Kind::Half(Some(router)) => router.clone(),
                    _ => shared.get(&leaf.name).unwrap_or(&leaf.name).clone(),
                };
                weights.insert(leaf.name.clone(), Weight { k: *k, inputs, kind });
            }
        }
        Self { identity, weights, now: RwLock::default() }
    }

    fn now(&self) -> RwLockReadGuard<'_, Now> {
        self.now.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self) -> RwLockWriteGuard<'_, Now> {
        self.now.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The sums of another part take the place of what was there.
    pub fn begin(&self, tally: Tally) {
        let mut now = self.change();
        let downs = |name: &String| self.weights.get(name).is_some_and(|w| matches!(w.kind, Kind::Down));
        now.downs = tally.mean(downs);
        now.tallies = vec![tally];
    }

    /// The Hessians of another group of experts take the place of the last group's.
    pub fn next_group(&self, tally: Tally) {
        let mut now = self.change();
        if let Some(first) = now.tallies.first_mut() {
            first.drop_hessians(|name| self.weights.get(name).is_some_and(|w| matches!(w.kind, Kind::Down)));
        }
        now.tallies.truncate(1);
        now.tallies.push(tally);
    }

    /// Ends the part; returns its sums.
    pub fn end(&self) -> Option<Tally> {
        self.change().tallies.drain(..).next().map(Tally::without_hessians)
    }

    /// What the manifest is to say.
    pub fn set_provenance(&self, provenance: Value) {
        self.change().provenance = provenance;
    }
}

/// The parts of a model that are calibrated and converted one after the other. The second half of a layer sees what came
/// through the first one already quantized.
pub fn parts(spec: &ModelSpec) -> Vec<Part> {
    let layers = (0..spec.layers.len()).flat_map(|l| [Part::Attention(l), Part::Ffn(l)]);
    layers.chain([Part::FinalNorm]).collect()
}

/// Whether a weight is the embedding that another weight than the head reads from.
pub fn is_plain_embedding(spec: &ModelSpec, leaf: &Leaf) -> bool {
    spec.lm_head.is_some() && leaf.name == spec.embed.name
}

impl Now {
    fn seen(&self, tensor: &str) -> Option<Seen<'_>> {
        self.tallies.first()?.seen(tensor)
    }

    /// A Hessian and its tokens.
    fn hessian(&self, tensor: &str) -> Option<(&Hessian, u64)> {
        self.tallies.iter().rev().find_map(|t| t.seen(tensor).and_then(|s| Some((s.hessian?, s.tokens))))
    }
}

impl Knowledge for PartKnowledge {
    fn identity(&self) -> String {
        self.identity.clone()
    }

    fn provenance(&self) -> Result<Value, ConvertError> {
        Ok(self.now().provenance.clone())
    }

    fn knows(&self, tensor: &str) -> bool {
        self.weights.contains_key(tensor)
    }

    fn importance(&self, tensor: &str) -> Result<Option<Vec<f32>>, ConvertError> {
        let Some(weight) = self.weights.get(tensor) else { return Ok(None) };
        let now = self.now();
        let own = now.seen(tensor).map(|s| (s.sums, s.tokens));
        let router = match &weight.kind {
            Kind::Half(Some(router)) => now.seen(router),
            _ => None,
        };
        let layer: Option<Vec<f64>> = match weight.kind {
            Kind::Dense => None,
            Kind::Half(_) => router.map(|r| r.sums.iter().map(|s| s / (r.tokens as f64).max(1.0)).collect()),
            Kind::Down => now.downs.clone(),
        };
        Ok(importance(own, layer.as_deref()))
    }

    fn hessian_of(&self, tensor: &str) -> Option<String> {
        Some(self.weights.get(tensor)?.inputs.clone())
    }

    fn hessian(&self, tensor: &str) -> Result<Option<Vec<f32>>, ConvertError> {
        let Some(Weight { k, inputs, kind }) = self.weights.get(tensor) else { return Ok(None) };
        let now = self.now();
        let (own, layer) = match kind {
            Kind::Down => (now.hessian(tensor), now.tallies.first().and_then(Tally::experts)),
            _ => (now.hessian(inputs), None),
        };
        if own.is_none() && layer.is_none() {
            return Ok(None);
        }
        let shrink = if layer.is_some() { SHRINK_TOKENS } else { 0.0 };
        let total = (own.map_or(0.0, |(_, tokens)| tokens as f64) + shrink).max(1.0);
        let mut lower = vec![0.0; k * k];
        if let Some((h, _)) = own.filter(|(h, _)| h.columns() == *k) {
            h.spread(1.0 / total, &mut lower);
        }
        if let Some((h, tokens)) = layer.filter(|(h, _)| h.columns() == *k) {
            h.spread(shrink / (tokens as f64).max(1.0) / total, &mut lower);
        }
        Ok(lower.iter().step_by(k + 1).any(|d| d.is_normal()).then_some(lower))
    }
}
