//! What quantizers are told from a file: how much each input column of a weight matters, and how columns hang together.

use super::{StatsError, StatsFile, spread};
use crate::error::ConvertError;
use crate::knowledge::Knowledge;
use ashlar_arch::{Class, Leaf, ModelSpec, Proj};
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::fs::File;
use std::path::Path;

/// An expert's statistics count as much as those of its layer when it has seen so many tokens.
pub const SHRINK_TOKENS: f64 = 2048.0;
/// Columns that never fired still hold weights, and other texts may use them: the least importance, relative to the
/// mean over columns.
const FLOOR: f32 = 1e-3;

/// The importance of the columns of every weight that has statistics, and their Hessians where the file has them. Holds
/// means per layer; moments and Hessians of a weight are read from the file when they are needed.
#[derive(Debug)]
pub struct Importance {
    file: StatsFile,
    hash: String,
    /// Inputs of every weight, and for experts the group (layer, projection) whose mean they are shrunk to.
    weights: HashMap<String, (usize, Option<usize>)>,
    /// For experts: where the Hessian of their layer is.
    layers: HashMap<String, OfLayer>,
    /// The mean of x² per column over all experts of a group, by token.
    means: Vec<Vec<f64>>,
}

/// Where the Hessian of all tokens of a layer is to be found.
#[derive(Clone, Debug)]
enum OfLayer {
    /// The router reads what gate and up read, once per token.
    Router(String),
    /// The sum over all down projections.
    Downs(usize),
}

impl Importance {
    /// Opens statistics for a model. Reads the moments of all experts once, for the means of their layers.
    ///
    /// # Errors
    /// [`StatsError`] if the file is damaged, of another model (`identity`), or has other shapes than the model.
    pub fn open(path: &Path, model: &ModelSpec, identity: &str) -> Result<Self, StatsError> {
        let file = StatsFile::open(path)?;
        file.check_model(identity)?;
        let hash = hash(path)?;
        let mut this = Self { file, hash, weights: HashMap::new(), layers: HashMap::new(), means: Vec::new() };
        let mut groups: HashMap<(Option<usize>, Option<Proj>), (usize, u64)> = HashMap::new();
        let routers: HashMap<usize, &str> = model
            .tensors()
            .filter(|l| l.role.class == Class::Router && l.shape.len() == 2)
            .filter_map(|l| Some((l.role.layer?, l.name.as_str())))
            .collect();
        for leaf in model.tensors() {
            let [_, k] = *leaf.shape.as_slice() else { continue };
            if leaf.role.class != Class::Experts {
                this.weights.insert(leaf.name.clone(), (k, None));
                continue;
            }
            let of_layer = match (leaf.role.layer, leaf.role.proj) {
                (Some(layer), Some(Proj::Down)) => Some(OfLayer::Downs(layer)),
                (Some(layer), _) => routers.get(&layer).map(|router| OfLayer::Router((*router).to_owned())),
                _ => None,
            };
            this.layers.extend(of_layer.map(|of| (leaf.name.clone(), of)));
            let next = this.means.len();
            let (group, total) = groups.entry((leaf.role.layer, leaf.role.proj)).or_insert((next, 0));
            if *group == next {
                this.means.push(vec![0.0; k]);
            }
            *total = total.saturating_add(this.add(leaf, k, *group)?);
            this.weights.insert(leaf.name.clone(), (k, Some(*group)));
        }
        for (group, total) in groups.values() {
            let mean = this.means.get_mut(*group).into_iter().flatten();
            mean.for_each(|m| *m /= (*total as f64).max(1.0));
        }
        Ok(this)
    }

    /// Adds an expert's moments to its group; returns its tokens.
    fn add(&mut self, leaf: &Leaf, k: usize, group: usize) -> Result<u64, StatsError> {
        let Some((sums, tokens)) = self.moments(&leaf.name, k)? else { return Ok(0) };
        let mean = self.means.get_mut(group).into_iter().flatten();
        mean.zip(&sums).for_each(|(m, s)| *m += f64::from(*s));
        Ok(tokens)
    }

