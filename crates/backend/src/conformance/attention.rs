//! Attention over growing, shared and cut-back caches.

use super::bench::{Bench, Pair};
use super::{Stop, Suite};
use crate::{AttentionOptions, Batch, BufferId, CacheId, Op, SequenceRows, WeightId};

#[derive(Clone, Copy)]
struct Shape {
    num_heads: usize,
    num_kv_heads: usize,
    head_dim: usize,
    window: Option<usize>,
    sinks: bool,
    values_in_keys: Option<usize>,
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

pub fn cases(suite: &mut Suite<'_>) {
    let shapes = [(4, 4, 32, None), (8, 2, 16, None), (6, 2, 64, Some(5)), (4, 1, 128, Some(1)), (2, 2, 24, Some(200))];
    for (num_heads, num_kv_heads, head_dim, window) in shapes {
        of(suite, Shape { num_heads, num_kv_heads, head_dim, window, sinks: false, values_in_keys: None });
    }
}

/// With what only some models have.
pub fn options(suite: &mut Suite<'_>) {
    for (num_heads, num_kv_heads, head_dim, window) in [(8, 2, 32, None), (4, 4, 24, Some(6))] {
        of(suite, Shape { num_heads, num_kv_heads, head_dim, window, sinks: true, values_in_keys: None });
    }
    for (num_heads, num_kv_heads, head_dim, values) in [(4, 1, 144, 128), (6, 2, 40, 40), (20, 1, 24, 7)] {
        let values_in_keys = Some(values);
        of(suite, Shape { num_heads, num_kv_heads, head_dim, window: None, sinks: values == 40, values_in_keys });
    }
}

fn of(suite: &mut Suite<'_>, shape: Shape) {
    let Shape { num_heads, num_kv_heads, head_dim, window, sinks, values_in_keys } = shape;
    let mut with = if sinks { " sinks".to_owned() } else { String::new() };
    if let Some(values) = values_in_keys {
        with += &format!(" values_in_keys={values}");
    }
    let name = format!("attention heads={num_heads}/{num_kv_heads} head_dim={head_dim} window={window:?}{with}");
    suite.case(format!("{name} one sequence"), |b| one_sequence(b, shape));
    suite.case(format!("{name} two sequences"), |b| two_sequences(b, shape));
    suite.case(format!("{name} limits"), |b| limits(b, shape));
}

impl Shape {
    fn out(self) -> usize {
        self.num_heads * self.values_in_keys.unwrap_or(self.head_dim)
    }

    fn operands(self, b: &mut Bench) -> Result<Operands, Stop> {
        let (q, kv) = (self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim);
        let rows = CAPACITY + 10;
        Ok(Operands {
            q: b.buffer(rows, q)?,
            k: b.buffer(rows, kv)?,
            v: b.buffer(rows, kv)?,
            out: b.buffer(rows, self.out())?,
            cache: b.cache(2, CAPACITY, kv)?,
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
