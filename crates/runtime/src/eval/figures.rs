//! The figures of a comparison, from the scores of its predictions.

use super::bootstrap::{Means, ci95, quantile};
use super::routing::RoutingFigures;
use super::score::Score;

/// A figure and its 95 % bootstrap interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// The figure.
    pub value: f64,
    /// The interval.
    pub ci95: [f64; 2],
}

impl Estimate {
    fn of(means: &Means, figure: impl Fn(f64) -> f64 + Copy) -> Self {
        Self { value: figure(means.all()), ci95: means.ci95(figure) }
    }
}

/// How well a model predicts a text.
#[derive(Clone, Debug, PartialEq)]
pub struct Perplexity {
    /// exp of the mean negative log probability.
    pub perplexity: f64,
    /// 95 % bootstrap interval.
    pub ci95: [f64; 2],
    /// Tokens scored.
    pub tokens: usize,
    /// Windows they lie in.
    pub windows: usize,
    /// Tokens that could not be scored, as a logit was no finite number.
    pub non_finite: usize,
}

/// Distances between predictions, in nats.
#[derive(Clone, Debug, PartialEq)]
pub struct Divergence {
    /// Mean of KL(reference ‖ model).
    pub mean: f64,
    /// 95 % bootstrap interval of the mean.
    pub ci95: [f64; 2],
    /// Median.
    pub median: f64,
    /// 90th percentile.
    pub p90: f64,
    /// 99th percentile.
    pub p99: f64,
    /// 99.9th percentile.
    pub p999: f64,
    /// The largest.
    pub max: f64,
}

/// Change of the probability of the token that came: p(model) − p(reference).
#[derive(Clone, Debug, PartialEq)]
pub struct DeltaP {
    /// Mean; negative where the model is less sure of the text.
    pub mean: Estimate,
    /// Root of the mean square.
    pub rms: Estimate,
}

/// What holds for a stretch of positions in the windows.
#[derive(Clone, Debug, PartialEq)]
pub struct Stretch {
    /// First position.
    pub from: usize,
    /// One past the last.
    pub to: usize,
    /// Tokens scored there.
    pub tokens: usize,
    /// Mean of KL(reference ‖ model).
    pub kl: Estimate,
    /// Share of predictions whose most probable token is the same.
    pub top1: f64,
}

/// A model beside a reference.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    /// The model.
    pub model: Perplexity,
    /// The reference, on the same tokens.
    pub reference: Perplexity,
    /// Perplexity of the model minus that of the reference, and its 95 % bootstrap interval (same windows for both).
    pub delta: f64,
    /// The interval of `delta`.
    pub delta_ci95: [f64; 2],
    /// Perplexity of the model over that of the reference.
    pub ratio: Estimate,
    /// KL(reference ‖ model).
    pub kl: Divergence,
    /// Change of the probability of the token that came.
    pub delta_p: DeltaP,
    /// Share of predictions whose most probable token is the same.
    pub top1: f64,
    /// 95 % bootstrap interval of `top1`.
    pub top1_ci95: [f64; 2],
    /// By position in the window; stretches double in length.
    pub positions: Vec<Stretch>,
    /// Where tokens were routed; `None` if no layer has a router.
    pub routing: Option<RoutingFigures>,
}

pub(super) fn perplexity(windows: &[Vec<Score>], non_finite: usize, nll: impl Fn(&Score) -> f64) -> Perplexity {
    let means = Means::of(windows, |s| Some(nll(s)));
    let Estimate { value, ci95 } = Estimate::of(&means, f64::exp);
    Perplexity { perplexity: value, ci95, tokens: means.count(), windows: windows.len(), non_finite }
}

pub(super) fn comparison(windows: &[Vec<Score>], non_finite: usize, routing: Option<RoutingFigures>) -> Comparison {
    let means = |part: fn(&Score) -> f64| Means::of(windows, |s| Some(part(s)));
    let (nll, reference_nll, top1) = (means(|s| s.nll), means(|s| s.reference_nll), means(|s| s.agrees));
    let loss = means(|s| s.nll - s.reference_nll);
    let model = perplexity(windows, non_finite, |s| s.nll);
    let reference = perplexity(windows, 0, |s| s.reference_nll);
    Comparison {
        delta: model.perplexity - reference.perplexity,
        delta_ci95: ci95(windows.len(), |pick| nll.mean(pick).exp() - reference_nll.mean(pick).exp()),
        ratio: Estimate::of(&loss, f64::exp),
        model,
        reference,
        kl: divergence(windows, &means(|s| s.kl)),
        delta_p: DeltaP {
            mean: Estimate::of(&means(|s| s.delta_p), |m| m),
            rms: Estimate::of(&means(|s| s.delta_p * s.delta_p), f64::sqrt),
        },
        top1: top1.all(),
        top1_ci95: top1.ci95(|m| m),
        positions: positions(windows),
        routing,
    }
}

