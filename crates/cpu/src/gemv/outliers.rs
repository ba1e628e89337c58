//! The outlier plane: sparse deltas that are added to the outputs of a panel, whatever the format below.

use super::{Job, PANEL, Sink};
use crate::loaded::Loaded;
use ashlar_backend::BackendError;
use ashlar_formats::FormatError;
use ashlar_formats::outliers::SLOT_BYTES;
use ashlar_formats::scale::f16_to_f32;
use ashlar_tensor::PlaneKind;

/// The plane of a weight.
pub struct Plane<'a> {
    bytes: &'a [u8],
    slots: usize,
}

/// The outlier plane of a weight, if it has one.
pub fn plane(weight: &Loaded) -> Option<Plane<'_>> {
    let slots = weight.weight.spec.outlier_slots;
    let index = weight.layout.planes.iter().position(|p| p.kind == PlaneKind::Outliers)?;
    (slots > 0).then(|| Plane { bytes: weight.plane(index), slots })
}

/// Runs `base`, and adds the outliers' share to what it gives to its sink.
pub fn multiply(
    job: &Job<'_>,
    plane: &Plane<'_>,
    base: impl FnOnce(Sink<'_>) -> Result<(), BackendError>,
    sink: Sink<'_>,
) -> Result<(), BackendError> {
    let mut damaged = None;
    base(&mut |row, panel, y| {
        let x = job.inputs.values(job.rows.get(row), job.form);
        for (panel, y) in (panel..).zip(y) {
            let mut y = *y;
            for (lane, y) in y.iter_mut().enumerate() {
                match plane.dot(panel * PANEL + lane, x) {
                    Ok(sum) => *y += sum,
                    Err(column) => damaged = Some((panel * PANEL + lane, column)),
                }
            }
            sink(row, panel, &[y]);
        }
    })?;
    damaged.map_or(Ok(()), |(row, column)| {
        let what = format!("row {row} has an outlier in column {column} of {}; the data is damaged", job.inputs.k);
        let source = FormatError::Corrupt { id: job.weight.weight.spec.id, what };
        Err(BackendError::Format { tensor: job.weight.weight.name.clone(), source })
    })
}

impl Plane<'_> {
    /// Σ delta · x over the slots of a row; the column if one lies beyond x.
    #[inline]
    fn dot(&self, row: usize, x: &[f32]) -> Result<f32, usize> {
        let bytes = self.bytes.get(row * self.slots * SLOT_BYTES..).unwrap_or_default();
        let mut sum = 0.0;
        for &[c0, c1, d0, d1] in bytes.as_chunks::<SLOT_BYTES>().0.iter().take(self.slots) {
            let column = usize::from(u16::from_le_bytes([c0, c1]));
            let delta = f16_to_f32(u16::from_le_bytes([d0, d1]));
            sum += delta * x.get(column).ok_or(column)?;
        }
        Ok(sum)
    }
}
