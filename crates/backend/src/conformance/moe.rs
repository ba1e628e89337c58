//! Mixtures of experts in every format: routing, weighting, grouping of rows by expert.

use super::bench::Bench;
use super::weights::{Stored, all};
use super::{Stop, Suite};
use crate::{Batch, ExpertWeights, MoeOptions, Op, WeightId};
use ashlar_arch::{Activation, Groups, Routing, Scores};
use ashlar_tensor::Order;
use std::sync::Arc;

struct Shape {
    hidden: usize,
    intermediate: usize,
    experts: usize,
    routing: Routing,
    activation: Activation,
    /// Biases of experts, of router logits, of ranks.
    biases: [bool; 3],
}

pub fn cases(suite: &mut Suite<'_>) {
    for stored in all() {
        for (i, m) in [1, 2, 9, 40].into_iter().enumerate() {
            let (hidden, intermediate) = [(256, 128), (128, 256), (64, 96), (32, 64)][i];
            let routing = Routing { top_k: [1, 3, 2, 4][i], normalize: i % 2 == 0, ..Routing::default() };
            let (experts, activation, biases) = ([4, 6, 16, 5][i], Activation::Silu, [false; 3]);
            let shape = Shape { hidden, intermediate, experts, routing, activation, biases };
            if !stored.fits(intermediate, hidden) || !stored.fits(hidden, intermediate) {
                continue;
            }
            let name = format!("moe {} m={m} hidden={hidden} intermediate={intermediate}", stored.name());
            suite.case(format!("{name} {}/{}", routing.top_k, shape.experts), |b| one(b, &stored, &shape, m));
        }
    }
    suite.case("moe equal logits go to the lower index".into(), ties);
}

/// With what only some models have: biases, groups, other scores and activations.
pub fn options(suite: &mut Suite<'_>) {
    let groups = |ranked_by| Some(Groups { count: 4, kept: 2, ranked_by });
    let with = |scores, scale, groups| Routing { top_k: 3, normalize: scale > 1.0, scores, scale, groups };
    let swish = Activation::ClampedSwish { limit: 0.7, alpha: 1.702 };
    let kinds = [
        ("biases", with(Scores::Softmax, 2.0, None), swish, [true, true, false]),
        ("softmax groups", with(Scores::Softmax, 1.0, groups(1)), Activation::Silu, [false; 3]),
        ("sigmoid groups", with(Scores::Sigmoid, 2.5, groups(2)), Activation::Silu, [false, false, true]),
        (
            "softplus",
            with(Scores::SqrtSoftplus, 1.5, None),
            Activation::ClampedSilu { limit: 0.5 },
            [false, false, true],
        ),
    ];
    for id in ["bf16", "q8", "mxfp4"] {
        let Ok(spec) = id.parse() else { continue };
        let order = if id == "bf16" { Order::Rows } else { Order::X16 };
        let stored = Stored { spec, order };
        for (kind, routing, activation, biases) in kinds {
            for m in [1, 11] {
                let shape = Shape { hidden: 96, intermediate: 64, experts: 12, routing, activation, biases };
                suite.case(format!("moe {} m={m} {kind}", stored.name()), |b| one(b, &stored, &shape, m));
            }
        }
    }
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
        let widths = [shape.intermediate, shape.intermediate, shape.hidden];
        let biases = if shape.biases[0] { Some(widths.map(|n| b.vector(n, 0.1))) } else { None };
        let biases = match biases {
            Some([gate, up, down]) => Some([gate?, up?, down?]),
            None => None,
        };
        for (s, side) in experts.iter_mut().enumerate() {
            let biases = biases.map(|all| all.map(|pair: [WeightId; 2]| pair[s]));
            side.push(ExpertWeights { gate: gate[s], up: up[s], down: down[s], biases });
        }
    }
    let mut bias = |has: bool| if has { b.vector(shape.experts, 0.0).map(Some) } else { Ok(None) };
    let (router_bias, choice_bias) = (bias(shape.biases[1])?, bias(shape.biases[2])?);
    let experts: [Arc<[ExpertWeights]>; 2] = experts.map(Into::into);
    let (x, out) = (b.input(m, shape.hidden)?, b.input(m, shape.hidden)?);
    b.run(&Batch::of(0, 0, &vec![0; m]), |s| Op::Moe {
        x: x[s],
        router: router[s],
        routing: shape.routing,
        options: MoeOptions {
            router_bias: router_bias.map(|p| p[s]),
            choice_bias: choice_bias.map(|p| p[s]),
            table: None,
        },
        experts: Arc::clone(&experts[s]),
        activation: shape.activation,
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
            side.push(ExpertWeights { gate: gate[s], up: up[s], down: down[s], biases: None });
        }
    }
    let experts: [Arc<[ExpertWeights]>; 2] = experts.map(Into::into);
    let (x, out) = (b.input(3, hidden)?, b.input(3, hidden)?);
    b.run(&Batch::of(0, 0, &[0; 3]), |s| Op::Moe {
        x: x[s],
        router: router[s],
        routing: Routing { top_k: 2, normalize: true, ..Routing::default() },
        options: MoeOptions::default(),
        experts: Arc::clone(&experts[s]),
        activation: Activation::Silu,
        out: out[s],
    })?;
    b.compare(out, hidden)
}

/// Experts named by a table of token ids, which are not the rows of the table that the batch embeds.
pub fn tables(suite: &mut Suite<'_>) {
    suite.case("moe experts from a table".into(), |b| {
        let f32 = Stored::plain("f32").ok_or_else(|| Stop::Fail("no f32".into()))?;
        let (hidden, intermediate, count) = (32, 32, 5);
        let names: Vec<f32> = [0, 3, 4, 1, 2, 0, 1, 3].map(|e: u8| f32::from(e)).to_vec();
        let table = super::weights::floats(4, 2, &names, "table");
        let table = b.load(table.ok_or_else(|| Stop::Fail("out of memory".into()))?)?;
        let router = b.weight(&f32, count, hidden)?;
        let mut experts = [Vec::new(), Vec::new()];
        for _ in 0..count {
            let (gate, up) = (b.weight(&f32, intermediate, hidden)?, b.weight(&f32, intermediate, hidden)?);
            let down = b.weight(&f32, hidden, intermediate)?;
            for (s, side) in experts.iter_mut().enumerate() {
                side.push(ExpertWeights { gate: gate[s], up: up[s], down: down[s], biases: None });
            }
        }
        let experts: [Arc<[ExpertWeights]>; 2] = experts.map(Into::into);
        let (x, out) = (b.input(3, hidden)?, b.input(3, hidden)?);
        let op = |s: usize| Op::Moe {
            x: x[s],
            router: router[s],
            routing: Routing { top_k: 2, normalize: true, scores: Scores::SqrtSoftplus, scale: 1.5, groups: None },
            options: MoeOptions { table: Some(table[s]), ..MoeOptions::default() },
            experts: Arc::clone(&experts[s]),
            activation: Activation::Silu,
            out: out[s],
        };
        let batch = |ids: &[u32]| Batch { ids: ids.to_vec(), ..Batch::of(0, 0, &[0; 3]) };
        b.run(&batch(&[3, 0, 2]), op)?;
        b.compare(out, hidden)?;
        b.refuses(&batch(&[3, 4, 0]), "a token beyond the table", op)
    });
}
