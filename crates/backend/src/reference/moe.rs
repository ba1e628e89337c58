//! `out += Σ over chosen experts of weight · down(activation(gate(x), up(x)))`.
//!
//! Router logits are f32 (inputs never rounded); who is chosen and how it counts is [`route`]'s.

use super::gated_linear::{check_pair, hidden};
use super::linear::{dot, matvec};
use super::{Matrix, Reference};
use crate::{
    ActivationMode, BackendError, Batch, BufferId, ExpertWeights, Experts, INT8_GROUP, MatmulInput, MoeOptions,
    Observer, Pair, Routed, WeightId, check_routing, int8_scale, round_bf16, route, weights_of,
};
use ashlar_arch::{Activation, Routing};

const OP: &str = "moe";

/// The router and what it decides by.
pub struct Router {
    pub weight: WeightId,
    pub routing: Routing,
    pub options: MoeOptions,
}

pub fn run(
    r: &mut Reference,
    [x, out]: [BufferId; 2],
    router: &Router,
    experts: &[ExpertWeights],
    activation: Activation,
    batch: &Batch,
    mut observer: Option<&mut dyn Observer>,
) -> Result<(), BackendError> {
    let input = r.buffer(x, OP)?;
    let width = input.width();
    let (weight, routing) = (r.weight(router.weight, OP)?, router.routing);
    check(r, weight, routing, experts, width)?;
    let decider = Decider::new(r, router, experts.len())?;
    let mut y = Vec::with_capacity(input.values.len());
    let mut slack = Vec::with_capacity(input.rows());
    for row in 0..input.rows() {
        let x = input.row(row);
        let mut sum = vec![0.0f64; width];
        let mut row_slack = 0.0;
        let routes = decider.routes(x, row, batch)?;
        if let Some(observer) = &mut observer {
            observe_routes(*observer, weight, &routes, x);
        }
        for (e, weight) in routes {
            let Some(expert) = experts.get(e) else { continue };
            let (gate, up, down) = (r.weight(expert.gate, OP)?, r.weight(expert.up, OP)?, r.weight(expert.down, OP)?);
            let biases = biases(r, expert)?;
            let h = hidden(x, [gate, up], biases.map(|[g, u, _]| [g, u]), activation);
            if let Some(observer) = &mut observer {
                observer.matmul_input(&MatmulInput::whole(&[&gate.name, &up.name], x, width));
                let gates = Some(&[weight as f32] as &[f32]);
                observer.matmul_input(&MatmulInput { gates, ..MatmulInput::whole(&[&down.name], &h, down.k) });
            }
            let bias = |i: usize| biases.and_then(|[.., down]| down.get(i)).map_or(0.0, |b| f64::from(*b));
            for (i, (s, v)) in sum.iter_mut().zip(matvec(&h, down)).enumerate() {
                *s += weight * (f64::from(v) + bias(i));
            }
            row_slack += weight * near_ties(&h, down);
        }
        y.extend(sum.iter().map(|s| *s as f32));
        slack.push(row_slack);
    }
    r.add(out, width, y, OP)?;
    r.slack = slack;
    Ok(())
}

/// Where rows go: every row's experts and weights, best first.
pub fn routes(
    r: &Reference,
    x: BufferId,
    router: &Router,
    experts: &[ExpertWeights],
    batch: &Batch,
) -> Result<Vec<(usize, f32)>, BackendError> {
    let input = r.buffer(x, OP)?;
    let weight = r.weight(router.weight, OP)?;
    if (weight.n, weight.k) != (experts.len(), input.width()) {
        let what =
            format!("`{}` is {} × {}, expected {} × {}", weight.name, weight.n, weight.k, experts.len(), input.width());
        return Err(BackendError::Operand { op: OP, what });
    }
    check_routing(&router.routing, experts.len(), OP)?;
    let decider = Decider::new(r, router, experts.len())?;
    let mut all = Vec::new();
    for row in 0..input.rows() {
        all.extend(decider.routes(input.row(row), row, batch)?.into_iter().map(|(e, weight)| (e, weight as f32)));
    }
    Ok(all)
}

/// What the experts of pairs make of their rows, with the bias, unweighted.
pub fn products(r: &Reference, x: BufferId, experts: Experts<'_>, pairs: &[Pair]) -> Result<Vec<f32>, BackendError> {
    let input = r.buffer(x, OP)?;
    let mut all = Vec::with_capacity(pairs.len() * input.width());
    for &(row, expert) in pairs {
        let there = experts.list.get(expert).filter(|_| row < input.rows());
        let what = || format!("there is no row {row} of {} or no expert {expert}", input.rows());
        let expert = there.ok_or_else(|| BackendError::Operand { op: OP, what: what() })?;
        let (gate, up, down) = (r.weight(expert.gate, OP)?, r.weight(expert.up, OP)?, r.weight(expert.down, OP)?);
        check_pair(gate, up, OP)?;
        if gate.k != input.width() || down.k != gate.n {
            let what = format!("`{}` has {} inputs, expected {}", gate.name, gate.k, input.width());
            return Err(BackendError::Operand { op: OP, what });
        }
        let biases = biases(r, expert)?;
        let h = hidden(input.row(row), [gate, up], biases.map(|[g, u, _]| [g, u]), experts.activation);
        let bias = |i: usize| biases.and_then(|[.., down]| down.get(i)).map_or(0.0, |b| f64::from(*b));
        all.extend(matvec(&h, down).into_iter().enumerate().map(|(i, v)| (f64::from(v) + bias(i)) as f32));
    }
    Ok(all)
}

/// Decides for one row after the other.
struct Decider<'r> {
    weight: &'r Matrix,
    routing: Routing,
    router_bias: Option<&'r [f32]>,
    choice_bias: Option<&'r [f32]>,
    table: Option<&'r Matrix>,
}

