//! What caches hold as bytes and back. Pages of keys and values, and of tokens, each behind a byte that says whether it is
//! there; entries as they lie, without the pages' ends.

use super::{Cache, Caches, entry_stride};
use crate::cuda::Core;
use ashlar_backend::{BackendError, CacheId, Held, KV_PAGE, KV_SAVED, Stored, forgotten};
use std::ops::Range;

/// A page that is there.
const THERE: u8 = 1;
/// One that is not needed, or that a window has forgotten.
const FORGOTTEN: u8 = 0;

impl Caches {
    /// As [`ashlar_backend::Backend::save`].
    ///
    /// # Errors
    /// The same.
    pub fn save(
        &self,
        core: &mut Core,
        id: CacheId,
        slot: usize,
        range: &Range<usize>,
        out: &mut Vec<u8>,
    ) -> Result<bool, BackendError> {
        let cache = self.0.get(id.0 as usize).ok_or_else(|| wrong(format!("no cache {}", id.0)))?;
        match cache.shape.stored {
            Stored::Entries { ratio, .. } => cache.save_entries(core, slot, &entries_of(range, ratio)?, out),
            Stored::Heads(..) | Stored::Tokens { .. } => cache.save_pages(core, slot, range, out),
        }
    }

    /// As [`ashlar_backend::Backend::restore`].
    ///
    /// # Errors
    /// The same.
    pub fn restore(
        &mut self,
        core: &mut Core,
        id: CacheId,
        slot: usize,
        range: &Range<usize>,
        bytes: &[u8],
    ) -> Result<(), BackendError> {
        let cache = self.0.get_mut(id.0 as usize).ok_or_else(|| wrong(format!("no cache {}", id.0)))?;
        match cache.shape.stored {
            Stored::Entries { ratio, .. } => cache.restore_entries(core, slot, &entries_of(range, ratio)?, bytes),
            Stored::Heads(..) | Stored::Tokens { .. } => cache.restore_pages(core, slot, range, bytes),
        }
    }
}

/// The entries that are made of a range of positions.
fn entries_of(range: &Range<usize>, ratio: usize) -> Result<Range<usize>, BackendError> {
    if ratio == 0 || !KV_SAVED.is_multiple_of(ratio) {
        return Err(wrong(format!("entries of {ratio} positions cannot be saved in blocks of {KV_SAVED}")));
    }
    Ok(range.start / ratio..range.end / ratio)
}

impl Cache {
    /// The first position of a range that whoever goes on at its end needs, or may be asked for.
    fn needed(&self, range: &Range<usize>) -> Result<usize, BackendError> {
        match self.shape.stored {
            Stored::Tokens { kept, .. } if kept > KV_SAVED => {
                Err(wrong(format!("windows of {kept} positions cannot be saved in blocks of {KV_SAVED}")))
            }
            Stored::Tokens { kept, .. } => Ok(range.end.saturating_sub(kept).max(range.start)),
            Stored::Heads(..) | Stored::Entries { .. } => Ok(range.start),
        }
    }

    fn save_pages(
        &self,
        core: &mut Core,
        slot: usize,
        range: &Range<usize>,
        out: &mut Vec<u8>,
    ) -> Result<bool, BackendError> {
        let of = self.slots.get(slot).ok_or_else(|| wrong(format!("no slot {slot}")))?;
        let goes_on = of.held.saves(range)? || !self.shape.forgets();
        let needed = self.needed(range)?;
        let mut whole = true;
        for number in range.start / KV_PAGE..range.end / KV_PAGE {
            let page = of.pages.get(number).copied().unwrap_or(0);
            if (number + 1) * KV_PAGE <= needed {
                out.push(FORGOTTEN);
            } else if page == 0 {
                whole = false;
                out.push(FORGOTTEN);
            } else {
                out.push(THERE);
                append(core, page, self.page_bytes(), out)?;
            }
        }
        // Of tokens all that is needed must be there; of keys what a window still sees.
        Ok(goes_on && (whole || matches!(self.shape.stored, Stored::Heads(..))))
    }

    fn restore_pages(
        &mut self,
        core: &mut Core,
        slot: usize,
        range: &Range<usize>,
        bytes: &[u8],
    ) -> Result<(), BackendError> {
        self.needed(range)?;
        let (pages, window) = (self.pages, self.window());
        let capacity = self.shape.capacity;
        let of = self.slots.get_mut(slot).filter(|_| range.end <= capacity);
        let of = of.ok_or_else(|| wrong(format!("no slot {slot} of {} positions", range.end)))?;
        of.held.restores(range)?;
        of.free(core, range.start / KV_PAGE..pages);
        of.held.positions = range.start;
        let restored = Held::restored(range.end);
        // What nobody sees who goes on at the end need not be held.
        let unseen = window.map_or(0, |window| forgotten(restored.reached, window)) / KV_PAGE;
        let taken = self.take_back(core, slot, range.start / KV_PAGE..range.end / KV_PAGE, unseen, bytes);
        let Some(of) = self.slots.get_mut(slot) else { return taken };
        if taken.is_err() {
            of.free(core, range.start / KV_PAGE..pages);
            return taken;
        }
        of.held = restored;
        of.free(core, 0..unseen);
        self.write_table(core, slot)
    }

