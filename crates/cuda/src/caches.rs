//! Paged caches on the device: pages are taken from the pool as sequences grow, and given back. What they hold goes out as bytes
//! and comes back in `saved`.

mod saved;

use crate::args;
use crate::cuda::Core;
use ashlar_backend::{
    BackendError, Batch, CacheId, CacheShape, EntryFormat, Held, KV_PAGE, KvFormat, KvHeads, SequenceRows, Stored,
    forgotten,
};

/// The widest entry, and the widest key that is rounded: a block works on it in shared memory.
const MOST_ROUNDED: usize = 1024;
/// Entries begin at multiples of this many bytes.
const ENTRY_ALIGN: usize = 8;

/// One cache.
pub struct Cache {
    /// What it was asked for.
    pub shape: CacheShape,
    /// The table of addresses: slots × pages.
    table: u64,
    pages: usize,
    slots: Vec<Slot>,
}

#[derive(Clone, Default)]
struct Slot {
    held: Held,
    /// Address of every page; 0 where it was forgotten or never taken.
    pages: Vec<u64>,
}

/// All caches.
#[derive(Default)]
pub struct Caches(Vec<Cache>);

impl Caches {
    /// A new cache, without pages.
    ///
    /// # Errors
    /// [`BackendError::Memory`].
    pub fn alloc(&mut self, core: &mut Core, shape: &CacheShape) -> Result<CacheId, BackendError> {
        let rounded = match shape.stored {
            Stored::Entries { width, format, .. } => (width <= MOST_ROUNDED && format.takes(width)).then_some(()),
            Stored::Heads(KvHeads { native: Some(plain), dim, .. }, _) => {
                (dim <= MOST_ROUNDED && plain <= dim).then_some(())
            }
            _ => Some(()),
        };
        if rounded.is_none() {
            let what = format!("{:?}: keys of up to {MOST_ROUNDED} values can be pooled or rounded", shape.stored);
            return Err(BackendError::Operand { op: "cache", what });
        }
        let pages = shape.capacity.div_ceil(KV_PAGE).max(1);
        let bytes = (pages as u64).saturating_mul(shape.sequences.max(1) as u64).saturating_mul(8);
        let table = core.take(bytes, || "a table of pages".into())?;
        let slots = vec![Slot { held: Held::default(), pages: vec![0; pages] }; shape.sequences];
        self.0.push(Cache { shape: *shape, table, pages, slots });
        Ok(CacheId((self.0.len() - 1) as u32))
    }

    /// A cache whose keys (or rows) must be `width` wide.
    ///
    /// # Errors
    /// [`BackendError::Operand`].
    pub fn get(&self, id: CacheId, width: usize, op: &'static str) -> Result<&Cache, BackendError> {
        let found = self.0.get(id.0 as usize).filter(|c| c.shape.width() == width);
        found.ok_or_else(|| BackendError::Operand { op, what: format!("no cache {} of width {width}", id.0) })
    }

    /// Makes room for the rows of every sequence, after checking that all fit, and forgets what lies behind them.
    ///
    /// # Errors
    /// [`BackendError::Capacity`], [`BackendError::Operand`], [`BackendError::Memory`].
    pub fn advance(&mut self, core: &mut Core, id: CacheId, parts: &[SequenceRows]) -> Result<(), BackendError> {
        let missing = || BackendError::Operand { op: "cache", what: format!("no cache {}", id.0) };
        let cache = self.0.get_mut(id.0 as usize).ok_or_else(missing)?;
        let mut helds = Vec::with_capacity(parts.len());
        for part in parts {
            helds.push(cache.check(part)?);
        }
        for (part, held) in parts.iter().zip(helds) {
            cache.grow(core, part, held)?;
        }
        Ok(())
    }

    /// Cuts a slot of every cache back.
    pub fn truncate(&mut self, core: &mut Core, slot: usize, positions: usize) {
        for cache in &mut self.0 {
            let positions = positions.min(cache.slots.get(slot).map_or(0, |s| s.held.positions));
            if let Some(slot) = cache.slots.get_mut(slot) {
                slot.held.positions = positions;
                if positions == 0 {
                    slot.held = Held::default();
                }
                slot.free(core, positions.div_ceil(KV_PAGE)..cache.pages);
            }
        }
    }

    /// Bytes of the pages in use.
    pub fn bytes(&self) -> u64 {
        let pages = |c: &Cache| c.slots.iter().flat_map(|s| &s.pages).filter(|p| **p != 0).count();
        self.0.iter().map(|c| (pages(c) * c.page_bytes()) as u64).sum()
    }
}

impl Slot {
    fn free(&mut self, core: &mut Core, pages: std::ops::Range<usize>) {
        for page in self.pages.get_mut(pages).unwrap_or_default() {
            core.give(std::mem::take(page));
        }
    }
}

impl Cache {
    /// Positions before a row that it may still need, itself included; `None` for all.
    fn window(&self) -> Option<usize> {
        match self.shape.stored {
            Stored::Heads(heads, _) => heads.window,
            Stored::Tokens { kept, .. } => Some(kept + 1),
            Stored::Entries { .. } => None,
        }
    }

