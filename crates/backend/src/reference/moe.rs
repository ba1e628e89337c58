//! `out += Σ over chosen experts of weight · down(activation(gate(x)) · up(x))`.
//!
//! Router logits are f32 (inputs never rounded); p = softmax over all experts; the top_k greatest logits are chosen,
//! equal ones by the lower index; with `normalize` their p are divided by the sum of the chosen.

use super::gated_linear::{check_pair, hidden};
use super::linear::{dot, matvec};
use super::{Matrix, Reference};
use crate::{
    ActivationMode, BackendError, BufferId, ExpertWeights, INT8_GROUP, MatmulInput, Observer, Routed, WeightId,
};
use ashlar_arch::{Activation, Routing};

const OP: &str = "moe";

pub fn run(
    r: &mut Reference,
    [x, out]: [BufferId; 2],
    router: WeightId,
    routing: Routing,
    experts: &[ExpertWeights],
    activation: Activation,
    mut observer: Option<&mut dyn Observer>,
) -> Result<(), BackendError> {
    let input = r.buffer(x, OP)?;
    let width = input.width();
    let router = r.weight(router, OP)?;
    check(r, router, routing, experts, width)?;
    let mut y = Vec::with_capacity(input.values.len());
    let mut slack = Vec::with_capacity(input.rows());
    for row in 0..input.rows() {
        let x = input.row(row);
        let logits: Vec<f32> = (0..router.n).map(|e| dot(x, router.row(e)) as f32).collect();
        let mut sum = vec![0.0f64; width];
        let mut row_slack = 0.0;
        let routes = route(&logits, routing);
        if let Some(observer) = &mut observer {
            observe_routes(*observer, router, &routes, x);
        }
        for (e, weight) in routes {
            let Some(expert) = experts.get(e) else { continue };
            let (gate, up, down) = (r.weight(expert.gate, OP)?, r.weight(expert.up, OP)?, r.weight(expert.down, OP)?);
            let h = hidden(x, gate, up, activation);
            if let Some(observer) = &mut observer {
                observer.matmul_input(&MatmulInput::whole(&[&gate.name, &up.name], x, width));
                let gates = Some(&[weight as f32] as &[f32]);
                observer.matmul_input(&MatmulInput { gates, ..MatmulInput::whole(&[&down.name], &h, down.k) });
            }
            for (s, v) in sum.iter_mut().zip(matvec(&h, down)) {
                *s += weight * f64::from(v);
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
    if routing.top_k == 0 || routing.top_k > experts.len() {
        return bad(format!("top_k {} of {} experts", routing.top_k, experts.len()));
    }
    for e in experts {
        let (gate, up, down) = (r.weight(e.gate, OP)?, r.weight(e.up, OP)?, r.weight(e.down, OP)?);
        check_pair(gate, up, OP)?;
        if gate.k != width || (down.n, down.k) != (width, gate.n) {
            let what = format!("`{}` is {} × {}, expected {width} × {}", down.name, down.n, down.k, gate.n);
            return bad(what);
        }
    }
    Ok(())
}

/// The chosen experts and their weights, best first.
pub fn route(logits: &[f32], routing: Routing) -> Vec<(usize, f64)> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let p: Vec<f64> = logits.iter().map(|l| (f64::from(*l) - f64::from(max)).exp()).collect();
    let total: f64 = p.iter().sum();
    let mut order: Vec<usize> = (0..logits.len()).collect();
    // A stable sort keeps the lower index first among equals.
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
    order.truncate(routing.top_k);
    let chosen: f64 = order.iter().map(|&e| p[e]).sum();
    let divisor = if routing.normalize { chosen } else { total };
    order.into_iter().map(|e| (e, p[e] / divisor)).collect()
}

/// By how much an output of `down` may change because some of `h` lie within 1e-5 of the group's maximum from a
/// rounding tie, where kernels with f32 sums may legitimately choose the other code.
fn near_ties(h: &[f32], down: &Matrix) -> f64 {
    if down.mode != ActivationMode::Int8 {
        return 0.0;
    }
    let mut bound = 0.0;
    for (g, group) in h.chunks(INT8_GROUP).enumerate() {
        let max = group.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        for (i, v) in group.iter().enumerate() {
            let code = f64::from(*v) * 127.0 / f64::from(max);
            if max > 0.0 && ((code - code.floor()) - 0.5).abs() < 127.0 * 1e-5 {
                let column = g * INT8_GROUP + i;
                let largest = (0..down.n).map(|n| down.row(n)[column].abs()).fold(0.0f32, f32::max);
                bound += f64::from(max) / 127.0 * f64::from(largest);
            }
        }
    }
    bound
}
