//! [`Executor`]: a placed program on open devices. One loop runs every model on any mix of backends.
//!
//! Owns: loading weights onto their devices, the operands of each, the loop, copies between devices. Refuses: deciding
//! where anything goes (`placement`), positions and budgets of sequences (`kv`), which experts are in slots (`vram`).

mod ahead;
mod operands;

use crate::bench::Profile;
use crate::kv::KvUse;
use crate::load::{SlotSource, load_planes, load_streamed, planes};
use crate::nvme::{ExpertStore, Plan};
use crate::placement::{Placement, SlotPlan, Tier};
use crate::program::Draft;
use crate::vram::{OnDisk, Shared, SlotUse, Slots};
use crate::{RuntimeError, devices};
use ahead::Ahead;
use ashlar_backend::{Backend, BackendError, Batch, BufferId, CacheId, Memory, Observer, Op, Records, Surveyor};
use ashlar_tensor::{Bytes, Report, TensorStore};
use operands::Operands;
use std::ops::Range;
use std::sync::Arc;

/// Bytes of the length before what a cache saved.
const LENGTH: usize = size_of::<u64>();

/// Where weights come from.
pub(crate) struct Source<'a> {
    pub store: &'a dyn TensorStore,
    pub report: &'a dyn Report,
    /// The experts that are read as they are used, and who reads them.
    pub streamed: Option<(&'a Plan, Arc<ExpertStore>)>,
    /// The mapped planes that are to stay in memory, in the order in which they are loaded; `None` if none are.
    pub kept: Option<Vec<Bytes>>,
}

/// A program whose operands are loaded.
pub(crate) struct Executor {
    devices: Vec<Box<dyn Backend>>,
    steps: Vec<Ready>,
    /// Device and buffer.
    logits: (usize, BufferId),
    /// Experts on disk are read before their turn.
    ahead: Option<Ahead>,
    /// Device and cache, in the order of the draft.
    caches: Vec<(usize, CacheId)>,
    /// By device: its slots, and the experts that take turns in them.
    slots: Vec<Option<Slots>>,
}

/// A step with the devices' own operands.
enum Ready {
    Run { device: usize, op: Op },
    Shared(Box<Shared>),
    Copy { from: (usize, BufferId), to: (usize, BufferId) },
}

impl Executor {
    /// Loads a placed program; `devices` are those of the placement, fresh.
    ///
    /// # Errors
    /// [`RuntimeError`] if a weight is missing or of a format that its device cannot run, or memory is short.
    pub fn load(
        draft: &Draft,
        placement: &Placement,
        mut devices: Vec<Box<dyn Backend>>,
        source: &mut Source<'_>,
    ) -> Result<Self, RuntimeError> {
        let mut operands = Operands::new(draft, devices.len());
        load_weights(draft, placement, &mut devices, source, &mut operands)?;
        for (shape, &device) in draft.caches.iter().zip(&placement.caches) {
            operands.caches.push(devices[device].alloc_cache(shape)?);
        }
        let mut steps = Vec::with_capacity(placement.steps.len());
        for step in &placement.steps {
            steps.push(operands.step(step, draft, &mut devices, source)?);
        }
        let mut slots = Vec::with_capacity(devices.len());
        for (device, (share, experts)) in placement.devices.iter().zip(operands.experts()).enumerate() {
            let layers =
                steps.iter().filter_map(Ready::shared).filter(|layer| layer.device == device).collect::<Vec<_>>();
            let of = |plan: SlotPlan| (plan, share.bytes.caches);
            let open = |plan| Slots::open(of(plan), experts, &mut devices, &layers, draft.sizes.rows);
            slots.push(share.expert_slots.map(open).transpose()?);
        }
        let logits = operands.buffer(placement.logits, draft.program.logits, draft, &mut devices)?;
        check(placement, &devices)?;
        let caches = placement.caches.iter().copied().zip(operands.caches).collect();
        let ahead = source.streamed.as_ref().map(|(plan, store)| Ahead::new(store, plan, &placement.steps, &steps));
        Ok(Self { devices, steps, logits: (placement.logits, logits), ahead, caches, slots })
    }

