//! Reading a header of unknown length from front to back, never beyond the file and never more than a cap.

use crate::SourceError;
use crate::shard::Shard;
use crate::text::clip;

/// Bytes read at once.
const CHUNK: u64 = 1 << 20;
/// Longest header: twenty times that of the largest vocabulary there is.
const MAX_HEADER: u64 = 512 << 20;

/// What a header is read from.
pub trait Input {
    /// Bytes there are.
    fn len(&self) -> u64;
    /// Fills `out` from byte `at`.
    fn read(&self, at: u64, out: &mut [u8]) -> std::io::Result<()>;
}

impl Input for Shard {
    fn len(&self) -> u64 {
        self.len
    }

    fn read(&self, at: u64, out: &mut [u8]) -> std::io::Result<()> {
        self.read_exact_at(out, at)
    }
}

impl Input for &[u8] {
    fn len(&self) -> u64 {
        <[u8]>::len(self) as u64
    }

    fn read(&self, at: u64, out: &mut [u8]) -> std::io::Result<()> {
        let end = || std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
        let from = usize::try_from(at).ok().and_then(|at| self.get(at..)).and_then(|rest| rest.get(..out.len()));
        out.copy_from_slice(from.ok_or_else(end)?);
        Ok(())
    }
}

/// A file that is not here.
pub struct Remote<'a> {
    /// Its bytes.
    pub len: u64,
    /// As [`Input::read`].
    pub read: &'a dyn Fn(u64, &mut [u8]) -> std::io::Result<()>,
}

impl Input for Remote<'_> {
    fn len(&self) -> u64 {
        self.len
    }

    fn read(&self, at: u64, out: &mut [u8]) -> std::io::Result<()> {
        (self.read)(at, out)
    }
}

/// A position in a header.
pub struct Cursor<'a> {
    input: &'a dyn Input,
    file: &'a str,
    /// The next byte.
    at: u64,
    /// Bytes of the file from `start` on.
    buffer: Vec<u8>,
    start: u64,
    hash: blake3::Hasher,
}

impl<'a> Cursor<'a> {
    pub fn new(input: &'a dyn Input, file: &'a str) -> Self {
        Self { input, file, at: 0, buffer: Vec::new(), start: 0, hash: blake3::Hasher::new() }
    }

    /// The next byte's place in the file.
    pub fn at(&self) -> u64 {
        self.at
    }

    /// Hash of everything that was read.
    pub fn hash(&self) -> String {
        self.hash.finalize().to_hex().to_string()
    }

    /// An error at the cursor.
    pub fn error(&self, message: impl Into<String>) -> SourceError {
        SourceError::Gguf { file: self.file.to_owned(), message: message.into() }
    }

    /// The file ends before what was promised, or the header goes on for too long.
    fn check(&self, len: u64, what: &str) -> Result<(), SourceError> {
        let end = self.at.saturating_add(len);
        if end > self.input.len() {
            let left = self.input.len().saturating_sub(self.at);
            return Err(self.error(format!("{what} needs {len} bytes at byte {}, the file has {left} left", self.at)));
        }
        if end > MAX_HEADER {
            return Err(self.error(format!("the header is longer than {MAX_HEADER} bytes, as no real one is")));
        }
        Ok(())
    }

    /// The next `len` bytes, which must be there.
    fn bytes(&mut self, len: u64, what: &str) -> Result<&[u8], SourceError> {
        self.check(len, what)?;
        let held = self.start.saturating_add(self.buffer.len() as u64);
        if self.at.saturating_add(len) > held {
            let size = len.max(CHUNK).min(self.input.len().saturating_sub(self.at));
            self.buffer = crate::shard::buffer(self.file, "the header", size)?;
            self.start = self.at;
            let read = self.input.read(self.at, &mut self.buffer);
            read.map_err(|e| self.error(format!("cannot read {size} bytes at byte {}: {e}", self.at)))?;
        }
        let skip = usize::try_from(self.at.saturating_sub(self.start)).unwrap_or(usize::MAX);
        let size = usize::try_from(len).unwrap_or(usize::MAX);
        let out = self.buffer.get(skip..).and_then(|b| b.get(..size)).unwrap_or_default();
        self.hash.update(out);
        self.at = self.at.saturating_add(len);
        Ok(out)
    }

    /// The next bytes as an array.
    pub fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], SourceError> {
        let bytes = self.bytes(N as u64, what)?;
        Ok(bytes.first_chunk().copied().unwrap_or([0; N]))
    }

    pub fn u32(&mut self, what: &str) -> Result<u32, SourceError> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    pub fn u64(&mut self, what: &str) -> Result<u64, SourceError> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    /// A text of at most `max` bytes with its length before it. Bytes that are no UTF-8 become U+FFFD.
    pub fn text(&mut self, max: u64, what: &str) -> Result<String, SourceError> {
        let len = self.u64(what)?;
        if len > max {
            return Err(self.error(format!("{} is {len} bytes long, at most {max} are allowed", clip(what, 100))));
        }
        Ok(String::from_utf8_lossy(self.bytes(len, what)?).into_owned())
    }
}
