//! The outlier plane: `slots` pairs per row of (u16 column, f16 delta), little-endian, on top of any format with scales.
//!
//! ŵ[row][column] = base + delta, in f32. Used slots come first, by ascending column; unused ones are four zero bytes,
//! which read as a delta of zero. In x16 order rows are padded to 16 with zero bytes. Page: `docs/formats/outliers.md`.

use crate::scale::{f16_bits, f16_to_f32};
use crate::{FormatError, PlaneLayout};
use ashlar_tensor::PlaneKind;

/// Bytes of one slot.
pub const SLOT_BYTES: usize = 4;

pub(crate) fn layout(slots: usize, rows: usize, rows_per_tile: usize) -> Option<PlaneLayout> {
    PlaneLayout::new(PlaneKind::Outliers, rows, slots.checked_mul(SLOT_BYTES), rows_per_tile)
}

/// Adds the deltas of row `local` of the plane to `values`, the decoded base of row `row` of the weight.
pub(crate) fn apply(
    id: &'static str,
    plane: &[u8],
    slots: usize,
    local: usize,
    row: usize,
    values: &mut [f32],
) -> Result<(), FormatError> {
    let bytes = plane.get(local * slots * SLOT_BYTES..).unwrap_or_default();
    for slot in bytes.as_chunks::<SLOT_BYTES>().0.iter().take(slots) {
        let column = usize::from(u16::from_le_bytes([slot[0], slot[1]]));
        let delta = f16_to_f32(u16::from_le_bytes([slot[2], slot[3]]));
        let k = values.len();
        let Some(value) = values.get_mut(column) else {
            let what = format!("row {row} has an outlier in column {column} of {k}; the data is damaged");
            return Err(FormatError::Corrupt { id, what });
        };
        if !delta.is_finite() {
            return Err(FormatError::NotFinite { row, column, value: delta });
        }
        *value += delta;
    }
    Ok(())
}

/// Writes the slots of row `local`: pairs of (column, delta) by ascending column, at most `slots` of them.
pub fn store(plane: &mut [u8], slots: usize, local: usize, pairs: impl Iterator<Item = (u16, f32)>) {
    let Some(row) = plane.get_mut(local * slots * SLOT_BYTES..(local + 1) * slots * SLOT_BYTES) else { return };
    row.fill(0);
    for (slot, (column, delta)) in row.as_chunks_mut::<SLOT_BYTES>().0.iter_mut().zip(pairs) {
        let ([c0, c1], [d0, d1]) = (column.to_le_bytes(), f16_bits(delta).to_le_bytes());
        *slot = [c0, c1, d0, d1];
    }
}