    /// Moments of a weight of `k` inputs.
    fn moments(&self, tensor: &str, k: usize) -> Result<Option<(Vec<f32>, u64)>, StatsError> {
        match self.file.moments(tensor)? {
            Some((sums, _)) if sums.len() != k => {
                let what = format!("has {} columns, the weight has {k}", sums.len());
                Err(self.file.array(&format!("moments.{tensor}"), what))
            }
            found => Ok(found),
        }
    }

    /// The statistics.
    #[must_use]
    pub fn file(&self) -> &StatsFile {
        &self.file
    }

    /// The mean of x² of every column, scaled to a mean of 1; experts are shrunk towards the mean of their layer:
    /// (n·h + n₀·h_layer) / (n + n₀) with n tokens and n₀ = [`SHRINK_TOKENS`]. `None` without statistics, or if all
    /// inputs were 0.
    ///
    /// # Errors
    /// [`StatsError`] if the file cannot be read or holds other shapes or values than it may.
    pub fn of(&self, tensor: &str) -> Result<Option<Vec<f32>>, StatsError> {
        let Some((k, group)) = self.weights.get(tensor) else { return Ok(None) };
        let sums = |s: Vec<f32>| s.into_iter().map(f64::from).collect::<Vec<f64>>();
        let own = self.moments(tensor, *k)?.map(|(s, tokens)| (sums(s), tokens));
        let layer = group.and_then(|g| self.means.get(g)).map(Vec::as_slice);
        Ok(importance(own.as_ref().map(|(s, tokens)| (s.as_slice(), *tokens)), layer))
    }

    /// The weight under whose name the Hessian of `tensor` lies.
    fn holder<'a>(&'a self, tensor: &'a str) -> &'a str {
        self.file.shares().get(tensor).map_or(tensor, String::as_str)
    }

    /// The array that holds the Hessian of an expert's layer, if there is one.
    fn of_layer(&self, tensor: &str) -> Option<String> {
        let name = match self.layers.get(tensor)? {
            OfLayer::Router(router) => format!("hessian.{}", self.holder(router)),
            OfLayer::Downs(layer) => format!("hessian_experts.{layer}"),
        };
        self.file.find(&name).map(|_| name)
    }

    /// Σ x xᵀ over the tokens of an expert's layer, and how many those were.
    fn layer_mean(&self, tensor: &str, k: usize) -> Result<Option<(Vec<f32>, f64)>, StatsError> {
        let found = match self.layers.get(tensor) {
            None => None,
            Some(OfLayer::Router(router)) => self.file.hessian(self.holder(router))?,
            Some(OfLayer::Downs(layer)) => match self.file.experts_hessian(*layer)? {
                Some(sums) => Some((sums, self.file.routing(*layer)?.map_or(0, |r| r.tokens.iter().sum()))),
                None => None,
            },
        };
        let Some((sums, tokens)) = found else { return Ok(None) };
        self.check_columns(&self.of_layer(tensor).unwrap_or_default(), &sums, k)?;
        Ok(Some((sums, (tokens as f64).max(1.0))))
    }

    fn check_columns(&self, array: &str, upper: &[f32], k: usize) -> Result<(), StatsError> {
        match super::hessian::columns(upper.len()) {
            Some(columns) if columns == k => Ok(()),
            other => {
                let what = format!("has {} columns, the weight has {k}", other.unwrap_or(0));
                Err(self.file.array(array, what))
            }
        }
    }

    /// The mean of x xᵀ of the inputs of a weight, k × k, of which the lower triangle is filled; experts are shrunk
    /// towards their layer like moments. `None` without a Hessian, or if all inputs were 0.
    ///
    /// # Errors
    /// As [`Importance::of`].
    pub fn hessian_mean(&self, tensor: &str) -> Result<Option<Vec<f32>>, StatsError> {
        let Some(&(k, _)) = self.weights.get(tensor) else { return Ok(None) };
        let (own, layer) = (self.file.hessian(self.holder(tensor))?, self.layer_mean(tensor, k)?);
        if own.is_none() && layer.is_none() {
            return Ok(None);
        }
        let mut lower = vec![0.0; k * k];
        let shrink = if layer.is_some() { SHRINK_TOKENS } else { 0.0 };
        let tokens = own.as_ref().map_or(0.0, |(_, tokens)| *tokens as f64);
        let total = (tokens + shrink).max(1.0);
        if let Some((sums, _)) = own {
            self.check_columns(&format!("hessian.{}", self.holder(tensor)), &sums, k)?;
            spread(&sums, k, 1.0 / total, &mut lower);
        }
        if let Some((sums, count)) = layer {
            spread(&sums, k, shrink / count / total, &mut lower);
        }
        Ok(lower.iter().step_by(k + 1).any(|d| d.is_normal()).then_some(lower))
    }
}

