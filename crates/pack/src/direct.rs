//! Reading and writing past the page cache, where offset, length and memory allow it.
//!
//! What is read again and again into memory of its own, such as experts that take turns in RAM, would lie there twice.
//!
//! A copy into the page cache costs as much processor time as quantizing to 8 bits does, and evicts what the user has
//! there. Large tiles of most shapes lie at multiples of 4096, since records and panels do; what does not is written
//! through the cache. Both may be mixed in one file, because an aligned write covers whole pages, which nothing else
//! touches.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::ops::{Deref, DerefMut};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// What direct reads and writes must be aligned to: the page, which no disk's block exceeds in practice.
pub const PAGE: usize = 4096;
/// Smaller writes would wait for the disk longer than a copy takes.
const MIN_BYTES: usize = 256 << 10;

/// Bytes whose start lies on a page, so that they can be written directly.
#[derive(Default)]
pub struct PageBuffer {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl PageBuffer {
    /// Makes the buffer `len` bytes long. What it holds afterwards is unspecified.
    pub fn resize(&mut self, len: usize) {
        let room = len.next_multiple_of(64) + PAGE;
        if self.bytes.len() < room {
            self.bytes = vec![0; room];
            self.start = self.bytes.as_ptr().align_offset(PAGE).min(PAGE);
        }
        self.len = len;
    }
}

impl Deref for PageBuffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.bytes.get(self.start..self.start + self.len).unwrap_or_default()
    }
}

impl DerefMut for PageBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.bytes.get_mut(self.start..self.start + self.len).unwrap_or_default()
    }
}

impl PartialEq for PageBuffer {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl fmt::Debug for PageBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PageBuffer({} bytes)", self.len)
    }
}

/// Whether bytes can be written directly, and are enough for that to be worth it.
pub(crate) fn is_eligible(offset: u64, bytes: &[u8]) -> bool {
    bytes.len() >= MIN_BYTES
        && bytes.len().is_multiple_of(PAGE)
        && offset.is_multiple_of(PAGE as u64)
        && bytes.as_ptr().align_offset(PAGE) == 0
}

/// Opens an existing file for direct writes; `None` where the file system has none.
pub(crate) fn open(path: &Path) -> Option<File> {
    open_direct(OpenOptions::new().write(true), path)
}

fn open_direct(options: &mut OpenOptions, path: &Path) -> Option<File> {
    #[cfg(target_os = "linux")]
    {
        use std::os::unix::fs::OpenOptionsExt;
        let flags = rustix::fs::OFlags::DIRECT.bits() as i32;
        options.custom_flags(flags).open(path).ok()
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = (options, path);
        None
    }
}

/// A file that is read past the page cache, or through it where the file system has no such reads.
#[derive(Debug)]
pub struct DirectFile {
    file: File,
    is_direct: bool,
}

impl DirectFile {
    /// Opens a regular file, and tries one page of it.
    ///
    /// # Errors
    /// As opening and reading fail.
    pub fn open(path: &Path) -> io::Result<Self> {
        if !path.metadata()?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
        }
        let direct = open_direct(OpenOptions::new().read(true), path);
        let mut page = PageBuffer::default();
        page.resize(PAGE);
        match direct.map(|file| file.read_at(&mut page, 0).map(|_| file)) {
            Some(Ok(file)) => return Ok(Self { file, is_direct: true }),
            Some(Err(error)) if !is_refusal(&error) => return Err(error),
            _ => {}
        }
        Ok(Self { file: File::open(path)?, is_direct: false })
    }

    /// Whether reads go past the page cache.
    #[must_use]
    pub fn is_direct(&self) -> bool {
        self.is_direct
    }

    /// Reads from `offset` on; fewer bytes than `out` has only at the end of the file. Direct reads want `offset`, the length of `out` and
    /// its address to be multiples of [`PAGE`].
    ///
    /// # Errors
    /// What the operating system reports.
    pub fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<usize> {
        let mut done = 0;
        while let Some(rest) = out.get_mut(done..).filter(|rest| !rest.is_empty()) {
            match self.file.read_at(rest, offset + done as u64) {
                Ok(0) => break,
                Ok(read) => done += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
            // Short of a page it is the end of the file, and what follows could not be read directly.
            if self.is_direct && !done.is_multiple_of(PAGE) {
                break;
            }
        }
        Ok(done)
    }
}

/// Whether a direct write failed because it is not possible here, rather than for a reason that a plain one shares.
pub(crate) fn is_refusal(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_buffers_start_on_a_page_whatever_their_size() {
        let mut buffer = PageBuffer::default();
        assert!(buffer.is_empty());
        for len in [0, 1, 4096, 5000, MIN_BYTES, 100, 3 * MIN_BYTES] {
            buffer.resize(len);
            assert_eq!((buffer.len(), buffer.as_ptr().align_offset(PAGE)), (len, 0));
            buffer.fill(7);
        }
    }

    #[test]
    fn pages_are_read_directly_up_to_the_end_of_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let content: Vec<u8> = (0..10_000_u32).map(|i| (i % 251) as u8).collect();
        std::fs::write(&path, &content).unwrap();
        let file = DirectFile::open(&path).unwrap();
        let mut buffer = PageBuffer::default();
        buffer.resize(2 * PAGE);
        assert_eq!(file.read(PAGE as u64, &mut buffer).unwrap(), 10_000 - PAGE);
        assert_eq!(buffer[..10_000 - PAGE], content[PAGE..]);
        assert_eq!(file.read(4 * PAGE as u64, &mut buffer).unwrap(), 0);
        assert!(DirectFile::open(dir.path()).is_err() && DirectFile::open(&dir.path().join("none")).is_err());
    }

    #[test]
    fn only_whole_pages_in_place_are_eligible() {
        let mut buffer = PageBuffer::default();
        buffer.resize(MIN_BYTES + PAGE);
        assert!(is_eligible(8192, &buffer));
        assert!(
            !is_eligible(8193, &buffer)
                && !is_eligible(8192, &buffer[1..])
                && !is_eligible(8192, &buffer[..MIN_BYTES + 1])
        );
        assert!(!is_eligible(0, &buffer[..PAGE]));
    }
}
