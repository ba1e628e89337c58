//! Reading: the header is checked at once, arrays are read when they are asked for.

use super::hessian::columns;
use super::{ORIGIN_KEY, SHARES_KEY, Shares, StatsError, StatsOrigin, VERSION, VERSION_KEY};
use ashlar_recipe::ExpertUsage;
use ashlar_source::{TensorFile, TensorInfo};
use ashlar_tensor::Dtype;
use std::path::Path;

/// Where the tokens of a layer went.
#[derive(Clone, Debug, PartialEq)]
pub struct Routing {
    /// Tokens per expert.
    pub tokens: Vec<u64>,
    /// Sums of the router's weights for them.
    pub weights: Vec<f64>,
}

/// An open statistics file. Holds its header, not its arrays.
#[derive(Debug)]
pub struct StatsFile {
    file: TensorFile,
    origin: StatsOrigin,
    shares: Shares,
}

impl StatsFile {
    /// Opens a file and checks its version and the type and shape of every array.
    ///
    /// # Errors
    /// [`StatsError`] if it is no statistics file or damaged.
    pub fn open(path: &Path) -> Result<Self, StatsError> {
        let file = TensorFile::open(path)?;
        let not = |what: String| StatsError::NotStatistics { path: path.display().to_string(), what };
        match file.metadata().get(VERSION_KEY).map(String::as_str) {
            Some(VERSION) => {}
            Some(other) => return Err(not(format!("its version is `{other}`, expected {VERSION}"))),
            None => return Err(not(format!("its metadata has no `{VERSION_KEY}`"))),
        }
        let origin = file.metadata().get(ORIGIN_KEY).map_or("", String::as_str);
        let origin = serde_json::from_str(origin).map_err(|e| not(format!("metadata `{ORIGIN_KEY}`: {e}")))?;
        let shares = file.metadata().get(SHARES_KEY).map_or("{}", String::as_str);
        let shares = serde_json::from_str(shares).map_err(|e| not(format!("metadata `{SHARES_KEY}`: {e}")))?;
        let this = Self { file, origin, shares };
        this.file.tensors().iter().try_for_each(|t| this.check(t))?;
        Ok(this)
    }

    fn check(&self, t: &TensorInfo) -> Result<(), StatsError> {
        let (kind, of) = t.name.split_once('.').unwrap_or((&t.name, ""));
        let (dtype, sound) = match (kind, t.shape.as_slice()) {
            ("moments", shape) => (Dtype::F32, matches!(shape, [k] if *k > 0)),
            ("tokens", shape) => (Dtype::I64, matches!(shape, [1])),
            ("routing", shape) => (Dtype::F64, matches!(shape, [2, e] if *e > 0)),
            ("hessian" | "hessian_experts", shape) => {
                (Dtype::F32, matches!(shape, [values] if columns(*values).is_some()))
            }
            ("coactivation", shape) => (Dtype::I64, matches!(shape, [a, b] if a == b && *a > 0)),
            ("sensitivity", shape) => (Dtype::F64, matches!(shape, [3])),
            _ => return Err(self.array(&t.name, "is not known".into())),
        };
        if t.dtype != dtype || !sound {
            return Err(self.array(&t.name, format!("has type {} and shape {:?}", t.dtype.name(), t.shape)));
        }
        if matches!(kind, "moments" | "hessian") && self.file.tensor(&format!("tokens.{of}")).is_none() {
            return Err(self.array(&t.name, format!("has no `tokens.{of}`")));
        }
        Ok(())
    }

    /// What it was gathered from.
    #[must_use]
    pub fn origin(&self) -> &StatsOrigin {
        &self.origin
    }

    /// The path it was opened by.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// Names, types and shapes of all arrays, sorted by name.
    #[must_use]
    pub fn arrays(&self) -> &[TensorInfo] {
        self.file.tensors()
    }

    /// Fails unless the statistics are those of the model of that identity.
    ///
    /// # Errors
    /// [`StatsError::OtherModel`], naming both.
    pub fn check_model(&self, identity: &str) -> Result<(), StatsError> {
        if self.origin.source == identity {
            return Ok(());
        }
        Err(StatsError::OtherModel {
            path: self.path().display().to_string(),
            stats: self.origin.source.clone(),
            model: identity.to_owned(),
        })
    }

    /// Σ x² per column of a weight's inputs, and the number of tokens; `None` if it has none.
    ///
    /// # Errors
    /// [`StatsError::Array`] unless all values are finite and not negative; a read that fails.
    pub fn moments(&self, tensor: &str) -> Result<Option<(Vec<f32>, u64)>, StatsError> {
        let name = format!("moments.{tensor}");
        let Some(info) = self.file.tensor(&name) else { return Ok(None) };
        let bytes = self.file.read(info)?;
        let sums: Vec<f32> = bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        if let Some(bad) = sums.iter().find(|v| !v.is_finite() || **v < 0.0) {
            return Err(self.array(&name, format!("holds {bad}, expected finite values of at least 0")));
        }
        Ok(Some((sums, self.tokens(tensor)?)))
    }

