//! Attention: keys and values into their pages, then tiles of queries over them, split over positions at decode.

use crate::args::{AttentionArgs, Cache, StoreArgs};
use crate::caches::longest;
use crate::cuda::{Cuda, Use};
use crate::modules::ATTENTION;
use ashlar_backend::{AttentionOptions, BackendError, Batch, BufferId, CacheId};

const OP: &str = "attention";

/// Positions that a block walks at most where queries are too few to fill a device otherwise.
const SPLIT: usize = 256;
/// Rows of a batch from which on queries alone are enough.
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

    /// Rows of a tile, and the kernel that takes heads of this width.
    fn kernel(&self, rows: usize) -> (usize, &'static str) {
        match self.dim.max(self.value_dim()) {
            ..=128 if rows >= MANY_ROWS && self.options.entries.is_none() => (32, "attend_32_128"),
            ..=128 => (8, "attend_8_128"),
            129..=256 => (8, "attend_8_256"),
            _ => (8, "attend_8_576"),
        }
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
    let (tile, kernel) = heads.kernel(rows);
    let (tiles, count) = cuda.step.tiles(&mut cuda.core, batch, [group, tile], pooled.is_some())?;
    let splits = splits(heads, batch);
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
        split: if splits > 1 { SPLIT as u32 } else { u32::MAX / 4 },
        splits: splits as u32,
        ratio: ratio as u32,
        listed: listed as u32,
        values_in_keys: u32::from(heads.options.values_in_keys.is_some()),
        scale: heads.scale,
        reserved: 0,
    };
    // Queries, and a tile of 32 keys with one float between them for the banks.
    let shared = 4 * (tile * heads.dim + 32 * (heads.dim + 1));
    cuda.core.run_shared(ATTENTION, kernel, [count, heads.keys, splits], [256, shared as u32], &args)?;
    if splits > 1 {
        cuda.core.run(ATTENTION, "merge_splits", [rows * heads.queries, 1, 1], 128, &args)?;
    }
    Ok(())
}

/// Over how many blocks the positions are split: by powers of two of the longest sequence, so that a few recordings
/// serve all lengths.
fn splits(heads: &Heads, batch: &Batch) -> usize {
    if batch.rows() >= MANY_ROWS || heads.options.entries.is_some() || heads.window.is_some_and(|w| w <= SPLIT) {
        return 1;
    }
    longest(batch).next_power_of_two().div_ceil(SPLIT)
}
