//! Fills the shards of a layout at known offsets, in any order, from any number of threads.

use crate::error::PackError;
use crate::journal::{self, Done, Fingerprint};
use crate::layout::{Layout, Record};
use crate::manifest::{Manifest, SealedRecord};
use crate::partial::{JOURNAL, Partial, SCRATCH, Target, claim};
use crate::unpublished::Unpublished;
use crate::{direct, partial, publish, verify};
use ashlar_tensor::Report;
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

/// Puts bytes into a file: directly, or through something that fails on purpose in a test.
pub trait WriteAt: Sync {
    /// Writes all of `bytes` at `offset`.
    ///
    /// # Errors
    /// What the operating system reports.
    fn write_all_at(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()>;
}

/// `pwrite`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Direct;

impl WriteAt for Direct {
    fn write_all_at(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        file.write_all_at(bytes, offset)
    }
}

/// A pack being written in `OUT.partial`.
pub struct Writer<'a> {
    target: Target,
    partial: Partial,
    layout: &'a Layout,
    sink: &'a dyn WriteAt,
    files: Vec<File>,
    /// The same shards, past the page cache; `None` where the file system cannot.
    direct: Vec<Option<File>>,
    direct_refused: AtomicBool,
    journal: Mutex<File>,
    claimed: BTreeMap<usize, Done>,
}

impl<'a> Writer<'a> {
    /// Opens or resumes `OUT.partial`: checks that the disk has room (`extra` bytes besides the shards), reserves the
    /// shards' space and writes their headers.
    ///
    /// # Errors
    /// [`PackError::Exists`], [`PackError::Locked`], [`PackError::OtherInputs`], [`PackError::DiskFull`], or I/O.
    pub fn open(
        target: &Target,
        layout: &'a Layout,
        inputs: &Fingerprint,
        extra: u64,
        sink: &'a dyn WriteAt,
    ) -> Result<Self, PackError> {
        let target = target.tidy();
        let mut partial = claim(&target, inputs)?;
        let claimed = std::mem::take(&mut partial.contents.done);
        check_room(&partial.dir, layout, extra)?;
        let journal = open_journal(&partial, inputs)?;
        let mut writer = Self {
            target,
            partial,
            layout,
            sink,
            files: Vec::new(),
            direct: Vec::new(),
            direct_refused: AtomicBool::new(false),
            journal: Mutex::new(journal),
            claimed,
        };
        for shard in &layout.shards {
            let path = writer.partial.dir.join(&shard.file);
            let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
            let file = file.map_err(PackError::io(&path, "create it"))?;
            reserve(&file, shard.bytes).map_err(|e| writer.explain(e, &path, "reserve its space"))?;
            writer.files.push(file);
            writer.direct.push(direct::open(&path));
        }
        for (index, shard) in layout.shards.iter().enumerate() {
            writer.write(index, 0, &shard.header)?;
        }
        Ok(writer)
    }

    /// Hashes again what the journal of an earlier run claims, and returns what holds. What does not is told to
    /// `report` and must be done again.
    ///
    /// # Errors
    /// I/O.
    pub fn resume(&self, threads: usize, report: &dyn Report) -> Result<Vec<Done>, PackError> {
        let claims: Vec<&Done> = self.claimed.values().filter(|d| d.record < self.layout.records.len()).collect();
        let records: Vec<&Record> = claims.iter().filter_map(|d| self.layout.records.get(d.record)).collect();
        if records.is_empty() {
            return Ok(Vec::new());
        }
        report.begin("checking what is already done", records.iter().map(|r| r.bytes).sum());
        for (shard, file) in self.layout.shards.iter().zip(&self.files) {
            forget(file).map_err(|e| self.explain(e, &self.partial.dir.join(&shard.file), "sync it"))?;
        }
        let hashes = verify::hash_records(&self.files, &records, threads, report)?;
        report.end();
        let (good, bad): (Vec<_>, Vec<_>) =
            claims.into_iter().zip(hashes).partition(|(done, hash)| done.blake3 == *hash);
        if !bad.is_empty() {
            report.note(&format!(
                "{} of {} records in the journal do not have the bytes it claims; they are done again",
                bad.len(),
                bad.len() + good.len()
            ));
        }
        Ok(good.into_iter().map(|(done, _)| done.clone()).collect())
    }

