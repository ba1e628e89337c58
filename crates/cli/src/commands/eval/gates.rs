//! Quality gates: what a recipe wants of a pack (`validate:`), against what was measured.

use ashlar_recipe::Validate;
use ashlar_runtime::eval::Comparison;
use serde_json::{Value, json};

/// One gate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gate {
    /// The key in the recipe.
    pub key: &'static str,
    /// The bound.
    pub wanted: f64,
    /// What was measured.
    pub got: f64,
    /// Whether it holds.
    pub passed: bool,
}

impl Gate {
    /// The gates that are set, in the order of the recipe's documentation. A bound itself still passes.
    #[must_use]
    pub fn check(wanted: Validate, c: &Comparison) -> Vec<Self> {
        let most = |key, got: f64| move |wanted| Self { key, wanted, got, passed: got <= wanted };
        let least = |key, got: f64| move |wanted| Self { key, wanted, got, passed: got >= wanted };
        let all = [
            wanted.kld_mean.map(most("kld_mean", c.kl.mean)),
            wanted.kld_p999.map(most("kld_p999", c.kl.p999)),
            wanted.top1.map(least("top1", c.top1)),
        ];
        all.into_iter().flatten().collect()
    }

    /// `MISSED kld_mean: 0.0373, wanted at most 0.03`.
    #[must_use]
    pub fn text(&self) -> String {
        let word = if self.passed { "passed" } else { "MISSED" };
        let bound = if self.key == "top1" { "at least" } else { "at most" };
        format!("{word} {}: {:.5}, wanted {bound} {}", self.key, self.got, self.wanted)
    }

    /// For programs.
    #[must_use]
    pub fn json(&self) -> Value {
        json!({"gate": self.key, "wanted": self.wanted, "got": self.got, "passed": self.passed})
    }
}
