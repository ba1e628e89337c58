//! Files into the cache: what is missing, from where it broke off, checked against its hash.

use crate::cache::{Cache, free_bytes};
use crate::client::{Attempt, Failed, header};
use crate::error::HubError;
use crate::select::{self, CONFIG, INDEX, PACK, SINGLE};
use crate::{Hasher, Hub, RemoteFile, Repo, Revision};
use ashlar_tensor::Report;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Files that are downloaded at the same time.
const PARALLEL: usize = 4;
/// Bytes written and hashed at once.
const PIECE: usize = 1 << 20;

/// A model in the cache.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Its directory.
    pub dir: PathBuf,
    /// What of it is the model: all of it, or a GGUF file in it.
    pub path: PathBuf,
    /// The commit it is of.
    pub commit: String,
    /// Bytes that came now.
    pub downloaded: u64,
    /// Bytes of all its files.
    pub bytes: u64,
}

impl Hub {
    /// Downloads a model into the cache, or finds it there. Files that are there already are not asked for again; of one
    /// that broke off only the rest is.
    ///
    /// # Errors
    /// [`HubError`]; what came so far stays for the next time.
    pub fn pull(&self, repo: &Repo, report: &dyn Report) -> Result<Snapshot, HubError> {
        let cache = Cache::new(&self.settings.cache, repo);
        let cached = cached(&cache, repo);
        // Which of several GGUF files is meant, the hub says unless one is named.
        let sure = |s: &Snapshot| repo.is_pinned() && (s.path == s.dir || repo.gguf.is_some());
        if let Some(snapshot) = cached.clone().filter(|s| self.settings.offline || sure(s)) {
            return Ok(snapshot);
        }
        if self.settings.offline {
            return Err(HubError::Offline { repo: repo.to_string(), cache: self.settings.cache.clone() });
        }
        let revision = match (self.revision(repo), cached) {
            (Err(e @ HubError::Connection { .. }), Some(snapshot)) => {
                report.note(&format!("{e}; going on with commit {} of {repo}, which is in the cache", snapshot.commit));
                return Ok(snapshot);
            }
            (revision, _) => revision?,
        };
        let absent = |f: &&RemoteFile| !cache.blob(&f.digest).exists();
        let first: u64 = select::first(repo, &revision)?.iter().filter(absent).map(|f| f.size).sum();
        let weights = self.chosen(repo, &revision, report)?;
        let mut files = select::beside(&revision);
        let path = select::root(&cache.snapshot(&revision.commit), &weights);
        files.extend(weights);
        let missing: Vec<&RemoteFile> = files.iter().filter(absent).collect();
        let there = |f: &&RemoteFile| fs::metadata(cache.incomplete(&f.digest)).map_or(0, |m| m.len());
        let needed: u64 = missing.iter().map(|f| f.size.saturating_sub(there(f))).sum();
        check_room(&self.settings.cache, needed)?;
        if !missing.is_empty() {
            report.begin("downloading", missing.iter().map(|f| f.size).sum());
        }
        parallel(&files, PARALLEL, |file| self.file(repo, &revision.commit, file, report).map(drop))?;
        if !missing.is_empty() {
            report.end();
        }
        cache.note(repo, &revision.commit)?;
        let dir = cache.snapshot(&revision.commit);
        let bytes = files.iter().map(|f| f.size).sum();
        Ok(Snapshot { dir, path, commit: revision.commit, downloaded: first + needed, bytes })
    }

    /// The model in the cache, if all of it is there.
    #[must_use]
    pub fn cached(&self, repo: &Repo) -> Option<Snapshot> {
        cached(&Cache::new(&self.settings.cache, repo), repo)
    }

    /// The files that hold the weights. Config and index are downloaded for that.
    pub(crate) fn chosen(
        &self,
        repo: &Repo,
        revision: &Revision,
        report: &dyn Report,
    ) -> Result<Vec<RemoteFile>, HubError> {
        let mut index = None;
        for file in select::first(repo, revision)? {
            let path = self.file(repo, &revision.commit, &file, &Quiet(report))?;
            if file.path == INDEX {
                index = Some(fs::read(&path).map_err(HubError::io(&path, "read it"))?);
            }
        }
        select::weights(repo, revision, index.as_deref())
    }

    /// A file in the cache, downloaded if it is not there; returns its place in the snapshot.
    pub(crate) fn file(
        &self,
        repo: &Repo,
        commit: &str,
        file: &RemoteFile,
        report: &dyn Report,
    ) -> Result<PathBuf, HubError> {
        let cache = Cache::new(&self.settings.cache, repo);
        let blob = cache.blob(&file.digest);
        if !blob.exists() {
            let _lock = cache.lock(&file.digest)?;
            // Another process may have been faster.
            if !blob.exists() {
                let path = cache.incomplete(&file.digest);
                crate::cache::create_parent(&path)?;
                let out = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
                let mut out = out.map_err(HubError::io(&path, "create it"))?;
                let url = self.address(repo, commit, &file.path);
                self.fetch(&url, file, &mut out, &path, report)?;
                out.sync_all().map_err(HubError::io(&path, "sync it"))?;
                fs::rename(&path, &blob).map_err(HubError::io(&blob, "rename what was downloaded to it"))?;
            }
        }
        cache.link(commit, file)
    }

