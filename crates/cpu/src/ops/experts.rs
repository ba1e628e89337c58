//! What the experts of a layer make of the tokens that were routed to them.
//!
//! Two fork-joins do the work: gate · up over (expert, panels), then down over panels of the output, each of which all experts add to
//! in ascending order, weighted, whatever the threads: no products in between, and no barrier per expert. Where experts come from
//! the disk, the first runs as they arrive, those in memory first, and the two take turns window by window: the order of
//! sums, and so every bit, is the same.

use super::linear::Pair;
use super::matmul::{FirstError, Output, tasks};
use super::moe::{OP, Routes};
use crate::cpu::Cpu;
use crate::gemv::{Job, RowSet};
use crate::inputs::{Forms, Inputs, Rounded};
use crate::loaded::Loaded;
use ashlar_arch::Activation;
use ashlar_backend::{BackendError, BufferId, ExpertWeights, MatmulInput, Observer, Records, WeightId};
use ashlar_tensor::Bytes;
use std::ops::{Deref, Range};
use std::sync::Arc;

/// The experts of a layer and who goes where.
pub struct Layer<'a> {
    pub cpu: &'a Cpu,
    pub experts: &'a [ExpertWeights],
    pub routes: &'a Routes,
    /// The row of the output that a pair is added to.
    pub places: &'a [u32],
    pub activation: Activation,
    pub hidden: usize,
    pub intermediate: usize,
}

/// A matrix in memory.
enum Matrix<'a> {
    Loaded(&'a Loaded),
    Arrived(Box<Loaded>),
}

impl Deref for Matrix<'_> {
    type Target = Loaded;
    fn deref(&self) -> &Loaded {
        match self {
            Self::Loaded(loaded) => loaded,
            Self::Arrived(loaded) => loaded,
        }
    }
}

/// One expert in use, whose weights are there.
struct Used<'a> {
    /// Its place among those in use.
    index: usize,
    gate: Matrix<'a>,
    up: Matrix<'a>,
    down: Matrix<'a>,
    biases: Option<[&'a [f32]; 3]>,
    activation: Activation,
}

impl Used<'_> {
    fn first_halves(&self) -> Pair<'_> {
        let biases = self.biases.map(|[gate, up, _]| [gate, up]);
        Pair { gate: &self.gate, up: &self.up, biases, activation: self.activation }
    }
}

/// The experts in use that are not in memory.
struct Stream {
    records: Option<Arc<dyn Records>>,
    /// Record and place among those in use, ascending.
    places: Vec<(u32, usize)>,
    /// Of those in use, in memory or not: what is computed one after the other.
    windows: Vec<Range<usize>>,
}

