//! `SRC`: a checkpoint or a pack, opened and checked against its own config.

use crate::exit::{Failure, OrUsage};
use anyhow::{Context, anyhow};
use ashlar_arch::{Class, Leaf, ModelSpec};
use ashlar_formats::Spec;
use ashlar_pack::Pack;
use ashlar_recipe::{Release, catalogue, catalogued};
use ashlar_source::Checkpoint;
use ashlar_tensor::TensorStore;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

/// Where a model's weights come from.
pub enum Source {
    /// A Hugging Face checkpoint, as downloaded.
    Checkpoint(Checkpoint),
    /// What `ashlar convert` wrote.
    Pack(Pack),
    /// A model of the catalogue: shapes, and no weights.
    Catalogue(Box<Release>),
}

/// An opened `SRC`.
pub struct Model {
    /// The path as the user gave it.
    pub path: PathBuf,
    pub source: Source,
    pub spec: ModelSpec,
    /// The tensors that are planned and converted, in execution order.
    pub leaves: Vec<Leaf>,
    /// Harmless tensors that no model needs, which are left out.
    pub ignored: Vec<String>,
}

/// Refuses what is not a local path.
///
/// # Errors
/// A usage error with the remedy.
pub fn check_path(path: &Path) -> Result<(), Failure> {
    if let Some(repo) = path.to_str().and_then(|p| p.strip_prefix("hf:")) {
        let repo = repo.split('@').next().unwrap_or(repo);
        return Err(Failure::usage(anyhow!(
            "hf:{repo}: this version does not download; fetch it first, e.g. with `hf download {repo} --local-dir DIR`, and give DIR"
        )));
    }
    let opened = std::fs::metadata(path).map(drop);
    opened.with_context(|| format!("cannot open {}{}", path.display(), catalogue_hint(path))).or_usage()
}

/// What the user should know if `path` is the name of a model that only the catalogue knows.
fn catalogue_hint(path: &Path) -> String {
    match path.to_str().and_then(catalogued) {
        Some(Ok(release)) => {
            format!(
                " (the catalogue knows sizes of {}, no weights; its repository is {})",
                release.name, release.repository
            )
        }
        _ => String::new(),
    }
}

/// The model of the catalogue that `path` names, unless there is such a file.
fn of_catalogue(path: &Path) -> Result<Option<Release>, Failure> {
    let name = path.to_str().filter(|_| !path.exists());
    Ok(name.and_then(catalogued).transpose()?)
}

impl Model {
    /// As [`Model::open`]; where there is no such file, the name of a model of the catalogue will do.
    ///
    /// # Errors
    /// As [`Model::open`].
    pub fn open_or_catalogued(path: &Path) -> Result<Self, Failure> {
        if let Some(release) = of_catalogue(path)? {
            let spec = release.spec.clone();
            let source = Source::Catalogue(Box::new(release));
            let leaves = spec.tensors().cloned().collect();
            return Ok(Self { path: path.to_owned(), source, spec, leaves, ignored: Vec::new() });
        }
        Self::open(path).map_err(|failure| match path.to_str().filter(|_| !path.exists()) {
            Some(name) => match ashlar_arch::nearest(name, catalogue()) {
                Some(near) => failure.context(format!("there is no `{name}`; the catalogue has `{near}`")),
                None => failure,
            },
            None => failure,
        })
    }

    /// Opens a checkpoint or a pack from its headers alone.
    ///
    /// # Errors
    /// A missing path is the user's mistake; anything wrong inside is a failure that names file and tensor.
    pub fn open(path: &Path) -> Result<Self, Failure> {
        check_path(path)?;
        let source = if Pack::is_pack(path) {
            Source::Pack(Pack::open(path)?)
        } else {
            Source::Checkpoint(Checkpoint::open(path)?)
        };
        let mut spec = ashlar_arch::model_spec(source.config()).with_context(|| path.display().to_string())?;
        let tensors = || source.store().entries().iter().map(|e| (e.name.as_str(), e.shape.as_slice()));
        spec.adopt(tensors());
        let ignored = ashlar_arch::check(&spec, tensors()).with_context(|| path.display().to_string())?;
        check_formats(&spec, source.store())?;
        let leaves = spec.tensors().cloned().collect();
        Ok(Self { path: path.to_owned(), source, spec, leaves, ignored })
    }

