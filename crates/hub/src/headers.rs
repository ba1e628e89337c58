//! A model's shapes, for a few megabytes: configs, and the headers of its weights by ranges.
//!
//! What was read lies in a directory as files of the right length that hold their headers and nothing else (sparse files:
//! they take no room), so that [`Checkpoint`] checks them as it checks any download.

use crate::client::{Attempt, Failed, header};
use crate::download::{check_range, parallel};
use crate::error::HubError;
use crate::{Hub, RemoteFile, Repo, Revision, select};
use ashlar_source::{Checkpoint, GgufHeader};
use ashlar_tensor::{Bytes, Entry, Report, StoreError, TensorStore};
use std::cell::RefCell;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use tempfile::TempDir;

/// Headers that are asked for at the same time.
const PARALLEL: usize = 8;
/// What is asked for first: the header of most shards, and their length in any case.
const FIRST: u64 = 256 << 10;
/// Longest header that readers accept.
const MAX_HEADER: u64 = 100_000_000;
/// Files that say what a model is.
const FACTS: &[&str] = &["generation_config.json", "README.md", "LICENSE", "LICENSE.txt", "LICENSE.md"];

/// A checkpoint of which only the headers are here.
#[derive(Debug)]
pub struct HeadersOnly {
    checkpoint: Checkpoint,
    /// The commit it is of.
    pub commit: String,
    /// Bytes read of its weights' files.
    pub bytes_read: u64,
    _dir: TempDir,
}

impl HeadersOnly {
    /// What the headers say.
    #[must_use]
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }
}

/// A store of shapes: every read fails.
impl TensorStore for HeadersOnly {
    fn entries(&self) -> &[Entry] {
        self.checkpoint.entries()
    }

    fn read(&self, entry: &Entry, _plane: usize, offset: u64, out: &mut [u8]) -> Result<(), StoreError> {
        Err(not_here(entry, offset, out.len() as u64))
    }

    fn map(&self, entry: &Entry, _plane: usize) -> Result<Bytes, StoreError> {
        Err(not_here(entry, 0, entry.bytes()))
    }
}

fn not_here(entry: &Entry, offset: u64, len: u64) -> StoreError {
    let source =
        io::Error::new(io::ErrorKind::NotFound, "only headers were read from the hub; `ashlar pull` downloads it");
    StoreError::Io { file: entry.file.clone(), tensor: entry.name.clone(), offset, len, source }
}

impl Hub {
    /// Reads a model's config and the headers of its weights.
    ///
    /// # Errors
    /// [`HubError`] if the hub cannot be asked, or what it has is no checkpoint.
    pub fn headers(&self, repo: &Repo, report: &dyn Report) -> Result<HeadersOnly, HubError> {
        if self.settings.offline {
            return Err(HubError::Offline { repo: repo.to_string(), cache: self.settings.cache.clone() });
        }
        let temporary = std::env::temp_dir();
        let dir = tempfile::tempdir().map_err(HubError::io(&temporary, "make a directory in it"))?;
        let revision = self.revision(repo)?;
        select::no_pack(repo, &revision)?;
        let weights = self.chosen(repo, &revision, report)?;
        let mut facts = select::first(repo, &revision)?;
        facts.extend(FACTS.iter().filter_map(|name| revision.file(name)).cloned());
        self.copy_into(repo, &revision, &facts, dir.path(), report)?;
        let bytes_read = self.placeholders(repo, &revision, &weights, dir.path(), report)?;
        let checkpoint = Checkpoint::open(&select::root(dir.path(), &weights))?;
        Ok(HeadersOnly { checkpoint, commit: revision.commit, bytes_read, _dir: dir })
    }

    /// Small files, by way of the cache, as links in `dir`.
    pub(crate) fn copy_into(
        &self,
        repo: &Repo,
        revision: &Revision,
        files: &[RemoteFile],
        dir: &Path,
        report: &dyn Report,
    ) -> Result<(), HubError> {
        parallel(files, PARALLEL, |file| {
            let from = self.file(repo, &revision.commit, file, &crate::download::Quiet(report))?;
            let from = fs::canonicalize(&from).map_err(HubError::io(&from, "find it"))?;
            let to = dir.join(&file.path);
            std::os::unix::fs::symlink(&from, &to).map_err(HubError::io(&to, "link it"))
        })
    }

