//! How fast a model runs: prefill and decoding at several depths, beside what the machine can do at best.
//!
//! Owns: the order of measurements, medians, what a token must read and multiply, times per op. Ceilings come from a
//! [`Meter`]; they are measured in turn with the model, because shared machines change from one minute to the next.

use crate::{Energy, Meter, Model, RuntimeError, Wanted};
use ashlar_arch::{Class, Ffn, Leaf, ModelSpec};
use ashlar_backend::{Batch, SequenceRows};
use ashlar_tensor::{Report, TensorStore};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// What one token costs at least, whatever the depth: keys and values are not counted.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct TokenCost {
    /// Bytes of weights that one token alone reads: of experts, the chosen ones.
    pub weight_bytes: f64,
    /// Multiply-adds with these weights.
    pub multiply_adds: f64,
    /// Whether tokens choose which weights they read.
    pub experts: bool,
}

impl TokenCost {
    /// Of a model whose weights lie in `store`.
    #[must_use]
    pub fn of(spec: &ModelSpec, store: &dyn TensorStore) -> Self {
        let mut cost = Self::default();
        for leaf in spec.loaded() {
            let share = share(spec, leaf);
            let products = if let [n, k] = *leaf.shape { (n as f64) * (k as f64) } else { 0.0 };
            cost.weight_bytes += share * store.entry(&leaf.name).map_or(0.0, |e| e.bytes() as f64);
            cost.multiply_adds += share * products;
            cost.experts |= leaf.role.class == Class::Experts;
        }
        cost
    }

    /// Bytes of weights that a step of so many tokens reads; `None` where that depends on what they choose.
    #[must_use]
    pub fn step_bytes(&self, tokens: usize) -> Option<f64> {
        (tokens == 1 || !self.experts).then_some(self.weight_bytes)
    }
}

/// How much of a tensor a token reads.
fn share(spec: &ModelSpec, leaf: &Leaf) -> f64 {
    match leaf.role.class {
        // One row, which is nothing, unless it is the head as well.
        Class::Embed => f64::from(u8::from(spec.lm_head.is_none())),
        Class::Experts => match leaf.role.layer.and_then(|l| spec.layers.get(l)).map(|layer| &layer.ffn) {
            Some(Ffn::Moe(moe)) => moe.routing.top_k as f64 / moe.experts.len().max(1) as f64,
            _ => 1.0,
        },
        _ => 1.0,
    }
}

/// Times per op, by name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Profile(BTreeMap<&'static str, OpTime>);

/// What the runs of one op took together.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct OpTime {
    /// Number of runs.
    pub calls: u64,
    /// Their time.
    pub time: Duration,
}

impl Profile {
    pub(crate) fn time<R>(&mut self, op: &'static str, run: impl FnOnce() -> R) -> R {
        let begin = Instant::now();
        let result = run();
        let entry = self.0.entry(op).or_default();
        entry.calls += 1;
        entry.time += begin.elapsed();
        result
    }

    /// Names and times, the longest first.
    #[must_use]
    pub fn ops(&self) -> Vec<(&'static str, OpTime)> {
        let mut all: Vec<_> = self.0.iter().map(|(name, time)| (*name, *time)).collect();
        all.sort_by_key(|(_, time)| std::cmp::Reverse(time.time));
        all
    }

    /// Time of all ops.
    #[must_use]
    pub fn total(&self) -> Duration {
        self.0.values().map(|t| t.time).sum()
    }
}

/// What to measure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BenchOptions {
    /// Tokens of a prefill; 0 for none.
    pub prompt_tokens: usize,
    /// Tokens decoded one by one; 0 for none.
    pub gen_tokens: usize,
    /// Positions held before each measurement.
    pub depths: Vec<usize>,
    /// Sequences that are decoded at the same time.
    pub batches: Vec<usize>,
    /// Rounds, of which medians are taken.
    pub rounds: usize,
    /// Whether to time every op.
    pub profile: bool,
}

impl BenchOptions {
    /// Positions that a model must have.
    #[must_use]
    pub fn context(&self) -> usize {
        let deepest = self.depths.iter().copied().max().unwrap_or(0);
        deepest.saturating_add(self.prompt_tokens.max(self.gen_tokens))
    }

    /// Sequences that a model must hold.
    #[must_use]
    pub fn sequences(&self) -> usize {
        self.batches.iter().copied().max().unwrap_or(1)
    }
}