    /// Tokens that a weight has seen; 0 if it is not known.
    ///
    /// # Errors
    /// [`StatsError::Array`] if the count is negative; a read that fails.
    pub fn tokens(&self, tensor: &str) -> Result<u64, StatsError> {
        let name = format!("tokens.{tensor}");
        Ok(self.counts(&name)?.and_then(|c| c.first().copied()).unwrap_or(0))
    }

    /// Who shares whose Hessian.
    #[must_use]
    pub fn shares(&self) -> &Shares {
        &self.shares
    }

    /// Σ x xᵀ of a weight's inputs: the upper triangle, row-major, and the number of tokens; `None` if the file has none
    /// under this very name (see [`StatsFile::shares`]).
    ///
    /// # Errors
    /// [`StatsError::Array`] unless all values are finite; a read that fails.
    pub fn hessian(&self, tensor: &str) -> Result<Option<(Vec<f32>, u64)>, StatsError> {
        let Some(upper) = self.upper(&format!("hessian.{tensor}"))? else { return Ok(None) };
        Ok(Some((upper, self.tokens(tensor)?)))
    }

    /// Σ (w·x)(w·x)ᵀ over the inputs of the down projections of all experts of a layer, w being the router's weights;
    /// `None` if the file has none.
    ///
    /// # Errors
    /// As [`StatsFile::hessian`].
    pub fn experts_hessian(&self, layer: usize) -> Result<Option<Vec<f32>>, StatsError> {
        self.upper(&format!("hessian_experts.{layer}"))
    }

    fn upper(&self, name: &str) -> Result<Option<Vec<f32>>, StatsError> {
        let Some(info) = self.file.tensor(name) else { return Ok(None) };
        let bytes = self.file.read(info)?;
        let values: Vec<f32> = bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        match values.iter().find(|v| !v.is_finite()) {
            Some(bad) => Err(self.array(name, format!("holds {bad}, expected finite values"))),
            None => Ok(Some(values)),
        }
    }

    /// Where the tokens of a layer went; `None` if it has no router.
    ///
    /// # Errors
    /// [`StatsError::Array`] unless all values are finite and not negative; a read that fails.
    pub fn routing(&self, layer: usize) -> Result<Option<Routing>, StatsError> {
        let name = format!("routing.{layer}");
        let Some(info) = self.file.tensor(&name) else { return Ok(None) };
        let bytes = self.file.read(info)?;
        let all: Vec<f64> = bytes.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b)).collect();
        if let Some(bad) = all.iter().find(|v| !v.is_finite() || **v < 0.0) {
            return Err(self.array(&name, format!("holds {bad}, expected finite values of at least 0")));
        }
        let (tokens, weights) = all.split_at(all.len() / 2);
        Ok(Some(Routing { tokens: tokens.iter().map(|c| *c as u64).collect(), weights: weights.to_vec() }))
    }

    /// How often two experts of a layer were chosen for the same token, experts × experts; the diagonal counts tokens.
    ///
    /// # Errors
    /// As [`StatsFile::tokens`].
    pub fn coactivation(&self, layer: usize) -> Result<Option<Vec<u64>>, StatsError> {
        self.counts(&format!("coactivation.{layer}"))
    }

    fn counts(&self, name: &str) -> Result<Option<Vec<u64>>, StatsError> {
        let Some(info) = self.file.tensor(name) else { return Ok(None) };
        let bytes = self.file.read(info)?;
        let count = |b: &[u8; 8]| {
            let value = i64::from_le_bytes(*b);
            u64::try_from(value).map_err(|_| self.array(name, format!("holds {value}, expected a count")))
        };
        bytes.as_chunks().0.iter().map(count).collect::<Result<_, _>>().map(Some)
    }

    pub(super) fn find(&self, name: &str) -> Option<&TensorInfo> {
        self.file.tensor(name)
    }

    /// The bytes of an array as they lie.
    pub(super) fn bytes(&self, info: &TensorInfo) -> Result<Vec<u8>, StatsError> {
        Ok(self.file.read(info)?)
    }

    pub(super) fn array(&self, array: &str, what: String) -> StatsError {
        StatsError::Array { path: self.path().display().to_string(), array: array.to_owned(), what }
    }
}

/// A layer whose routing cannot be read counts as unknown.
impl ExpertUsage for StatsFile {
    fn tokens(&self, layer: usize) -> Option<Vec<f64>> {
        let routing = self.routing(layer).ok().flatten()?;
        Some(routing.tokens.iter().map(|t| *t as f64).collect())
    }
}
