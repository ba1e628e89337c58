//! From logits to a token.
//!
//! Filters in this order, which is that of transformers: repetition penalty, temperature, top-k, top-p, min-p; each sees
//! what the one before it left. Everything is f64 and depends on nothing but logits, options, seed and the tokens seen:
//! the same on every machine.

mod surveyed;

pub(crate) use surveyed::Values;

use crate::RuntimeError;
use std::cmp::Ordering;
use std::collections::HashSet;

/// How a token is chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 takes the most probable token, whatever the filters say.
    pub temperature: f64,
    /// Keeps this many of the most probable tokens; 0 for all.
    pub top_k: usize,
    /// Keeps the fewest most probable tokens whose probabilities sum to at least this; 1 for all.
    pub top_p: f64,
    /// Keeps tokens at least this fraction as probable as the most probable one; 0 for all.
    pub min_p: f64,
    /// Logits of tokens seen lately are divided by this if positive, multiplied if negative (Keskar et al. 2019).
    /// 1 for none.
    pub repetition_penalty: f64,
    /// How many of the last tokens count as seen.
    pub repetition_window: usize,
    /// Seed of the random numbers.
    pub seed: u64,
}

impl Default for Sampling {
    /// Greedy.
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            repetition_window: 64,
            seed: 0,
        }
    }
}

impl Sampling {
    /// Whether every option is in its range.
    ///
    /// # Errors
    /// [`RuntimeError::Option`] names the first that is not.
    pub fn check(&self) -> Result<(), RuntimeError> {
        let bad = |option, got: f64, expected: &str| {
            Err(RuntimeError::Option { option, got: got.to_string(), expected: expected.into() })
        };
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            return bad("--temperature", self.temperature, "a number from 0 on");
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return bad("--top-p", self.top_p, "more than 0, at most 1");
        }
        if !(0.0..=1.0).contains(&self.min_p) {
            return bad("--min-p", self.min_p, "0 to 1");
        }
        if !(self.repetition_penalty > 0.0 && self.repetition_penalty.is_finite()) {
            return bad("--repetition-penalty", self.repetition_penalty, "a number above 0 (1 for none)");
        }
        Ok(())
    }
}

/// Chooses tokens.
#[derive(Clone, Debug)]
pub struct Sampler {
    options: Sampling,
    random: Xoshiro,
}

/// A token that may be chosen, with its logit, later its probability.
type Candidate = (u32, f64);

impl Sampler {
    /// A sampler at the beginning of its random numbers.
    ///
    /// # Errors
    /// As [`Sampling::check`].
    pub fn new(options: Sampling) -> Result<Self, RuntimeError> {
        options.check()?;
        let random = Xoshiro::new(options.seed);
        Ok(Self { options, random })
    }

    /// The next token. `seen`: all tokens so far, of which the last `repetition_window` are looked at.
    ///
    /// # Errors
    /// [`RuntimeError::Evaluate`] if a logit is NaN or none is finite: the model or its weights are broken.
    pub fn sample(&mut self, logits: &[f32], seen: &[u32]) -> Result<u32, RuntimeError> {
        let mut all: Vec<Candidate> = (0..).zip(logits).map(|(id, l)| (id, logit(*l))).collect();
        if all.iter().any(|c| c.1.is_nan()) || !all.iter().any(|c| c.1.is_finite()) {
            return Err(no_numbers());
        }
        for id in self.penalized(seen) {
            if let Some((_, logit)) = all.get_mut(id as usize) {
                *logit = self.penalty(*logit);
            }
        }
        if self.options.temperature == 0.0 {
            return Ok(greedy(&all));
        }
        let vocab = all.len();
        let kept = distribution(all, vocab, &self.options);
        Ok(self.draw(&kept))
    }

    /// The tokens whose logits are changed for having been seen lately.
    fn penalized(&self, seen: &[u32]) -> HashSet<u32> {
        if self.options.repetition_penalty == 1.0 {
            return HashSet::new();
        }
        let first = seen.len().saturating_sub(self.options.repetition_window);
        seen.iter().skip(first).copied().collect()
    }

