//! [`Work`]: what a token does with the weights of one format.

use ashlar_arch::{Class, Ffn, ModelSpec};
use serde::Serialize;
use std::collections::{BTreeMap, HashMap};

/// What a token does with weights of one format.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Work {
    /// The format's id.
    pub format: String,
    /// Bytes of weights that every token reads, and multiply-adds with them.
    pub dense: [f64; 2],
    /// The same of routed experts.
    pub routed: [f64; 2],
}

impl Work {
    /// Of a model whose tensors are of these sizes and formats.
    #[must_use]
    pub fn of(spec: &ModelSpec, tensors: &HashMap<&str, (u64, String)>) -> Vec<Self> {
        let mut all: BTreeMap<String, Self> = BTreeMap::new();
        let mut shares = HashMap::new();
        for (i, layer) in spec.layers.iter().enumerate() {
            if let Ffn::Moe(moe) = &layer.ffn {
                shares.insert(i, moe.routing.top_k as f64 / moe.experts.len().max(1) as f64);
            }
        }
        for leaf in spec.loaded() {
            let Some((bytes, format)) = tensors.get(leaf.name.as_str()) else { continue };
            let products = if let [n, k] = *leaf.shape { n as f64 * k as f64 } else { 0.0 };
            let id = format.split(':').next().unwrap_or(format).to_owned();
            let work = all.entry(id.clone()).or_insert_with(|| Self { format: id, ..Self::default() });
            let (to, share) = match leaf.role.class {
                Class::Embed if spec.lm_head.is_some() => continue,
                Class::Experts => {
                    (&mut work.routed, leaf.role.layer.and_then(|l| shares.get(&l)).copied().unwrap_or(1.0))
                }
                _ => (&mut work.dense, 1.0),
            };
            to[0] += share * *bytes as f64;
            to[1] += share * products;
        }
        all.into_values().collect()
    }
}
