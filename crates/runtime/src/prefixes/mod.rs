//! Beginnings of texts on disk: what a model's caches hold of blocks of tokens, under the hash of all tokens so far.
//!
//! Owns: which blocks there are, who may be read, how much they may take, the thread that writes. A block's [`Key`] is a hash
//! of the model, of how its keys and values are stored, and of every token up to the block's end: a file that has the name of
//! another model is never looked for. Refuses: what the bytes mean (`Model::save`), when they are worth it (`engine`).
//!
//! A process that is killed at any point leaves whole files and at most some with the ending of unfinished ones, which the
//! next removes. What is damaged, or not a block at all, is told in the log and left out.

mod file;
mod index;
mod writer;

use crate::RuntimeError;
use file::Wrong;
use index::Index;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;
use writer::Writer;

/// Tokens of a block.
pub const BLOCK: usize = ashlar_backend::KV_SAVED;

/// Bytes that may wait to be written; what comes then is not kept.
const WAITING: u64 = 256 << 20;
/// Held by the process that uses a directory.
const LOCK: &str = "lock";

/// Where blocks lie and how much they may take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrefixOptions {
    /// The directory; it is made if it is not there.
    pub dir: PathBuf,
    /// Bytes of all files. The blocks that were used longest ago go first.
    pub limit: u64,
    /// A name that only the same weights have ([`crate::fingerprint`]).
    pub model: String,
}

/// What identifies a block: model, format, and all tokens up to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key([u8; 32]);

/// What has happened since the start, and what there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PrefixStats {
    /// Blocks that can be read.
    pub blocks: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes written.
    pub written: u64,
    /// Bytes read.
    pub read: u64,
    /// Blocks that had to go because of the limit.
    pub evicted: u64,
    /// Files found damaged.
    pub damaged: u64,
    /// Blocks that were not written because the disk was too slow, or failed.
    pub skipped: u64,
}

/// The blocks of one directory, for one model.
pub struct PrefixStore {
    shared: Arc<Shared>,
    writer: Writer,
    /// Locked as long as this lives.
    _lock: File,
}

/// What the writing thread sees too.
struct Shared {
    dir: PathBuf,
    limit: u64,
    /// Of model and format: what every key begins with, and every file names.
    identity: Key,
    index: Mutex<Index>,
}

impl Shared {
    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, key: &Key) -> PathBuf {
        self.dir.join(file::name(key))
    }
}

