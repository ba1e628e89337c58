//! RMS norms of ragged widths.

use super::Suite;
use crate::{Batch, Op};

pub fn cases(suite: &mut Suite<'_>) {
    for (rows, width, eps) in [(1, 32, 1e-5), (3, 96, 1e-6), (9, 520, 1e-5), (40, 17, 1e-6)] {
        suite.case(format!("rms_norm m={rows} n={width}"), |b| {
            let (x, weight) = (b.input(rows, width)?, b.vector(width, 1.0)?);
            let (out, short) = (b.buffer(rows, width)?, b.vector(width - 1, 1.0)?);
            let batch = Batch::of(0, 0, &vec![0; rows]);
            b.run(&batch, |s| Op::RmsNorm { x: x[s], weight: weight[s], eps, out: out[s] })?;
            b.compare(out, width)?;
            b.refuses(&batch, "a weight of another width", |s| Op::RmsNorm {
                x: x[s],
                weight: short[s],
                eps,
                out: out[s],
            })
        });
    }
}
