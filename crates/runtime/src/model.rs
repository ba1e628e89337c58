//! [`Model`]: a program, loaded on a device, with its KV caches.
//!
//! Owns: loading, the one loop that runs ops, which positions each sequence holds. Refuses: text (`tokenizer`), choice
//! of tokens (`sampler`), what a device is (`devices`).

use crate::load::Loader;
use crate::open::{Opened, open};
use crate::program::{Program, build};
use crate::{RuntimeError, devices};
use ashlar_arch::ModelSpec;
use ashlar_backend::{ActivationMode, Backend, Batch};
use ashlar_tensor::Report;
use serde_json::Value;
use std::path::{Path, PathBuf};

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
        }
    }
}

/// A model that can run.
pub struct Model {
    spec: ModelSpec,
    config: Value,
    dir: PathBuf,
    backend: Box<dyn Backend>,
    program: Program,
    context: usize,
    chunk: usize,
    /// Positions every slot holds.
    held: Vec<usize>,
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

    /// Loads an opened model on a given device (`options.device` and `options.threads` are not looked at).
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
        let mut loader = Loader::new(&*store, &mut *backend, report, [options.sequences, context, chunk]);
        report.begin("load", spec.loaded().filter_map(|leaf| store.entry(&leaf.name)).map(|e| e.bytes()).sum());
        let program = build(&spec, &mut loader);
        report.end();
        let program = program?;
        backend.notes().iter().for_each(|note| report.note(note));
        let held = vec![0; options.sequences];
        Ok(Self { program, spec, config, dir, backend, context, chunk, held })
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

    /// Positions a sequence can have.
    #[must_use]
    pub fn context(&self) -> usize {
        self.context
    }

    /// Positions that a sequence holds.
    #[must_use]
    pub fn held(&self, slot: usize) -> usize {
        self.held.get(slot).copied().unwrap_or_default()
    }

    /// Runs one batch of at most `chunk` rows. Returns `batch.outputs.len()` × vocab logits, row-major.
    ///
    /// # Errors
    /// [`RuntimeError::Backend`] if the batch does not fit the caches or the device fails; what the slots of the batch
    /// hold is then cut back to where the batch began.
    pub fn forward(&mut self, batch: &Batch) -> Result<Vec<f32>, RuntimeError> {
        batch.check()?;
        for s in &batch.sequences {
            if let Some(held) = self.held.get_mut(s.slot) {
                *held = s.position.min(*held);
            }
        }
        for op in &self.program.ops {
            self.backend.run(op, batch, None)?;
        }
        let logits = self.backend.read(self.program.logits)?;
        for s in &batch.sequences {
            if let Some(held) = self.held.get_mut(s.slot) {
                *held = s.position + s.rows.len();
            }
        }
        Ok(logits)
    }

    /// Feeds `tokens` to a slot from `position` on, in chunks, and hands the logits of each chunk's rows in `wanted`
    /// (indices into `tokens`, ascending) to `each`, rows × vocab. `progress` is called with the tokens done after
    /// every chunk and stops the run by returning false. Returns the number of tokens fed.
    ///
    /// # Errors
    /// [`RuntimeError::Context`] if they do not fit, before anything is fed.
    pub fn feed(
        &mut self,
        slot: usize,
        position: usize,
        tokens: &[u32],
        wanted: Wanted,
        each: &mut dyn FnMut(&[f32]),
        progress: &mut dyn FnMut(usize) -> bool,
    ) -> Result<usize, RuntimeError> {
        let needed = position.saturating_add(tokens.len());
        if needed > self.context {
            return Err(RuntimeError::Context {
                what: format!("{} tokens", tokens.len()),
                needed,
                context: self.context,
            });
        }
        let mut done = 0;
        for chunk in tokens.chunks(self.chunk) {
            let mut batch = Batch::of(slot, position + done, chunk);
            done += chunk.len();
            batch.outputs = match wanted {
                Wanted::All => (0..chunk.len()).collect(),
                Wanted::Last if done == tokens.len() => vec![chunk.len() - 1],
                Wanted::Last => Vec::new(),
            };
            let logits = self.forward(&batch)?;
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
