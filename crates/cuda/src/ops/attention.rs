//! Attention: keys and values into their pages, then tiles of queries over them, split over positions at decode.

use crate::args::{AttentionArgs, Cache, StoreArgs};
use crate::caches::longest;
use crate::cuda::{Cuda, Use};
use crate::modules::{ATTENTION, FLASH};
use ashlar_backend::{AttentionOptions, BackendError, Batch, BufferId, CacheId, KV_PAGE};

const OP: &str = "attention";

/// Positions that a block walks at least where queries are too few to fill a device otherwise.
const SPLIT: usize = 256;
/// Blocks that fill any device: more splits than that are only more to merge.
const MANY_BLOCKS: usize = 8192;
/// Rows of a batch, and of a sequence in the mean with all heads of a group, from which on tiles of many rows are filled.
const MANY_ROWS: usize = 32;
/// The widest head that kernels take: that of latent attention.
const WIDEST: usize = 576;

/// What kind of heads, and what they see.
pub struct Heads {
    pub queries: usize,
    pub keys: usize,
    pub dim: usize,
    pub scale: f32,
    pub window: Option<usize>,
    pub options: AttentionOptions,
}

impl Heads {
    fn value_dim(&self) -> usize {
        self.options.values_in_keys.unwrap_or(self.dim)
    }

    fn check(&self) -> Result<(), BackendError> {
        let pooled = self.options.entries.is_some_and(|e| e.ratio == 0)
            || self.options.entries.is_some() && (self.keys != 1 || self.options.values_in_keys.is_none());
        let wrong = self.keys == 0
            || self.dim == 0
            || !self.queries.is_multiple_of(self.keys)
            || self.window == Some(0)
            || self.value_dim() > self.dim;
        if wrong || pooled || self.dim > WIDEST {
            let what = format!(
                "{} query heads over {} key/value heads of {} (at most {WIDEST}), window {:?}",
                self.queries, self.keys, self.dim, self.window
            );
            return Err(BackendError::Operand { op: OP, what });
        }
        Ok(())
    }

    /// Whether a batch has enough rows to fill large tiles.
    fn many(&self, batch: &Batch) -> bool {
        let (rows, group) = (batch.rows(), self.queries / self.keys);
        rows >= MANY_ROWS && rows * group >= MANY_ROWS * batch.sequences.len()
    }

    /// The kernel that takes heads of this width, stored so.
    fn kernel(&self, cache: &Cache, batch: &Batch) -> Kernel {
        let many = self.many(batch) && self.options.entries.is_none();
        let plain = self.options.values_in_keys.is_none() && self.dim.is_multiple_of(8);
        let flash = |name, width: usize| {
            // Keys and values of a page, 8 halves between rows for the banks; scales of 8-bit ones.
            let (pages, scales) = (4 * KV_PAGE * (width + 8), 4 * (KV_PAGE + width / 32 * (KV_PAGE + 1)));
            let shared = if cache.format == 2 { pages + scales } else { pages };
            Kernel { name, rows: 64, threads: 128, shared }
        };
        // Queries, and a tile of 32 keys with one float between them for the banks.
        let walk =
            |name, rows| Kernel { name, rows, threads: 256, shared: 4 * (rows * self.dim + 32 * (self.dim + 1)) };
        match (self.dim, cache.format) {
            (..=64, 1) if many && plain => flash("flash_64_f16", 64),
            (..=64, 2) if many && plain => flash("flash_64_q8", 64),
            (..=128, 1) if many && plain => flash("flash_128_f16", 128),
            (..=128, 2) if many && plain => flash("flash_128_q8", 128),
            (..=128, _) if many => walk("attend_32_128", 32),
            (..=128, _) => walk("attend_8_128", 8),
            (..=256, _) => walk("attend_8_256", 8),
            _ => walk("attend_8_576", 8),
        }
    }
}

/// How queries meet keys.
struct Kernel {
    name: &'static str,
    /// Rows of a tile.
    rows: usize,
    threads: usize,
    /// Bytes of shared memory.
    shared: usize,
}

