//! Routing: the one definition of how router logits become chosen experts and their weights.

use crate::BackendError;
use ashlar_arch::{Groups, Routing, Scores};

/// Added to the sum that normalised weights are divided by, as the first model with sigmoid scores does.
const TINY: f64 = 1e-20;

/// Whether a routing fits this many experts.
///
/// # Errors
/// [`BackendError::Operand`] if more are chosen than there are, or the groups do not divide them.
pub fn check(routing: &Routing, experts: usize, op: &'static str) -> Result<(), BackendError> {
    let groups = routing.groups.unwrap_or(Groups { count: 1, kept: 1, ranked_by: 1 });
    let from = match experts.checked_div(groups.count) {
        Some(size) if size * groups.count == experts && groups.kept <= groups.count => size * groups.kept,
        _ => 0,
    };
    if routing.top_k > 0 && routing.top_k <= from {
        return Ok(());
    }
    let what = format!("top_k {} of {experts} experts, groups {:?}", routing.top_k, routing.groups);
    Err(BackendError::Operand { op, what })
}

/// The chosen experts of one token and their weights, best first.
///
/// Experts are ranked by score, or by score + `choice_bias` where that is given; equal ones by the lower index. With
/// groups, only experts of the best groups are ranked: a group counts as much as its `ranked_by` best experts together.
/// Weights are scores, divided by the sum of the chosen if `normalize`, times `scale`. All in f64.
#[must_use]
pub fn route(logits: &[f32], choice_bias: Option<&[f32]>, routing: &Routing) -> Vec<(usize, f64)> {
    let scores = scores(logits, routing.scores);
    let rank: Vec<f64> = match (choice_bias, routing.scores) {
        (Some(bias), _) => scores.iter().zip(bias).map(|(s, b)| s + f64::from(*b)).collect(),
        // A softmax may underflow to equal zeros where logits still differ.
        (None, Scores::Softmax) => logits.iter().map(|l| f64::from(*l)).collect(),
        (None, _) => scores.clone(),
    };
    let mut order: Vec<usize> = match routing.groups {
        // Probabilities, unlike logits, can be added.
        Some(groups) if groups.ranked_by > 1 && choice_bias.is_none() => candidates(&scores, groups),
        Some(groups) => candidates(&rank, groups),
        None => (0..logits.len()).collect(),
    };
    let at = |values: &[f64], e: usize| values.get(e).copied().unwrap_or_default();
    // A stable sort keeps the lower index first among equals.
    order.sort_by(|&a, &b| at(&rank, b).total_cmp(&at(&rank, a)));
    order.truncate(routing.top_k);
    weighted(&scores, order, routing)
}

/// The weights of experts that were chosen otherwise, in the order given.
#[must_use]
pub fn weights_of(logits: &[f32], chosen: Vec<usize>, routing: &Routing) -> Vec<(usize, f64)> {
    weighted(&scores(logits, routing.scores), chosen, routing)
}

fn weighted(scores: &[f64], chosen: Vec<usize>, routing: &Routing) -> Vec<(usize, f64)> {
    let at = |e: usize| scores.get(e).copied().unwrap_or_default();
    let sum: f64 = chosen.iter().map(|&e| at(e)).sum();
    let divisor = if routing.normalize { sum + TINY } else { 1.0 };
    let scale = f64::from(routing.scale);
    chosen.into_iter().map(|e| (e, at(e) / divisor * scale)).collect()
}

fn scores(logits: &[f32], kind: Scores) -> Vec<f64> {
    let logits = logits.iter().map(|l| f64::from(*l));
    match kind {
        Scores::Softmax => {
            let max = logits.clone().fold(f64::NEG_INFINITY, f64::max);
            let p: Vec<f64> = logits.map(|l| (l - max).exp()).collect();
            let total: f64 = p.iter().sum();
            p.into_iter().map(|p| p / total).collect()
        }
        Scores::Sigmoid => logits.map(|l| 1.0 / (1.0 + (-l).exp())).collect(),
        // ln(1 + e^x) without overflow.
        Scores::SqrtSoftplus => logits.map(|l| (l.max(0.0) + (-l.abs()).exp().ln_1p()).sqrt()).collect(),
    }
}