    /// Bytes of a page.
    fn page_bytes(&self) -> usize {
        match self.shape.stored {
            Stored::Heads(..) => self.shape.page_bytes(),
            Stored::Tokens { width, .. } => 8 * KV_PAGE * width,
            Stored::Entries { .. } => KV_PAGE * entry_stride(&self.shape.stored),
        }
    }

    /// How entries are stored: the number that kernels know, and how many of the first values are apart.
    pub fn entry_format(&self) -> (u32, u32) {
        match self.shape.stored {
            Stored::Entries { format, .. } => entry_format(format),
            Stored::Heads(KvHeads { native: Some(plain), .. }, _) => entry_format(EntryFormat::Fp8 { plain }),
            Stored::Tokens { .. } | Stored::Heads(..) => (0, 0),
        }
    }

    /// What the slot would hold with these rows.
    fn check(&self, part: &SequenceRows) -> Result<Held, BackendError> {
        let (end, capacity) = (part.position.saturating_add(part.rows.len()), self.shape.capacity);
        if end > capacity {
            let what = format!("positions of cache slot {}", part.slot);
            return Err(BackendError::Capacity { what, got: end, capacity });
        }
        let missing =
            || BackendError::Capacity { what: "cache slots".into(), got: part.slot + 1, capacity: self.slots.len() };
        let mut held = self.slots.get(part.slot).ok_or_else(missing)?.held;
        held.advance(part.slot, part.position, part.rows.len(), self.shape.forgets())?;
        Ok(held)
    }

    fn grow(&mut self, core: &mut Core, part: &SequenceRows, held: Held) -> Result<(), BackendError> {
        let bytes = self.page_bytes() as u64;
        let (window, pages) = (self.window(), self.pages);
        let Some(slot) = self.slots.get_mut(part.slot) else { return Ok(()) };
        slot.free(core, held.positions.div_ceil(KV_PAGE)..pages);
        let mut taken = false;
        for page in slot.pages.iter_mut().take(held.positions.div_ceil(KV_PAGE)).skip(part.position / KV_PAGE) {
            if *page == 0 {
                *page = core.take(bytes, || "a page of keys and values".into())?;
                taken = true;
            }
        }
        slot.held = held;
        if taken {
            self.write_table(core, part.slot)?;
        }
        if let (Some(window), Some(slot)) = (window, self.slots.get_mut(part.slot)) {
            // What this batch still reads begins a window before its first row.
            let gone = forgotten(part.position, window).min(forgotten(held.reached, window)) / KV_PAGE;
            slot.free(core, 0..gone);
        }
        Ok(())
    }

    /// Brings the addresses of a slot's pages to the device.
    fn write_table(&self, core: &mut Core, slot: usize) -> Result<(), BackendError> {
        let pages = self.slots.get(slot).map(|slot| &*slot.pages).unwrap_or_default();
        core.upload_in_order(self.table + 8 * (slot * self.pages) as u64, bytemuck::cast_slice(pages))
    }

    /// What kernels need to know.
    pub fn descriptor(&self) -> args::Cache {
        let (table, pages) = (self.table, self.pages as u32);
        match self.shape.stored {
            Stored::Tokens { width, .. } => {
                let (dim, region) = (width as u32, self.page_bytes() as u32);
                let (heads, value_width, format, entries) = (1, 0, 0, 0);
                args::Cache { table, pages, heads, dim, key_width: dim, value_width, format, region, entries }
            }
            Stored::Entries { width, format, .. } => {
                let (dim, region) = (width as u32, self.page_bytes() as u32);
                let (format, plain) = entry_format(format);
                let key_width = entry_stride(&self.shape.stored) as u32;
                args::Cache { table, pages, heads: 1, dim, key_width, value_width: plain, format, region, entries: 1 }
            }
            Stored::Heads(heads, format) => args::Cache {
                table,
                pages,
                heads: heads.count as u32,
                dim: heads.dim as u32,
                key_width: heads.key_width(format) as u32,
                value_width: heads.value_width() as u32,
                format: match format {
                    KvFormat::F32 => 0,
                    KvFormat::F16 => 1,
                    KvFormat::Q8 => 2,
                },
                region: heads.region_bytes(format) as u32,
                entries: 0,
            },
        }
    }

    /// Its heads, if it holds heads.
    pub fn heads(&self) -> Option<KvHeads> {
        match self.shape.stored {
            Stored::Heads(heads, _) => Some(heads),
            Stored::Tokens { .. } | Stored::Entries { .. } => None,
        }
    }
}

/// Bytes from one entry to the next; 0 for what holds none.
fn entry_stride(stored: &Stored) -> usize {
    match stored {
        Stored::Entries { width, format, .. } => format.bytes(*width).next_multiple_of(ENTRY_ALIGN),
        Stored::Tokens { .. } | Stored::Heads(..) => 0,
    }
}

fn entry_format(format: EntryFormat) -> (u32, u32) {
    match format {
        EntryFormat::F32 => (0, 0),
        EntryFormat::F16 => (1, 0),
        EntryFormat::Fp8 { plain } => (2, plain as u32),
        EntryFormat::Fp4 => (3, 0),
    }
}

/// The most positions that any sequence of a batch sees.
pub fn longest(batch: &Batch) -> usize {
    batch.sequences.iter().map(|s| s.position + s.rows.len()).max().unwrap_or(0)
}
