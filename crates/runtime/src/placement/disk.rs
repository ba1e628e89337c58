//! What the host has no memory for stays on disk: experts first, of which a token reads a few. They take turns in the memory
//! that is left, so all of them stay there rather than some: which ones a text uses is not known beforehand.

use super::group;
use super::wish::Wish;
use super::{Tier, Wanted};
use crate::nvme::expert_matrix;
use crate::program::Draft;
use ashlar_backend::Reserved;
use std::collections::BTreeMap;

/// Experts that must find room beside each other: one that is computed with and one that is read.
const LEAST: u64 = 2;

/// Bytes of the experts that a device has on disk, and of the largest of them.
pub fn experts(draft: &Draft, bytes: &[u64], weights: &[(usize, Tier)], device: usize) -> (u64, u64) {
    let mut all: BTreeMap<(usize, usize), u64> = BTreeMap::new();
    for (i, leaf) in draft.leaves.iter().enumerate() {
        if let Some(key) = expert_matrix(leaf).filter(|_| weights[i] == (device, Tier::Nvme)) {
            *all.entry(key).or_default() += bytes[i];
        }
    }
    (all.values().sum(), all.values().copied().max().unwrap_or(0))
}

/// What the host has no memory for stays on disk, where there is one: all experts; then, as they are used, other matrices, from the
/// last layer on. Rules that say `ram` hold.
pub fn overflow(
    wanted: &Wanted<'_>,
    wishes: &[Wish],
    usage: &[Reserved],
    weights: &mut [(usize, Tier)],
    on_disk: &mut [u64],
) {
    let Wanted { draft, bytes, offers, disk, .. } = *wanted;
    for (device, offer) in offers.iter().enumerate().filter(|(_, o)| !o.device.is_accelerator()) {
        let Some(budget) = offer.budget else { continue };
        let all = usage[device].total();
        if all.saturating_sub(on_disk[device]) <= budget {
            continue;
        }
        let mut free: Vec<usize> = (0..weights.len())
            .filter(|w| {
                weights[*w] == (device, Tier::Ram) && wishes[*w].tier.is_none() && group::leads(&draft.leaves[*w])
            })
            .collect();
        let is_expert = |w: usize| expert_matrix(&draft.leaves[w]).is_some();
        free.sort_by_key(|w| (is_expert(*w), draft.leaves[*w].role.layer));
        let mut least = None;
        while let Some(weight) = free.pop() {
            if !is_expert(weight) {
                let least = *least.get_or_insert_with(|| LEAST * experts(draft, bytes, weights, device).1);
                if all.saturating_sub(on_disk[device]) + least <= budget {
                    break;
                }
            }
            if on_disk[device] + bytes[weight] > disk {
                break;
            }
            weights[weight].1 = Tier::Nvme;
            on_disk[device] += bytes[weight];
        }
    }
}
