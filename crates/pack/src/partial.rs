//! `OUT.partial`: claimed by one process, started afresh or resumed.

use crate::error::PackError;
use crate::journal::{self, Contents, Fingerprint};
use crate::manifest::MANIFEST_FILE;
use crate::publish::{is_own, sync_parent};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

pub(crate) const JOURNAL: &str = "journal";
/// Names of files that must not outlive `OUT.partial` begin so.
pub(crate) const SCRATCH: &str = ".ashlar-scratch-";
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

    /// The same target without what a path may end in besides a name (`out/`, `out/.`): a link with a slash behind it
    /// is not seen as a link.
    #[must_use]
    pub fn tidy(&self) -> Self {
        Self { out: self.out.components().collect(), ..self.clone() }
    }

    /// Whether `out` may be written: absent, an empty directory, or a pack with `force`.
    ///
    /// # Errors
    /// [`PackError::Exists`] otherwise; nothing that is not a pack is ever replaced, nor a pack's directory that holds
    /// other things as well, nor what no rename can replace.
    pub fn check(&self) -> Result<(), PackError> {
        let exists = |what: &str| Err(PackError::Exists { path: self.out.clone(), what: what.into() });
        if self.out.file_name().is_none() {
            return exists("is no name for a new directory; name the one to be made, such as `DIR/pack`");
        }
        let meta = match fs::symlink_metadata(&self.out) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
            other => other.map_err(PackError::io(&self.out, "look at it"))?,
        };
        if meta.is_symlink() {
            return exists("is a symbolic link, which publishing would replace; name the directory itself");
        }
        if !meta.is_dir() {
            return exists("exists and is no directory; choose another output");
        }
        let parent = parent(&self.out);
        if fs::metadata(parent).map_err(PackError::io(parent, "look at it"))?.dev() != meta.dev() {
            return exists("is a mount point, to which nothing can be renamed; choose a directory inside it");
        }
        let empty = fs::read_dir(&self.out).map_err(PackError::io(&self.out, "list it"))?.next().is_none();
        match (empty, self.out.join(MANIFEST_FILE).is_file(), self.force) {
            (true, ..) => Ok(()),
            (_, true, true) => match find(&self.out, is_foreign)? {
                None => Ok(()),
                Some(name) => exists(&format!(
                    "holds `{name}` besides a pack, so it will not be replaced even with --force; move that away, or \
                     choose another output"
                )),
            },
            (_, true, false) => exists("a pack is already here; give --force to replace it, or choose another output"),
            _ => {
                exists("exists and is not a pack, so it will not be replaced even with --force; choose another output")
            }
        }
    }
}