    /// Completes `out`, whose bytes so far are the file's first, and checks the hash of all. A file with another hash is
    /// downloaded once more.
    pub(crate) fn fetch(
        &self,
        url: &str,
        file: &RemoteFile,
        out: &mut File,
        path: &Path,
        report: &dyn Report,
    ) -> Result<(), HubError> {
        let mut progress = Progress::resume(file, out, path, report)?;
        for last in [false, true] {
            self.rest(url, &mut progress)?;
            let got = progress.hasher().finish();
            if got == file.digest {
                return Ok(());
            }
            progress.restart()?;
            if last {
                let (expected, got) = (file.digest.to_string(), got.to_string());
                return Err(HubError::Hash { file: file.path.clone(), expected, got });
            }
            report.note(&format!(
                "{}: its bytes do not have the hash that the hub lists; downloading it again",
                file.path
            ));
        }
        Ok(())
    }

    /// Asks for what is missing until all is there.
    fn rest(&self, url: &str, progress: &mut Progress<'_>) -> Result<(), HubError> {
        let mut attempts = 0;
        while progress.have < progress.file.size {
            let before = progress.have;
            let failed = match self.client.get(url, progress.have, None)? {
                Attempt::Again(failed) => failed,
                Attempt::Done(mut response) => {
                    if response.status().as_u16() == 200 {
                        // A server that knows no ranges begins at the beginning.
                        progress.restart_unless_fresh()?;
                    } else {
                        check_range(url, header(&response, "content-range").as_deref(), progress.have)?;
                    }
                    match progress.read(url, &mut response.body_mut().as_reader())? {
                        None => continue,
                        Some(what) => Failed { what, wait: None },
                    }
                }
            };
            // What brought bytes was no failure, however it ended.
            attempts = if progress.have > before { 1 } else { attempts + 1 };
            self.client.wait(url, attempts, failed)?;
        }
        Ok(())
    }
}

/// A model that is complete in the cache.
fn cached(cache: &Cache, repo: &Repo) -> Option<Snapshot> {
    let commit = cache.commit(repo)?;
    let dir = cache.snapshot(&commit);
    let (files, path) = weights_in(&dir, repo)?;
    let sizes: Option<Vec<u64>> = files.iter().map(|name| fs::metadata(dir.join(name)).ok().map(|m| m.len())).collect();
    Some(Snapshot { dir, path, commit, downloaded: 0, bytes: sizes?.iter().sum() })
}

/// What a snapshot must hold to be a model, and what of it is to be opened.
fn weights_in(dir: &Path, repo: &Repo) -> Option<(Vec<String>, PathBuf)> {
    let whole = |shards: Vec<String>| Some((shards.into_iter().chain([CONFIG.to_owned()]).collect(), dir.to_owned()));
    let names = names(dir);
    let has = |name: &str| repo.gguf.is_none() && names.iter().any(|(n, _)| n == name);
    if has(PACK) {
        let shard = names.iter().find(|(n, _)| select::is_shard(n))?;
        let count = shard.0.strip_suffix(".safetensors")?.rsplit_once("-of-")?.1.parse::<u32>().ok()?;
        return whole((1..=count.min(100_000)).map(|i| format!("ashlar-{i:05}-of-{count:05}.safetensors")).collect());
    }
    if has(SINGLE) {
        return whole(vec![SINGLE.to_owned()]);
    }
    if has(INDEX) {
        let index = fs::read(dir.join(INDEX)).ok()?;
        return whole(ashlar_source::parse_index(&index, INDEX).ok()?.into_keys().collect());
    }
    let files: Vec<(&str, u64)> = names.iter().map(|(name, size)| (name.as_str(), *size)).collect();
    let parts = select::choose(repo, &files).ok()?;
    let path = dir.join(parts.first()?);
    Some((parts, path))
}

/// The files in a snapshot and in its folders, with their sizes.
fn names(dir: &Path) -> Vec<(String, u64)> {
    let list = |dir: &Path| fs::read_dir(dir).into_iter().flatten().flatten().collect::<Vec<_>>();
    let mut names = Vec::new();
    for entry in list(dir) {
        let Ok(name) = entry.file_name().into_string() else { continue };
        match fs::metadata(entry.path()) {
            Ok(meta) if meta.is_dir() => names.extend(list(&entry.path()).into_iter().filter_map(|inner| {
                let size = fs::metadata(inner.path()).ok().filter(fs::Metadata::is_file)?.len();
                Some((format!("{name}/{}", inner.file_name().into_string().ok()?), size))
            })),
            Ok(meta) => names.push((name, meta.len())),
            Err(_) => {}
        }
    }
    names
}

