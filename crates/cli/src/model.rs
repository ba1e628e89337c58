//! `SRC`: a checkpoint or a pack, opened and checked against its own config.

use crate::exit::{Failure, OrUsage};
use crate::hub;
use anyhow::{Context, anyhow};
use ashlar_arch::{ArchError, Class, Leaf, ModelSpec};
use ashlar_formats::Spec;
use ashlar_hub::{HeadersOnly, Stream};
use ashlar_pack::Pack;
use ashlar_recipe::{Release, catalogue, catalogued};
use ashlar_source::Checkpoint;
use ashlar_tensor::TensorStore;
use clap::{Args, ValueEnum};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};

/// Where a model's weights come from.
pub enum Source {
    /// A Hugging Face checkpoint, as downloaded.
    Checkpoint(Checkpoint),
    /// What `ashlar convert` wrote.
    Pack(Pack),
    /// A model of the catalogue: shapes, and no weights.
    Catalogue(Box<Release>),
    /// Headers of a repository of the hub, and no weights.
    Headers(Box<HeadersOnly>),
    /// A repository of the hub whose shards come while they are converted.
    Stream(Box<Stream>),
}

/// An opened `SRC`.
pub struct Model {
    /// The path as the user gave it.
    pub path: PathBuf,
    pub source: Source,
    /// `None` where roles were guessed.
    pub spec: Option<ModelSpec>,
    /// The tensors that are planned and converted, in execution order.
    pub leaves: Vec<Leaf>,
    /// Harmless tensors that no model needs, which are left out.
    pub ignored: Vec<String>,
    /// How many tensors are left out because the user says so.
    pub dropped: usize,
}

