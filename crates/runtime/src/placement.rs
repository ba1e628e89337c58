//! Placement: which device holds each weight and computes each op of a model, as rules say and as memory allows.
//!
//! [`place`] is a pure function from a [`Draft`], the bytes of its weights, what rules say and what devices are offered, to
//! a [`Placement`]: bytes per device, and steps with a copy wherever activations cross. The cast: `wish` (rules to
//! devices), `group` (what must lie together), `assign` (who gets what), `shared` (experts in slots), `schedule` (steps), `disk` (what memory has no room
//! for), `misfit` (what to do where it does not fit), `request` (from options to offers). Nothing here opens a device or reads a weight.

mod assign;
mod chunk;
mod disk;
mod group;
mod misfit;
mod request;
mod schedule;
mod shared;
mod wish;

use crate::nvme::expert_matrix;
use crate::program::Draft;
use ashlar_backend::{BufferId, Op, Reserved};
use ashlar_recipe::{Device, DeviceShare, Place, Resolved};
use assign::{Assignment, HOST, Placer};
use disk::overflow;
use group::Groups;
use wish::Wish;

pub(crate) use chunk::{grown, largest as largest_chunk};
pub use misfit::Misfit;
pub(crate) use request::Request;
pub use request::{PlacementText, Planned, plan};
pub use schedule::Step;
pub use shared::SlotPlan;

/// A device that a placement may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// The device.
    pub device: Device,
    /// The most bytes it may hold; `None` where nothing bounds it.
    pub budget: Option<u64>,
}

/// Where bytes lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tier {
    /// Memory of an accelerator.
    Vram,
    /// Memory of the host.
    Ram,
    /// On disk, read as they are used.
    Nvme,
}

impl Tier {
    /// The word of recipes.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Vram => "vram",
            Self::Ram => "ram",
            Self::Nvme => "nvme",
        }
    }
}

/// What a device holds of a placed model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// The device, and the most it may hold.
    pub offer: Offer,
    /// What it holds.
    pub bytes: Reserved,
    /// Of its weights, those that stay on disk.
    pub on_disk: u64,
    /// Memory for experts on disk, which they take turns in: what the budget leaves, at most as much as they are; 0 where nothing
    /// bounds the device (then it is decided at the start, by what memory is free).
    pub slots: u64,
    /// Of an accelerator: slots in which experts that lie on the host take turns.
    pub expert_slots: Option<SlotPlan>,
}

/// Where everything of a model is.
#[derive(Clone, Debug)]
pub struct Placement {
    /// The devices in use, the host first if it is.
    pub devices: Vec<Share>,
    /// Of every weight of the draft: its device, by number, and where there.
    pub weights: Vec<(usize, Tier)>,
    /// Of every weight: the accelerator, by number, in whose slots it takes turns.
    pub slotted: Vec<Option<usize>>,
    /// The device of every cache.
    pub caches: Vec<usize>,
    /// What runs, in order.
    pub steps: Vec<Step>,
    /// The device that has the logits in the end.
    pub logits: usize,
    /// What the user should know.
    pub notes: Vec<String>,
}

/// Why a model cannot be placed as asked.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlaceError {
    /// A rule asks for what there is not.
    #[error("{by}: tensor `{tensor}`: {what}")]
    Rule {
        /// The first tensor it is about.
        tensor: String,
        /// Which rule.
        by: String,
        /// What is wrong.
        what: String,
    },
    /// A device that is not among those offered.
    #[error("{device} is not among the devices of this placement")]
    NotOffered {
        /// The device.
        device: Device,
    },
    /// Matrices that one op reads, wished on two devices.
    #[error(transparent)]
    Apart(Box<Apart>),
    /// Too much for a device.
    #[error(transparent)]
    Misfit(Box<Misfit>),
}

/// Matrices that one op reads, wished on two devices.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "tensor `{}` is to be on {} ({}) and `{}` on {} ({}), but one operation reads both; place them together",
    tensors[0], devices[0], by[0], tensors[1], devices[1], by[1]
)]
pub struct Apart {
    /// The tensors.
    pub tensors: [String; 2],
    /// Their devices.
    pub devices: [Device; 2],
    /// Who said so.
    pub by: [String; 2],
}