    /// Runs all steps on a batch.
    ///
    /// # Errors
    /// [`BackendError`].
    pub fn run(
        &mut self,
        batch: &Batch,
        observer: &mut Option<&mut dyn Observer>,
        profile: &mut Option<Profile>,
    ) -> Result<(), BackendError> {
        if let Some(ahead) = &self.ahead {
            ahead.begin(&mut self.devices, &self.slots, &self.steps, batch)?;
        }
        for (number, step) in self.steps.iter().enumerate() {
            // An option of a borrowed observer cannot be copied; each op gets a shorter borrow.
            let observer = observer.as_mut().map(|o| &mut **o as &mut dyn Observer);
            let observer = observer.filter(|o| o.wants_inputs() || step.mixture().is_some());
            let (devices, slots) = (&mut self.devices, &mut self.slots);
            match profile {
                None => step.run(devices, slots, batch, observer)?,
                Some(profile) => profile.time(step.name(), || step.run(devices, slots, batch, observer))?,
            }
            if let Some(ahead) = &self.ahead {
                ahead.after(number, devices, slots, &self.steps, batch)?;
            }
        }
        Ok(())
    }

    /// The logits of the batch that ran last.
    ///
    /// # Errors
    /// [`BackendError`].
    pub fn logits(&mut self) -> Result<Vec<f32>, BackendError> {
        let (device, buffer) = self.logits;
        self.devices[device].read(buffer)
    }

    /// Where they lie, and who tells of them without handing them over; `None` for a device that hands over rows at no cost.
    pub fn surveyor(&mut self) -> Option<(BufferId, &mut dyn Surveyor)> {
        let (device, buffer) = self.logits;
        Some((buffer, self.devices[device].surveyor()?))
    }

    /// Makes room for the keys and values of a batch where slots for experts stand in their way.
    pub fn make_room(&mut self, kv: &KvUse, batch: &Batch) -> Result<(), BackendError> {
        for (device, slots) in self.slots.iter_mut().enumerate() {
            let Some(slots) = slots else { continue };
            let caches = &self.caches;
            let needed = kv.after(batch, &|cache| caches.get(cache).is_some_and(|(on, _)| *on == device));
            if let Some(on) = self.devices.get_mut(device).and_then(|d| d.slots()) {
                slots.make_room(needed, on)?;
            }
        }
        Ok(())
    }

    /// What slots for experts were good for, by device.
    pub fn slots(&self) -> impl Iterator<Item = (usize, SlotUse)> {
        self.slots.iter().enumerate().filter_map(|(device, slots)| Some((device, slots.as_ref()?.cache.used)))
    }

    /// Cuts a slot back on all devices.
    pub fn truncate(&mut self, slot: usize, positions: usize) {
        self.devices.iter_mut().for_each(|device| device.truncate(slot, positions));
    }

    /// What all devices call what they save, or the name of one that cannot.
    pub fn saved_as(&self) -> Result<String, String> {
        let names = self.devices.iter().map(|device| device.saved_as().ok_or_else(|| device.describe()));
        Ok(names.collect::<Result<Vec<_>, _>>()?.join(" + "))
    }

    /// Appends what every cache holds of a block of positions, each behind its length. Whether one can go on at its end.
    pub fn save(&mut self, slot: usize, block: &Range<usize>, out: &mut Vec<u8>) -> Result<bool, BackendError> {
        let mut all = true;
        for (device, cache) in &self.caches {
            let at = out.len();
            out.extend_from_slice(&[0; LENGTH]);
            all &= self.devices[*device].save(*cache, slot, block.clone(), out)?;
            let length = ((out.len() - at - LENGTH) as u64).to_le_bytes();
            out[at..at + LENGTH].copy_from_slice(&length);
        }
        Ok(all)
    }

    /// Takes them back. After an error the slot is to be cut back to 0.
    pub fn restore(&mut self, slot: usize, block: &Range<usize>, mut bytes: &[u8]) -> Result<(), BackendError> {
        let short = || BackendError::Operand { op: "restore", what: "the block is too short".into() };
        for (device, cache) in &self.caches {
            let (length, rest) = bytes.split_first_chunk::<LENGTH>().ok_or_else(short)?;
            let length = usize::try_from(u64::from_le_bytes(*length)).unwrap_or(usize::MAX);
            let (own, rest) = rest.split_at_checked(length).ok_or_else(short)?;
            self.devices[*device].restore(*cache, slot, block.clone(), own)?;
            bytes = rest;
        }
        if bytes.is_empty() { Ok(()) } else { Err(short()) }
    }

