//! What models write themselves: where they part from the reference, and whether they loop.

use super::Windows;
use crate::{Model, RuntimeError, Wanted};
use ashlar_tensor::Report;
use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};

/// Tokens per n-gram when repetition is measured.
const GRAM: usize = 4;

/// A continuation loops if more than this share of its n-grams came before in it.
const LOOPS: f64 = 0.5;

/// How two models continue the same prompts, always with the most probable token.
#[derive(Clone, Debug, PartialEq)]
pub struct Continuations {
    /// Prompts.
    pub prompts: usize,
    /// Tokens of each prompt.
    pub prompt_tokens: usize,
    /// Tokens written after each.
    pub tokens: usize,
    /// Median over the prompts of the tokens written before the first that differs.
    pub first_difference: f64,
    /// Share of prompts for which all tokens are the same.
    pub identical: f64,
    /// The model's.
    pub model: Written,
    /// The reference's.
    pub reference: Written,
}

/// What one model wrote.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Written {
    /// Share of the 4-grams that came before in the same continuation, mean over the prompts.
    pub repeated: f64,
    /// Share of continuations in which more than half of the 4-grams came before.
    pub looping: f64,
}

impl Continuations {
    /// From the continuations of the same prompts, in the same order.
    #[must_use]
    pub fn of(prompts: &[Vec<u32>], model: &[Vec<u32>], reference: &[Vec<u32>]) -> Self {
        let tokens = model.iter().chain(reference).map(Vec::len).max().unwrap_or_default();
        let same = |(a, b): (&Vec<u32>, &Vec<u32>)| a.iter().zip(b).take_while(|(x, y)| x == y).count() as f64;
        let mut common: Vec<f64> = model.iter().zip(reference).map(same).collect();
        common.sort_unstable_by(f64::total_cmp);
        let identical = common.iter().filter(|c| **c >= tokens as f64).count();
        Self {
            prompts: common.len(),
            prompt_tokens: prompts.iter().map(Vec::len).max().unwrap_or_default(),
            tokens,
            first_difference: super::bootstrap::quantile(&common, 0.5),
            identical: identical as f64 / common.len() as f64,
            model: Written::of(model),
            reference: Written::of(reference),
        }
    }
}

impl Written {
    fn of(continuations: &[Vec<u32>]) -> Self {
        let rates: Vec<f64> = continuations.iter().map(|ids| repeated(ids)).collect();
        let count = rates.len() as f64;
        let looping = rates.iter().filter(|r| **r > LOOPS).count();
        Self { repeated: rates.iter().sum::<f64>() / count, looping: looping as f64 / count }
    }
}

/// Share of n-grams that came before; 0 where there is none.
fn repeated(ids: &[u32]) -> f64 {
    let mut seen = HashSet::new();
    let again = ids.windows(GRAM).filter(|gram| !seen.insert(*gram)).count();
    again as f64 / ids.len().saturating_sub(GRAM - 1).max(1) as f64
}

/// Continues every prompt by `tokens` tokens, always the most probable one (equal ones: the lower id). Stop tokens do
/// not end it, so that all continuations are of one length. `None` if `cancel` was set.
///
/// # Errors
/// [`RuntimeError`] if prompt and tokens do not fit the context, or the device fails.
pub fn continue_greedily(
    model: &mut Model,
    windows: &Windows,
    [count, prompt_tokens, tokens]: [usize; 3],
    cancel: &AtomicBool,
    report: &dyn Report,
) -> Result<Option<Vec<Vec<u32>>>, RuntimeError> {
    report.begin("continue", (count * (prompt_tokens + tokens)) as u64);
    let mut all = || {
        let mut written = Vec::new();
        for prompt in windows.prompts(count, prompt_tokens) {
            let mut ids: Vec<u32> = Vec::new();
            let (mut position, mut next) = (0, prompt);
            while ids.len() < tokens {
                if cancel.load(Ordering::Relaxed) {
                    return Ok(None);
                }
                let mut best = 0;
                model.feed(0, position, &next, Wanted::Last, &mut |row| best = argmax(row), &mut |_| true)?;
                position += next.len();
                report.advance(next.len() as u64, "");
                ids.push(best);
                next = vec![best];
            }
            written.push(ids);
        }
        Ok(Some(written))
    };
    let done = all();
    report.end();
    done
}

/// Values that are no numbers are never the largest.
fn argmax(row: &[f32]) -> u32 {
    let best = |best: (u32, f32), (id, l): (u32, f32)| if l > best.1 { (id, l) } else { best };
    (0..).zip(row.iter().copied()).fold((0, f32::NEG_INFINITY), best).0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_4_grams_are_those_seen_before() {
        assert_eq!(repeated(&[1, 2, 3, 4, 5, 6]), 0.0);
        // 1234 2341 3412 4123 | 1234 2341: two of six.
        assert_eq!(repeated(&[1, 2, 3, 4, 1, 2, 3, 4, 1]), 2.0 / 6.0);
        assert_eq!(repeated(&[7; 103]), 0.99);
        assert_eq!(repeated(&[1, 2]), 0.0);
    }

    #[test]
    fn the_first_difference_counts_the_tokens_before_it() {
        let prompts = vec![vec![0; 8]; 3];
        let reference = vec![vec![1, 2, 3, 4], vec![5, 6, 7, 8], vec![1, 1, 1, 1]];
        let model = vec![vec![1, 2, 9, 4], vec![5, 6, 7, 8], vec![2, 1, 1, 1]];
        let c = Continuations::of(&prompts, &model, &reference);
        assert_eq!((c.prompts, c.prompt_tokens, c.tokens), (3, 8, 4));
        assert_eq!((c.first_difference, c.identical), (2.0, 1.0 / 3.0));
    }

    #[test]
    fn loops_are_counted_for_both() {
        let (loops, flows) = (vec![3; 40], (0..40).collect::<Vec<_>>());
        let c = Continuations::of(&[vec![0], vec![0]], &[loops, flows.clone()], &[flows.clone(), flows]);
        assert_eq!((c.model.looping, c.reference.looping, c.reference.repeated), (0.5, 0.0, 0.0));
        assert!((c.model.repeated - 36.0 / 37.0 / 2.0).abs() < 1e-12);
    }

    #[test]
    fn the_most_probable_token_is_the_first_of_equals_and_never_nan() {
        assert_eq!(argmax(&[0.0, f32::NAN, 2.0, 2.0, -1.0]), 2);
        assert_eq!(argmax(&[f32::NAN; 3]), 0);
    }
}
