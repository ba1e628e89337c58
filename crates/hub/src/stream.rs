//! [`Stream`]: a checkpoint whose shards come one by one, and go when they are no longer needed.

use crate::error::HubError;
use crate::{Hub, RemoteFile, Repo, Revision, select};
use ashlar_source::Checkpoint;
use ashlar_tensor::{Bytes, Entry, Report, StoreError, TensorStore};
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Marks a directory as one of ours, which may be emptied.
const MARK: &str = ".ashlar-stream";

/// A checkpoint in a directory of its own. Every shard is a file that holds its header, then all of it once it was
/// fetched, then nothing. Reading of a shard that is not there fails.
#[derive(Debug)]
pub struct Stream {
    hub: Arc<Hub>,
    repo: Repo,
    revision: Revision,
    checkpoint: Checkpoint,
    dir: PathBuf,
    shards: Vec<Shard>,
    by_name: BTreeMap<String, usize>,
}

#[derive(Debug)]
struct Shard {
    file: RemoteFile,
    here: AtomicBool,
}

impl Stream {
    /// Reads configs and headers into `dir`, which is emptied if an earlier run left it.
    ///
    /// # Errors
    /// [`HubError`] if the hub cannot be asked, `dir` is not ours, or what the hub has is no checkpoint.
    pub fn open(hub: Arc<Hub>, repo: &Repo, dir: &Path, report: &dyn Report) -> Result<Self, HubError> {
        prepare(dir)?;
        let revision = hub.revision(repo)?;
        select::no_pack(repo, &revision)?;
        let weights = hub.chosen(repo, &revision, report)?;
        hub.copy_into(repo, &revision, &select::beside(&revision), dir, report)?;
        hub.placeholders(repo, &revision, &weights, dir, report)?;
        let checkpoint = Checkpoint::open(&select::root(dir, &weights))?;
        // A checkpoint knows its files by their names, which lie in one folder.
        let name = |f: &RemoteFile| f.path.rsplit('/').next().unwrap_or_default().to_owned();
        let by_name = weights.iter().enumerate().map(|(i, f)| (name(f), i)).collect();
        let shards = weights.into_iter().map(|file| Shard { file, here: AtomicBool::new(false) }).collect();
        Ok(Self { hub, repo: repo.clone(), revision, checkpoint, dir: dir.to_owned(), shards, by_name })
    }

    /// What the headers say.
    #[must_use]
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// The commit it is of.
    #[must_use]
    pub fn commit(&self) -> &str {
        &self.revision.commit
    }

    /// Number of shards.
    #[must_use]
    pub fn count(&self) -> usize {
        self.shards.len()
    }

    /// Bytes of a shard.
    #[must_use]
    pub fn bytes(&self, shard: usize) -> u64 {
        self.shards.get(shard).map_or(0, |s| s.file.size)
    }

    /// The shards that hold a tensor's bytes.
    #[must_use]
    pub fn shards_of(&self, entry: &Entry) -> Vec<usize> {
        let files = (0..entry.planes.len()).filter_map(|plane| self.checkpoint.file_of(entry, plane));
        let mut shards: Vec<usize> = files.filter_map(|name| self.by_name.get(name).copied()).collect();
        shards.sort_unstable();
        shards.dedup();
        shards
    }

    /// Downloads a shard and checks its hash.
    ///
    /// # Errors
    /// [`HubError`].
    pub fn fetch(&self, shard: usize, report: &dyn Report) -> Result<(), HubError> {
        let Some(shard) = self.shards.get(shard) else { return Ok(()) };
        let path = self.dir.join(&shard.file.path);
        // The placeholder's own file: the checkpoint has it open.
        let out = OpenOptions::new().read(true).write(true).open(&path);
        let mut out = out.map_err(HubError::io(&path, "open it"))?;
        out.set_len(0).map_err(HubError::io(&path, "empty it"))?;
        let url = self.hub.address(&self.repo, &self.revision.commit, &shard.file.path);
        self.hub.fetch(&url, &shard.file, &mut out, &path, report)?;
        shard.here.store(true, Ordering::Release);
        Ok(())
    }

    /// Gives a shard's room on the disk back.
    ///
    /// # Errors
    /// [`HubError::Io`].
    pub fn release(&self, shard: usize) -> Result<(), HubError> {
        let Some(shard) = self.shards.get(shard) else { return Ok(()) };
        shard.here.store(false, Ordering::Release);
        let path = self.dir.join(&shard.file.path);
        let emptied = OpenOptions::new().write(true).open(&path).and_then(|f| f.set_len(0));
        emptied.map_err(HubError::io(&path, "empty it"))
    }

    /// Removes the directory.
    ///
    /// # Errors
    /// [`HubError::Io`].
    pub fn remove(&self) -> Result<(), HubError> {
        fs::remove_dir_all(&self.dir).map_err(HubError::io(&self.dir, "remove it"))
    }
}

/// Makes the directory, or empties one that an earlier run left.
fn prepare(dir: &Path) -> Result<(), HubError> {
    let mark = dir.join(MARK);
    if dir.exists() {
        if !mark.is_file() {
            let source = io::Error::new(io::ErrorKind::AlreadyExists, "it exists, and no download has made it");
            return Err(HubError::io(dir, "download into it")(source));
        }
        fs::remove_dir_all(dir).map_err(HubError::io(dir, "empty it"))?;
    }
    fs::create_dir_all(dir).map_err(HubError::io(dir, "create it"))?;
    File::create(&mark).map(drop).map_err(HubError::io(&mark, "create it"))
}

impl TensorStore for Stream {
    fn entries(&self) -> &[Entry] {
        self.checkpoint.entries()
    }

    fn read(&self, entry: &Entry, plane: usize, offset: u64, out: &mut [u8]) -> Result<(), StoreError> {
        let shard = self.checkpoint.file_of(entry, plane).and_then(|name| self.by_name.get(name));
        let here = shard.and_then(|s| self.shards.get(*s)).is_some_and(|s| s.here.load(Ordering::Acquire));
        if here {
            return self.checkpoint.read(entry, plane, offset, out);
        }
        let source = io::Error::new(io::ErrorKind::NotFound, "its shard is not downloaded at the moment");
        let (file, tensor, len) = (entry.file.clone(), entry.name.clone(), out.len() as u64);
        Err(StoreError::Io { file, tensor, offset, len, source })
    }

    fn map(&self, entry: &Entry, plane: usize) -> Result<Bytes, StoreError> {
        // A map would outlive the shard.
        Err(StoreError::Unknown { tensor: entry.name.clone(), plane })
    }
}
