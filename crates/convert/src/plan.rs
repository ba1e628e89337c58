//! [`Plan`]: what a conversion will do and how large its result will be, from headers alone.

use crate::error::ConvertError;
use crate::factors;
use crate::jobs::jobs;
use crate::knowledge::Knowledge;
use crate::work::{Step, Work};
use ashlar_arch::{Class, Leaf, Proj, Tensors};
use ashlar_pack::{Hash, Layout, Pack, Part, RecordSpec, TensorSpec, plan_layout};
use ashlar_recipe::{Choice, Choices};
use ashlar_source::Checkpoint;
use ashlar_tensor::TensorStore;
use serde::Serialize;
use serde_json::Value;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;

/// Where a model comes from: what goes into the pack besides weights.
#[derive(Clone, Debug)]
pub struct Origin {
    /// Identity of the source (a hash, no path).
    pub identity: String,
    /// The source's own `config.json`.
    pub config: Value,
    /// The resolved recipe.
    pub recipe: String,
    /// Files to be copied along.
    pub side_files: Vec<PathBuf>,
    /// The pack's own README.md, in the place of the source's.
    pub card: Option<String>,
    /// The directory it lies in, or the file it is; the output must lie elsewhere.
    pub dir: PathBuf,
    /// The files that hold the weights; they must not change while they are converted.
    pub weights: Vec<PathBuf>,
    /// Of tensors that a pack already keeps losslessly in its own order: the hash of the first source's planes.
    pub source_blake3: BTreeMap<String, Hash>,
}

impl Origin {
    /// Of a checkpoint.
    #[must_use]
    pub fn checkpoint(checkpoint: &Checkpoint, recipe: String) -> Self {
        Self {
            identity: checkpoint.identity(),
            config: checkpoint.config().clone(),
            recipe,
            side_files: checkpoint.side_files(),
            card: None,
            dir: checkpoint.place_on_disk(),
            weights: checkpoint.files().map(|(name, _)| checkpoint.dir().join(name)).collect(),
            source_blake3: BTreeMap::new(),
        }
    }

    /// Of a model of which shapes are known, and nothing else: it can be planned.
    #[must_use]
    pub fn shapes(identity: String, config: Value, recipe: String) -> Self {
        let (side_files, weights, source_blake3) = (Vec::new(), Vec::new(), BTreeMap::new());
        Self { identity, config, recipe, side_files, card: None, dir: PathBuf::new(), weights, source_blake3 }
    }

    /// Of a pack that is quantized again.
    #[must_use]
    pub fn pack(pack: &Pack, recipe: String) -> Self {
        let kept = pack.records().iter().flat_map(|r| &r.source_blake3);
        Self {
            identity: pack.identity(),
            config: pack.config().clone(),
            recipe,
            side_files: pack.side_files(),
            card: None,
            dir: pack.dir().to_owned(),
            weights: pack.manifest().shards.iter().map(|(name, _)| pack.dir().join(name)).collect(),
            source_blake3: kept.map(|(name, hash)| (name.clone(), *hash)).collect(),
        }
    }
}

/// One tensor of a plan.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PlannedTensor {
    /// The checkpoint's name.
    pub name: String,
    /// The recipe's class.
    pub class: &'static str,
    /// Logical shape.
    pub shape: Vec<usize>,
    /// Format in the source.
    pub source_format: String,
    /// Format in the pack.
    pub format: String,
    /// The quantizer; `None` where bits are kept.
    pub method: Option<&'static str>,
    /// Bytes in the pack.
    pub bytes: u64,
    /// File name of the shard.
    pub file: String,
    /// First byte in the shard.
    pub offset: u64,
}

/// Totals of a class.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ClassTotal {
    /// The recipe's class.
    pub class: &'static str,
    /// Tensors.
    pub tensors: usize,
    /// Logical values.
    pub params: u64,
    /// Bytes in the pack.
    pub bytes: u64,
    /// Bits per weight.
    pub bpw: f64,
    /// Bytes in the source.
    pub source_bytes: u64,
    /// Formats in the pack, with the number of tensors of each.
    pub formats: BTreeMap<String, usize>,
    /// Quantizers, with the number of tensors of each; empty where all bits are kept.
    pub methods: BTreeMap<&'static str, usize>,
}

/// What a conversion needs in memory.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Memory {
    /// Buffers of the most demanding tile, and the factored Hessians in use beside it: the least that `--memory` can be.
    pub largest_tile_bytes: u64,
    /// The tensor it belongs to.
    pub largest_tile: String,
    /// Besides `--memory`: headers, plan and checksums in progress (an estimate from above).
    pub fixed_bytes: u64,
}

