//! `out = x · Wᵀ + bias` for several weights that share x, and the gated first half of an MLP: one fork-join each.

use super::matmul::{FirstError, Output, Task, Write, tasks, write_panels};
use crate::cpu::Cpu;
use crate::gemv::{Job, RowSet};
use crate::inputs::{Forms, Inputs};
use crate::loaded::Loaded;
use crate::math::Gated;
use ashlar_arch::Activation;
use ashlar_backend::{BackendError, BufferId, MatmulInput, Observer, Projection, WeightId};
use ashlar_simd::Isa;

pub fn run(
    cpu: &mut Cpu,
    x: BufferId,
    parts: &[Projection],
    accumulate: bool,
    observer: Option<&mut dyn Observer>,
) -> Result<(), BackendError> {
    const OP: &str = "linear";
    let input = cpu.buffers.get(x, OP)?;
    let (k, rows) = (input.width, input.values.len() / input.width.max(1));
    for (i, part) in parts.iter().enumerate() {
        let n = cpu.matrix(part.weight, None, k, OP)?.weight.n;
        part.bias.map(|bias| cpu.vector(bias, n, OP)).transpose()?;
        if parts[..i].iter().any(|other| other.out == part.out) {
            return Err(BackendError::Operand { op: OP, what: "two parts share an output".into() });
        }
        cpu.buffers.input(part.out, n, OP)?;
    }
    observe(cpu, x, parts.iter().map(|p| p.weight), observer, OP)?;
    round_inputs(cpu, x, parts.iter().map(|p| p.weight), OP)?;
    let mut outs = Vec::with_capacity(parts.len());
    let mut taken = Ok(());
    for part in parts {
        let n = cpu.weight(part.weight, OP)?.weight.n;
        match cpu.buffers.take(part.out, [rows, n], accumulate, x, OP) {
            Ok(values) => outs.push(values),
            Err(error) => {
                taken = Err(error);
                break;
            }
        }
    }
    let result = taken.and_then(|()| multiply(cpu, x, parts, &mut outs, accumulate));
    for (part, values) in parts.iter().zip(outs) {
        cpu.buffers.put(part.out, values);
    }
    result
}

/// Shows an observer that these weights read x.
pub fn observe(
    cpu: &Cpu,
    x: BufferId,
    weights: impl Iterator<Item = WeightId>,
    observer: Option<&mut dyn Observer>,
    op: &'static str,
) -> Result<(), BackendError> {
    let Some(observer) = observer else { return Ok(()) };
    let names = weights.map(|id| Ok(cpu.weight(id, op)?.weight.name.as_str()));
    let names = names.collect::<Result<Vec<_>, BackendError>>()?;
    let input = cpu.buffers.get(x, op)?;
    observer.matmul_input(&MatmulInput::whole(&names, &input.values, input.width));
    Ok(())
}

/// Rounds x if any of the weights reads it rounded.
pub fn round_inputs(
    cpu: &mut Cpu,
    x: BufferId,
    weights: impl Iterator<Item = WeightId>,
    op: &'static str,
) -> Result<(), BackendError> {
    let weights = weights.map(|id| cpu.described(id, op)).collect::<Result<Vec<_>, BackendError>>()?;
    let input = cpu.buffers.get(x, op)?;
    cpu.rounded.round(&cpu.pool, cpu.isa, &input.values, input.width, Forms::of(weights));
    Ok(())
}

fn multiply(
    cpu: &Cpu,
    x: BufferId,
    parts: &[Projection],
    outs: &mut [Vec<f32>],
    accumulate: bool,
) -> Result<(), BackendError> {
    let op = "linear";
    let mut work = Vec::with_capacity(parts.len());
    for (part, out) in parts.iter().zip(outs) {
        let weight = cpu.weight(part.weight, op)?;
        let bias = part.bias.map(|bias| cpu.vector(bias, weight.weight.n, op)).transpose()?;
        let write = match (accumulate, bias) {
            (false, None) => Write::Set,
            (false, Some(bias)) => Write::SetBiased(bias),
            (true, None) => Write::Add,
            (true, Some(bias)) => Write::AddBiased(bias),
        };
        work.push((weight, Output::new(out, weight.weight.n), write));
    }
    let input = cpu.buffers.get(x, op)?;
    let inputs = Inputs::new(&input.values, input.width, Some(&cpu.rounded));
    let (isa, rows) = (cpu.isa, RowSet::First(inputs.rows()));
    let costs: Vec<_> = work.iter().map(|(w, ..)| (w.panels(), w.panel_bytes())).collect();
    let tasks = tasks(&costs, inputs.rows(), cpu.pool.threads());
    let errors = FirstError::default();
    cpu.pool.run(tasks.len(), &|i| {
        let Task { weight, panels } = tasks[i].clone();
        let (weight, out, write) = &work[weight];
        let job = Job::new(isa, weight, inputs, weight.form(), rows);
        // SAFETY: tasks cover every panel of every output once.
        errors.keep(unsafe { write_panels(&job, panels, out, 0, *write) });
    });
    errors.result()
}

