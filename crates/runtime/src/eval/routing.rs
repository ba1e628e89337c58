//! Where the tokens of two models were routed.

use ashlar_arch::{Ffn, ModelSpec};
use ashlar_backend::{MatmulInput, Observer, Routed};
use std::collections::{BTreeMap, HashSet};

/// Two models' routing, beside each other.
#[derive(Clone, Debug, PartialEq)]
pub struct RoutingFigures {
    /// Share of the reference's choices of experts that the model makes too, over all layers and tokens.
    pub overlap: f64,
    /// By layer.
    pub layers: Vec<LayerRouting>,
}

/// The routing of one layer.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerRouting {
    /// The layer.
    pub layer: usize,
    /// Share of the reference's choices of experts that the model makes too.
    pub overlap: f64,
    /// Tokens that the model sent to each expert.
    pub usage: Vec<u64>,
    /// Tokens that the reference sent to each expert.
    pub reference_usage: Vec<u64>,
}

/// Notes the choices of routers while a chunk runs.
#[derive(Debug, Default)]
pub(super) struct Tap {
    routers: BTreeMap<String, Choices>,
}

#[derive(Debug, Default)]
struct Choices {
    experts: usize,
    top_k: usize,
    /// Tokens × top_k.
    chosen: Vec<usize>,
}

impl Observer for Tap {
    fn matmul_input(&mut self, _input: &MatmulInput<'_>) {}

    fn routed(&mut self, routed: &Routed<'_>) {
        let choices = self.routers.entry(routed.router.to_owned()).or_default();
        (choices.experts, choices.top_k) = (routed.experts, routed.top_k);
        choices.chosen.extend(routed.chosen.iter().map(|(expert, _)| *expert));
    }
}

/// Sums over chunks.
#[derive(Debug, Default)]
pub(super) struct Sums {
    routers: BTreeMap<String, Sum>,
}

#[derive(Debug, Default)]
struct Sum {
    chosen: u64,
    shared: u64,
    usage: Vec<u64>,
    reference_usage: Vec<u64>,
}

impl Sums {
    /// Adds the choices that both made for the same tokens.
    pub fn add(&mut self, model: &Tap, reference: &Tap) {
        for (router, theirs) in &reference.routers {
            let Some(ours) = model.routers.get(router) else { continue };
            let sum = self.routers.entry(router.clone()).or_default();
            count(&mut sum.usage, ours);
            count(&mut sum.reference_usage, theirs);
            let tokens = ours.chosen.chunks(ours.top_k.max(1)).zip(theirs.chosen.chunks(theirs.top_k.max(1)));
            for (ours, theirs) in tokens {
                let ours: HashSet<&usize> = ours.iter().collect();
                sum.shared += theirs.iter().filter(|e| ours.contains(e)).count() as u64;
                sum.chosen += theirs.len() as u64;
            }
        }
    }

    /// The figures, layers in the order of the model; `None` if nothing was routed.
    pub fn figures(&self, spec: &ModelSpec) -> Option<RoutingFigures> {
        let mut layers = Vec::new();
        let (mut shared, mut chosen) = (0, 0);
        for (layer, part) in spec.layers.iter().enumerate() {
            let Ffn::Moe(moe) = &part.ffn else { continue };
            let Some(sum) = self.routers.get(&moe.router.name).filter(|s| s.chosen > 0) else { continue };
            shared += sum.shared;
            chosen += sum.chosen;
            layers.push(LayerRouting {
                layer,
                overlap: sum.shared as f64 / sum.chosen as f64,
                usage: sum.usage.clone(),
                reference_usage: sum.reference_usage.clone(),
            });
        }
        (chosen > 0).then(|| RoutingFigures { overlap: shared as f64 / chosen as f64, layers })
    }
}

fn count(usage: &mut Vec<u64>, choices: &Choices) {
    usage.resize(choices.experts.max(usage.len()), 0);
    for expert in &choices.chosen {
        if let Some(n) = usage.get_mut(*expert) {
            *n += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tap(chosen: &[usize]) -> Tap {
        let mut tap = Tap::default();
        let chosen: Vec<(usize, f32)> = chosen.iter().map(|e| (*e, 0.5)).collect();
        // In two calls, as a long chunk comes.
        for part in chosen.chunks(4) {
            tap.routed(&Routed { router: "r", experts: 6, top_k: 2, chosen: part });
        }
        tap
    }

    #[test]
    fn the_order_of_a_tokens_experts_does_not_matter_and_other_tokens_do_not_count() {
        let mut sums = Sums::default();
        //         token 0: both; token 1: one of two; token 2: none, though token 1 chose the same.
        sums.add(&tap(&[1, 0, 2, 3, 4, 5]), &tap(&[0, 1, 2, 5, 2, 3]));
        let sum = &sums.routers["r"];
        assert_eq!((sum.shared, sum.chosen), (3, 6));
        assert_eq!((&*sum.usage, &*sum.reference_usage), (&[1, 1, 1, 1, 1, 1][..], &[1, 1, 2, 1, 0, 1][..]));
        sums.add(&tap(&[1, 0]), &tap(&[0, 1]));
        assert_eq!((sums.routers["r"].shared, sums.routers["r"].chosen), (5, 8));
    }
}