/// What [`place`] goes by.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// The model.
    pub draft: &'a Draft,
    /// Bytes of its weights, as they are stored.
    pub bytes: &'a [u64],
    /// What rules say of its weights, if there are rules.
    pub places: Option<&'a [Place]>,
    /// Where all of it goes, if there are no rules and not wherever there is room.
    pub home: Option<Device>,
    /// The host first, then accelerators, in the order in which they are filled.
    pub offers: &'a [Offer],
    /// Bytes of disk that weights may stay on; 0 for none.
    pub disk: u64,
    /// Whether accelerators use the host's memory: slots would only hold what is there already.
    pub unified: bool,
}

/// Places a model.
///
/// # Errors
/// [`PlaceError`]: rules that contradict each other or the devices, or too much for a device.
pub fn place(wanted: &Wanted<'_>) -> Result<Placement, PlaceError> {
    let Wanted { draft, bytes, places, home, offers, unified, .. } = *wanted;
    let wishes = wish::wishes(&draft.leaves, places, offers, home)?;
    let groups = Groups::new(draft, bytes);
    let placer = Placer { draft, groups: &groups, offers, bytes, slots: !unified };
    let mut notes = Vec::new();
    let asked = placer.decided(&wishes, &mut notes)?;
    let found = placer.complete(&mut asked.clone(), &wishes, &|_, _| true);
    let found = finish(wanted, &groups, &wishes, &found, notes);
    let Some(over) = found.over() else { return Ok(found) };
    Err(PlaceError::Misfit(Box::new(misfit::explain(wanted, &groups, &asked, &found, over))))
}

/// The nearest placement that fits: as [`place`], but what an accelerator has no room for stays on the host, from the last
/// layer on.
///
/// # Errors
/// As [`place`]; too much for the host too.
pub fn nearest(wanted: &Wanted<'_>) -> Result<Placement, PlaceError> {
    let Wanted { draft, bytes, places, home, offers, unified, .. } = *wanted;
    let wishes = wish::wishes(&draft.leaves, places, offers, home)?;
    let groups = Groups::new(draft, bytes);
    let placer = Placer { draft, groups: &groups, offers, bytes, slots: !unified };
    let mut notes = Vec::new();
    let asked = placer.decided(&wishes, &mut notes)?;
    let accelerated = |g: usize| asked[g].filter(|d| offers[*d].device.is_accelerator());
    let mut decided: Vec<_> = (0..asked.len()).map(|g| asked[g].filter(|_| accelerated(g).is_none())).collect();
    let found = placer.complete(&mut decided, &wishes, &|group, device| accelerated(group).is_none_or(|d| d == device));
    let found = finish(wanted, &groups, &wishes, &found, notes);
    let Some(over) = found.over() else { return Ok(found) };
    Err(PlaceError::Misfit(Box::new(misfit::explain(wanted, &groups, &asked, &found, over))))
}

