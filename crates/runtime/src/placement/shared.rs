//! Mixtures that an accelerator and the host compute together (`tier: cached`): routers and what is small lie on the accelerator,
//! experts in the host's memory or behind it, and the memory that the accelerator has left is slots in which experts take turns.
//!
//! Whole layers on the accelerator are better where all of them find room; then there are no slots.

use super::assign::{Assignment, Placer};
use super::group::{Group, Kind};
use super::wish::Wish;
use crate::nvme::expert_matrix;
use crate::program::Draft;
use ashlar_backend::{ARENA_ALIGN, Op, SLOT_ALIGN, slot_bytes};
use std::collections::{BTreeMap, BTreeSet};

/// Planes of a weight begin at multiples of [`SLOT_ALIGN`], and no format has more of them.
const PLANES: usize = 8;

/// Slots on an accelerator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotPlan {
    /// How many.
    pub count: usize,
    /// Of these, as many as stand in memory for keys and values: they go, the coldest first, as texts grow.
    pub lent: usize,
    /// Bytes of each, which hold any of the experts.
    pub bytes: usize,
    /// Experts that take turns in them.
    pub experts: usize,
    /// Of these, as many as one token uses.
    pub uses: usize,
}

/// Bytes of the matrices of a group's experts as they are charged where they lie whole, by expert: charged, and in a slot.
pub fn experts(draft: &Draft, bytes: &[u64], group: &Group) -> BTreeMap<(usize, usize), (u64, usize)> {
    let mut all = BTreeMap::new();
    for &weight in &group.weights {
        let (Some(key), Some(&size)) = (draft.leaves.get(weight).and_then(expert_matrix), bytes.get(weight)) else {
            continue;
        };
        let (charged, slot): &mut (u64, usize) = all.entry(key).or_default();
        *charged += size.next_multiple_of(ARENA_ALIGN);
        *slot += usize::try_from(size).unwrap_or(usize::MAX / 4).next_multiple_of(SLOT_ALIGN) + PLANES * SLOT_ALIGN;
    }
    all
}

