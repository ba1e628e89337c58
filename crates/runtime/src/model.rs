//! [`Model`]: a program, loaded on a device, with its KV caches.
//!
//! Owns: opening, feeding, which positions each sequence holds. Refuses: text (`tokenizer`), choice of tokens (`sampler`),
//! where weights go (`placement`), what a device is (`devices`), running ops (`executor`).

use crate::bench::{Profile, TokenCost};
use crate::devices::Settings;
use crate::executor::{Executor, Source};
use crate::holdings::{CachePlace, Holding, cache_places, holdings};
use crate::kv::KvUse;
use crate::modelled::{ModelledUse, Modelling};
use crate::nvme::{self, ExpertStore, NvmeUse, Plan, expert_matrix};
use crate::open::{Opened, open};
use crate::placement::{Placement, PlacementText, Request, grown};
use crate::program::{Draft, Sizes};
use crate::residency::{Populate, Residency, free_memory, usable};
use crate::vram::SlotUse;
use crate::{Kv, RuntimeError, devices};
use ashlar_arch::ModelSpec;
use ashlar_backend::{ActivationMode, Ask, BackendError, Batch, Memory, Observer, Survey};
use ashlar_source::SideDir;
use ashlar_tensor::{Report, TensorStore};
use serde_json::Value;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// Tokens that go through the model at once at prefill.
pub const DEFAULT_CHUNK: usize = 256;

/// Context when none is asked for: this, or what the model promises if that is less.
pub const DEFAULT_CONTEXT: usize = 4096;

/// How to open a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenOptions {
    /// The device that holds the whole model, such as `cpu`; `auto` for whatever has room. Beside a placement, the accelerator
    /// that it may fill.
    pub device: String,
    /// Where weights go; `None` for all on the device, or as a pack says.
    pub placement: Option<PlacementText>,
    /// The most bytes that an accelerator may hold; `None` for what it has.
    pub vram_limit: Option<u64>,
    /// The most bytes that the host may hold of weights, caches and activations; what is beyond is read from disk as it is used.
    /// `None` for what is free.
    pub ram_limit: Option<u64>,
    /// Threads of a CPU device; `None` for all cores.
    pub threads: Option<usize>,
    /// How inputs of quantized weights are rounded; `None` for the device's own way.
    pub activations: Option<ActivationMode>,
    /// Positions per sequence; `None` for the smaller of [`DEFAULT_CONTEXT`] and what the model promises.
    pub context: Option<usize>,
    /// Largest number of tokens in a batch.
    pub chunk: usize,
    /// Whether that may be more where experts are read from disk or copied to slots, which every batch does with most of them.
    pub larger_chunks: bool,
    /// Sequences that can be held at the same time.
    pub sequences: usize,
    /// How keys and values are stored; `None` for the device's own way.
    pub kv: Option<Kv>,
    /// Bytes for the keys and values of all sequences; `None` for as many as the context asks for.
    pub kv_budget: Option<u64>,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self {
            device: "auto".into(),
            placement: None,
            vram_limit: None,
            ram_limit: None,
            threads: None,
            activations: None,
            context: None,
            chunk: DEFAULT_CHUNK,
            larger_chunks: false,
            sequences: 1,
            kv: None,
            kv_budget: None,
        }
    }
}

/// A model that can run.
pub struct Model {
    spec: ModelSpec,
    config: Value,
    dir: SideDir,
    executor: Executor,
    placement: Placement,
    context: usize,
    chunk: usize,
    kv: KvUse,
    token_cost: TokenCost,
    weights: Weights,
    holdings: Vec<Holding>,
    cache_places: Vec<CachePlace>,
    profile: Option<Profile>,
    modelling: Option<Modelling>,
}

struct Weights {
    bytes: u64,
    residency: Residency,
    /// Experts that are read as they are used.
    nvme: Option<Arc<ExpertStore>>,
    /// Held so that it stops with the model.
    _populate: Populate,
}

