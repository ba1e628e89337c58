//! Why a model cannot be had from the hub.

use std::io;
use std::path::{Path, PathBuf};

/// What went wrong, and what helps.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// No answer, or one that broke off, more often than it is tried.
    #[error(
        "{url}: {what}, {attempts} times; check the connection and run the same command again: it goes on where it stopped"
    )]
    Connection {
        /// What was asked for.
        url: String,
        /// How the last attempt ended.
        what: String,
        /// How often it was tried.
        attempts: u32,
    },
    /// The server says no, or cannot.
    #[error("{url}: the hub answers {status}{}; {hint}", if said.is_empty() { String::new() } else { format!(" ({said})") })]
    Status {
        /// What was asked for.
        url: String,
        /// The HTTP status.
        status: u16,
        /// What it says of it.
        said: String,
        /// What helps.
        hint: String,
    },
    /// An answer that is none.
    #[error("{url}: {what}; is HF_ENDPOINT right?")]
    Answer {
        /// What was asked for.
        url: String,
        /// What is wrong with it.
        what: String,
    },
    /// A file does not have the hash that the hub lists.
    #[error(
        "{file}: its bytes have {got}, the hub lists {expected}, twice; the file is damaged on the way or at the hub: try again later, or another revision"
    )]
    Hash {
        /// The file.
        file: String,
        /// What the hub lists.
        expected: String,
        /// What came.
        got: String,
    },
    /// The repository lacks something that is needed.
    #[error("{repo}: {what}")]
    Missing {
        /// The repository.
        repo: String,
        /// What it lacks, and what helps.
        what: String,
    },
    /// Offline, and not in the cache.
    #[error("{repo} is not in the cache, {}, and HF_HUB_OFFLINE forbids to ask the hub", cache.display())]
    Offline {
        /// The repository.
        repo: String,
        /// The cache.
        cache: PathBuf,
    },
    /// A file or directory here.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// The disk lacks room.
    #[error("{}: {needed} more bytes are needed, {free} are free; free some space, or set HF_HOME to a larger disk", path.display())]
    DiskFull {
        /// Where.
        path: PathBuf,
        /// Bytes needed.
        needed: u64,
        /// Bytes free.
        free: u64,
    },
    /// `SSL_CERT_FILE` holds no certificates.
    #[error("{}: holds no certificates in PEM form; correct SSL_CERT_FILE, or unset it", path.display())]
    Certificates {
        /// The file.
        path: PathBuf,
    },
    /// What was downloaded is no checkpoint.
    #[error(transparent)]
    Source(#[from] ashlar_source::SourceError),
}

impl HubError {
    pub(crate) fn io(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, action, source }
    }
}
