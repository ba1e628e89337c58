//! `out += Σ over the chosen experts of weight · down(activation(gate(x), up(x)))`.
//!
//! Tokens are grouped by expert, so that an expert's weights are read once per op. A (token, slot) is a *pair*; pairs lie
//! expert by expert. Who is chosen is decided here; `experts` computes.

use super::experts::Layer;
use super::linear::{observe, round_inputs};
use super::matmul::{FirstError, Output, Write, tasks, write_panels};
use crate::cpu::Cpu;
use crate::gemv::{Job, RowSet};
use crate::inputs::{Form, Inputs};
use crate::loaded::Loaded;
use ashlar_arch::{Activation, Routing};
use ashlar_backend::{
    BackendError, Batch, BufferId, ExpertWeights, Experts, MoeOptions, Observer, Pair, Routed, WeightId, check_routing,
    route, weights_of,
};
use std::collections::BTreeSet;

pub const OP: &str = "moe";

/// The router and what it decides by.
pub struct Router {
    /// `[num_experts, hidden]`
    pub weight: WeightId,
    /// How experts are chosen and weighted.
    pub routing: Routing,
    /// Biases.
    pub options: MoeOptions,
}

pub fn run(
    cpu: &mut Cpu,
    [x, out]: [BufferId; 2],
    router: &Router,
    experts: &[ExpertWeights],
    activation: Activation,
    batch: &Batch,
    mut observer: Option<&mut dyn Observer>,
) -> Result<(), BackendError> {
    let input = cpu.buffers.get(x, OP)?;
    let (hidden, rows) = (input.width, input.values.len() / input.width.max(1));
    let intermediate = check(cpu, router, experts, hidden)?;
    let Some(intermediate) = intermediate.filter(|_| rows > 0) else { return Ok(()) };
    let routes = Routes::new(routes(cpu, x, router, experts.len(), batch)?, experts.len(), router.routing.top_k);
    if let Some(observer) = &mut observer {
        observe(cpu, x, [router.weight].into_iter(), Some(*observer), OP)?;
        let (chosen, top_k) = (routes.chosen(), routes.top_k);
        let router = &cpu.weight(router.weight, OP)?.weight.name;
        observer.routed(&Routed { router, experts: experts.len(), top_k, chosen: &chosen });
    }
    let first_halves = routes.used.iter().flat_map(|&e| [experts[e].gate, experts[e].up]);
    round_inputs(cpu, x, first_halves, OP)?;
    let mut y = cpu.buffers.take(out, [rows, hidden], true, x, OP)?;
    let layer = Layer { cpu, experts, routes: &routes, places: &routes.tokens, activation, hidden, intermediate };
    let result = layer.run(x, &mut y, observer);
    cpu.buffers.put(out, y);
    result
}

/// Where rows go: rows × top_k, best first.
pub fn routes(
    cpu: &Cpu,
    x: BufferId,
    router: &Router,
    experts: usize,
    batch: &Batch,
) -> Result<Vec<(usize, f32)>, BackendError> {
    let input = cpu.buffers.get(x, OP)?;
    cpu.matrix(router.weight, Some(experts), input.width, OP)?;
    check_routing(&router.routing, experts, OP)?;
    let choice_bias = router.options.choice_bias.map(|id| cpu.vector(id, experts, OP)).transpose()?;
    let logits = logits(cpu, x, router, input.values.len() / input.width.max(1))?;
    if let Some(table) = router.options.table {
        return named(cpu, table, &logits, experts, &router.routing, batch);
    }
    let routed = |logits| route(logits, choice_bias, &router.routing);
    Ok(logits.chunks_exact(experts.max(1)).flat_map(routed).map(|(e, weight)| (e, weight as f32)).collect())
}

/// What experts make of rows, with their biases and unweighted, pair by pair.
pub fn products(cpu: &mut Cpu, x: BufferId, experts: Experts<'_>, pairs: &[Pair]) -> Result<Vec<f32>, BackendError> {
    let input = cpu.buffers.get(x, OP)?;
    let (hidden, rows) = (input.width, input.values.len() / input.width.max(1));
    if let Some((row, expert)) = pairs.iter().find(|(row, expert)| *row >= rows || *expert >= experts.list.len()) {
        let what = format!("row {row} of {rows} or expert {expert} of {} is not there", experts.list.len());
        return Err(BackendError::Operand { op: OP, what });
    }
    let used: BTreeSet<usize> = pairs.iter().map(|(_, expert)| *expert).collect();
    let used: Vec<ExpertWeights> = used.into_iter().map(|e| experts.list[e]).collect();
    let mut products = vec![0.0; pairs.len() * hidden];
    let Some(intermediate) = check_experts(cpu, &used, hidden)? else { return Ok(products) };
    let (routes, places) = Routes::of_pairs(pairs, experts.list.len());
    round_inputs(cpu, x, used.iter().flat_map(|e| [e.gate, e.up]), OP)?;
    let (list, activation) = (experts.list, experts.activation);
    let layer = Layer { cpu, experts: list, routes: &routes, places: &places, activation, hidden, intermediate };
    layer.run(x, &mut products, None)?;
    Ok(products)
}

