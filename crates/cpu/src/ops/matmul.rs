//! What linear layers and experts share: tasks over panels, and outputs that tasks write side by side.

use crate::gemv::{self, Job, LEAST_TILED_ROWS, PANEL, TILE_PANELS};
use crate::shards::Shards;
use ashlar_backend::BackendError;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// Tasks per thread: enough that a thread which was descheduled leaves little for the others to wait for, and that no one
/// waits long for the last. A thread's tasks are neighbours in memory, so that small ones cost little.
const TASKS_PER_THREAD: usize = 16;

/// A run of panels of the weight number `weight` of an op.
#[derive(Clone, Debug)]
pub struct Task {
    /// Which weight, in the op's own numbering.
    pub weight: usize,
    /// Its panels.
    pub panels: Range<usize>,
}

/// Cuts weights into tasks: `work` gives (panels, cost of one panel) per weight; `rows` are the most that any is
/// multiplied with.
pub fn tasks(work: &[(usize, usize)], rows: usize, threads: usize) -> Vec<Task> {
    let total: usize = work.iter().map(|(panels, cost)| panels * cost).sum();
    let share = total.div_ceil(threads * TASKS_PER_THREAD).max(1);
    let cut = |(weight, &(panels, cost)): (usize, &(usize, usize))| {
        let step = (share / cost.max(1)).max(1);
        // Whole tiles, unless there are none, or that would leave threads without work.
        let tiled = rows >= LEAST_TILED_ROWS;
        let whole = tiled && (step >= TILE_PANELS || panels >= 2 * TILE_PANELS * threads);
        let step = if whole { step.next_multiple_of(TILE_PANELS) } else { step };
        (0..panels).step_by(step).map(move |start| Task { weight, panels: start..(start + step).min(panels) })
    };
    work.iter().enumerate().flat_map(cut).collect()
}

/// An m × n output.
pub struct Output<'a> {
    values: Shards<'a, f32>,
    n: usize,
}

impl<'a> Output<'a> {
    /// `values`: m × n.
    pub fn new(values: &'a mut [f32], n: usize) -> Self {
        Self { values: Shards::new(values), n }
    }

    /// The columns of `panels`.
    pub fn columns(&self, panels: &Range<usize>) -> Range<usize> {
        panels.start * PANEL..(panels.end * PANEL).min(self.n)
    }

    /// Columns `columns` of a row.
    ///
    /// # Safety
    /// Nothing else may use these columns of this row while the result lives.
    #[allow(clippy::mut_from_ref, reason = "as Shards::slice")]
    pub unsafe fn part(&self, row: usize, columns: Range<usize>) -> &mut [f32] {
        // SAFETY: the caller's promise.
        unsafe { self.values.slice(row * self.n + columns.start..row * self.n + columns.end) }
    }
}

/// How products reach an output.
#[derive(Clone, Copy)]
pub enum Write<'a> {
    /// out = y
    Set,
    /// out = y + bias
    SetBiased(&'a [f32]),
    /// out += y
    Add,
    /// out += y + bias
    AddBiased(&'a [f32]),
}

/// Multiplies `panels` and writes the product of the job's row number i to row `first_row + i` of `out`.
///
/// # Safety
/// Nothing else may use the columns of `panels` of these rows of `out` meanwhile.
///
/// # Errors
/// As [`gemv::multiply`].
pub unsafe fn write_panels(
    job: &Job<'_>,
    panels: Range<usize>,
    out: &Output<'_>,
    first_row: usize,
    write: Write<'_>,
) -> Result<(), BackendError> {
    gemv::multiply(job, panels, &mut |row, panel, y| {
        let columns = out.columns(&(panel..panel + y.len()));
        // SAFETY: the caller's promise.
        let to = unsafe { out.part(first_row + row, columns.clone()) };
        let y = &y.as_flattened()[..to.len()];
        match write {
            Write::Set => to.copy_from_slice(y),
            Write::Add => to.iter_mut().zip(y).for_each(|(to, y)| *to += y),
            Write::SetBiased(bias) => {
                to.iter_mut().zip(y).zip(&bias[columns]).for_each(|((to, y), bias)| *to = y + bias);
            }
            Write::AddBiased(bias) => {
                to.iter_mut().zip(y).zip(&bias[columns]).for_each(|((to, y), bias)| *to += y + bias);
            }
        }
    })
}

/// The first error that a task of the pool met.
#[derive(Default)]
pub struct FirstError(Mutex<Option<BackendError>>);

impl FirstError {
    /// Keeps an error, if none was kept before.
    pub fn keep(&self, result: Result<(), BackendError>) {
        if let Err(error) = result {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        }
    }

    /// What was kept.
    ///
    /// # Errors
    /// That.
    pub fn result(self) -> Result<(), BackendError> {
        self.0.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_cover_every_panel_once_and_balance_cost() {
        let work = [(10, 100), (0, 5), (3, 1000), (64, 1)];
        for (threads, rows) in [(1, 1), (2, 1), (2, 100), (16, 1), (16, 100)] {
            let tasks = tasks(&work, rows, threads);
            for (weight, (panels, _)) in work.iter().enumerate() {
                let covered: Vec<usize> =
                    tasks.iter().filter(|t| t.weight == weight).flat_map(|t| t.panels.clone()).collect();
                assert_eq!(covered, (0..*panels).collect::<Vec<_>>());
            }
        }
    }
}
