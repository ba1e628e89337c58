//! Which device every group of weights and every op gets: as rules say, then what fits, then what lies beside it.

use super::group::{Group, Groups, leads};
use super::wish::Wish;
use super::{Apart, Offer, PlaceError};
use crate::program::Draft;
use ashlar_backend::Reserved;
use std::collections::BTreeMap;

/// A decision for everything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// The device of every group.
    pub groups: Vec<usize>,
    /// The device of every unit of every op.
    pub units: Vec<Vec<usize>>,
    /// Of every group, whether its device shares it with the host, which has the experts.
    pub shared: Vec<bool>,
}

impl Assignment {
    /// Whether a group is shared.
    #[must_use]
    pub fn shares(&self, group: usize) -> bool {
        self.shared.get(group) == Some(&true)
    }
}

/// The number of the host among the offers.
pub const HOST: usize = 0;

/// Places a draft.
pub struct Placer<'a> {
    pub draft: &'a Draft,
    pub groups: &'a Groups,
    pub offers: &'a [Offer],
    /// Bytes of weights.
    pub bytes: &'a [u64],
    /// Whether experts may take turns on accelerators.
    pub slots: bool,
}

impl Placer<'_> {
    /// What rules say of groups: of matrices, else of what goes with them. Tells which tensors go elsewhere than their own
    /// rules said.
    ///
    /// # Errors
    /// [`PlaceError::Apart`] if matrices that one op reads are wished on different devices.
    pub fn decided(&self, wishes: &[Wish], notes: &mut Vec<String>) -> Result<Vec<Option<usize>>, PlaceError> {
        let mut moved: BTreeMap<(&'static str, usize), usize> = BTreeMap::new();
        let mut all = Vec::with_capacity(self.groups.list.len());
        for group in &self.groups.list {
            let device = self.wished(group, wishes)?;
            for &weight in &group.weights {
                if let (Some(to), Some(wish)) = (device, wishes.get(weight))
                    && wish.by.is_some()
                    && wish.device.is_some_and(|d| d != to)
                {
                    *moved.entry((self.draft.leaves[weight].role.class.name(), to)).or_default() += 1;
                }
            }
            all.push(device);
        }
        for ((class, to), count) in moved {
            let device = self.offers[to].device;
            notes.push(format!(
                "{count} small tensors of class {class} go to {device}, with the matrices that the same operations read"
            ));
        }
        Ok(all)
    }

    fn wished(&self, group: &Group, wishes: &[Wish]) -> Result<Option<usize>, PlaceError> {
        let wish = |weight: usize| wishes.get(weight).and_then(|w| w.device);
        let leading = || group.weights.iter().copied().filter(|w| leads(&self.draft.leaves[*w]));
        let mut first: Option<(usize, usize)> = None;
        for weight in leading() {
            match (first, wish(weight)) {
                (Some((other, a)), Some(b)) if a != b => {
                    let name = |weight: usize| self.draft.leaves[weight].name.clone();
                    let by = |weight: usize| wishes[weight].by.clone().unwrap_or_else(|| "--device".into());
                    let apart = Apart {
                        tensors: [name(other), name(weight)],
                        devices: [a, b].map(|d| self.offers[d].device),
                        by: [by(other), by(weight)],
                    };
                    return Err(PlaceError::Apart(Box::new(apart)));
                }
                (None, Some(device)) => first = Some((weight, device)),
                _ => {}
            }
        }
        if first.is_some() || leading().next().is_some() {
            return Ok(first.map(|(_, device)| device));
        }
        // Only small tensors: what their own rules say.
        Ok(group.weights.iter().filter(|w| wishes[**w].by.is_some()).find_map(|w| wish(*w)))
    }

    /// Gives groups that are free memory of accelerators, in their turn, as long as there is some; `may` says which devices a
    /// group may get. All else stays on the host.
    pub fn fill(&self, decided: &mut [Option<usize>], may: &dyn Fn(usize, usize) -> bool) {
        let mut turns: BTreeMap<_, Vec<usize>> = BTreeMap::new();
        for (i, group) in self.groups.list.iter().enumerate() {
            if let (None, Some(turn)) = (decided[i], group.turn) {
                turns.entry(turn).or_default().push(i);
            }
        }
        let accelerators: Vec<usize> =
            (0..self.offers.len()).filter(|d| self.offers[*d].device.is_accelerator()).collect();
        for block in turns.values() {
            for &device in &accelerators {
                let mut tried = decided.to_vec();
                for &group in block.iter().filter(|g| may(**g, device)) {
                    tried[group] = Some(device);
                }
                if tried != decided && self.fits(&self.usage(&self.follow(&tried))) {
                    decided.copy_from_slice(&tried);
                    break;
                }
            }
        }
    }

    /// Whether no accelerator holds more than it may.
    pub fn fits(&self, usage: &[Reserved]) -> bool {
        let fits = |(offer, used): (&Offer, &Reserved)| {
            !offer.device.is_accelerator() || offer.budget.is_none_or(|b| used.total() <= b)
        };
        self.offers.iter().zip(usage).all(fits)
    }

    /// Completes what is decided: matrices stay on the host, small tensors go with what reads their results, ops without
    /// weights run where their input was made.
    #[must_use]
    pub fn follow(&self, decided: &[Option<usize>]) -> Assignment {
        self.follow_shared(decided, &[])
    }

    /// The same where devices share some groups with the host.
    #[must_use]
    pub fn follow_shared(&self, decided: &[Option<usize>], shared: &[bool]) -> Assignment {
        let mut groups = decided.to_vec();
        for (group, device) in self.groups.list.iter().zip(&mut groups) {
            if group.turn.is_some() {
                *device = device.or(Some(HOST));
            }
        }
        self.follow_readers(&mut groups);
        let mut writer = vec![0; self.draft.widths.len()];
        let mut units = Vec::with_capacity(self.groups.units.len());
        for op in &self.groups.units {
            let mut devices = Vec::with_capacity(op.len());
            for unit in op {
                let input = unit.reads.first().map_or(0, |b| writer[*b]);
                let device = unit.group.and_then(|g| groups[g]).unwrap_or(input);
                if let Some(group) = unit.group {
                    groups[group] = Some(device);
                }
                unit.writes.iter().for_each(|b| writer[*b] = device);
                devices.push(device);
            }
            units.push(devices);
        }
        Assignment { groups: groups.into_iter().map(|g| g.unwrap_or(HOST)).collect(), units, shared: shared.to_vec() }
    }

    /// Norms and the like, which hold weights and are free, go with what reads their results next.
    fn follow_readers(&self, groups: &mut [Option<usize>]) {
        let mut reader: Vec<Option<usize>> = vec![None; self.draft.widths.len()];
        for unit in self.groups.units.iter().rev().flatten() {
            let holds = |g: &usize| !self.groups.list[*g].weights.is_empty();
            if let Some(group) = unit.group.filter(holds) {
                let next = unit.writes.iter().find_map(|b| reader[*b]);
                groups[group] = groups[group].or(next);
            }
            let device = unit.group.and_then(|g| groups[g]);
            unit.writes.iter().filter(|b| !unit.reads.contains(b)).for_each(|b| reader[*b] = None);
            if device.is_some() {
                unit.reads.iter().for_each(|b| reader[*b] = device);
            }
        }
    }

    /// What every device holds then.
    #[must_use]
    pub fn usage(&self, assignment: &Assignment) -> Vec<Reserved> {
        let mut used = vec![Reserved::default(); self.offers.len()];
        for (g, (group, &device)) in self.groups.list.iter().zip(&assignment.groups).enumerate() {
            let away = if assignment.shares(g) { group.experts } else { 0 };
            used[HOST].weights += away;
            used[device].weights += group.bytes.weights - away;
            used[device].caches += group.bytes.caches;
        }
        let mut seen = vec![false; self.offers.len() * self.draft.widths.len()];
        for (unit, &device) in self.groups.units.iter().flatten().zip(assignment.units.iter().flatten()) {
            let host = unit.group.is_some_and(|g| assignment.shares(g)).then_some(HOST);
            let of_host = host.into_iter().flat_map(|host| unit.reads.first().map(|b| (host, *b)));
            let own = unit.reads.iter().chain(&unit.writes).map(|b| (device, *b));
            for (device, buffer) in own.chain(of_host) {
                let seen = &mut seen[device * self.draft.widths.len() + buffer];
                if !std::mem::replace(seen, true) {
                    used[device].add_buffer(self.draft.sizes.rows, self.draft.widths[buffer]);
                }
            }
        }
        used
    }
}
