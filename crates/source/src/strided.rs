//! Planes whose rows lie apart in the file, with those of another weight between them.
//!
//! Rows are read one by one: what lies between them belongs to a weight that is read as well, and a byte of the source is
//! read once. The price is a system call per row, some 0.3 µs, which the page cache keeps from being a wait for the disk.

use crate::shard::Shard;
use std::io;

/// Rows of `row` bytes, `pitch` bytes from one to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stride {
    /// Bytes of a row.
    pub row: u64,
    /// Bytes from the start of a row to that of the next one; at least `row`.
    pub pitch: u64,
}

/// Fills `out` with the plane's bytes from `offset` on. The plane's first row lies at `start` of the file.
pub fn read(shard: &Shard, start: u64, stride: Stride, offset: u64, mut out: &mut [u8]) -> io::Result<()> {
    let end = || io::Error::from(io::ErrorKind::UnexpectedEof);
    let (mut row, mut within) = match (offset.checked_div(stride.row), offset.checked_rem(stride.row)) {
        (Some(row), Some(within)) => (row, within),
        _ => return Err(end()),
    };
    while !out.is_empty() {
        let left = usize::try_from(stride.row.saturating_sub(within)).map_err(|_| end())?;
        let left = left.min(out.len());
        let (piece, rest) = std::mem::take(&mut out).split_at_mut(left);
        let at = row.checked_mul(stride.pitch).and_then(|r| r.checked_add(start)).and_then(|r| r.checked_add(within));
        shard.read_exact_at(piece, at.ok_or_else(end)?)?;
        (out, within, row) = (rest, 0, row.saturating_add(1));
    }
    Ok(())
}
