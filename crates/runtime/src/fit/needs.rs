//! What a model needs to run.

use crate::program::{Draft, Sizes};
use crate::routing::Routes;
use crate::{Kv, KvFormat};
use ashlar_arch::{Class, Ffn, Leaf, Mixer, ModelSpec};
use serde::Serialize;
use std::collections::HashMap;

/// Bytes that a model needs, and reads per token.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Needs {
    /// Weights that every token reads: all but embeddings and routed experts.
    pub dense: u64,
    /// The table of embeddings.
    pub embed: u64,
    /// Routed experts.
    pub experts: u64,
    /// Of those, what one token reads.
    pub active_experts: u64,
    /// The largest one.
    pub largest_expert: u64,
    /// How many there are.
    pub expert_count: usize,
    /// Experts per token, in the layer with the most.
    pub top_k: usize,
    /// Layers with routed experts.
    pub moe_layers: usize,
    /// Keys and values of one sequence over the whole context.
    pub kv: u64,
    /// Activations of one batch.
    pub activations: u64,
}

impl Needs {
    /// Of a model whose tensors take `bytes` each (next-token layers are not loaded), with one sequence of `context` tokens, fed
    /// `rows` at a time. Keys and values are stored as the release does, else in halves.
    #[must_use]
    pub fn of(spec: &ModelSpec, bytes: &HashMap<&str, u64>, context: usize, rows: usize) -> Self {
        let size = |leaf: &Leaf| bytes.get(leaf.name.as_str()).copied().unwrap_or_default();
        let mut needs = Self::default();
        for leaf in spec.loaded() {
            let bytes = size(leaf);
            match leaf.role.class {
                Class::Experts => needs.experts += bytes,
                // A tied head reads the table as a weight.
                Class::Embed if spec.lm_head.is_some() => needs.embed += bytes,
                _ => needs.dense += bytes,
            }
        }
        for layer in &spec.layers {
            let Ffn::Moe(moe) = &layer.ffn else { continue };
            let each = moe.experts.iter().map(|e| e.all().map(size).sum::<u64>());
            let (all, largest) = each.fold((0, 0), |(all, most), b| (all + b, b.max(most)));
            needs.largest_expert = needs.largest_expert.max(largest);
            needs.active_experts += all * moe.routing.top_k as u64 / moe.experts.len().max(1) as u64;
            needs.top_k = needs.top_k.max(moe.routing.top_k);
            needs.expert_count += moe.experts.len();
            needs.moe_layers += 1;
        }
        let has_native = spec.layers.iter().any(|layer| matches!(layer.attn, Mixer::Compressed(_)));
        let kv = if has_native { Kv::Native } else { KvFormat::F16.into() };
        let draft = Draft::new(spec, Sizes { sequences: 1, context, rows, kv });
        needs.kv = draft.caches.iter().map(|cache| cache.bytes(context, rows)).sum();
        needs.activations = draft.widths.iter().map(|width| (width * rows) as u64 * 4).sum();
        needs
    }

    /// Of a recorded model, as far as a recording tells: its layers, nothing for contexts and batches.
    #[must_use]
    pub fn of_routes(routes: &Routes) -> Self {
        let mut needs = Self { top_k: routes.top_k, expert_count: routes.slots(), ..Self::default() };
        for layer in &routes.layers {
            needs.dense += layer.dense;
            needs.experts += layer.expert * routes.experts as u64;
            needs.active_experts += layer.expert * routes.top_k as u64;
            needs.largest_expert = needs.largest_expert.max(layer.expert);
            needs.moe_layers += usize::from(layer.expert > 0);
        }
        needs
    }

    /// What every token reads or writes: weights, keys and values, activations.
    pub(super) fn core(&self) -> u64 {
        self.dense + self.kv + self.activations
    }

    /// Everything that is loaded.
    #[must_use]
    pub fn weights(&self) -> u64 {
        self.dense + self.embed + self.experts
    }
}
