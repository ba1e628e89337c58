//! `out = the rows batch.outputs of x`.

use crate::cpu::Cpu;
use ashlar_backend::{BackendError, Batch, BufferId};

const OP: &str = "select_rows";

pub fn run(cpu: &mut Cpu, x: BufferId, out: BufferId, batch: &Batch) -> Result<(), BackendError> {
    let input = cpu.buffers.get(x, OP)?;
    let width = input.width;
    let held = input.values.len() / width.max(1);
    if held != batch.rows() {
        let what = format!("a buffer holds {held} rows, expected {}", batch.rows());
        return Err(BackendError::Operand { op: OP, what });
    }
    let mut values = cpu.buffers.take(out, [batch.outputs.len(), width], false, x, OP)?;
    let input = cpu.buffers.input(x, width, OP)?;
    for (&row, to) in batch.outputs.iter().zip(values.chunks_exact_mut(width.max(1))) {
        to.copy_from_slice(&input[row * width..(row + 1) * width]);
    }
    cpu.buffers.put(out, values);
    Ok(())
}
