//! Caches of the CPU: keys and values in pages, rows of recent tokens, pooled entries.
//!
//! A page holds [`KV_PAGE`] positions of every head of one layer; head by head its keys lie as kernels read them,
//! `[dim][position]` or, in 8 bits, `[dim / 4][position][4]`, its values as `[position][value_width]`, then the scales of
//! both in halves, `[group][position]`. Pages come from [`pages::Pages`] as sequences grow and go back when they are cut.

mod element;
mod entries;
mod pages;
mod saved;
mod tokens;

pub use element::{Element, F16, F32, Q8};
pub use entries::Entries;
pub use pages::Pages;
pub use tokens::{Recent, Tokens};

use crate::shards::Shards;
use ashlar_backend::{
    BackendError, CacheId, CacheShape, Held, KV_PAGE, KvFormat, KvHeads, Q8_VALUE_GROUP, SequenceRows, Stored,
    forgotten, round_key,
};
use half::f16;
use pages::PageId;
use std::ops::Range;

/// Positions × width from which storing is worth a fork-join.
const PARALLEL: usize = 16 * 1024;

/// One cache.
pub enum Cache {
    /// Rows of recent tokens.
    Tokens(Tokens),
    /// Pooled entries.
    Entries(Entries),
    /// Keys and values in pages.
    Heads(KvCache),
}

/// All caches, and the pages they share.
#[derive(Default)]
pub struct Caches {
    all: Vec<Cache>,
    /// Where pages come from.
    pub pages: Pages,
}

impl Caches {
    /// A new cache.
    ///
    /// # Errors
    /// [`BackendError::Memory`] if the allocator refuses.
    pub fn alloc(&mut self, shape: &CacheShape) -> Result<CacheId, BackendError> {
        let cache = match shape.stored {
            Stored::Tokens { width, kept } => Cache::Tokens(Tokens::new(shape.sequences, shape.capacity, width, kept)),
            Stored::Entries { width, ratio, format } => {
                Cache::Entries(Entries::new(shape.sequences, shape.capacity, [width, ratio], format)?)
            }
            Stored::Heads(heads, format) => {
                let class = self.pages.class(shape.page_bytes());
                let slots = (0..shape.sequences).map(|_| Slot::default()).collect();
                Cache::Heads(KvCache { heads, format, capacity: shape.capacity, class, slots })
            }
        };
        self.all.push(cache);
        Ok(CacheId((self.all.len() - 1) as u32))
    }

    /// A cache of entries that are `width` wide.
    ///
    /// # Errors
    /// [`BackendError::Operand`] if there is none.
    pub fn entries(&self, id: CacheId, width: usize, op: &'static str) -> Result<&Entries, BackendError> {
        match self.all.get(id.0 as usize) {
            Some(Cache::Entries(entries)) if entries.width == width => Ok(entries),
            _ => Err(BackendError::Operand { op, what: format!("no cache {} of entries of {width}", id.0) }),
        }
    }

    /// As [`Caches::entries`].
    ///
    /// # Errors
    /// The same.
    pub fn entries_mut(&mut self, id: CacheId, width: usize, op: &'static str) -> Result<&mut Entries, BackendError> {
        match self.all.get_mut(id.0 as usize) {
            Some(Cache::Entries(entries)) if entries.width == width => Ok(entries),
            _ => Err(BackendError::Operand { op, what: format!("no cache {} of entries of {width}", id.0) }),
        }
    }

    /// A cache of tokens whose rows are `width` wide.
    ///
    /// # Errors
    /// [`BackendError::Operand`] if there is none.
    pub fn tokens_mut(&mut self, id: CacheId, width: usize, op: &'static str) -> Result<&mut Tokens, BackendError> {
        match self.all.get_mut(id.0 as usize) {
            Some(Cache::Tokens(tokens)) if tokens.width == width => Ok(tokens),
            _ => Err(BackendError::Operand { op, what: format!("no cache {} of tokens of {width}", id.0) }),
        }
    }

