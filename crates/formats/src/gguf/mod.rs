//! Block types of GGUF files that none of our formats holds bit for bit: `q4_1`, `q5_0`, `q5_1`, `q2_k`, `q3_k`, `q4_k`,
//! `q5_k`, `iq4_xs`, `iq2_xxs`, `iq2_xs`, `iq3_xxs`. Read and kept, never chosen: no recipe can ask for them.
//!
//! One plane, the same in both orders: row after row the blocks of the file, byte for byte. Kernels read them through
//! decode. What the types of the other names are: `q8_0` is `q8`, `q4_0` is `i4:g32`, `q6_k` is `q6`, `iq4_nl` is `iq4nl`,
//! `mxfp4` is `mxfp4` (the crate `source` takes their blocks apart).
//!
//! Facts of the blocks: `ggml-common.h` and `gguf-py/gguf/quants.py` of ggml-org/llama.cpp (MIT). Page: `docs/formats/gguf.md`.

mod codebook;
mod grids;
mod legacy;
mod nested;

use crate::{Format, FormatError, Grid, Layout, PlaneLayout, Planes, Spec, Variant};
use ashlar_tensor::{Order, PlaneKind};
use std::ops::Range;

/// One block type.
pub struct Blocks {
    id: &'static str,
    /// Values of a block.
    values: usize,
    /// Bytes of a block.
    bytes: usize,
    /// Decodes one block; the slices have exactly `bytes` and `values` elements.
    decode: fn(&[u8], &mut [f32]),
}

const fn blocks(id: &'static str, values: usize, bytes: usize, decode: fn(&[u8], &mut [f32])) -> Blocks {
    Blocks { id, values, bytes, decode }
}

/// Each is its GGUF name in capitals.
pub const Q4_1: Blocks = blocks("q4_1", 32, 20, legacy::q4_1);
pub const Q5_0: Blocks = blocks("q5_0", 32, 22, legacy::q5_0);
pub const Q5_1: Blocks = blocks("q5_1", 32, 24, legacy::q5_1);
pub const Q2_K: Blocks = blocks("q2_k", 256, 84, nested::q2_k);
pub const Q3_K: Blocks = blocks("q3_k", 256, 110, nested::q3_k);
pub const Q4_K: Blocks = blocks("q4_k", 256, 144, nested::q4_k);
pub const Q5_K: Blocks = blocks("q5_k", 256, 176, nested::q5_k);
pub const IQ4_XS: Blocks = blocks("iq4_xs", 256, 136, nested::iq4_xs);
pub const IQ2_XXS: Blocks = blocks("iq2_xxs", 256, 66, codebook::iq2_xxs);
pub const IQ2_XS: Blocks = blocks("iq2_xs", 256, 74, codebook::iq2_xs);
pub const IQ3_XXS: Blocks = blocks("iq3_xxs", 256, 98, codebook::iq3_xxs);

impl Format for Blocks {
    fn id(&self) -> &'static str {
        self.id
    }

    fn row_block(&self) -> usize {
        1
    }

    fn variants(&self) -> &'static [Variant] {
        &[Variant { text: "", group: 0, zero_point: false, scale: None }]
    }

    fn layout(&self, _spec: &Spec, _order: Order, n: usize, k: usize) -> Result<Layout, FormatError> {
        let shape = |what: String| FormatError::Shape { id: self.id, n, k, what };
        if k == 0 || !k.is_multiple_of(self.values) {
            return Err(shape(format!("columns must be a multiple of {}", self.values)));
        }
        let plane = PlaneLayout::new(PlaneKind::Codes, n, (k / self.values).checked_mul(self.bytes), 1);
        let plane = plane.ok_or_else(|| shape("the weight would exceed the address space".into()))?;
        Ok(Layout { row_block: 1, planes: vec![plane] })
    }

    fn decode(&self, spec: &Spec, planes: &Planes<'_>, rows: Range<usize>, out: &mut [f32]) -> Result<(), FormatError> {
        planes.check(spec, &spec.layout(planes.order, planes.n, planes.k)?, &rows, out.len())?;
        let row_blocks = planes.k / self.values;
        let start = (rows.start - planes.first_row) * row_blocks * self.bytes;
        let data = planes.plane(0).get(start..).unwrap_or_default().chunks_exact(self.bytes);
        for (index, (block, values)) in data.zip(out.chunks_exact_mut(self.values)).enumerate() {
            (self.decode)(block, values);
            // The sum of x · 0 is 0 or NaN.
            if values.iter().map(|v| v * 0.0).sum::<f32>() != 0.0 {
                let at = values.iter().position(|v| !v.is_finite()).unwrap_or(0);
                let (row, column) = (rows.start + index / row_blocks, index % row_blocks * self.values + at);
                return Err(FormatError::NotFinite { row, column, value: values[at] });
            }
        }
        Ok(())
    }

    fn grid(&self, _spec: &Spec) -> Grid {
        Grid::Opaque
    }
}

/// The f16 at byte `at`.
fn half(block: &[u8], at: usize) -> f32 {
    crate::scale::f16_to_f32(u16::from_le_bytes([block[at], block[at + 1]]))
}

/// The little-endian u32 at byte `at`.
fn word(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
}

#[cfg(test)]
mod tests;