impl Layer<'_> {
    /// Adds to `y`, rows × hidden, what the experts make of x.
    pub fn run(&self, x: BufferId, y: &mut [f32], observer: Option<&mut dyn Observer>) -> Result<(), BackendError> {
        let input = self.cpu.buffers.get(x, OP)?;
        let inputs = Inputs::new(&input.values, self.hidden, Some(&self.cpu.rounded));
        let mut middle = vec![0.0; self.routes.tokens.len() * self.intermediate];
        let stream = self.stream(inputs.rows())?;
        for (number, window) in stream.windows.iter().enumerate() {
            let mut used = self.in_memory(window, &stream)?;
            self.first_halves(&used, inputs, &mut middle)?;
            while let Some(arrived) = self.arrived(&stream, number)? {
                self.first_halves(&arrived, inputs, &mut middle)?;
                used.extend(arrived);
            }
            used.sort_by_key(|u| u.index);
            if used.len() != window.len() {
                let what =
                    format!("{} of {} experts came from the disk; please report this bug", used.len(), window.len());
                return Err(BackendError::Operand { op: OP, what });
            }
            self.second_half(&used, &middle, y)?;
        }
        observer.map_or(Ok(()), |observer| self.observe(observer, &input.values, &middle))
    }

    /// Tells where experts come from what is used of them.
    fn stream(&self, rows: usize) -> Result<Stream, BackendError> {
        let (mut records, mut places, mut wanted) = (None, Vec::new(), Vec::new());
        for (index, &expert) in self.routes.used.iter().enumerate() {
            let ExpertWeights { gate, up, down, .. } = self.experts[expert];
            let record = |id: WeightId| Ok::<_, BackendError>(self.cpu.described(id, OP)?.streamed.as_ref());
            let all = [record(gate)?, record(up)?, record(down)?];
            let numbers = all.map(|streamed| streamed.map(|s| s.record));
            if numbers != [numbers[0]; 3] {
                let what = format!("expert {expert} lies in the records {numbers:?}, expected one");
                return Err(BackendError::Operand { op: OP, what });
            }
            if let [Some(streamed), ..] = all {
                records = Some(Arc::clone(&streamed.records));
                places.push((streamed.record, index));
                wanted.push((streamed.record, self.routes.pairs(index).len()));
            }
        }
        let end = self.routes.used.len();
        let starts: Vec<usize> = match &records {
            Some(records) => records.begin(&wanted, rows).iter().map(|w| places[w.start].1).collect(),
            None => Vec::new(),
        };
        // Experts that are in memory belong to the window before them, or to the first.
        let starts: Vec<usize> = [0].into_iter().chain(starts.into_iter().skip(1)).chain([end]).collect();
        let windows = starts.windows(2).map(|pair| pair[0]..pair[1]).collect();
        Ok(Stream { records, places, windows })
    }

    /// Those of a window that need not be waited for.
    fn in_memory(&self, window: &Range<usize>, stream: &Stream) -> Result<Vec<Used<'_>>, BackendError> {
        let here = |index: &usize| !stream.places.iter().any(|(_, place)| place == index);
        window.clone().filter(here).map(|index| self.used(index, None)).collect()
    }

    /// Those of a window that have come since, at least one; `None` when all have.
    fn arrived(&self, stream: &Stream, window: usize) -> Result<Option<Vec<Used<'_>>>, BackendError> {
        let Some(records) = &stream.records else { return Ok(None) };
        let mut all = Vec::new();
        for (record, bytes) in records.take(window)? {
            let what = || format!("record {record} came, which nothing uses");
            let found = stream.places.binary_search_by_key(&record, |(record, _)| *record).ok();
            let (_, index) = found
                .and_then(|i| stream.places.get(i))
                .ok_or_else(|| BackendError::Operand { op: OP, what: what() })?;
            all.push(self.used(*index, Some(&bytes))?);
        }
        Ok(Some(all).filter(|all| !all.is_empty()))
    }

    /// The expert at a place among those in use; `record`: its bytes, if it was not in memory.
    fn used(&self, index: usize, record: Option<&Bytes>) -> Result<Used<'_>, BackendError> {
        let cpu = self.cpu;
        let ExpertWeights { gate, up, down, biases } = self.experts[self.routes.used[index]];
        let bias = |id| Ok::<_, BackendError>(cpu.weight(id, OP)?.vector.as_slice());
        let biases = match biases {
            Some([gate, up, down]) => Some([bias(gate)?, bias(up)?, bias(down)?]),
            None => None,
        };
        let matrix = |id| {
            Ok::<_, BackendError>(match record {
                Some(bytes) => Matrix::Arrived(Box::new(cpu.described(id, OP)?.arrived(bytes)?)),
                None => Matrix::Loaded(cpu.weight(id, OP)?),
            })
        };
        let (gate, up, down) = (matrix(gate)?, matrix(up)?, matrix(down)?);
        Ok(Used { index, gate, up, down, biases, activation: self.activation })
    }

    fn most_tokens(&self, used: &[Used<'_>]) -> usize {
        used.iter().map(|u| self.routes.pairs(u.index).len()).max().unwrap_or(0)
    }

    /// activation(gate, up) of the pairs of these experts, into `middle`, pairs × intermediate.
    fn first_halves(&self, used: &[Used<'_>], inputs: Inputs<'_>, middle: &mut [f32]) -> Result<(), BackendError> {
        let (cpu, routes) = (self.cpu, self.routes);
        let out = Output::new(middle, self.intermediate);
        let cost = |u: &Used<'_>| (u.gate.panels(), u.first_halves().panel_bytes());
        let tasks = tasks(&used.iter().map(cost).collect::<Vec<_>>(), self.most_tokens(used), cpu.pool.threads());
        let errors = FirstError::default();
        cpu.pool.run(tasks.len(), &|i| {
            let task = &tasks[i];
            let expert = &used[task.weight];
            let pairs = routes.pairs(expert.index);
            let rows = RowSet::Of(&routes.tokens[pairs.clone()]);
            // SAFETY: tasks cover every panel of every expert once, and experts' pairs are different rows.
            errors.keep(unsafe { expert.first_halves().write(cpu.isa, inputs, rows, task, &out, pairs.start) });
        });
        errors.result()
    }

    /// y[place] += weight · (down(middle) + bias), expert by expert: these follow one another among those in use.
    fn second_half(&self, used: &[Used<'_>], middle: &[f32], y: &mut [f32]) -> Result<(), BackendError> {
        let (cpu, routes) = (self.cpu, self.routes);
        let [Some(one), Some(last)] = [used.first(), used.last()] else { return Ok(()) };
        let (base, end) = (routes.pairs(one.index).start, routes.pairs(last.index).end);
        let middle = &middle[base * self.intermediate..end * self.intermediate];
        let mut rounded = Rounded::default();
        let forms = Forms::of(used.iter().map(|u| &*u.down));
        rounded.round(&cpu.pool, cpu.isa, middle, self.intermediate, forms);
        let inputs = Inputs::new(middle, self.intermediate, Some(&rounded));
        let numbers: Vec<u32> = (0..(end - base) as u32).collect();
        let cost = used.iter().map(|u| u.down.panel_bytes()).sum();
        let tasks = tasks(&[(one.down.panels(), cost)], self.most_tokens(used), cpu.pool.threads());
        let out = Output::new(y, self.hidden);
        let errors = FirstError::default();
        cpu.pool.run(tasks.len(), &|i| {
            for u in used {
                let pairs = routes.pairs(u.index);
                let first = pairs.start;
                let rows = RowSet::Of(&numbers[first - base..pairs.end - base]);
                let job = Job::new(cpu.isa, &u.down, inputs, u.down.form(), rows);
                errors.keep(crate::gemv::multiply(&job, tasks[i].panels.clone(), &mut |row, panel, product| {
                    let columns = out.columns(&(panel..panel + product.len()));
                    let bias = u.biases.map(|[.., bias]| &bias[columns.clone()]);
                    // SAFETY: tasks cover every panel of the output once, and experts take turns within a task.
                    let to = unsafe { out.part(self.places[first + row] as usize, columns) };
                    add_weighted(to, product.as_flattened(), bias, routes.weights[first + row]);
                }));
            }
        });
        errors.result()
    }

    /// Shows what the weights of every expert in use read: rows of x, then rows of `middle`, each with its weight.
    fn observe(&self, observer: &mut dyn Observer, x: &[f32], middle: &[f32]) -> Result<(), BackendError> {
        let gates = &self.routes.weights;
        let name = |id| Ok::<_, BackendError>(self.cpu.described(id, OP)?.weight.name.as_str());
        for (index, &e) in self.routes.used.iter().enumerate() {
            let (expert, pairs) = (self.experts[e], self.routes.pairs(index));
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
}

/// to += weight · (product + bias)
fn add_weighted(to: &mut [f32], product: &[f32], bias: Option<&[f32]>, weight: f32) {
    match bias {
        Some(bias) => {
            to.iter_mut().zip(product).zip(bias).for_each(|((to, product), bias)| *to += weight * (product + bias));
        }
        None => to.iter_mut().zip(product).for_each(|(to, product)| *to += weight * product),
    }
}
