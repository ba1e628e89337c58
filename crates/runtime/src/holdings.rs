//! What a loaded model's weights take, by device, tier, class and layer: for those who watch.

use crate::placement::Placement;
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

/// The weights of a placed program, in the order of devices, tiers, layers and classes.
pub(crate) fn holdings(draft: &Draft, placement: &Placement, bytes: &dyn Fn(&str) -> Option<u64>) -> Vec<Holding> {
    let mut sums = BTreeMap::new();
    for (leaf, (device, tier)) in draft.leaves.iter().zip(&placement.weights) {
        let key = (*device, *tier, leaf.role.layer, leaf.role.class);
        *sums.entry(key).or_insert(0) += bytes(&leaf.name).unwrap_or(0);
    }
    let name = |device: usize| placement.devices.get(device).map_or_else(String::new, |s| s.offer.device.to_string());
    let one = |((device, tier, layer, class), bytes): (
        (usize, crate::placement::Tier, Option<usize>, ashlar_arch::Class),
        u64,
    )| { Holding { device: name(device), tier: tier.name(), class: class.to_string(), layer, bytes } };
    sums.into_iter().map(one).collect()
}
