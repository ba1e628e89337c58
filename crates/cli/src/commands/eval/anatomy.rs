//! What a model is made of: bits and stored errors of every projection of every layer.

use crate::model::{Model, Source};
use ashlar_arch::{Class, Role};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// A tensor stands out if its error is so many times the median of those with its class and format.
const OUTSTANDING: f64 = 4.0;
/// Fewer tensors have no median worth the name.
const LEAST: usize = 4;

/// A model, projection by projection.
#[derive(Clone, Debug, Default)]
pub struct Anatomy {
    /// In the order of execution.
    pub parts: Vec<Part>,
    /// Tensors whose conversion lost far more than their like did, worst first.
    pub outstanding: Vec<Outstanding>,
}

/// A projection or class.
#[derive(Clone, Debug)]
pub struct Part {
    /// `experts down`, `embed`.
    pub label: String,
    /// By layer.
    pub layers: Vec<Sum>,
    /// Tensors outside the layers.
    pub outside: Sum,
}

/// Sums over tensors.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sum {
    /// Weights.
    pub parameters: u64,
    /// Stored bytes.
    pub bytes: u64,
    /// Σ (w − ŵ)² and Σ w² of those that the conversion changed.
    loss: Option<(f64, f64)>,
}

/// A tensor that lost much.
#[derive(Clone, Debug, PartialEq)]
pub struct Outstanding {
    /// Its name.
    pub tensor: String,
    /// Σ (w − ŵ)² / Σ w².
    pub error: f64,
    /// That over the median of its class and format.
    pub times: f64,
}

impl Sum {
    /// Bits per weight; `None` without weights.
    #[must_use]
    pub fn bits(&self) -> Option<f64> {
        (self.parameters > 0).then(|| crate::model::bpw(self.bytes, self.parameters))
    }

    /// Σ (w − ŵ)² / Σ w²; `None` where all bits were kept or nothing was stored.
    #[must_use]
    pub fn error(&self) -> Option<f64> {
        self.loss.map(|(error, norm)| if error == 0.0 { 0.0 } else { error / norm })
    }

    /// Adds another sum.
    pub fn add(&mut self, other: &Self) {
        self.parameters += other.parameters;
        self.bytes += other.bytes;
        if let Some((error, norm)) = other.loss {
            let (e, n) = self.loss.unwrap_or_default();
            self.loss = Some((e + error, n + norm));
        }
    }
}

impl Part {
    /// Over all layers and outside.
    #[must_use]
    pub fn total(&self) -> Sum {
        let mut total = self.outside;
        self.layers.iter().for_each(|s| total.add(s));
        total
    }
}

impl Anatomy {
    /// From headers and manifest.
    #[must_use]
    pub fn of(model: &Model) -> Self {
        let losses = match &model.source {
            Source::Pack(pack) => pack.manifest().measured.get("loss").cloned().unwrap_or_default(),
            _ => Value::Null,
        };
        let layers = model.leaves.iter().filter_map(|l| l.role.layer).max().map_or(0, |last| last + 1);
        let mut this = Self::default();
        let mut alike: BTreeMap<(Class, String), Vec<(String, f64)>> = BTreeMap::new();
        for leaf in model.leaves.iter().filter(|leaf| leaf.role.class != Class::Norm) {
            let Some(entry) = model.store().entry(&leaf.name) else { continue };
            let loss = losses.get(&leaf.name).and_then(loss);
            if let Some((error, norm)) = loss.filter(|(_, norm)| *norm > 0.0) {
                let key = (leaf.role.class, entry.format.clone());
                alike.entry(key).or_default().push((leaf.name.clone(), error / norm));
            }
            let sum = Sum { parameters: entry.elements(), bytes: entry.bytes(), loss };
            this.part(&leaf.role, layers).add(&sum);
        }
        this.outstanding = alike.into_values().flat_map(outstanding).collect();
        this.outstanding.sort_by(|a, b| b.times.total_cmp(&a.times));
        this
    }