/// Tokens per second of one kind of work, one value per round.
#[derive(Clone, Debug, PartialEq)]
pub struct Rate {
    /// Positions held before.
    pub depth: usize,
    /// Sequences at the same time.
    pub sequences: usize,
    /// Tokens of a round and a sequence.
    pub tokens: usize,
    /// Tokens per second of all sequences together, round by round.
    pub rounds: Vec<f64>,
    /// Of the ceiling that the same round measured: multiply-adds for prefill, bytes of weights for decoding, where
    /// they are known ([`TokenCost::step_bytes`]).
    pub share: Option<f64>,
    /// Joules per token, median, where the machine tells.
    pub joules_per_token: Option<f64>,
}

impl Rate {
    /// Median tokens per second.
    #[must_use]
    pub fn tokens_per_s(&self) -> f64 {
        median(&self.rounds)
    }
}

/// The machine at its best, medians.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ceilings {
    /// Streaming reads, bytes per second.
    pub read: f64,
    /// int8 dot products in registers, multiply-adds per second.
    pub int8: f64,
}

/// What was measured.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BenchReport {
    /// Per depth.
    pub prefill: Vec<Rate>,
    /// Per depth.
    pub decode: Vec<Rate>,
    /// `None` if the device has no meter.
    pub ceilings: Option<Ceilings>,
    /// What a token costs.
    pub cost: TokenCost,
    /// Times of prefill and of decoding, if asked for.
    pub profile: Option<[Profile; 2]>,
}

/// Measures; `None` if cancelled.
///
/// # Errors
/// [`RuntimeError::Option`] if there are no rounds or a batch of none; what running the model reports.
pub fn bench(
    model: &mut Model,
    meter: Option<&Meter>,
    options: &BenchOptions,
    cancel: &AtomicBool,
    report: &dyn Report,
) -> Result<Option<BenchReport>, RuntimeError> {
    for (option, value) in [("--rounds", Some(&options.rounds)), ("--batch", options.batches.iter().min())] {
        if value == Some(&0) {
            return Err(RuntimeError::Option { option, got: "0".into(), expected: "at least 1".into() });
        }
    }
    let mut all = BenchReport { cost: model.token_cost(), ..BenchReport::default() };
    let mut ceilings = [Vec::new(), Vec::new()];
    let mut profiles = [Profile::default(), Profile::default()];
    let mut energy = Energy::start();
    report.begin("bench", (options.depths.len() * options.rounds) as u64);
    warm_up(model, options)?;
    for &depth in &options.depths {
        fill(model, depth, options.sequences())?;
        let mut works = works(options);
        for _ in 0..options.rounds {
            let best = meter.map(|m| [m.int8(), m.read()]);
            for (work, series) in &mut works {
                if cancel.load(Ordering::Relaxed) {
                    report.end();
                    return Ok(None);
                }
                model.set_profile(options.profile);
                energy.as_mut().and_then(Energy::joules);
                let seconds = measure(model, depth, *work)?;
                let (tokens, kind) = ((work.tokens * work.sequences) as f64, usize::from(!work.prompt));
                series.joules.extend(energy.as_mut().and_then(Energy::joules).map(|j| j / tokens));
                if let Some(profile) = model.set_profile(false) {
                    profiles[kind].add(&profile);
                }
                series.rounds.push(tokens / seconds);
                if let Some(best) = best {
                    series.shares.extend(work.demand(&all.cost).map(|demand| demand / seconds / best[kind]));
                    ceilings[kind].push(best[kind]);
                }
            }
            report.advance(1, "");
        }
        for (work, series) in works {
            let rates = if work.prompt { &mut all.prefill } else { &mut all.decode };
            rates.push(series.rate(depth, work));
        }
    }
    report.end();
    let [int8, read] = ceilings;
    all.ceilings = meter.map(|_| Ceilings { read: median(&read), int8: median(&int8) });
    all.profile = options.profile.then_some(profiles);
    Ok(Some(all))
}

/// One thing to measure.
#[derive(Clone, Copy)]
struct Work {
    prompt: bool,
    sequences: usize,
    tokens: usize,
}

