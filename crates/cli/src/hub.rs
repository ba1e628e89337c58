//! `hf:ORG/NAME[@REV][:GGUF]` wherever a path may stand: downloaded into the cache, and a directory or file from then on.

use crate::exit::{Failure, OrUsage};
use crate::model::{Model, Source};
use crate::progress::{Progress, Unit};
use anyhow::anyhow;
use ashlar_hub::{Hub, HubError, Repo, Settings};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// What a path begins with that means the hub.
const PREFIX: &str = "hf:";

/// Whether progress is to be kept quiet about: paths are opened where nothing knows of options.
static QUIET: AtomicBool = AtomicBool::new(false);
/// Repositories that this process has looked for already.
static FOUND: Mutex<BTreeMap<String, PathBuf>> = Mutex::new(BTreeMap::new());

/// Tells no progress of downloads from now on.
pub fn be_quiet(quiet: bool) {
    QUIET.store(quiet, Ordering::Relaxed);
}

/// The progress of downloads.
#[must_use]
pub fn progress() -> Progress {
    Progress::new(QUIET.load(Ordering::Relaxed), Unit::Bytes)
}

/// The repository that a path means; `None` for a path of this machine.
///
/// # Errors
/// A usage error if it begins like a repository and is none.
pub fn repository(path: &Path) -> Result<Option<Repo>, Failure> {
    let Some(text) = path.to_str().filter(|p| p.starts_with(PREFIX)) else { return Ok(None) };
    text.parse().map(Some).map_err(|e| Failure::usage(anyhow!("{e}")))
}

/// The hub of this environment.
///
/// # Errors
/// If its certificates cannot be read.
pub fn open() -> Result<Arc<Hub>, Failure> {
    Ok(Arc::new(Hub::new(Settings::from_env()).or_usage()?))
}

/// A path of this machine: `path` itself, or where the repository that it means lies once it is downloaded.
///
/// # Errors
/// If the model cannot be had from the hub.
pub fn local(path: &Path) -> Result<PathBuf, Failure> {
    let Some(repo) = repository(path)? else { return Ok(path.to_owned()) };
    let name = repo.to_string();
    let mut found = FOUND.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(path) = found.get(&name) {
        return Ok(path.clone());
    }
    let path = open()?.pull(&repo, &progress()).map_err(failure)?.path;
    found.insert(name, path.clone());
    Ok(path)
}

/// The commit of a repository that a model was opened from.
#[must_use]
pub fn commit(model: &Model) -> Option<String> {
    match &model.source {
        Source::Headers(h) => return Some(h.commit.clone()),
        Source::Stream(s) => return Some(s.commit().to_owned()),
        _ => {}
    }
    let found = FOUND.lock().unwrap_or_else(PoisonError::into_inner);
    let path = found.get(&repository(&model.path).ok().flatten()?.to_string())?;
    // The cache: snapshots/COMMIT.
    let mut folders = path.iter().skip_while(|folder| *folder != "snapshots");
    folders.nth(1)?.to_str().map(str::to_owned)
}

/// What is the user's mistake, and what is a failure.
#[must_use]
pub fn failure(error: HubError) -> Failure {
    match error {
        HubError::Offline { .. } | HubError::Missing { .. } | HubError::Certificates { .. } => Failure::usage(error),
        HubError::Status { status: 401 | 403 | 404, .. } => Failure::usage(error),
        error => error.into(),
    }
}
