//! A residual stream of lanes: spread, mixed into a block's input, and added to.

use super::linear::observe;
use crate::cpu::Cpu;
use crate::math::{PlusTimes, Times, dot, zip_map};
use crate::shards::Shards;
use ashlar_backend::{BackendError, BufferId, HyperLanes, Observer, WeightId};
use ashlar_simd::{Kernel, Simd};

/// Every row, side by side as often as `out` is wider.
pub fn repeat(cpu: &mut Cpu, x: BufferId, out: BufferId) -> Result<(), BackendError> {
    const OP: &str = "repeat";
    let (input, wide) = (cpu.buffers.get(x, OP)?, cpu.buffers.get(out, OP)?.width);
    let (width, rows) = (input.width, input.values.len() / input.width.max(1));
    if width == 0 || !wide.is_multiple_of(width) {
        return Err(BackendError::Operand { op: OP, what: format!("{wide} is no multiple of {width}") });
    }
    let mut values = cpu.buffers.take(out, [rows, wide], false, x, OP)?;
    let input = cpu.buffers.input(x, width, OP)?;
    for (from, to) in input.chunks_exact(width).zip(values.chunks_exact_mut(wide)) {
        to.chunks_exact_mut(width).for_each(|to| to.copy_from_slice(from));
    }
    cpu.buffers.put(out, values);
    Ok(())
}

/// `outs`: coefficients, if wanted, and the block's input.
pub fn mix(
    cpu: &mut Cpu,
    x: BufferId,
    [mix, base, scale]: [WeightId; 3],
    lanes: HyperLanes,
    outs: [Option<BufferId>; 2],
    observer: Option<&mut dyn Observer>,
) -> Result<(), BackendError> {
    const OP: &str = "hyper_mix";
    let (n, input) = (lanes.count, cpu.buffers.get(x, OP)?);
    let (wide, held) = (input.width, input.values.len());
    let [coefficients, Some(out)] = outs else { return Ok(()) };
    let kinds = if coefficients.is_some() { 3 } else { 1 };
    let rows = if coefficients.is_some() { n * (n + 2) } else { n };
    if n == 0 || wide == 0 || !wide.is_multiple_of(n) {
        return Err(BackendError::Operand { op: OP, what: format!("{wide} values in {n} lanes") });
    }
    let (m, width) = (held / wide, wide / n);
    let weight = cpu.matrix(mix, Some(rows), wide, OP)?;
    // A few rows of a few thousand inputs, and f32 in every release.
    let mut decoded = vec![0.0; rows * wide];
    weight.weight.decode(0..rows, &mut decoded)?;
    let (base, scale) = (cpu.vector(base, rows, OP)?.to_vec(), cpu.vector(scale, kinds, OP)?.to_vec());
    observe(cpu, x, [mix].into_iter(), observer, OP)?;
    let mut values = cpu.buffers.take(out, [m, width], false, x, OP)?;
    let taken = coefficients.map(|id| Ok((id, cpu.buffers.take(id, [m, n * (n + 1)], false, x, OP)?))).transpose();
    let mut taken = match taken {
        Ok(taken) => taken,
        Err(error) => {
            cpu.buffers.put(out, values);
            return Err(error);
        }
    };
    {
        let input = cpu.buffers.input(x, wide, OP)?;
        let isa = cpu.isa;
        let mut unused = Vec::new();
        let kept = taken.as_mut().map_or(&mut unused, |(_, values)| values);
        let size = if coefficients.is_some() { n * (n + 1) } else { 0 };
        let (outs, kept) = (Shards::new(&mut values), Shards::new(kept));
        cpu.pool.run(m, &|row| {
            // SAFETY: every row is one index of the pool.
            let (out, kept) =
                unsafe { (outs.slice(row * width..(row + 1) * width), kept.slice(row * size..(row + 1) * size)) };
            let x = &input[row * wide..(row + 1) * wide];
            isa.run(Mix { x, weights: &decoded, base: &base, scale: &scale, lanes, out, kept });
        });
    }
    cpu.buffers.put(out, values);
    if let Some((id, values)) = taken {
        cpu.buffers.put(id, values);
    }
    Ok(())
}

/// One row.
struct Mix<'a> {
    x: &'a [f32],
    weights: &'a [f32],
    base: &'a [f32],
    scale: &'a [f32],
    lanes: HyperLanes,
    out: &'a mut [f32],
    /// Empty where no coefficients are wanted.
    kept: &'a mut [f32],
}