/// The directory that holds `path`.
pub(crate) fn parent(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Where an old pack is put while a new one takes its place, on file systems that cannot swap the two.
pub(crate) fn aside(partial: &Path) -> PathBuf {
    let mut name = partial.as_os_str().to_owned();
    name.push(".replaced");
    name.into()
}

/// What ashlar never writes into a pack, and the user would miss.
fn is_foreign(name: &str, is_dir: bool) -> bool {
    is_dir || (name.ends_with(".safetensors") && !is_own(name))
}

/// What no conversion leaves in a partial directory whose journal cannot be read.
fn is_stranger(name: &str, is_dir: bool) -> bool {
    is_dir
        || !(name == JOURNAL
            || name == MANIFEST_FILE
            || name.starts_with(SCRATCH)
            || (name.ends_with(".safetensors") && is_own(name)))
}

/// A name in `dir` for which `test(name, is_dir)` holds.
fn find(dir: &Path, test: impl Fn(&str, bool) -> bool) -> Result<Option<String>, PackError> {
    for entry in fs::read_dir(dir).map_err(PackError::io(dir, "list it"))? {
        let entry = entry.map_err(PackError::io(dir, "list it"))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let kind = entry.file_type().map_err(PackError::io(dir, "list it"))?;
        if test(&name, kind.is_dir()) {
            return Ok(Some(name));
        }
    }
    Ok(None)
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
    if dir.is_symlink() {
        let what = "is a symbolic link, where the pack would grow; remove it, or choose another output".into();
        return Err(PackError::Exists { path: dir, what });
    }
    fs::create_dir_all(&dir).map_err(PackError::io(&dir, "create it"))?;
    let lock = lock(&dir)?;
    recover(target, &dir)?;
    // Once more, now that no other process can publish there.
    target.check()?;
    let (mut contents, torn) = read(&dir)?;
    let finished = contents.is_replaced() && target.out.join(MANIFEST_FILE).is_file();
    if target.restart || finished {
        refuse_strangers(&dir, &contents)?;
        clear(&dir)?;
        contents = Contents::default();
    }
    match &contents.inputs {
        Some(found) if found != inputs => {
            let names: BTreeSet<&String> = inputs.keys().chain(found.keys()).collect();
            let differs: Vec<&str> =
                names.into_iter().filter(|k| found.get(*k) != inputs.get(*k)).map(String::as_str).collect();
            let what = format!("it was made with another {}", differs.join(", another "));
            Err(PackError::OtherInputs { path: dir, what })
        }
        None if !torn && !target.restart && !finished => {
            refuse_strangers(&dir, &contents)?;
            Err(PackError::OtherInputs {
                path: dir,
                what: "its journal is missing, unreadable or of another version".into(),
            })
        }
        _ => {
            // An earlier run may have come as far as this; until this one does, nothing may look complete.
            remove(&dir.join(MANIFEST_FILE))?;
            Ok(Partial { dir, lock, contents })
        }
    }
}

/// What the journal says, and whether there is nothing but the torn first line of one.
fn read(dir: &Path) -> Result<(Contents, bool), PackError> {
    let bytes = read_journal(dir)?;
    let torn = !bytes.contains(&b'\n') && find(dir, |name, _| name != JOURNAL)?.is_none();
    Ok((journal::parse(&bytes), torn))
}

/// Puts right what a process left that was killed while it replaced a pack.
fn recover(target: &Target, dir: &Path) -> Result<(), PackError> {
    let aside = aside(dir);
    if !aside.is_dir() || !journal::parse(&read_journal(&aside)?).is_replaced() {
        return Ok(());
    }
    if fs::symlink_metadata(&target.out).is_ok() {
        return delete(&aside);
    }
    fs::rename(&aside, &target.out).map_err(PackError::io(&aside, "move the old pack back from it"))?;
    sync_parent(&target.out)
}

/// Nothing is deleted that a conversion did not make.
fn refuse_strangers(dir: &Path, contents: &Contents) -> Result<(), PackError> {
    let found = if contents.ours { find(dir, |_, is_dir| is_dir)? } else { find(dir, is_stranger)? };
    let Some(name) = found else { return Ok(()) };
    let what = format!(
        "the pack would grow here, but it holds `{name}`, which no conversion has made, so that not even --restart \
         discards it; move it away, or choose another output"
    );
    Err(PackError::Exists { path: dir.to_owned(), what })
}

/// Locks the directory itself: the lock follows it through the publishing rename and leaves no file behind.
pub(crate) fn lock(dir: &Path) -> Result<File, PackError> {
    let file = File::open(dir).map_err(PackError::io(dir, "open it"))?;
    let locked = || PackError::Locked { path: dir.to_owned() };
    flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|e| match e {
        Errno::WOULDBLOCK => locked(),
        e => PackError::io(dir, "lock it")(e.into()),
    })?;
    // Between open and lock the other process may have published, which moves the directory away.
    let held = rustix::fs::fstat(&file).map_err(|e| PackError::io(dir, "look at it")(e.into()))?;
    let here = rustix::fs::stat(dir).map_err(|_| locked())?;
    if (held.st_dev, held.st_ino) == (here.st_dev, here.st_ino) { Ok(file) } else { Err(locked()) }
}

/// Removes every file: the manifest first, so that what is left looks like no pack, and the journal last, so that it is
/// known whose it is.
fn clear(dir: &Path) -> Result<(), PackError> {
    remove(&dir.join(MANIFEST_FILE))?;
    for entry in fs::read_dir(dir).map_err(PackError::io(dir, "list it"))? {
        let entry = entry.map_err(PackError::io(dir, "list it"))?;
        if entry.file_name() != JOURNAL {
            remove(&entry.path())?;
        }
    }
    remove(&dir.join(JOURNAL))
}

/// Removes a directory of files.
pub(crate) fn delete(dir: &Path) -> Result<(), PackError> {
    clear(dir)?;
    fs::remove_dir(dir).map_err(PackError::io(dir, "remove it"))
}

/// Removes what must not be published.
pub(crate) fn sweep(dir: &Path) -> Result<(), PackError> {
    while let Some(name) = find(dir, |name, is_dir| !is_dir && name.starts_with(SCRATCH))? {
        remove(&dir.join(name))?;
    }
    Ok(())
}

fn remove(file: &Path) -> Result<(), PackError> {
    match fs::remove_file(file) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(PackError::io(file, "remove it")(e)),
        _ => Ok(()),
    }
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
