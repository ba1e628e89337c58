//! `out += Σ over the chosen experts of weight · down(activation(gate(x), up(x)))`.
//!
//! Tokens are grouped by expert, so that an expert's weights are read once per op. Two fork-joins do the work, over
//! (expert, panels): gate · up, then down; two small ones route before and sum after. A (token, slot) is a *pair*; pairs
//! lie expert by expert. Sums run in the order of the slots, best expert first, whatever the threads.

use super::linear::{Pair, observe, round_inputs};
use super::matmul::{FirstError, Output, Task, Write, tasks, write_panels};
use crate::cpu::Cpu;
use crate::gemv::{Job, RowSet};
use crate::inputs::{Form, Inputs, Rounded};
use crate::math::AddScaled;
use crate::shards::Shards;
use ashlar_arch::{Activation, Routing};
use ashlar_backend::{
    BackendError, Batch, BufferId, ExpertWeights, MatmulInput, MoeOptions, Observer, Routed, WeightId, check_routing,
    route, weights_of,
};

const OP: &str = "moe";

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
    let choice_bias = router.options.choice_bias.map(|id| cpu.vector(id, experts.len(), OP)).transpose()?;
    let logits = logits(cpu, x, router, rows)?;
    let chosen: Vec<(usize, f32)> = match router.options.table {
        Some(table) => named(cpu, table, &logits, experts.len(), &router.routing, batch)?,
        None => {
            let routed = |logits| route(logits, choice_bias, &router.routing);
            logits.chunks_exact(experts.len()).flat_map(routed).map(|(e, weight)| (e, weight as f32)).collect()
        }
    };
    let routes = Routes::new(chosen, experts.len(), router.routing.top_k);
    if let Some(observer) = &mut observer {
        observe(cpu, x, [router.weight].into_iter(), Some(*observer), OP)?;
        let (chosen, top_k) = (routes.chosen(), routes.top_k);
        let router = &cpu.weight(router.weight, OP)?.weight.name;
        observer.routed(&Routed { router, experts: experts.len(), top_k, chosen: &chosen });
    }
    let first_halves = routes.used.iter().flat_map(|&e| [experts[e].gate, experts[e].up]);
    round_inputs(cpu, x, first_halves, OP)?;
    let mut y = cpu.buffers.take(out, [rows, hidden], true, x, OP)?;
    let layer = Layer { cpu, experts, routes: &routes, activation, hidden, intermediate };
    let result = layer.halves(x, observer).map(|products| layer.sum(&products, &mut y));
    cpu.buffers.put(out, y);
    result
}

