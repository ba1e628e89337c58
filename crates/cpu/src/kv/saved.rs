//! Keys and values of a slot as bytes, and back: whole pages, as they lie.

use super::{Cache, Caches, KvCache, Pages, Slot};
use ashlar_backend::{BackendError, CacheId, Held, KV_PAGE, forgotten};
use std::ops::Range;

/// What stands before a page.
const THERE: u8 = 1;
/// What stands for a page that was forgotten.
const FORGOTTEN: u8 = 0;

impl Caches {
    /// As [`ashlar_backend::Backend::save`].
    ///
    /// # Errors
    /// The same.
    pub fn save(
        &self,
        id: CacheId,
        slot: usize,
        range: &Range<usize>,
        out: &mut Vec<u8>,
    ) -> Result<bool, BackendError> {
        match self.all.get(id.0 as usize) {
            Some(Cache::Tokens(tokens)) => tokens.save(slot, range, out),
            Some(Cache::Entries(entries)) => entries.save(slot, range, out),
            Some(Cache::Heads(heads)) => heads.save(slot, range, &self.pages, out),
            None => Err(wrong(format!("no cache {}", id.0))),
        }
    }

    /// As [`ashlar_backend::Backend::restore`].
    ///
    /// # Errors
    /// The same.
    pub fn restore(
        &mut self,
        id: CacheId,
        slot: usize,
        range: &Range<usize>,
        bytes: &[u8],
    ) -> Result<(), BackendError> {
        match self.all.get_mut(id.0 as usize) {
            Some(Cache::Tokens(tokens)) => tokens.restore(slot, range, bytes),
            Some(Cache::Entries(entries)) => entries.restore(slot, range, bytes),
            Some(Cache::Heads(heads)) => heads.restore(slot, range, bytes, &mut self.pages),
            None => Err(wrong(format!("no cache {}", id.0))),
        }
    }
}

impl KvCache {
    fn save(&self, slot: usize, range: &Range<usize>, pages: &Pages, out: &mut Vec<u8>) -> Result<bool, BackendError> {
        let slot = self.slots.get(slot).ok_or_else(|| wrong(format!("no slot {slot}")))?;
        let goes_on = slot.held.saves(range)? || self.heads.window.is_none();
        for page in slot.pages.iter().take(range.end / KV_PAGE).skip(range.start / KV_PAGE) {
            match page {
                Some(id) => {
                    out.push(THERE);
                    out.extend_from_slice(pages.page(self.class, *id));
                }
                None => out.push(FORGOTTEN),
            }
        }
        Ok(goes_on)
    }

    fn restore(
        &mut self,
        slot: usize,
        range: &Range<usize>,
        bytes: &[u8],
        pages: &mut Pages,
    ) -> Result<(), BackendError> {
        let (class, capacity, window) = (self.class, self.capacity, self.heads.window);
        let of = self.slots.get_mut(slot).filter(|_| range.end <= capacity);
        let of = of.ok_or_else(|| wrong(format!("no slot {slot} of {} positions", range.end)))?;
        of.held.restores(range)?;
        of.cut(range.start, class, pages);
        of.held.positions = range.start;
        // What nobody sees who goes on at the end need not be held.
        let restored = Held::restored(range.end);
        let unseen = window.map_or(0, |window| forgotten(restored.reached, window)) / KV_PAGE;
        let taken = of.take_back(range.start / KV_PAGE..range.end / KV_PAGE, unseen, bytes, class, pages);
        if taken.is_err() {
            of.cut(range.start, class, pages);
            return taken;
        }
        of.held = restored;
        self.forget(slot, pages);
        Ok(())
    }
}

impl Slot {
    /// Appends pages with their stored bytes, but for those before `unseen`.
    fn take_back(
        &mut self,
        range: Range<usize>,
        unseen: usize,
        mut bytes: &[u8],
        class: usize,
        pages: &mut Pages,
    ) -> Result<(), BackendError> {
        let few = || wrong("too few bytes".into());
        for page in range {
            let (kind, rest) = bytes.split_first().ok_or_else(few)?;
            let len = if *kind == THERE { pages.page_bytes(class) } else { 0 };
            let (stored, rest) = rest.split_at_checked(len).ok_or_else(few)?;
            bytes = rest;
            let kept = *kind == THERE && page >= unseen;
            let id = if kept { Some(pages.take(class)?) } else { None };
            if let Some(id) = id {
                pages.page_mut(class, id).copy_from_slice(stored);
            }
            self.pages.push(id);
        }
        if bytes.is_empty() { Ok(()) } else { Err(wrong(format!("{} bytes too many", bytes.len()))) }
    }
}

fn wrong(what: String) -> BackendError {
    BackendError::Operand { op: "cache", what }
}
