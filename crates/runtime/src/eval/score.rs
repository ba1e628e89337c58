//! Scores of single predictions, in f64.

use crate::RuntimeError;

/// One prediction.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Score {
    /// −ln p of the token that came.
    pub nll: f64,
    /// The same by the reference.
    pub reference_nll: f64,
    /// KL(reference ‖ model).
    pub kl: f64,
    /// 1 if both find the same token most probable, else 0.
    pub agrees: f64,
}

/// A row of logits, that of the reference, and the token that came.
type Job<'a> = (&'a [f32], Option<&'a [f32]>, u32);

/// Scores rows of logits (rows × vocab), each by its target; rows without one are left out. Rows are shared out over
/// the cores; each is computed whole, so that the result does not depend on how many there are.
pub fn scores(
    logits: &[f32],
    reference: Option<&[f32]>,
    vocab: usize,
    targets: impl Iterator<Item = Option<u32>>,
) -> Result<Vec<Score>, RuntimeError> {
    let row = |all: &'_ [f32], i: usize| -> std::ops::Range<usize> {
        (i * vocab).min(all.len())..((i + 1) * vocab).min(all.len())
    };
    let jobs: Vec<Job<'_>> = targets
        .enumerate()
        .filter_map(|(i, target)| {
            let want = reference.and_then(|r| r.get(row(r, i)));
            Some((logits.get(row(logits, i))?, want, target?))
        })
        .collect();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let share = jobs.len().div_ceil(threads).max(1);
    let parts: Vec<Option<Vec<Score>>> = std::thread::scope(|scope| {
        let one = |(got, want, target): &Job<'_>| score(got, *want, *target);
        let workers: Vec<_> = jobs
            .chunks(share)
            .map(|part| scope.spawn(move || part.iter().map(one).collect::<Option<Vec<_>>>()))
            .collect();
        workers.into_iter().map(|w| w.join().ok().flatten()).collect()
    });
    let all: Option<Vec<Vec<Score>>> = parts.into_iter().collect();
    all.map(|parts| parts.concat())
        .ok_or_else(|| RuntimeError::Evaluate("the model's logits are not numbers; run `verify` on the model".into()))
}

/// `None` if a logit is not a number.
fn score(logits: &[f32], reference: Option<&[f32]>, target: u32) -> Option<Score> {
    let model = Softmax::of(logits)?;
    let nll = -model.ln_p(*logits.get(target as usize)?);
    let Some(reference) = reference else { return Some(Score { nll, ..Score::default() }) };
    let truth = Softmax::of(reference)?;
    let kl: f64 = reference
        .iter()
        .zip(logits)
        .map(|(r, m)| {
            let ln_p = truth.ln_p(*r);
            let p = ln_p.exp();
            if p == 0.0 { 0.0 } else { p * (ln_p - model.ln_p(*m)) }
        })
        .sum();
    Some(Score {
        nll,
        reference_nll: -truth.ln_p(*reference.get(target as usize)?),
        // Rounding may give −1e-17 for equal distributions.
        kl: kl.max(0.0),
        agrees: f64::from(u8::from(model.argmax == truth.argmax)),
    })
}

/// What a row of logits needs to become log probabilities.
struct Softmax {
    max: f64,
    ln_sum: f64,
    argmax: usize,
}

impl Softmax {
    fn of(logits: &[f32]) -> Option<Self> {
        let mut best = (0, f32::NEG_INFINITY);
        for (i, l) in logits.iter().enumerate() {
            if l.is_nan() {
                return None;
            }
            if *l > best.1 {
                best = (i, *l);
            }
        }
        let max = f64::from(best.1);
        let sum: f64 = logits.iter().map(|l| (f64::from(*l) - max).exp()).sum();
        max.is_finite().then(|| Self { max, ln_sum: sum.ln(), argmax: best.0 })
    }

    fn ln_p(&self, logit: f32) -> f64 {
        f64::from(logit) - self.max - self.ln_sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Expected values from Python's math module.
    #[test]
    fn scores_agree_with_hand_computed_ones() {
        let got = score(&[1.0, 2.0, 0.5], Some(&[1.5, 1.0, -1.0]), 1).unwrap();
        assert!((got.nll - 0.464_368_784_107_945_13).abs() < 1e-12, "{got:?}");
        assert!((got.reference_nll - 1.023_909_056_179_907_6).abs() < 1e-12, "{got:?}");
        assert!((got.kl - 0.304_455_921_191_625_23).abs() < 1e-12, "{got:?}");
        assert_eq!(got.agrees, 0.0);
    }

    #[test]
    fn large_logits_do_not_overflow_and_equal_ones_diverge_by_nothing() {
        let l = [1e4f32, -1e4, 9.99e3];
        let got = score(&l, Some(&l), 1).unwrap();
        assert_eq!((got.kl, got.agrees), (0.0, 1.0));
        assert!((got.nll - 2e4).abs() < 1e-3);
    }

    #[test]
    fn logits_that_are_not_numbers_are_an_error() {
        assert!(scores(&[0.0, f32::NAN], None, 2, [Some(0)].into_iter()).is_err());
        assert!(scores(&[0.0, 1.0], None, 2, [Some(5)].into_iter()).is_err());
    }

    #[test]
    fn rows_without_a_target_are_left_out_and_order_is_kept() {
        let logits: Vec<f32> = (0..40).map(|i| i as f32 * 0.1).collect();
        let all = scores(&logits, None, 2, (0..20).map(|i| (i % 3 != 0).then_some(i % 2))).unwrap();
        assert_eq!(all.len(), 13);
        assert!(all[0].nll < all[1].nll, "the first scored row has target 1, the greater logit");
    }
}
