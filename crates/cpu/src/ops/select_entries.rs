//! Which pooled entries a token attends to.

use crate::cpu::Cpu;
use crate::kv::Entries;
use crate::math::dot;
use crate::shards::Shards;
use ashlar_backend::{BackendError, Batch, BufferId, CacheId};
use ashlar_simd::{Kernel, Simd};

const OP: &str = "select_entries";

pub fn run(
    cpu: &mut Cpu,
    [q, weights, out]: [BufferId; 3],
    entries: CacheId,
    ratio: usize,
    num_heads: usize,
    batch: &Batch,
) -> Result<(), BackendError> {
    let (rows, width) = (batch.rows(), cpu.buffers.get(q, OP)?.width);
    let dim = width / num_heads.max(1);
    let wrong = |what: String| Err(BackendError::Operand { op: OP, what });
    if num_heads == 0 || ratio == 0 || dim == 0 || dim * num_heads != width {
        return wrong(format!("{num_heads} heads in {width} values, {ratio} tokens per entry"));
    }
    let weights_len = cpu.buffers.input(weights, num_heads, OP)?.len();
    if cpu.buffers.get(q, OP)?.values.len() != rows * width || weights_len != rows * num_heads {
        return wrong(format!("a buffer does not hold {rows} rows"));
    }
    cpu.caches.entries(entries, dim, OP)?;
    let top_k = cpu.buffers.get(out, OP)?.width;
    let mut chosen = cpu.buffers.take(out, [rows, top_k], false, q, OP)?;
    let (queries, weights) = (cpu.buffers.input(q, width, OP)?, cpu.buffers.input(weights, num_heads, OP)?);
    let mut places = Vec::with_capacity(rows);
    for part in &batch.sequences {
        places.extend((0..part.rows.len()).map(|i| (part.slot, (part.position + i + 1) / ratio)));
    }
    if let Ok(cache) = cpu.caches.entries(entries, dim, OP) {
        let (all, isa) = (Shards::new(&mut chosen), cpu.isa);
        cpu.pool.run(rows, &|row| {
            let (slot, visible) = places[row];
            let mut q = queries[row * width..(row + 1) * width].to_vec();
            q.chunks_exact_mut(dim).for_each(|head| cache.format.round_query(head));
            let (q, weights) = (q.as_slice(), &weights[row * num_heads..(row + 1) * num_heads]);
            let scores = isa.run(Scores { q, weights, cache, slot, visible: visible.min(cache.held(slot)) });
            let mut order: Vec<usize> = (0..scores.len()).collect();
            // A stable sort keeps the lower number first among equals.
            order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
            order.truncate(top_k);
            order.sort_unstable();
            // SAFETY: every row is one index of the pool.
            let out = unsafe { all.slice(row * top_k..(row + 1) * top_k) };
            out.fill(-1.0);
            out.iter_mut().zip(order).for_each(|(to, n)| *to = n as f32);
        });
    }
    cpu.buffers.put(out, chosen);
    Ok(())
}

/// Σ over heads of weight · relu(q · key), for every key.
struct Scores<'a> {
    /// heads × dim
    q: &'a [f32],
    weights: &'a [f32],
    cache: &'a Entries,
    slot: usize,
    /// Number of keys.
    visible: usize,
}

impl Kernel for Scores<'_> {
    type Output = Vec<f64>;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Vec<f64> {
        let mut key = vec![0.0; self.cache.width];
        let mut scores = Vec::with_capacity(self.visible);
        for n in 0..self.visible {
            self.cache.read(self.slot, n, &mut key);
            let mut sum = 0.0;
            for (q, weight) in self.q.chunks_exact(key.len()).zip(self.weights) {
                sum += f64::from(*weight) * f64::from(dot(s, q, &key).max(0.0));
            }
            scores.push(sum);
        }
        scores
    }
}
