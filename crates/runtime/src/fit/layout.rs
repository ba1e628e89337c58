//! [`Layout`]: of what a token reads, how much lies where.

use super::{Fit, Needs};
use crate::nvme::expert_matrix;
use crate::placement::{Planned, Tier};
use ashlar_arch::Class;
use std::collections::BTreeMap;

/// Where the weights of a model lie. Bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Layout {
    /// Weights that every token reads, on cards and in the host's memory.
    pub dense: [f64; 2],
    /// The share of keys and values that lies on cards.
    pub context: f64,
    /// Experts of layers all of whose experts lie on cards.
    pub fixed: f64,
    /// Slots of cards, which the experts of all other layers take turns in.
    pub slots: f64,
    /// Experts that the host's memory holds, those of slots among them if it holds all.
    pub memory: f64,
    /// All experts.
    pub experts: f64,
}

impl Layout {
    /// As [`super::fit`] lays a model out.
    #[must_use]
    pub fn of(needs: &Needs, fit: &Fit) -> Self {
        let core = needs.core() as f64;
        let share = if core > 0.0 { (fit.vram_core as f64 / core).min(1.0) } else { 0.0 };
        let (dense, experts) = (needs.dense as f64, needs.experts as f64);
        let all = fit.vram_experts == needs.experts;
        Self {
            dense: [dense * share, dense * (1.0 - share)],
            context: share,
            fixed: if all { experts } else { 0.0 },
            slots: if all { 0.0 } else { fit.vram_experts as f64 },
            memory: if all { 0.0 } else { fit.ram_experts as f64 },
            experts,
        }
    }

    /// As a placement does, of a model whose tensors take `bytes` each.
    #[must_use]
    pub fn placed(planned: &Planned, tied: bool, bytes: &dyn Fn(&str) -> Option<u64>) -> Self {
        let Planned { draft, placement, .. } = planned;
        let is_card = |device: usize| placement.devices.get(device).is_some_and(|s| s.offer.device.is_accelerator());
        let mut layout = Self::default();
        let mut on_disk = 0.0;
        let mut layers: BTreeMap<usize, (f64, bool)> = BTreeMap::new();
        for (leaf, (device, tier)) in draft.leaves.iter().zip(&placement.weights) {
            let size = bytes(&leaf.name).unwrap_or(0) as f64;
            if expert_matrix(leaf).is_some() {
                let layer = layers.entry(leaf.role.layer.unwrap_or(0)).or_insert((0.0, true));
                layer.0 += size;
                layer.1 &= is_card(*device);
                on_disk += if *tier == Tier::Nvme { size } else { 0.0 };
            } else if leaf.role.class != Class::Embed || tied {
                layout.dense[usize::from(!is_card(*device))] += size;
            }
        }
        layout.experts = layers.values().map(|(size, _)| size).sum();
        layout.fixed = layers.values().filter(|(_, on_card)| *on_card).map(|(size, _)| size).sum();
        let slots = placement.devices.iter().filter_map(|share| share.expert_slots);
        layout.slots = slots.map(|plan| plan.count as f64 * plan.bytes as f64).sum::<f64>().min(layout.moving());
        let hosts = placement.devices.iter().filter(|share| !share.offer.device.is_accelerator());
        let turns: f64 = hosts.map(|share| share.slots as f64).sum();
        layout.memory = layout.experts - layout.fixed - on_disk + turns.min(on_disk);
        let caches: Vec<(f64, bool)> =
            draft.caches.iter().zip(&placement.caches).map(|(c, d)| (c.reserved() as f64, is_card(*d))).collect();
        let all: f64 = caches.iter().map(|(size, _)| size).sum();
        let here: f64 = caches.iter().filter(|(_, card)| *card).map(|(size, _)| size).sum();
        layout.context = if all > 0.0 { here / all } else { 0.0 };
        layout
    }

    /// Whether cards hold anything that a token reads.
    #[must_use]
    pub fn has_card(&self) -> bool {
        self.dense[0] + self.fixed + self.slots > 0.0
    }

    /// Experts of layers that cards do not hold whole.
    pub(super) fn moving(&self) -> f64 {
        (self.experts - self.fixed).max(0.0)
    }

    /// Experts that lie nowhere but on disk.
    #[must_use]
    pub fn disk(&self) -> f64 {
        let held = if self.memory >= self.moving() { self.memory } else { self.memory + self.slots };
        (self.moving() - held).max(0.0)
    }

    /// Shares of the bytes of moving experts that slots hold, and that slots and memory hold together.
    pub(super) fn shares(&self) -> [f64; 2] {
        let all = self.moving().max(1.0);
        [(self.slots / all).min(1.0), 1.0 - self.disk() / all]
    }
}