impl<'r> Decider<'r> {
    fn new(r: &'r Reference, router: &Router, experts: usize) -> Result<Self, BackendError> {
        let vector = |id: Option<WeightId>| id.map(|id| r.vector(id, experts, OP)).transpose();
        Ok(Self {
            weight: r.weight(router.weight, OP)?,
            routing: router.routing,
            router_bias: vector(router.options.router_bias)?,
            choice_bias: vector(router.options.choice_bias)?,
            table: router.options.table.map(|id| r.weight(id, OP)).transpose()?,
        })
    }

    fn routes(&self, x: &[f32], row: usize, batch: &Batch) -> Result<Vec<(usize, f64)>, BackendError> {
        let weight = self.weight;
        let bias = |e: usize| self.router_bias.and_then(|b| b.get(e)).map_or(0.0, |b| f64::from(*b));
        let logits: Vec<f32> = (0..weight.n).map(|e| (dot(x, weight.row(e)) + bias(e)) as f32).collect();
        let Some(table) = self.table else { return Ok(route(&logits, self.choice_bias, &self.routing)) };
        Ok(weights_of(&logits, table_row(table, batch, row, [weight.n, self.routing.top_k])?, &self.routing))
    }
}

/// The experts that the table names for a row's token.
fn table_row(
    table: &Matrix,
    batch: &Batch,
    row: usize,
    [experts, top_k]: [usize; 2],
) -> Result<Vec<usize>, BackendError> {
    let id = batch.ids().get(row).map(|id| *id as usize);
    let found = id.filter(|id| *id < table.n).map(|id| table.row(id).iter().map(|e| *e as usize).collect::<Vec<_>>());
    let found = found.filter(|names| names.iter().all(|e| *e < experts) && names.len() == top_k);
    let what = || format!("`{}` names no {top_k} of {experts} experts for token {id:?} of row {row}", table.name);
    found.ok_or_else(|| BackendError::Operand { op: OP, what: what() })
}

/// Of gate, up and down.
fn biases<'r>(r: &'r Reference, expert: &ExpertWeights) -> Result<Option<[&'r [f32]; 3]>, BackendError> {
    let Some([gate, up, down]) = expert.biases else { return Ok(None) };
    let of = |bias, weight| r.vector(bias, r.weight(weight, OP)?.n, OP);
    Ok(Some([of(gate, expert.gate)?, of(up, expert.up)?, of(down, expert.down)?]))
}

fn observe_routes(observer: &mut dyn Observer, router: &Matrix, routes: &[(usize, f64)], x: &[f32]) {
    observer.matmul_input(&MatmulInput::whole(&[&router.name], x, router.k));
    let chosen: Vec<(usize, f32)> = routes.iter().map(|(e, w)| (*e, *w as f32)).collect();
    let (router, experts) = (router.name.as_str(), router.n);
    observer.routed(&Routed { router, experts, top_k: chosen.len(), chosen: &chosen });
}

fn check(
    r: &Reference,
    router: &Matrix,
    routing: Routing,
    experts: &[ExpertWeights],
    width: usize,
) -> Result<(), BackendError> {
    let bad = |what: String| Err(BackendError::Operand { op: OP, what });
    if router.k != width || router.n != experts.len() {
        let what = format!("`{}` is {} × {}, expected {} × {width}", router.name, router.n, router.k, experts.len());
        return bad(what);
    }
    check_routing(&routing, experts.len(), OP)?;
    for e in experts {
        let (gate, up, down) = (r.weight(e.gate, OP)?, r.weight(e.up, OP)?, r.weight(e.down, OP)?);
        biases(r, e)?;
        check_pair(gate, up, OP)?;
        if gate.k != width || (down.n, down.k) != (width, gate.n) {
            let what = format!("`{}` is {} × {}, expected {width} × {}", down.name, down.n, down.k, gate.n);
            return bad(what);
        }
    }
    Ok(())
}

/// By how much an output of `down` may change because some of `h` lie so near a rounding tie, within 1e-5 of what they are
/// rounded beside, that kernels with f32 sums may legitimately choose the other code.
fn near_ties(h: &[f32], down: &Matrix) -> f64 {
    let largest = |column: usize| (0..down.n).map(|n| down.row(n)[column].abs()).fold(0.0f32, f32::max);
    match down.mode {
        ActivationMode::F32 => 0.0,
        ActivationMode::Int8 => int8_ties(h, largest),
        ActivationMode::Bf16 => {
            let near = |v: f32| [1.0 - 1e-5, 1.0 + 1e-5].map(|factor| round_bf16(v * factor));
            let change = |(i, v): (usize, &f32)| {
                let [low, high] = near(*v);
                f64::from((high - low).abs()) * f64::from(largest(i))
            };
            h.iter().enumerate().map(change).sum()
        }
    }
}

/// The same of int8, where the group's maximum may also lie so near the border between two scales.
fn int8_ties(h: &[f32], largest: impl Fn(usize) -> f32) -> f64 {
    let mut bound = 0.0;
    for (g, group) in h.chunks(INT8_GROUP).enumerate() {
        let max = group.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        let (scale, above) = (int8_scale(max), int8_scale(max * (1.0 + 1e-5)));
        let border = int8_scale(max * (1.0 - 1e-5)) != above;
        for (i, v) in group.iter().enumerate() {
            let code = f64::from(*v) / f64::from(scale);
            if scale > 0.0 && (border || ((code - code.floor()) - 0.5).abs() < 127.0 * 1e-5) {
                bound += f64::from(above) * f64::from(largest(g * INT8_GROUP + i));
            }
        }
    }
    bound
}
