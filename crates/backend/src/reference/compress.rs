//! Pooling of windows of tokens into entries.

use super::Reference;
use super::head_norm_rope::rotate;
use super::rms_norm::normalize;
use crate::{BackendError, Batch, BufferId, CacheId, HeadRope, RopeTable, SequenceRows, WeightId};

const OP: &str = "compress";

/// How windows become entries.
pub struct Pool<'a> {
    pub position: WeightId,
    pub norm: WeightId,
    pub eps: f32,
    pub rope: &'a HeadRope,
    pub ratio: usize,
    pub overlap: bool,
}

pub fn run(
    r: &mut Reference,
    [kv, gate]: [BufferId; 2],
    pool: &Pool<'_>,
    [tokens, entries]: [CacheId; 2],
    batch: &Batch,
) -> Result<(), BackendError> {
    let wide = r.buffer(kv, OP)?.width();
    let width = if pool.overlap { wide / 2 } else { wide };
    let norm = r.vector(pool.norm, width, OP)?.to_vec();
    let turned = pool.rope.width;
    if pool.ratio == 0 || turned > width || !turned.is_multiple_of(2) || pool.overlap && wide != 2 * width {
        let what = format!("entries of {width} from {wide}, {} tokens each, rope over {turned}", pool.ratio);
        return Err(BackendError::Operand { op: OP, what });
    }
    let place = r.vector(pool.position, pool.ratio * wide, OP)?.to_vec();
    let (kv, mut gate) = (r.input(kv, wide, OP)?, r.input(gate, wide, OP)?.values.clone());
    kv.expect_rows(batch.rows(), OP)?;
    let kv = kv.values.clone();
    if gate.len() != kv.len() {
        return Err(BackendError::Operand { op: OP, what: "kv and gate differ in rows".into() });
    }
    for (row, at) in gate.chunks_mut(wide.max(1)).zip(batch.positions()) {
        let place = &place[at % pool.ratio * wide..][..wide];
        row.iter_mut().zip(place).for_each(|(g, p)| *g += p);
    }
    for part in &batch.sequences {
        let rows = part.rows.start * wide..part.rows.end * wide;
        let cache = r.cache_mut(tokens, wide, OP)?;
        cache.append(part, &kv[rows.clone()], &gate[rows])?;
        let (first, end) = (part.position / pool.ratio, (part.position + part.rows.len()) / pool.ratio);
        let made: Vec<f32> = (first..end)
            .flat_map(|w| entry(cache.keys(part.slot), cache.values(part.slot), w, wide, &norm, pool))
            .collect();
        let rows = SequenceRows { slot: part.slot, rows: 0..end - first, position: first };
        r.cache_mut(entries, width, OP)?.append(&rows, &made, &[])?;
    }
    Ok(())
}

/// Entry number `window`.
fn entry(kv: &[f32], gate: &[f32], window: usize, wide: usize, norm: &[f32], pool: &Pool<'_>) -> Vec<f32> {
    let (ratio, width) = (pool.ratio, norm.len());
    // Tokens that take part, and where their channels begin.
    let mut slots: Vec<(usize, usize)> = Vec::new();
    if pool.overlap && window > 0 {
        slots.extend(((window - 1) * ratio..window * ratio).map(|t| (t, 0)));
    }
    let own = if pool.overlap { width } else { 0 };
    slots.extend((window * ratio..(window + 1) * ratio).map(|t| (t, own)));
    let mut out: Vec<f32> = (0..width)
        .map(|c| {
            let at = |&(token, start): &(usize, usize)| token * wide + start + c;
            let max = slots.iter().map(|s| f64::from(gate[at(s)])).fold(f64::NEG_INFINITY, f64::max);
            let weight = |s: &(usize, usize)| (f64::from(gate[at(s)]) - max).exp();
            let total: f64 = slots.iter().map(weight).sum();
            (slots.iter().map(|s| weight(s) * f64::from(kv[at(s)])).sum::<f64>() / total) as f32
        })
        .collect();
    normalize(&mut out, norm, pool.eps);
    let turned = pool.rope.width;
    let (mut cos, mut sin) = (vec![0.0; turned / 2], vec![0.0; turned / 2]);
    RopeTable::new(&pool.rope.rope, turned).fill(window * ratio, &mut cos, &mut sin);
    if pool.rope.inverse {
        sin.iter_mut().for_each(|s| *s = -*s);
    }
    rotate(&mut out[width - turned..], &cos, &sin);
    out
}