    fn penalty(&self, logit: f64) -> f64 {
        let p = self.options.repetition_penalty;
        if logit > 0.0 { logit / p } else { logit * p }
    }

    fn draw(&mut self, kept: &[Candidate]) -> u32 {
        let total: f64 = kept.iter().map(|c| c.1).sum();
        let mut left = self.random.unit() * total;
        for (id, p) in kept {
            left -= p;
            if left < 0.0 {
                return *id;
            }
        }
        // Rounding may leave a crumb; it belongs to the last token that has any probability.
        kept.iter().rev().find(|c| c.1 > 0.0).map_or(0, |c| c.0)
    }
}

/// A logit as the sampler sees it: −0 is 0.
fn logit(value: f32) -> f64 {
    f64::from(value) + 0.0
}

fn no_numbers() -> RuntimeError {
    RuntimeError::Evaluate("the model's logits are not numbers; run `verify` on the model".into())
}

/// The greatest logit; equal ones by the lower id.
fn greedy(all: &[Candidate]) -> u32 {
    all.iter().fold((0, f64::NEG_INFINITY), |best, c| if c.1 > best.1 { *c } else { best }).0
}

/// The greatest first, equal ones by the lower id.
fn by_logit(a: &Candidate, b: &Candidate) -> Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

/// Probabilities of the tokens, of `vocab` in all, that pass the filters (they need not sum to 1): most probable first where any
/// filter is on, else by id.
fn distribution(mut all: Vec<Candidate>, vocab: usize, options: &Sampling) -> Vec<Candidate> {
    let narrows = options.top_k > 0 && options.top_k < vocab;
    if narrows && options.top_k < all.len() {
        all.select_nth_unstable_by(options.top_k - 1, by_logit);
        all.truncate(options.top_k);
    }
    if narrows || options.top_p < 1.0 || options.min_p > 0.0 {
        all.sort_unstable_by(by_logit);
    }
    let max = all.iter().fold(f64::NEG_INFINITY, |m, c| m.max(c.1));
    for c in &mut all {
        c.1 = ((c.1 - max) / options.temperature).exp();
    }
    if options.top_p < 1.0 {
        let target = options.top_p * all.iter().map(|c| c.1).sum::<f64>();
        all.truncate(narrow(&all, target).unwrap_or(all.len()));
    }
    if options.min_p > 0.0 {
        all.truncate(passed(&all, options.min_p));
    }
    all
}

/// How many of the most probable tokens, which come first, it takes to reach a sum.
fn narrow(sorted: &[Candidate], target: f64) -> Option<usize> {
    let mut sum = 0.0;
    let reached = sorted.iter().position(|c| {
        sum += c.1;
        sum >= target
    });
    reached.map(|i| i + 1)
}

/// How many are probable enough. The most probable token has 1, so that it is one at least.
fn passed(sorted: &[Candidate], min_p: f64) -> usize {
    sorted.iter().take_while(|c| c.1 >= min_p).count()
}

/// xoshiro256++ (Blackman & Vigna 2019), seeded by SplitMix64.
#[derive(Clone, Debug)]
pub(crate) struct Xoshiro([u64; 4]);

impl Xoshiro {
    pub fn new(seed: u64) -> Self {
        let mut state = seed;
        Self(std::array::from_fn(|_| {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        }))
    }

    pub fn next(&mut self) -> u64 {
        let [a, b, c, d] = &mut self.0;
        let result = a.wrapping_add(*d).rotate_left(23).wrapping_add(*a);
        let t = *b << 17;
        *c ^= *a;
        *d ^= *b;
        *b ^= *c;
        *a ^= *d;
        *c ^= t;
        *d = d.rotate_left(45);
        result
    }

    /// In [0, 1), 53 bits.
    pub fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests;
