//! How much the columns of a weight, and the experts of a layer, count: from statistics, or all the same.

use crate::error::ConvertError;
use crate::stats::Importance;
use ashlar_arch::{Class, Leaf};
use std::collections::HashMap;

/// An expert that calibration never reached still serves other texts: it counts as this share of its layer's mean.
const UNSEEN: f64 = 0.05;

/// What statistics say of weights; without any, all columns and experts count the same.
pub struct Weights<'a> {
    stats: Option<&'a Importance>,
    /// Σ over tokens of the mean x² of an expert's inputs, as they count in the layer's output.
    masses: HashMap<String, f64>,
    /// Tokens that an expert saw.
    tokens: HashMap<String, f64>,
}

impl<'a> Weights<'a> {
    /// Reads the moments of all experts among `leaves` once.
    ///
    /// # Errors
    /// [`ConvertError::Stats`] if the statistics cannot be read.
    pub fn new<'l>(
        stats: Option<&'a Importance>,
        leaves: impl Iterator<Item = &'l Leaf>,
    ) -> Result<Self, ConvertError> {
        let mut this = Self { stats, masses: HashMap::new(), tokens: HashMap::new() };
        let Some(stats) = stats else { return Ok(this) };
        let mut groups: HashMap<_, Vec<(String, f64, f64)>> = HashMap::new();
        for leaf in leaves.filter(|l| l.role.class == Class::Experts && l.shape.len() == 2) {
            let found = stats.file().moments(&leaf.name)?;
            let (sums, tokens) = found.map_or((0.0, 0.0), |(sums, tokens)| (mean(&sums), tokens as f64));
            let gate = if leaf.role.proj == Some(ashlar_arch::Proj::Down) { 1.0 } else { gate(stats, leaf)? };
            groups.entry((leaf.role.layer, leaf.role.proj)).or_default().push((leaf.name.clone(), sums * gate, tokens));
        }
        for group in groups.into_values() {
            let least = |sum: f64| UNSEEN * sum / group.len() as f64;
            let mass = least(group.iter().map(|(_, mass, _)| mass).sum());
            let seen = least(group.iter().map(|(.., tokens)| tokens).sum());
            this.masses.extend(group.iter().map(|(name, own, _)| (name.clone(), own.max(mass))));
            this.tokens.extend(group.into_iter().map(|(name, _, own)| (name, own.max(seen))));
        }
        Ok(this)
    }

    /// The importance of a weight's columns, mean 1; `None` for all the same.
    ///
    /// # Errors
    /// As [`Importance::of`].
    pub fn columns(&self, tensor: &str) -> Result<Option<Vec<f32>>, ConvertError> {
        self.stats.map_or(Ok(None), |s| Ok(s.of(tensor)?))
    }

    /// How much a weight's inputs count among those of its group: for experts by tokens, activations and gates, else 1.
    #[must_use]
    pub fn mass(&self, tensor: &str) -> f64 {
        self.masses.get(tensor).copied().filter(|m| *m > 0.0).unwrap_or(1.0)
    }
}

impl Weights<'_> {
    /// Tokens that an expert saw; 1 where that is not known, and for all other weights.
    #[must_use]
    pub fn tokens(&self, tensor: &str) -> f64 {
        self.tokens.get(tensor).copied().filter(|t| *t > 0.0).unwrap_or(1.0)
    }
}

fn mean(sums: &[f32]) -> f64 {
    sums.iter().map(|s| f64::from(*s)).sum::<f64>() / sums.len().max(1) as f64
}

/// The square of the mean weight that the router gives an expert: moments of down projections hold it already, those of
/// gate and up do not.
fn gate(stats: &Importance, leaf: &Leaf) -> Result<f64, ConvertError> {
    let routing = match leaf.role.layer {
        Some(layer) => stats.file().routing(layer)?,
        None => None,
    };
    let of = |routing: crate::stats::Routing| {
        let expert = leaf.role.expert?;
        let (tokens, weights) = (*routing.tokens.get(expert)?, *routing.weights.get(expert)?);
        (tokens > 0).then(|| (weights / tokens as f64).powi(2))
    };
    Ok(routing.and_then(of).unwrap_or(1.0))
}