    /// Writes bytes at an offset of a shard.
    ///
    /// # Errors
    /// [`PackError::DiskFull`] or I/O; what was done so far stays for a resume.
    pub fn write(&self, shard: usize, offset: u64, bytes: &[u8]) -> Result<(), PackError> {
        let (Some(file), Some(path)) = (self.files.get(shard), self.path(shard)) else {
            return Err(PackError::Unsealed { record: 0, what: format!("there is no shard {shard}") });
        };
        if let Some(Some(direct)) = self.direct.get(shard)
            && direct::is_eligible(offset, bytes)
            && !self.direct_refused.load(Ordering::Relaxed)
        {
            match self.sink.write_all_at(direct, bytes, offset) {
                Err(e) if direct::is_refusal(&e) => self.direct_refused.store(true, Ordering::Relaxed),
                other => return other.map_err(|e| self.explain(e, &path, "write to it")),
            }
        }
        self.sink.write_all_at(file, bytes, offset).map_err(|e| self.explain(e, &path, "write to it"))
    }

    /// The tensors written so far, to be read back.
    #[must_use]
    pub fn written(&self) -> Unpublished<'_> {
        Unpublished::new(self.layout, &self.files)
    }

    /// A file in `OUT.partial` for what the caller must find again after a kill. It is removed when the pack is published
    /// or discarded.
    #[must_use]
    pub fn scratch(&self, name: &str) -> PathBuf {
        self.partial.dir.join(format!("{SCRATCH}{name}"))
    }

    /// Notes in the journal that a record is complete.
    ///
    /// # Errors
    /// As [`Writer::write`].
    pub fn seal(&self, done: &Done) -> Result<(), PackError> {
        let path = self.partial.dir.join(JOURNAL);
        let mut journal = self.journal.lock().unwrap_or_else(PoisonError::into_inner);
        journal.write_all(journal::done_line(done).as_bytes()).map_err(|e| self.explain(e, &path, "append to it"))
    }

    /// Starts writing a shard's dirty pages to the disk and waits for them, so that publishing need not wait for all
    /// of them at once.
    ///
    /// # Errors
    /// I/O.
    pub fn flush(&self, shard: usize) -> Result<(), PackError> {
        let (Some(file), Some(path)) = (self.files.get(shard), self.path(shard)) else { return Ok(()) };
        file.sync_data().map_err(|e| self.explain(e, &path, "sync it"))
    }

    /// Completes the pack and moves it to `OUT`: manifest and config are written, `side_files` copied, `card` put in the place
    /// of a README.md among them, everything synced, then renamed. Until the rename an older pack at `OUT` stays as it was.
    ///
    /// # Errors
    /// [`PackError::Unsealed`] unless `manifest` seals exactly the layout's records; [`PackError::DiskFull`]; I/O.
    pub fn publish(self, manifest: &Manifest, side_files: &[PathBuf], card: Option<&str>) -> Result<(), PackError> {
        self.check_manifest(manifest)?;
        self.sync()?;
        let result = publish::publish(&self.target, &self.partial, manifest, side_files, card);
        result.map_err(|e| match e {
            PackError::Io { source, path, what } => self.explain(source, &path, what),
            other => other,
        })
    }

    /// Removes `OUT.partial`, for when going on with it makes no sense.
    ///
    /// # Errors
    /// I/O.
    pub fn discard(self) -> Result<(), PackError> {
        partial::delete(&self.partial.dir)
    }

    /// Makes all that was written last.
    pub(crate) fn sync(&self) -> Result<(), PackError> {
        for (shard, file) in self.layout.shards.iter().zip(&self.files) {
            let path = self.partial.dir.join(&shard.file);
            file.sync_all().map_err(|e| self.explain(e, &path, "sync it"))?;
        }
        Ok(())
    }

    pub(crate) fn layout(&self) -> &Layout {
        self.layout
    }

    pub(crate) fn target(&self) -> &Target {
        &self.target
    }

    /// The directory it grows in.
    pub(crate) fn dir(&self) -> &Path {
        &self.partial.dir
    }

    fn check_manifest(&self, manifest: &Manifest) -> Result<(), PackError> {
        let (sealed, planned) = (&manifest.records, &self.layout.records);
        if let Some(record) = (0..sealed.len().max(planned.len()))
            .find(|&i| sealed.get(i).map(|s: &SealedRecord| &s.record) != planned.get(i))
        {
            return Err(PackError::Unsealed {
                record,
                what: "the manifest does not seal the record that was planned".into(),
            });
        }
        Ok(())
    }

    fn path(&self, shard: usize) -> Option<PathBuf> {
        self.layout.shards.get(shard).map(|s| self.partial.dir.join(&s.file))
    }

    fn explain(&self, error: io::Error, path: &Path, what: &'static str) -> PackError {
        if error.kind() == io::ErrorKind::StorageFull || error.kind() == io::ErrorKind::QuotaExceeded {
            let needed = missing_bytes(&self.partial.dir, self.layout);
            return PackError::DiskFull {
                path: path.to_owned(),
                needed,
                free: free_bytes(&self.partial.dir).unwrap_or(0),
            };
        }
        PackError::io(path, what)(error)
    }
}