impl PrefixStore {
    /// Opens a directory for a model that stores its keys and values as `saved_as` says ([`crate::Model::saved_as`]).
    ///
    /// # Errors
    /// [`RuntimeError::Prefixes`] if it cannot be made, listed or written, or another process uses it.
    pub fn open(options: &PrefixOptions, saved_as: &str) -> Result<Self, RuntimeError> {
        let dir = &options.dir;
        let failed = |what: &str, error: &std::io::Error| RuntimeError::Prefixes {
            dir: dir.display().to_string(),
            what: format!("cannot {what}: {error}"),
        };
        std::fs::create_dir_all(dir).map_err(|e| failed("make it", &e))?;
        let lock = File::create(dir.join(LOCK)).map_err(|e| failed("write in it", &e))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let what = "another process uses it; give every server a directory of its own".to_owned();
                return Err(RuntimeError::Prefixes { dir: dir.display().to_string(), what });
            }
            Err(TryLockError::Error(error)) => return Err(failed("lock it", &error)),
        }
        let identity = Key(*blake3::hash(format!("{}\n{saved_as}", options.model).as_bytes()).as_bytes());
        let index = scan(dir).map_err(|e| failed("list it", &e))?;
        let PrefixStats { blocks, bytes, damaged, .. } = index.stats();
        tracing::info!(dir = %dir.display(), blocks, bytes, damaged, limit = options.limit, "blocks of keys and values on disk");
        let shared = Arc::new(Shared { dir: dir.clone(), limit: options.limit, identity, index: Mutex::new(index) });
        shared.make_room(0);
        let writer = Writer::start(Arc::clone(&shared)).map_err(|e| failed("start a thread that writes", &e))?;
        Ok(Self { shared, writer, _lock: lock })
    }

    /// The keys of all whole blocks of `tokens`, behind those of `keys` that are known already.
    pub fn extend(&self, keys: &mut Vec<Key>, tokens: &[u32]) {
        for block in tokens.chunks_exact(BLOCK).skip(keys.len()) {
            let before = keys.last().unwrap_or(&self.shared.identity);
            let mut hasher = blake3::Hasher::new();
            hasher.update(&before.0);
            for token in block {
                hasher.update(&token.to_le_bytes());
            }
            keys.push(Key(*hasher.finalize().as_bytes()));
        }
    }

    /// How many of these blocks are there, from the first on.
    #[must_use]
    pub fn known(&self, keys: &[Key]) -> usize {
        let index = self.shared.index();
        keys.iter().take_while(|key| index.has(key)).count()
    }

    /// Whether a block should be written: it is neither there nor on its way.
    #[must_use]
    pub fn wants(&self, key: &Key) -> bool {
        self.shared.index().wants(key)
    }

    /// Writes a block soon. `number`: how many come before it in its text.
    pub fn put(&self, key: Key, number: u64, bytes: Vec<u8>) {
        let mut index = self.shared.index();
        if index.wants(&key) && index.queue(key, bytes.len() as u64, WAITING) {
            drop(index);
            self.writer.put(writer::Job { key, number, bytes });
        }
    }

    /// Reads a block; `None` if it is not there or damaged.
    #[must_use]
    pub fn get(&self, key: &Key) -> Option<Vec<u8>> {
        let path = self.shared.path(key);
        let read = file::read(&path, &self.shared.identity, key);
        let mut index = self.shared.index();
        match read {
            Ok(bytes) => {
                index.read(bytes.len() as u64);
                Some(bytes)
            }
            Err(wrong) => {
                tracing::warn!(file = %path.display(), %wrong, "a block of keys and values is ignored");
                index.damaged(key);
                None
            }
        }
    }

    /// Notes that blocks of one text, in their order, were used now: they go last, the first of them after the others.
    pub fn used(&self, keys: &[Key]) {
        let mut index = self.shared.index();
        keys.iter().rev().for_each(|key| index.touch(key));
        drop(index);
        let now = SystemTime::now();
        for key in keys {
            // Only for the order after a restart.
            let _ = File::options().append(true).open(self.shared.path(key)).and_then(|f| f.set_modified(now));
        }
    }

    /// Counts.
    #[must_use]
    pub fn stats(&self) -> PrefixStats {
        self.shared.index().stats()
    }

    /// Waits until all is written that was to be.
    pub fn flush(&self) {
        self.writer.flush();
    }
}

impl Shared {
    /// Removes the blocks that were used longest ago until so many bytes more are within the limit.
    fn make_room(&self, needed: u64) {
        self.shrink(self.limit.saturating_sub(needed));
    }

    /// Removes so many bytes of blocks, or all.
    fn give_up(&self, bytes: u64) {
        let held = self.index().stats().bytes;
        self.shrink(held.saturating_sub(bytes));
    }

    fn shrink(&self, most: u64) {
        let gone = self.index().evict(most);
        for key in gone {
            let path = self.path(&key);
            if let Err(error) = std::fs::remove_file(&path) {
                tracing::warn!(file = %path.display(), %error, "an old block could not be removed");
            }
        }
    }
}

/// Everything that is there, the oldest first.
fn scan(dir: &Path) -> std::io::Result<Index> {
    let (mut found, mut damaged) = (Vec::new(), 0);
    for entry in std::fs::read_dir(dir)? {
        let (path, name) = entry.map(|e| (e.path(), e.file_name()))?;
        let Some(name) = name.to_str().filter(|n| *n != LOCK) else { continue };
        if file::is_unfinished(name) {
            tracing::info!(file = %path.display(), "removed: what an ended process did not finish");
            std::fs::remove_file(&path)?;
            continue;
        }
        let checked = match file::key(name) {
            Some(key) => file::check(&path).map(|head| (key, head)),
            None => Err(Wrong::Foreign),
        };
        match checked {
            Ok((key, head)) => found.push((head.modified, std::cmp::Reverse(head.number), key, head.bytes)),
            Err(wrong) => {
                damaged += 1;
                tracing::warn!(file = %path.display(), %wrong, "ignored in the directory of keys and values");
            }
        }
    }
    found.sort_by_key(|(modified, number, ..)| (*modified, *number));
    let mut index = Index::default();
    found.into_iter().for_each(|(_, _, key, bytes)| index.add(key, bytes));
    index.count_damaged(damaged);
    Ok(index)
}

#[cfg(test)]
mod tests;