impl Knowledge for Importance {
    fn identity(&self) -> String {
        self.hash.clone()
    }

    fn provenance(&self) -> Result<Value, ConvertError> {
        Ok(provenance(&self.file, &self.hash)?)
    }

    fn knows(&self, tensor: &str) -> bool {
        match self.weights.get(tensor) {
            Some((_, Some(group))) => self.means.get(*group).is_some_and(|m| m.iter().any(|x| *x > 0.0)),
            Some((_, None)) => self.file.find(&format!("moments.{tensor}")).is_some(),
            None => false,
        }
    }

    fn importance(&self, tensor: &str) -> Result<Option<Vec<f32>>, ConvertError> {
        Ok(self.of(tensor)?)
    }

    fn hessian_of(&self, tensor: &str) -> Option<String> {
        self.weights.get(tensor)?;
        let own = self.holder(tensor);
        if self.file.find(&format!("hessian.{own}")).is_some() { Some(own.to_owned()) } else { self.of_layer(tensor) }
    }

    fn hessian(&self, tensor: &str) -> Result<Option<Vec<f32>>, ConvertError> {
        Ok(self.hessian_mean(tensor)?)
    }
}

/// The importance of columns from Σ x² and the tokens of a weight and, for experts, the mean of x² of their layer: see
/// [`Importance::of`].
#[must_use]
pub fn importance(own: Option<(&[f64], u64)>, layer_mean: Option<&[f64]>) -> Option<Vec<f32>> {
    let shrunk: Vec<f64> = match (own, layer_mean) {
        (None, None) => return None,
        (None, Some(mean)) => mean.to_vec(),
        (Some((sums, _)), None) => sums.to_vec(),
        (Some((sums, tokens)), Some(mean)) => {
            let blend = |(s, m): (&f64, &f64)| (s + SHRINK_TOKENS * m) / (tokens as f64 + SHRINK_TOKENS);
            sums.iter().zip(mean).map(blend).collect()
        }
    };
    let mean = shrunk.iter().sum::<f64>() / shrunk.len().max(1) as f64;
    mean.is_normal().then(|| shrunk.iter().map(|h| ((h / mean) as f32).max(FLOOR)).collect())
}

/// What a manifest says of statistics whose file has the hash `blake3`: that, the tokens and texts they were gathered from,
/// and how many tokens each expert of each layer saw.
///
/// # Errors
/// [`StatsError`] if the file cannot be read.
pub fn provenance(file: &StatsFile, blake3: &str) -> Result<Value, StatsError> {
    let origin = file.origin();
    let mut all = json!({ "blake3": blake3, "tokens": origin.tokens, "texts": origin.texts });
    let layers = file.arrays().iter().filter_map(|a| a.name.strip_prefix("routing.")?.parse::<usize>().ok());
    let mut routing = Map::new();
    for layer in layers {
        if let Some(found) = file.routing(layer)? {
            routing.insert(layer.to_string(), found.tokens.into());
        }
    }
    if let (false, Value::Object(all)) = (routing.is_empty(), &mut all) {
        all.insert("routing".into(), routing.into());
    }
    Ok(all)
}

/// The hash of a file, hex.
///
/// # Errors
/// [`StatsError::Io`].
pub fn hash(path: &Path) -> Result<String, StatsError> {
    let io = |source| StatsError::Io { path: path.display().to_string(), action: "read", source };
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(File::open(path).map_err(io)?).map_err(io)?;
    Ok(hasher.finalize().to_hex().to_string())
}
