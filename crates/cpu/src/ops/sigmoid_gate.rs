//! `y = y · sigmoid(x · wᵀ)`, per row.

use super::linear::observe;
use crate::cpu::Cpu;
use crate::math::{Times, dot, zip_map};
use crate::shards::Shards;
use ashlar_backend::{BackendError, BufferId, Observer, WeightId};
use ashlar_simd::{Kernel, Simd};

const OP: &str = "sigmoid_gate";

pub fn run(
    cpu: &mut Cpu,
    x: BufferId,
    weight: WeightId,
    y: BufferId,
    observer: Option<&mut dyn Observer>,
) -> Result<(), BackendError> {
    let input = cpu.buffers.get(x, OP)?;
    let (k, rows) = (input.width, input.values.len() / input.width.max(1));
    cpu.vector(weight, k, OP)?;
    let width = cpu.buffers.get(y, OP)?.width;
    observe(cpu, x, [weight].into_iter(), observer, OP)?;
    let mut values = cpu.buffers.take(y, [rows, width], true, x, OP)?;
    let (isa, all) = (cpu.isa, Shards::new(&mut values));
    let (weight, x) = (cpu.vector(weight, k, OP)?, cpu.buffers.input(x, k, OP)?);
    cpu.pool.run(rows, &|row| {
        // SAFETY: every row is one index of the pool.
        let y = unsafe { all.slice(row * width..(row + 1) * width) };
        isa.run(Gate { y, x: &x[row * k..(row + 1) * k], weight });
    });
    cpu.buffers.put(y, values);
    Ok(())
}

struct Gate<'a> {
    y: &'a mut [f32],
    x: &'a [f32],
    weight: &'a [f32],
}

impl Kernel for Gate<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // One value per row: f64 costs nothing.
        let factor = 1.0 / (1.0 + f64::from(-dot(s, self.x, self.weight)).exp());
        let y = self.y.to_vec();
        zip_map(s, self.y, &y, &Times(s.splat(factor as f32)));
    }
}