fn divergence(windows: &[Vec<Score>], means: &Means) -> Divergence {
    let mut kl: Vec<f64> = windows.iter().flatten().map(|s| s.kl).collect();
    kl.sort_unstable_by(f64::total_cmp);
    let Estimate { value: mean, ci95 } = Estimate::of(means, |m| m);
    Divergence {
        mean,
        ci95,
        median: quantile(&kl, 0.5),
        p90: quantile(&kl, 0.9),
        p99: quantile(&kl, 0.99),
        p999: quantile(&kl, 0.999),
        max: quantile(&kl, 1.0),
    }
}

/// The end of the first stretch of positions.
const FIRST_STRETCH: usize = 32;

fn positions(windows: &[Vec<Score>]) -> Vec<Stretch> {
    let end = windows.iter().flatten().map(|s| s.position + 1).max().unwrap_or_default();
    let mut all = Vec::new();
    let (mut from, mut to) = (0, FIRST_STRETCH);
    while from < end {
        let here = |s: &Score, part: f64| (from..to).contains(&s.position).then_some(part);
        let kl = Means::of(windows, |s| here(s, s.kl));
        if kl.count() > 0 {
            let top1 = Means::of(windows, |s| here(s, s.agrees)).all();
            all.push(Stretch { from, to: to.min(end), tokens: kl.count(), kl: Estimate::of(&kl, |m| m), top1 });
        }
        (from, to) = (to, to * 2);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two windows of three predictions.
    fn windows() -> Vec<Vec<Score>> {
        let score = |position, nll: f64, reference_nll: f64, kl, agrees| {
            let delta_p = f64::exp(-nll) - f64::exp(-reference_nll);
            Score { position, nll, reference_nll, kl, delta_p, agrees }
        };
        vec![
            vec![score(1, 1.0, 0.5, 0.10, 1.0), score(31, 2.0, 2.0, 0.00, 1.0), score(32, 0.5, 0.7, 0.02, 0.0)],
            vec![score(1, 3.0, 2.5, 0.30, 0.0), score(31, 1.0, 1.5, 0.04, 1.0), score(32, 0.2, 0.1, 0.08, 1.0)],
        ]
    }

    // Expected values: `golden/eval_figures.py`, with numpy.
    #[test]
    fn figures_of_known_scores_are_numpys() {
        let c = comparison(&windows(), 2, None);
        let close = |got: f64, want: f64| assert!((got - want).abs() < 1e-12, "{got} instead of {want}");
        close(c.model.perplexity, 3.608_648_528_206_314_8);
        close(c.reference.perplexity, 3.375_915_904_661_073_6);
        close(c.ratio.value, 1.068_939_105_747_246_4);
        close(c.kl.mean, 0.09);
        close(c.kl.median, 0.06);
        close(c.kl.p90, 0.2);
        close(c.kl.p99, 0.29);
        close(c.kl.p999, 0.299);
        close(c.kl.max, 0.3);
        close(c.delta_p.mean.value, -0.017_060_196_135_161_205);
        close(c.delta_p.rms.value, 0.128_096_483_041_448_2);
        close(c.top1, 4.0 / 6.0);
        assert_eq!((c.model.tokens, c.model.windows, c.model.non_finite), (6, 2, 2));
    }

    #[test]
    fn stretches_of_positions_double_and_end_with_the_window() {
        let all = positions(&windows());
        assert_eq!(all.iter().map(|s| (s.from, s.to, s.tokens)).collect::<Vec<_>>(), [(0, 32, 4), (32, 33, 2)]);
        assert!((all[0].kl.value - 0.11).abs() < 1e-12 && (all[1].kl.value - 0.05).abs() < 1e-12, "{all:?}");
        assert_eq!((all[0].top1, all[1].top1), (0.75, 0.5));
    }

    #[test]
    fn intervals_hold_their_figure_and_repeat() {
        let c = comparison(&windows(), 0, None);
        for (value, [low, high]) in [
            (c.kl.mean, c.kl.ci95),
            (c.top1, c.top1_ci95),
            (c.delta, c.delta_ci95),
            (c.ratio.value, c.ratio.ci95),
            (c.delta_p.rms.value, c.delta_p.rms.ci95),
        ] {
            assert!(low <= value && value <= high, "{value} outside {low} to {high}");
        }
        assert_eq!(c, comparison(&windows(), 0, None));
    }
}