/// Checks every shape; the width between the halves, `None` if there is no expert.
fn check(cpu: &Cpu, router: &Router, experts: &[ExpertWeights], hidden: usize) -> Result<Option<usize>, BackendError> {
    cpu.matrix(router.weight, Some(experts.len()), hidden, OP)?;
    check_routing(&router.routing, experts.len(), OP)?;
    let mut intermediate = None;
    for expert in experts {
        let n = cpu.matrix(expert.gate, intermediate, hidden, OP)?.weight.n;
        cpu.matrix(expert.up, Some(n), hidden, OP)?;
        cpu.matrix(expert.down, Some(hidden), n, OP)?;
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
    let tasks = tasks(&[(weight.panels(), weight.panel_bytes())], cpu.pool.threads());
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
    let mut names = vec![0.0; routing.top_k];
    let mut chosen = Vec::with_capacity(batch.rows() * routing.top_k);
    for (logits, id) in logits.chunks_exact(experts).zip(batch.ids()) {
        let row = *id as usize;
        if row >= table.weight.n {
            let what = format!("`{}` has {} rows, there is a token {id}", table.weight.name, table.weight.n);
            return Err(BackendError::Operand { op: OP, what });
        }
        table.weight.decode(row..row + 1, &mut names)?;
        let names: Vec<usize> = names.iter().map(|e| *e as usize).collect();
        if names.iter().any(|e| *e >= experts) {
            let what = format!("`{}` names an expert beyond {experts} for token {id}", table.weight.name);
            return Err(BackendError::Operand { op: OP, what });
        }
        chosen.extend(weights_of(logits, names, routing).into_iter().map(|(e, weight)| (e, weight as f32)));
    }
    Ok(chosen)
}

/// Who goes where.
struct Routes {
    top_k: usize,
    /// Experts with at least one token, ascending.
    used: Vec<usize>,
    /// Per used expert: its first pair, and one past the last expert's.
    starts: Vec<usize>,
    /// The token of every pair, expert by expert, ascending within an expert.
    tokens: Vec<u32>,
    /// Per token and slot: (pair, weight).
    slots: Vec<(usize, f32)>,
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
        let mut tokens = vec![0; total];
        let mut slots = Vec::with_capacity(total);
        for (i, &(e, weight)) in chosen.iter().enumerate() {
            tokens[next[e]] = (i / top_k) as u32;
            slots.push((next[e], weight));
            next[e] += 1;
        }
        Self { top_k, used, starts, tokens, slots }
    }

    /// Tokens × top_k, best first: expert and weight.
    fn chosen(&self) -> Vec<(usize, f32)> {
        let expert = |pair: usize| self.used[self.starts.partition_point(|start| *start <= pair) - 1];
        self.slots.iter().map(|&(pair, weight)| (expert(pair), weight)).collect()
    }
}

struct Layer<'a> {
    cpu: &'a Cpu,
    experts: &'a [ExpertWeights],
    routes: &'a Routes,
    activation: Activation,
    hidden: usize,
    intermediate: usize,
}

