//! `out = x · w / sqrt(mean(x²) + eps)`, per row. Zhang & Sennrich 2019, eq. 4, with `eps` as in Llama.

use super::Reference;
use crate::{BackendError, BufferId, WeightId};

pub fn run(r: &mut Reference, x: BufferId, weight: WeightId, eps: f32, out: BufferId) -> Result<(), BackendError> {
    let x = r.buffer(x, "rms_norm")?;
    let width = x.width();
    let w = r.vector(weight, width, "rms_norm")?;
    let mut values = x.values.clone();
    for row in values.chunks_mut(width.max(1)) {
        normalize(row, w, eps);
    }
    r.store(out, width, values, "rms_norm")
}

/// Normalises one row in place.
pub fn normalize(row: &mut [f32], weight: &[f32], eps: f32) {
    let sum: f64 = row.iter().map(|v| f64::from(*v) * f64::from(*v)).sum();
    let inverse = 1.0 / (sum / row.len() as f64 + f64::from(eps)).sqrt();
    for (v, w) in row.iter_mut().zip(weight) {
        *v = (f64::from(*v) * inverse * f64::from(*w)) as f32;
    }
}
