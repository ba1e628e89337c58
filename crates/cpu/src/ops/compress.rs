//! Pooling of windows of tokens into entries.
//!
//! The projections of recent tokens stay in a cache, as far as a window may need them.

use crate::cpu::Cpu;
use crate::kv::Recent;
use crate::math::rms_norm;
use crate::shards::Shards;
use ashlar_backend::{BackendError, Batch, BufferId, CacheId, HeadRope, SequenceRows, WeightId};
use ashlar_simd::{Kernel, Simd};

const OP: &str = "compress";

/// How windows become entries.
pub struct Pool<'a> {
    /// `[ratio, wide]`
    pub position: WeightId,
    /// `[width]`
    pub norm: WeightId,
    /// Added to the mean square.
    pub eps: f32,
    /// The rotation.
    pub rope: &'a HeadRope,
    /// Tokens of a window.
    pub ratio: usize,
    /// Whether the window before takes part.
    pub overlap: bool,
}

pub fn run(
    cpu: &mut Cpu,
    [kv, gate]: [BufferId; 2],
    pool: &Pool<'_>,
    [tokens, entries]: [CacheId; 2],
    batch: &Batch,
) -> Result<(), BackendError> {
    let wide = cpu.buffers.get(kv, OP)?.width;
    let width = if pool.overlap { wide / 2 } else { wide };
    let turned = pool.rope.width;
    let wrong = |what: String| BackendError::Operand { op: OP, what };
    if pool.ratio == 0 || turned > width || !turned.is_multiple_of(2) || pool.overlap && wide != 2 * width {
        let what = format!("entries of {width} from {wide}, {} tokens each, rope over {turned}", pool.ratio);
        return Err(wrong(what));
    }
    let norm = cpu.vector(pool.norm, width, OP)?.to_vec();
    let mut place = vec![0.0; pool.ratio * wide];
    let position = cpu.weight(pool.position, OP)?;
    if (position.weight.n, position.weight.k) != (pool.ratio, wide)
        && position.weight.n * position.weight.k != place.len()
    {
        return Err(wrong(format!("`{}` is not {} × {wide}", position.weight.name, pool.ratio)));
    }
    position.weight.decode(0..position.weight.n, &mut place)?;
    let values = cpu.buffers.input(kv, wide, OP)?;
    let mut gates = cpu.buffers.input(gate, wide, OP)?.to_vec();
    if values.len() != batch.rows() * wide || gates.len() != values.len() {
        return Err(wrong(format!("a buffer does not hold {} rows", batch.rows())));
    }
    for (row, at) in gates.chunks_exact_mut(wide).zip(batch.positions()) {
        let place = &place[at % pool.ratio * wide..][..wide];
        row.iter_mut().zip(place).for_each(|(g, p)| *g += p);
    }
    let table = cpu.rope(&pool.rope.rope, turned);
    cpu.caches.entries(entries, width, OP)?;
    for part in &batch.sequences {
        let rows = part.rows.start * wide..part.rows.end * wide;
        let end = part.position + part.rows.len();
        let (first, last) = (part.position / pool.ratio, end / pool.ratio);
        let mut made = vec![0.0; (last - first) * width];
        let values = cpu.buffers.input(kv, wide, OP)?;
        let cache = cpu.caches.tokens_mut(tokens, wide, OP)?;
        cache.store(part, &values[rows.clone()], &gates[rows])?;
        let recent = cache.recent(part.slot);
        let (all, isa) = (Shards::new(&mut made), cpu.isa);
        cpu.pool.run(last - first, &|i| {
            // SAFETY: every entry is one index of the pool.
            let out = unsafe { all.slice(i * width..(i + 1) * width) };
            pooled(recent, first + i, pool, out);
            isa.run(Norm { row: out, weight: &norm, eps: pool.eps });
            let (mut cos, mut sin) = (vec![0.0; turned / 2], vec![0.0; turned / 2]);
            table.fill((first + i) * pool.ratio, &mut cos, &mut sin);
            let pairs = out[width - turned..].as_chunks_mut::<2>().0;
            for ([a, b], (cos, sin)) in pairs.iter_mut().zip(cos.iter().zip(&sin)) {
                let sin = if pool.rope.inverse { -sin } else { *sin };
                (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
            }
        });
        let rows = SequenceRows { slot: part.slot, rows: 0..last - first, position: first };
        cpu.caches.entries_mut(entries, width, OP)?.store(&rows, &made)?;
    }
    Ok(())
}

/// Entry number `window`, before the norm. f64: a few thousand values per window.
fn pooled(recent: Recent<'_>, window: usize, pool: &Pool<'_>, out: &mut [f32]) {
    let Recent { first, kv, gate } = recent;
    let (width, ratio) = (out.len(), pool.ratio);
    let wide = if pool.overlap { 2 * width } else { width };
    // Tokens that take part, and where their channels begin.
    let before = if pool.overlap && window > 0 { (window - 1) * ratio..window * ratio } else { 0..0 };
    let own = if pool.overlap { width } else { 0 };
    let starts: Vec<usize> = before
        .map(|t| (t, 0))
        .chain((window * ratio..(window + 1) * ratio).map(|t| (t, own)))
        .map(|(t, c)| (t - first) * wide + c)
        .collect();
    for (c, out) in out.iter_mut().enumerate() {
        let max = starts.iter().fold(f32::NEG_INFINITY, |m, s| m.max(gate[s + c]));
        let (mut sum, mut total) = (0.0f64, 0.0f64);
        for start in &starts {
            let weight = f64::from(gate[start + c] - max).exp();
            total += weight;
            sum += weight * f64::from(kv[start + c]);
        }
        *out = (sum / total) as f32;
    }
}

struct Norm<'a> {
    row: &'a mut [f32],
    weight: &'a [f32],
    eps: f32,
}

impl Kernel for Norm<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        rms_norm(s, self.row, self.weight, self.eps);
    }
}
