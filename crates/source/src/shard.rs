//! One open file: its real size, positioned reads, a map made when first asked for.

use crate::SourceError;
use ashlar_tensor::Bytes;
use std::fs::{File, Metadata};
use std::io;
use std::path::Path;
use std::sync::OnceLock;

/// An open regular file. Reads are positioned and may run from many threads.
#[derive(Debug)]
pub struct Shard {
    /// File name without directories, for messages and identity.
    pub name: String,
    /// Size when it was opened.
    pub len: u64,
    file: Positioned,
    map: OnceLock<Bytes>,
}

impl Shard {
    /// Opens `path`, which must be a regular file (a pipe would block, a device never ends).
    pub fn open(path: &Path, name: &str) -> Result<Self, SourceError> {
        regular(path)?;
        let file = File::open(path).map_err(|e| io_error(path, "open", e))?;
        let len = file.metadata().map_err(|e| io_error(path, "read the size of", e))?.len();
        Ok(Self { name: name.to_owned(), len, file: Positioned::new(file), map: OnceLock::new() })
    }

    /// Fills `out` from byte `offset`, or fails: a file that has shrunk gives `UnexpectedEof`.
    pub fn read_exact_at(&self, out: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(out, offset)
    }

    /// The whole file, mapped once.
    pub fn map(&self) -> io::Result<&Bytes> {
        if let Some(map) = self.map.get() {
            return Ok(map);
        }
        let map = self.file.map()?;
        // Two threads may both have mapped; the loser's map is dropped.
        Ok(self.map.get_or_init(|| map))
    }
}

/// The metadata of `path` if it is a regular file (links are followed: hub caches consist of them).
pub fn regular(path: &Path) -> Result<Metadata, SourceError> {
    let meta = path.metadata().map_err(|e| io_error(path, "find", e))?;
    if meta.is_file() {
        return Ok(meta);
    }
    let got = if meta.is_dir() { "a directory" } else { "a pipe, socket or device" };
    Err(SourceError::NotAFile { path: path.display().to_string(), got })
}

/// An I/O error at `path`.
pub fn io_error(path: &Path, action: &'static str, source: io::Error) -> SourceError {
    SourceError::Io { path: path.display().to_string(), action, source }
}

/// A buffer of `len` zeros, or an error instead of an abort. `len` has been compared with the file's real size.
pub fn buffer(file: &str, what: &'static str, len: u64) -> Result<Vec<u8>, SourceError> {
    let refuse = || SourceError::Memory { file: file.to_owned(), what, bytes: len };
    let size = usize::try_from(len).map_err(|_| refuse())?;
    let mut out = Vec::new();
    out.try_reserve_exact(size).map_err(|_| refuse())?;
    out.resize(size, 0);
    Ok(out)
}

#[cfg(unix)]
#[derive(Debug)]
struct Positioned(File);

#[cfg(unix)]
impl Positioned {
    fn new(file: File) -> Self {
        Self(file)
    }

    fn read_exact_at(&self, out: &mut [u8], offset: u64) -> io::Result<()> {
        // Loops over short reads and interruptions itself.
        std::os::unix::fs::FileExt::read_exact_at(&self.0, out, offset)
    }

    fn map(&self) -> io::Result<Bytes> {
        Bytes::map_file(&self.0)
    }
}

#[cfg(not(unix))]
#[derive(Debug)]
struct Positioned(std::sync::Mutex<File>);

#[cfg(not(unix))]
impl Positioned {
    fn new(file: File) -> Self {
        Self(std::sync::Mutex::new(file))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, File> {
        // A poisoned lock only means that another reader panicked; every read seeks first.
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn read_exact_at(&self, out: &mut [u8], offset: u64) -> io::Result<()> {
        use std::io::{Read, Seek, SeekFrom};
        let mut file = self.lock();
        file.seek(SeekFrom::Start(offset))?;
        file.read_exact(out)
    }

    fn map(&self) -> io::Result<Bytes> {
        Bytes::map_file(&self.lock())
    }
}
