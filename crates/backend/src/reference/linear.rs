//! `out = x · Wᵀ + bias`.

use super::buffer::Buffer;
use super::{Matrix, Reference};
use crate::{ActivationMode, BackendError, BufferId, MatmulInput, Observer, Projection, round_bf16, round_row};

pub fn run(
    r: &mut Reference,
    x: BufferId,
    parts: &[Projection],
    accumulate: bool,
    observer: Option<&mut dyn Observer>,
) -> Result<(), BackendError> {
    if let Some(observer) = observer {
        let names = parts.iter().map(|p| Ok(r.weight(p.weight, "linear")?.name.as_str()));
        let names = names.collect::<Result<Vec<_>, BackendError>>()?;
        let input = r.buffer(x, "linear")?;
        observer.matmul_input(&MatmulInput::whole(&names, &input.values, input.width()));
    }
    for part in parts {
        let w = r.weight(part.weight, "linear")?;
        let n = w.n;
        let mut values = matmul(r.buffer(x, "linear")?, w, "linear")?;
        if let Some(bias) = part.bias {
            let bias = r.vector(bias, n, "linear")?;
            for row in values.chunks_mut(n.max(1)) {
                row.iter_mut().zip(bias).for_each(|(v, b)| *v += b);
            }
        }
        if accumulate {
            r.add(part.out, n, values, "linear")?;
        } else {
            r.store(part.out, n, values, "linear")?;
        }
    }
    Ok(())
}

/// y[m, n] = x[m, k] · W[n, k]ᵀ, inputs rounded as the weight's mode says.
pub fn matmul(x: &Buffer, w: &Matrix, op: &'static str) -> Result<Vec<f32>, BackendError> {
    if x.width() != w.k {
        let what = format!("`{}` has {} inputs, its input buffer is {} wide", w.name, w.k, x.width());
        return Err(BackendError::Operand { op, what });
    }
    let mut y = Vec::with_capacity(x.rows() * w.n);
    for row in 0..x.rows() {
        y.extend(matvec(x.row(row), w));
    }
    Ok(y)
}

/// One row of [`matmul`].
pub fn matvec(x: &[f32], w: &Matrix) -> Vec<f32> {
    let x = rounded(x, w.mode);
    (0..w.n).map(|row| dot(&x, w.row(row)) as f32).collect()
}

/// What a weight of that mode sees of one row of inputs.
pub fn rounded(x: &[f32], mode: ActivationMode) -> Vec<f32> {
    let mut x = x.to_vec();
    match mode {
        ActivationMode::F32 => {}
        ActivationMode::Int8 => round_row(&mut x),
        ActivationMode::Bf16 => x.iter_mut().for_each(|v| *v = round_bf16(*v)),
    }
    x
}

/// Σ a·b, all in f64 (each product of two f32 is exact).
pub fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}