impl Model {
    /// Opens a pack or a checkpoint and loads it on a device. Weights are mapped, not copied, where the device reads
    /// the stored bytes.
    ///
    /// # Errors
    /// [`RuntimeError`] if the model or an option is bad, or memory is short.
    pub fn open(path: &Path, options: &OpenOptions, report: &dyn Report) -> Result<Self, RuntimeError> {
        Self::load(open(path, report)?, options, report)
    }

    /// Loads an opened model on its devices. What cannot fit is refused before a weight is read.
    ///
    /// # Errors
    /// As [`Model::open`].
    pub fn load(opened: Opened, options: &OpenOptions, report: &dyn Report) -> Result<Self, RuntimeError> {
        let Opened { store, config, spec, dir, placement: packed, .. } = opened;
        let mut request = Request::new(options, packed.as_ref())?;
        let sizes = request.sizes(&spec, options)?;
        if sizes.context > spec.max_position {
            let (asked, promised) = (sizes.context, spec.max_position);
            report.note(&format!("context {asked} is longer than the {promised} positions the model was made for"));
        }
        let bytes = |name: &str| store.entry(name).map(ashlar_tensor::Entry::bytes);
        let (machine, hardware) = request.machine();
        let grows = request.grows(options);
        let (draft, mut placement) =
            grown(&spec, sizes, grows, &mut |draft| place(&mut request, draft, &bytes, &*store))?;
        let sizes = draft.sizes;
        placement.notes.iter().for_each(|note| report.note(note));
        let (threads, activations) = (options.threads, options.activations);
        let mut open = Vec::with_capacity(placement.devices.len());
        for share in &placement.devices {
            let settings = Settings { threads, activations, limit: share.offer.budget };
            open.push(devices::open(share.offer.device, &settings)?);
        }
        let (open, mut modelling) = Modelling::wrap(&machine, hardware, &placement, open);
        let weight_bytes = spec.loaded().filter_map(|leaf| bytes(&leaf.name)).sum();
        let plan = Plan::new(&draft, &placement, &*store, &|device| open.get(device).is_some_and(|d| d.streams()));
        let nvme = nvme::open(&plan, &placement, report)?;
        let residency = residency(&placement, report);
        let kept = (residency == Residency::Kept).then(Vec::new);
        let streamed = nvme.as_ref().map(|nvme| (&plan, Arc::clone(nvme)));
        let mut source = Source { store: &*store, report, streamed, kept };
        report.begin("load", weight_bytes);
        let executor = Executor::load(&draft, &placement, open, &mut source);
        report.end();
        let executor = executor?;
        modelling.iter_mut().for_each(Modelling::begin);
        let populate = Populate::start(source.kept.unwrap_or_default());
        placement.steps.clear();
        let (holdings, cache_places) = (holdings(&draft, &placement, &bytes), cache_places(&draft, &placement));
        let kv = KvUse::new(&draft.caches, sizes.kv, options.kv_budget, sizes.sequences);
        executor.notes().iter().for_each(|note| report.note(note));
        let token_cost = TokenCost::of(&spec, &*store);
        let (context, chunk) = (sizes.context, sizes.rows);
        let weights = Weights { bytes: weight_bytes, residency, nvme, _populate: populate };
        Ok(Self {
            spec,
            config,
            dir,
            executor,
            placement,
            context,
            chunk,
            kv,
            token_cost,
            weights,
            holdings,
            cache_places,
            profile: None,
            modelling,
        })
    }

    /// The model as data.
    #[must_use]
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// The original config.
    #[must_use]
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// The directory of its tokenizer.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The devices, for messages.
    #[must_use]
    pub fn device(&self) -> String {
        self.executor.describe()
    }

    /// What lies where; its steps are with the executor.
    #[must_use]
    pub fn placement(&self) -> &Placement {
        &self.placement
    }

