//! Rows weighted by a sigmoid of their input.

use super::weights::Stored;
use super::{Stop, Suite};
use crate::{Batch, Op};

pub fn cases(suite: &mut Suite<'_>) {
    for (m, k, n) in [(1, 64, 40), (7, 96, 128)] {
        suite.case(format!("sigmoid_gate m={m} k={k} n={n}"), |b| {
            let bf16 = Stored::plain("bf16").ok_or_else(|| Stop::Fail("no bf16".into()))?;
            let (x, y, weight) = (b.input(m, k)?, b.input(m, n)?, b.weight(&bf16, 1, k)?);
            let batch = Batch::of(0, 0, &vec![0; m]);
            b.run(&batch, |s| Op::SigmoidGate { x: x[s], weight: weight[s], y: y[s] })?;
            b.compare(y, n)?;
            b.refuses(&batch, "an output that is the input", |s| Op::SigmoidGate {
                x: x[s],
                weight: weight[s],
                y: x[s],
            })
        });
    }
}