    fn part(&mut self, role: &Role, layers: usize) -> &mut Sum {
        let label = match role.proj {
            Some(proj) => format!("{} {proj}", role.class),
            None => role.class.to_string(),
        };
        let at = self.parts.iter().position(|p| p.label == label).unwrap_or_else(|| {
            self.parts.push(Part { label, layers: vec![Sum::default(); layers], outside: Sum::default() });
            self.parts.len() - 1
        });
        #[expect(clippy::indexing_slicing, reason = "`at` was found or pushed just now")]
        let part = &mut self.parts[at];
        match role.layer.and_then(|l| part.layers.get_mut(l)) {
            Some(sum) => sum,
            None => &mut part.outside,
        }
    }

    /// What the conversion stored of errors; `null` if nothing.
    #[must_use]
    pub fn errors_json(&self) -> Value {
        let parts: Vec<Value> =
            self.parts.iter().filter_map(|p| Some(json!({"part": p.label, "error": p.total().error()?}))).collect();
        if parts.is_empty() {
            return Value::Null;
        }
        let worst = self.outstanding.iter().take(20);
        let worst: Vec<Value> =
            worst.map(|o| json!({"tensor": o.tensor, "error": o.error, "times_median": o.times})).collect();
        json!({"parts": parts, "above_4_medians": self.outstanding.len(), "worst": worst})
    }
}

/// Error and norm as the manifest has them; a manifest may say anything.
fn loss(value: &Value) -> Option<(f64, f64)> {
    let number = |key: &str| value.get(key)?.as_f64().filter(|v| v.is_finite() && *v >= 0.0);
    Some((number("squared_error")?, number("squared_norm")?))
}

fn outstanding(alike: Vec<(String, f64)>) -> Vec<Outstanding> {
    let mut errors: Vec<f64> = alike.iter().map(|(_, e)| *e).collect();
    errors.sort_unstable_by(f64::total_cmp);
    let median = errors.get(errors.len() / 2).copied().unwrap_or_default();
    let far = |error: f64| alike.len() >= LEAST && median > 0.0 && error > OUTSTANDING * median;
    let list = alike.iter().filter(|(_, error)| far(*error));
    list.map(|(tensor, error)| Outstanding { tensor: tensor.clone(), error: *error, times: error / median }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tensor_stands_out_only_among_enough_of_its_like() {
        let named = |errors: &[f64]| errors.iter().enumerate().map(|(i, e)| (format!("t{i}"), *e)).collect::<Vec<_>>();
        let found = outstanding(named(&[0.01, 0.01, 0.02, 0.3, 0.01]));
        assert_eq!(found, [Outstanding { tensor: "t3".into(), error: 0.3, times: 30.0 }]);
        assert!(outstanding(named(&[0.01, 0.01, 0.3])).is_empty());
        assert!(outstanding(named(&[0.0; 8])).is_empty());
    }

    #[test]
    fn sums_add_and_kept_weights_have_no_error() {
        let mut sum = Sum { parameters: 8, bytes: 16, loss: None };
        assert_eq!((sum.bits(), sum.error()), (Some(16.0), None));
        sum.add(&Sum { parameters: 8, bytes: 4, loss: Some((1.0, 4.0)) });
        sum.add(&Sum { parameters: 0, bytes: 0, loss: Some((0.0, 4.0)) });
        assert_eq!((sum.bits(), sum.error()), (Some(10.0), Some(0.125)));
        assert_eq!(Sum::default().bits(), None);
    }

    #[test]
    fn a_manifest_that_lies_about_errors_does_no_harm() {
        for bad in
            [json!(null), json!({"squared_error": -1, "squared_norm": 1}), json!({"squared_error": "x"}), json!([])]
        {
            assert_eq!(loss(&bad), None, "{bad}");
        }
    }
}
