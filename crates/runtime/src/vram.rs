//! Experts in the memory of an accelerator: those used lately lie in slots there and are computed there; the host computes the
//! others where they lie, at the same time. Which ones are in slots changes time, never text.
//!
//! The cast: `records` (where the bytes of an expert come from, and how they lie in a slot), `cache` (who is in which slot;
//! pure), `shared` (one layer on both devices). The policy is the simulator's ([`crate::routing::ExpertCache`]); experts on
//! disk reach the accelerator through the host's memory.

mod cache;
mod records;
mod shared;
#[cfg(test)]
mod tests;

use crate::placement::SlotPlan;
use ashlar_backend::{Backend, BackendError, ExpertSlots, slot_bytes};
use cache::SlotCache;

pub use cache::SlotUse;
pub(crate) use records::{OnDisk, Record, Slotting};
pub(crate) use shared::Shared;

/// The slots of an accelerator and the experts that take turns in them.
pub(crate) struct Slots {
    /// Who is where.
    pub cache: SlotCache,
    records: Vec<Record>,
    plan: SlotPlan,
    /// Bytes for keys and values at full length, some of which slots stand in.
    caches: u64,
    /// Slots that gave their memory up.
    released: Vec<usize>,
}

impl Slots {
    /// Takes slots as planned on the device of `layers`, which has so many bytes for keys and values; fills them with the experts that come first, and finds out what is better
    /// streamed.
    ///
    /// # Errors
    /// [`BackendError`] if there is no memory for them, an expert is larger than planned, or a device fails.
    pub fn open(
        (plan, caches): (SlotPlan, u64),
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
        let mut slots = Self { cache, records, plan, caches, released: Vec::new() };
        if let Some(first) = layers.first() {
            shared::slots(devices, first.device)?.reserve(plan.count, plan.lent, plan.bytes)?;
        }
        shared::warm(devices, layers, &mut slots, rows)?;
        Ok(slots)
    }

    /// Keys and values will take so many bytes: slots that stand in their way go, and such that no longer do come back.
    ///
    /// # Errors
    /// [`BackendError`] of a device that has no such slots.
    pub fn make_room(&mut self, needed: u64, device: &mut dyn ExpertSlots) -> Result<(), BackendError> {
        let fit = self.caches.saturating_sub(needed) / slot_bytes(self.plan.bytes).max(1);
        let allowed = usize::try_from(fit).unwrap_or(usize::MAX).min(self.plan.lent);
        while self.plan.lent - self.released.len() > allowed {
            let Some(slot) = self.cache.shrink() else { break };
            device.release(slot)?;
            self.released.push(slot);
        }
        while self.plan.lent - self.released.len() < allowed {
            let Some(&slot) = self.released.last() else { break };
            if !device.take_back(slot)? {
                break;
            }
            self.released.pop();
            self.cache.grow(slot);
        }
        self.cache.used.released = self.released.len();
        Ok(())
    }
}
