//! Planes whose rows lie apart in the file, with those of another weight between them.

use crate::shard::Shard;
use std::io;

/// Bytes read at once.
const CHUNK: u64 = 1 << 20;

/// Rows of `row` bytes, `pitch` bytes from one to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stride {
    /// Bytes of a row.
    pub row: u64,
    /// Bytes from the start of a row to that of the next one; at least `row`.
    pub pitch: u64,
}

/// Fills `out` with the plane's bytes from `offset` on. The plane's first row lies at `start` of the file. What lies
/// between the rows is read along: one large read costs less than many small ones.
pub fn read(shard: &Shard, start: u64, stride: Stride, offset: u64, mut out: &mut [u8]) -> io::Result<()> {
    let end = || io::Error::from(io::ErrorKind::UnexpectedEof);
    let (mut row, mut within) = match (offset.checked_div(stride.row), offset.checked_rem(stride.row)) {
        (Some(row), Some(within)) => (row, within),
        _ => return Err(end()),
    };
    let most = CHUNK.checked_div(stride.pitch).unwrap_or(1).max(1);
    let mut buffer = Vec::new();
    while !out.is_empty() {
        let rows = within.saturating_add(out.len() as u64).div_ceil(stride.row).min(most);
        let span = rows.saturating_sub(1).saturating_mul(stride.pitch).saturating_add(stride.row);
        let at = row.checked_mul(stride.pitch).and_then(|r| r.checked_add(start)).ok_or_else(end)?;
        buffer.resize(usize::try_from(span).map_err(|_| end())?, 0);
        shard.read_exact_at(&mut buffer, at)?;
        let size = |bytes: u64| usize::try_from(bytes).map_err(|_| end());
        let (pitch, row_bytes) = (size(stride.pitch)?, size(stride.row)?);
        for chunk in buffer.chunks(pitch.max(1)) {
            let piece = chunk.get(size(within)?..row_bytes).ok_or_else(end)?;
            let len = piece.len().min(out.len());
            let (to, rest) = std::mem::take(&mut out).split_at_mut(len);
            to.copy_from_slice(piece.get(..len).ok_or_else(end)?);
            (out, within) = (rest, 0);
        }
        row = row.saturating_add(rows);
    }
    Ok(())
}
