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

/// How much of the drift of its inputs a weight makes up for. All of it makes the weight's outputs closest in squares, but
/// what weights make up for adds up over a layer and its successors, so that less is best, and too much costs more than too
/// little: what it brings grows with the share, what it costs with its square. A quarter is what others have found best for
/// GPTAQ (Li et al. 2025), such as GPTQModel and Qwix; measured here in `docs/statistics.md`.
const DRIFT_SHARE: f64 = 0.25;

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

impl PartKnowledge {
    /// The mean over the inputs of a weight, k × k, and k; experts are shrunk towards their layer. `add` adds a multiple of
    /// a sum.
    fn blend(&self, tensor: &str, add: impl Fn(&Hessian, f64, &mut [f32])) -> Option<(Vec<f32>, usize)> {
        let Weight { k, inputs, kind } = self.weights.get(tensor)?;
        let now = self.now();
        let (own, layer) = match kind {
            Kind::Down => (now.hessian(tensor), now.tallies.first().and_then(Tally::experts)),
            _ => (now.hessian(inputs), None),
        };
        if own.is_none() && layer.is_none() {
            return None;
        }
        let shrink = if layer.is_some() { SHRINK_TOKENS } else { 0.0 };
        let total = (own.map_or(0.0, |h| h.rows() as f64) + shrink).max(1.0);
        let mut mean = vec![0.0; k * k];
        if let Some(h) = own.filter(|h| h.columns() == *k) {
            add(h, 1.0 / total, &mut mean);
        }
        if let Some(h) = layer.filter(|h| h.columns() == *k) {
            add(h, shrink / (h.rows() as f64).max(1.0) / total, &mut mean);
        }
        Some((mean, *k))
    }
}

impl Now {
    fn seen(&self, tensor: &str) -> Option<Seen<'_>> {
        self.tallies.first()?.seen(tensor)
    }

    fn hessian(&self, tensor: &str) -> Option<&Hessian> {
        self.tallies.iter().rev().find_map(|t| t.seen(tensor)?.hessian)
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
        let found = self.blend(tensor, |h, factor, lower| h.spread(factor, lower));
        Ok(found.filter(|(lower, k)| lower.iter().step_by(k + 1).any(|d| d.is_normal())).map(|(lower, _)| lower))
    }

    fn drifts(&self) -> bool {
        true
    }

    fn drift(&self, tensor: &str) -> Result<Option<Vec<f32>>, ConvertError> {
        let inputs = self.weights.get(tensor).map(|w| w.inputs.as_str());
        if !inputs.is_some_and(|inputs| self.now().hessian(inputs).is_some_and(Hessian::drifts)) {
            return Ok(None);
        }
        let found = self.blend(tensor, |h, factor, out| h.spread_drift(DRIFT_SHARE * factor, out));
        Ok(found.map(|(drift, _)| drift))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tally::{Want, Wanted};
    use ashlar_backend::{MatmulInput, Observer};
    use ashlar_simd::Isa;

    const ROUTER: &str = "router";

    /// A part of a router and three experts, the last of which is never chosen. Inputs of 8 columns, all the same.
    fn known() -> PartKnowledge {
        let weight = |inputs: &str, kind| Weight { k: 8, inputs: inputs.into(), kind };
        let mut weights = HashMap::from([(ROUTER.to_owned(), weight(ROUTER, Kind::Dense))]);
        let mut wanted = Wanted::from([(ROUTER.to_owned(), Want { own: true, experts: false, drift: true })]);
        for expert in ["0", "1", "2"] {
            weights.insert(format!("gate{expert}"), weight(ROUTER, Kind::Half(Some(ROUTER.into()))));
            let down = format!("down{expert}");
            weights.insert(down.clone(), weight(&down, Kind::Down));
            wanted.insert(down, Want { own: true, experts: true, drift: false });
        }
        let mut tally = Tally::new(Isa::Portable, 1, 0, wanted);
        let mut reference = tally.reference();
        reference.matmul_input(&MatmulInput::whole(&[ROUTER], &[5.0; 4 * 8], 8));
        tally.compare(reference);
        tally.matmul_input(&MatmulInput::whole(&[ROUTER], &[2.0; 4 * 8], 8));
        for (down, x, gates) in [("down0", vec![1.0; 3 * 8], [0.5; 3].as_slice()), ("down1", vec![2.0; 8], &[1.0])] {
            tally.matmul_input(&MatmulInput { gates: Some(gates), ..MatmulInput::whole(&[down], &x, 8) });
        }
        let known = PartKnowledge { identity: String::new(), weights, now: RwLock::default() };
        known.begin(tally);
        known
    }

    #[test]
    fn the_halves_of_an_expert_share_what_their_router_reads() {
        let known = known();
        assert_eq!(known.hessian_of("gate2").as_deref(), Some(ROUTER));
        let h = known.hessian("gate2").unwrap().unwrap();
        assert_eq!((h[0], h[8], h[9]), (4.0, 4.0, 4.0), "the mean of 2 · 2, of tokens that the expert never saw");
        let drift = known.drift("gate2").unwrap().unwrap();
        assert!(drift.iter().all(|d| *d == (DRIFT_SHARE * 3.0 * 2.0) as f32), "{drift:?}");
    }

    #[test]
    fn experts_shrink_towards_their_layer_and_one_without_tokens_takes_it() {
        let known = known();
        let first = |tensor: &str| f64::from(known.hessian(tensor).unwrap().unwrap()[0]);
        // Three tokens of (½ · 1)² and one of 2².
        let layer = (3.0 * 0.25 + 4.0) / 4.0;
        let shrunk = |sum: f64, tokens: f64| (sum + SHRINK_TOKENS * layer) / (tokens + SHRINK_TOKENS);
        for (tensor, want) in [("down0", shrunk(0.75, 3.0)), ("down1", shrunk(4.0, 1.0)), ("down2", layer)] {
            assert!((first(tensor) - want).abs() < 1e-6, "{tensor}: {} instead of {want}", first(tensor));
        }
        assert!(first("down1") > first("down0"));
        assert!(known.drift("down0").unwrap().is_none(), "down projections stay where they are");
    }
}
