//! Which pooled entries a token attends to.

use super::Reference;
use super::linear::dot;
use crate::{BackendError, Batch, BufferId, CacheId};

const OP: &str = "select_entries";

pub fn run(
    r: &mut Reference,
    [q, weights, out]: [BufferId; 3],
    entries: CacheId,
    ratio: usize,
    num_heads: usize,
    batch: &Batch,
) -> Result<(), BackendError> {
    let width = r.buffer(q, OP)?.width();
    let dim = width / num_heads.max(1);
    if num_heads == 0 || ratio == 0 || dim * num_heads != width {
        let what = format!("{num_heads} heads in {width} values, {ratio} tokens per entry");
        return Err(BackendError::Operand { op: OP, what });
    }
    let (q, weights, top_k) = (r.buffer(q, OP)?, r.input(weights, num_heads, OP)?, r.buffer(out, OP)?.width());
    q.expect_rows(batch.rows(), OP)?;
    weights.expect_rows(batch.rows(), OP)?;
    let cache = r.cache(entries, dim, OP)?;
    let mut chosen = Vec::with_capacity(batch.rows() * top_k);
    for part in &batch.sequences {
        let keys = cache.keys(part.slot);
        for (i, row) in part.rows.clone().enumerate() {
            let visible = (part.position + i + 1) / ratio;
            let mut queries = q.row(row).to_vec();
            queries.chunks_mut(dim).for_each(|head| cache.format().round_query(head));
            let score = |key: &[f32]| {
                let head = |(q, w): (&[f32], &f32)| f64::from(*w) * dot(q, key).max(0.0);
                queries.chunks(dim).zip(weights.row(row)).map(head).sum::<f64>()
            };
            let scores: Vec<f64> = keys.chunks(dim).take(visible).map(score).collect();
            let mut order: Vec<usize> = (0..scores.len()).collect();
            // A stable sort keeps the lower number first among equals.
            order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
            order.truncate(top_k);
            order.sort_unstable();
            let none = std::iter::repeat_n(-1.0, top_k - order.len());
            chosen.extend(order.into_iter().map(|n| n as f32).chain(none));
        }
    }
    r.store(out, top_k, chosen, OP)
}
