//! Pooled entries: made, chosen among, attended to, over growing and cut-back sequences.

use super::bench::{Bench, Pair};
use super::weights::Stored as Weights;
use super::{Stop, Suite};
use crate::{
    AttentionOptions, Batch, BufferId, CacheId, CacheShape, Entries, EntryFormat, HeadRope, KV_SAVED, KvFormat,
    KvHeads, Op, SequenceRows, Stored, WeightId,
};
use ashlar_arch::{Rope, RopeScaling};
use std::sync::Arc;

const CAPACITY: usize = 96;
const ROWS: usize = 48;
const WIDTH: usize = 64;
const HEADS: usize = 3;
const TOP_K: usize = 4;

struct Operands {
    kv: Pair<BufferId>,
    gate: Pair<BufferId>,
    q: Pair<BufferId>,
    weights: Pair<BufferId>,
    key: Pair<BufferId>,
    chosen: Pair<BufferId>,
    out: Pair<BufferId>,
    position: Pair<WeightId>,
    norm: Pair<WeightId>,
    tokens: Pair<CacheId>,
    entries: Pair<CacheId>,
    keys: Pair<CacheId>,
}

pub fn cases(suite: &mut Suite<'_>) {
    let (as_is, half) = (EntryFormat::F32, EntryFormat::F16);
    for (ratio, overlap, select, format) in [
        (4, true, true, as_is),
        (4, false, false, as_is),
        (8, false, true, half),
        (16, true, false, half),
        (4, true, true, EntryFormat::Fp8 { plain: 48 }),
        (8, false, false, EntryFormat::Fp8 { plain: 48 }),
        (4, true, true, EntryFormat::Fp4),
    ] {
        let name =
            format!("compress, select_entries, attention ratio={ratio} overlap={overlap} select={select} {format:?}");
        suite.case_with_ties(name, |b| {
            let o = operands(b, [ratio, CAPACITY], overlap, format)?;
            let part = |slot, rows, position| SequenceRows { slot, rows, position };
            for sequences in [
                vec![part(0, 0..21, 0)],
                vec![part(0, 0..1, 21), part(1, 1..40, 0)],
                vec![part(0, 0..11, 22), part(1, 11..12, 39)],
                // Back into the middle of a window, then to the beginning.
                vec![part(0, 0..9, 17)],
                vec![part(0, 0..1, 26)],
                vec![part(0, 0..7, 0)],
            ] {
                let rows = sequences.last().map_or(0, |s| s.rows.end);
                let batch = Batch { tokens: vec![0; rows], sequences, ..Batch::default() };
                step(b, &o, &batch, [ratio, if overlap { 2 * WIDTH } else { WIDTH }], select)?;
            }
            Ok(())
        });
    }
}

/// As [`super::attention::saved`], with all three caches of such a layer.
pub fn saved(suite: &mut Suite<'_>) {
    for (ratio, overlap, format) in
        [(4, true, EntryFormat::F32), (128, false, EntryFormat::F16), (4, true, EntryFormat::Fp8 { plain: 48 })]
    {
        suite.case_with_ties(format!("save, restore, compress ratio={ratio} overlap={overlap} {format:?}"), |b| {
            let o = operands(b, [ratio, 1024], overlap, format)?;
            let widths = [ratio, if overlap { 2 * WIDTH } else { WIDTH }];
            for position in (0..13 * ROWS).step_by(ROWS) {
                step(b, &o, &Batch::of(0, position, &[0; ROWS]), widths, overlap)?;
                let end = (position + ROWS) / KV_SAVED * KV_SAVED;
                if end <= position {
                    continue;
                }
                for cache in [o.tokens, o.entries, o.keys] {
                    if !b.hand_over(cache, [0, 1], end - KV_SAVED..end)? {
                        return Err(Stop::Fail(format!("one cannot go on at {end}")));
                    }
                }
            }
            let part = |slot, rows, position| SequenceRows { slot, rows, position };
            for sequences in [vec![part(0, 0..7, 512), part(1, 7..16, 512)], vec![part(1, 0..40, 521)]] {
                let rows = sequences.last().map_or(0, |s| s.rows.end);
                let batch = Batch { tokens: vec![0; rows], sequences, ..Batch::default() };
                step(b, &o, &batch, widths, overlap)?;
            }
            Ok(())
        });
    }
}