    /// What the devices keep besides weights.
    #[must_use]
    pub fn memory(&self) -> Memory {
        self.executor.memory()
    }

    /// What lies where, by class and layer.
    #[must_use]
    pub fn holdings(&self) -> &[Holding] {
        &self.holdings
    }

    /// Where the caches lie, in the order of [`KvUse::by_cache`].
    #[must_use]
    pub fn cache_places(&self) -> &[CachePlace] {
        &self.cache_places
    }

    /// What every device keeps besides weights, in the order of the placement.
    #[must_use]
    pub fn memory_by_device(&self) -> Vec<(String, Memory)> {
        let names = self.placement.devices.iter().map(|share| share.offer.device.to_string());
        names.zip(self.executor.memory_by_device()).collect()
    }

    /// Bytes of the weights, as they are stored.
    #[must_use]
    pub fn weight_bytes(&self) -> u64 {
        self.weights.bytes
    }

    /// Whether they stay in memory.
    #[must_use]
    pub fn residency(&self) -> Residency {
        self.weights.residency
    }

    /// What was read of experts that lie on disk; `None` if there are none.
    #[must_use]
    pub fn nvme(&self) -> Option<NvmeUse> {
        self.weights.nvme.as_ref().map(|nvme| nvme.used())
    }

    /// What slots for experts were good for, by device; empty if no accelerator has any.
    #[must_use]
    pub fn slots(&self) -> Vec<(String, SlotUse)> {
        let name = |device: usize| self.placement.devices.get(device).map(|share| share.offer.device.to_string());
        self.executor.slots().map(|(device, used)| (name(device).unwrap_or_default(), used)).collect()
    }

    /// Positions a sequence can have.
    #[must_use]
    pub fn context(&self) -> usize {
        self.context
    }

    /// Sequences that can be held at the same time.
    #[must_use]
    pub fn sequences(&self) -> usize {
        self.kv.slots()
    }

    /// Rows that a batch may have.
    #[must_use]
    pub fn chunk(&self) -> usize {
        self.chunk
    }

    /// Positions that a sequence holds.
    #[must_use]
    pub fn held(&self, slot: usize) -> usize {
        self.kv.held(slot)
    }

    /// What keys and values take.
    #[must_use]
    pub fn kv(&self) -> &KvUse {
        &self.kv
    }

