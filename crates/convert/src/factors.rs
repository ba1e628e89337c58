//! Factored Hessians in use: each is made by the first tile that needs it, shared by all others, and dropped after the
//! last. What they take in memory is bounded before the work begins.

use crate::error::ConvertError;
use crate::jobs::Job;
use crate::knowledge::Knowledge;
use crate::plan::Plan;
use crate::work::Work;
use ashlar_quantize::{Factor, Shift};
use ashlar_simd::Isa;
use ashlar_tensor::Report;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What is known of inputs, ready for use.
pub(crate) struct Guide {
    pub factor: Factor,
    /// How weights move before they are rounded.
    pub shift: Option<Shift>,
}

/// Bytes of a guide of `k` columns: half a matrix, and a whole one where inputs drift.
fn held(k: usize, drifts: bool) -> u64 {
    let k = k as u64;
    2 * k * (k + 16) + if drifts { 4 * k * k } else { 0 }
}

/// Bytes while it is made: the Hessian and the matrix it is eliminated in, then, in its place, the drift.
fn making(k: usize, drifts: bool) -> u64 {
    let columns = k as u64;
    4 * columns * columns + 4 * columns * (columns + 64) + held(k, drifts)
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
    let drifts = plan.knowledge.as_ref().is_some_and(|k| k.drifts());
    let mut changes: Vec<(usize, bool, u64)> = Vec::new();
    for &(first, last, k) in spans.values().filter(|s| s.0 < s.1) {
        changes.extend([(first, true, held(k, drifts)), (last, false, held(k, drifts))]);
    }
    changes.sort_unstable();
    let (mut open, mut most) = (0u64, 0u64);
    for (_, begins, bytes) in changes {
        open = if begins { open + bytes } else { open - bytes };
        most = most.max(open);
    }
    let largest = spans.values().map(|s| making(s.2, drifts)).max().unwrap_or(0);
    most + largest * threads.min(spans.len()) as u64
}

/// The factors of one list of jobs.
pub(crate) struct Factors<'a> {
    knowledge: Option<&'a dyn Knowledge>,
    isa: Isa,
    /// May share one elimination: others that wait for it have nothing else to do.
    threads: usize,
    report: &'a dyn Report,
    slots: HashMap<&'a str, Mutex<Slot>>,
}

struct Slot {
    tiles_left: usize,
    /// Made; `None` inside where the statistics hold nothing after all.
    made: Option<Option<Arc<Guide>>>,
}

impl<'a> Factors<'a> {
    /// Those that `jobs` will need.
    pub fn new(plan: &'a Plan, jobs: &[Job], isa: Isa, threads: usize, report: &'a dyn Report) -> Self {
        let mut counts: HashMap<&str, usize> = HashMap::new();
        for work in jobs.iter().flat_map(|j| &j.tiles).filter_map(|t| plan.works.get(t.tensor)) {
            if let Some(inputs) = work.factored() {
                *counts.entry(inputs).or_default() += 1;
            }
        }
        let slot = |tiles_left| Mutex::new(Slot { tiles_left, made: None });
        let knowledge = plan.knowledge.as_deref();
        Self {
            knowledge,
            isa,
            threads,
            report,
            slots: counts.into_iter().map(|(name, count)| (name, slot(count))).collect(),
        }
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
    pub fn get(&self, work: &Work) -> Result<Option<Arc<Guide>>, ConvertError> {
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
                let drift = match self.knowledge {
                    Some(knowledge) => knowledge.drift(tensor)?,
                    None => None,
                };
                Some(Arc::new(self.make(tensor, work.k, hessian, drift)?))
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

    fn make(&self, tensor: &str, k: usize, hessian: Vec<f32>, drift: Option<Vec<f32>>) -> Result<Guide, ConvertError> {
        let failed = |source| ConvertError::Hessian { tensor: tensor.to_owned(), source };
        let factor = Factor::with_threads(&hessian, k, Factor::DAMPING, self.isa, self.threads).map_err(failed)?;
        drop(hessian);
        let shift = drift.and_then(|drift| Shift::new(&factor, drift, self.isa, self.threads));
        Ok(Guide { factor, shift })
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
