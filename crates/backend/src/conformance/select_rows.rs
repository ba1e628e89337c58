//! Picking output rows, and ops on fewer rows than the batch has.

use super::weights::Stored;
use super::{Stop, Suite};
use crate::{Batch, Op, Projection};

pub fn cases(suite: &mut Suite<'_>) {
    for outputs in [vec![4], vec![0, 2, 4], vec![], vec![1, 1]] {
        suite.case(format!("select_rows {outputs:?} of 5, then linear"), |b| {
            let f32 = Stored::plain("f32").ok_or_else(|| Stop::Fail("no f32".into()))?;
            let (x, selected, logits) = (b.input(5, 64)?, b.buffer(5, 64)?, b.buffer(5, 24)?);
            let weight = b.weight(&f32, 24, 64)?;
            let batch = Batch { outputs: outputs.clone(), ..Batch::of(0, 0, &[0; 5]) };
            b.run(&batch, |s| Op::SelectRows { x: x[s], out: selected[s] })?;
            b.compare(selected, 64)?;
            b.run(&batch, |s| {
                let parts = vec![Projection { weight: weight[s], bias: None, out: logits[s] }];
                Op::Linear { x: selected[s], parts, accumulate: false }
            })?;
            b.compare(logits, 24)
        });
    }
}