/// The experts of the best groups, ascending.
fn candidates(rank: &[f64], groups: Groups) -> Vec<usize> {
    let size = (rank.len() / groups.count.max(1)).max(1);
    let value = |group: &[f64]| {
        let mut best = group.to_vec();
        best.sort_by(|a, b| b.total_cmp(a));
        best.iter().take(groups.ranked_by).sum::<f64>()
    };
    let values: Vec<f64> = rank.chunks(size).map(value).collect();
    let mut order: Vec<usize> = (0..values.len()).collect();
    let at = |g: usize| values.get(g).copied().unwrap_or_default();
    order.sort_by(|&a, &b| at(b).total_cmp(&at(a)));
    order.truncate(groups.kept);
    order.sort_unstable();
    order.into_iter().flat_map(|g| g * size..((g + 1) * size).min(rank.len())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(got: &[(usize, f64)], want: &[(usize, f64)]) {
        let same = |(g, w): (&(usize, f64), &(usize, f64))| g.0 == w.0 && (g.1 - w.1).abs() < 1e-8;
        assert!(got.len() == want.len() && got.iter().zip(want).all(same), "{got:?}, expected {want:?}");
    }

    #[test]
    fn softmax_prefers_the_lower_index_and_normalises_over_the_chosen() {
        let logits = [1.0, 3.0, 3.0, -1.0];
        let normalised = Routing { top_k: 2, normalize: true, ..Routing::default() };
        close(&route(&logits, None, &normalised), &[(1, 0.5), (2, 0.5)]);
        let plain = Routing { top_k: 3, scale: 2.0, ..Routing::default() };
        let want = [(1, 0.464_327_802), (2, 0.464_327_802), (0, 0.062_839_935)].map(|(e, p)| (e, 2.0 * p));
        close(&route(&logits, None, &plain), &want);
    }

    /// The bias chooses 3 before 0, but weighs nothing.
    #[test]
    fn a_choice_bias_ranks_but_does_not_weigh() {
        let routing = Routing { top_k: 2, normalize: true, scores: Scores::Sigmoid, scale: 2.5, groups: None };
        let got = route(&[2.0, -1.0, 1.0, 0.0], Some(&[0.0, 0.0, 0.0, 1.0]), &routing);
        let (three, zero) = (0.5, 1.0 / (1.0 + (-2.0f64).exp()));
        close(&got, &[(3, 2.5 * three / (three + zero)), (0, 2.5 * zero / (three + zero))]);
    }

    /// Expert 0 is the best of all, but its group's two best are worth less than those of the second group.
    #[test]
    fn groups_are_ranked_by_their_best_and_the_others_are_out() {
        let logits = [4.0, -9.0, 1.0, 1.5, -2.0, -2.0];
        let groups = |ranked_by| Some(Groups { count: 3, kept: 1, ranked_by });
        let routing = |ranked_by| Routing { scores: Scores::Sigmoid, groups: groups(ranked_by), ..Routing::default() };
        assert_eq!(route(&logits, None, &routing(2)).iter().map(|c| c.0).collect::<Vec<_>>(), [3]);
        assert_eq!(route(&logits, None, &routing(1)).iter().map(|c| c.0).collect::<Vec<_>>(), [0]);
        let softmax = Routing { top_k: 2, groups: groups(1), ..Routing::default() };
        assert_eq!(route(&logits, None, &softmax).iter().map(|c| c.0).collect::<Vec<_>>(), [0, 1]);
    }

    #[test]
    fn sqrt_softplus_is_finite_at_both_ends() {
        let routing = Routing { top_k: 3, scores: Scores::SqrtSoftplus, ..Routing::default() };
        let got = route(&[1000.0, 0.0, -1000.0], None, &routing);
        close(&got, &[(0, 1000f64.sqrt()), (1, 2f64.ln().sqrt()), (2, 0.0)]);
        assert_eq!(weights_of(&[0.0, 1.0], vec![1], &routing)[0].0, 1);
    }
}
