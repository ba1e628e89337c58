//! From errors of weights to the KL divergence of the model.
//!
//! Every group adds f(E), E being its error relative to the energy of its outputs (Σ h (w − ŵ)² over Σ h w²). f goes
//! through two points that `calibrate --sensitivity` measured, one perturbed copy each: proportional to E up to the finer,
//! a power of E beyond it. Without that f is proportional to a prior from what is known of other models, with a far larger
//! spread.
//!
//! Parts do not simply add up. The same measurement quantizes all layers at once in several formats and compares the
//! result with the sum of the parts: their ratio, as a function of the sum, corrects every prediction.

use super::groups::GroupKey;
use crate::stats::{Sensitivities, Sensitivity};
use ashlar_arch::Class;
use serde::Serialize;
use std::collections::BTreeMap;

/// 95 % of predictions from measured sensitivities lie within this factor of the truth
/// (`docs/benchmarks/allocation.md`).
pub const SPREAD_MEASURED: f64 = 1.35;
/// As [`SPREAD_MEASURED`], from the prior.
pub const SPREAD_PRIOR: f64 = 4.0;
/// Σ α of the prior: mean KL per unit of relative error when all weights have it, from published figures of large
/// models at 3 and 4 bits.
const PRIOR_TOTAL: f64 = 3.0;

/// What predictions rest on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Basis {
    /// Sensitivities measured on this model.
    Measured,
    /// Experience with other models.
    Prior,
}

/// A predicted mean KL divergence, in nats.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Prediction {
    /// The estimate.
    pub kl: f64,
    /// 95 % of the truths lie above this …
    pub low: f64,
    /// … and below this.
    pub high: f64,
}

/// How the KL of a group grows with its error.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Curve {
    /// KL per unit of error, up to `knee`.
    slope: f64,
    /// The error from which on it grows by `power`.
    knee: f64,
    power: f64,
}

impl Curve {
    /// Through a measurement, and one with larger errors.
    #[must_use]
    pub fn new(fine: &Sensitivity, coarse: Option<&Sensitivity>) -> Option<Self> {
        if fine.error.is_nan() || fine.error <= 0.0 {
            return None;
        }
        let further = coarse.filter(|c| c.error > fine.error && c.kl > 0.0 && fine.kl > 0.0);
        let power = further.map_or(1.0, |c| (c.kl / fine.kl).ln() / (c.error / fine.error).ln());
        Some(Self { slope: (fine.kl / fine.error).max(0.0), knee: fine.error, power: power.clamp(0.5, 2.5) })
    }

    /// The KL at an error.
    #[must_use]
    pub fn at(&self, error: f64) -> f64 {
        if error <= self.knee {
            return self.slope * error;
        }
        self.slope * self.knee * (error / self.knee).powf(self.power)
    }
}

/// Predicts the KL of a mix from the errors of its groups.
#[derive(Clone, Debug, PartialEq)]
pub struct Predictor {
    curves: BTreeMap<GroupKey, Curve>,
    /// (sum of the parts, KL of the whole over it), ascending.
    joint: Vec<(f64, f64)>,
    basis: Basis,
}

impl Predictor {
    /// For a model whose quantizable groups are `keys`. Groups that were not measured get the prior, scaled like the
    /// others of the model.
    #[must_use]
    pub fn new(keys: &[GroupKey], measured: Option<&Sensitivities>) -> Self {
        let layers = keys.iter().filter_map(|k| k.layer).max().map_or(0, |l| l + 1);
        let raw: BTreeMap<GroupKey, f64> = keys.iter().map(|k| (*k, prior(*k, layers))).collect();
        let of = |k: &GroupKey| {
            let (m, name) = (measured?, k.to_string());
            Some((*k, Curve::new(m.groups.get(&name)?, m.coarse.get(&name))?))
        };
        let known: BTreeMap<GroupKey, Curve> = keys.iter().filter_map(of).collect();
        let scale = if known.is_empty() {
            PRIOR_TOTAL / raw.values().sum::<f64>().max(f64::MIN_POSITIVE)
        } else {
            let same: f64 = known.keys().filter_map(|k| raw.get(k)).sum();
            known.values().map(|c| c.slope).sum::<f64>() / same.max(f64::MIN_POSITIVE)
        };
        let basis = if known.is_empty() { Basis::Prior } else { Basis::Measured };
        let prior = |p: f64| Curve { slope: p * scale, knee: f64::INFINITY, power: 1.0 };
        let curves = raw.into_iter().map(|(k, p)| (k, known.get(&k).copied().unwrap_or(prior(p)))).collect();
        let joint = measured.map(|m| m.joint.values().filter(|s| s.error > 0.0 && s.kl > 0.0));
        let mut joint: Vec<(f64, f64)> = joint.into_iter().flatten().map(|s| (s.error, s.kl / s.error)).collect();
        joint.sort_by(|a, b| a.0.total_cmp(&b.0));
        Self { curves, joint, basis }
    }

    /// What predictions rest on.
    #[must_use]
    pub fn basis(&self) -> Basis {
        self.basis
    }

    /// What a group adds to the sum when it has a relative error.
    #[must_use]
    pub fn part(&self, key: &GroupKey, error: f64) -> f64 {
        self.curves.get(key).map_or(0.0, |c| c.at(error))
    }