    /// A cache of keys and values, and where its pages lie.
    ///
    /// # Errors
    /// [`BackendError::Operand`] if there is none.
    pub fn heads(&self, id: CacheId, op: &'static str) -> Result<(&KvCache, &Pages), BackendError> {
        match self.all.get(id.0 as usize) {
            Some(Cache::Heads(heads)) => Ok((heads, &self.pages)),
            _ => Err(no_heads(id, op)),
        }
    }

    /// As [`Caches::heads`].
    ///
    /// # Errors
    /// The same.
    pub fn heads_mut(&mut self, id: CacheId, op: &'static str) -> Result<(&mut KvCache, &mut Pages), BackendError> {
        match self.all.get_mut(id.0 as usize) {
            Some(Cache::Heads(heads)) => Ok((heads, &mut self.pages)),
            _ => Err(no_heads(id, op)),
        }
    }

    /// Bytes that all caches hold of sequences.
    pub fn bytes(&self) -> u64 {
        let other = |cache: &Cache| match cache {
            Cache::Tokens(tokens) => tokens.bytes(),
            Cache::Entries(entries) => entries.bytes(),
            Cache::Heads(_) => 0,
        };
        self.pages.used() + self.all.iter().map(other).sum::<u64>()
    }

    /// Cuts a slot of every cache back.
    pub fn truncate(&mut self, slot: usize, positions: usize) {
        for cache in &mut self.all {
            match cache {
                Cache::Tokens(tokens) => tokens.truncate(slot, positions),
                Cache::Entries(entries) => entries.truncate(slot, positions),
                Cache::Heads(heads) => heads.truncate(slot, positions, &mut self.pages),
            }
        }
    }
}

fn no_heads(id: CacheId, op: &'static str) -> BackendError {
    BackendError::Operand { op, what: format!("no cache {} of keys and values", id.0) }
}

/// Keys and values of one layer.
pub struct KvCache {
    /// Its heads.
    pub heads: KvHeads,
    /// How they are stored.
    pub format: KvFormat,
    capacity: usize,
    class: usize,
    slots: Vec<Slot>,
}

/// What one sequence holds.
#[derive(Default)]
struct Slot {
    held: Held,
    /// Page i holds the positions from i · [`KV_PAGE`] on; `None` once it is forgotten.
    pages: Vec<Option<PageId>>,
}

/// One head's part of a page.
pub struct Block<'a, K: Element, V: Element> {
    /// dim × 64 positions, 16 positions at a time.
    pub keys: &'a [[K::Keys; 4]],
    /// 64 positions × value vectors of 16.
    pub values: &'a [V::Vector],
    /// Halves, one per position; empty for a format without scales.
    pub key_scales: &'a [[u8; 32]],
    /// The same, group by group of a value.
    pub value_scales: &'a [[u8; 32]],
    /// Vectors of a value that share a scale.
    pub value_group: usize,
}

/// Where the parts of one head's region of a page begin and end, in bytes.
struct Region {
    keys: Range<usize>,
    values: Range<usize>,
    key_scales: Range<usize>,
    value_scales: Range<usize>,
}

impl Region {
    fn of(heads: &KvHeads, format: KvFormat) -> Self {
        let code = format.code_bytes() * KV_PAGE;
        let [key, value] = format.scales(heads.dim).map(|scales| 2 * scales * KV_PAGE);
        let keys = 0..heads.key_width(format) * code;
        let values = keys.end..keys.end + heads.value_width() * code;
        let key_scales = values.end..values.end + key;
        let value_scales = key_scales.end..key_scales.end + if heads.values_in_keys { 0 } else { value };
        Self { keys, values, key_scales, value_scales }
    }
}

/// Rows of keys and values as ops hand them over, all heads side by side.
#[derive(Clone, Copy)]
pub struct NewRows<'a> {
    /// rows × (count · dim)
    pub keys: &'a [f32],
    /// As `keys`; empty where values are in keys.
    pub values: &'a [f32],
}

impl KvCache {
    /// Positions that a slot holds.
    #[cfg(test)]
    pub fn held(&self, slot: usize) -> usize {
        self.slots.get(slot).map_or(0, |s| s.held.positions)
    }

    /// Values per position.
    pub fn width(&self) -> usize {
        self.heads.count * self.heads.dim
    }

