//! Attention over growing, shared and cut-back caches.

use super::bench::{Bench, Pair};
use super::{Stop, Suite};
use crate::{
    AttentionOptions, Batch, BufferId, CacheId, CacheShape, KV_SAVED, KvFormat, KvHeads, Op, SequenceRows, Stored,
    WeightId,
};

#[derive(Clone, Copy)]
struct Shape {
    num_heads: usize,
    num_kv_heads: usize,
    head_dim: usize,
    window: Option<usize>,
    sinks: bool,
    values_in_keys: Option<usize>,
    capacity: usize,
    format: KvFormat,
}

struct Operands {
    q: Pair<BufferId>,
    k: Pair<BufferId>,
    v: Pair<BufferId>,
    out: Pair<BufferId>,
    cache: Pair<CacheId>,
    sinks: Option<Pair<WeightId>>,
}

const CAPACITY: usize = 80;
/// For several pages, blocks and spans.
const LONG: usize = 1400;

pub fn cases(suite: &mut Suite<'_>) {
    let shapes = [(4, 4, 32, None), (8, 2, 16, None), (6, 2, 64, Some(5)), (4, 1, 128, Some(1)), (2, 2, 24, Some(200))];
    for (num_heads, num_kv_heads, head_dim, window) in shapes {
        of(suite, shape([num_heads, num_kv_heads, head_dim], window));
    }
}

fn shape([num_heads, num_kv_heads, head_dim]: [usize; 3], window: Option<usize>) -> Shape {
    let (capacity, format) = (CAPACITY, KvFormat::F32);
    Shape { num_heads, num_kv_heads, head_dim, window, sinks: false, values_in_keys: None, capacity, format }
}

/// Every format of keys and values, at the ratios and widths of models.
pub fn stored(suite: &mut Suite<'_>) {
    for format in [KvFormat::F16, KvFormat::Q8] {
        for heads in [[3, 3, 64], [8, 2, 96], [8, 1, 128], [5, 1, 20]] {
            of(suite, Shape { format, sinks: heads[2] == 96, ..shape(heads, None) });
        }
        of(suite, Shape { format, values_in_keys: Some(128), ..shape([5, 1, 192], None) });
        of(suite, Shape { format, values_in_keys: Some(512), ..shape([3, 1, 576], None) });
    }
}

/// Contexts of many pages.
pub fn long(suite: &mut Suite<'_>) {
    for format in KvFormat::ALL {
        for (heads, window, values_in_keys) in [
            ([1, 1, 64], None, None),
            ([4, 1, 16], None, Some(16)),
            ([2, 2, 32], Some(300), None),
            ([2, 1, 32], Some(70), None),
        ] {
            let sinks = window == Some(300);
            let shape = Shape { format, values_in_keys, sinks, capacity: LONG, ..shape(heads, window) };
            suite.case(format!("{} {} positions", shape.name(), LONG), |b| many_pages(b, shape));
        }
    }
}

/// A sequence that goes on in a slot that was given what another holds, beside that other.
pub fn saved(suite: &mut Suite<'_>) {
    for format in KvFormat::ALL {
        for (heads, window, values_in_keys) in [
            ([4, 2, 32], None, None),
            ([4, 1, 48], None, Some(32)),
            ([2, 1, 32], Some(70), None),
            ([2, 2, 20], Some(300), None),
        ] {
            let shape = Shape { format, values_in_keys, capacity: LONG, ..shape(heads, window) };
            suite.case(format!("save, restore, {}", shape.name()), |b| goes_on_elsewhere(b, shape));
        }
    }
}

fn goes_on_elsewhere(b: &mut Bench, shape: Shape) -> Result<(), Stop> {
    let o = shape.operands(b)?;
    let part = |slot, rows, position| SequenceRows { slot, rows, position };
    // Something is in the way.
    shape.step(b, &o, &Batch::of(1, 0, &[0; 90]))?;
    for (position, block) in [(0, 0..KV_SAVED), (300, KV_SAVED..2 * KV_SAVED)] {
        shape.step(b, &o, &Batch::of(0, position, &[0; 300]))?;
        if !b.hand_over(o.cache, [0, 1], block.clone())? {
            return Err(Stop::Fail(format!("one cannot go on at {}", block.end)));
        }
    }
    let both = vec![part(0, 0..5, 512), part(1, 5..12, 512)];
    shape.step(b, &o, &Batch { tokens: vec![0; 12], sequences: both, ..Batch::default() })?;
    shape.step(b, &o, &Batch::of(1, 519, &[0; 200]))?;
    shape.step(b, &o, &Batch::of(1, 719, &[0]))
}

/// With what only some models have.
pub fn options(suite: &mut Suite<'_>) {
    for (num_heads, num_kv_heads, head_dim, window) in [(8, 2, 32, None), (4, 4, 24, Some(6))] {
        of(suite, Shape { sinks: true, ..shape([num_heads, num_kv_heads, head_dim], window) });
    }
    for (num_heads, num_kv_heads, head_dim, values) in [(4, 1, 144, 128), (6, 2, 40, 40), (20, 1, 24, 7)] {
        let shape = shape([num_heads, num_kv_heads, head_dim], None);
        of(suite, Shape { sinks: values == 40, values_in_keys: Some(values), ..shape });
    }
}

fn of(suite: &mut Suite<'_>, shape: Shape) {
    let name = shape.name();
    suite.case(format!("{name} one sequence"), |b| one_sequence(b, shape));
    suite.case(format!("{name} two sequences"), |b| two_sequences(b, shape));
    suite.case(format!("{name} limits"), |b| limits(b, shape));
}

