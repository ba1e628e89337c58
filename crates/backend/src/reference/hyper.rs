//! A residual stream of lanes: spread, mixed into a block's input, and added to.

use super::Reference;
use super::linear::dot;
use crate::{BackendError, BufferId, HyperLanes, MatmulInput, Observer, WeightId};

/// Every row, side by side as often as `out` is wider.
pub fn repeat(r: &mut Reference, x: BufferId, out: BufferId) -> Result<(), BackendError> {
    let (x, wide) = (r.buffer(x, "repeat")?, r.buffer(out, "repeat")?.width());
    let width = x.width();
    if width == 0 || !wide.is_multiple_of(width) {
        return Err(BackendError::Operand { op: "repeat", what: format!("{wide} is no multiple of {width}") });
    }
    let values = (0..x.rows()).flat_map(|row| x.row(row).repeat(wide / width)).collect();
    r.store(out, wide, values, "repeat")
}

/// `outs`: coefficients, if wanted, and the block's input.
pub fn mix(
    r: &mut Reference,
    x: BufferId,
    [mix, base, scale]: [WeightId; 3],
    lanes: HyperLanes,
    outs: [Option<BufferId>; 2],
    observer: Option<&mut dyn Observer>,
) -> Result<(), BackendError> {
    const OP: &str = "hyper_mix";
    let n = lanes.count;
    let (x, w) = (r.buffer(x, OP)?, r.weight(mix, OP)?);
    let rows = if outs[0].is_some() { n * (n + 2) } else { n };
    if n == 0 || (w.n, w.k) != (rows, x.width()) || !x.width().is_multiple_of(n) {
        let what = format!("`{}` is {} × {}, expected {rows} × {} in {n} lanes", w.name, w.n, w.k, x.width());
        return Err(BackendError::Operand { op: OP, what });
    }
    if let Some(observer) = observer {
        observer.matmul_input(&MatmulInput::whole(&[&w.name], &x.values, w.k));
    }
    let base = r.vector(base, rows, OP)?;
    let scale = r.vector(scale, if outs[0].is_some() { 3 } else { 1 }, OP)?;
    let width = x.width() / n;
    let (mut coefficients, mut y) = (Vec::new(), Vec::new());
    for row in 0..x.rows() {
        let x = x.row(row);
        let inverse = 1.0 / (dot(x, x) / x.len() as f64 + f64::from(lanes.norm_eps)).sqrt();
        let c: Vec<f64> = (0..rows)
            .map(|i| {
                // Coefficients of the lanes, of the output, of the matrix.
                let kind = (i / n).min(2);
                dot(x, w.row(i)) * inverse * f64::from(scale[kind]) + f64::from(base[i])
            })
            .collect();
        let eps = f64::from(lanes.eps);
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        let mut out = vec![0.0f64; width];
        for (c, lane) in c.iter().zip(x.chunks(width)) {
            out.iter_mut().zip(lane).for_each(|(o, v)| *o += (sigmoid(*c) + eps) * f64::from(*v));
        }
        y.extend(out.iter().map(|v| *v as f32));
        if outs[0].is_some() {
            coefficients.extend(c[n..2 * n].iter().map(|c| (2.0 * sigmoid(*c)) as f32));
            coefficients.extend(sinkhorn(&c[2 * n..], lanes).iter().map(|c| *c as f32));
        }
    }
    if let Some(id) = outs[0] {
        r.store(id, n * (n + 1), coefficients, OP)?;
    }
    outs[1].map_or(Ok(()), |id| r.store(id, width, y, OP))
}

/// A matrix of positive values whose columns sum to 1, and whose rows nearly do.
fn sinkhorn(logits: &[f64], lanes: HyperLanes) -> Vec<f64> {
    let (n, eps) = (lanes.count, f64::from(lanes.eps));
    let mut m: Vec<f64> = Vec::with_capacity(n * n);
    for row in logits.chunks(n) {
        let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = row.iter().map(|v| (v - max).exp()).sum();
        m.extend(row.iter().map(|v| (v - max).exp() / sum + eps));
    }
    for step in 0..lanes.iterations {
        if step > 0 {
            for row in m.chunks_mut(n) {
                let sum = row.iter().sum::<f64>() + eps;
                row.iter_mut().for_each(|v| *v /= sum);
            }
        }
        for k in 0..n {
            let sum = (0..n).map(|j| m[j * n + k]).sum::<f64>() + eps;
            (0..n).for_each(|j| m[j * n + k] /= sum);
        }
    }
    m
}

pub fn add(r: &mut Reference, [x, z, coefficients]: [BufferId; 3], lanes: usize) -> Result<(), BackendError> {
    const OP: &str = "hyper_add";
    let (old, z) = (r.buffer(x, OP)?, r.buffer(z, OP)?);
    let (wide, width) = (old.width(), z.width());
    if lanes == 0 || wide != lanes * width || z.rows() != old.rows() {
        let what = format!("{} rows of {width} to {} of {wide} in {lanes} lanes", z.rows(), old.rows());
        return Err(BackendError::Operand { op: OP, what });
    }
    let coefficients = r.input(coefficients, lanes * (lanes + 1), OP)?;
    coefficients.expect_rows(old.rows(), OP)?;
    let mut y = Vec::with_capacity(old.values.len());
    for row in 0..old.rows() {
        let (x, z, c) = (old.row(row), z.row(row), coefficients.row(row));
        for k in 0..lanes {
            for i in 0..width {
                let mixed: f64 =
                    (0..lanes).map(|j| f64::from(c[lanes + j * lanes + k]) * f64::from(x[j * width + i])).sum();
                y.push((f64::from(c[k]) * f64::from(z[i]) + mixed) as f32);
            }
        }
    }
    r.store(x, wide, y, OP)
}
