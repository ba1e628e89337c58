//! Planes of other programs' quantized weights: codes in 32-bit words along either axis, and scales and zero points that lie
//! across, or stand for several of our groups. Only places change; every code and scale is kept.
//!
//! What lies across (`[k][n]` where our planes are `[n][k]`) is read in slices of a row block: a slice of every row of the
//! file. A byte of the file is read once per plane.

use crate::shard::Shard;
use std::io;

/// Bytes of a plane that are made at once.
const AT_ONCE: u64 = 4 << 20;
/// Codes in a word.
const LANES: u64 = 8;
/// Outputs that share words; also what row blocks are multiples of.
const ROWS: u64 = 8;

/// How a plane of `n` rows lies in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packed {
    /// Rows of the weight.
    pub n: u64,
    /// Bytes of a row of the plane.
    pub row: u64,
    pub layout: Layout,
}

/// Where the values of a row come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// 4-bit codes, words of 8 outputs: `[k][n/8]`, output j of a word from this bit on.
    CodesAcross { k: u64, shifts: [u8; 8] },
    /// 4-bit codes, words of 8 inputs: `[k/8][n]`, input j of a word from bit 4j on.
    CodesDown { k: u64 },
    /// Values of so many bytes, `[groups][n]`, each for `repeat` groups of the plane.
    ValuesAcross { groups: u64, size: u64, repeat: u64 },
    /// Values of so many bytes, `[n][groups]`, each for `repeat` groups of the plane; or one for all rows.
    Values { groups: u64, size: u64, repeat: u64, shared: bool },
    /// 4-bit zero points, words of 8 outputs: `[groups][n/8]`, as [`Layout::CodesAcross`], a byte each, `plus` added.
    ZerosAcross { groups: u64, shifts: [u8; 8], plus: u8, repeat: u64 },
    /// 4-bit zero points, words of 8 outputs: `[n/8][groups]`, output j of a word from bit 4j on, a byte each.
    ZerosDown { groups: u64, repeat: u64 },
}

/// Bits at which words hold their codes in order.
pub const IN_ORDER: [u8; 8] = [0, 4, 8, 12, 16, 20, 24, 28];

impl Packed {
    /// Bytes of the plane.
    pub fn bytes(&self) -> u64 {
        self.n.saturating_mul(self.row)
    }
}

fn end() -> io::Error {
    io::ErrorKind::UnexpectedEof.into()
}

fn size(value: u64) -> io::Result<usize> {
    usize::try_from(value).map_err(|_| end())
}

/// Fills `out` with the plane's bytes from `offset` on; what it is made from begins at `start` of the file.
pub fn read(shard: &Shard, start: u64, form: &Packed, offset: u64, mut out: &mut [u8]) -> io::Result<()> {
    let mut first = offset.checked_div(form.row).ok_or_else(end)?;
    let mut skip = offset.checked_rem(form.row).ok_or_else(end)?;
    // Words hold 8 rows.
    let aligned = first.checked_div(ROWS).unwrap_or(0).saturating_mul(ROWS);
    skip = skip.saturating_add(first.saturating_sub(aligned).saturating_mul(form.row));
    first = aligned;
    let most = AT_ONCE.checked_div(form.row).unwrap_or(0).checked_div(ROWS).unwrap_or(0).max(1).saturating_mul(ROWS);
    while !out.is_empty() {
        let wanted = skip.saturating_add(out.len() as u64).div_ceil(form.row);
        let rows = wanted.min(most).min(form.n.saturating_sub(first));
        if rows == 0 {
            return Err(end());
        }
        let mut tile = vec![0; size(rows.saturating_mul(form.row))?];
        Tile { shard, start, form, first, rows }.fill(&mut tile)?;
        let part = tile.get(size(skip)?..).unwrap_or_default();
        let len = part.len().min(out.len());
        let (now, rest) = std::mem::take(&mut out).split_at_mut(len);
        now.iter_mut().zip(part).for_each(|(to, from)| *to = *from);
        (out, skip) = (rest, 0);
        first = first.saturating_add(rows);
    }
    Ok(())
}

