//! Where a plane lies in a file, and reading it from there in the order that `formats` reads.

use crate::blocks::{self, Blocks};
use crate::fused;
use crate::nibbles;
use crate::packed::{self, Packed};
use crate::shard::Shard;
use crate::strided::{self, Stride};

/// A plane in a file.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    pub shard: usize,
    /// From the start of the file.
    pub offset: u64,
    /// Of the plane.
    pub bytes: u64,
    /// Bytes of one element: what a map must be aligned to.
    pub element: u64,
    /// How the bytes of the plane lie there.
    pub form: Form,
}

/// How the bytes of a plane lie in the file.
#[derive(Clone, Copy, Debug)]
pub enum Form {
    /// One after another.
    Plain,
    /// In rows with others between them; of 4-bit codes in pairs if so said, see [`nibbles`].
    Rows { stride: Option<Stride>, pairs: bool },
    /// As parts of blocks.
    Blocks(Blocks),
    /// In words of several codes, across, or each for several groups.
    Packed(Packed),
}

impl Place {
    /// Whether a map of the file can stand for the plane.
    pub fn is_plain(&self) -> bool {
        matches!(self.form, Form::Plain)
    }

    /// Bytes of the plane from `offset` on, as `formats` reads them.
    pub fn read(&self, shard: &Shard, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
        match &self.form {
            Form::Plain => shard.read_exact_at(out, self.offset.saturating_add(offset)),
            Form::Rows { stride, pairs: false } => self.read_rows(shard, *stride, offset, out),
            Form::Rows { stride, pairs: true } => self.read_pairs(shard, *stride, offset, out),
            Form::Packed(form) => packed::read(shard, self.offset, form, offset, out),
            Form::Blocks(form) => blocks::read(shard, self.offset, form, offset, out),
        }
    }

    fn read_rows(&self, shard: &Shard, stride: Option<Stride>, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
        match stride {
            Some(stride) => strided::read(shard, self.offset, stride, offset, out),
            None => shard.read_exact_at(out, self.offset.saturating_add(offset)),
        }
    }

    /// As [`Place::read_rows`], of codes in pairs.
    fn read_pairs(&self, shard: &Shard, stride: Option<Stride>, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
        let block = nibbles::BLOCK as u64;
        let before = offset.checked_rem(block).and_then(|b| usize::try_from(b).ok()).unwrap_or(0);
        if before == 0 && out.len().is_multiple_of(nibbles::BLOCK) {
            self.read_rows(shard, stride, offset, out)?;
            nibbles::to_halves(out);
            return Ok(());
        }
        // Part of a block cannot be reordered alone.
        let mut whole = vec![0; before.saturating_add(out.len()).next_multiple_of(nibbles::BLOCK)];
        self.read_rows(shard, stride, offset.saturating_sub(before as u64), &mut whole)?;
        nibbles::to_halves(&mut whole);
        for (to, from) in out.iter_mut().zip(whole.iter().skip(before)) {
            *to = *from;
        }
        Ok(())
    }

    /// The rows `rows` of one expert, of a plane that holds `n` rows of `row` bytes for each; of codes in pairs if so said.
    pub fn expert(self, expert: usize, n: usize, row: u64, rows: fused::Rows, pairs: bool) -> Self {
        let expert_bytes = (n as u64).saturating_mul(row);
        let first = expert_bytes.saturating_mul(expert as u64).saturating_add(rows.first.saturating_mul(row));
        let stride = (rows.step > 1).then(|| Stride { row, pitch: row.saturating_mul(rows.step) });
        let form = if stride.is_some() || pairs { Form::Rows { stride, pairs } } else { Form::Plain };
        Self {
            offset: self.offset.saturating_add(first),
            bytes: expert_bytes.checked_div(rows.step).unwrap_or(0),
            form,
            ..self
        }
    }
}
