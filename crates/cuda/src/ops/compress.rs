//! Pooled entries: windows of tokens become one key each, and tokens choose among them.

use crate::args::{NativeArgs, PoolArgs, SelectArgs};
use crate::caches::longest;
use crate::cuda::{Cuda, Use};
use crate::modules::POOLED;
use ashlar_backend::{BackendError, Batch, BufferId, CacheId, HeadRope, SequenceRows, WeightId};

/// The number of the entries' format that is turned by a Hadamard matrix.
const TURNED: u32 = 3;

/// A copy of vectors, count × width, as storing in that format would keep them.
pub fn native(
    cuda: &mut Cuda,
    x: u64,
    [count, width]: [usize; 2],
    (format, plain): (u32, u32),
) -> Result<u64, BackendError> {
    let out = cuda.core.scratch(Use::Native, 4 * (count * width) as u64)?;
    let args = NativeArgs { x, out, width: width as u32, format, plain, reserved: 0 };
    cuda.core.run(POOLED, "round_native", [count, 1, 1], 256, &args)?;
    Ok(out)
}

/// How windows become entries.
pub struct Pool<'a> {
    pub place: WeightId,
    pub norm: WeightId,
    pub eps: f32,
    pub rope: &'a HeadRope,
    pub ratio: usize,
    pub overlap: bool,
}

pub fn run(
    cuda: &mut Cuda,
    [kv, gate]: [BufferId; 2],
    pool: &Pool<'_>,
    [tokens, entries]: [CacheId; 2],
    batch: &Batch,
) -> Result<(), BackendError> {
    const OP: &str = "compress";
    let (wide, rows) = (cuda.buffers.get(kv, OP)?.width, batch.rows());
    let width = if pool.overlap { wide / 2 } else { wide };
    let turned = pool.rope.width;
    if pool.ratio == 0 || turned > width || !turned.is_multiple_of(2) || pool.overlap && wide != 2 * width {
        let what = format!("entries of {width} from {wide}, {} tokens each, rope over {turned}", pool.ratio);
        return Err(BackendError::Operand { op: OP, what });
    }
    let norm = cuda.weights.vector(&mut cuda.core, pool.norm, width, OP)?;
    let place = cuda.weights.vector(&mut cuda.core, pool.place, pool.ratio * wide, OP)?;
    let kv = cuda.buffers.input(kv, wide, Some(rows), OP)?.address;
    let gate = cuda.buffers.input(gate, wide, Some(rows), OP)?.address;
    for (id, width) in [(tokens, wide), (entries, width)] {
        if cuda.caches.get(id, width, OP)?.heads().is_some() {
            let what = format!("cache {} holds heads, expected rows of {width}", id.0);
            return Err(BackendError::Operand { op: OP, what });
        }
    }
    let made = |s: &SequenceRows| {
        let (first, end) = (s.position / pool.ratio, (s.position + s.rows.len()) / pool.ratio);
        SequenceRows { slot: s.slot, rows: 0..end - first, position: first }
    };
    let made: Vec<SequenceRows> = batch.sequences.iter().map(made).collect();
    cuda.caches.advance(&mut cuda.core, tokens, &batch.sequences)?;
    cuda.caches.advance(&mut cuda.core, entries, &made)?;
    let numbers =
        |s: &SequenceRows| s.rows.clone().map(|i| [s.slot as u32, (s.position + i) as u32]).collect::<Vec<_>>();
    let windows: Vec<[u32; 2]> = made.iter().flat_map(numbers).collect();
    let list = cuda.core.scratch(Use::Windows, 8 * windows.len().max(1) as u64)?;
    cuda.core.upload_in_order(list, bytemuck::cast_slice(&windows))?;
    let (format, plain) = cuda.caches.get(entries, width, OP)?.entry_format();
    let turns = cuda.ropes.turns(&mut cuda.core, &pool.rope.rope, turned)?;
    let args = PoolArgs {
        tokens: cuda.caches.get(tokens, wide, OP)?.descriptor(),
        entries: cuda.caches.get(entries, width, OP)?.descriptor(),
        kv,
        gate,
        place,
        norm,
        frequencies: turns.frequencies,
        positions: cuda.step.positions(),
        slots: cuda.step.slots(),
        windows: list,
        ratio: pool.ratio as u32,
        overlap: u32::from(pool.overlap),
        turned: turned as u32,
        inverse: u32::from(pool.rope.inverse),
        multiplier: turns.multiplier,
        eps: pool.eps,
        format,
        plain,
        reserved: 0,
    };
    cuda.core.run(POOLED, "store_tokens", [wide.div_ceil(256), rows, 1], 256, &args)?;
    cuda.core.run(POOLED, "pool_windows", [windows.len(), 1, 1], 256, &args)
}

/// `buffers`: queries, weights of heads, and the list to write.
pub fn select(
    cuda: &mut Cuda,
    [q, weights, out]: [BufferId; 3],
    entries: CacheId,
    [ratio, num_heads]: [usize; 2],
    batch: &Batch,
) -> Result<(), BackendError> {
    const OP: &str = "select_entries";
    let (rows, width) = (batch.rows(), cuda.buffers.get(q, OP)?.width);
    let dim = width / num_heads.max(1);
    if num_heads == 0 || ratio == 0 || dim * num_heads != width {
        let what = format!("{num_heads} heads in {width} values, {ratio} tokens per entry");
        return Err(BackendError::Operand { op: OP, what });
    }
    let queries = cuda.buffers.input(q, width, Some(rows), OP)?.address;
    let weights = cuda.buffers.input(weights, num_heads, Some(rows), OP)?.address;
    let listed = cuda.buffers.get(out, OP)?.width;
    let to = cuda.buffers.output(out, [rows, listed], Some(q), OP)?;
    let most = longest(batch) / ratio;
    let scores = cuda.core.scratch(Use::Scores, 8 * (rows * most).max(1) as u64)?;
    let cache = cuda.caches.get(entries, dim, OP)?;
    let (descriptor, format) = (cache.descriptor(), cache.entry_format());
    // Entries that are turned meet queries that are.
    let queries = if format.0 == TURNED { native(cuda, queries, [rows * num_heads, dim], format)? } else { queries };
    let args = SelectArgs {
        entries: descriptor,
        q: queries,
        weights,
        positions: cuda.step.positions(),
        slots: cuda.step.slots(),
        scores,
        out: to.address,
        heads: num_heads as u32,
        ratio: ratio as u32,
        listed: listed as u32,
        most: most as u32,
    };
    cuda.core.run(POOLED, "score_entries", [most.div_ceil(8), rows, 1], 256, &args)?;
    cuda.core.run(POOLED, "choose_entries", [rows, 1, 1], 256, &args)?;
    cuda.buffers.wrote(out, rows);
    Ok(())
}
