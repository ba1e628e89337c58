//! Experts that lie on disk: their records are read into a fixed number of slots in memory as tokens use them, and those
//! used lately stay there. So a model larger than memory runs, and its text is the one that it would write in memory.
//!
//! The cast: `records` (which bytes of which file make an expert), `disk` (reads past the page cache), `state` (who is
//! in which slot; pure), [`ExpertStore`] (threads that read, and the op that waits). The policy is the simulator's
//! ([`crate::routing::ExpertCache`]).
//!
//! A read that fails is tried once more, then the step fails, with file and expert: nothing is computed from what did not come.

mod disk;
mod records;
mod state;
mod store;
#[cfg(test)]
mod tests;

use crate::RuntimeError;
use crate::placement::Placement;
use crate::residency::{free_memory, usable};
use ashlar_tensor::Report;
use disk::{Disk, Files};
use std::sync::Arc;
use store::StoreOptions;

pub(crate) use records::{Plan, expert_matrix};
pub(crate) use state::HALF_LIFE;
pub use state::NvmeUse;
pub(crate) use store::ExpertStore;

/// Opens the experts that a placement leaves on disk, if there are any: as many slots as the host's budget leaves memory for, or
/// the memory that is free.
///
/// # Errors
/// [`RuntimeError::Nvme`].
pub(crate) fn open(
    plan: &Plan,
    placement: &Placement,
    report: &dyn Report,
) -> Result<Option<Arc<ExpertStore>>, RuntimeError> {
    if plan.mapped > 0 {
        report.note(&format!(
            "{} experts that stay on disk are mapped and read page by page: their device computes from memory only, or they \
             are not in a pack; `ashlar convert` makes one",
            plan.mapped
        ));
    }
    if plan.records.is_empty() {
        return Ok(None);
    }
    let hosts = || placement.devices.iter().filter(|s| !s.offer.device.is_accelerator());
    let bounded = hosts().any(|s| s.offer.budget.is_some());
    let budget = if bounded {
        hosts().map(|s| s.slots).sum()
    } else {
        let others: u64 = hosts().map(crate::placement::Share::in_memory).sum();
        free_memory().map_or(u64::MAX, |free| usable(free).saturating_sub(others))
    };
    let files = Files::open(&plan.files)
        .map_err(|(path, error)| RuntimeError::Nvme(format!("cannot open {}: {error}", path.display())))?;
    if let Some(file) = files.buffered() {
        report.note(&format!(
            "{file}: its file system has no reads past the page cache; experts are read through it, which takes more memory \
             and time"
        ));
    }
    let disk: Box<dyn Disk> = Box::new(files);
    let store = ExpertStore::open(plan, disk, StoreOptions::of(budget))?;
    let used = store.used();
    report.note(&format!(
        "{} of {} experts fit into {} bytes of memory; the others are read from disk as they are used",
        used.slots, used.experts, used.slot_bytes
    ));
    Ok(Some(Arc::new(store)))
}
