//! The split of a row block into a base and outliers: which values get a slot, and what is left over for it.

use crate::lanes::V;
use ashlar_formats::scale::{f16_bits, f16_to_f32};
use ashlar_formats::x16::ROWS;
use ashlar_formats::{FormatError, outliers};
use std::ops::Range;

/// One value that is kept apart.
#[derive(Clone, Copy, Debug)]
struct Slot {
    row: usize,
    column: usize,
    value: f32,
    delta: f32,
}

/// The outliers of a row block, by column, then row: the order in which groups come by.
#[derive(Clone, Debug, Default)]
pub struct Outliers {
    slots: Vec<Slot>,
    /// Start of the slots of the current group, and its end once taken.
    current: Range<usize>,
    /// Values beyond the threshold that found no slot.
    pub overflow: u64,
}

impl Outliers {
    /// Values of `rows` (up to 16 × k) with |w| > `sigma` · std(row), largest first (the lower column of equals), at
    /// most `slots` per row.
    pub fn choose(rows: &[f32], k: usize, slots: usize, sigma: f64) -> Self {
        let mut all = Self::default();
        if slots == 0 {
            return all;
        }
        for (row, values) in rows.chunks_exact(k).enumerate() {
            let threshold = sigma * deviation(values);
            let beyond = values.iter().enumerate().filter(|(_, v)| f64::from(v.abs()) > threshold);
            let mut found: Vec<Slot> = beyond.map(|(column, &value)| Slot { row, column, value, delta: 0.0 }).collect();
            found.sort_unstable_by(|a, b| b.value.abs().total_cmp(&a.value.abs()).then(a.column.cmp(&b.column)));
            all.overflow += found.len().saturating_sub(slots) as u64;
            all.slots.extend(found.into_iter().take(slots));
        }
        all.slots.sort_unstable_by_key(|s| (s.column, s.row));
        all
    }

    /// Whether the row block has none.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Takes the outliers of the group of columns from `first` out: value and weight become zero.
    pub fn take(&mut self, first: usize, x: &mut [V], w: &mut [V]) {
        let start = self.current.end;
        let ahead = self.slots.get(start..).unwrap_or_default();
        let count = ahead.iter().take_while(|s| s.column < first + x.len()).count();
        self.current = start..start + count;
        for slot in ahead.iter().take(count) {
            // A non-finite outlier stays, so that the group's check finds it.
            if slot.value.is_finite() {
                x[slot.column - first][slot.row] = 0.0;
                w[slot.column - first][slot.row] = 0.0;
            }
        }
    }

    /// Before the first group again.
    pub fn rewind(&mut self) {
        self.current = 0..0;
    }

    /// Makes the slots of `columns` the current ones, after all were taken out at once: groups come by in order.
    pub fn next(&mut self, columns: Range<usize>) {
        let start = if columns.start == 0 { 0 } else { self.current.end };
        let ahead = self.slots.get(start..).unwrap_or_default();
        self.current = start..start + ahead.iter().take_while(|s| s.column < columns.end).count();
    }

    /// Computes the deltas of the group just encoded and puts the values back: x the weight, `decoded` base + delta.
    ///
    /// # Errors
    /// [`FormatError::TooLarge`] if a delta exceeds f16.
    pub fn finish(
        &mut self,
        id: &'static str,
        first_row: usize,
        columns: Range<usize>,
        x: &mut [V],
        decoded: &mut [V],
    ) -> Result<(), FormatError> {
        for slot in self.slots.get_mut(self.current.clone()).unwrap_or_default() {
            let (at, row) = (slot.column - columns.start, slot.row);
            let base = decoded[at][row];
            slot.delta = f16_to_f32(f16_bits(slot.value - base));
            if !slot.delta.is_finite() {
                let (row, column, value) = (first_row + row, slot.column, slot.value);
                return Err(FormatError::TooLarge { id, row, column, value, limit: 65504.0 });
            }
            x[at][row] = slot.value;
            decoded[at][row] = base + slot.delta;
        }
        Ok(())
    }

    /// Takes the outliers of one column of the current group out of the values to round; they become what the slots are
    /// to hold.
    pub fn meet(&mut self, column: usize, values: &mut V) {
        for slot in self.slots.get_mut(self.current.clone()).unwrap_or_default() {
            if slot.column == column {
                slot.value = std::mem::take(&mut values[slot.row]);
            }
        }
    }

    /// Computes the deltas of one column of the current group and adds them to what its codes decode to.
    ///
    /// # Errors
    /// [`FormatError::TooLarge`] if a delta exceeds f16.
    pub fn settle(
        &mut self,
        id: &'static str,
        first_row: usize,
        column: usize,
        decoded: &mut V,
    ) -> Result<(), FormatError> {
        for slot in self.slots.get_mut(self.current.clone()).unwrap_or_default() {
            if slot.column == column {
                slot.delta = f16_to_f32(f16_bits(slot.value - decoded[slot.row]));
                if !slot.delta.is_finite() {
                    let (row, value) = (first_row + slot.row, slot.value);
                    return Err(FormatError::TooLarge { id, row, column, value, limit: 65504.0 });
                }
                decoded[slot.row] += slot.delta;
            }
        }
        Ok(())
    }

    /// Writes the slots of the row block that starts at row `first` of the plane.
    pub fn store(&self, plane: &mut [u8], slots: usize, first: usize) {
        for row in 0..ROWS {
            let of_row = self.slots.iter().filter(|s| s.row == row);
            outliers::store(plane, slots, first + row, of_row.map(|s| (s.column as u16, s.delta)));
        }
    }
}

/// The standard deviation of a row, in f64 with 16 fixed lanes.
fn deviation(values: &[f32]) -> f64 {
    let (mut sums, mut squares) = ([0.0f64; 16], [0.0f64; 16]);
    for chunk in values.chunks(16) {
        for ((sum, square), &v) in sums.iter_mut().zip(&mut squares).zip(chunk) {
            *sum += f64::from(v);
            *square += f64::from(v) * f64::from(v);
        }
    }
    let count = values.len().max(1) as f64;
    let mean = sums.iter().sum::<f64>() / count;
    (squares.iter().sum::<f64>() / count - mean * mean).max(0.0).sqrt()
}
