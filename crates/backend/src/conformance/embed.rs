//! Rows of an embedding in every format.

use super::Suite;
use super::weights::all;
use crate::{Batch, Op};

pub fn cases(suite: &mut Suite<'_>) {
    for stored in all() {
        let (n, k) = (37, 256);
        suite.case(format!("embed {} n={n} k={k}", stored.name()), |b| {
            let table = b.weight(&stored, n, k)?;
            let out = b.buffer(9, k)?;
            let op = |s: usize| Op::Embed { table: table[s], out: out[s] };
            for tokens in [&[36u32, 0, 16, 15, 16, 35, 1][..], &[3], &[]] {
                b.run(&Batch::of(0, 0, tokens), op)?;
                b.compare(out, k)?;
            }
            b.refuses(&Batch::of(0, 0, &[1, 37]), "a token beyond the table", op)?;
            b.refuses(&Batch::of(0, 0, &[0; 10]), "a batch of more rows than the buffer has", op)
        });
    }
}
