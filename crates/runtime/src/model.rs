//! [`Model`]: a program, loaded on a device, with its KV caches.
//!
//! Owns: loading, the one loop that runs ops, which positions each sequence holds. Refuses: text (`tokenizer`), choice
//! of tokens (`sampler`), what a device is (`devices`).

use crate::bench::{Profile, TokenCost};
use crate::kv::KvUse;
use crate::load::Loader;
use crate::open::{Opened, open};
use crate::program::{Program, build};
use crate::{RuntimeError, devices};
use ashlar_arch::ModelSpec;
use ashlar_backend::{ActivationMode, Backend, Batch, KvFormat, Memory, Observer};
use ashlar_source::SideDir;
use ashlar_tensor::Report;
use serde_json::Value;
use std::path::Path;

/// Tokens that go through the model at once at prefill.
pub const DEFAULT_CHUNK: usize = 256;

/// Context when none is asked for: this, or what the model promises if that is less.
pub const DEFAULT_CONTEXT: usize = 4096;

/// How to open a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenOptions {
    /// A name from [`crate::DEVICES`].
    pub device: String,
    /// Threads of a CPU device; `None` for all cores.
    pub threads: Option<usize>,
    /// How inputs of quantized weights are rounded; `None` for the device's own way.
    pub activations: Option<ActivationMode>,
    /// Positions per sequence; `None` for the smaller of [`DEFAULT_CONTEXT`] and what the model promises.
    pub context: Option<usize>,
    /// Largest number of tokens in a batch.
    pub chunk: usize,
    /// Sequences that can be held at the same time.
    pub sequences: usize,
    /// How keys and values are stored; `None` for the device's own way.
    pub kv: Option<KvFormat>,
    /// Bytes for the keys and values of all sequences; `None` for as many as the context asks for.
    pub kv_budget: Option<u64>,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self {
            device: "auto".into(),
            threads: None,
            activations: None,
            context: None,
            chunk: DEFAULT_CHUNK,
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
    backend: Box<dyn Backend>,
    program: Program,
    context: usize,
    chunk: usize,
    kv: KvUse,
    token_cost: TokenCost,
    weight_bytes: u64,
    profile: Option<Profile>,
}

impl Model {
    /// Opens a pack or a checkpoint and loads it on a device. Weights are mapped, not copied, where the device reads
    /// the stored bytes.
    ///
    /// # Errors
    /// [`RuntimeError`] if the model or an option is bad, or memory is short.
    pub fn open(path: &Path, options: &OpenOptions, report: &dyn Report) -> Result<Self, RuntimeError> {
        let opened = open(path, report)?;
        let backend = devices::device(&options.device, options.threads, options.activations)?;
        Self::load(opened, backend, options, report)
    }

    /// Loads an opened model on a given device, which `options.device` only names (`options.threads` is not looked at).
    ///
    /// # Errors
    /// As [`Model::open`].
    pub fn load(
        opened: Opened,
        mut backend: Box<dyn Backend>,
        options: &OpenOptions,
        report: &dyn Report,
    ) -> Result<Self, RuntimeError> {
        let Opened { store, config, spec, dir, .. } = opened;
        let context = context(options, &spec, report)?;
        for (option, value) in [("chunk", options.chunk), ("sequences", options.sequences)] {
            if value == 0 {
                return Err(RuntimeError::Option { option, got: "0".into(), expected: "at least 1".into() });
            }
        }
        let chunk = options.chunk.min(context);
        let format = devices::kv_format(&options.device, options.kv);
        let mut loader = Loader::new(&*store, &mut *backend, report, [options.sequences, context, chunk]).kv(format);
        let weight_bytes = spec.loaded().filter_map(|leaf| store.entry(&leaf.name)).map(|e| e.bytes()).sum();
        report.begin("load", weight_bytes);
        let program = build(&spec, &mut loader);
        report.end();
        let program = program?;
        let kv = KvUse::new(loader.caches(), format, options.kv_budget, options.sequences);
        backend.notes().iter().for_each(|note| report.note(note));
        let token_cost = TokenCost::of(&spec, &*store);
        Ok(Self { program, spec, config, dir, backend, context, chunk, kv, token_cost, weight_bytes, profile: None })
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

    /// The device, for messages.
    #[must_use]
    pub fn device(&self) -> String {
        self.backend.describe()
    }

    /// What the device keeps besides weights.
    #[must_use]
    pub fn memory(&self) -> Memory {
        self.backend.memory()
    }

    /// Bytes of the weights, as they are stored.
    #[must_use]
    pub fn weight_bytes(&self) -> u64 {
        self.weight_bytes
    }

    /// Positions a sequence can have.
    #[must_use]
    pub fn context(&self) -> usize {
        self.context
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
        self.backend.truncate(slot, 0);
    }

    /// What one token costs at least.
    #[must_use]
    pub fn token_cost(&self) -> TokenCost {
        self.token_cost
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
        for op in &self.program.ops {
            // An option of a borrowed observer cannot be copied; each op gets a shorter borrow.
            let observer = observer.as_mut().map(|o| &mut **o as &mut dyn Observer);
            match &mut self.profile {
                None => self.backend.run(op, batch, observer)?,
                Some(profile) => profile.time(op.name(), || self.backend.run(op, batch, observer))?,
            }
        }
        let logits = self.backend.read(self.program.logits)?;
        self.kv.end(batch);
        Ok(logits)
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

fn context(options: &OpenOptions, spec: &ModelSpec, report: &dyn Report) -> Result<usize, RuntimeError> {
    match options.context {
        Some(0) => Err(RuntimeError::Option { option: "--context", got: "0".into(), expected: "at least 1".into() }),
        Some(asked) => {
            if asked > spec.max_position {
                let promised = spec.max_position;
                report.note(&format!("context {asked} is longer than the {promised} positions the model was made for"));
            }
            Ok(asked)
        }
        None => Ok(DEFAULT_CONTEXT.min(spec.max_position)),
    }
}
