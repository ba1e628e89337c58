//! Experts in the memory of an accelerator: those used lately lie in slots there and are computed there; the host computes the
//! others where they lie, at the same time. Which ones are in slots changes time, never text.
//!
//! The cast: `records` (where the bytes of an expert come from, and how they lie in a slot), `cache` (who is in which slot;
//! pure), `shared` (one layer on both devices). The policy is the simulator's ([`crate::routing::ExpertCache`]); experts on
//! disk reach the accelerator through the host's memory.

mod cache;
mod records;
mod shared;

use crate::placement::SlotPlan;
use ashlar_backend::{Backend, BackendError, slot_bytes};
use cache::SlotCache;

pub use cache::SlotUse;
pub(crate) use records::{OnDisk, Record, Slotting};
pub(crate) use shared::Shared;

/// The slots of an accelerator and the experts that take turns in them.
pub(crate) struct Slots {
    /// Who is where.
    pub cache: SlotCache,
    records: Vec<Record>,
}

impl Slots {
    /// Takes slots as planned on the device of `layers`, fills them with the experts that come first, and finds out what is better
    /// streamed.
    ///
    /// # Errors
    /// [`BackendError`] if there is no memory for them, an expert is larger than planned, or a device fails.
    pub fn open(
        plan: SlotPlan,
        experts: Slotting,
        devices: &mut [Box<dyn Backend>],
        layers: &[&Shared],
        rows: usize,
    ) -> Result<Self, BackendError> {
        let records = experts.into_records();
        if let Some(record) = records.iter().find(|record| record.bytes() > plan.bytes) {
            let what = format!("an expert of {} bytes is larger than the {} planned for", record.bytes(), plan.bytes);
            return Err(BackendError::Operand { op: "placement", what });
        }
        let cache = SlotCache::new(records.len(), plan.count, slot_bytes(plan.bytes));
        let mut slots = Self { cache, records };
        if let Some(first) = layers.first() {
            shared::slots(devices, first.device)?.reserve(plan.count, plan.bytes)?;
        }
        shared::warm(devices, layers, &mut slots, rows)?;
        Ok(slots)
    }
}
