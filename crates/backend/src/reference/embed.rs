//! `out[i] = table[token i]`.

use super::Reference;
use crate::{BackendError, Batch, BufferId, WeightId};

pub fn run(r: &mut Reference, table: WeightId, out: BufferId, batch: &Batch) -> Result<(), BackendError> {
    let table = r.weight(table, "embed")?;
    let width = table.k;
    let mut values = Vec::with_capacity(batch.rows().saturating_mul(width));
    for &token in &batch.tokens {
        if token as usize >= table.n {
            let what = format!(
                "token {token}, but `{}` has {} rows; was the tokenizer made for this model?",
                table.name, table.n
            );
            return Err(BackendError::Operand { op: "embed", what });
        }
        values.extend_from_slice(table.row(token as usize));
    }
    r.store(out, width, values, "embed")
}
