//! Open a model, load it on a device, run it: generation, chat, evaluation.
//!
//! The cast, in the order a model meets it: [`open`] (path to weights and config), [`program`] (spec to ops),
//! [`placement`] (ops to devices), [`Model`] (ops on their devices with KV caches), [`Tokenizer`] and [`ChatTemplate`] (text to tokens and back), [`Sampler`] (logits
//! to a token), [`Generator`] (the loop), [`eval`] (perplexity and comparison), [`bench`](mod@bench) (speed). Only `devices.rs` names device crates.
#![forbid(unsafe_code)]

pub mod bench;
mod chat;
mod devices;
mod energy;
mod error;
pub mod eval;
mod executor;
mod generate;
pub mod kernels;
mod kv;
mod load;
mod model;
mod open;
mod overlay;
pub mod placement;
pub mod program;
mod residency;
mod sampler;
mod shape;
mod stop;
mod tokenizer;

pub use ashlar_backend::{ActivationMode, KvFormat, Memory, Observer};
pub use chat::{ChatTemplate, Message};
pub use devices::{Meter, activation_mode, device, device_named, kv_format, meter};
pub use energy::Energy;
pub use error::RuntimeError;
pub use generate::{GenerateOptions, Generation, Generator, StopReason, Timings};
pub use kv::KvUse;
pub use load::Loader;
pub use model::{DEFAULT_CHUNK, DEFAULT_CONTEXT, Model, OpenOptions, Wanted, logits};
pub use open::{Opened, open};
pub use overlay::Overlay;
pub use residency::{Residency, free_memory};
pub use sampler::{Sampler, Sampling};
pub use shape::{first_layers, random_model};
pub use tokenizer::{TextStream, Tokenizer};
