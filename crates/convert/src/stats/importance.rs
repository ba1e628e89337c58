//! What quantizers are told: how much each input column of a weight matters.

use super::{StatsError, StatsFile};
use ashlar_arch::{Class, Leaf, ModelSpec, Proj};
use std::collections::HashMap;
use std::fs::File;
use std::path::Path;

/// An expert's statistics count as much as those of its layer when it has seen so many tokens.
pub const SHRINK_TOKENS: f64 = 2048.0;
/// Columns that never fired still hold weights, and other texts may use them: the least importance, relative to the
/// mean over columns.
const FLOOR: f32 = 1e-3;

/// The importance of the columns of every weight that has statistics. Holds means per layer; the moments of a weight
/// are read from the file when they are needed.
#[derive(Debug)]
pub struct Importance {
    file: StatsFile,
    hash: String,
    /// Inputs of every weight, and for experts the group (layer, projection) whose mean they are shrunk to.
    weights: HashMap<String, (usize, Option<usize>)>,
    /// The mean of x² per column over all experts of a group, by token.
    means: Vec<Vec<f64>>,
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
        let mut this = Self { file, hash, weights: HashMap::new(), means: Vec::new() };
        let mut groups: HashMap<(Option<usize>, Option<Proj>), (usize, u64)> = HashMap::new();
        for leaf in model.tensors() {
            let [_, k] = *leaf.shape.as_slice() else { continue };
            if leaf.role.class != Class::Experts {
                this.weights.insert(leaf.name.clone(), (k, None));
                continue;
            }
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

    /// Hash of the file, hex.
    #[must_use]
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// Whether anything is known of a weight.
    #[must_use]
    pub fn knows(&self, tensor: &str) -> bool {
        match self.weights.get(tensor) {
            Some((_, Some(group))) => self.means.get(*group).is_some_and(|m| m.iter().any(|x| *x > 0.0)),
            Some((_, None)) => self.file.find(&format!("moments.{tensor}")).is_some(),
            None => false,
        }
    }

    /// The mean of x² of every column, scaled to a mean of 1; experts are shrunk towards the mean of their layer:
    /// (n·h + n₀·h_layer) / (n + n₀) with n tokens and n₀ = [`SHRINK_TOKENS`]. `None` without statistics, or if all
    /// inputs were 0.
    ///
    /// # Errors
    /// [`StatsError`] if the file cannot be read or holds other shapes or values than it may.
    pub fn of(&self, tensor: &str) -> Result<Option<Vec<f32>>, StatsError> {
        let Some((k, group)) = self.weights.get(tensor) else { return Ok(None) };
        let found = self.moments(tensor, *k)?;
        let shrunk: Vec<f64> = match (found, group.and_then(|g| self.means.get(g))) {
            (None, None) => return Ok(None),
            (None, Some(mean)) => mean.clone(),
            (Some((sums, _)), None) => sums.iter().map(|s| f64::from(*s)).collect(),
            (Some((sums, tokens)), Some(mean)) => {
                let blend =
                    |(s, m): (&f32, &f64)| (f64::from(*s) + SHRINK_TOKENS * m) / (tokens as f64 + SHRINK_TOKENS);
                sums.iter().zip(mean).map(blend).collect()
            }
        };
        let mean = shrunk.iter().sum::<f64>() / shrunk.len().max(1) as f64;
        if !mean.is_normal() {
            return Ok(None);
        }
        Ok(Some(shrunk.iter().map(|h| ((h / mean) as f32).max(FLOOR)).collect()))
    }
}

fn hash(path: &Path) -> Result<String, StatsError> {
    let io = |source| StatsError::Io { path: path.display().to_string(), action: "read", source };
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(File::open(path).map_err(io)?).map_err(io)?;
    Ok(hasher.finalize().to_hex().to_string())
}
