//! Factored Hessians in use: each is made by the first tile that needs it, shared by all others, and dropped after the
//! last. What they take in memory is bounded before the work begins.

use crate::error::ConvertError;
use crate::jobs::Job;
use crate::knowledge::Knowledge;
use crate::plan::Plan;
use crate::work::Work;
use ashlar_quantize::Factor;
use ashlar_simd::Isa;
use ashlar_tensor::Report;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Bytes of a factor of `k` columns: half a matrix.
fn held(k: usize) -> u64 {
    let k = k as u64;
    2 * k * (k + 16)
}

/// Bytes while it is made: the Hessian, the matrix it is eliminated in, the factor.
fn making(k: usize) -> u64 {
    let k = k as u64;
    4 * k * k + 4 * k * (k + 64) + held(k as usize)
}

/// A bound on what the factors of `jobs` take at any time while `threads` threads work on them in order.
pub(crate) fn bound(plan: &Plan, jobs: &[Job], threads: usize) -> u64 {
    // Per input: its first and last job, and its columns.
    let mut spans: HashMap<&str, (usize, usize, usize)> = HashMap::new();
    for (at, job) in jobs.iter().enumerate() {
        for work in job.tiles.iter().filter_map(|t| plan.works.get(t.tensor)) {
            let Some(inputs) = work.factored() else { continue };
            spans.entry(inputs).and_modify(|s| s.1 = at).or_insert((at, at, work.k));
        }
    }
    // Those between their first and last job are open whoever works; besides, each thread may lag behind with one.
    let mut changes: Vec<(usize, bool, u64)> = Vec::new();
    for &(first, last, k) in spans.values().filter(|s| s.0 < s.1) {
        changes.extend([(first, true, held(k)), (last, false, held(k))]);
    }
    changes.sort_unstable();
    let (mut open, mut most) = (0u64, 0u64);
    for (_, begins, bytes) in changes {
        open = if begins { open + bytes } else { open - bytes };
        most = most.max(open);
    }
    let largest = spans.values().map(|s| making(s.2)).max().unwrap_or(0);
    most + largest * threads.min(spans.len()) as u64
}

/// The factors of one list of jobs.
pub(crate) struct Factors<'a> {
    knowledge: Option<&'a dyn Knowledge>,
    isa: Isa,
    report: &'a dyn Report,
    slots: HashMap<&'a str, Mutex<Slot>>,
}

struct Slot {
    tiles_left: usize,
    /// Made; `None` inside where the statistics hold nothing after all.
    made: Option<Option<Arc<Factor>>>,
}

impl<'a> Factors<'a> {
    /// Those that `jobs` will need.
    pub fn new(plan: &'a Plan, jobs: &[Job], isa: Isa, report: &'a dyn Report) -> Self {
        let mut counts: HashMap<&str, usize> = HashMap::new();
        for work in jobs.iter().flat_map(|j| &j.tiles).filter_map(|t| plan.works.get(t.tensor)) {
            if let Some(inputs) = work.factored() {
                *counts.entry(inputs).or_default() += 1;
            }
        }
        let slot = |tiles_left| Mutex::new(Slot { tiles_left, made: None });
        let knowledge = plan.knowledge.as_deref();
        Self { knowledge, isa, report, slots: counts.into_iter().map(|(name, count)| (name, slot(count))).collect() }
    }

    fn slot(&self, work: &Work) -> Option<MutexGuard<'_, Slot>> {
        Some(self.slots.get(work.factored()?)?.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The factor for a tile of `work`; `None` if its quantizer needs none, or `auto` has to do without. Others that
    /// want the same one wait while it is made.
    ///
    /// # Errors
    /// [`ConvertError::Hessian`] if the Hessian cannot be factored, [`ConvertError::NoHessian`] if it is missing and the
    /// recipe insists.
    pub fn get(&self, work: &Work) -> Result<Option<Arc<Factor>>, ConvertError> {
        let Some(mut slot) = self.slot(work) else { return Ok(None) };
        if let Some(made) = &slot.made {
            return Ok(made.clone());
        }
        let tensor = &work.entry.name;
        let hessian = match self.knowledge {
            Some(knowledge) => knowledge.hessian(tensor)?,
            None => None,
        };
        let made = match hessian {
            Some(hessian) => {
                let factor = Factor::new(&hessian, work.k, Factor::DAMPING, self.isa);
                let failed = |source| ConvertError::Hessian { tensor: tensor.clone(), source };
                Some(Arc::new(factor.map_err(failed)?))
            }
            None if work.is_auto() => {
                self.report.note(&format!("no input of `{tensor}` was seen: quantized without a Hessian"));
                None
            }
            None => return Err(ConvertError::NoHessian { tensor: tensor.clone(), more: String::new() }),
        };
        slot.made = Some(made.clone());
        Ok(made)
    }

    /// Notes that a tile of `work` is done, so that what no other needs is dropped.
    pub fn done(&self, work: &Work) {
        let Some(mut slot) = self.slot(work) else { return };
        slot.tiles_left = slot.tiles_left.saturating_sub(1);
        if slot.tiles_left == 0 {
            slot.made = None;
        }
    }
}