impl Placer<'_> {
    /// Completes what is decided: groups that are free get memory of accelerators in their turn (`may`: which device a group
    /// may get), those that are to be cached whole or in slots, and the rest follows.
    pub fn complete(
        &self,
        decided: &mut Vec<Option<usize>>,
        wishes: &[Wish],
        may: &dyn Fn(usize, usize) -> bool,
    ) -> Assignment {
        let cached: Vec<bool> = self.groups.list.iter().map(|group| self.is_cached(group, wishes)).collect();
        let free = |g: usize, decided: &[Option<usize>]| cached[g] && decided[g].is_none();
        if !self.slots || !(0..cached.len()).any(|g| free(g, decided)) {
            self.fill(decided, may);
            return self.follow(decided);
        }
        let kind = |g: usize| self.groups.list[g].turn.map(|turn| turn.kind);
        let asked = decided.clone();
        self.fill(decided, &|g, d| kind(g) == Some(Kind::Dense) && may(g, d));
        let mut whole = decided.clone();
        self.fill(&mut whole, &|g, d| kind(g) == Some(Kind::Experts) && may(g, d));
        if !(0..cached.len()).any(|g| free(g, &whole)) {
            *decided = whole;
            self.fill(decided, may);
            return self.follow(decided);
        }
        self.spread(decided, &|g, d| asked[g].is_none() && may(g, d));
        self.share(decided, &cached, wishes)
    }

    /// Gives each of several accelerators a stretch of the layers that it `may` get, so that all of them have room for slots; leaves them as they
    /// were filled where that does not fit.
    fn spread(&self, decided: &mut Vec<Option<usize>>, may: &dyn Fn(usize, usize) -> bool) {
        let on: Vec<usize> = (0..self.offers.len()).filter(|d| self.offers[*d].device.is_accelerator()).collect();
        let filled = |g: usize| decided[g].is_some_and(|d| on.contains(&d));
        let layer = |g: usize| {
            let turn = self.groups.list[g].turn.filter(|t| t.kind == Kind::Dense && t.layer != usize::MAX);
            turn.map(|turn| turn.layer).filter(|_| filled(g))
        };
        let layers: BTreeSet<usize> = (0..decided.len()).filter_map(layer).collect();
        let each = layers.len().div_ceil(on.len().max(1)).max(1);
        let stretch: BTreeMap<usize, usize> = layers.into_iter().enumerate().map(|(i, l)| (l, on[i / each])).collect();
        let mut tried = decided.clone();
        for (g, device) in tried.iter_mut().enumerate() {
            let to = layer(g).and_then(|l| stretch.get(&l)).copied();
            *device = to.filter(|d| may(g, *d)).or(*device);
        }
        if self.fits(&self.usage(&self.follow(&tried))) {
            *decided = tried;
        }
    }

    fn is_cached(&self, group: &Group, wishes: &[Wish]) -> bool {
        let mut matrices = group.weights.iter().filter(|w| expert_matrix(&self.draft.leaves[**w]).is_some()).peekable();
        matrices.peek().is_some() && matrices.all(|w| wishes.get(*w).is_some_and(|wish| wish.cached))
    }

    /// Gives the routers of cached groups to the accelerators that have the rest of their layers, as long as an expert finds room
    /// in a slot there.
    fn share(&self, decided: &mut [Option<usize>], cached: &[bool], wishes: &[Wish]) -> Assignment {
        let mut homes: BTreeMap<usize, usize> = BTreeMap::new();
        for (group, device) in self.groups.list.iter().zip(&*decided) {
            let on = device.filter(|d| self.offers[*d].device.is_accelerator());
            if let (Some(turn), Some(device)) = (group.turn.filter(|t| t.kind == Kind::Dense), on) {
                homes.insert(turn.layer, device);
            }
        }
        let mut shared = vec![false; decided.len()];
        for (g, group) in self.groups.list.iter().enumerate() {
            if !cached[g] || decided[g].is_some() {
                continue;
            }
            let asked = group.weights.iter().find_map(|w| wishes.get(*w)?.slots_on);
            let home = asked.or_else(|| group.turn.and_then(|turn| homes.get(&turn.layer).copied()));
            let Some(device) = home else { continue };
            (decided[g], shared[g]) = (Some(device), true);
            let tried = self.follow_shared(decided, &shared);
            let room = self.slots(&tried).get(&device).is_some_and(|slots| slots.count > 0);
            if !room || !self.fits(&self.usage(&tried)) {
                (decided[g], shared[g]) = (None, false);
            }
        }
        self.follow_shared(decided, &shared)
    }

    /// Slots of accelerators: as many as fit into what is left of their budgets, at most as many as there are experts for them.
    #[must_use]
    pub fn slots(&self, assignment: &Assignment) -> BTreeMap<usize, SlotPlan> {
        let mut all: BTreeMap<usize, SlotPlan> = BTreeMap::new();
        for (g, group) in self.groups.list.iter().enumerate().filter(|(g, _)| assignment.shares(*g)) {
            let empty = SlotPlan { count: 0, lent: 0, bytes: 0, experts: 0, uses: 0 };
            let plan = all.entry(assignment.groups[g]).or_insert(empty);
            let experts = experts(self.draft, self.bytes, group);
            plan.experts += experts.len();
            plan.bytes = experts.values().map(|(_, slot)| *slot).fold(plan.bytes, usize::max);
        }
        for (op, units) in self.draft.program.ops.iter().zip(&self.groups.units) {
            let (Op::Moe { routing, .. }, [unit]) = (op, &units[..]) else { continue };
            let device = unit.group.filter(|g| assignment.shares(*g)).map(|g| assignment.groups[g]);
            if let Some(plan) = device.and_then(|device| all.get_mut(&device)) {
                plan.uses += routing.top_k;
            }
        }
        let usage = self.usage(assignment);
        for (device, plan) in &mut all {
            let left = self.offers[*device].budget.map_or(u64::MAX, |b| b.saturating_sub(usage[*device].total()));
            let fit = |bytes: u64| usize::try_from(bytes / slot_bytes(plan.bytes).max(1)).unwrap_or(usize::MAX);
            let own = fit(left).min(plan.experts);
            plan.lent = fit(usage[*device].caches).min(plan.experts - own);
            plan.count = own + plan.lent;
        }
        all
    }
}