/// Experts that will be used, ascending: those that a table names for the tokens, or those that the router chooses for rows that are
/// `like` its input.
pub fn likely(
    cpu: &Cpu,
    router: &Router,
    experts: usize,
    like: Option<BufferId>,
    batch: &Batch,
) -> Result<Vec<usize>, BackendError> {
    let mut likely: Vec<usize> = match (router.options.table, like) {
        (Some(table), _) => {
            let table = cpu.matrix(table, None, router.routing.top_k, OP)?;
            let rows = batch.ids().iter().map(|id| table_row(table, *id, experts));
            rows.collect::<Result<Vec<_>, _>>()?.concat()
        }
        (None, Some(x)) if cpu.described(router.weight, OP)?.weight.k == cpu.buffers.get(x, OP)?.width => {
            routes(cpu, x, router, experts, batch)?.into_iter().map(|(expert, _)| expert).collect()
        }
        (None, _) => Vec::new(),
    };
    likely.sort_unstable();
    likely.dedup();
    Ok(likely)
}

/// Checks every shape; the width between the halves, `None` if there is no expert.
fn check(cpu: &Cpu, router: &Router, experts: &[ExpertWeights], hidden: usize) -> Result<Option<usize>, BackendError> {
    cpu.matrix(router.weight, Some(experts.len()), hidden, OP)?;
    check_routing(&router.routing, experts.len(), OP)?;
    check_experts(cpu, experts, hidden)
}

fn check_experts(cpu: &Cpu, experts: &[ExpertWeights], hidden: usize) -> Result<Option<usize>, BackendError> {
    let mut intermediate = None;
    for expert in experts {
        let n = cpu.described(expert.gate, OP)?.is(intermediate, hidden, OP)?.weight.n;
        cpu.described(expert.up, OP)?.is(Some(n), hidden, OP)?;
        cpu.described(expert.down, OP)?.is(Some(hidden), n, OP)?;
        for (bias, n) in expert.biases.into_iter().flatten().zip([n, n, hidden]) {
            cpu.vector(bias, n, OP)?;
        }
        intermediate = Some(n);
    }
    Ok(intermediate)
}

/// Router logits, rows × experts, from f32 inputs whatever the router's format.
fn logits(cpu: &Cpu, x: BufferId, router: &Router, rows: usize) -> Result<Vec<f32>, BackendError> {
    let input = cpu.buffers.get(x, OP)?;
    let weight = cpu.weight(router.weight, OP)?;
    let bias = router.options.router_bias.map(|id| cpu.vector(id, weight.weight.n, OP)).transpose()?;
    let write = bias.map_or(Write::Set, Write::SetBiased);
    let inputs = Inputs::new(&input.values, input.width, None);
    let mut logits = vec![0.0; rows * weight.weight.n];
    let out = Output::new(&mut logits, weight.weight.n);
    let tasks = tasks(&[(weight.panels(), weight.panel_bytes())], rows, cpu.pool.threads());
    let errors = FirstError::default();
    cpu.pool.run(tasks.len(), &|i| {
        let job = Job::new(cpu.isa, weight, inputs, Form::F32, RowSet::First(rows));
        // SAFETY: tasks cover every panel once.
        errors.keep(unsafe { write_panels(&job, tasks[i].panels.clone(), &out, 0, write) });
    });
    errors.result()?;
    Ok(logits)
}

/// The experts that a table names for every row's token, weighed by the router.
fn named(
    cpu: &Cpu,
    table: WeightId,
    logits: &[f32],
    experts: usize,
    routing: &Routing,
    batch: &Batch,
) -> Result<Vec<(usize, f32)>, BackendError> {
    let table = cpu.matrix(table, None, routing.top_k, OP)?;
    let mut chosen = Vec::with_capacity(batch.rows() * routing.top_k);
    for (logits, id) in logits.chunks_exact(experts).zip(batch.ids()) {
        let names = table_row(table, *id, experts)?;
        chosen.extend(weights_of(logits, names, routing).into_iter().map(|(e, weight)| (e, weight as f32)));
    }
    Ok(chosen)
}

