//! A weight on its way to a device, and the checks and the decoding that all backends share.

use crate::BackendError;
use ashlar_formats::{Layout, Planes, Spec};
use ashlar_tensor::{Bytes, Order, PlaneKind};
use std::ops::Range;

/// A weight to load.
#[derive(Clone, Debug)]
pub struct Weight {
    /// Name, for messages.
    pub name: String,
    /// What the bits mean.
    pub spec: Spec,
    /// In which order the planes lie.
    pub order: Order,
    /// Outputs; for vectors (norms, biases) 1.
    pub n: usize,
    /// Inputs; for vectors their length.
    pub k: usize,
    /// Whole planes, in the order of [`Spec::layout`].
    pub planes: Vec<Bytes>,
}

impl Weight {
    /// Where the planes lie, after checking that they are all there and long enough.
    ///
    /// # Errors
    /// [`BackendError::Format`] if the spec cannot take the shape or a plane is missing or short.
    pub fn layout(&self) -> Result<Layout, BackendError> {
        let format = |source| BackendError::Format { tensor: self.name.clone(), source };
        let layout = self.spec.layout(self.order, self.n, self.k).map_err(format)?;
        for (i, plane) in layout.planes.iter().enumerate() {
            let got = self.planes.get(i).map_or(0, |p| p.len());
            if (got as u64) < plane.bytes {
                let expected = usize::try_from(plane.bytes).unwrap_or(usize::MAX);
                return Err(format(ashlar_formats::FormatError::Short { id: self.spec.id, plane: i, got, expected }));
            }
        }
        Ok(layout)
    }

    /// Whether the weight is stored as plain floats (f32, f16, bf16): such weights always see f32 inputs.
    ///
    /// # Errors
    /// As [`Weight::layout`].
    pub fn is_float(&self) -> Result<bool, BackendError> {
        Ok(self.layout()?.planes.first().is_some_and(|p| p.kind == PlaneKind::Values))
    }

    /// Decodes some rows to f32 (`rows.len()` × k, row-major).
    ///
    /// # Errors
    /// [`BackendError::Format`] if the planes are too short or hold NaN or infinity.
    pub fn decode(&self, rows: Range<usize>, out: &mut [f32]) -> Result<(), BackendError> {
        let format = |source| BackendError::Format { tensor: self.name.clone(), source };
        let data: Vec<&[u8]> = self.planes.iter().map(|p| &**p).collect();
        let planes = Planes { order: self.order, n: self.n, k: self.k, first_row: 0, data: &data };
        self.spec.format().and_then(|f| f.decode(&self.spec, &planes, rows, out)).map_err(format)
    }
}