impl Kernel for Mix<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (n, eps) = (self.lanes.count, f64::from(self.lanes.eps));
        let mean = f64::from(dot(s, self.x, self.x)) / self.x.len() as f64;
        let inverse = 1.0 / (mean + f64::from(self.lanes.norm_eps)).sqrt();
        let mut c = Vec::with_capacity(self.base.len());
        for (i, (row, base)) in self.weights.chunks_exact(self.x.len()).zip(self.base).enumerate() {
            // Coefficients of the lanes, of the output, of the matrix.
            let scale = f64::from(self.scale[(i / n).min(2)]);
            c.push(f64::from(dot(s, self.x, row)) * inverse * scale + f64::from(*base));
        }
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        self.out.fill(0.0);
        for (c, lane) in c.iter().zip(self.x.chunks_exact(self.x.len() / n)) {
            zip_map(s, self.out, lane, &PlusTimes(s.splat((sigmoid(*c) + eps) as f32)));
        }
        if !self.kept.is_empty() {
            let (output, matrix) = self.kept.split_at_mut(n);
            output.iter_mut().zip(&c[n..2 * n]).for_each(|(to, c)| *to = (2.0 * sigmoid(*c)) as f32);
            sinkhorn(&c[2 * n..], self.lanes, matrix);
        }
    }
}

/// A matrix of positive values whose columns sum to 1, and whose rows nearly do.
fn sinkhorn(logits: &[f64], lanes: HyperLanes, out: &mut [f32]) {
    let (n, eps) = (lanes.count, f64::from(lanes.eps));
    let mut m = logits.to_vec();
    for row in m.chunks_exact_mut(n) {
        let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        row.iter_mut().for_each(|v| *v = (*v - max).exp());
        let sum: f64 = row.iter().sum();
        row.iter_mut().for_each(|v| *v = *v / sum + eps);
    }
    for step in 0..lanes.iterations {
        if step > 0 {
            for row in m.chunks_exact_mut(n) {
                let sum = row.iter().sum::<f64>() + eps;
                row.iter_mut().for_each(|v| *v /= sum);
            }
        }
        for k in 0..n {
            let sum = m.iter().skip(k).step_by(n).sum::<f64>() + eps;
            m.iter_mut().skip(k).step_by(n).for_each(|v| *v /= sum);
        }
    }
    out.iter_mut().zip(m).for_each(|(to, v)| *to = v as f32);
}

pub fn add(cpu: &mut Cpu, [x, z, coefficients]: [BufferId; 3], lanes: usize) -> Result<(), BackendError> {
    const OP: &str = "hyper_add";
    let (old, added) = (cpu.buffers.get(x, OP)?, cpu.buffers.get(z, OP)?);
    let (wide, width) = (old.width, added.width);
    let rows = old.values.len() / wide.max(1);
    let held = cpu.buffers.input(coefficients, lanes * (lanes + 1), OP)?.len();
    let fits = added.values.len() == rows * width && held == rows * lanes * (lanes + 1);
    if lanes == 0 || width == 0 || wide != lanes * width || !fits {
        let what = format!("rows of {width} to {rows} rows of {wide} in {lanes} lanes");
        return Err(BackendError::Operand { op: OP, what });
    }
    let mut values = cpu.buffers.take(x, [rows, wide], true, z, OP)?;
    let z = cpu.buffers.input(z, width, OP)?;
    let c = cpu.buffers.input(coefficients, lanes * (lanes + 1), OP)?;
    let (all, isa) = (Shards::new(&mut values), cpu.isa);
    cpu.pool.run(rows, &|row| {
        // SAFETY: every row is one index of the pool.
        let x = unsafe { all.slice(row * wide..(row + 1) * wide) };
        let c = &c[row * lanes * (lanes + 1)..][..lanes * (lanes + 1)];
        isa.run(Add { x, z: &z[row * width..(row + 1) * width], c, lanes });
    });
    cpu.buffers.put(x, values);
    Ok(())
}

/// One row.
struct Add<'a> {
    x: &'a mut [f32],
    z: &'a [f32],
    c: &'a [f32],
    lanes: usize,
}

impl Kernel for Add<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let old = self.x.to_vec();
        let (outputs, matrix) = self.c.split_at(self.lanes);
        for (k, (lane, output)) in self.x.chunks_exact_mut(self.z.len()).zip(outputs).enumerate() {
            zip_map(s, lane, self.z, &Times(s.splat(*output)));
            for (j, from) in old.chunks_exact(self.z.len()).enumerate() {
                zip_map(s, lane, from, &PlusTimes(s.splat(matrix[j * self.lanes + k])));
            }
        }
    }
}