    /// Files in `dir` that hold their headers, and are as long as the hub says. Returns the bytes read.
    pub(crate) fn placeholders(
        &self,
        repo: &Repo,
        revision: &Revision,
        weights: &[RemoteFile],
        dir: &Path,
        report: &dyn Report,
    ) -> Result<u64, HubError> {
        let total = AtomicU64::new(0);
        report.begin("reading headers", weights.len() as u64 * FIRST);
        parallel(weights, PARALLEL, |file| {
            let url = self.address(repo, &revision.commit, &file.path);
            let bytes = if select::is_gguf(&file.path) {
                self.gguf_header(&url, file)?
            } else {
                self.safetensors_header(&url, file)?
            };
            total.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            let path = dir.join(&file.path);
            crate::cache::create_parent(&path)?;
            let mut placeholder = File::create(&path).map_err(HubError::io(&path, "create it"))?;
            let written = placeholder.write_all(&bytes).and_then(|()| placeholder.set_len(file.size));
            written.map_err(HubError::io(&path, "write to it"))?;
            report.advance(FIRST, &file.path);
            Ok(())
        })?;
        report.end();
        Ok(total.into_inner())
    }

    /// A file's beginning: all of its header, whose length stands first.
    fn safetensors_header(&self, url: &str, file: &RemoteFile) -> Result<Vec<u8>, HubError> {
        let mut bytes = self.range(url, 0, FIRST.min(file.size))?;
        let prefix = bytes.first_chunk::<8>().map_or(0, |p| u64::from_le_bytes(*p));
        let end = prefix.saturating_add(8).min(file.size);
        if prefix <= MAX_HEADER && end > bytes.len() as u64 {
            bytes.extend(self.range(url, bytes.len() as u64, end)?);
        }
        Ok(bytes)
    }

    /// A file's beginning: all of its header, which ends where it has been read to its end.
    fn gguf_header(&self, url: &str, file: &RemoteFile) -> Result<Vec<u8>, HubError> {
        let (bytes, failed) = (RefCell::new(Vec::new()), RefCell::new(None));
        let read = |at: u64, out: &mut [u8]| {
            let mut bytes = bytes.borrow_mut();
            let end = at.saturating_add(out.len() as u64);
            // What was read and not used is asked for again with what follows it.
            let from = bytes.len() as u64;
            if end > from {
                match self.range(url, from, end) {
                    Ok(more) => bytes.extend(more),
                    Err(e) => {
                        failed.replace(Some(e));
                        return Err(io::ErrorKind::Other.into());
                    }
                }
            }
            let part = usize::try_from(at).ok().and_then(|at| bytes.get(at..)).and_then(|b| b.get(..out.len()));
            out.copy_from_slice(part.ok_or(io::ErrorKind::UnexpectedEof)?);
            Ok(())
        };
        let header = GgufHeader::fetch(&file.path, file.size, &read);
        match (header, failed.into_inner()) {
            (_, Some(e)) => Err(e),
            (Err(e), None) => Err(e.into()),
            (Ok(_), None) => Ok(bytes.into_inner()),
        }
    }

    /// The bytes from `from` to `to` of a file.
    fn range(&self, url: &str, from: u64, to: u64) -> Result<Vec<u8>, HubError> {
        if from >= to {
            return Ok(Vec::new());
        }
        self.client.retry(url, || {
            let mut response = match self.client.get(url, from, Some(to - 1))? {
                Attempt::Again(failed) => return Ok(Attempt::Again(failed)),
                Attempt::Done(response) => response,
            };
            let whole = response.status().as_u16() == 200;
            if !whole {
                check_range(url, header(&response, "content-range").as_deref(), from)?;
            }
            let mut body = response.body_mut().as_reader();
            // A server that knows no ranges begins at the beginning.
            let skip = if whole { io::copy(&mut (&mut body).take(from), &mut io::sink()) } else { Ok(0) };
            let mut bytes = Vec::new();
            let read = skip.and_then(|_| body.take(to - from).read_to_end(&mut bytes));
            Ok(match read {
                Ok(_) if bytes.len() as u64 == to - from => Attempt::Done(bytes),
                Ok(n) => {
                    Attempt::Again(Failed { what: format!("{n} bytes came, {} were asked for", to - from), wait: None })
                }
                Err(e) => Attempt::Again(Failed { what: e.to_string(), wait: None }),
            })
        })
    }
}
