//! `x16`, the at-rest order of codes: panels of 16 rows × 32 columns.
//!
//! A 64-byte vector has one 32-bit lane per row. Byte b of a lane holds
//!   8 bits, vector v = 0..8:  column 4v + b
//!   4 bits, vector v = 0..4:  column 8v + b in the low nibble, 8v + 4 + b in the high one
//!   2 bits, vector v = 0..2:  column 16v + 4j + b in bits 2j and 2j + 1
//! One bit a code is a mask instead: 64 bits for every 4 columns, v = 0..8, bit 4r + b = column 4v + b of row r. 3 and 6
//! bits are two such planes, the low bits first.
//! All so that 4 neighbouring bytes of a row meet 4 neighbouring activations in a dot-product instruction, and a nibble is
//! one mask or shift away from it. Panels go row block by row block (16 rows), columns ascending. Rows beyond n are zero
//! bytes. DESIGN §4; `docs/format.md` is normative.

use ashlar_simd::Simd;

/// Rows of a panel.
pub const ROWS: usize = 16;
/// Columns of a panel.
pub const COLUMNS: usize = 32;

/// Bytes of the mask of 4 columns.
const MASK_BYTES: usize = 4 * ROWS / 8;

/// A code, or any value, of each of the 16 rows of a panel.
pub type Lanes<T> = [T; ROWS];

/// Bits of one code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// Eight codes a byte.
    One,
    /// Four codes a byte.
    Two,
    /// Two codes a byte.
    Four,
    /// A byte each.
    Eight,
}

impl Width {
    /// Columns that share one 32-bit lane of a vector. A mask has no lanes; its panel is counted as one vector.
    #[inline(always)]
    #[must_use]
    pub const fn columns_per_lane(self) -> usize {
        32 / self.bits()
    }

    /// Bits of a code.
    #[inline(always)]
    #[must_use]
    pub const fn bits(self) -> usize {
        match self {
            Self::One => 1,
            Self::Two => 2,
            Self::Four => 4,
            Self::Eight => 8,
        }
    }

    /// Bytes of 32 codes in row order.
    #[inline(always)]
    #[must_use]
    pub const fn row_bytes(self) -> usize {
        COLUMNS * self.bits() / 8
    }

    /// Bytes of a panel.
    #[inline(always)]
    #[must_use]
    pub const fn panel_bytes(self) -> usize {
        ROWS * COLUMNS * self.bits() / 8
    }

    /// How far the code of column `j` of a lane is shifted left in its 32 bits.
    #[inline(always)]
    const fn shift(self, j: usize) -> u32 {
        (8 * (j % 4) + self.bits() * (j / 4)) as u32
    }

    /// Packs one code per (column, row) into whole panels: `codes` one entry per column, a multiple of 32 of them. Bits
    /// above the width must be zero.
    #[inline(always)]
    pub fn pack<S: Simd>(self, s: S, codes: &[Lanes<i32>], panels: &mut [u8]) {
        if self == Self::One {
            return pack_masks(s, codes, panels);
        }
        let columns = codes.chunks_exact(self.columns_per_lane());
        for (columns, vector) in columns.zip(panels.as_chunks_mut::<{ 4 * ROWS }>().0) {
            let mut lanes = s.splat_i32(0);
            for (j, column) in columns.iter().enumerate() {
                // The codes do not overlap: a sum is a union.
                lanes = s.add_i32(lanes, s.shl(s.load_i32(column), self.shift(j)));
            }
            let mut stored = [0; ROWS];
            s.store_i32(lanes, &mut stored);
            *vector = bytemuck::cast(stored.map(i32::to_le));
        }
    }

    /// The 32 codes of `row` (0..16) of one panel. A short panel reads as zeros.
    #[inline]
    #[must_use]
    pub fn row(self, panel: &[u8], row: usize) -> [u8; COLUMNS] {
        let mut codes = [0; COLUMNS];
        if self == Self::One {
            for (mask, codes) in panel.as_chunks::<MASK_BYTES>().0.iter().zip(codes.as_chunks_mut::<4>().0) {
                let bits = u64::from_le_bytes(*mask) >> (4 * row);
                *codes = std::array::from_fn(|b| (bits >> b) as u8 & 1);
            }
            return codes;
        }
        let columns = self.columns_per_lane();
        for (vector, codes) in panel.chunks_exact(4 * ROWS).zip(codes.chunks_exact_mut(columns)) {
            let Some(lane) = vector.get(4 * row..).and_then(|l| l.first_chunk()) else { return [0; COLUMNS] };
            let lane = u32::from_le_bytes(*lane);
            for (j, code) in codes.iter_mut().enumerate() {
                *code = (lane >> self.shift(j)) as u8 & self.mask();
            }
        }
        codes
    }

    /// Writes the 32 codes of `row` (0..16) into a panel. Bits above the width must be zero.
    #[inline]
    pub fn set_row(self, panel: &mut [u8], row: usize, codes: &[u8; COLUMNS]) {
        if self == Self::One {
            for (mask, codes) in panel.as_chunks_mut::<MASK_BYTES>().0.iter_mut().zip(codes.as_chunks::<4>().0) {
                let bits = codes.iter().enumerate().fold(0, |bits, (b, &code)| bits | u64::from(code) << b);
                let others = u64::from_le_bytes(*mask) & !(15 << (4 * row));
                *mask = (others | bits << (4 * row)).to_le_bytes();
            }
            return;
        }
        let columns = self.columns_per_lane();
        for (vector, codes) in panel.chunks_exact_mut(4 * ROWS).zip(codes.chunks_exact(columns)) {
            let Some(lane) = vector.get_mut(4 * row..).and_then(|l| l.first_chunk_mut()) else { return };
            let value = codes.iter().enumerate().fold(0, |value, (j, &code)| value | u32::from(code) << self.shift(j));
            *lane = value.to_le_bytes();
        }
    }

