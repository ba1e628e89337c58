//! Runs texts through a model and writes down what its weights see (`docs/statistics.md`): second moments of the inputs
//! of every matmul and every expert, routing histograms, co-activation of experts.
//!
//! One layer is in memory at a time: its weights are loaded, all windows go through it, it is dropped. What stays are the
//! hidden states of all tokens, twice (before and after the layer): 8 bytes × tokens × the width of the residual stream (16 where a conversion is calibrated on its way).
//!
//! Owns: the texts ([`default_texts`], windows), the layer stream ([`calibrate`]), its journal. Refuses: the file
//! (`ashlar_convert::stats`), how a layer is computed (`runtime` and its devices), what statistics are good for
//! (`convert`, `quantize`).
#![forbid(unsafe_code)]

mod collect;
mod copied;
mod error;
mod hessian;
mod journal;
mod known;
mod parallel;
mod parts;
mod reference;
mod sensitivity;
mod states;
mod stream;
mod tally;
mod texts;
mod walk;

pub use collect::{Options, Starved, Summary, calibrate, starved};
pub use error::CalibrateError;
pub use known::PartKnowledge;
pub use sensitivity::{SensitivityOptions, SensitivitySummary, measure_sensitivity};
pub use stream::{Stream, StreamOptions, StreamSummary};
pub use texts::{Input, default_texts};
