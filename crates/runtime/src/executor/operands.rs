//! The devices' own names of a draft's operands, and steps with these.

use super::{Ready, Source};
use crate::RuntimeError;
use crate::load::{SlotSource, load_slotted, load_weight};
use crate::nvme::expert_matrix;
use crate::placement::Step;
use crate::program::Draft;
use crate::vram::{Shared, Slotting};
use ashlar_arch::Leaf;
use ashlar_backend::{Backend, BackendError, BufferId, CacheId, ExpertWeights, Op, Operand, WeightId};
use ashlar_tensor::TensorStore;
use std::collections::HashMap;

/// The devices' own names of a draft's operands.
pub struct Operands {
    /// By number.
    pub weights: Vec<WeightId>,
    /// What accelerators call weights of experts that take turns in their slots.
    slotted: HashMap<usize, WeightId>,
    /// What the host calls biases of experts that it computes together with an accelerator.
    biases: HashMap<usize, WeightId>,
    /// By device: experts that take turns there.
    experts: Vec<Slotting>,
    /// By number.
    pub caches: Vec<CacheId>,
    /// By device, then by number.
    buffers: Vec<Vec<Option<BufferId>>>,
}

impl Operands {
    /// None yet, of a draft on so many devices.
    pub fn new(draft: &Draft, devices: usize) -> Self {
        Self {
            weights: Vec::with_capacity(draft.leaves.len()),
            slotted: HashMap::new(),
            biases: HashMap::new(),
            experts: (0..devices).map(|_| Slotting::default()).collect(),
            caches: Vec::with_capacity(draft.caches.len()),
            buffers: vec![vec![None; draft.widths.len()]; devices],
        }
    }

    /// By device: experts that take turns there. They are taken out.
    pub fn experts(&mut self) -> Vec<Slotting> {
        std::mem::take(&mut self.experts)
    }

    /// The buffer of that number on a device, which gets one when it is first asked for.
    pub fn buffer(
        &mut self,
        device: usize,
        buffer: BufferId,
        draft: &Draft,
        devices: &mut [Box<dyn Backend>],
    ) -> Result<BufferId, BackendError> {
        let number = buffer.0 as usize;
        if let Some(id) = self.buffers[device][number] {
            return Ok(id);
        }
        let id = devices[device].alloc(draft.sizes.rows, draft.widths[number])?;
        self.buffers[device][number] = Some(id);
        Ok(id)
    }

    /// Tells an accelerator of a matrix of an expert that takes turns in its slots.
    pub fn slot(
        &mut self,
        weight: usize,
        leaf: &Leaf,
        device: usize,
        devices: &mut [Box<dyn Backend>],
        store: &dyn TensorStore,
        from: SlotSource<'_>,
    ) -> Result<(), RuntimeError> {
        let Some(key) = expert_matrix(leaf) else { return Ok(()) };
        let record = self.experts[device].record(key);
        let id = load_slotted(store, &mut *devices[device], leaf, record, from)?;
        self.slotted.insert(weight, id);
        Ok(())
    }

    /// A layer that a device computes together with the host: the host has operands of its own.
    fn shared(
        &mut self,
        (device, host, op): (usize, usize, &Op),
        draft: &Draft,
        devices: &mut [Box<dyn Backend>],
        source: &Source<'_>,
    ) -> Result<Ready, RuntimeError> {
        let Op::Moe { x, router, routing, experts, activation, .. } = op else {
            let what = format!("{} is no mixture of experts", op.name());
            return Err(BackendError::Operand { op: "placement", what }.into());
        };
        let leaf = |id: WeightId| draft.leaves.get(id.0 as usize);
        let (mut own, mut records) = (Vec::with_capacity(experts.len()), Vec::with_capacity(experts.len()));
        for expert in experts.iter() {
            let mut biases = None;
            if let Some(all) = expert.biases {
                let mut ids = all;
                for id in &mut ids {
                    let number = id.0 as usize;
                    if let (None, Some(leaf)) = (self.biases.get(&number), leaf(*id)) {
                        let loaded = load_weight(source.store, &mut *devices[host], leaf, source.report, None)?;
                        self.biases.insert(number, loaded);
                    }
                    *id = self.biases.get(&number).copied().unwrap_or(*id);
                }
                biases = Some(ids);
            }
            let of = |id: WeightId| self.weights.get(id.0 as usize).copied().unwrap_or(id);
            own.push(ExpertWeights { gate: of(expert.gate), up: of(expert.up), down: of(expert.down), biases });
            let key = leaf(expert.gate).and_then(expert_matrix);
            records.extend(key.and_then(|key| self.experts[device].number(key)));
        }
        let width = draft.widths.get(x.0 as usize).copied().unwrap_or(0);
        let x = (self.buffer(host, *x, draft, devices)?, width);
        let router = leaf(*router).map(|leaf| leaf.name.clone()).unwrap_or_default();
        let (activation, top_k) = (*activation, routing.top_k);
        let op = self.renamed(device, op, draft, devices)?;
        let experts = own.into();
        Ok(Ready::Shared(Box::new(Shared { device, host, op, x, experts, activation, top_k, records, router })))
    }

    /// An op with a device's own operands.
    fn renamed(
        &mut self,
        device: usize,
        op: &Op,
        draft: &Draft,
        devices: &mut [Box<dyn Backend>],
    ) -> Result<Op, BackendError> {
        for (buffer, _) in op.operands().buffers {
            self.buffer(device, buffer, draft, devices)?;
        }
        let mut op = op.clone();
        op.visit(&mut |operand| match operand {
            Operand::Weight(id) => {
                let number = id.0 as usize;
                *id = self.slotted.get(&number).copied().unwrap_or(self.weights[number]);
            }
            Operand::Cache(id) => *id = self.caches[id.0 as usize],
            Operand::Buffer(id, _) => *id = self.buffers[device][id.0 as usize].unwrap_or(*id),
        });
        Ok(op)
    }

    /// A step with the devices' own operands.
    pub fn step(
        &mut self,
        step: &Step,
        draft: &Draft,
        devices: &mut [Box<dyn Backend>],
        source: &Source<'_>,
    ) -> Result<Ready, RuntimeError> {
        match step {
            Step::Shared { device, host, op } => self.shared((*device, *host, op), draft, devices, source),
            Step::Copy { from, to, buffer } => Ok(Ready::Copy {
                from: (*from, self.buffer(*from, *buffer, draft, devices)?),
                to: (*to, self.buffer(*to, *buffer, draft, devices)?),
            }),
            Step::Run { device, op } => {
                let op = self.renamed(*device, op, draft, devices)?;
                Ok(Ready::Run { device: *device, op })
            }
        }
    }
}