    /// The 32 codes of a group in row order, which takes S = 4 · bits bytes: byte j holds the codes j, j + S, j + 2S, …,
    /// the first in its lowest bits. (8 bits: a byte each; 4 bits: j in the low nibble, j + 16 in the high one.)
    #[inline]
    #[must_use]
    pub fn unpack_rows(self, bytes: &[u8]) -> [u8; COLUMNS] {
        let mut codes = [0; COLUMNS];
        for (i, codes) in codes.chunks_exact_mut(self.row_bytes()).enumerate() {
            for (code, &byte) in codes.iter_mut().zip(bytes) {
                *code = byte >> (i * self.bits()) & self.mask();
            }
        }
        codes
    }

    /// The inverse of [`Width::unpack_rows`].
    #[inline]
    pub fn pack_rows(self, codes: &[u8; COLUMNS], bytes: &mut [u8]) {
        bytes.fill(0);
        for (i, codes) in codes.chunks_exact(self.row_bytes()).enumerate() {
            for (byte, &code) in bytes.iter_mut().zip(codes) {
                *byte |= code << (i * self.bits());
            }
        }
    }

    #[inline(always)]
    pub(crate) const fn mask(self) -> u8 {
        (u8::MAX as u32 >> (8 - self.bits())) as u8
    }
}

/// One bit per code, for each 4 columns a mask of all rows.
#[inline(always)]
fn pack_masks<S: Simd>(s: S, codes: &[Lanes<i32>], panels: &mut [u8]) {
    for (columns, mask) in codes.as_chunks::<4>().0.iter().zip(panels.as_chunks_mut::<MASK_BYTES>().0) {
        let mut lanes = s.splat_i32(0);
        for (b, column) in columns.iter().enumerate() {
            lanes = s.add_i32(lanes, s.shl(s.load_i32(column), b as u32));
        }
        let mut nibbles = [0; ROWS];
        s.store_i32(lanes, &mut nibbles);
        let bits = nibbles.iter().rev().fold(0u64, |bits, &nibble| bits << 4 | u64::from(nibble.cast_unsigned()));
        *mask = bits.to_le_bytes();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ashlar_simd::{Isa, Kernel};

    /// The order as DESIGN §4 words it: (byte in the panel, shift) of a code.
    fn place(width: Width, row: usize, column: usize) -> (usize, u32) {
        match width {
            Width::One => (8 * (column / 4) + (4 * row + column % 4) / 8, ((4 * row + column % 4) % 8) as u32),
            Width::Two => (64 * (column / 16) + 4 * row + column % 4, 2 * (column % 16 / 4) as u32),
            Width::Eight => (64 * (column / 4) + 4 * row + column % 4, 0),
            Width::Four => (64 * (column / 8) + 4 * row + column % 4, if column % 8 < 4 { 0 } else { 4 }),
        }
    }

    fn code(width: Width, row: usize, column: usize) -> u8 {
        (row * 37 + column * 11 + 5) as u8 & width.mask()
    }

    struct Pack<'a>(Width, &'a [Lanes<i32>]);

    impl Kernel for Pack<'_> {
        type Output = Vec<u8>;
        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> Vec<u8> {
            let mut panel = vec![0; self.0.panel_bytes()];
            self.0.pack(s, self.1, &mut panel);
            panel
        }
    }

    #[test]
    fn packed_codes_lie_where_the_design_says() {
        for width in [Width::One, Width::Two, Width::Four, Width::Eight] {
            let codes: Vec<Lanes<i32>> =
                (0..COLUMNS).map(|c| std::array::from_fn(|r| i32::from(code(width, r, c)))).collect();
            for isa in Isa::available() {
                let panel = isa.run(Pack(width, &codes));
                for row in 0..ROWS {
                    for column in 0..COLUMNS {
                        let (byte, shift) = place(width, row, column);
                        assert_eq!(
                            panel[byte] >> shift & width.mask(),
                            code(width, row, column),
                            "{width:?} {row} {column}"
                        );
                    }
                    assert_eq!(width.row(&panel, row), std::array::from_fn(|c| code(width, row, c)));
                }
            }
        }
    }

    #[test]
    fn set_row_writes_what_row_reads_and_nothing_else() {
        for width in [Width::One, Width::Two, Width::Four, Width::Eight] {
            let mut panel = vec![0; width.panel_bytes()];
            for row in (0..ROWS).rev() {
                width.set_row(&mut panel, row, &std::array::from_fn(|c| code(width, row, c)));
            }
            for row in 0..ROWS {
                assert_eq!(width.row(&panel, row), std::array::from_fn(|c| code(width, row, c)));
            }
            assert_eq!(width.panel_bytes(), 64 * width.bits());
        }
    }

    #[test]
    fn row_order_of_nibbles_pairs_columns_sixteen_apart() {
        let codes: [u8; COLUMNS] = std::array::from_fn(|c| (c % 16) as u8);
        let mut bytes = [0; 16];
        Width::Four.pack_rows(&codes, &mut bytes);
        assert_eq!(bytes[3], 3 | 3 << 4);
        assert_eq!(Width::Four.unpack_rows(&bytes), codes);
    }

    #[test]
    fn row_order_gives_back_what_was_packed() {
        for width in [Width::One, Width::Two, Width::Four, Width::Eight] {
            let codes = std::array::from_fn(|c| code(width, 3, c));
            let mut bytes = vec![0xa5; width.row_bytes()];
            width.pack_rows(&codes, &mut bytes);
            assert_eq!(width.unpack_rows(&bytes), codes, "{width:?}");
        }
    }
}