/// Some rows of a plane; the first is a multiple of [`ROWS`].
struct Tile<'a> {
    shard: &'a Shard,
    start: u64,
    form: &'a Packed,
    first: u64,
    rows: u64,
}

impl Tile<'_> {
    fn fill(&self, out: &mut [u8]) -> io::Result<()> {
        let row = size(self.form.row)?;
        match self.form.layout {
            Layout::CodesAcross { k, shifts } => self.across(k, |column, words| {
                for (r, out) in out.chunks_exact_mut(row).enumerate() {
                    set_code(out, column, lane(words, r, &shifts));
                }
            }),
            Layout::CodesDown { k } => self.columns(k.checked_div(LANES).unwrap_or(0), 4, |block, words| {
                for (out, word) in out.chunks_exact_mut(row).zip(words.as_chunks::<4>().0) {
                    let word = u32::from_le_bytes(*word);
                    for (j, shift) in (0u64..).zip(IN_ORDER) {
                        set_code(out, block.saturating_mul(LANES).saturating_add(j), nibble(word, shift));
                    }
                }
            }),
            Layout::ValuesAcross { groups, size: bytes, repeat } => {
                let (width, repeat) = (size(bytes)?, size(repeat)?);
                self.columns(groups, bytes, |group, values| {
                    let at = usize::try_from(group).unwrap_or(usize::MAX).saturating_mul(width.saturating_mul(repeat));
                    for (out, value) in out.chunks_exact_mut(row).zip(values.chunks_exact(width)) {
                        let own = out.get_mut(at..).unwrap_or_default().chunks_exact_mut(width).take(repeat);
                        own.for_each(|to| to.copy_from_slice(value));
                    }
                })
            }
            Layout::Values { groups, size: bytes, repeat, shared } => {
                let (width, repeat) = (size(bytes)?, size(repeat)?);
                let per_row = groups.saturating_mul(bytes);
                let (at, rows) = if shared { (0, 1) } else { (self.first.saturating_mul(per_row), self.rows) };
                let mut values = vec![0; size(rows.saturating_mul(per_row))?];
                self.shard.read_exact_at(&mut values, self.start.saturating_add(at))?;
                let lines = values.chunks_exact(size(per_row)?.max(1));
                let lines =
                    if shared { lines.cycle().take(size(self.rows)?).collect::<Vec<_>>() } else { lines.collect() };
                for (out, line) in out.chunks_exact_mut(row).zip(lines) {
                    let each = line.chunks_exact(width).flat_map(|value| std::iter::repeat_n(value, repeat));
                    out.chunks_exact_mut(width).zip(each).for_each(|(to, value)| to.copy_from_slice(value));
                }
                Ok(())
            }
            Layout::ZerosAcross { groups, shifts, plus, repeat } => {
                let repeat = size(repeat)?;
                self.across(groups, |group, words| {
                    for (r, out) in out.chunks_exact_mut(row).enumerate() {
                        fill_group(out, group, repeat, lane(words, r, &shifts).saturating_add(plus));
                    }
                })
            }
            Layout::ZerosDown { groups, repeat } => {
                let (repeat, per_line) = (size(repeat)?, groups.saturating_mul(4));
                let lines = self.rows.div_ceil(LANES);
                let mut words = vec![0; size(lines.saturating_mul(per_line))?];
                let at = self.first.checked_div(LANES).unwrap_or(0).saturating_mul(per_line);
                self.shard.read_exact_at(&mut words, self.start.saturating_add(at))?;
                for (r, out) in out.chunks_exact_mut(row).enumerate() {
                    let line = words.chunks_exact(size(per_line)?.max(1)).nth(r >> 3).unwrap_or_default();
                    for (group, word) in (0u64..).zip(line.as_chunks::<4>().0) {
                        fill_group(
                            out,
                            group,
                            repeat,
                            nibble(u32::from_le_bytes(*word), IN_ORDER.get(r & 7).copied().unwrap_or(0)),
                        );
                    }
                }
                Ok(())
            }
        }
    }

    /// Hands out, line by line of a `[lines][n]` matrix, the values of these rows.
    fn columns(&self, lines: u64, bytes: u64, mut each: impl FnMut(u64, &[u8])) -> io::Result<()> {
        let mut values = vec![0; size(self.rows.saturating_mul(bytes))?];
        for line in 0..lines {
            let at = line.saturating_mul(self.form.n).saturating_add(self.first).saturating_mul(bytes);
            self.shard.read_exact_at(&mut values, self.start.saturating_add(at))?;
            each(line, &values);
        }
        Ok(())
    }

    /// Hands out, line by line of a `[lines][n/8]` matrix of words, the words of these rows.
    fn across(&self, lines: u64, mut each: impl FnMut(u64, &[u8])) -> io::Result<()> {
        let words = |rows: u64| rows.div_ceil(LANES);
        let mut values = vec![0; size(words(self.rows).saturating_mul(4))?];
        for line in 0..lines {
            let at = line.saturating_mul(words(self.form.n)).saturating_add(words(self.first)).saturating_mul(4);
            self.shard.read_exact_at(&mut values, self.start.saturating_add(at))?;
            each(line, &values);
        }
        Ok(())
    }
}