/// What a conversion will do.
#[derive(Clone, Serialize)]
pub struct Plan {
    /// Bytes of all shards on the disk, headers and padding included; manifest, config and copied files are not.
    pub total_bytes: u64,
    /// Bytes of the files that are copied along.
    pub side_bytes: u64,
    /// Bytes of the source's tensors.
    pub source_bytes: u64,
    /// Logical values of all tensors.
    pub params: u64,
    /// Bits per weight: `total_bytes` × 8 / `params`.
    pub bpw: f64,
    /// By class, in the order of the recipe schema.
    pub classes: Vec<ClassTotal>,
    /// File name and size of every shard.
    pub shards: Vec<(String, u64)>,
    /// What it needs in memory.
    pub memory: Memory,
    /// Every tensor, in file order.
    pub tensors: Vec<PlannedTensor>,
    #[serde(skip)]
    pub(crate) origin: Origin,
    #[serde(skip)]
    pub(crate) knowledge: Option<Arc<dyn Knowledge>>,
    #[serde(skip)]
    pub(crate) layout: Layout,
    /// In file order, like `tensors`.
    #[serde(skip)]
    pub(crate) works: Vec<Work>,
    /// Where this is the plan of a part.
    #[serde(skip)]
    pub(crate) piece: Option<Piece>,
}

/// What the plan of a part knows of the whole.
#[derive(Clone)]
pub(crate) struct Piece {
    pub part: Part,
    /// The index in the whole of each of its records, ascending.
    pub records: Vec<usize>,
    /// The hash of the whole layout.
    pub whole: Hash,
}

/// Plans a conversion of `store` by `choices`, which must hold every tensor of `model` once. Shards' data sections
/// exceed `max_shard_bytes` only for a single larger record. Nothing but headers has been read, nothing is written.
///
/// # Errors
/// [`ConvertError`] if choices, model and store disagree, or a format does not fit.
pub fn plan(
    model: &(impl Tensors + ?Sized),
    store: &dyn TensorStore,
    choices: &Choices,
    origin: Origin,
    max_shard_bytes: u64,
) -> Result<Plan, ConvertError> {
    check_choices(model, choices)?;
    let (records, mut works) = records(store, choices)?;
    let layout = plan_layout(records, max_shard_bytes)?;
    let order = layout.records.iter().flat_map(|r| &r.tensors);
    let works: Vec<Work> = order.filter_map(|t| works.remove(&t.name)).collect();
    Ok(summarize(origin, layout, works))
}

/// Bytes of the pack that `choices` make, as [`Plan::total_bytes`].
///
/// # Errors
/// [`ConvertError`] if a format does not fit, or a tensor is not in the source.
pub fn planned_bytes(store: &dyn TensorStore, choices: &Choices, max_shard_bytes: u64) -> Result<u64, ConvertError> {
    Ok(plan_layout(records(store, choices)?.0, max_shard_bytes)?.bytes())
}

/// What is to be laid out, and the work of every tensor.
fn records(
    store: &dyn TensorStore,
    choices: &Choices,
) -> Result<(Vec<RecordSpec>, HashMap<String, Work>), ConvertError> {
    let mut works = HashMap::with_capacity(choices.list.len());
    let mut records = Vec::new();
    for (layer, expert, members) in group(choices) {
        let mut tensors = Vec::new();
        for choice in members {
            let name = choice.leaf.name.clone();
            let entry = store.entry(&name).ok_or_else(|| missing(&name))?;
            let work = Work::new(choice, entry)?;
            let (shape, format) = (entry.shape.clone(), work.to.to_string());
            tensors.push(TensorSpec { name: name.clone(), shape, format, content: work.content()? });
            works.insert(name, work);
        }
        records.push(RecordSpec { layer, expert, tensors });
    }
    Ok((records, works))
}

fn missing(tensor: &str) -> ConvertError {
    ConvertError::Tensor { tensor: tensor.to_owned(), what: "is not in the source".into() }
}

fn check_choices(model: &(impl Tensors + ?Sized), choices: &Choices) -> Result<(), ConvertError> {
    let mut wanted: HashMap<&str, &Leaf> = model.leaves().map(|l| (l.name.as_str(), l)).collect();
    for choice in &choices.list {
        if wanted.remove(choice.leaf.name.as_str()) != Some(&choice.leaf) {
            let what = "was chosen a format twice, or is not a tensor of the model";
            return Err(ConvertError::Tensor { tensor: choice.leaf.name.clone(), what: what.into() });
        }
    }
    match wanted.keys().min() {
        Some(name) => Err(ConvertError::Tensor { tensor: (*name).to_owned(), what: "was not chosen a format".into() }),
        None => Ok(()),
    }
}