    /// The most positions that one sequence can have: the context, or what the budget for keys and values holds.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.kv.fit(self.context, self.chunk)
    }

    /// Whether one sequence of so many positions can be held at all.
    ///
    /// # Errors
    /// [`RuntimeError::Context`], [`RuntimeError::KvBudget`].
    pub fn check(&self, what: &str, positions: usize) -> Result<(), RuntimeError> {
        if positions > self.context {
            return Err(RuntimeError::Context { what: what.into(), needed: positions, context: self.context });
        }
        self.kv.check(what, positions, self.chunk)
    }

    /// Ends the sequence of a slot: its memory is free for others.
    pub fn release(&mut self, slot: usize) {
        self.kv.truncate(slot, 0);
        self.executor.truncate(slot, 0);
    }

    /// What the bytes of [`Model::save`] are called: the same name means the same bits, given the same weights.
    ///
    /// # Errors
    /// The device that cannot save.
    pub fn saved_as(&self) -> Result<String, String> {
        Ok(format!("{}, {}", self.executor.saved_as()?, self.kv.saved_as()))
    }

    /// Appends what all caches hold of a block of positions of a slot: whole blocks of [`ashlar_backend::KV_SAVED`] that the
    /// slot holds. False if a sequence cannot go on at its end, because a window has forgotten what it would need.
    ///
    /// # Errors
    /// [`RuntimeError::Backend`] if the device cannot, or the slot does not hold the block.
    pub fn save(&mut self, slot: usize, block: &Range<usize>, out: &mut Vec<u8>) -> Result<bool, RuntimeError> {
        Ok(self.executor.save(slot, block, out)?)
    }

    /// Takes a block back, behind what the slot holds before it. What it held from there on is gone.
    ///
    /// # Errors
    /// [`RuntimeError::Context`]; [`RuntimeError::Backend`] if the bytes are not those of such a block, or there is no memory:
    /// the slot is empty then.
    pub fn restore(&mut self, slot: usize, block: &Range<usize>, bytes: &[u8]) -> Result<(), RuntimeError> {
        self.check("the block", block.end)?;
        let behind = Batch::of(slot, block.start, &vec![0; block.len()]);
        self.executor.make_room(&self.kv, &behind)?;
        if let Err(error) = self.executor.restore(slot, block, bytes) {
            self.release(slot);
            return Err(error.into());
        }
        self.kv.restored(slot, block.end);
        Ok(())
    }

    /// What one token costs at least.
    #[must_use]
    pub fn token_cost(&self) -> TokenCost {
        self.token_cost
    }

    /// What it would have taken so far on the machine that its placement describes, if an accelerator is rehearsed (`virtual:0`).
    #[must_use]
    pub fn modelled(&self) -> Option<ModelledUse> {
        self.modelling.as_ref().map(Modelling::used)
    }

    /// Times every op from now on, or no longer; returns what was timed so far.
    pub fn set_profile(&mut self, on: bool) -> Option<Profile> {
        std::mem::replace(&mut self.profile, on.then(Profile::default))
    }

    /// Runs one batch of at most `chunk` rows, of one sequence or of several: prompts and single tokens may be mixed, and
    /// a row's logits are the same bits whatever else is in the batch. Returns `batch.outputs.len()` × vocab logits, row-major.
    ///
    /// # Errors
    /// [`RuntimeError::KvBudget`] if keys and values would take more than they may; nothing has changed then.
    /// [`RuntimeError::Backend`] if the batch does not fit the caches or the device fails; what the slots of the batch
    /// hold is then cut back to where the batch began.
    pub fn forward(&mut self, batch: &Batch) -> Result<Vec<f32>, RuntimeError> {
        self.run(batch, &mut None)
    }

    fn run(&mut self, batch: &Batch, observer: &mut Option<&mut dyn Observer>) -> Result<Vec<f32>, RuntimeError> {
        batch.check()?;
        self.kv.allow(batch)?;
        self.kv.begin(batch);
        self.modelling.iter_mut().for_each(Modelling::begin);
        self.executor.make_room(&self.kv, batch)?;
        self.executor.run(batch, observer, &mut self.profile)?;
        let logits = self.executor.logits()?;
        self.modelling.iter_mut().for_each(|modelling| modelling.end(batch));
        self.kv.end(batch);
        Ok(logits)
    }

    /// As [`Model::forward`], but the logits stay where they are: [`Model::logits`] and [`Model::survey`] tell of them until the next
    /// batch runs.
    ///
    /// # Errors
    /// As [`Model::forward`]. A device that works on its own may report a failure only when it is asked for logits; what the
    /// slots of the batch hold is to be released then.
    pub fn step(&mut self, batch: &Batch) -> Result<(), RuntimeError> {
        batch.check()?;
        self.kv.allow(batch)?;
        self.kv.begin(batch);
        self.executor.make_room(&self.kv, batch)?;
        self.executor.run(batch, &mut None, &mut self.profile)?;
        self.kv.end(batch);
        Ok(())
    }

    /// All logits of the last batch: a row for each of its outputs.
    ///
    /// # Errors
    /// [`RuntimeError::Backend`].
    pub fn logits(&mut self) -> Result<Vec<f32>, RuntimeError> {
        Ok(self.executor.logits()?)
    }

    /// Whether the logits lie where it pays to ask for less than all of them.
    pub fn surveys(&mut self) -> bool {
        self.executor.surveyor().is_some()
    }

    /// What is asked of rows of the last batch's logits; `None` if they are not surveyed.
    ///
    /// # Errors
    /// [`RuntimeError::Backend`].
    pub fn survey(&mut self, asks: &[Ask]) -> Result<Option<Vec<Survey>>, RuntimeError> {
        let Some((logits, surveyor)) = self.executor.surveyor() else { return Ok(None) };
        Ok(Some(surveyor.survey(logits, asks)?))
    }

    /// Some logits of a row of the last batch.
    ///
    /// # Errors
    /// [`RuntimeError::Backend`], also if there are no such values.
    pub fn some_logits(&mut self, row: usize, ids: Range<usize>) -> Result<Vec<f32>, RuntimeError> {
        if let Some((logits, surveyor)) = self.executor.surveyor() {
            return Ok(surveyor.values(logits, row, ids)?);
        }
        let (all, vocab) = (self.executor.logits()?, self.spec.vocab_size);
        let of_row = |id: usize| row.checked_mul(vocab).and_then(|first| first.checked_add(id));
        let ends = of_row(ids.start).zip(of_row(ids.end)).filter(|_| ids.end <= vocab);
        let found = ends.and_then(|(first, end)| all.get(first..end));
        let wrong = || BackendError::Operand { op: "logits", what: format!("no row {row}, ids {ids:?}") };
        Ok(found.ok_or_else(wrong)?.to_vec())
    }

    /// Feeds `tokens` to a slot from `position` on, in chunks, and hands the logits of each chunk's rows in `wanted`
    /// (indices into `tokens`, ascending) to `each`, rows × vocab. `progress` is called with the tokens done after
    /// every chunk and stops the run by returning false. Returns the number of tokens fed.
    ///
    /// # Errors
    /// [`RuntimeError::Context`] or [`RuntimeError::KvBudget`] if they do not fit, before anything is fed.
    pub fn feed(
        &mut self,
        slot: usize,
        position: usize,
        tokens: &[u32],
        wanted: Wanted,
        each: &mut dyn FnMut(&[f32]),
        progress: &mut dyn FnMut(usize) -> bool,
    ) -> Result<usize, RuntimeError> {
        self.feed_watched([slot, position], tokens, wanted, each, progress, None)
    }

    /// Logits of every one of `tokens`, which are fed to the first slot from `position` on; `observer` sees what the
    /// ops read and where tokens are routed.
    ///
    /// # Errors
    /// As [`Model::feed`], or if the device cannot be observed.
    pub fn observe(
        &mut self,
        position: usize,
        tokens: &[u32],
        observer: &mut dyn Observer,
    ) -> Result<Vec<f32>, RuntimeError> {
        let mut all = Vec::new();
        let mut each = |rows: &[f32]| all.extend_from_slice(rows);
        self.feed_watched([0, position], tokens, Wanted::All, &mut each, &mut |_| true, Some(observer))?;
        Ok(all)
    }

    /// As [`Model::observe`], with the logits of the last token only.
    ///
    /// # Errors
    /// As [`Model::observe`].
    pub fn observe_last(
        &mut self,
        position: usize,
        tokens: &[u32],
        observer: &mut dyn Observer,
    ) -> Result<Vec<f32>, RuntimeError> {
        let mut last = Vec::new();
        let mut each = |rows: &[f32]| last.extend_from_slice(rows);
        self.feed_watched([0, position], tokens, Wanted::Last, &mut each, &mut |_| true, Some(observer))?;
        Ok(last)
    }

    fn feed_watched(
        &mut self,
        [slot, position]: [usize; 2],
        tokens: &[u32],
        wanted: Wanted,
        each: &mut dyn FnMut(&[f32]),
        progress: &mut dyn FnMut(usize) -> bool,
        mut observer: Option<&mut dyn Observer>,
    ) -> Result<usize, RuntimeError> {
        let needed = position.saturating_add(tokens.len());
        self.check(&format!("{} tokens", tokens.len()), needed)?;
        let mut done = 0;
        for chunk in tokens.chunks(self.chunk) {
            let mut batch = Batch::of(slot, position + done, chunk);
            done += chunk.len();
            batch.outputs = match wanted {
                Wanted::All => (0..chunk.len()).collect(),
                Wanted::Last if done == tokens.len() => vec![chunk.len() - 1],
                Wanted::Last => Vec::new(),
            };
            let logits = self.run(&batch, &mut observer)?;
            if !batch.outputs.is_empty() {
                each(&logits);
            }
            if !progress(done) {
                break;
            }
        }
        Ok(done)
    }
}

