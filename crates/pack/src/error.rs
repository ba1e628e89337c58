//! What can be wrong with a pack, or with writing one.

use std::io;
use std::path::{Path, PathBuf};

/// Why a pack cannot be planned, written or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PackError {
    /// The operating system refused.
    #[error("{}: cannot {what}: {source}", path.display())]
    Io {
        /// File or directory.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// The directory holds no manifest.
    #[error("{}: not a pack: it has no ashlar.json; make one with `ashlar convert`", dir.display())]
    NotAPack {
        /// The directory.
        dir: PathBuf,
    },
    /// The manifest is of another major version.
    #[error("{}: format version {found}; this ashlar reads version {supported}; use a newer ashlar, or convert the model again", path.display())]
    Version {
        /// The manifest.
        path: PathBuf,
        /// Its version.
        found: u64,
        /// What this build reads.
        supported: u64,
    },
    /// The manifest or a shard breaks the rules of `docs/format.md`.
    #[error("{}: {what}; the pack is damaged or was edited: convert the model again", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Where and what: expected and got.
        what: String,
    },
    /// The tensors cannot be laid out.
    #[error("tensor `{tensor}`: {what}")]
    Layout {
        /// The tensor.
        tensor: String,
        /// Why not.
        what: String,
    },
    /// The output exists.
    #[error("{}: {what}", path.display())]
    Exists {
        /// The output directory.
        path: PathBuf,
        /// What is there and which option or action helps.
        what: String,
    },
    /// Another process writes there.
    #[error("{}: another convert is writing this pack; wait for it, or choose another output", path.display())]
    Locked {
        /// The partial directory.
        path: PathBuf,
    },
    /// An interrupted conversion with other inputs lies there.
    #[error("{}: an interrupted conversion is here, but {what}; go on with the same inputs, or give --restart to discard it", path.display())]
    OtherInputs {
        /// The partial directory.
        path: PathBuf,
        /// What differs.
        what: String,
    },
    /// The disk is full, or will be.
    #[error(
        "{}: the disk is full: {needed} more bytes are needed, {free} are free; free some space and run the same command again: \
         it goes on where it stopped, and nothing has been published", path.display()
    )]
    DiskFull {
        /// Where.
        path: PathBuf,
        /// Bytes still needed.
        needed: u64,
        /// Bytes free now.
        free: u64,
    },
    /// Records were sealed twice, not at all, or out of range: a bug of the caller, reported rather than panicking.
    #[error("record {record}: {what}")]
    Unsealed {
        /// Record index.
        record: usize,
        /// What is wrong.
        what: String,
    },
}

impl PackError {
    pub(crate) fn io(path: &Path, what: &'static str) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, what, source }
    }

    pub(crate) fn malformed(path: &Path, what: impl Into<String>) -> Self {
        Self::Malformed { path: path.to_owned(), what: what.into() }
    }
}
