//! `OUT.partial`: claimed by one process, started afresh or resumed.

use crate::error::PackError;
use crate::journal::{self, Contents, Fingerprint};
use crate::manifest::MANIFEST_FILE;
use rustix::fs::{FlockOperation, flock};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

pub(crate) const JOURNAL: &str = "journal";
/// Bound on the journal's size: 300 bytes a record, a million records.
const MAX_JOURNAL: u64 = 1 << 29;

/// Where to write and what may be replaced.
#[derive(Clone, Debug)]
pub struct Target {
    /// The pack's directory.
    pub out: PathBuf,
    /// Replace an existing pack at `out` (kept until the new one is complete).
    pub force: bool,
    /// Discard an interrupted conversion.
    pub restart: bool,
}

impl Target {
    /// The directory that the pack grows in: `OUT.partial`, beside `OUT`.
    #[must_use]
    pub fn partial(&self) -> PathBuf {
        let mut name = self.out.file_name().map_or_else(|| OsString::from("pack"), OsString::from);
        name.push(".partial");
        self.out.with_file_name(name)
    }

    /// Whether `out` may be written: absent, an empty directory, or a pack with `force`.
    ///
    /// # Errors
    /// [`PackError::Exists`] otherwise; nothing that is not a pack is ever replaced.
    pub fn check(&self) -> Result<(), PackError> {
        let exists = |what: &str| Err(PackError::Exists { path: self.out.clone(), what: what.into() });
        let meta = match fs::symlink_metadata(&self.out) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
            other => other.map_err(PackError::io(&self.out, "look at it"))?,
        };
        if !meta.is_dir() {
            return exists("exists and is no directory; choose another output");
        }
        let empty = fs::read_dir(&self.out).map_err(PackError::io(&self.out, "list it"))?.next().is_none();
        match (empty, self.out.join(MANIFEST_FILE).is_file(), self.force) {
            (true, ..) | (_, true, true) => Ok(()),
            (_, true, false) => exists("a pack is already here; give --force to replace it, or choose another output"),
            _ => {
                exists("exists and is not a pack, so it will not be replaced even with --force; choose another output")
            }
        }
    }
}

/// The partial directory, locked for as long as this lives.
pub(crate) struct Partial {
    pub dir: PathBuf,
    pub lock: File,
    /// What an earlier run left.
    pub contents: Contents,
}

/// Makes or takes over the partial directory.
pub(crate) fn claim(target: &Target, inputs: &Fingerprint) -> Result<Partial, PackError> {
    target.check()?;
    let dir = target.partial();
    fs::create_dir_all(&dir).map_err(PackError::io(&dir, "create it"))?;
    let lock = lock(&dir)?;
    if target.restart {
        clear(&dir)?;
    }
    let contents = journal::parse(&read_journal(&dir)?);
    match &contents.inputs {
        Some(found) if found != inputs => {
            let differs: Vec<&str> =
                inputs.iter().filter(|(k, v)| found.get(*k) != Some(v)).map(|(k, _)| k.as_str()).collect();
            Err(PackError::OtherInputs {
                path: dir,
                what: format!("it was made with another {}", differs.join(", another ")),
            })
        }
        None if !only_journal(&dir)? => {
            Err(PackError::OtherInputs { path: dir, what: "its journal is missing or unreadable".into() })
        }
        _ => Ok(Partial { dir, lock, contents }),
    }
}

/// Locks the directory itself: the lock follows it through the publishing rename and leaves no file behind.
fn lock(dir: &Path) -> Result<File, PackError> {
    let file = File::open(dir).map_err(PackError::io(dir, "open it"))?;
    let locked = || PackError::Locked { path: dir.to_owned() };
    flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|_| locked())?;
    // Between open and lock the other process may have published, which moves the directory away.
    let held = rustix::fs::fstat(&file).map_err(|e| PackError::io(dir, "look at it")(e.into()))?;
    let here = rustix::fs::stat(dir).map_err(|_| locked())?;
    if (held.st_dev, held.st_ino) == (here.st_dev, here.st_ino) { Ok(file) } else { Err(locked()) }
}

fn clear(dir: &Path) -> Result<(), PackError> {
    for entry in fs::read_dir(dir).map_err(PackError::io(dir, "list it"))? {
        let path = entry.map_err(PackError::io(dir, "list it"))?.path();
        fs::remove_file(&path).map_err(PackError::io(&path, "remove it"))?;
    }
    Ok(())
}

fn read_journal(dir: &Path) -> Result<Vec<u8>, PackError> {
    let path = dir.join(JOURNAL);
    let mut bytes = Vec::new();
    match File::open(&path) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(bytes),
        file => {
            file.map_err(PackError::io(&path, "open it"))?
                .take(MAX_JOURNAL)
                .read_to_end(&mut bytes)
                .map_err(PackError::io(&path, "read it"))?;
            Ok(bytes)
        }
    }
}

fn only_journal(dir: &Path) -> Result<bool, PackError> {
    for entry in fs::read_dir(dir).map_err(PackError::io(dir, "list it"))? {
        if entry.map_err(PackError::io(dir, "list it"))?.file_name() != JOURNAL {
            return Ok(false);
        }
    }
    Ok(true)
}