fn operands(
    b: &mut Bench,
    [ratio, capacity]: [usize; 2],
    overlap: bool,
    format: EntryFormat,
) -> Result<Operands, Stop> {
    let wide = if overlap { 2 * WIDTH } else { WIDTH };
    let native = matches!(format, EntryFormat::Fp8 { .. }).then_some(48);
    let heads = KvHeads { count: 1, dim: WIDTH, values_in_keys: true, window: Some(6), native };
    let shape = |capacity, stored| CacheShape { sequences: 2, capacity, rows: ROWS, stored };
    let f32 = Weights::plain("f32").ok_or_else(|| Stop::Fail("no f32".into()))?;
    Ok(Operands {
        kv: b.buffer(ROWS, wide)?,
        gate: b.buffer(ROWS, wide)?,
        q: b.buffer(ROWS, HEADS * WIDTH)?,
        weights: b.buffer(ROWS, HEADS)?,
        key: b.buffer(ROWS, WIDTH)?,
        chosen: b.buffer(ROWS, TOP_K)?,
        out: b.buffer(ROWS, HEADS * WIDTH)?,
        position: b.weight(&f32, ratio, wide)?,
        norm: b.vector(WIDTH, 1.0)?,
        tokens: b.cache(&shape(capacity, Stored::Tokens { width: wide, kept: 2 * ratio }))?,
        entries: b.cache(&shape(capacity / ratio, Stored::Entries { width: WIDTH, ratio, format }))?,
        keys: b.cache(&shape(capacity, Stored::Heads(heads, KvFormat::F16)))?,
    })
}

fn step(b: &mut Bench, o: &Operands, batch: &Batch, [ratio, wide]: [usize; 2], select: bool) -> Result<(), Stop> {
    let rows = batch.rows();
    for (buffer, width) in [(o.kv, wide), (o.gate, wide), (o.q, HEADS * WIDTH), (o.weights, HEADS), (o.key, WIDTH)] {
        b.refill(buffer, rows, width)?;
    }
    let rope = Arc::new(Rope { theta: 10_000.0, scaling: RopeScaling::Plain });
    b.run(batch, |s| Op::Compress {
        kv: o.kv[s],
        gate: o.gate[s],
        position: o.position[s],
        norm: o.norm[s],
        eps: 1e-6,
        rope: HeadRope { rope: Arc::clone(&rope), width: 16, inverse: false },
        ratio,
        overlap: wide > WIDTH,
        tokens: o.tokens[s],
        entries: o.entries[s],
    })?;
    if select {
        let num_heads = HEADS;
        b.run(batch, |s| Op::SelectEntries {
            q: o.q[s],
            weights: o.weights[s],
            entries: o.entries[s],
            ratio,
            num_heads,
            out: o.chosen[s],
        })?;
        b.compare(o.chosen, TOP_K)?;
    }
    b.run(batch, |s| {
        let selected = select.then_some(o.chosen[s]);
        let entries = Some(Entries { cache: o.entries[s], ratio, selected });
        Op::Attention {
            q: o.q[s],
            k: o.key[s],
            v: o.key[s],
            cache: o.keys[s],
            num_heads: HEADS,
            num_kv_heads: 1,
            head_dim: WIDTH,
            scale: 0.15,
            window: Some(6),
            options: AttentionOptions { sinks: None, values_in_keys: Some(WIDTH), entries },
            out: o.out[s],
        }
    })?;
    b.compare(o.out, HEADS * WIDTH)
}
