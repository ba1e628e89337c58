//! Activation statistics as a file (`docs/statistics.md`): the seam between `calibrate`, which runs models, and
//! `convert`, which never does.
//!
//! Owns: the file's arrays ([`StatsFile`] reads, [`write()`] and [`merge`] write), and what quantizers are told from them
//! ([`Importance`]). Refuses: how statistics are gathered (`calibrate`), how they steer codes (`quantize`).

mod file;
mod hessian;
mod importance;
mod merge;
mod sensitivity;
mod write;

pub use file::{Routing, StatsFile};
pub use hessian::{spread, upper_values};
pub use importance::{Importance, SHRINK_TOKENS, hash, importance, provenance};
pub use merge::{merge, merge_origins};
pub use sensitivity::{Sensitivities, Sensitivity, add_sensitivities};
pub use write::{Array, Data, check_room, write, write_sharing};

use ashlar_source::SourceError;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Version of the file; in its metadata under [`VERSION_KEY`].
const VERSION: &str = "1";
const VERSION_KEY: &str = "ashlar.statistics";
const ORIGIN_KEY: &str = "origin";
const SHARES_KEY: &str = "hessian.shares";

/// Weights that read the same inputs as another, whose Hessian is theirs too: weight → that other.
pub type Shares = BTreeMap<String, String>;

/// A text that went through the model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Text {
    /// File name, no directories.
    pub name: String,
    /// Hash of its bytes, hex.
    pub blake3: String,
}

/// What statistics were gathered from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatsOrigin {
    /// Identity of the model.
    pub source: String,
    /// Tokens that went through it.
    pub tokens: u64,
    /// Tokens per window.
    pub ctx: usize,
    /// The texts.
    pub texts: Vec<Text>,
}

/// Why statistics cannot be read, used or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StatsError {
    /// Not a sound safetensors file.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The operating system refused.
    #[error("{path}: cannot {action}: {source}")]
    Io {
        /// The file.
        path: String,
        /// What was tried.
        action: &'static str,
        /// The cause.
        source: std::io::Error,
    },
    /// No room on the disk.
    #[error(
        "{path}: needs {needed} bytes while it is written, the disk has {free}; leave out --hessians (`ashlar convert --calibrate` \
         uses them without writing them down), or write elsewhere"
    )]
    DiskFull {
        /// The file.
        path: String,
        /// Bytes needed.
        needed: u64,
        /// Bytes free.
        free: u64,
    },
    /// A safetensors file without activation statistics, or of another version.
    #[error("{path}: is no statistics file of this version: {what}; make one with `ashlar calibrate`")]
    NotStatistics {
        /// The file.
        path: String,
        /// Expected and got.
        what: String,
    },
    /// An array with a wrong type, shape or value.
    #[error("{path}: array `{array}`: {what}; run `ashlar calibrate` again")]
    Array {
        /// The file.
        path: String,
        /// The array.
        array: String,
        /// Expected and got.
        what: String,
    },
    /// Statistics of another model.
    #[error(
        "{path}: gathered from the model {stats}, but this one is {model}; run `ashlar calibrate` on the model that is converted"
    )]
    OtherModel {
        /// The file.
        path: String,
        /// Identity that the statistics name.
        stats: String,
        /// Identity of the model.
        model: String,
    },
}

#[cfg(test)]
mod tests;
