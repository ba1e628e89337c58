//! The first half of a gated MLP, in every format.

use super::Suite;
use super::weights::all;
use crate::{Batch, Op};
use ashlar_arch::Activation;

pub fn cases(suite: &mut Suite<'_>) {
    for stored in all() {
        for ((n, k), m) in stored.shapes([(40, 96), (130, 256), (16, 128)]).into_iter().zip([1, 3, 8]) {
            suite.case(format!("gated_linear {} m={m} n={n} k={k}", stored.name()), |b| {
                let (x, out) = (b.input(m, k)?, b.buffer(m, n)?);
                let (gate, up) = (b.weight(&stored, n, k)?, b.weight(&stored, n, k)?);
                let activation = Activation::Silu;
                b.run(&Batch::of(0, 0, &vec![0; m]), |s| Op::GatedLinear {
                    x: x[s],
                    gate: gate[s],
                    up: up[s],
                    activation,
                    out: out[s],
                })?;
                b.compare(out, n)
            });
        }
    }
}
