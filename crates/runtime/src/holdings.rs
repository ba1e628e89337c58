//! What a loaded model's weights and caches take, by device, tier, class and layer: for those who watch.

use crate::placement::{Placement, Tier};
use crate::program::Draft;
use std::collections::BTreeMap;

/// Weights of one kind in one place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holding {
    /// The device that computes with them, as options name it.
    pub device: String,
    /// Where they lie: `vram`, `ram`, `nvme`.
    pub tier: &'static str,
    /// What they are for: the `class` of recipes.
    pub class: String,
    /// Their layer, from 0; `None` for what belongs to none.
    pub layer: Option<usize>,
    /// Bytes, as they are stored.
    pub bytes: u64,
}

/// Where a cache lies, and whose it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CachePlace {
    /// Its device, as options name it.
    pub device: String,
    /// `vram` or `ram`.
    pub tier: &'static str,
    /// The layer it belongs to, from 0.
    pub layer: Option<usize>,
}

/// The caches of a placed program, in the order of the draft. A layer's ops follow each other, so a cache belongs to the layer whose
/// weights were read last before it.
pub(crate) fn cache_places(draft: &Draft, placement: &Placement) -> Vec<CachePlace> {
    let mut layers = vec![None; draft.caches.len()];
    let mut layer = None;
    for op in &draft.program.ops {
        let operands = op.operands();
        let own = operands.weights.iter().filter_map(|id| draft.leaves.get(id.0 as usize)?.role.layer).next_back();
        layer = own.or(layer);
        for cache in operands.caches {
            if let Some(first @ None) = layers.get_mut(cache.0 as usize) {
                *first = layer;
            }
        }
    }
    let place = |(layer, device): (Option<usize>, &usize)| {
        let device = placement.devices.get(*device).map(|s| s.offer.device);
        let accelerated = device.is_some_and(|d| d.is_accelerator());
        let tier = if accelerated { Tier::Vram } else { Tier::Ram };
        CachePlace { device: device.map_or_else(String::new, |d| d.to_string()), tier: tier.name(), layer }
    };
    layers.into_iter().zip(&placement.caches).map(place).collect()
}

/// The weights of a placed program, in the order of devices, tiers, layers and classes.
pub(crate) fn holdings(draft: &Draft, placement: &Placement, bytes: &dyn Fn(&str) -> Option<u64>) -> Vec<Holding> {
    let mut sums = BTreeMap::new();
    for (leaf, (device, tier)) in draft.leaves.iter().zip(&placement.weights) {
        let key = (*device, *tier, leaf.role.layer, leaf.role.class);
        *sums.entry(key).or_insert(0) += bytes(&leaf.name).unwrap_or(0);
    }
    let name = |device: usize| placement.devices.get(device).map_or_else(String::new, |s| s.offer.device.to_string());
    let one = |((device, tier, layer, class), bytes): ((usize, Tier, Option<usize>, ashlar_arch::Class), u64)| {
        Holding { device: name(device), tier: tier.name(), class: class.to_string(), layer, bytes }
    };
    sums.into_iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use crate::{Model, OpenOptions};
    use ashlar_tensor::Silent;
    use std::path::PathBuf;

    fn layers(fixture: &str, device: &str) -> Vec<(String, &'static str, Option<usize>)> {
        let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(fixture);
        let options = OpenOptions { device: device.into(), context: Some(64), ..OpenOptions::default() };
        let model = Model::open(&dir, &options, &Silent).unwrap();
        assert_eq!(model.kv().by_cache().len(), model.cache_places().len());
        model.cache_places().iter().map(|c| (c.device.clone(), c.tier, c.layer)).collect()
    }

    #[test]
    fn every_cache_has_its_layer_and_place() {
        let of = |device: &str, tier| (0..4).map(|l| (device.to_owned(), tier, Some(l))).collect::<Vec<_>>();
        assert_eq!(layers("demo-moe", "cpu"), of("cpu", "ram"));
        assert_eq!(layers("demo-moe", "virtual:0"), of("virtual:0", "vram"));
    }

    #[test]
    fn layers_with_several_caches_have_all_of_them() {
        let found: Vec<usize> =
            layers("tiny/deepseek_v4", "cpu").into_iter().map(|(.., layer)| layer.unwrap()).collect();
        let config = std::fs::read_to_string(
            PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/tiny/deepseek_v4/config.json"),
        );
        let config: serde_json::Value = serde_json::from_str(&config.unwrap()).unwrap();
        let count = config["num_hidden_layers"].as_u64().unwrap() as usize;
        assert!(found.is_sorted() && found.len() > count, "{found:?}");
        assert_eq!(found.iter().collect::<std::collections::BTreeSet<_>>().len(), count);
    }
}