    /// Stores the rows of one sequence, cutting the slot back to `part.position` first.
    ///
    /// # Errors
    /// [`BackendError::Capacity`] if there is no such slot or position; [`BackendError::Operand`] if the rows would leave
    /// a gap or need what was forgotten; [`BackendError::Memory`] if there is no memory for a page.
    pub fn store(
        &mut self,
        part: &SequenceRows,
        rows: NewRows<'_>,
        pages: &mut Pages,
        threads: &crate::pool::Pool,
    ) -> Result<(), BackendError> {
        let count = self.slots.len();
        let Some(slot) = self.slots.get_mut(part.slot) else {
            return Err(BackendError::Capacity { what: "cache slots".into(), got: part.slot + 1, capacity: count });
        };
        let end = part.position.saturating_add(part.rows.len());
        if end > self.capacity {
            let what = format!("positions of cache slot {}", part.slot);
            return Err(BackendError::Capacity { what, got: end, capacity: self.capacity });
        }
        let mut held = slot.held;
        held.advance(part.slot, part.position, part.rows.len(), self.heads.window.is_some())?;
        slot.cut(part.position, self.class, pages);
        slot.held.positions = part.position;
        while slot.pages.len() * KV_PAGE < end {
            slot.pages.push(Some(pages.take(self.class)?));
        }
        slot.held = held;
        let Some(plain) = self.heads.native else {
            self.write(part, rows, pages, threads);
            return Ok(());
        };
        let mut keys = rows.keys.to_vec();
        keys.chunks_exact_mut(self.heads.dim.max(1)).for_each(|key| round_key(plain, key));
        self.write(part, NewRows { keys: &keys, ..rows }, pages, threads);
        Ok(())
    }

    /// Writes rows into pages that are there.
    fn write(&self, part: &SequenceRows, rows: NewRows<'_>, pages: &mut Pages, threads: &crate::pool::Pool) {
        let (first, end) = (part.position, part.position + part.rows.len());
        let Some(slot) = self.slots.get(part.slot).filter(|_| first < end) else { return };
        let region = self.heads.region_bytes(self.format);
        let (slabs, place) = pages.slabs(self.class);
        let slabs: Vec<Shards<'_, u8>> = slabs.iter_mut().map(|slab| Shards::new(slab)).collect();
        let body = |i: usize| {
            let (page, head) = (first / KV_PAGE + i / self.heads.count, i % self.heads.count);
            let Some(Some(id)) = slot.pages.get(page) else { return };
            let (slab, start) = place.of(*id);
            // SAFETY: every (page, head) is one index of the loop, and regions of pages do not overlap.
            let region = unsafe { slabs[slab].slice(start + head * region..start + (head + 1) * region) };
            let positions = first.max(page * KV_PAGE)..end.min((page + 1) * KV_PAGE);
            let rows = (head, positions.start - first, rows);
            let lanes = positions.start - page * KV_PAGE..positions.end - page * KV_PAGE;
            match self.format {
                KvFormat::F32 => self.write_head::<F32>(region, lanes, rows),
                KvFormat::F16 => self.write_head::<F16>(region, lanes, rows),
                KvFormat::Q8 => self.write_head::<Q8>(region, lanes, rows),
            }
        };
        let tasks = ((end - 1) / KV_PAGE - first / KV_PAGE + 1) * self.heads.count;
        if (end - first) * self.width() >= PARALLEL {
            threads.run(tasks, &body);
        } else {
            (0..tasks).for_each(body);
        }
    }

