//! Released models as facts: the files of `recipes/models/`. From such a file follow the name, shape and stored format of
//! every tensor of a release, so that a conversion can be planned before anything is downloaded.
//!
//! A file has the release's `config.json` under `config`; under `stored` which tensors have which format (patterns of
//! names, the first that matches counts); under `next_token_layers` what comes behind the last layer: a layer like the one
//! the config would have there, under another name, and tensors `besides`.

use crate::choose::extents;
use ashlar_arch::{ArchError, ModelSpec, model_spec};
use ashlar_formats::Spec;
use ashlar_tensor::{Bytes, Entry, Order, Plane, StoreError, TensorStore};
use globset::{Glob, GlobMatcher};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::io;

/// Names and texts, alphabetical.
const MODELS: &[(&str, &str)] = &[
    ("deepseek-r1", include_str!("../../../recipes/models/deepseek-r1.yaml")),
    ("deepseek-v2-lite", include_str!("../../../recipes/models/deepseek-v2-lite.yaml")),
    ("deepseek-v3", include_str!("../../../recipes/models/deepseek-v3.yaml")),
    ("deepseek-v4-flash", include_str!("../../../recipes/models/deepseek-v4-flash.yaml")),
    ("deepseek-v4-pro", include_str!("../../../recipes/models/deepseek-v4-pro.yaml")),
    ("gpt-oss-120b", include_str!("../../../recipes/models/gpt-oss-120b.yaml")),
    ("gpt-oss-20b", include_str!("../../../recipes/models/gpt-oss-20b.yaml")),
    ("kimi-k2", include_str!("../../../recipes/models/kimi-k2.yaml")),
    ("llama-3.1-405b", include_str!("../../../recipes/models/llama-3.1-405b.yaml")),
    ("llama-3.1-8b", include_str!("../../../recipes/models/llama-3.1-8b.yaml")),
    ("llama-3.2-1b", include_str!("../../../recipes/models/llama-3.2-1b.yaml")),
    ("llama-3.2-3b", include_str!("../../../recipes/models/llama-3.2-3b.yaml")),
    ("llama-3.3-70b", include_str!("../../../recipes/models/llama-3.3-70b.yaml")),
    ("mixtral-8x7b", include_str!("../../../recipes/models/mixtral-8x7b.yaml")),
    ("qwen1.5-moe-a2.7b", include_str!("../../../recipes/models/qwen1.5-moe-a2.7b.yaml")),
    ("qwen2-57b-a14b", include_str!("../../../recipes/models/qwen2-57b-a14b.yaml")),
    ("qwen2.5-7b", include_str!("../../../recipes/models/qwen2.5-7b.yaml")),
    ("qwen3-0.6b", include_str!("../../../recipes/models/qwen3-0.6b.yaml")),
    ("qwen3-1.7b", include_str!("../../../recipes/models/qwen3-1.7b.yaml")),
    ("qwen3-14b", include_str!("../../../recipes/models/qwen3-14b.yaml")),
    ("qwen3-235b-a22b", include_str!("../../../recipes/models/qwen3-235b-a22b.yaml")),
    ("qwen3-30b-a3b", include_str!("../../../recipes/models/qwen3-30b-a3b.yaml")),
    ("qwen3-32b", include_str!("../../../recipes/models/qwen3-32b.yaml")),
    ("qwen3-4b", include_str!("../../../recipes/models/qwen3-4b.yaml")),
    ("qwen3-8b", include_str!("../../../recipes/models/qwen3-8b.yaml")),
];

/// The names of all models of the catalogue.
pub fn catalogue() -> impl Iterator<Item = &'static str> {
    MODELS.iter().map(|(name, _)| *name)
}

/// A model of the catalogue, by its name or by the name of its repository (`ORG/NAME`, in any case).
#[must_use]
pub fn catalogued(name: &str) -> Option<Result<Release, CatalogueError>> {
    let by_name = MODELS.iter().find(|(n, _)| n.eq_ignore_ascii_case(name));
    if let Some((_, text)) = by_name {
        return Some(Release::parse(text));
    }
    let line = format!("repository: {name}");
    let by_repository = |text: &&str| text.lines().any(|l| l.eq_ignore_ascii_case(&line));
    MODELS.iter().map(|(_, text)| *text).find(by_repository).map(Release::parse)
}

