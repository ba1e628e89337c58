//! `y = y · sigmoid(x · wᵀ)`, per row.

use super::{Reference, linear::dot};
use crate::{BackendError, BufferId, MatmulInput, Observer, WeightId};

const OP: &str = "sigmoid_gate";

pub fn run(
    r: &mut Reference,
    x: BufferId,
    weight: WeightId,
    y: BufferId,
    observer: Option<&mut dyn Observer>,
) -> Result<(), BackendError> {
    if x == y {
        return Err(BackendError::Operand { op: OP, what: "the output buffer is also the input".into() });
    }
    let w = r.weight(weight, OP)?;
    let (x, y_buffer) = (r.input(x, w.k, OP)?, r.buffer(y, OP)?);
    if w.n != 1 {
        let what = format!("`{}` is {} × {}, expected 1 × {}", w.name, w.n, w.k, w.k);
        return Err(BackendError::Operand { op: OP, what });
    }
    y_buffer.expect_rows(x.rows(), OP)?;
    if let Some(observer) = observer {
        observer.matmul_input(&MatmulInput::whole(&[&w.name], &x.values, w.k));
    }
    let width = y_buffer.width();
    let mut values = y_buffer.values.clone();
    for (row, values) in values.chunks_mut(width.max(1)).enumerate() {
        let factor = 1.0 / (1.0 + (-dot(x.row(row), &w.values)).exp());
        values.iter_mut().for_each(|v| *v = (f64::from(*v) * factor) as f32);
    }
    r.store(y, width, values, OP)
}