pub fn gated(
    cpu: &mut Cpu,
    x: BufferId,
    [gate, up]: [WeightId; 2],
    activation: Activation,
    out: BufferId,
    observer: Option<&mut dyn Observer>,
) -> Result<(), BackendError> {
    const OP: &str = "gated_linear";
    let input = cpu.buffers.get(x, OP)?;
    let (k, rows) = (input.width, input.values.len() / input.width.max(1));
    let n = cpu.matrix(gate, None, k, OP)?.weight.n;
    cpu.matrix(up, Some(n), k, OP)?;
    observe(cpu, x, [gate, up].into_iter(), observer, OP)?;
    round_inputs(cpu, x, [gate, up].into_iter(), OP)?;
    let mut values = cpu.buffers.take(out, [rows, n], false, x, OP)?;
    let pair = Pair { gate: cpu.weight(gate, OP)?, up: cpu.weight(up, OP)?, biases: None, activation };
    let input = cpu.buffers.get(x, OP)?;
    let inputs = Inputs::new(&input.values, k, Some(&cpu.rounded));
    let tasks = tasks(&[(pair.gate.panels(), pair.panel_bytes())], rows, cpu.pool.threads());
    let output = Output::new(&mut values, n);
    let (isa, errors) = (cpu.isa, FirstError::default());
    cpu.pool.run(tasks.len(), &|i| {
        // SAFETY: tasks cover every panel of the output once.
        errors.keep(unsafe { pair.write(isa, inputs, RowSet::First(rows), &tasks[i], &output, 0) });
    });
    cpu.buffers.put(out, values);
    errors.result()
}

/// The first half of a gated MLP.
#[derive(Clone, Copy)]
pub struct Pair<'a> {
    /// n × k
    pub gate: &'a Loaded,
    /// n × k
    pub up: &'a Loaded,
    /// Of gate and up, n each.
    pub biases: Option<[&'a [f32]; 2]>,
    /// Nonlinearity of the gate.
    pub activation: Activation,
}

impl Pair<'_> {
    /// Bytes of a panel of both.
    pub fn panel_bytes(&self) -> usize {
        self.gate.panel_bytes() + self.up.panel_bytes()
    }

    /// out = activation(x · gateᵀ, x · upᵀ), with biases if there are any, for the task's panels and the given rows; row i of them goes to row
    /// `first_row + i`.
    ///
    /// # Safety
    /// Nothing else may use the columns of these panels of these rows of `out` meanwhile.
    ///
    /// # Errors
    /// As [`crate::gemv::multiply`].
    pub unsafe fn write(
        &self,
        isa: Isa,
        inputs: Inputs<'_>,
        rows: RowSet<'_>,
        task: &Task,
        out: &Output<'_>,
        first_row: usize,
    ) -> Result<(), BackendError> {
        let job = |weight| Job::new(isa, weight, inputs, Loaded::form(weight), rows);
        let columns = out.columns(&task.panels);
        let mut scratch = vec![0.0; rows.len() * columns.len()];
        crate::gemv::multiply(&job(self.up), task.panels.clone(), &mut |row, panel, y| {
            let at = out.columns(&(panel..panel + y.len()));
            let start = row * columns.len() + at.start - columns.start;
            let to = &mut scratch[start..start + at.len()];
            to.copy_from_slice(&y.as_flattened()[..at.len()]);
            if let Some([_, bias]) = self.biases {
                to.iter_mut().zip(&bias[at]).for_each(|(to, bias)| *to += bias);
            }
        })?;
        let write = self.biases.map_or(Write::Set, |[bias, _]| Write::SetBiased(bias));
        // SAFETY: the caller's promise.
        unsafe { write_panels(&job(self.gate), task.panels.clone(), out, first_row, write)? };
        for (row, up) in scratch.chunks_exact(columns.len().max(1)).enumerate() {
            // SAFETY: the caller's promise; `write_panels` is done with these columns.
            let gate = unsafe { out.part(first_row + row, columns.clone()) };
            isa.run(Gated { gate, up, activation: self.activation });
        }
        Ok(())
    }
}