impl Work {
    /// What it asks of the machine: multiply-adds of a prompt, bytes read by decoding.
    fn demand(&self, cost: &TokenCost) -> Option<f64> {
        let tokens = self.tokens as f64;
        if self.prompt {
            return Some(tokens * cost.multiply_adds);
        }
        cost.step_bytes(self.sequences).map(|bytes| tokens * bytes)
    }
}

/// What its rounds gave.
#[derive(Default)]
struct Series {
    rounds: Vec<f64>,
    shares: Vec<f64>,
    joules: Vec<f64>,
}

impl Series {
    fn rate(self, depth: usize, work: Work) -> Rate {
        let some = |values: &[f64]| (!values.is_empty()).then(|| median(values));
        let (share, joules_per_token) = (some(&self.shares), some(&self.joules));
        let (sequences, tokens) = (work.sequences, work.tokens);
        Rate { depth, sequences, tokens, rounds: self.rounds, share, joules_per_token }
    }
}

fn works(options: &BenchOptions) -> Vec<(Work, Series)> {
    let prompt = Work { prompt: true, sequences: 1, tokens: options.prompt_tokens };
    let decode = |&sequences: &usize| Work { prompt: false, sequences, tokens: options.gen_tokens };
    let all = std::iter::once(prompt).chain(options.batches.iter().map(decode));
    all.filter(|work| work.tokens > 0).map(|work| (work, Series::default())).collect()
}

impl Profile {
    fn add(&mut self, other: &Self) {
        for (name, time) in &other.0 {
            let entry = self.0.entry(name).or_default();
            entry.calls += time.calls;
            entry.time += time.time;
        }
    }
}

/// Runs once what is measured later: the first run maps weights and fills pools, which a model does once in its life.
fn warm_up(model: &mut Model, options: &BenchOptions) -> Result<(), RuntimeError> {
    let tokens = tokens(model, options.prompt_tokens.max(1));
    prompt(model, 0, 0, &tokens)?;
    prompt(model, 0, 0, tokens.get(..1).unwrap_or_default())
}

/// Brings every slot to `depth` positions.
fn fill(model: &mut Model, depth: usize, slots: usize) -> Result<(), RuntimeError> {
    let tokens = tokens(model, depth);
    (0..slots).try_for_each(|slot| prompt(model, slot, 0, &tokens))
}

/// Seconds that a work takes from `depth` on.
fn measure(model: &mut Model, depth: usize, work: Work) -> Result<f64, RuntimeError> {
    let tokens = tokens(model, work.tokens * work.sequences);
    let begin = Instant::now();
    if work.prompt {
        prompt(model, 0, depth, &tokens)?;
    } else {
        for (i, step) in tokens.chunks(work.sequences).enumerate() {
            let one = |slot| SequenceRows { slot, rows: slot..slot + 1, position: depth + i };
            let sequences = (0..step.len()).map(one).collect();
            let outputs = (0..step.len()).collect();
            model.forward(&Batch { tokens: step.to_vec(), sequences, outputs, ..Batch::default() })?;
        }
    }
    Ok(begin.elapsed().as_secs_f64())
}

fn prompt(model: &mut Model, slot: usize, position: usize, tokens: &[u32]) -> Result<(), RuntimeError> {
    model.feed(slot, position, tokens, Wanted::Last, &mut |_| {}, &mut |_| true).map(|_| ())
}

/// Tokens that are the same on every run and of no meaning: every expert is as likely as the router makes it.
fn tokens(model: &Model, count: usize) -> Vec<u32> {
    let vocab = model.spec().vocab_size.max(1) as u64;
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) % vocab) as u32
    };
    (0..count).map(|_| next()).collect()
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_the_middle_value_and_of_nothing_zero() {
        assert_eq!((median(&[3.0, 1.0, 2.0]), median(&[])), (2.0, 0.0));
    }

    #[test]
    fn profiles_add_up_and_list_the_longest_first() {
        let mut sum = Profile::default();
        for (op, ms) in [("a", 1), ("b", 5), ("a", 2)] {
            sum.add(&Profile(BTreeMap::from([(op, OpTime { calls: 1, time: Duration::from_millis(ms) })])));
        }
        let ops: Vec<_> = sum.ops().into_iter().map(|(name, t)| (name, t.calls, t.time.as_millis())).collect();
        assert_eq!((ops, sum.total().as_millis()), (vec![("b", 1, 5), ("a", 2, 3)], 8));
    }
}