/// The experts that a table names for a token.
fn table_row(table: &Loaded, id: u32, experts: usize) -> Result<Vec<usize>, BackendError> {
    let row = id as usize;
    if row >= table.weight.n {
        let what = format!("`{}` has {} rows, there is a token {id}", table.weight.name, table.weight.n);
        return Err(BackendError::Operand { op: OP, what });
    }
    let mut names = vec![0.0; table.weight.k];
    table.weight.decode(row..row + 1, &mut names)?;
    let names: Vec<usize> = names.iter().map(|e| *e as usize).collect();
    if names.iter().any(|e| *e >= experts) {
        let what = format!("`{}` names an expert beyond {experts} for token {id}", table.weight.name);
        return Err(BackendError::Operand { op: OP, what });
    }
    Ok(names)
}

/// Who goes where.
pub struct Routes {
    pub top_k: usize,
    /// Experts with at least one token, ascending.
    pub used: Vec<usize>,
    /// Per used expert: its first pair, and one past the last expert's.
    pub starts: Vec<usize>,
    /// The token of every pair, expert by expert, ascending within an expert.
    pub tokens: Vec<u32>,
    /// The weight of every pair.
    pub weights: Vec<f32>,
    /// Per token and slot: the pair.
    slots: Vec<usize>,
}

impl Routes {
    /// `chosen`: tokens × top_k.
    fn new(chosen: Vec<(usize, f32)>, experts: usize, top_k: usize) -> Self {
        let mut counts = vec![0usize; experts];
        chosen.iter().for_each(|(e, _)| counts[*e] += 1);
        let used: Vec<usize> = (0..experts).filter(|&e| counts[e] > 0).collect();
        let mut next = vec![0; experts];
        let mut starts = Vec::with_capacity(used.len() + 1);
        let mut total = 0;
        for &e in &used {
            starts.push(total);
            next[e] = total;
            total += counts[e];
        }
        starts.push(total);
        let (mut tokens, mut weights) = (vec![0; total], vec![0.0; total]);
        let mut slots = Vec::with_capacity(total);
        for (i, &(e, weight)) in chosen.iter().enumerate() {
            (tokens[next[e]], weights[next[e]]) = ((i / top_k) as u32, weight);
            slots.push(next[e]);
            next[e] += 1;
        }
        Self { top_k, used, starts, tokens, weights, slots }
    }

    /// Pairs that are given, and the place of each among them.
    fn of_pairs(pairs: &[Pair], experts: usize) -> (Self, Vec<u32>) {
        let mut routes = Self::new(pairs.iter().map(|(_, expert)| (*expert, 1.0)).collect(), experts, 1);
        let places = std::mem::take(&mut routes.tokens);
        routes.tokens = places.iter().map(|place| pairs[*place as usize].0 as u32).collect();
        (routes, places)
    }

    /// The pairs of the expert that stands at `index` among those used.
    pub fn pairs(&self, index: usize) -> std::ops::Range<usize> {
        self.starts[index]..self.starts[index + 1]
    }

    /// Tokens × top_k, best first: expert and weight.
    fn chosen(&self) -> Vec<(usize, f32)> {
        let expert = |pair: usize| self.used[self.starts.partition_point(|start| *start <= pair) - 1];
        self.slots.iter().map(|&pair| (expert(pair), self.weights[pair])).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_lie_expert_by_expert_and_slots_find_them() {
        let logits = [0.0, 3.0, 1.0, 2.0, /* token 1 */ 5.0, 5.0, 1.0, 0.0];
        let routing = Routing { top_k: 2, normalize: true, ..Routing::default() };
        let chosen = logits.chunks(4).flat_map(|l| route(l, None, &routing)).map(|(e, w)| (e, w as f32)).collect();
        let routes = Routes::new(chosen, 4, 2);
        assert_eq!(routes.used, [0, 1, 3]);
        assert_eq!(routes.starts, [0, 1, 3, 4]);
        assert_eq!(routes.tokens, [1, 0, 1, 0]);
        assert_eq!(routes.slots, [1, 3, 0, 2], "best first, equal logits by the lower index");
        assert!((routes.weights[1] + routes.weights[3] - 1.0).abs() < 1e-6);
        assert_eq!(routes.weights[0], 0.5);
    }
}