/// Refuses what is neither a local path nor a repository of the hub.
///
/// # Errors
/// A usage error with the remedy.
pub fn check_path(path: &Path) -> Result<(), Failure> {
    if hub::repository(path)?.is_some() {
        return Ok(());
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

/// What is taken of a model, and how its tensors get their roles.
#[derive(Args, Clone, Copy, Debug, Default)]
pub struct SourceArgs {
    /// Leave out the tensors of next-token (MTP) layers, which no program runs yet
    #[arg(long, value_name = "WHAT", value_enum)]
    pub drop: Option<Droppable>,
    /// Guess the roles of tensors from their names: for architectures that ashlar does not know, to convert them without
    /// running them
    #[arg(long)]
    pub generic: bool,
}

/// What can be left out of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Droppable {
    /// Next-token layers
    Mtp,
}

impl Model {
    /// Opens a checkpoint or a pack from its headers alone. A repository of the hub is downloaded first.
    ///
    /// # Errors
    /// A missing path is the user's mistake; anything wrong inside is a failure that names file and tensor.
    pub fn open(path: &Path) -> Result<Self, Failure> {
        Self::open_as(path, SourceArgs::default())
    }

    /// As [`Model::open`], of all tensors or of some.
    ///
    /// # Errors
    /// As [`Model::open`].
    pub fn open_as(path: &Path, args: SourceArgs) -> Result<Self, Failure> {
        check_path(path)?;
        let local = hub::local(path)?;
        let source = if Pack::is_pack(&local) {
            Source::Pack(Pack::open(&local)?)
        } else {
            Source::Checkpoint(Checkpoint::open(&local)?)
        };
        Self::of(path, source, args)
    }

    /// As [`Model::open_as`], of what is only to be looked at: of a repository of the hub that is not in the cache, headers
    /// are read; where there is no such file, the name of a model of the catalogue will do.
    ///
    /// # Errors
    /// As [`Model::open`].
    pub fn look_at(path: &Path, args: SourceArgs) -> Result<Self, Failure> {
        if let Some(repo) = hub::repository(path)? {
            let hub = hub::open()?;
            if hub.cached(&repo).is_none() {
                let headers = hub.headers(&repo, &hub::progress()).map_err(hub::failure)?;
                return Self::of(path, Source::Headers(Box::new(headers)), args);
            }
        }
        if let Some(release) = of_catalogue(path)? {
            return Self::of(path, Source::Catalogue(Box::new(release)), args);
        }
        Self::open_as(path, args).map_err(|failure| {
            let name = path.to_str().filter(|_| !path.exists());
            match name.and_then(|name| Some((name, ashlar_arch::nearest(name, catalogue())?))) {
                Some((name, near)) => failure.context(format!("there is no `{name}`; the catalogue has `{near}`")),
                None => failure,
            }
        })
    }

    /// Checks what a source holds against its own config, or guesses the roles of its tensors.
    ///
    /// # Errors
    /// As [`Model::open`].
    pub fn of(path: &Path, source: Source, args: SourceArgs) -> Result<Self, Failure> {
        let name = || path.display().to_string();
        let entries = source.store().entries().iter();
        let tensors: Vec<(&str, &[usize])> = entries.map(|e| (e.name.as_str(), e.shape.as_slice())).collect();
        if args.generic {
            let mut leaves = ashlar_arch::generic(tensors);
            leaves.retain(|leaf| args.drop.is_none() || leaf.role.class != Class::Mtp);
            check_formats(&leaves, source.store())?;
            return Ok(Self { path: path.to_owned(), source, spec: None, leaves, ignored: Vec::new(), dropped: 0 });
        }
        let mut spec = ashlar_arch::model_spec(source.config()).map_err(|e| unknown(e, &name()))?;
        let kept = |(tensor, _): &(&str, &[usize])| args.drop.is_none() || !spec.is_next_token(tensor);
        let (kept, dropped): (Vec<_>, Vec<_>) = tensors.into_iter().partition(kept);
        spec.adopt(kept.iter().copied());
        let ignored = ashlar_arch::check(&spec, kept).with_context(name)?;
        let leaves: Vec<Leaf> = spec.tensors().cloned().collect();
        let dropped = dropped.len();
        check_formats(&leaves, source.store())?;
        Ok(Self { path: path.to_owned(), source, spec: Some(spec), leaves, ignored, dropped })
    }

    /// The model as its family describes it.
    ///
    /// # Errors
    /// The user's mistake, where roles were guessed.
    pub fn spec(&self) -> Result<&ModelSpec, Failure> {
        self.spec.as_ref().ok_or_else(|| {
            Failure::usage(anyhow!(
                "{}: with --generic the roles of tensors are guessed from their names, which is enough to convert them, \
                 and not for statistics or for running them",
                self.path.display()
            ))
        })
    }

    /// What the user should know of how it was read.
    #[must_use]
    pub fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if self.dropped > 0 {
            notes.push(format!("{} tensors of next-token layers are left out (--drop mtp)", self.dropped));
        }
        if self.spec.is_none() {
            notes.push(format!("--generic: roles are guessed from names: {}", self.guessed()));
        }
        notes
    }

    /// Classes with the number of their tensors and an example of each.
    fn guessed(&self) -> String {
        let mut classes: BTreeMap<Class, (usize, &str)> = BTreeMap::new();
        for leaf in &self.leaves {
            classes.entry(leaf.role.class).or_insert((0, &leaf.name)).0 += 1;
        }
        let line = |(class, (count, example)): (Class, (usize, &str))| format!("{class} {count} (`{example}`)");
        classes.into_iter().map(line).collect::<Vec<_>>().join(", ")
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

    /// Totals per format, the largest first.
    #[must_use]
    pub fn formats(&self) -> Vec<FormatTotals> {
        let taken: HashSet<&str> = self.leaves.iter().map(|l| l.name.as_str()).collect();
        let mut totals: BTreeMap<&str, FormatTotals> = BTreeMap::new();
        for entry in self.store().entries().iter().filter(|e| taken.contains(e.name.as_str())) {
            let new = || FormatTotals { format: entry.format.clone(), tensors: 0, parameters: 0, bytes: 0 };
            let total = totals.entry(&entry.format).or_insert_with(new);
            total.tensors += 1;
            total.parameters += entry.elements();
            total.bytes += entry.bytes();
        }
        let mut totals: Vec<FormatTotals> = totals.into_values().collect();
        totals.sort_by_key(|t| std::cmp::Reverse(t.bytes));
        totals
    }
}

/// Refuses weights whose dtype holds no weights, such as integers. It is the file that is wrong, not the recipe.
fn check_formats(leaves: &[Leaf], store: &dyn TensorStore) -> anyhow::Result<()> {
    for entry in leaves.iter().filter_map(|leaf| store.entry(&leaf.name)) {
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
    /// Whether it has shapes, and no weights to try formats on.
    #[must_use]
    pub fn is_shapes(&self) -> bool {
        matches!(self, Self::Catalogue(_) | Self::Headers(_) | Self::Stream(_))
    }

    /// The checkpoint that was opened, if it is one.
    #[must_use]
    pub fn checkpoint(&self) -> Option<&Checkpoint> {
        match self {
            Self::Checkpoint(c) => Some(c),
            Self::Headers(h) => Some(h.checkpoint()),
            Self::Stream(s) => Some(s.checkpoint()),
            Self::Pack(_) | Self::Catalogue(_) => None,
        }
    }

    /// The weights.
    #[must_use]
    pub fn store(&self) -> &dyn TensorStore {
        match self {
            Self::Checkpoint(c) => c,
            Self::Pack(p) => p,
            Self::Catalogue(r) => &**r,
            Self::Headers(h) => &**h,
            Self::Stream(s) => &**s,
        }
    }

    /// A hash that the same model has wherever it lies.
    #[must_use]
    pub fn identity(&self) -> String {
        match self {
            Self::Checkpoint(c) => c.identity(),
            Self::Pack(p) => p.identity(),
            Self::Catalogue(r) => format!("catalogue model {}", r.name),
            Self::Headers(h) => h.checkpoint().identity(),
            Self::Stream(s) => s.checkpoint().identity(),
        }
    }

    /// The original `config.json`.
    #[must_use]
    pub fn config(&self) -> &serde_json::Value {
        match self {
            Self::Checkpoint(c) => c.config(),
            Self::Pack(p) => p.config(),
            Self::Catalogue(r) => &r.config,
            Self::Headers(h) => h.checkpoint().config(),
            Self::Stream(s) => s.checkpoint().config(),
        }
    }
}

/// An architecture that no family knows can still be converted.
fn unknown(error: ArchError, name: &str) -> anyhow::Error {
    let hint = matches!(error, ArchError::UnknownArchitecture { .. });
    let error = anyhow::Error::new(error);
    if hint {
        return error.context(format!(
            "{name}: this architecture is not known; `--generic` inspects, plans and converts it by tensor names alone, and \
             nothing runs it"
        ));
    }
    error.context(name.to_owned())
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

/// What the tensors of one format add up to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FormatTotals {
    pub format: String,
    pub tensors: u64,
    pub parameters: u64,
    pub bytes: u64,
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