/// Which logits [`Model::feed`] hands on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Those of every token.
    All,
    /// Those of the last token.
    Last,
}

/// Logits of every position of one sequence, tokens × vocab, row-major. Starts the first slot anew.
///
/// # Errors
/// [`RuntimeError`] if the tokens do not fit the context or are not in the vocabulary.
pub fn logits(model: &mut Model, tokens: &[u32]) -> Result<Vec<f32>, RuntimeError> {
    let mut all = Vec::new();
    model.feed(0, 0, tokens, Wanted::All, &mut |rows| all.extend_from_slice(rows), &mut |_| true)?;
    Ok(all)
}

/// Places a model. Where nothing says how much memory the host may take and the model is larger than what is free, its experts stay
/// on disk, if that is enough for the rest to fit and they lie in files as they are.
fn place(
    request: &mut Request,
    draft: &Draft,
    bytes: &dyn Fn(&str) -> Option<u64>,
    store: &dyn TensorStore,
) -> Result<Placement, RuntimeError> {
    let placement = request.place(draft, bytes, &devices::memory)?;
    let (Some(free), false) = (free_memory().map(usable), request.bounds_host()) else { return Ok(placement) };
    let hosts = placement.devices.iter().filter(|s| devices::computes_from_the_mapping(s.offer.device));
    let needed: u64 = hosts.map(crate::placement::Share::in_memory).sum();
    let first = draft.leaves.iter().find(|leaf| expert_matrix(leaf).is_some()).and_then(|leaf| store.entry(&leaf.name));
    if needed <= free || first.and_then(|entry| store.place(entry, 0)).is_none() {
        return Ok(placement);
    }
    request.ram_limit = Some(free);
    let streamed = request.place(draft, bytes, &devices::memory);
    Ok(streamed.unwrap_or(placement))
}

