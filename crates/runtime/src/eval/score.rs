//! Scores of single predictions, in f64.

use crate::RuntimeError;

/// One prediction.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Score {
    /// Position in its window of the token that came.
    pub position: usize,
    /// −ln p of the token that came.
    pub nll: f64,
    /// The same by the reference.
    pub reference_nll: f64,
    /// KL(reference ‖ model).
    pub kl: f64,
    /// Probability of the token that came, minus that by the reference.
    pub delta_p: f64,
    /// 1 if both find the same token most probable, else 0.
    pub agrees: f64,
}

/// Scores of many predictions.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scored {
    /// In order of position.
    pub scores: Vec<Score>,
    /// Predictions that are left out because one of the model's logits is no finite number.
    pub non_finite: usize,
}

/// A row of logits, that of the reference, and position and id of the token that came.
type Job<'a> = (&'a [f32], Option<&'a [f32]>, (usize, u32));

/// Scores rows of logits (rows × vocab), each by its target; rows without one are left out. Rows are shared out over
/// the cores; each is computed whole, so that the result does not depend on how many there are.
pub fn scores(
    logits: &[f32],
    reference: Option<&[f32]>,
    vocab: usize,
    targets: impl Iterator<Item = Option<(usize, u32)>>,
) -> Result<Scored, RuntimeError> {
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
    let parts: Vec<Option<Result<Scored, RuntimeError>>> = std::thread::scope(|scope| {
        let workers: Vec<_> = jobs.chunks(share).map(|part| scope.spawn(move || several(part))).collect();
        workers.into_iter().map(|w| w.join().ok()).collect()
    });
    let mut all = Scored::default();
    for part in parts {
        let part =
            part.ok_or_else(|| RuntimeError::Evaluate("a scoring thread died; please report this bug".into()))??;
        all.scores.extend(part.scores);
        all.non_finite += part.non_finite;
    }
    Ok(all)
}

fn several(jobs: &[Job<'_>]) -> Result<Scored, RuntimeError> {
    let mut all = Scored::default();
    for (got, want, (position, target)) in jobs {
        match score(got, *want, *target)? {
            Some(score) => all.scores.push(Score { position: *position, ..score }),
            None => all.non_finite += 1,
        }
    }
    Ok(all)
}

/// `None` if one of the model's logits is not finite.
fn score(logits: &[f32], reference: Option<&[f32]>, target: u32) -> Result<Option<Score>, RuntimeError> {
    let outside = || RuntimeError::Evaluate(format!("token {target} is not in the vocabulary of {}", logits.len()));
    let at = target as usize;
    let logit = *logits.get(at).ok_or_else(outside)?;
    let truth = match reference {
        Some(reference) => {
            let broken = "the reference's logits are not finite numbers; run `verify` on it";
            let softmax = Softmax::of(reference).ok_or_else(|| RuntimeError::Evaluate(broken.into()))?;
            Some((softmax, reference, *reference.get(at).ok_or_else(outside)?))
        }
        None => None,
    };
    let Some(model) = Softmax::of(logits) else { return Ok(None) };
    let alone = Score { nll: -model.ln_p(logit), ..Score::default() };
    let Some((truth, reference, reference_logit)) = truth else { return Ok(Some(alone)) };
    let kl: f64 = reference
        .iter()
        .zip(logits)
        .map(|(r, m)| {
            let ln_p = truth.ln_p(*r);
            let p = ln_p.exp();
            if p == 0.0 { 0.0 } else { p * (ln_p - model.ln_p(*m)) }
        })
        .sum();
    let reference_nll = -truth.ln_p(reference_logit);
    Ok(Some(Score {
        reference_nll,
        // Rounding may give −1e-17 for equal distributions.
        kl: kl.max(0.0),
        delta_p: (-alone.nll).exp() - (-reference_nll).exp(),
        agrees: f64::from(u8::from(model.argmax == truth.argmax)),
        ..alone
    }))
}

/// What a row of logits needs to become log probabilities.
struct Softmax {
    max: f64,
    ln_sum: f64,
    argmax: usize,
}

impl Softmax {
    /// `None` if a logit is not finite.
    fn of(logits: &[f32]) -> Option<Self> {
        let mut best = (0, f32::NEG_INFINITY);
        for (i, l) in logits.iter().enumerate() {
            if !l.is_finite() {
                return None;
            }
            if *l > best.1 {
                best = (i, *l);
            }
        }
        let max = f64::from(best.1);
        let sum: f64 = logits.iter().map(|l| (f64::from(*l) - max).exp()).sum();
        (!logits.is_empty()).then(|| Self { max, ln_sum: sum.ln(), argmax: best.0 })
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
        let got = score(&[1.0, 2.0, 0.5], Some(&[1.5, 1.0, -1.0]), 1).unwrap().unwrap();
        assert!((got.nll - 0.464_368_784_107_945_13).abs() < 1e-12, "{got:?}");
        assert!((got.reference_nll - 1.023_909_056_179_907_6).abs() < 1e-12, "{got:?}");
        assert!((got.kl - 0.304_455_921_191_625_23).abs() < 1e-12, "{got:?}");
        assert!((got.delta_p - (0.628_531_719_211_762_4 - 0.359_188_105_782_538_6)).abs() < 1e-12, "{got:?}");
        assert_eq!(got.agrees, 0.0);
    }

    #[test]
    fn large_logits_do_not_overflow_and_equal_ones_diverge_by_nothing() {
        let l = [1e4f32, -1e4, 9.99e3];
        let got = score(&l, Some(&l), 1).unwrap().unwrap();
        assert_eq!((got.kl, got.delta_p, got.agrees), (0.0, 0.0, 1.0));
        assert!((got.nll - 2e4).abs() < 1e-3);
    }

    #[test]
    fn predictions_that_are_not_finite_are_counted_and_left_out() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let got = scores(&[0.0, bad, 1.0, 2.0], None, 2, [Some((1, 0)), Some((2, 0))].into_iter()).unwrap();
            assert_eq!((got.scores.len(), got.non_finite), (1, 1), "{bad}");
            assert_eq!(got.scores[0].position, 2);
            let reference = [0.0, bad];
            assert!(scores(&[0.0, 1.0], Some(&reference), 2, [Some((1, 0))].into_iter()).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_token_outside_the_vocabulary_is_an_error() {
        assert!(scores(&[0.0, 1.0], None, 2, [Some((1, 5))].into_iter()).is_err());
    }

    #[test]
    fn rows_without_a_target_are_left_out_and_order_is_kept() {
        let logits: Vec<f32> = (0..40).map(|i| i as f32 * 0.1).collect();
        let targets = (0..20).map(|i| (i % 3 != 0).then_some((i as usize, i % 2)));
        let all = scores(&logits, None, 2, targets).unwrap().scores;
        assert_eq!(all.len(), 13);
        assert!(all.windows(2).all(|w| w[0].position < w[1].position));
        assert!(all[0].nll < all[1].nll, "the first scored row has target 1, the greater logit");
    }
}