impl Kernel {
    fn module(&self) -> &'static str {
        if self.name.starts_with("flash") { FLASH } else { ATTENTION }
    }
}

pub fn run(
    cuda: &mut Cuda,
    [q, k, v]: [BufferId; 3],
    cache: CacheId,
    heads: &Heads,
    out: BufferId,
    batch: &Batch,
) -> Result<(), BackendError> {
    heads.check()?;
    let (rows, width) = (batch.rows(), heads.keys * heads.dim);
    let queries = cuda.buffers.input(q, heads.queries * heads.dim, Some(rows), OP)?;
    let keys = cuda.buffers.input(k, width, Some(rows), OP)?;
    let in_keys = heads.options.values_in_keys.is_some();
    let values = if in_keys { keys } else { cuda.buffers.input(v, width, Some(rows), OP)? };
    let to = cuda.buffers.output(out, [rows, heads.queries * heads.value_dim()], Some(q), OP)?;
    let of = cuda.caches.get(cache, width, OP)?;
    if of.heads().is_none_or(|h| h.count != heads.keys || h.values_in_keys != in_keys) {
        let what = format!("cache {} is not for {} heads of {}", cache.0, heads.keys, heads.dim);
        return Err(BackendError::Operand { op: OP, what });
    }
    let sinks = heads.options.sinks;
    let sinks = sinks.map(|id| cuda.weights.vector(&mut cuda.core, id, heads.queries, OP)).transpose()?.unwrap_or(0);
    let entries = entries(cuda, heads, rows)?;
    cuda.caches.advance(&mut cuda.core, cache, &batch.sequences)?;
    let cache = cuda.caches.get(cache, width, OP)?;
    let native = cache.heads().is_some_and(|h| h.native.is_some()).then(|| cache.entry_format());
    let cache = cache.descriptor();
    let stored = match native {
        Some(format) => super::compress::native(cuda, keys.address, [rows * heads.keys, heads.dim], format)?,
        None => keys.address,
    };
    let (positions, slots) = (cuda.step.positions(), cuda.step.slots());
    let args = StoreArgs {
        cache,
        k: stored,
        v: values.address,
        positions,
        slots,
        rows: rows as u32,
        values_in_keys: u32::from(in_keys),
    };
    let items = if in_keys { heads.keys } else { 2 * heads.keys };
    cuda.core.run(ATTENTION, "store_kv", [items.div_ceil(8), rows, 1], 256, &args)?;
    attend(cuda, cache, entries, heads, [queries.address, to.address, sinks], batch)?;
    cuda.buffers.wrote(out, rows);
    Ok(())
}

/// Pooled keys: their cache, tokens of an entry, entries listed per row, the list.
type Pooled = (Cache, usize, usize, u64);

fn entries(cuda: &Cuda, heads: &Heads, rows: usize) -> Result<Option<Pooled>, BackendError> {
    let Some(entries) = heads.options.entries else { return Ok(None) };
    let cache = cuda.caches.get(entries.cache, heads.dim, OP)?.descriptor();
    let (listed, list) = match entries.selected {
        Some(id) => {
            let width = cuda.buffers.get(id, OP)?.width;
            (width, cuda.buffers.input(id, width, Some(rows), OP)?.address)
        }
        None => (0, 0),
    };
    Ok(Some((cache, entries.ratio, listed, list)))
}