/// A file on its way.
struct Progress<'a> {
    file: &'a RemoteFile,
    out: &'a mut File,
    path: &'a Path,
    report: &'a dyn Report,
    have: u64,
    hasher: Option<Hasher>,
}

impl<'a> Progress<'a> {
    /// What is there of it is hashed.
    fn resume(
        file: &'a RemoteFile,
        out: &'a mut File,
        path: &'a Path,
        report: &'a dyn Report,
    ) -> Result<Self, HubError> {
        let mut this = Self { file, out, path, report, have: 0, hasher: None };
        let len = this.out.metadata().map_err(HubError::io(path, "look at it"))?.len();
        if len > file.size {
            this.restart()?;
            return Ok(this);
        }
        let mut hasher = Hasher::like(&file.digest, file.size);
        let mut piece = vec![0; PIECE];
        loop {
            let n = this.out.read(&mut piece).map_err(HubError::io(path, "read it"))?;
            let Some(bytes) = piece.get(..n).filter(|b| !b.is_empty()) else { break };
            hasher.update(bytes);
            this.have += n as u64;
            report.advance(n as u64, &file.path);
        }
        this.hasher = Some(hasher);
        Ok(this)
    }

    fn hasher(&mut self) -> Hasher {
        self.hasher.take().unwrap_or_else(|| Hasher::like(&self.file.digest, self.file.size))
    }

    /// Forgets what is there.
    fn restart(&mut self) -> Result<(), HubError> {
        let emptied = self.out.set_len(0).and_then(|()| self.out.seek(SeekFrom::Start(0)));
        emptied.map_err(HubError::io(self.path, "empty it"))?;
        (self.have, self.hasher) = (0, None);
        Ok(())
    }

    fn restart_unless_fresh(&mut self) -> Result<(), HubError> {
        if self.have == 0 { Ok(()) } else { self.restart() }
    }

    /// Writes and hashes a body; tells how it broke off, if it did.
    fn read(&mut self, url: &str, body: &mut impl Read) -> Result<Option<String>, HubError> {
        let mut hasher = self.hasher();
        let mut piece = vec![0; PIECE];
        let broken = loop {
            let n = match body.read(&mut piece) {
                Ok(n) => n,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(e) => break Some(e.to_string()),
            };
            let Some(bytes) = piece.get(..n).filter(|b| !b.is_empty()) else {
                let cut = format!("it ended after {} of {} bytes", self.have, self.file.size);
                break (self.have < self.file.size).then_some(cut);
            };
            if self.have + n as u64 > self.file.size {
                let what = format!("more bytes came than the {} that the hub lists", self.file.size);
                return Err(HubError::Answer { url: url.to_owned(), what });
            }
            self.out.write_all(bytes).map_err(HubError::io(self.path, "write to it"))?;
            hasher.update(bytes);
            self.have += n as u64;
            self.report.advance(n as u64, &self.file.path);
        };
        self.hasher = Some(hasher);
        Ok(broken)
    }
}

/// Whether `Content-Range` begins where it was asked to.
pub(crate) fn check_range(url: &str, range: Option<&str>, from: u64) -> Result<(), HubError> {
    let start = range.and_then(|r| r.strip_prefix("bytes ")?.split('-').next()?.parse::<u64>().ok());
    if start == Some(from) {
        return Ok(());
    }
    let what = format!("bytes from {from} on were asked for, the answer has {}", range.unwrap_or("no range"));
    Err(HubError::Answer { url: url.to_owned(), what })
}

pub(crate) fn check_room(path: &Path, needed: u64) -> Result<(), HubError> {
    match free_bytes(path) {
        Some(free) if free < needed => Err(HubError::DiskFull { path: path.to_owned(), needed, free }),
        _ => Ok(()),
    }
}

/// Does `work` for every file, on a few threads; the first error ends it.
pub(crate) fn parallel(
    files: &[RemoteFile],
    threads: usize,
    work: impl Fn(&RemoteFile) -> Result<(), HubError> + Sync,
) -> Result<(), HubError> {
    let (next, failed) = (AtomicUsize::new(0), Mutex::new(None));
    let lock = || failed.lock().unwrap_or_else(PoisonError::into_inner);
    let run = || {
        while lock().is_none() {
            let Some(file) = files.get(next.fetch_add(1, Ordering::Relaxed)) else { break };
            if let Err(e) = work(file) {
                lock().get_or_insert(e);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads.min(files.len()) {
            // Where no further thread can be had, this one does all.
            if std::thread::Builder::new().spawn_scoped(scope, run).is_err() {
                break;
            }
        }
        run();
    });
    match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

/// Passes notes on, and no progress: for small files that are read before the work begins.
pub(crate) struct Quiet<'a>(pub &'a dyn Report);

impl Report for Quiet<'_> {
    fn begin(&self, _stage: &str, _total: u64) {}
    fn advance(&self, _amount: u64, _current: &str) {}
    fn note(&self, text: &str) {
        self.0.note(text);
    }
    fn end(&self) {}
}
