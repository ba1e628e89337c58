//! Blocks of weights in every format, plain and transposed.

use super::bench::Bench;
use super::weights::{Stored, all};
use super::{Stop, Suite};
use crate::{Batch, Blocks, Op};

pub fn cases(suite: &mut Suite<'_>) {
    for stored in all() {
        let k = if stored.fits(144, 96) { 96 } else { 256 };
        for m in [1, 9] {
            suite.case(format!("block_linear {} m={m} k={k}", stored.name()), |b| plain(b, &stored, m, k));
            suite.case(format!("block_linear_transposed {} m={m} k={k}", stored.name()), |b| turned(b, &stored, m, k));
        }
    }
}

fn plain(b: &mut Bench, stored: &Stored, m: usize, k: usize) -> Result<(), Stop> {
    let blocks = Blocks { count: 3, stride: 48, first: 17, rows: 31 };
    let (x, weight, out) = (b.input(m, blocks.count * k)?, b.weight(stored, 144, k)?, b.buffer(m, 93)?);
    let batch = Batch::of(0, 0, &vec![0; m]);
    b.run(&batch, |s| Op::BlockLinear { x: x[s], weight: weight[s], blocks, out: out[s] })?;
    b.compare(out, 93)?;
    b.refuses(&batch, "blocks beyond the weight", |s| {
        let blocks = Blocks { first: 18, ..blocks };
        Op::BlockLinear { x: x[s], weight: weight[s], blocks, out: out[s] }
    })
}

fn turned(b: &mut Bench, stored: &Stored, m: usize, k: usize) -> Result<(), Stop> {
    let blocks = Blocks { count: 3, stride: 48, first: 0, rows: 17 };
    let (behind, batch) = (7, Batch::of(0, 0, &vec![0; m]));
    let (x, meets) = (b.input(m, 3 * (blocks.rows + behind))?, b.input(m, k + 5)?);
    let (weight, out) = (b.weight(stored, 144, k)?, b.buffer(m, 3 * (k + behind))?);
    let (w, o) = (weight, out);
    b.run(&batch, |s| Op::BlockLinearTransposed { x: x[s], weight: w[s], blocks, meets: meets[s], out: o[s] })?;
    b.compare(out, 3 * (k + behind))
}