fn attend(
    cuda: &mut Cuda,
    cache: Cache,
    pooled: Option<Pooled>,
    heads: &Heads,
    [q, out, sinks]: [u64; 3],
    batch: &Batch,
) -> Result<(), BackendError> {
    let rows = batch.rows();
    let group = heads.queries / heads.keys;
    let kernel = heads.kernel(&cache, batch);
    let (tiles, count) = cuda.step.tiles(&mut cuda.core, batch, [group, kernel.rows], pooled.is_some())?;
    let (splits, split) = splits(heads, batch, count * heads.keys);
    let value_dim = heads.value_dim();
    let (mut parts, mut sums) = (0, 0);
    if splits > 1 {
        let all = (rows * heads.queries * splits) as u64;
        parts = cuda.core.scratch(Use::Parts, 8 * all)?;
        sums = cuda.core.scratch(Use::Sums, 4 * all * value_dim as u64)?;
    }
    let (entries, ratio, listed, selected) = pooled.unwrap_or((cache, 0, 0, 0));
    let args = AttentionArgs {
        cache,
        entries,
        q,
        out,
        sinks,
        positions: cuda.step.positions(),
        slots: cuda.step.slots(),
        tiles,
        selected,
        parts,
        sums,
        group: group as u32,
        value_dim: value_dim as u32,
        window: heads.window.map_or(0, |w| w.min(u32::MAX as usize / 4)) as u32,
        split: if splits > 1 { split as u32 } else { u32::MAX / 4 },
        splits: splits as u32,
        ratio: ratio as u32,
        listed: listed as u32,
        values_in_keys: u32::from(heads.options.values_in_keys.is_some()),
        scale: heads.scale,
        reserved: 0,
    };
    let grid = [count, heads.keys, splits];
    let launch = [kernel.threads as u32, kernel.shared as u32];
    cuda.core.run_shared(kernel.module(), kernel.name, grid, launch, &args)?;
    if splits > 1 {
        cuda.core.run(ATTENTION, "merge_splits", [rows * heads.queries, 1, 1], 128, &args)?;
    }
    Ok(())
}

/// Over how many blocks the positions are split, and how many each walks: by powers of two of the longest sequence, so that a few
/// recordings serve all lengths. `blocks` there are without.
fn splits(heads: &Heads, batch: &Batch, blocks: usize) -> (usize, usize) {
    if heads.many(batch) || heads.options.entries.is_some() || heads.window.is_some_and(|w| w <= SPLIT) {
        return (1, 0);
    }
    let longest = longest(batch).next_power_of_two().max(SPLIT);
    let most = (MANY_BLOCKS / blocks.max(1)).max(1);
    let splits = (longest / SPLIT).min(1 << most.ilog2());
    (splits, longest / splits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ashlar_backend::SequenceRows;

    fn heads(queries: usize, dim: usize) -> Heads {
        Heads { queries, keys: 8, dim, scale: 1.0, window: None, options: AttentionOptions::default() }
    }

    fn sequences(count: usize, rows: usize, position: usize) -> Batch {
        let of = |i: usize| SequenceRows { slot: i, rows: i * rows..(i + 1) * rows, position };
        Batch { tokens: vec![0; count * rows], sequences: (0..count).map(of).collect(), ..Batch::default() }
    }

    #[test]
    fn tensor_cores_take_prompts_and_not_many_single_tokens() {
        let cache = |format| Cache { format, ..bytemuck::Zeroable::zeroed() };
        let name = |heads: &Heads, batch: &Batch, format| heads.kernel(&cache(format), batch).name;
        assert_eq!(name(&heads(64, 128), &sequences(1, 512, 0), 1), "flash_128_f16");
        assert_eq!(name(&heads(32, 64), &sequences(1, 512, 0), 2), "flash_64_q8");
        assert_eq!(name(&heads(64, 128), &sequences(1, 512, 0), 0), "attend_32_128");
        assert_eq!(name(&heads(64, 128), &sequences(40, 1, 900), 1), "attend_8_128");
        assert_eq!(name(&heads(64, 256), &sequences(1, 512, 0), 1), "attend_8_256");
        assert_eq!(heads(64, 128).kernel(&cache(2), &sequences(1, 64, 0)).shared, 64 * 136 * 4 + 4 * (64 + 4 * 65));
    }

    #[test]
    fn positions_are_split_until_a_device_is_full() {
        let of = |batch: &Batch, blocks| splits(&heads(64, 128), batch, blocks);
        assert_eq!(of(&sequences(1, 1, 16_383), 8), (64, 256));
        assert_eq!(of(&sequences(1, 1, 16_384), 8), (128, 256));
        assert_eq!(of(&sequences(64, 1, 16_383), 512), (16, 1024));
        assert_eq!(of(&sequences(1, 512, 0), 64), (1, 0));
        assert_eq!(of(&sequences(1, 1, 3), 8), (1, 256));
    }
}
