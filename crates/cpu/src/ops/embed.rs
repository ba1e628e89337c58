//! `out[i] = table[token i]`.

use crate::cpu::Cpu;
use ashlar_backend::{BackendError, Batch, BufferId, WeightId};

const OP: &str = "embed";

pub fn run(cpu: &mut Cpu, table: WeightId, out: BufferId, batch: &Batch) -> Result<(), BackendError> {
    let weight = &cpu.weight(table, OP)?.weight;
    let (n, k) = (weight.n, weight.k);
    if let Some(token) = batch.tokens.iter().find(|&&t| t as usize >= n) {
        let what = format!("token {token}, but `{}` has {n} rows; was the tokenizer made for this model?", weight.name);
        return Err(BackendError::Operand { op: OP, what });
    }
    let none = BufferId(u32::MAX);
    let mut values = cpu.buffers.take(out, [batch.rows(), k], false, none, OP)?;
    let weight = &cpu.weight(table, OP)?.weight;
    let mut rows = batch.tokens.iter().zip(values.chunks_exact_mut(k.max(1)));
    let result = rows.try_for_each(|(&token, row)| weight.decode(token as usize..token as usize + 1, row));
    cpu.buffers.put(out, values);
    result
}
