//! `out += Σ over the chosen experts of weight · down(activation(gate(x)) · up(x))`.
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
use ashlar_backend::{BackendError, BufferId, ExpertWeights, MatmulInput, Observer, Routed, WeightId};

const OP: &str = "moe";

pub fn run(
    cpu: &mut Cpu,
    [x, out]: [BufferId; 2],
    router: WeightId,
    routing: Routing,
    experts: &[ExpertWeights],
    activation: Activation,
    mut observer: Option<&mut dyn Observer>,
) -> Result<(), BackendError> {
    let input = cpu.buffers.get(x, OP)?;
    let (hidden, rows) = (input.width, input.values.len() / input.width.max(1));
    let intermediate = check(cpu, router, routing, experts, hidden)?;
    let Some(intermediate) = intermediate.filter(|_| rows > 0) else { return Ok(()) };
    let routes = Routes::new(&logits(cpu, x, router, rows)?, experts.len(), routing);
    if let Some(observer) = &mut observer {
        observe(cpu, x, [router].into_iter(), Some(*observer), OP)?;
        let chosen = routes.chosen();
        let router = &cpu.weight(router, OP)?.weight.name;
        observer.routed(&Routed { router, experts: experts.len(), top_k: routing.top_k, chosen: &chosen });
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
fn check(
    cpu: &Cpu,
    router: WeightId,
    routing: Routing,
    experts: &[ExpertWeights],
    hidden: usize,
) -> Result<Option<usize>, BackendError> {
    cpu.matrix(router, Some(experts.len()), hidden, OP)?;
    if routing.top_k == 0 || routing.top_k > experts.len() {
        let what = format!("top_k {} of {} experts", routing.top_k, experts.len());
        return Err(BackendError::Operand { op: OP, what });
    }
    let mut intermediate = None;
    for expert in experts {
        let n = cpu.matrix(expert.gate, intermediate, hidden, OP)?.weight.n;
        cpu.matrix(expert.up, Some(n), hidden, OP)?;
        cpu.matrix(expert.down, Some(hidden), n, OP)?;
        intermediate = Some(n);
    }
    Ok(intermediate)
}

/// Router logits, rows × experts, from f32 inputs whatever the router's format.
fn logits(cpu: &Cpu, x: BufferId, router: WeightId, rows: usize) -> Result<Vec<f32>, BackendError> {
    let input = cpu.buffers.get(x, OP)?;
    let weight = cpu.weight(router, OP)?;
    let inputs = Inputs::new(&input.values, input.width, None);
    let mut logits = vec![0.0; rows * weight.weight.n];
    let out = Output::new(&mut logits, weight.weight.n);
    let tasks = tasks(&[(weight.panels(), weight.panel_bytes())], cpu.pool.threads());
    let errors = FirstError::default();
    cpu.pool.run(tasks.len(), &|i| {
        let job = Job { isa: cpu.isa, weight, inputs, form: Form::F32, rows: RowSet::First(rows) };
        // SAFETY: tasks cover every panel once.
        errors.keep(unsafe { write_panels(&job, tasks[i].panels.clone(), &out, 0, Write::Set) });
    });
    errors.result()?;
    Ok(logits)
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
    fn new(logits: &[f32], experts: usize, routing: Routing) -> Self {
        let top_k = routing.top_k;
        let chosen: Vec<(usize, f32)> =
            logits.chunks_exact(experts).flat_map(|logits| route(logits, routing)).collect();
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

/// The chosen experts of one token and their weights, best first: softmax over all experts, the greatest logits win,
/// equal ones by the lower index; with `normalize` the weights are divided by their sum.
fn route(logits: &[f32], routing: Routing) -> Vec<(usize, f32)> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    // f64 as in the reference: a few hundred values per token cost nothing.
    let p: Vec<f64> = logits.iter().map(|l| (f64::from(*l) - f64::from(max)).exp()).collect();
    let mut order: Vec<usize> = (0..logits.len()).collect();
    // A stable sort keeps the lower index first among equals.
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
    order.truncate(routing.top_k);
    let divisor: f64 = if routing.normalize { order.iter().map(|&e| p[e]).sum() } else { p.iter().sum() };
    order.into_iter().map(|e| (e, (p[e] / divisor) as f32)).collect()
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
            let ExpertWeights { gate, up, down } = self.experts[e];
            let (gate, up) = (cpu.weight(gate, OP)?, cpu.weight(up, OP)?);
            pairs.push(Pair { gate, up, activation: self.activation });
            downs.push(cpu.weight(down, OP)?);
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
        if downs.iter().any(|d| d.form() != Form::F32) {
            let values = downs.iter().any(|d| d.reads_rounded_values());
            rounded.round(&cpu.pool, cpu.isa, &middle, self.intermediate, values);
        }
        let mut products = vec![0.0; count * self.hidden];
        let out = Output::new(&mut products, self.hidden);
        let costs: Vec<_> = downs.iter().map(|d| (d.panels(), d.panel_bytes())).collect();
        let inputs = Inputs::new(&middle, self.intermediate, Some(&rounded));
        let rows: Vec<u32> = (0..count as u32).collect();
        self.over_experts(&costs, |task, first, tokens| {
            let weight = downs[task.weight];
            let rows = RowSet::Of(&rows[first..first + tokens.len()]);
            let job = Job { isa: cpu.isa, weight, inputs, form: weight.form(), rows };
            // SAFETY: as above.
            unsafe { write_panels(&job, task.panels.clone(), &out, first, Write::Set) }
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
        let routes = Routes::new(&logits, 4, Routing { top_k: 2, normalize: true });
        assert_eq!(routes.used, [0, 1, 3]);
        assert_eq!(routes.starts, [0, 1, 3, 4]);
        assert_eq!(routes.tokens, [1, 0, 1, 0]);
        let pairs: Vec<usize> = routes.slots.iter().map(|s| s.0).collect();
        assert_eq!(pairs, [1, 3, 0, 2], "best first, equal logits by the lower index");
        assert!((routes.slots[0].1 + routes.slots[1].1 - 1.0).abs() < 1e-6);
        assert_eq!(routes.slots[2].1, 0.5);
    }
}
