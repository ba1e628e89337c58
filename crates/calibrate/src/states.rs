//! Hidden states of all tokens between two layers, as a weight whose rows a program can embed.

use crate::CalibrateError;
use ashlar_backend::Weight;
use ashlar_formats::Spec;
use ashlar_tensor::{AlignedBytes, Bytes, Order};

/// Rows × width f32, little-endian, filled once from the first row on.
pub struct States {
    bytes: AlignedBytes,
    rows: usize,
    width: usize,
    filled: usize,
}

impl States {
    /// Room for `rows` rows.
    pub fn new(rows: usize, width: usize) -> Result<Self, CalibrateError> {
        let bytes = rows.checked_mul(width).and_then(|n| n.checked_mul(4));
        let memory = || CalibrateError::Memory { tokens: rows, bytes: (rows as u64).saturating_mul(4 * width as u64) };
        let bytes = bytes.and_then(AlignedBytes::zeroed).ok_or_else(memory)?;
        Ok(Self { bytes, rows, width, filled: 0 })
    }

    /// Goes on at row `row`.
    pub fn seek(&mut self, row: usize) {
        self.filled = 4 * row * self.width;
    }

    /// Appends rows.
    pub fn push(&mut self, values: &[f32]) {
        let to = self.bytes.get_mut(self.filled..).unwrap_or_default();
        to.as_chunks_mut().0.iter_mut().zip(values).for_each(|(to, v)| *to = v.to_le_bytes());
        self.filled += 4 * values.len();
    }

    /// All bytes, to be read from a checkpoint.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    /// The table, to be shared with a backend.
    pub fn freeze(self) -> Frozen {
        Frozen { bytes: self.bytes.into(), rows: self.rows, width: self.width }
    }
}

/// Complete states.
#[derive(Clone)]
pub struct Frozen {
    bytes: Bytes,
    rows: usize,
    width: usize,
}

impl Frozen {
    /// As a weight; `name` is for messages.
    pub fn weight(&self, name: String) -> Weight {
        let planes = vec![self.bytes.clone()];
        Weight { name, spec: Spec::plain("f32"), order: Order::Rows, n: self.rows, k: self.width, planes }
    }

    /// All bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}