/// The 4 bits of a word from bit `shift` on.
fn nibble(word: u32, shift: u8) -> u8 {
    let [low, ..] = (word >> shift).to_le_bytes();
    low & 15
}

/// The code of row `row` among words of 8 rows.
fn lane(words: &[u8], row: usize, shifts: &[u8; 8]) -> u8 {
    let word = words.as_chunks::<4>().0.get(row >> 3).copied().unwrap_or_default();
    let shift = shifts.get(row & 7).copied().unwrap_or(0);
    nibble(u32::from_le_bytes(word), shift)
}

/// Writes the code of a column into a zeroed row, in our row order: of 32 columns, j low and j + 16 high in byte j.
fn set_code(row: &mut [u8], column: u64, code: u8) {
    let at = usize::try_from((column >> 5 << 4) | (column & 15)).unwrap_or(usize::MAX);
    if let Some(byte) = row.get_mut(at) {
        *byte |= if column & 16 == 0 { code } else { code << 4 };
    }
}

/// Writes the byte of a group of the file into all groups of the plane it stands for.
fn fill_group(row: &mut [u8], group: u64, repeat: usize, value: u8) {
    let at = usize::try_from(group).unwrap_or(usize::MAX).saturating_mul(repeat);
    row.iter_mut().skip(at).take(repeat).for_each(|byte| *byte = value);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Result;
    use std::io::Write;

    #[test]
    fn any_part_of_a_plane_is_the_same_part_of_the_whole() -> Result {
        let bytes: Vec<u8> = (0..8192u32).map(|i| (i * 73 % 253) as u8).collect();
        let mut file = tempfile::NamedTempFile::new()?;
        file.write_all(&bytes)?;
        let shard = Shard::open(file.path(), "f")?;
        let (n, k) = (24, 64);
        let shifts = [0, 16, 4, 20, 8, 24, 12, 28];
        for (layout, row) in [
            (Layout::CodesAcross { k, shifts }, 32),
            (Layout::CodesDown { k }, 32),
            (Layout::ValuesAcross { groups: 2, size: 2, repeat: 3 }, 12),
            (Layout::Values { groups: 2, size: 4, repeat: 2, shared: false }, 16),
            (Layout::Values { groups: 1, size: 4, repeat: 2, shared: true }, 8),
            (Layout::ZerosAcross { groups: 2, shifts: IN_ORDER, plus: 1, repeat: 2 }, 4),
            (Layout::ZerosDown { groups: 3, repeat: 1 }, 3),
        ] {
            let form = Packed { n, row, layout };
            let mut whole = vec![0; (n * row) as usize];
            read(&shard, 8, &form, 0, &mut whole)?;
            for first in (0..whole.len()).step_by(5) {
                let mut out = vec![0; (whole.len() - first).min(77)];
                read(&shard, 8, &form, first as u64, &mut out)?;
                assert_eq!(out, whole[first..first + out.len()], "{layout:?} from {first}");
            }
            assert!(read(&shard, 8, &form, n * row, &mut [0]).is_err(), "{layout:?} beyond the plane");
        }
        Ok(())
    }
}
