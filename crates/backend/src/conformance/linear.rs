//! Matrix products in every format, with biases, shared inputs and residual sums.

use super::weights::{Stored, all};
use super::{Stop, Suite, bench::Bench};
use crate::{Batch, Op, Projection};

/// Ragged n (padded to 16 in x16 order), k from one group to several, tall enough for 128-row blocks.
const SHAPES: [(usize, usize); 8] =
    [(5, 32), (16, 64), (17, 96), (40, 160), (33, 256), (130, 128), (144, 384), (72, 512)];

pub fn cases(suite: &mut Suite<'_>) {
    for stored in all() {
        let shapes = stored.shapes(SHAPES);
        for (i, m) in (1..=9).chain([40]).enumerate() {
            let Some(&(n, k)) = shapes.get(i % shapes.len().max(1)) else { continue };
            suite.case(format!("linear {} m={m} n={n} k={k}", stored.name()), |b| {
                one(b, &stored, m, n, k, m.is_multiple_of(2))
            });
        }
        for &(n, k) in &shapes {
            suite.case(format!("linear {} m=1 n={n} k={k} shape", stored.name()), |b| one(b, &stored, 1, n, k, false));
        }
    }
    mixed(suite);
}

fn one(b: &mut Bench, stored: &Stored, m: usize, n: usize, k: usize, bias: bool) -> Result<(), Stop> {
    let (x, weight, out) = (b.input(m, k)?, b.weight(stored, n, k)?, b.buffer(m, n)?);
    let bias = if bias { Some(b.vector(n, 0.0)?) } else { None };
    let batch = Batch::of(0, 0, &vec![0; m]);
    let op = |accumulate: bool| {
        move |s: usize| {
            let parts = vec![Projection { weight: weight[s], bias: bias.map(|b| b[s]), out: out[s] }];
            Op::Linear { x: x[s], parts, accumulate }
        }
    };
    b.run(&batch, op(false))?;
    b.compare(out, n)?;
    b.refill(out, m, n)?;
    b.run(&batch, op(true))?;
    b.compare(out, n)
}

/// Parts of different formats and widths share one input.
fn mixed(suite: &mut Suite<'_>) {
    let every = all();
    for (i, first) in every.iter().enumerate() {
        let Some(second) = every.get((i + 3) % every.len()) else { continue };
        let (k, m) = (256, 1 + i % 5);
        suite.case(format!("linear {} beside {} m={m} k={k}", first.name(), second.name()), |b| {
            let x = b.input(m, k)?;
            let widths = [24, 130];
            let weights = [b.weight(first, widths[0], k)?, b.weight(second, widths[1], k)?];
            let outs = [b.buffer(m, widths[0])?, b.buffer(m, widths[1])?];
            b.run(&Batch::of(0, 0, &vec![0; m]), |s| {
                let part = |i: usize| Projection { weight: weights[i][s], bias: None, out: outs[i][s] };
                Op::Linear { x: x[s], parts: vec![part(0), part(1)], accumulate: false }
            })?;
            b.compare(outs[0], widths[0])?;
            b.compare(outs[1], widths[1])
        });
    }
    suite.case("linear refuses an input of another width".into(), |b| {
        let f32 = Stored::plain("f32").ok_or_else(|| Stop::Skip("no f32".into()))?;
        let (x, weight, out) = (b.input(2, 64)?, b.weight(&f32, 16, 32)?, b.buffer(2, 16)?);
        b.refuses(&Batch::of(0, 0, &[0; 2]), "64 inputs for a weight of 32", |s| {
            let parts = vec![Projection { weight: weight[s], bias: None, out: out[s] }];
            Op::Linear { x: x[s], parts, accumulate: false }
        })
    });
}
