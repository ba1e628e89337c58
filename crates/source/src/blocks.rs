//! Planes that are parts of blocks: what GGUF stores as one block of codes and scales, our formats have in planes of their
//! own. Only places change; every bit is kept.
//!
//! The bytes of a block that belong to other planes are read with them and left out, so that reading all planes of a
//! weight reads it from the page cache once per plane, and from the disk once.

use crate::shard::Shard;
use std::io;

/// Bytes of the file that are read at once.
const CHUNK: u64 = 256 << 10;
/// No piece that is made of several parts of a block is longer.
const LONGEST: usize = 128;

/// A plane made of one piece of every block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blocks {
    /// Bytes of a block.
    pub block: u64,
    /// Bytes of the piece.
    pub piece: u64,
    /// Which piece.
    pub pick: Pick,
    /// Blocks of a row.
    pub row: u64,
    /// In which order rows lie.
    pub order: RowOrder,
}

/// A piece of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pick {
    /// From this byte on.
    From(usize),
    /// Of `q6_k`: the low nibbles of the codes, 16 bytes per 32 values.
    SixLow,
    /// Of `q6_k`: the high pairs of bits, 8 bytes per 32 values.
    SixHigh,
}

/// In which order rows lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowOrder {
    /// As in the weight.
    Same,
    /// Within a head of so many rows, row i of the first half lies at 2i, row i of the second half at 2i + 1.
    Rotated(u64),
}

impl RowOrder {
    /// Where row `row` of the weight lies.
    fn place(self, row: u64) -> u64 {
        let Self::Rotated(head) = self else { return row };
        let (Some(within), half) = (row.checked_rem(head), head >> 1) else { return row };
        let (first, at) = if within < half { (0, within) } else { (1, within.saturating_sub(half)) };
        row.saturating_sub(within).saturating_add(at.saturating_mul(2)).saturating_add(first)
    }
}

/// Fills `out` with the plane's bytes from `offset` on; the blocks begin at `start` of the file.
pub fn read(shard: &Shard, start: u64, form: &Blocks, offset: u64, mut out: &mut [u8]) -> io::Result<()> {
    let end = || io::Error::from(io::ErrorKind::UnexpectedEof);
    let size = |v: u64| usize::try_from(v).map_err(|_| end());
    let (block, piece) = (size(form.block)?, size(form.piece)?);
    let mut buffer = Vec::new();
    let mut index = offset.checked_div(form.piece).ok_or_else(end)?;
    let mut within = size(offset.checked_rem(form.piece).ok_or_else(end)?)?;
    while !out.is_empty() {
        let row = index.checked_div(form.row).ok_or_else(end)?;
        let column = index.checked_rem(form.row).ok_or_else(end)?;
        let wanted = (within.saturating_add(out.len()) as u64).div_ceil(form.piece.max(1));
        // Rows in another order are read one by one.
        let together = if form.order == RowOrder::Same { u64::MAX } else { form.row.saturating_sub(column) };
        let blocks = wanted.min(together).min(CHUNK.checked_div(form.block).unwrap_or(0).max(1));
        let first = form.order.place(row).checked_mul(form.row).and_then(|f| f.checked_add(column));
        let at = first.and_then(|f| f.checked_mul(form.block)).and_then(|f| f.checked_add(start)).ok_or_else(end)?;
        buffer.resize(size(blocks.saturating_mul(form.block))?, 0);
        shard.read_exact_at(&mut buffer, at)?;
        for block in buffer.chunks_exact(block) {
            let mut made = [0; LONGEST];
            let whole = form.pick.piece(block, piece, &mut made);
            let part = whole.get(within..).unwrap_or_default();
            let len = part.len().min(out.len());
            let (now, rest) = std::mem::take(&mut out).split_at_mut(len);
            now.iter_mut().zip(part).for_each(|(to, from)| *to = *from);
            (out, within) = (rest, 0);
        }
        index = index.saturating_add(blocks);
    }
    Ok(())
}

impl Pick {
    /// The piece of a block, in place or in `made`.
    fn piece<'a>(self, block: &'a [u8], len: usize, made: &'a mut [u8; LONGEST]) -> &'a [u8] {
        match self {
            Self::From(first) => block.get(first..).and_then(|b| b.get(..len)).unwrap_or_default(),
            Self::SixLow | Self::SixHigh => {
                six_bits(block, self == Self::SixLow, made);
                made.get(..len).unwrap_or_default()
            }
        }
    }
}

/// Codes of a `q6_k` block in our row order. The block has 128 bytes of low nibbles and 64 of high pairs; of each half of
/// 128 values, value l + 32 q (l < 32) has its nibble in byte l + 32 (q mod 2) of the half's 64, the low one if q < 2, and
/// its pair in bits 2q of byte l of the half's 32.
fn six_bits(block: &[u8], low: bool, made: &mut [u8; LONGEST]) {
    let byte = |at: usize| block.get(at).copied().unwrap_or(0);
    let nibble = |half: usize, q: usize, l: usize| byte(half << 6 | (q & 1) << 5 | l) >> ((q >> 1) << 2) & 15;
    let pair = |half: usize, q: usize, l: usize| byte(128 | half << 5 | l) >> (q << 1) & 3;
    for (group, quarter) in (0..8).map(|g| (g, g & 3)) {
        let half = group >> 2;
        if low {
            // Byte j: value j low, value j + 16 high.
            let out = made.iter_mut().skip(group << 4).take(16);
            out.enumerate().for_each(|(j, b)| *b = nibble(half, quarter, j) | nibble(half, quarter, j | 16) << 4);
        } else {
            // Byte j: values j, j + 8, j + 16, j + 24, the first in the lowest bits.
            let out = made.iter_mut().skip(group << 3).take(8);
            out.enumerate().for_each(|(j, b)| {
                *b = (0..4).fold(0, |bits, i| bits | pair(half, quarter, j | i << 3) << (i << 1));
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Result;
    use std::io::Write;

    /// A file of these bytes.
    fn shard(bytes: &[u8]) -> Result<(tempfile::NamedTempFile, Shard)> {
        let mut file = tempfile::NamedTempFile::new()?;
        file.write_all(bytes)?;
        let shard = Shard::open(file.path(), "f")?;
        Ok((file, shard))
    }

    #[test]
    fn any_part_of_a_plane_is_the_same_part_of_the_whole() -> Result {
        // 6 rows of 5 blocks of 7 bytes after 3 others; the plane is bytes 2..5 of each.
        let bytes: Vec<u8> = (0..213u32).map(|i| (i * 37 % 251) as u8).collect();
        let (_file, shard) = shard(&bytes)?;
        for order in [RowOrder::Same, RowOrder::Rotated(6)] {
            let form = Blocks { block: 7, piece: 3, pick: Pick::From(2), row: 5, order };
            let rows: [usize; 6] = if order == RowOrder::Same { [0, 1, 2, 3, 4, 5] } else { [0, 2, 4, 1, 3, 5] };
            let whole: Vec<u8> = rows
                .iter()
                .flat_map(|row| (0..5).map(move |b| 3 + (row * 5 + b) * 7 + 2))
                .flat_map(|at| bytes[at..at + 3].to_vec())
                .collect();
            for first in 0..whole.len() {
                for last in first..=whole.len() {
                    let mut out = vec![0; last - first];
                    read(&shard, 3, &form, first as u64, &mut out)?;
                    assert_eq!(out, whole[first..last], "{order:?} {first}..{last}");
                }
            }
            assert!(read(&shard, 3, &form, whole.len() as u64, &mut [0]).is_err(), "beyond the file");
        }
        Ok(())
    }
}
