//! The end of the pass: the KL divergence of every copy's predictions from the clean one's.

use super::PROBE;
use super::copies::{Copies, Kind, Run, read_from};
use super::journal::Journal;
use super::perturbed::Trials;
use crate::CalibrateError;
use ashlar_backend::{Backend, Batch, BufferId, Op, Projection, WeightId};
use ashlar_runtime::Loader;
use ashlar_runtime::program::{Part, Resources, build_part};
use ashlar_tensor::{Silent, TensorStore};
use std::thread;

/// Bytes of logits of a batch.
const LOGITS_BYTES: usize = 128 << 20;

/// Σ over tokens of KL(clean ‖ copy), in nats, for every copy and window; 0 for the clean one.
pub fn score(
    run: &Run<'_>,
    copies: &Copies,
    trials: &Trials<'_>,
    journal: &mut Journal,
) -> Result<Vec<Vec<f64>>, CalibrateError> {
    let spec = &run.model.spec;
    let leaf = spec.lm_head.as_ref().unwrap_or(&spec.embed);
    let trial = trials.group(&[leaf], PROBE)?;
    if let Some(index) = copies.find(|kind| matches!(kind, Kind::Head(_)))
        && let Some(Kind::Head(key)) = copies.list.get(index).map(|c| &c.kind)
    {
        journal.record(&key.to_string(), trial.error());
    }
    let mut clean = Head::new(run, &*run.model.store)?;
    let mut perturbed = Head::new(run, &trial.store())?;
    let layers = spec.layers.len();
    // Which copy's states go through which head.
    let mut sources: Vec<(WeightId, bool)> = Vec::new();
    for (index, copy) in copies.list.iter().enumerate() {
        let states = run.states(if matches!(copy.kind, Kind::Head(_)) { copies.clean() } else { index }, layers);
        let on_trial =
            matches!(copy.kind, Kind::Head(_)) || (matches!(copy.kind, Kind::Embed(_)) && spec.lm_head.is_none());
        let head = if on_trial { &mut perturbed } else { &mut clean };
        sources.push((head.backend.load(run.table(&states)?)?, on_trial));
    }
    let Some(&(reference, _)) = sources.get(copies.clean()) else { return Ok(Vec::new()) };
    let threads = run.options.threads.unwrap_or_else(|| thread::available_parallelism().map_or(1, usize::from));
    let (mut kl, mut first) = (vec![Vec::with_capacity(run.rows()); sources.len()], 0);
    while first < run.rows() {
        let rows = clean.rows.min(run.rows() - first);
        let of = clean.logits(reference, first, rows)?;
        for (index, ((table, on_trial), kl)) in sources.iter().zip(&mut kl).enumerate() {
            if index != copies.clean() {
                let head = if *on_trial { &mut perturbed } else { &mut clean };
                kl.extend(divergence(&of, &head.logits(*table, first, rows)?, spec.vocab_size, threads));
            }
            run.report.advance(rows as u64, "the head");
        }
        first += rows;
    }
    Ok(kl.iter().map(|rows| by_window(rows, run.windows)).collect())
}

/// Sums of the rows of every window.
fn by_window(rows: &[f64], windows: &[Vec<u32>]) -> Vec<f64> {
    let mut rows = rows.iter();
    windows.iter().map(|window| rows.by_ref().take(window.len()).sum()).collect()
}

/// The norm and the head on a device.
struct Head {
    backend: Box<dyn Backend>,
    ops: Vec<Op>,
    logits: BufferId,
    /// Rows of a batch.
    rows: usize,
}

