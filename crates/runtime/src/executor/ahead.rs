//! Looking ahead: which experts on disk a later step of the batch will use, for certain or as far as the router can be guessed, so that they
//! are read before their turn.

use super::Ready;
use crate::nvme::{ExpertStore, Plan};
use crate::placement::Step;
use crate::vram::Slots;
use ashlar_backend::{Backend, BackendError, Batch, BufferId, Op};
use std::sync::Arc;

/// More rows use most experts anyway.
const GUESSED_ROWS: usize = 8;

/// What can be known of experts before their turn.
pub struct Ahead {
    store: Arc<ExpertStore>,
    /// Steps whose experts follow from the tokens alone.
    named: Vec<Look>,
    /// By step: what is to be guessed when it has run.
    after: Vec<Option<Look>>,
}

/// One step to be looked at.
struct Look {
    step: usize,
    /// Rows that resemble what its router will read; `None` where tokens name experts.
    like: Option<BufferId>,
    /// By expert: its record on disk.
    records: Vec<Option<u32>>,
}

impl Ahead {
    /// Of a placed program and the same steps with the devices' own operands. The next mixture of experts on the same device is
    /// guessed from what one read.
    pub fn new(store: &Arc<ExpertStore>, plan: &Plan, placed: &[Step], steps: &[Ready]) -> Self {
        let (mut named, mut after) = (Vec::new(), Vec::new());
        after.resize_with(steps.len(), || None);
        let mut last: Option<(usize, usize, BufferId)> = None;
        for (number, (step, placed)) in steps.iter().zip(placed).enumerate() {
            let (Some((device, Op::Moe { x, options, .. })), Some(records)) = (step.mixture(), records(plan, placed))
            else {
                continue;
            };
            match (options.table, last) {
                (Some(_), _) => named.push(Look { step: number, like: None, records }),
                (None, Some((before, on, like))) if on == device => {
                    after[before] = Some(Look { step: number, like: Some(like), records });
                }
                _ => {}
            }
            last = Some((number, device, *x));
        }
        Self { store: Arc::clone(store), named, after }
    }

    /// A batch begins.
    ///
    /// # Errors
    /// [`BackendError`].
    pub fn begin(
        &self,
        devices: &mut [Box<dyn Backend>],
        slots: &[Option<Slots>],
        steps: &[Ready],
        batch: &Batch,
    ) -> Result<(), BackendError> {
        self.named.iter().try_for_each(|look| self.look(look, devices, slots, steps, batch))
    }

    /// A step has run.
    ///
    /// # Errors
    /// [`BackendError`].
    pub fn after(
        &self,
        step: usize,
        devices: &mut [Box<dyn Backend>],
        slots: &[Option<Slots>],
        steps: &[Ready],
        batch: &Batch,
    ) -> Result<(), BackendError> {
        match self.after.get(step) {
            Some(Some(look)) if batch.rows() <= GUESSED_ROWS => self.look(look, devices, slots, steps, batch),
            _ => Ok(()),
        }
    }

    fn look(
        &self,
        look: &Look,
        devices: &mut [Box<dyn Backend>],
        slots: &[Option<Slots>],
        steps: &[Ready],
        batch: &Batch,
    ) -> Result<(), BackendError> {
        let Some(step) = steps.get(look.step) else { return Ok(()) };
        let Some((device, op)) = step.mixture() else { return Ok(()) };
        let Some(on) = devices.get_mut(device) else { return Ok(()) };
        let cache = step.shared().zip(slots.get(device).and_then(Option::as_ref));
        let in_slot = |expert: usize| cache.is_some_and(|(layer, slots)| layer.is_in_slot(expert, slots));
        let experts = on.likely(op, look.like, batch)?.into_iter().filter(|expert| !in_slot(*expert));
        let records: Vec<u32> = experts.filter_map(|expert| *look.records.get(expert)?).collect();
        if !records.is_empty() {
            self.store.ahead(&records, look.like.is_none());
        }
        Ok(())
    }
}

/// By expert of a mixture: its record, if any of them has one.
fn records(plan: &Plan, step: &Step) -> Option<Vec<Option<u32>>> {
    let (Step::Run { op: Op::Moe { experts, .. }, .. } | Step::Shared { op: Op::Moe { experts, .. }, .. }) = step
    else {
        return None;
    };
    let record = |gate: u32| plan.weights.get(&(gate as usize)).map(|(record, _)| *record);
    let all: Vec<Option<u32>> = experts.iter().map(|expert| record(expert.gate.0)).collect();
    all.iter().any(Option::is_some).then_some(all)
}
