//! The cache that tools of the hub share.
//!
//! ```text
//! CACHE/models--ORG--NAME/refs/main                    the commit that a revision meant last
//! CACHE/models--ORG--NAME/blobs/HASH                   a file's bytes; HASH.incomplete while they come
//! CACHE/models--ORG--NAME/snapshots/COMMIT/PATH        a link to its blob
//! CACHE/.locks/models--ORG--NAME/HASH.lock             held while a blob is written
//! ```

use crate::repo::is_commit;
use crate::{Digest, HubError, RemoteFile, Repo};
use rustix::fs::{FlockOperation, flock};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

/// One model's part of the cache.
#[derive(Debug)]
pub struct Cache {
    root: PathBuf,
    locks: PathBuf,
}

impl Cache {
    pub fn new(cache: &Path, repo: &Repo) -> Self {
        Self { root: cache.join(repo.folder()), locks: cache.join(".locks").join(repo.folder()) }
    }

    pub fn blob(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs").join(digest.hex())
    }

    pub fn incomplete(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs").join(format!("{}.incomplete", digest.hex()))
    }

    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.root.join("snapshots").join(commit)
    }

    /// The commit that a revision meant when it was asked for last.
    pub fn commit(&self, repo: &Repo) -> Option<String> {
        if repo.is_pinned() {
            return Some(repo.revision.clone());
        }
        let text = fs::read_to_string(self.root.join("refs").join(&repo.revision)).ok()?;
        Some(text.trim().to_owned()).filter(|c| is_commit(c))
    }

    /// Notes what a revision means.
    pub fn note(&self, repo: &Repo, commit: &str) -> Result<(), HubError> {
        if repo.is_pinned() {
            return Ok(());
        }
        let path = self.root.join("refs").join(&repo.revision);
        create_parent(&path)?;
        fs::write(&path, commit).map_err(HubError::io(&path, "write to it"))
    }

    /// Waits until no other process writes this blob, and keeps others from it until the file is dropped.
    pub fn lock(&self, digest: &Digest) -> Result<File, HubError> {
        let path = self.locks.join(format!("{}.lock", digest.hex()));
        create_parent(&path)?;
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let file = file.map_err(HubError::io(&path, "open it"))?;
        flock(&file, FlockOperation::LockExclusive).map_err(|e| HubError::io(&path, "lock it")(e.into()))?;
        Ok(file)
    }

    /// Puts a link to a file's blob into a snapshot; returns the link.
    pub fn link(&self, commit: &str, file: &RemoteFile) -> Result<PathBuf, HubError> {
        let link = self.snapshot(commit).join(&file.path);
        if link.exists() {
            return Ok(link);
        }
        create_parent(&link)?;
        // What is left of a link whose blob was removed.
        match fs::remove_file(&link) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(HubError::io(&link, "replace it")(e)),
            _ => {}
        }
        let up = "../".repeat(2 + file.path.matches('/').count());
        let made = std::os::unix::fs::symlink(format!("{up}blobs/{}", file.digest.hex()), &link);
        match made {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(HubError::io(&link, "link it")(e)),
            _ => Ok(link),
        }
    }
}

/// Makes the directory that `path` lies in.
pub fn create_parent(path: &Path) -> Result<(), HubError> {
    let parent = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(parent).map_err(HubError::io(parent, "create it"))
}

/// Bytes free on the disk of `path` or of the nearest directory above it that exists.
pub fn free_bytes(path: &Path) -> Option<u64> {
    let there = path.ancestors().find(|p| p.exists())?;
    let stat = rustix::fs::statvfs(there).ok()?;
    Some(stat.f_bavail.saturating_mul(stat.f_frsize))
}