    /// What all devices keep besides weights.
    pub fn memory(&self) -> Memory {
        let add = |sum: Memory, one: Memory| Memory {
            activations: sum.activations + one.activations,
            caches: sum.caches + one.caches,
        };
        self.memory_by_device().fold(Memory::default(), add)
    }

    /// The same of every device.
    pub fn memory_by_device(&self) -> impl Iterator<Item = Memory> {
        self.devices.iter().map(|device| device.memory())
    }

    /// The devices, for messages.
    pub fn describe(&self) -> String {
        self.devices.iter().map(|device| device.describe()).collect::<Vec<_>>().join(" + ")
    }

    /// What devices have to tell of their weights.
    pub fn notes(&self) -> Vec<String> {
        self.devices.iter().flat_map(|device| device.notes()).collect()
    }
}

/// Brings all weights to their devices.
fn load_weights(
    draft: &Draft,
    placement: &Placement,
    devices: &mut [Box<dyn Backend>],
    source: &mut Source<'_>,
    operands: &mut Operands,
) -> Result<(), RuntimeError> {
    for (i, (leaf, &(device, tier))) in draft.leaves.iter().zip(&placement.weights).enumerate() {
        let slotted = placement.slotted.get(i).copied().flatten();
        if let Some((plan, records)) = &source.streamed
            && let Some((record, planes)) = plan.weights.get(&i)
        {
            if let Some(on) = slotted {
                let from = SlotSource::Disk(OnDisk { store: records, record: *record, planes });
                operands.slot(i, leaf, on, devices, source.store, from)?;
            }
            let place = (Arc::clone(records) as Arc<dyn Records>, *record, planes.clone());
            let store = source.store;
            operands.weights.push(load_streamed(store, &mut *devices[device], leaf, source.report, place)?);
            continue;
        }
        let planes = planes(source.store, leaf)?;
        if let Some(on) = slotted {
            operands.slot(i, leaf, on, devices, source.store, SlotSource::Memory(&planes))?;
        }
        let mapped = tier != Tier::Nvme && devices::computes_from_the_mapping(placement.devices[device].offer.device);
        let kept = source.kept.as_mut().filter(|_| mapped);
        let on = &mut *devices[device];
        operands.weights.push(load_planes(source.store, on, leaf, source.report, planes, kept)?);
    }
    Ok(())
}

/// Whether devices that reserve their memory reserved what was planned.
fn check(placement: &Placement, devices: &[Box<dyn Backend>]) -> Result<(), BackendError> {
    for (share, device) in placement.devices.iter().zip(devices) {
        let Some(arena) = device.arena() else { continue };
        let (planned, reserved) = (share.bytes, arena.reserved());
        if planned != reserved {
            let what = format!("{}: planned {planned:?}, reserved {reserved:?}", share.offer.device);
            return Err(BackendError::Operand { op: "placement", what });
        }
    }
    Ok(())
}

impl Ready {
    /// The device and the op, if it is a mixture of experts.
    fn mixture(&self) -> Option<(usize, &Op)> {
        match self {
            Self::Run { device, op: op @ Op::Moe { .. } } => Some((*device, op)),
            Self::Shared(layer) => Some((layer.device, &layer.op)),
            Self::Run { .. } | Self::Copy { .. } => None,
        }
    }

    fn shared(&self) -> Option<&Shared> {
        if let Self::Shared(layer) = self { Some(layer) } else { None }
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Run { op, .. } => op.name(),
            Self::Shared(layer) => layer.op.name(),
            Self::Copy { .. } => "copy",
        }
    }

    fn run(
        &self,
        devices: &mut [Box<dyn Backend>],
        slots: &mut [Option<Slots>],
        batch: &Batch,
        observer: Option<&mut dyn Observer>,
    ) -> Result<(), BackendError> {
        match self {
            Self::Run { device, op } => devices[*device].run(op, batch, observer),
            Self::Shared(layer) => match slots.get_mut(layer.device).and_then(Option::as_mut) {
                Some(slots) => layer.run(devices, slots, batch, observer),
                None => Err(BackendError::Operand { op: "moe", what: "the device has no slots for experts".into() }),
            },
            Self::Copy { from, to } => {
                let values = devices[from.0].read(from.1)?;
                devices[to.0].write(to.1, &values)
            }
        }
    }
}
