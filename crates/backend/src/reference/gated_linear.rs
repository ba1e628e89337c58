//! `out = activation(x · gateᵀ, x · upᵀ)`: the first half of a gated MLP.

use super::linear::{matmul, matvec};
use super::{Matrix, Reference};
use crate::{BackendError, BufferId, MatmulInput, Observer, WeightId, gated};
use ashlar_arch::Activation;

pub fn run(
    r: &mut Reference,
    x: BufferId,
    [gate, up]: [WeightId; 2],
    activation: Activation,
    out: BufferId,
    observer: Option<&mut dyn Observer>,
) -> Result<(), BackendError> {
    let (gate, up) = (r.weight(gate, "gated_linear")?, r.weight(up, "gated_linear")?);
    check_pair(gate, up, "gated_linear")?;
    let x = r.buffer(x, "gated_linear")?;
    if let Some(observer) = observer {
        observer.matmul_input(&MatmulInput::whole(&[&gate.name, &up.name], &x.values, x.width()));
    }
    let n = gate.n;
    let (g, u) = (matmul(x, gate, "gated_linear")?, matmul(x, up, "gated_linear")?);
    let h = g.iter().zip(&u).map(|(g, u)| gated(*g, *u, activation)).collect();
    r.store(out, n, h, "gated_linear")
}

/// One row, with biases of gate and up where there are any.
pub fn hidden(x: &[f32], [gate, up]: [&Matrix; 2], biases: Option<[&[f32]; 2]>, activation: Activation) -> Vec<f32> {
    let (mut g, mut u) = (matvec(x, gate), matvec(x, up));
    if let Some([gate, up]) = biases {
        g.iter_mut().zip(gate).for_each(|(v, b)| *v += b);
        u.iter_mut().zip(up).for_each(|(v, b)| *v += b);
    }
    g.iter().zip(&u).map(|(g, u)| gated(*g, *u, activation)).collect()
}

pub fn check_pair(gate: &Matrix, up: &Matrix, op: &'static str) -> Result<(), BackendError> {
    if (gate.n, gate.k) == (up.n, up.k) {
        return Ok(());
    }
    let what = format!("`{}` is {} × {}, but `{}` is {} × {}", gate.name, gate.n, gate.k, up.name, up.n, up.k);
    Err(BackendError::Operand { op, what })
}