type Group<'a> = (Option<usize>, Option<usize>, Vec<&'a Choice>);

/// One group per record: an expert's gate, up and down together, every other tensor alone.
fn group(choices: &Choices) -> Vec<Group<'_>> {
    let mut groups: Vec<Group<'_>> = Vec::new();
    let mut experts: HashMap<(usize, usize), usize> = HashMap::new();
    for choice in &choices.list {
        let role = &choice.leaf.role;
        match (role.class, role.layer, role.expert) {
            (Class::Experts, Some(layer), Some(expert)) => {
                let index = *experts.entry((layer, expert)).or_insert_with(|| {
                    groups.push((Some(layer), Some(expert), Vec::new()));
                    groups.len() - 1
                });
                if let Some((.., members)) = groups.get_mut(index) {
                    members.push(choice);
                }
            }
            (_, layer, _) => groups.push((layer, None, vec![choice])),
        }
    }
    for (.., members) in &mut groups {
        members.sort_by_key(|c| match c.leaf.role.proj {
            Some(Proj::Gate) => 0,
            Some(Proj::Up) => 1,
            _ => 2,
        });
    }
    groups
}

fn summarize(origin: Origin, layout: Layout, works: Vec<Work>) -> Plan {
    let mut tensors = Vec::new();
    let placed = layout.records.iter().flat_map(|r| r.tensors.iter().map(move |t| (r.shard, t)));
    for ((shard, t), work) in placed.zip(&works) {
        tensors.push(PlannedTensor {
            name: t.name.clone(),
            class: work.class,
            shape: t.shape.clone(),
            source_format: work.entry.format.clone(),
            format: t.format.clone(),
            method: work.method(),
            bytes: t.bytes,
            file: layout.shards.get(shard).map(|s| s.file.clone()).unwrap_or_default(),
            offset: t.offset,
        });
    }
    let params: u64 = works.iter().map(|w| w.entry.elements()).sum();
    let side_bytes = origin.side_files.iter().filter_map(|f| f.metadata().ok()).map(|m| m.len()).sum();
    let mut plan = Plan {
        total_bytes: layout.bytes(),
        side_bytes,
        source_bytes: works.iter().map(|w| w.entry.bytes()).sum(),
        params,
        bpw: bpw(layout.bytes(), params),
        classes: totals(&tensors, &works),
        shards: layout.shards.iter().map(|s| (s.file.clone(), s.bytes)).collect(),
        memory: Memory { largest_tile_bytes: 0, largest_tile: String::new(), fixed_bytes: 0 },
        tensors,
        origin,
        knowledge: None,
        layout,
        works,
        piece: None,
    };
    plan.memory = memory(&plan);
    plan
}

fn more(count: usize) -> String {
    if count == 0 { String::new() } else { format!(" and {count} more") }
}

fn bpw(bytes: u64, params: u64) -> f64 {
    bytes as f64 * 8.0 / params.max(1) as f64
}

fn totals(tensors: &[PlannedTensor], works: &[Work]) -> Vec<ClassTotal> {
    let mut classes = Vec::new();
    for class in Class::names() {
        let members = || tensors.iter().zip(works).filter(|(t, _)| t.class == class);
        let mut formats = BTreeMap::new();
        members().for_each(|(t, _)| *formats.entry(t.format.clone()).or_insert(0) += 1);
        let mut methods = BTreeMap::new();
        members().filter_map(|(t, _)| t.method).for_each(|m| *methods.entry(m).or_insert(0) += 1);
        let (params, bytes) = (members().map(|(_, w)| w.entry.elements()).sum(), members().map(|(t, _)| t.bytes).sum());
        if !formats.is_empty() {
            let source_bytes = members().map(|(_, w)| w.entry.bytes()).sum();
            classes.push(ClassTotal {
                class,
                tensors: members().count(),
                params,
                bytes,
                bpw: bpw(bytes, params),
                source_bytes,
                formats,
                methods,
            });
        }
    }
    classes
}