    fn take_back(
        &mut self,
        core: &mut Core,
        slot: usize,
        range: Range<usize>,
        unseen: usize,
        mut bytes: &[u8],
    ) -> Result<(), BackendError> {
        let few = || wrong("too few bytes".into());
        let page_bytes = self.page_bytes();
        for number in range {
            let (kind, rest) = bytes.split_first().ok_or_else(few)?;
            let (stored, rest) = rest.split_at_checked(if *kind == THERE { page_bytes } else { 0 }).ok_or_else(few)?;
            bytes = rest;
            if *kind == THERE && number >= unseen {
                self.write_page(core, [slot, number], 0, stored)?;
            }
        }
        if bytes.is_empty() { Ok(()) } else { Err(wrong(format!("{} bytes too many", bytes.len()))) }
    }

    fn save_entries(
        &self,
        core: &mut Core,
        slot: usize,
        entries: &Range<usize>,
        out: &mut Vec<u8>,
    ) -> Result<bool, BackendError> {
        let stride = entry_stride(&self.shape.stored);
        let held = self.slots.get(slot).map_or(0, |s| s.held.positions);
        let missing = || wrong(format!("slot {slot} holds {held} entries, {entries:?} are to be saved"));
        let of = self.slots.get(slot).filter(|_| entries.end <= held).ok_or_else(missing)?;
        for (number, rows) in pieces(entries) {
            let page = of.pages.get(number).copied().filter(|page| *page != 0).ok_or_else(missing)?;
            append(core, page + (rows.start * stride) as u64, rows.len() * stride, out)?;
        }
        Ok(true)
    }

    fn restore_entries(
        &mut self,
        core: &mut Core,
        slot: usize,
        entries: &Range<usize>,
        mut bytes: &[u8],
    ) -> Result<(), BackendError> {
        let (stride, capacity) = (entry_stride(&self.shape.stored), self.shape.capacity);
        let held = self.slots.get(slot).map_or(0, |s| s.held.positions);
        let fits = slot < self.slots.len() && entries.start <= held && entries.end <= capacity;
        if !fits || bytes.len() != entries.len() * stride {
            let what = format!("{} bytes for entries {entries:?} of slot {slot}, which holds {held}", bytes.len());
            return Err(wrong(what));
        }
        for (number, rows) in pieces(entries) {
            let (own, rest) = bytes.split_at_checked(rows.len() * stride).unwrap_or((bytes, &[]));
            bytes = rest;
            self.write_page(core, [slot, number], rows.start * stride, own)?;
        }
        let pages = self.pages;
        if let Some(of) = self.slots.get_mut(slot) {
            of.held = Held { positions: entries.end, reached: entries.end };
            of.free(core, entries.end.div_ceil(KV_PAGE)..pages);
        }
        self.write_table(core, slot)
    }

    /// Writes bytes into a page, which is taken if it is not there.
    fn write_page(
        &mut self,
        core: &mut Core,
        [slot, number]: [usize; 2],
        first: usize,
        bytes: &[u8],
    ) -> Result<(), BackendError> {
        let page_bytes = self.page_bytes() as u64;
        let page = self.slots.get_mut(slot).and_then(|s| s.pages.get_mut(number));
        let page = page.ok_or_else(|| wrong(format!("no page {number} of slot {slot}")))?;
        if *page == 0 {
            *page = core.take(page_bytes, || "a page of keys and values".into())?;
        }
        core.upload_in_order(*page + first as u64, bytes)
    }
}

/// The pages that entries lie in, and their rows in each.
fn pieces(entries: &Range<usize>) -> impl Iterator<Item = (usize, Range<usize>)> {
    let Range { start, end } = *entries;
    (start / KV_PAGE..end.div_ceil(KV_PAGE)).map(move |page| {
        let first = page * KV_PAGE;
        (page, start.max(first) - first..end.min(first + KV_PAGE) - first)
    })
}

fn append(core: &mut Core, from: u64, bytes: usize, out: &mut Vec<u8>) -> Result<(), BackendError> {
    let at = out.len();
    out.resize(at + bytes, 0);
    core.download_bytes(from, out.get_mut(at..).unwrap_or_default())
}

fn wrong(what: String) -> BackendError {
    BackendError::Operand { op: "cache", what }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_lie_in_pages_of_64() {
        let of = |range: Range<usize>| pieces(&range).collect::<Vec<_>>();
        assert_eq!(of(2..4), [(0, 2..4)]);
        assert_eq!(of(64..128), [(1, 0..64)]);
        assert_eq!(of(60..130), [(0, 60..64), (1, 0..64), (2, 0..2)]);
        assert_eq!(entries_of(&(256..512), 128).unwrap(), 2..4);
        assert!(entries_of(&(0..256), 96).is_err() && entries_of(&(0..256), 0).is_err());
    }
}
