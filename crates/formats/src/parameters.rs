//! The plane of inner scales of two-level formats: one parameter of 5, 6 or 8 bits per row and group.
//!
//! x16 order, `[row block][group]`, for the 16 rows r of the block, little-endian bit fields:
//!   8 bits: byte r
//!   6 bits: a u64 whose bits 4r… are the low nibble of row r, then a u32 whose bits 2r… are the two bits above
//!   5 bits: the same u64, then a u16 whose bit r is the bit above
//! Row order, `[row][group]`: a byte each, its bits above the parameter zero.

use crate::layout::Places;
use crate::x16::{Lanes, ROWS};
use ashlar_tensor::Order;

/// Bytes of the parameters of 16 rows and one group, in x16 order.
#[must_use]
pub const fn block_bytes(bits: usize) -> usize {
    ROWS * bits / 8
}

/// Where the nibbles end and the bits above them begin.
const NIBBLES: usize = ROWS / 2;

/// The parameter of row `row` (0..16) of a block. A short block reads as zero.
#[inline]
#[must_use]
pub fn read(bits: usize, block: &[u8], row: usize) -> u8 {
    let byte = |at: usize| block.get(at).copied().unwrap_or(0);
    if bits == 8 {
        return byte(row);
    }
    let low = byte(row / 2) >> (4 * (row % 2)) & 15;
    let above = (bits - 4) * row;
    let high = byte(NIBBLES + above / 8) >> (above % 8) & ((1 << (bits - 4)) - 1);
    low | high << 4
}

/// Writes the parameters of all rows of a block; bits above `bits` must be zero.
#[inline]
pub fn write(bits: usize, parameters: &Lanes<u8>, block: &mut [u8]) {
    if bits == 8 {
        block.iter_mut().zip(parameters).for_each(|(b, p)| *b = *p);
        return;
    }
    let (mut low, mut high) = (0u64, 0u32);
    for (row, &parameter) in parameters.iter().enumerate() {
        low |= u64::from(parameter & 15) << (4 * row);
        high |= u32::from(parameter >> 4) << ((bits - 4) * row);
    }
    let bytes = low.to_le_bytes().into_iter().chain(high.to_le_bytes());
    block.iter_mut().zip(bytes).for_each(|(out, byte)| *out = byte);
}

/// The parameter of a group of a row, from either order.
#[inline]
pub(crate) fn get(bits: usize, places: Places, plane: &[u8], row: usize, group: usize) -> u8 {
    match places.order {
        Order::X16 => {
            let at = (row / ROWS * places.groups + group) * block_bytes(bits);
            read(bits, plane.get(at..at + block_bytes(bits)).unwrap_or_default(), row % ROWS)
        }
        Order::Rows => plane.get(places.parameter(row, group)).copied().unwrap_or(0) & (u8::MAX >> (8 - bits)),
    }
}

/// Writes the parameter of a group of a row that is still zero, in either order. Outside the plane: no effect.
#[inline]
pub(crate) fn set(bits: usize, places: Places, plane: &mut [u8], row: usize, group: usize, parameter: u8) {
    match places.order {
        Order::X16 => {
            let at = (row / ROWS * places.groups + group) * block_bytes(bits);
            let Some(block) = plane.get_mut(at..at + block_bytes(bits)) else { return };
            let mut all = [0; ROWS];
            all[row % ROWS] = parameter;
            let mut one = [0; ROWS];
            write(bits, &all, &mut one);
            block.iter_mut().zip(one).for_each(|(b, o)| *b |= o);
        }
        Order::Rows => {
            if let Some(out) = plane.get_mut(places.parameter(row, group)) {
                *out = parameter;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_lie_where_the_module_says() {
        for bits in [5, 6, 8] {
            let parameters: Lanes<u8> = std::array::from_fn(|r| (r as u8).wrapping_mul(37) & (u8::MAX >> (8 - bits)));
            let mut block = vec![0xa5; block_bytes(bits)];
            write(bits, &parameters, &mut block);
            for (row, &p) in parameters.iter().enumerate() {
                assert_eq!(read(bits, &block, row), p, "{bits} {row}");
            }
            if bits == 6 {
                assert_eq!(block[1], parameters[2] & 15 | (parameters[3] & 15) << 4);
                assert_eq!(block[8], parameters.iter().take(4).rev().fold(0, |b, p| b << 2 | p >> 4));
            }
        }
    }
}