impl Head {
    fn new(run: &Run<'_>, store: &dyn TensorStore) -> Result<Self, CalibrateError> {
        let spec = &run.model.spec;
        let rows = (LOGITS_BYTES / (4 * spec.vocab_size.max(1))).clamp(1, run.rows().max(1));
        let mut backend = run.device()?;
        // Any table of the right width: each run brings its own.
        let table = backend.load(run.table(&run.states(0, spec.layers.len()))?)?;
        let (mut ops, logits) = {
            let mut loader = Loader::new(store, &mut *backend, &Silent, [1, 1, rows]);
            let program = build_part(spec, Part::FinalNorm, table, &mut loader)?;
            let weight = loader.weight(spec.lm_head.as_ref().unwrap_or(&spec.embed))?;
            let logits = loader.buffer(spec.vocab_size)?;
            let parts = vec![Projection { weight, bias: None, out: logits }];
            let mut ops = program.ops;
            ops.push(Op::Linear { x: program.out, parts, accumulate: false });
            (ops, logits)
        };
        read_from(&mut ops, table);
        Ok(Self { backend, ops, logits, rows })
    }

    /// Logits of rows of a table, rows × vocabulary.
    fn logits(&mut self, table: WeightId, first: usize, rows: usize) -> Result<Vec<f32>, CalibrateError> {
        read_from(&mut self.ops, table);
        let tokens: Vec<u32> = (first..first + rows).map(|row| row as u32).collect();
        let batch = Batch::of(0, 0, &tokens);
        for op in &self.ops {
            self.backend.run(op, &batch, None)?;
        }
        Ok(self.backend.read(self.logits)?)
    }
}

/// KL(softmax(p) ‖ softmax(q)) of every row.
fn divergence(p: &[f32], q: &[f32], vocab: usize, threads: usize) -> Vec<f64> {
    let rows = p.len() / vocab.max(1);
    let share = rows.div_ceil(threads.max(1)).max(1) * vocab.max(1);
    let part = |p: &[f32], q: &[f32]| -> Vec<f64> {
        p.chunks_exact(vocab.max(1)).zip(q.chunks_exact(vocab.max(1))).map(|(p, q)| row(p, q)).collect()
    };
    let parts: Vec<Vec<f64>> = thread::scope(|scope| {
        let handles: Vec<_> =
            p.chunks(share).zip(q.chunks(share)).map(|(p, q)| scope.spawn(move || part(p, q))).collect();
        handles.into_iter().map(|h| h.join().unwrap_or_default()).collect()
    });
    parts.into_iter().flatten().collect()
}

fn row(p: &[f32], q: &[f32]) -> f64 {
    let top = |z: &[f32]| f64::from(z.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let (top_p, top_q) = (top(p), top(q));
    let (mut sum_p, mut sum_q, mut weighted) = (0.0, 0.0, 0.0);
    for (p, q) in p.iter().zip(q) {
        let (zp, zq) = (f64::from(*p) - top_p, f64::from(*q) - top_q);
        let e = zp.exp();
        sum_p += e;
        sum_q += zq.exp();
        weighted += e * (zp - zq);
    }
    weighted / sum_p - sum_p.ln() + sum_q.ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divergences_are_those_of_the_definition_and_do_not_depend_on_threads() {
        let p: Vec<f32> = (0..40).map(|i| ((i * 37) % 11) as f32 / 3.0).collect();
        let q: Vec<f32> = (0..40).map(|i| ((i * 29) % 13) as f32 / 4.0).collect();
        let softmax = |z: &[f32]| -> Vec<f64> {
            let e: Vec<f64> = z.iter().map(|v| f64::from(*v).exp()).collect();
            let sum: f64 = e.iter().sum();
            e.into_iter().map(|v| v / sum).collect()
        };
        let expected: f64 = p
            .chunks(8)
            .zip(q.chunks(8))
            .flat_map(|(p, q)| softmax(p).into_iter().zip(softmax(q)).collect::<Vec<_>>())
            .map(|(p, q)| p * (p / q).ln())
            .sum();
        assert!((divergence(&p, &q, 8, 1).iter().sum::<f64>() - expected).abs() < 1e-12);
        assert_eq!(divergence(&p, &q, 8, 3), divergence(&p, &q, 8, 1));
        assert!(divergence(&p, &p, 8, 2).iter().all(|kl| kl.abs() < 1e-15));
        assert_eq!(by_window(&[1.0, 2.0, 4.0], &[vec![7, 7], vec![7]]), [3.0, 4.0]);
    }
}