    /// The weights.
    #[must_use]
    pub fn store(&self) -> &dyn TensorStore {
        self.source.store()
    }

    /// Totals per class, in the order of [`Class`].
    #[must_use]
    pub fn classes(&self) -> Vec<ClassTotals> {
        let roles: HashMap<&str, Class> = self.leaves.iter().map(|l| (l.name.as_str(), l.role.class)).collect();
        let mut totals: BTreeMap<Class, ClassTotals> = BTreeMap::new();
        for entry in self.store().entries() {
            let Some(class) = roles.get(entry.name.as_str()) else { continue };
            let total = totals.entry(*class).or_insert_with(|| ClassTotals::new(*class));
            total.tensors += 1;
            total.parameters += entry.elements();
            total.bytes += entry.bytes();
            *total.formats.entry(entry.format.clone()).or_default() += 1;
        }
        totals.into_values().collect()
    }
}

/// Refuses weights whose dtype holds no weights, such as integers. It is the file that is wrong, not the recipe.
fn check_formats(spec: &ModelSpec, store: &dyn TensorStore) -> anyhow::Result<()> {
    for entry in spec.tensors().filter_map(|leaf| store.entry(&leaf.name)) {
        if let Err(why) = entry.format.parse::<Spec>() {
            return Err(anyhow!(
                "{}: tensor `{}`: expected a weight as f32, f16, bf16 or block-scaled fp8, got {} ({why}); \
                 download or export the checkpoint again",
                entry.file,
                entry.name,
                entry.format
            ));
        }
    }
    Ok(())
}

impl Source {
    /// The weights.
    #[must_use]
    pub fn store(&self) -> &dyn TensorStore {
        match self {
            Self::Checkpoint(c) => c,
            Self::Pack(p) => p,
            Self::Catalogue(r) => &**r,
        }
    }

    /// A hash that the same model has wherever it lies.
    #[must_use]
    pub fn identity(&self) -> String {
        match self {
            Self::Checkpoint(c) => c.identity(),
            Self::Pack(p) => p.identity(),
            Self::Catalogue(r) => format!("catalogue model {}", r.name),
        }
    }

    /// The original `config.json`.
    #[must_use]
    pub fn config(&self) -> &serde_json::Value {
        match self {
            Self::Checkpoint(c) => c.config(),
            Self::Pack(p) => p.config(),
            Self::Catalogue(r) => &r.config,
        }
    }
}

/// What the tensors of one class add up to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClassTotals {
    pub class: Class,
    pub tensors: u64,
    pub parameters: u64,
    pub bytes: u64,
    /// Tensors per format.
    pub formats: BTreeMap<String, u64>,
}

impl ClassTotals {
    fn new(class: Class) -> Self {
        Self { class, tensors: 0, parameters: 0, bytes: 0, formats: BTreeMap::new() }
    }
}

/// Bits per weight; 0 where there is none.
#[must_use]
pub fn bpw(bytes: u64, parameters: u64) -> f64 {
    if parameters == 0 { 0.0 } else { bytes as f64 * 8.0 / parameters as f64 }
}

/// `q8` or `q8 × 12, bf16 × 3`, most frequent first.
#[must_use]
pub fn format_list(formats: &BTreeMap<String, u64>) -> String {
    if let (1, Some(only)) = (formats.len(), formats.keys().next()) {
        return only.clone();
    }
    let mut all: Vec<_> = formats.iter().collect();
    all.sort_by(|a, b| b.1.cmp(a.1).then(a.0.cmp(b.0)));
    all.iter().map(|(format, count)| format!("{format} × {count}")).collect::<Vec<_>>().join(", ")
}
