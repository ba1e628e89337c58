//! Mixtures of experts in every format: routing, weighting, grouping of rows by expert.

use super::bench::Bench;
use super::weights::{Stored, all};
use super::{Stop, Suite};
use crate::{Batch, ExpertWeights, Op};
use ashlar_arch::{Activation, Routing};
use std::sync::Arc;

struct Shape {
    hidden: usize,
    intermediate: usize,
    experts: usize,
    routing: Routing,
}

pub fn cases(suite: &mut Suite<'_>) {
    for stored in all() {
        for (i, m) in [1, 2, 9, 40].into_iter().enumerate() {
            let (hidden, intermediate) = [(256, 128), (128, 256), (64, 96), (32, 64)][i];
            let routing = Routing { top_k: [1, 3, 2, 4][i], normalize: i % 2 == 0 };
            let shape = Shape { hidden, intermediate, experts: [4, 6, 16, 5][i], routing };
            if !stored.fits(intermediate, hidden) || !stored.fits(hidden, intermediate) {
                continue;
            }
            let name = format!("moe {} m={m} hidden={hidden} intermediate={intermediate}", stored.name());
            suite.case(format!("{name} {}/{}", routing.top_k, shape.experts), |b| one(b, &stored, &shape, m));
        }
    }
    suite.case("moe equal logits go to the lower index".into(), ties);
}

fn one(b: &mut Bench, stored: &Stored, shape: &Shape, m: usize) -> Result<(), Stop> {
    let router_format = if m.is_multiple_of(2) { "f32" } else { "bf16" };
    let router_format = Stored::plain(router_format).ok_or_else(|| Stop::Fail("no float format".into()))?;
    let router = b.weight(&router_format, shape.experts, shape.hidden)?;
    let mut experts = [Vec::new(), Vec::new()];
    for _ in 0..shape.experts {
        let gate = b.weight(stored, shape.intermediate, shape.hidden)?;
        let up = b.weight(stored, shape.intermediate, shape.hidden)?;
        let down = b.weight(stored, shape.hidden, shape.intermediate)?;
        for (s, side) in experts.iter_mut().enumerate() {
            side.push(ExpertWeights { gate: gate[s], up: up[s], down: down[s] });
        }
    }
    let experts: [Arc<[ExpertWeights]>; 2] = experts.map(Into::into);
    let (x, out) = (b.input(m, shape.hidden)?, b.input(m, shape.hidden)?);
    b.run(&Batch::of(0, 0, &vec![0; m]), |s| Op::Moe {
        x: x[s],
        router: router[s],
        routing: shape.routing,
        experts: Arc::clone(&experts[s]),
        activation: Activation::Silu,
        out: out[s],
    })?;
    b.compare(out, shape.hidden)
}

/// A router of equal rows: every logit ties.
fn ties(b: &mut Bench) -> Result<(), Stop> {
    let f32 = Stored::plain("f32").ok_or_else(|| Stop::Fail("no f32".into()))?;
    let (hidden, intermediate, count) = (32, 32, 5);
    let row = b.random.normals(hidden);
    let router = super::weights::floats(count, hidden, &row.repeat(count), "router");
    let router = b.load(router.ok_or_else(|| Stop::Fail("out of memory".into()))?)?;
    let mut experts = [Vec::new(), Vec::new()];
    for _ in 0..count {
        let (gate, up) = (b.weight(&f32, intermediate, hidden)?, b.weight(&f32, intermediate, hidden)?);
        let down = b.weight(&f32, hidden, intermediate)?;
        for (s, side) in experts.iter_mut().enumerate() {
            side.push(ExpertWeights { gate: gate[s], up: up[s], down: down[s] });
        }
    }
    let experts: [Arc<[ExpertWeights]>; 2] = experts.map(Into::into);
    let (x, out) = (b.input(3, hidden)?, b.input(3, hidden)?);
    b.run(&Batch::of(0, 0, &[0; 3]), |s| Op::Moe {
        x: x[s],
        router: router[s],
        routing: Routing { top_k: 2, normalize: true },
        experts: Arc::clone(&experts[s]),
        activation: Activation::Silu,
        out: out[s],
    })?;
    b.compare(out, hidden)
}