fn memory(plan: &Plan) -> Memory {
    let (layout, works) = (&plan.layout, plan.works.as_slice());
    let tiles = works.iter().flat_map(|w| w.tiles().take(1).map(move |rows| (w.memory(&rows), w.entry.name.as_str())));
    let (largest_tile_bytes, largest_tile) = tiles.max_by_key(|(bytes, _)| *bytes).unwrap_or((0, ""));
    let largest_tile_bytes = largest_tile_bytes + factors::bound(plan, &jobs(plan, &HashSet::new()), 1);
    let headers: usize = layout.shards.iter().map(|s| s.header.len()).sum();
    // A tensor's entry, work item and manifest line take about 4 KiB; a record in progress 3 KiB per tile.
    let tiles: u64 = works.iter().map(|w| w.entry.bytes() >> 20).max().unwrap_or(0);
    let fixed_bytes = (32 << 20) + headers as u64 + 4096 * works.len() as u64 + 3072 * tiles;
    Memory { largest_tile_bytes, largest_tile: largest_tile.to_owned(), fixed_bytes }
}

impl Plan {
    /// The plan of one part: the whole shards that it has.
    #[must_use]
    pub fn part(&self, part: Part) -> Self {
        let (layout, records) = self.layout.part(part);
        let (mut works, mut first) = (Vec::new(), 0);
        for (index, record) in self.layout.records.iter().enumerate() {
            let next = first + record.tensors.len();
            if records.binary_search(&index).is_ok() {
                works.extend_from_slice(self.works.get(first..next).unwrap_or_default());
            }
            first = next;
        }
        // What is copied along goes into the whole.
        let origin = Origin { side_files: Vec::new(), ..self.origin.clone() };
        let mut plan = summarize(origin, layout, works);
        plan.knowledge = self.knowledge.clone();
        plan.memory = memory(&plan);
        plan.piece = Some(Piece { part, records, whole: self.layout.hash() });
        plan
    }

    /// The same plan, with a README.md of the pack's own in the place of the source's.
    #[must_use]
    pub fn with_card(mut self, card: String) -> Self {
        self.origin.card = Some(card);
        self
    }

    /// The tensors of every record, in file order: what is converted at once.
    pub fn records(&self) -> impl Iterator<Item = Vec<&str>> {
        self.layout.records.iter().map(|r| r.tensors.iter().map(|t| t.name.as_str()).collect())
    }

    /// Whether it can be carried out within `memory` bytes of buffers.
    ///
    /// # Errors
    /// [`ConvertError::Memory`] with what is needed.
    pub fn check_memory(&self, memory: u64) -> Result<(), ConvertError> {
        let needed = self.memory.largest_tile_bytes;
        if memory < needed {
            return Err(ConvertError::Memory { given: memory, needed, tensor: self.memory.largest_tile.clone() });
        }
        Ok(())
    }

    /// The same conversion with quantizers that know which columns matter, and how. Also returns what the user should
    /// know: which tensors are quantized without statistics.
    ///
    /// # Errors
    /// As [`Plan::check_methods`].
    pub fn with_knowledge(mut self, knowledge: Arc<dyn Knowledge>) -> Result<(Self, Vec<String>), ConvertError> {
        let mut without = Vec::new();
        for work in self.works.iter_mut().filter(|w| matches!(w.step, Step::Encode { .. })) {
            work.learn(&*knowledge)?;
            if !work.weighted {
                without.push(work.entry.name.as_str());
            }
        }
        let note = match without.as_slice() {
            [] => Vec::new(),
            [first, rest @ ..] => {
                vec![format!("no statistics for `{first}`{}: all columns count the same there", more(rest.len()))]
            }
        };
        for (tensor, work) in self.tensors.iter_mut().zip(&self.works) {
            tensor.method = work.method();
        }
        self.classes = totals(&self.tensors, &self.works);
        self.memory = memory(&self);
        self.knowledge = Some(knowledge);
        self.check_methods()?;
        Ok((self, note))
    }

    /// Whether every method that the recipe names has what it needs.
    ///
    /// # Errors
    /// [`ConvertError::NoHessian`] for a method that needs the Hessian of inputs that no statistics hold.
    pub fn check_methods(&self) -> Result<(), ConvertError> {
        let mut lacking = self.works.iter().filter(|w| w.lacks_hessian());
        let Some(first) = lacking.next() else { return Ok(()) };
        Err(ConvertError::NoHessian { tensor: first.entry.name.clone(), more: more(lacking.count()) })
    }

    /// The tensors whose quantizers need a Hessian.
    #[must_use]
    pub fn guided(&self) -> HashSet<&str> {
        self.works.iter().filter(|w| w.factored().is_some()).map(|w| w.entry.name.as_str()).collect()
    }

    /// The resolved recipe that goes into the pack.
    #[must_use]
    pub fn recipe(&self) -> &str {
        &self.origin.recipe
    }
}
