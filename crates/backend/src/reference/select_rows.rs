//! `out = the rows batch.outputs of x`.

use super::Reference;
use crate::{BackendError, Batch, BufferId};

pub fn run(r: &mut Reference, x: BufferId, out: BufferId, batch: &Batch) -> Result<(), BackendError> {
    let x = r.buffer(x, "select_rows")?;
    x.expect_rows(batch.rows(), "select_rows")?;
    let width = x.width();
    let values = batch.outputs.iter().flat_map(|&row| x.row(row).iter().copied()).collect();
    r.store(out, width, values, "select_rows")
}