/// Whether the weights that are to be in the host's memory can stay there.
fn residency(placement: &Placement, report: &dyn Report) -> Residency {
    let mapped = placement.devices.iter().filter(|s| devices::computes_from_the_mapping(s.offer.device));
    let bytes = mapped.map(|s| s.bytes.weights - s.on_disk).sum();
    let residency = Residency::of(bytes, free_memory());
    if let Residency::OnDemand { free } = residency {
        report.note(&format!(
            "weights take {bytes} bytes, but only {free} bytes of memory are free: parts are read from disk again whenever \
             they are used, which is slow; a smaller pack (--recipe) would stay in memory"
        ));
    }
    residency
}

/// How much a program must hold, as asked for; the context by default is [`DEFAULT_CONTEXT`] or what the model promises.
///
/// # Errors
/// [`RuntimeError::Option`] where nothing is to be held.
pub(crate) fn sizes(spec: &ModelSpec, options: &OpenOptions, kv: Kv) -> Result<Sizes, RuntimeError> {
    let context = options.context.unwrap_or(DEFAULT_CONTEXT.min(spec.max_position));
    for (option, value) in [("--context", context), ("chunk", options.chunk), ("sequences", options.sequences)] {
        if value == 0 {
            return Err(RuntimeError::Option { option, got: "0".into(), expected: "at least 1".into() });
        }
    }
    Ok(Sizes { sequences: options.sequences, context, rows: options.chunk.min(context), kv })
}