/// Drops a file's pages from the cache, so that what is read next comes from the disk: after a failed write-back the
/// cache may still show bytes that the disk never got.
fn forget(file: &File) -> io::Result<()> {
    file.sync_data()?;
    #[cfg(target_os = "linux")]
    // Advice only: a file system that ignores it is read through its cache.
    let _ = rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed);
    Ok(())
}

pub(crate) fn open_journal(partial: &Partial, inputs: &Fingerprint) -> Result<File, PackError> {
    let path = partial.dir.join(JOURNAL);
    let file = OpenOptions::new().append(true).create(true).open(&path).map_err(PackError::io(&path, "open it"))?;
    // A torn last line would make every later line unreadable.
    file.set_len(partial.contents.valid as u64).map_err(PackError::io(&path, "truncate it"))?;
    if partial.contents.inputs.is_none() {
        (&file).write_all(journal::first_line(inputs).as_bytes()).map_err(PackError::io(&path, "write to it"))?;
        file.sync_all().map_err(PackError::io(&path, "sync it"))?;
    }
    Ok(file)
}

fn check_room(dir: &Path, layout: &Layout, extra: u64) -> Result<(), PackError> {
    let needed = missing_bytes(dir, layout).saturating_add(extra);
    let free = free_bytes(dir).map_err(PackError::io(dir, "ask for its free space"))?;
    if needed > free {
        return Err(PackError::DiskFull { path: dir.to_owned(), needed, free });
    }
    Ok(())
}

/// Bytes of the shards that are not yet on the disk.
fn missing_bytes(dir: &Path, layout: &Layout) -> u64 {
    let present = |file: &str| std::fs::metadata(dir.join(file)).map_or(0, |m| m.blocks() * 512);
    layout.shards.iter().map(|s| s.bytes.saturating_sub(present(&s.file))).sum()
}

/// Bytes free on the disk that holds `dir`, for users without privileges.
///
/// # Errors
/// What the operating system reports.
pub fn free_bytes(dir: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(dir)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Gives the file its size and, where the file system can, its blocks, so that a full disk shows now.
fn reserve(file: &File, bytes: u64) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    match rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, bytes) {
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {}
        Err(e) => return Err(e.into()),
        Ok(()) => {}
    }
    file.set_len(bytes)
}
