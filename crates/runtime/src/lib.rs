//! Open a model, load it on a device, run it: generation, chat, evaluation.
//!
//! The cast, in the order a model meets it: [`open`] (path to weights and config), [`program`] (spec to ops), [`placement`]
//! (ops to devices), [`Model`] (ops on their devices with KV caches), [`Tokenizer`] and [`Chat`] (text to tokens and back),
//! [`Sampler`] (logits to a token), [`engine`] (many requests at once) and [`Generator`] (one), [`eval`] (perplexity and
//! comparison), [`bench`](mod@bench) (speed). Only `devices.rs` names device crates.
#![forbid(unsafe_code)]

pub mod bench;
mod caches;
mod chat;
mod devices;
pub mod doctor;
mod energy;
pub mod engine;
mod error;
pub mod eval;
mod executor;
pub mod fit;
mod generate;
mod holdings;
pub mod kernels;
mod kv;
mod load;
mod model;
mod modelled;
mod nvme;
mod open;
mod overlay;
pub mod placement;
pub mod prefixes;
pub mod program;
mod residency;
pub mod routing;
mod sampler;
mod shape;
mod stop;
mod tokenizer;
mod vram;

pub use ashlar_backend::{ActivationMode, KvFormat, Memory, Observer};
pub use caches::Kv;
pub use chat::{Chat, Conversation, Message, Part, Prompt, ReplyForm, Splitter, Think, ToolCall};
pub use devices::{Meter, activation_mode, device, device_named, kv_format, meter};
pub use energy::Energy;
pub use error::RuntimeError;
pub use generate::{GenerateOptions, Generation, Generator, StopReason, Timings};
pub use holdings::{CachePlace, Holding};
pub use kv::KvUse;
pub use load::Loader;
pub use model::{DEFAULT_CHUNK, DEFAULT_CONTEXT, Model, OpenOptions, Wanted, logits};
pub use modelled::ModelledUse;
pub use nvme::{AheadUse, NvmeUse};
pub use open::{Opened, fingerprint, open, side_dir};
pub use overlay::Overlay;
pub use residency::{Residency, free_memory};
pub use sampler::{Sampler, Sampling};
pub use shape::{first_layers, random_model};
pub use tokenizer::{TextStream, Tokenizer};
pub use vram::SlotUse;