impl Shape {
    fn name(self) -> String {
        let Self { num_heads, num_kv_heads, head_dim, window, sinks, values_in_keys, .. } = self;
        let mut with = if sinks { " sinks".to_owned() } else { String::new() };
        if let Some(values) = values_in_keys {
            with += &format!(" values_in_keys={values}");
        }
        let kv = self.format.name();
        format!("attention heads={num_heads}/{num_kv_heads} head_dim={head_dim} window={window:?} kv={kv}{with}")
    }

    fn out(self) -> usize {
        self.num_heads * self.values_in_keys.unwrap_or(self.head_dim)
    }

    fn operands(self, b: &mut Bench) -> Result<Operands, Stop> {
        let (q, kv) = (self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim);
        let rows = self.capacity + 10;
        let heads = KvHeads {
            count: self.num_kv_heads,
            dim: self.head_dim,
            values_in_keys: self.values_in_keys.is_some(),
            window: self.window,
            native: None,
        };
        let stored = Stored::Heads(heads, self.format);
        Ok(Operands {
            q: b.buffer(rows, q)?,
            k: b.buffer(rows, kv)?,
            v: b.buffer(rows, kv)?,
            out: b.buffer(rows, self.out())?,
            cache: b.cache(&CacheShape { sequences: 2, capacity: self.capacity, rows, stored })?,
            sinks: if self.sinks { Some(b.vector(self.num_heads, 0.5)?) } else { None },
        })
    }

    fn op(self, o: &Operands, s: usize) -> Op {
        Op::Attention {
            q: o.q[s],
            k: o.k[s],
            v: o.v[s],
            cache: o.cache[s],
            num_heads: self.num_heads,
            num_kv_heads: self.num_kv_heads,
            head_dim: self.head_dim,
            scale: (self.head_dim as f32).sqrt().recip(),
            window: self.window,
            options: AttentionOptions {
                sinks: o.sinks.map(|p| p[s]),
                values_in_keys: self.values_in_keys,
                entries: None,
            },
            out: o.out[s],
        }
    }

    fn fill(self, b: &mut Bench, o: &Operands, rows: usize) -> Result<(), Stop> {
        b.refill(o.q, rows, self.num_heads * self.head_dim)?;
        b.refill(o.k, rows, self.num_kv_heads * self.head_dim)?;
        b.refill(o.v, rows, self.num_kv_heads * self.head_dim)
    }

    fn step(self, b: &mut Bench, o: &Operands, batch: &Batch) -> Result<(), Stop> {
        self.fill(b, o, batch.rows())?;
        b.run(batch, |s| self.op(o, s))?;
        b.compare(o.out, self.out())
    }
}

/// Prefill, decode, a second chunk, then back to position 5 and on.
fn one_sequence(b: &mut Bench, shape: Shape) -> Result<(), Stop> {
    let o = shape.operands(b)?;
    for (position, rows) in [(0, 7), (7, 1), (8, 1), (9, 40), (5, 3), (8, 1), (0, 2)] {
        shape.step(b, &o, &Batch::of(0, position, &vec![0; rows]))?;
    }
    Ok(())
}

fn two_sequences(b: &mut Bench, shape: Shape) -> Result<(), Stop> {
    let o = shape.operands(b)?;
    let part = |slot, rows, position| SequenceRows { slot, rows, position };
    for sequences in [
        vec![part(1, 0..6, 0), part(0, 6..9, 0)],
        vec![part(0, 0..1, 3), part(1, 1..2, 6)],
        vec![part(0, 0..33, 4), part(1, 33..34, 7)],
    ] {
        let rows = sequences.last().map_or(0, |s| s.rows.end);
        shape.step(b, &o, &Batch { tokens: vec![0; rows], sequences, ..Batch::default() })?;
    }
    Ok(())
}

/// A prompt in three chunks, tokens one by one across the end of a page and of a span, another sequence beside them, a
/// step back within what windows keep, and a new beginning.
fn many_pages(b: &mut Bench, shape: Shape) -> Result<(), Stop> {
    let o = shape.operands(b)?;
    for (position, rows) in [(0, 700), (700, 305), (1005, 18), (1023, 1), (1024, 1), (1025, 1)] {
        shape.step(b, &o, &Batch::of(0, position, &vec![0; rows]))?;
    }
    let part = |slot, rows, position| SequenceRows { slot, rows, position };
    let mixed = vec![part(0, 0..1, 1026), part(1, 1..90, 0)];
    shape.step(b, &o, &Batch { tokens: vec![0; 90], sequences: mixed, ..Batch::default() })?;
    shape.step(b, &o, &Batch::of(0, 900, &[0; 2]))?;
    b.truncate(0, 850);
    shape.step(b, &o, &Batch::of(0, 850, &[0]))?;
    b.truncate(0, 0);
    shape.step(b, &o, &Batch::of(0, 0, &[0; 70]))?;
    shape.step(b, &o, &Batch::of(1, 89, &[0; 5]))
}

fn limits(b: &mut Bench, shape: Shape) -> Result<(), Stop> {
    let o = shape.operands(b)?;
    shape.step(b, &o, &Batch::of(0, 0, &[0; 4]))?;
    let op = |s: usize| shape.op(&o, s);
    shape.fill(b, &o, CAPACITY - 3)?;
    b.refuses(&Batch::of(0, 4, &[0; CAPACITY - 3]), "more positions than the cache has", op)?;
    shape.fill(b, &o, 1)?;
    b.refuses(&Batch::of(0, 5, &[0]), "a gap between positions", op)?;
    b.refuses(&Batch::of(2, 0, &[0]), "a slot that does not exist", op)
}