    /// The KL of a mix whose groups add up to `sum`. Grows with it.
    #[must_use]
    pub fn kl(&self, sum: f64) -> Prediction {
        let kl = sum * self.ratio(sum);
        let spread = match self.basis {
            Basis::Measured => SPREAD_MEASURED,
            Basis::Prior => SPREAD_PRIOR,
        };
        Prediction { kl, low: kl / spread, high: kl * spread }
    }

    /// The whole over the sum of its parts: between measured sums by power laws, outside as at the nearest.
    fn ratio(&self, sum: f64) -> f64 {
        let after = self.joint.partition_point(|(s, _)| *s < sum);
        let at = |i: usize| self.joint.get(i).copied();
        match (after.checked_sub(1).and_then(at), at(after)) {
            (Some((s0, r0)), Some((s1, r1))) => {
                let t = (sum / s0).ln() / (s1 / s0).ln();
                // Never so steep that more error would mean less KL.
                (r0.ln() + t * (r1 / r0).ln()).exp().max(r0 * s0 / sum)
            }
            (Some((_, r)), None) | (None, Some((_, r))) => r,
            (None, None) => 1.0,
        }
    }
}

/// How much a group counts, by experience: attention and head far more than its share of the weights, the first and last
/// layers twice.
fn prior(key: GroupKey, layers: usize) -> f64 {
    let class = match (key.class, key.part) {
        (Class::Embed, _) => 1.0,
        (Class::LmHead, _) => 8.0,
        (Class::Attn, _) => 1.5,
        (Class::SharedExpert, _) => 2.0,
        (Class::Experts | Class::Mlp, "down") => 1.6,
        (Class::Experts | Class::Mlp, _) => 1.0,
        _ => 6.0,
    };
    let edge = key.layer.is_some_and(|l| l < 3.min(layers / 4) || l + 2.min(layers / 4) >= layers);
    class * if edge { 2.0 } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(layer: usize, part: &'static str) -> GroupKey {
        GroupKey { layer: Some(layer), class: Class::Mlp, part }
    }

    fn measured(groups: &[(GroupKey, f64, f64)], joint: &[(f64, f64)]) -> Sensitivities {
        let one = |kl, error| Sensitivity { tokens: 100.0, kl, error };
        Sensitivities {
            groups: groups.iter().map(|(k, kl, e)| (k.to_string(), one(*kl, *e))).collect(),
            coarse: BTreeMap::new(),
            joint: joint.iter().enumerate().map(|(i, (kl, sum))| (format!("k{i}"), one(*kl, *sum))).collect(),
        }
    }

    #[test]
    fn measured_groups_have_their_own_slope_and_others_scale_with_them() {
        let keys = [key(0, "down"), key(1, "down"), key(1, "gate_up")];
        let known = measured(&[(keys[0], 0.004, 0.02), (keys[1], 0.012, 0.02)], &[]);
        let p = Predictor::new(&keys, Some(&known));
        assert_eq!(p.basis(), Basis::Measured);
        assert!((p.part(&keys[0], 0.01) - 0.002).abs() < 1e-12 && (p.part(&keys[1], 0.01) - 0.006).abs() < 1e-12);
        // 0.4 is the mean of both; gate_up weighs 1 where down weighs 1.6.
        assert!((p.part(&keys[2], 1.0) - 0.4 / 1.6).abs() < 1e-12);
        assert!((p.kl(0.01).kl - 0.01).abs() < 1e-15);
    }

    #[test]
    fn the_whole_is_more_than_its_parts_as_measured_and_never_falls() {
        let p = Predictor::new(&[key(0, "down")], Some(&measured(&[], &[(0.011, 0.01), (0.15, 0.1), (0.2, 0.19)])));
        assert!((p.kl(0.01).kl - 0.011).abs() < 1e-12);
        assert!((p.kl(0.1).kl - 0.15).abs() < 1e-12);
        assert!((p.kl(0.001).kl - 0.0011).abs() < 1e-12);
        let mut before = 0.0;
        for i in 1..1000 {
            let kl = p.kl(f64::from(i) * 5e-4).kl;
            assert!(kl >= before, "{i}");
            before = kl;
        }
    }

    #[test]
    fn a_curve_goes_through_both_points_and_is_proportional_below() {
        let one = |kl, error| Sensitivity { tokens: 1.0, kl, error };
        let curve = Curve::new(&one(0.001, 0.02), Some(&one(0.009, 0.08))).expect("an error");
        for (error, kl) in [(0.02, 0.001), (0.08, 0.009), (0.005, 0.00025), (0.0, 0.0)] {
            assert!((curve.at(error) - kl).abs() < 1e-12, "{error}");
        }
        assert!(Curve::new(&one(0.001, 0.0), None).is_none());
    }

    #[test]
    fn without_measurements_the_prior_adds_up_and_says_so() {
        let keys: Vec<_> = (0..8).flat_map(|l| [key(l, "down"), key(l, "gate_up")]).collect();
        let p = Predictor::new(&keys, None);
        assert_eq!(p.basis(), Basis::Prior);
        assert!((keys.iter().map(|k| p.part(k, 1.0)).sum::<f64>() - PRIOR_TOTAL).abs() < 1e-9);
        let [edge, down, up] = [0, 8, 9].map(|i| p.part(&keys[i], 1.0));
        assert!(edge > down && down > up);
        let at = p.kl(0.02);
        assert!((at.high / at.kl - SPREAD_PRIOR).abs() < 1e-9 && (at.kl / at.low - SPREAD_PRIOR).abs() < 1e-9);
    }
}
