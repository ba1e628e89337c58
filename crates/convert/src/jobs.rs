//! The work list: tiles, small ones together, in file order.

use crate::plan::Plan;
use std::collections::HashSet;
use std::ops::Range;

/// Small tiles are put together up to so many source bytes.
const JOB_BYTES: u64 = 1 << 20;

/// A range of rows of one tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tile {
    /// Record index in the layout.
    pub record: usize,
    /// Tensor index in the plan.
    pub tensor: usize,
    /// Index among the tensor's tiles.
    pub index: usize,
    pub rows: Range<usize>,
}

/// What a thread does at a time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Job {
    pub tiles: Vec<Tile>,
    /// Bytes of the buffers: those of the most demanding tile, since tiles follow one another.
    pub memory: u64,
}

/// The jobs of every record but those already `done`.
pub(crate) fn jobs(plan: &Plan, done: &HashSet<usize>) -> Vec<Job> {
    let (mut jobs, mut open, mut open_bytes) = (Vec::new(), Job::default(), 0);
    let mut tensor = 0;
    for (record, r) in plan.layout.records.iter().enumerate() {
        for _ in &r.tensors {
            let Some(work) = plan.works.get(tensor).filter(|_| !done.contains(&record)) else {
                tensor += 1;
                continue;
            };
            for (index, rows) in work.tiles().enumerate() {
                open_bytes += work.source_bytes(&rows);
                open.memory = open.memory.max(work.memory(&rows));
                open.tiles.push(Tile { record, tensor, index, rows });
                if open_bytes >= JOB_BYTES {
                    jobs.push(std::mem::take(&mut open));
                    open_bytes = 0;
                }
            }
            tensor += 1;
        }
    }
    if !open.tiles.is_empty() {
        jobs.push(open);
    }
    jobs
}
