//! `out = x · w / sqrt(mean(x²) + eps)`, per row.

use crate::cpu::Cpu;
use crate::math::rms_norm;
use crate::shards::Shards;
use ashlar_backend::{BackendError, BufferId, WeightId};
use ashlar_simd::{Kernel, Simd};

const OP: &str = "rms_norm";

pub fn run(cpu: &mut Cpu, x: BufferId, weight: WeightId, eps: f32, out: BufferId) -> Result<(), BackendError> {
    let input = cpu.buffers.get(x, OP)?;
    let width = input.width;
    let rows = input.values.len() / width.max(1);
    cpu.vector(weight, width, OP)?;
    let mut values = cpu.buffers.take(out, [rows, width], false, x, OP)?;
    values.copy_from_slice(cpu.buffers.input(x, width, OP)?);
    let isa = cpu.isa;
    let all = Shards::new(&mut values);
    let weight = cpu.vector(weight, width, OP)?;
    let body = |row: usize| {
        // SAFETY: every row is one index of the pool.
        let row = unsafe { all.slice(row * width..(row + 1) * width) };
        isa.run(Norm { row, weight, eps });
    };
    cpu.pool.run(rows, &body);
    cpu.buffers.put(out, values);
    Ok(())
}

struct Norm<'a> {
    row: &'a mut [f32],
    weight: &'a [f32],
    eps: f32,
}

impl Kernel for Norm<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        rms_norm(s, self.row, self.weight, self.eps);
    }
}