impl Layer<'_> {
    /// The products of all pairs, pairs × hidden.
    fn halves(&self, x: BufferId, observer: Option<&mut dyn Observer>) -> Result<Vec<f32>, BackendError> {
        let cpu = self.cpu;
        let input = cpu.buffers.get(x, OP)?;
        let inputs = Inputs::new(&input.values, self.hidden, Some(&cpu.rounded));
        let mut pairs = Vec::with_capacity(self.routes.used.len());
        let mut downs = Vec::with_capacity(self.routes.used.len());
        for &e in &self.routes.used {
            let ExpertWeights { gate, up, down, biases } = self.experts[e];
            let (gate, up) = (cpu.weight(gate, OP)?, cpu.weight(up, OP)?);
            let bias = |id| Ok::<_, BackendError>(cpu.weight(id, OP)?.vector.as_slice());
            let biases = biases.map(|all| all.map(bias));
            let biases = match biases {
                Some([gate, up, down]) => Some([gate?, up?, down?]),
                None => None,
            };
            pairs.push(Pair { gate, up, biases: biases.map(|[g, u, _]| [g, u]), activation: self.activation });
            downs.push((cpu.weight(down, OP)?, biases.map_or(Write::Set, |[.., down]| Write::SetBiased(down))));
        }
        let count = self.routes.tokens.len();
        let mut middle = vec![0.0; count * self.intermediate];
        let out = Output::new(&mut middle, self.intermediate);
        let costs: Vec<_> = pairs.iter().map(|p| (p.gate.panels(), p.panel_bytes())).collect();
        self.over_experts(&costs, |task, first, tokens| {
            // SAFETY: tasks cover every panel of every expert once, and experts' pairs are different rows.
            unsafe { pairs[task.weight].write(cpu.isa, inputs, RowSet::Of(tokens), task, &out, first) }
        })?;
        if let Some(observer) = observer {
            self.observe(observer, &input.values, &middle)?;
        }
        let mut rounded = Rounded::default();
        if downs.iter().any(|(d, _)| d.form() != Form::F32) {
            let values = downs.iter().any(|(d, _)| d.reads_rounded_values());
            rounded.round(&cpu.pool, cpu.isa, &middle, self.intermediate, values);
        }
        let mut products = vec![0.0; count * self.hidden];
        let out = Output::new(&mut products, self.hidden);
        let costs: Vec<_> = downs.iter().map(|(d, _)| (d.panels(), d.panel_bytes())).collect();
        let inputs = Inputs::new(&middle, self.intermediate, Some(&rounded));
        let rows: Vec<u32> = (0..count as u32).collect();
        self.over_experts(&costs, |task, first, tokens| {
            let (weight, write) = downs[task.weight];
            let rows = RowSet::Of(&rows[first..first + tokens.len()]);
            let job = Job::new(cpu.isa, weight, inputs, weight.form(), rows);
            // SAFETY: as above.
            unsafe { write_panels(&job, task.panels.clone(), &out, first, write) }
        })?;
        Ok(products)
    }

    /// Shows what the weights of every expert in use read: rows of x, then rows of `middle`, each with its weight.
    fn observe(&self, observer: &mut dyn Observer, x: &[f32], middle: &[f32]) -> Result<(), BackendError> {
        let mut gates = vec![0.0; self.routes.tokens.len()];
        self.routes.slots.iter().for_each(|&(pair, weight)| gates[pair] = weight);
        let name = |id| Ok::<_, BackendError>(self.cpu.weight(id, OP)?.weight.name.as_str());
        for (&e, bounds) in self.routes.used.iter().zip(self.routes.starts.windows(2)) {
            let (expert, pairs) = (self.experts[e], bounds[0]..bounds[1]);
            let names = [name(expert.gate)?, name(expert.up)?];
            let rows = Some(&self.routes.tokens[pairs.clone()]);
            observer.matmul_input(&MatmulInput { rows, ..MatmulInput::whole(&names, x, self.hidden) });
            let names = [name(expert.down)?];
            let (k, gates) = (self.intermediate, Some(&gates[pairs.clone()]));
            let middle = &middle[pairs.start * k..pairs.end * k];
            observer.matmul_input(&MatmulInput { gates, ..MatmulInput::whole(&names, middle, k) });
        }
        Ok(())
    }

    /// One fork-join over (expert, panels): `body` gets a task, the expert's first pair and its tokens.
    fn over_experts(
        &self,
        costs: &[(usize, usize)],
        body: impl Fn(&Task, usize, &[u32]) -> Result<(), BackendError> + Sync,
    ) -> Result<(), BackendError> {
        let tasks = tasks(costs, self.cpu.pool.threads());
        let errors = FirstError::default();
        self.cpu.pool.run(tasks.len(), &|i| {
            let task = &tasks[i];
            let (first, end) = (self.routes.starts[task.weight], self.routes.starts[task.weight + 1]);
            errors.keep(body(task, first, &self.routes.tokens[first..end]));
        });
        errors.result()
    }

    /// y[token] += Σ weight · product, slot by slot.
    fn sum(&self, products: &[f32], y: &mut [f32]) {
        let (hidden, isa) = (self.hidden, self.cpu.isa);
        let rows = y.len() / hidden;
        let y = Shards::new(y);
        self.cpu.pool.run(rows, &|row| {
            // SAFETY: every row is one index of the pool.
            let y = unsafe { y.slice(row * hidden..(row + 1) * hidden) };
            let mut sum = vec![0.0; hidden];
            for &(pair, factor) in &self.routes.slots[row * self.routes.top_k..(row + 1) * self.routes.top_k] {
                isa.run(AddScaled { y: &mut sum, x: &products[pair * hidden..(pair + 1) * hidden], factor });
            }
            isa.run(AddScaled { y, x: &sum, factor: 1.0 });
        });
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
        let pairs: Vec<usize> = routes.slots.iter().map(|s| s.0).collect();
        assert_eq!(pairs, [1, 3, 0, 2], "best first, equal logits by the lower index");
        assert!((routes.slots[0].1 + routes.slots[1].1 - 1.0).abs() < 1e-6);
        assert_eq!(routes.slots[2].1, 0.5);
    }
}
