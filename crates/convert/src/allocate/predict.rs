//! From errors of weights to the KL divergence of the model.
//!
//! Every group adds f(E), E being its error relative to the energy of its outputs (Σ h (w − ŵ)² over Σ h w²). f goes
//! through the points that `calibrate --sensitivity` measured, by powers of E between them. Without that f is proportional
//! to a prior from what is known of other models, with a far larger spread.
//!
//! Parts do not simply add up. The same measurement quantizes all layers at once in several formats and compares the
//! result with the sum of the parts: their ratio, as a function of the sum, corrects every prediction.

use super::groups::GroupKey;
use crate::stats::{Sensitivities, Sensitivity};
use ashlar_arch::Class;
use serde::Serialize;
use std::collections::BTreeMap;

/// Predictions from measured sensitivities lay within this factor of what was measured, on a text of another kind than
/// the calibration text: 19 mixes of two models (`docs/benchmarks/allocation.md`).
pub const SPREAD_MEASURED: f64 = 1.5;
/// As [`SPREAD_MEASURED`], from the prior.
pub const SPREAD_PRIOR: f64 = 4.0;
/// Σ α of the prior: mean KL per unit of relative error when all weights have it, from published figures of large
/// models at 3 and 4 bits.
const PRIOR_TOTAL: f64 = 3.0;
/// Least and greatest power of the error that a KL follows below what was measured, where choices of experts and of
/// attention turn …
const FINER: (f64, f64) = (0.5, 1.0);
/// … and above it.
const COARSER: (f64, f64) = (0.5, 2.5);
/// The error at which groups that were not measured are compared with those that were: about that of 3 bits.
const TYPICAL: f64 = 0.02;

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
    /// The truth is likely above this …
    pub low: f64,
    /// … and below this.
    pub high: f64,
}

/// How the KL of a group grows with its error: power laws between measured points.
#[derive(Clone, Debug, PartialEq)]
pub struct Curve {
    /// (error, KL), both ascending and above 0; empty where nothing was measured.
    points: Vec<(f64, f64)>,
}

impl Curve {
    /// Through what was measured of a group. `None` unless it has an error and a KL.
    #[must_use]
    pub fn new<'s>(measured: impl IntoIterator<Item = &'s Sensitivity>) -> Option<Self> {
        let mut points: Vec<(f64, f64)> =
            measured.into_iter().filter(|s| s.error > 0.0 && s.kl >= 0.0).map(|s| (s.error, s.kl)).collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        // A point that is not above the one before is noise.
        let mut before = (0.0, 0.0);
        points.retain(|p| {
            let above = p.0 > before.0 && p.1 > before.1;
            before = if above { *p } else { before };
            above
        });
        (!points.is_empty()).then_some(Self { points })
    }

    fn proportional(slope: f64) -> Self {
        Self { points: if slope > 0.0 { vec![(1.0, slope)] } else { Vec::new() } }
    }

    /// The KL at an error: beyond the points as between the two nearest, within bounds; proportional to the error where
    /// there is but one.
    #[must_use]
    pub fn at(&self, error: f64) -> f64 {
        let above = self.points.partition_point(|p| p.0 < error);
        let point = |i: usize| self.points.get(i).copied();
        let (from, bounds) = match (above.checked_sub(1), above < self.points.len()) {
            (None, _) => (0, FINER),
            (Some(last), false) => (last.saturating_sub(1), COARSER),
            (Some(before), true) => (before, (0.0, f64::INFINITY)),
        };
        let Some((e, kl)) = point(above.min(self.points.len().saturating_sub(1))) else { return 0.0 };
        let power = match (point(from), point(from + 1)) {
            (Some((e0, kl0)), Some((e1, kl1))) => ((kl1 / kl0).ln() / (e1 / e0).ln()).clamp(bounds.0, bounds.1),
            _ => 1.0,
        };
        kl * (error / e).powf(power)
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
            let found = [&m.fine, &m.groups, &m.coarse].map(|list| list.get(&name));
            Some((*k, Curve::new(found.into_iter().flatten())?))
        };
        let known: BTreeMap<GroupKey, Curve> = keys.iter().filter_map(of).collect();
        let scale = if known.is_empty() {
            PRIOR_TOTAL / raw.values().sum::<f64>().max(f64::MIN_POSITIVE)
        } else {
            let same: f64 = known.keys().filter_map(|k| raw.get(k)).sum();
            known.values().map(|c| c.at(TYPICAL) / TYPICAL).sum::<f64>() / same.max(f64::MIN_POSITIVE)
        };
        let basis = if known.is_empty() { Basis::Prior } else { Basis::Measured };
        let prior = |p: f64| Curve::proportional(p * scale);
        let curves = raw.into_iter().map(|(k, p)| (k, known.get(&k).cloned().unwrap_or_else(|| prior(p)))).collect();
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
            fine: BTreeMap::new(),
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
    fn a_curve_goes_through_its_points_and_stays_within_bounds_beyond() {
        let one = |error, kl| Sensitivity { tokens: 1.0, kl, error };
        let points = [one(0.08, 0.009), one(0.005, 0.0006), one(0.02, 0.001)];
        let curve = Curve::new(&points).expect("errors");
        for s in &points {
            assert!((curve.at(s.error) - s.kl).abs() < 1e-12, "{s:?}");
        }
        // The power of 0.37 between the first two is taken for the least that is believed.
        assert!((curve.at(0.005 / 4.0) - 0.0003).abs() < 1e-12);
        assert_eq!(curve.at(0.0), 0.0);
        let mut before = 0.0;
        for i in 1..2000 {
            let kl = curve.at(f64::from(i) * 1e-4);
            assert!(kl > before, "{i}");
            before = kl;
        }
        // Alone a point means proportionality; noise that falls is left out; no error is no curve.
        assert!((Curve::new(&points[..1]).expect("one").at(0.04) - 0.0045).abs() < 1e-12);
        assert_eq!(Curve::new(&[one(0.02, 0.002), one(0.08, 0.001)]), Curve::new(&[one(0.02, 0.002)]));
        assert!(Curve::new(&[one(0.0, 0.1), one(0.1, 0.0)]).is_none());
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