/// Tiers, steps and sums of an assignment; devices that hold nothing are left out.
fn finish(
    wanted: &Wanted<'_>,
    groups: &Groups,
    wishes: &[Wish],
    assignment: &Assignment,
    notes: Vec<String>,
) -> Placement {
    let Wanted { draft, bytes, offers, unified, .. } = *wanted;
    let placer = Placer { draft, groups, offers, bytes, slots: !unified };
    let mut usage = placer.usage(assignment);
    let slots = placer.slots(assignment);
    slots.iter().for_each(|(device, plan)| usage[*device].add_slots(plan.count - plan.lent, plan.bytes));
    let (steps, logits) = schedule::schedule(draft, groups, assignment);
    let used: Vec<usize> = (0..offers.len()).filter(|d| usage[*d] != Reserved::default()).collect();
    let number = |device: usize| used.iter().position(|d| *d == device).unwrap_or(0);
    let mut weights: Vec<(usize, Tier)> = Vec::with_capacity(draft.leaves.len());
    let mut slotted = vec![None; draft.leaves.len()];
    let mut on_disk = vec![0u64; offers.len()];
    for (i, group) in groups.of_weight.iter().enumerate() {
        let mut device = assignment.groups[*group];
        if assignment.shares(*group) && expert_matrix(&draft.leaves[i]).is_some() {
            slotted[i] = Some(device);
            device = HOST;
        }
        let tier = match wishes[i].tier {
            _ if offers[device].device.is_accelerator() => Tier::Vram,
            Some(Tier::Nvme) => Tier::Nvme,
            _ => Tier::Ram,
        };
        if tier == Tier::Nvme {
            on_disk[device] += bytes[i];
        }
        weights.push((device, tier));
    }
    overflow(wanted, wishes, &usage, &mut weights, &mut on_disk);
    let experts: Vec<u64> = (0..offers.len()).map(|d| disk::experts(draft, bytes, &weights, d).0).collect();
    let mut caches = vec![0; draft.caches.len()];
    for (group, &device) in groups.list.iter().zip(&assignment.groups) {
        group.caches.iter().for_each(|c| caches[*c] = number(device));
    }
    let renumbered = steps.into_iter().map(|step| match step {
        Step::Run { device, op } => Step::Run { device: number(device), op },
        Step::Shared { device, host, op } => Step::Shared { device: number(device), host: number(host), op },
        Step::Copy { from, to, buffer } => Step::Copy { from: number(from), to: number(to), buffer },
    });
    Placement {
        devices: used
            .iter()
            .map(|d| Share {
                expert_slots: slots.get(d).copied(),
                ..Share::new(offers[*d], usage[*d], on_disk[*d], experts[*d])
            })
            .collect(),
        slotted: slotted.into_iter().map(|device| device.map(number)).collect(),
        weights: weights.into_iter().map(|(device, tier)| (number(device), tier)).collect(),
        caches,
        steps: renumbered.collect(),
        logits: number(logits),
        notes,
    }
}

impl Placement {
    /// The first device that holds more than it may.
    fn over(&self) -> Option<usize> {
        self.devices.iter().position(|s| s.offer.budget.is_some_and(|b| s.in_memory() > b))
    }

    /// Bytes of memory in which experts take turns, by device: those of the disk in the host's, those of the host on accelerators.
    #[must_use]
    pub fn moving(&self) -> Vec<(Device, u64)> {
        let slots = |s: &Share| s.expert_slots.map_or(0, |plan| plan.count as u64 * plan.bytes as u64);
        self.devices.iter().map(|s| (s.offer.device, s.slots + slots(s))).collect()
    }

    /// What it came to: a run of the same placement must come to the same.
    #[must_use]
    pub fn resolved(&self, draft: &Draft) -> Resolved {
        let share = |s: &Share| DeviceShare {
            device: s.offer.device.to_string(),
            budget: s.offer.budget,
            weights: s.bytes.weights,
            caches: s.bytes.caches,
            activations: s.bytes.activations,
            slots: s.bytes.slots,
        };
        Resolved {
            context: draft.sizes.context,
            chunk: draft.sizes.rows,
            sequences: draft.sizes.sequences,
            kv: draft.sizes.kv.name().to_owned(),
            devices: self.devices.iter().map(share).collect(),
        }
    }

    /// Copies per batch, and the bytes that they move for every row of it; where a device shares a mixture with the host, at most.
    #[must_use]
    pub fn crossings(&self, draft: &Draft) -> (usize, u64) {
        let width = |buffer: &BufferId| 4 * draft.widths.get(buffer.0 as usize).copied().unwrap_or(0) as u64;
        let moved = |step: &Step| match step {
            Step::Copy { buffer, .. } => (1, width(buffer)),
            // Rows to the host, a product of each of their experts back.
            Step::Shared { op: Op::Moe { x, routing, .. }, .. } => (2, width(x) * (1 + routing.top_k as u64)),
            Step::Shared { .. } | Step::Run { .. } => (0, 0),
        };
        self.steps.iter().map(moved).fold((0, 0), |(n, all), (copies, bytes)| (n + copies, all + bytes))
    }
}

impl Share {
    /// `experts`: bytes on disk that memory which is left may hold for a while.
    fn new(offer: Offer, bytes: Reserved, on_disk: u64, experts: u64) -> Self {
        let left = offer.budget.map_or(0, |budget| (budget + on_disk).saturating_sub(bytes.total()));
        Self { offer, bytes, on_disk, slots: left.min(experts), expert_slots: None }
    }

    /// Bytes in the device's memory.
    #[must_use]
    pub fn in_memory(&self) -> u64 {
        self.bytes.total().saturating_sub(self.on_disk)
    }
}
