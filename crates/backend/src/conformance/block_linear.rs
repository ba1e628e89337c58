//! Blocks of weights in every format, plain and transposed.

use super::bench::Bench;
use super::weights::{Stored, all};
use super::{Stop, Suite};
use crate::{Batch, Blocks, Op};

pub fn cases(suite: &mut Suite<'_>) {
    for stored in all() {
        let k = if stored.fits(144, 96) { 96 } else { 256 };
        // Blocks anywhere, and such as begin on a multiple of 16.
        let anywhere = Blocks { count: 3, stride: 48, first: 17, rows: 31 };
        let aligned = Blocks { first: 16, rows: 29, ..anywhere };
        for (m, blocks) in [(1, anywhere), (9, aligned), (1, aligned)] {
            let name = format!("{} m={m} k={k} from {}", stored.name(), blocks.first);
            suite.case(format!("block_linear {name}"), |b| plain(b, &stored, m, k, blocks));
            let blocks = Blocks { first: blocks.first % 16, rows: 17, ..blocks };
            suite.case(format!("block_linear_transposed {name}"), |b| turned(b, &stored, m, k, blocks));
        }
    }
}

fn plain(b: &mut Bench, stored: &Stored, m: usize, k: usize, blocks: Blocks) -> Result<(), Stop> {
    let width = blocks.count * blocks.rows;
    let (x, weight, out) = (b.input(m, blocks.count * k)?, b.weight(stored, 144, k)?, b.buffer(m, width)?);
    let batch = Batch::of(0, 0, &vec![0; m]);
    b.run(&batch, |s| Op::BlockLinear { x: x[s], weight: weight[s], blocks, out: out[s] })?;
    b.compare(out, width)?;
    b.refuses(&batch, "blocks beyond the weight", |s| {
        let blocks = Blocks { first: 49 - blocks.rows, ..blocks };
        Op::BlockLinear { x: x[s], weight: weight[s], blocks, out: out[s] }
    })
}

fn turned(b: &mut Bench, stored: &Stored, m: usize, k: usize, blocks: Blocks) -> Result<(), Stop> {
    let (behind, batch) = (7, Batch::of(0, 0, &vec![0; m]));
    let (x, meets) = (b.input(m, 3 * (blocks.rows + behind))?, b.input(m, k + 5)?);
    let (weight, out) = (b.weight(stored, 144, k)?, b.buffer(m, 3 * (k + behind))?);
    let (w, o) = (weight, out);
    b.run(&batch, |s| Op::BlockLinearTransposed { x: x[s], weight: w[s], blocks, meets: meets[s], out: o[s] })?;
    b.compare(out, 3 * (k + behind))
}