    /// Writes one head's part of a page at `lanes`, from row number `first` of `rows` on.
    fn write_head<E: Element>(
        &self,
        region: &mut [u8],
        lanes: Range<usize>,
        (head, first, rows): (usize, usize, NewRows<'_>),
    ) {
        let (dim, width) = (self.heads.dim, self.width());
        let parts = Region::of(&self.heads, self.format);
        let mut codes = vec![E::ZERO; dim];
        for (i, lane) in lanes.enumerate() {
            let at = (first + i) * width + head * dim;
            let scale = E::encode(&rows.keys[at..at + dim], &mut codes);
            let keys: &mut [E::Code] = bytemuck::cast_slice_mut(&mut region[parts.keys.clone()]);
            for (row, codes) in keys.chunks_exact_mut(E::KEY_ENTRIES * KV_PAGE).zip(codes.chunks(E::KEY_ENTRIES)) {
                row[E::KEY_ENTRIES * lane..][..codes.len()].copy_from_slice(codes);
            }
            set(&mut region[parts.key_scales.clone()], lane, scale);
            if self.heads.values_in_keys {
                continue;
            }
            let (values, scales) =
                region[parts.values.start..].split_at_mut(parts.key_scales.start - parts.values.start);
            let values: &mut [E::Code] = bytemuck::cast_slice_mut(values);
            let to = &mut values[lane * self.heads.value_width()..][..dim];
            let scales = &mut scales[parts.value_scales.start - parts.key_scales.start..];
            for (g, values) in rows.values[at..at + dim].chunks(Q8_VALUE_GROUP).enumerate() {
                let to = &mut to[g * Q8_VALUE_GROUP..][..values.len()];
                set(scales, g * KV_PAGE + lane, E::encode(values, to));
            }
        }
    }

    /// The part of a head in page number `page` of a slot; `None` if there is no such page. `E` must be the element of
    /// the cache's format.
    pub fn block<'a, E: Element>(
        &self,
        pages: &'a Pages,
        slot: usize,
        page: usize,
        head: usize,
    ) -> Option<Block<'a, E, E>> {
        let region = self.bytes(pages, slot, page, head)?;
        let parts = Region::of(&self.heads, self.format);
        let keys: &[E::Keys] = bytemuck::cast_slice(&region[parts.keys]);
        Some(Block {
            keys: keys.as_chunks().0,
            values: bytemuck::cast_slice(&region[parts.values]),
            key_scales: bytemuck::cast_slice(&region[parts.key_scales]),
            value_scales: bytemuck::cast_slice(&region[parts.value_scales]),
            value_group: Q8_VALUE_GROUP / 16,
        })
    }

    /// The bytes of a head's keys, and those of its values and scales, in page number `page` of a slot; none if there is no
    /// such page.
    pub fn parts<'a>(&self, pages: &'a Pages, slot: usize, page: usize, head: usize) -> [&'a [u8]; 2] {
        let keys = Region::of(&self.heads, self.format).keys.end;
        self.bytes(pages, slot, page, head).and_then(|b| b.split_at_checked(keys)).map_or([&[], &[]], |(k, v)| [k, v])
    }

    /// All bytes of a head in page number `page` of a slot; `None` if there is no such page.
    fn bytes<'a>(&self, pages: &'a Pages, slot: usize, page: usize, head: usize) -> Option<&'a [u8]> {
        let id = (*self.slots.get(slot)?.pages.get(page)?)?;
        let len = self.heads.region_bytes(self.format);
        pages.page(self.class, id).get(head * len..(head + 1) * len)
    }

    /// Gives back the pages that no later query sees.
    pub fn forget(&mut self, slot: usize, pages: &mut Pages) {
        let (Some(window), Some(slot)) = (self.heads.window, self.slots.get_mut(slot)) else { return };
        let gone = forgotten(slot.held.reached, window) / KV_PAGE;
        for page in slot.pages.iter_mut().take(gone) {
            if let Some(id) = page.take() {
                pages.give(self.class, id);
            }
        }
    }

    fn truncate(&mut self, slot: usize, positions: usize, pages: &mut Pages) {
        if let Some(slot) = self.slots.get_mut(slot)
            && positions < slot.held.positions
        {
            slot.held.positions = positions;
            if positions == 0 {
                slot.held.reached = 0;
            }
            slot.cut(positions, self.class, pages);
        }
    }
}

impl Slot {
    /// Gives back the pages behind the first `positions`.
    fn cut(&mut self, positions: usize, class: usize, pages: &mut Pages) {
        let kept = positions.div_ceil(KV_PAGE).min(self.pages.len());
        for id in self.pages.drain(kept..).flatten() {
            pages.give(class, id);
        }
    }
}

/// Sets a scale, if there are any.
fn set(scales: &mut [u8], index: usize, scale: f16) {
    if let Some(to) = bytemuck::cast_slice_mut::<u8, f16>(scales).get_mut(index) {
        *to = scale;
    }
}

#[cfg(test)]
mod tests;