/// What is wrong with a file of the catalogue.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CatalogueError {
    /// It cannot be read.
    #[error("a file of the model catalogue cannot be read: {0}")]
    Yaml(String),
    /// Its config is none of ours.
    #[error("catalogue model {model}: {source}")]
    Arch {
        /// The model.
        model: String,
        /// Why.
        source: ArchError,
    },
    /// A tensor has no format, or one that its shape does not fit.
    #[error("catalogue model {model}: tensor `{tensor}`: {what}")]
    Tensor {
        /// The model.
        model: String,
        /// The tensor.
        tensor: String,
        /// Why.
        what: String,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    name: String,
    repository: String,
    license: String,
    #[serde(default)]
    parameters: Option<u64>,
    presets: Vec<String>,
    config: Map<String, Value>,
    stored: Map<String, Value>,
    #[serde(default)]
    next_token_layers: Option<Next>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Next {
    /// How many layers the config is extended by.
    count: usize,
    /// What the names of the layer behind the last begin with.
    like: String,
    /// What they begin with in the release.
    named: String,
    /// Tensors that no other layer has, by name behind that, with their shapes.
    besides: Map<String, Value>,
}

/// A released model: every tensor's name, shape and stored format, and no values.
#[derive(Debug)]
pub struct Release {
    /// Its name in the catalogue.
    pub name: String,
    /// Its repository on the hub, `ORG/NAME`.
    pub repository: String,
    /// Its licence, as the hub calls it.
    pub license: String,
    /// Weights as published or counted by others, next-token layers and tables apart, where that is known to the digit.
    pub parameters: Option<u64>,
    /// The presets made for it, largest first.
    pub presets: Vec<String>,
    /// The config of the release.
    pub config: Value,
    /// The model, next-token layers among it.
    pub spec: ModelSpec,
    entries: Vec<Entry>,
}

impl Release {
    /// Reads a file of the catalogue.
    ///
    /// # Errors
    /// [`CatalogueError`].
    pub fn parse(text: &str) -> Result<Self, CatalogueError> {
        let raw: Raw = serde_saphyr::from_str(text).map_err(|e| CatalogueError::Yaml(e.to_string()))?;
        let config = Value::Object(raw.config.clone());
        let arch = |source| CatalogueError::Arch { model: raw.name.clone(), source };
        let mut spec = model_spec(&config).map_err(arch)?;
        let next = match &raw.next_token_layers {
            Some(next) => raw.behind(next).map_err(arch)?,
            None => Vec::new(),
        };
        spec.adopt(next.iter().map(|(name, shape)| (name.as_str(), shape.as_slice())));
        let entries = raw.entries(&spec)?;
        let Raw { name, repository, license, parameters, presets, .. } = raw;
        Ok(Self { name, repository, license, parameters, presets, config, spec, entries })
    }
}

impl Raw {
    /// Names and shapes of next-token layers.
    fn behind(&self, next: &Next) -> Result<Vec<(String, Vec<usize>)>, ArchError> {
        let mut config = self.config.clone();
        if let Some(layers) = config.get("num_hidden_layers").and_then(Value::as_u64) {
            config.insert("num_hidden_layers".into(), (layers + next.count as u64).into());
        }
        let longer = model_spec(&Value::Object(config))?;
        let renamed = |name: &str| name.strip_prefix(next.like.as_str()).map(|rest| format!("{}{rest}", next.named));
        let mut all: Vec<_> =
            longer.tensors().filter_map(|leaf| Some((renamed(&leaf.name)?, leaf.shape.clone()))).collect();
        for (name, shape) in &next.besides {
            let shape = shape.as_array().into_iter().flatten().filter_map(Value::as_u64).map(|d| d as usize).collect();
            all.push((format!("{}{name}", next.named), shape));
        }
        Ok(all)
    }

    fn entries(&self, spec: &ModelSpec) -> Result<Vec<Entry>, CatalogueError> {
        let refuse = |tensor: &str, what: String| CatalogueError::Tensor {
            model: self.name.clone(),
            tensor: tensor.into(),
            what,
        };
        let mut rules: Vec<(GlobMatcher, Spec)> = Vec::new();
        for (pattern, format) in &self.stored {
            let glob = Glob::new(pattern).map_err(|e| refuse(pattern, e.to_string()))?;
            let format = format.as_str().unwrap_or_default().parse().map_err(|e| refuse(pattern, format!("{e}")))?;
            rules.push((glob.compile_matcher(), format));
        }
        let mut entries = Vec::new();
        for leaf in spec.tensors() {
            let rule = rules.iter().find(|(glob, _)| glob.is_match(&leaf.name));
            let (_, format) = rule.ok_or_else(|| refuse(&leaf.name, "no pattern of `stored` matches it".into()))?;
            let (n, k) = extents(&leaf.shape);
            let layout = format.layout(Order::Rows, n, k).map_err(|e| refuse(&leaf.name, e.to_string()))?;
            entries.push(Entry {
                name: leaf.name.clone(),
                shape: leaf.shape.clone(),
                format: format.to_string(),
                order: Order::Rows,
                planes: layout.planes.iter().map(|p| Plane { kind: p.kind, bytes: p.bytes }).collect(),
                file: format!("catalogue model {}", self.name),
            });
        }
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }
}

/// A store of shapes: every read fails.
impl TensorStore for Release {
    fn entries(&self) -> &[Entry] {
        &self.entries
    }

    fn read(&self, entry: &Entry, _plane: usize, offset: u64, out: &mut [u8]) -> Result<(), StoreError> {
        Err(no_weights(entry, offset, out.len() as u64))
    }

    fn map(&self, entry: &Entry, _plane: usize) -> Result<Bytes, StoreError> {
        Err(no_weights(entry, 0, entry.bytes()))
    }
}

fn no_weights(entry: &Entry, offset: u64, len: u64) -> StoreError {
    let source = io::Error::new(io::ErrorKind::NotFound, "the catalogue has shapes, and no weights");
    StoreError::Io { file: entry.file.clone(), tensor: entry.name.clone(), offset, len, source }
}
