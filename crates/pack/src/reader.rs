//! [`Pack`]: a published pack, opened defensively, as a [`TensorStore`].

use crate::error::PackError;
use crate::header::{self, HeaderEntry};
use crate::layout::{PADDING, Record, Tensor};
use crate::manifest::{MANIFEST_FILE, MAX_MANIFEST, Manifest, SealedRecord};
use crate::publish::is_own;
use ashlar_tensor::{Bytes, Dtype, Entry, FilePlace, Order, Plane, StoreError, TensorStore};
use serde_json::Value;
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// A pack on disk. Opening reads manifest and headers only.
#[derive(Debug)]
pub struct Pack {
    dir: PathBuf,
    manifest: Manifest,
    files: Vec<File>,
    maps: Vec<OnceLock<Bytes>>,
    entries: Vec<Entry>,
    /// (record, tensor) of each entry.
    places: Vec<(usize, usize)>,
}

impl Pack {
    /// Whether the directory claims to be a pack.
    #[must_use]
    pub fn is_pack(dir: &Path) -> bool {
        dir.join(MANIFEST_FILE).is_file()
    }

    /// Opens a pack: every size and offset of the manifest is checked against the shards' headers and real sizes.
    ///
    /// # Errors
    /// [`PackError::NotAPack`], [`PackError::Version`], [`PackError::Malformed`], or I/O.
    pub fn open(dir: &Path) -> Result<Self, PackError> {
        let path = dir.join(MANIFEST_FILE);
        let manifest = Manifest::parse(&read_manifest(dir, &path)?, &path)?;
        let mut expected: Vec<HashMap<&str, &Tensor>> = manifest.shards.iter().map(|_| HashMap::new()).collect();
        for r in manifest.records.iter().map(|r| &r.record) {
            for t in &r.tensors {
                if expected.get_mut(r.shard).and_then(|m| m.insert(&t.name, t)).is_some() {
                    return Err(PackError::malformed(&path, format!("tensor `{}` occurs twice", t.name)));
                }
            }
        }
        let mut files = Vec::new();
        for ((name, bytes), tensors) in manifest.shards.iter().zip(expected) {
            files.push(open_shard(&dir.join(name), *bytes, tensors)?);
        }
        let file = |shard: usize| manifest.shards.get(shard).map(|(name, _)| name.clone()).unwrap_or_default();
        let (entries, places) = entries(manifest.records.iter().map(|r| &r.record), file);
        if let Some(w) = entries.windows(2).find_map(|w| w.first().zip(w.last()).filter(|(a, b)| a.name == b.name)) {
            return Err(PackError::malformed(&path, format!("tensor `{}` occurs twice", w.0.name)));
        }
        let maps = files.iter().map(|_| OnceLock::new()).collect();
        Ok(Self { dir: dir.to_owned(), manifest, files, maps, entries, places })
    }

    /// The manifest.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The source checkpoint's own `config.json`.
    #[must_use]
    pub fn config(&self) -> &Value {
        &self.manifest.config
    }

    /// Every record with its checksum, in file order.
    #[must_use]
    pub fn records(&self) -> &[SealedRecord] {
        &self.manifest.records
    }

    /// The pack's directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Bytes of all shards, headers and padding included.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.manifest.shards.iter().map(|(_, b)| b).sum()
    }

    /// A hash of what the pack holds: the same pack has the same identity wherever it lies.
    #[must_use]
    pub fn identity(&self) -> String {
        blake3::hash(self.manifest.to_json().as_bytes()).to_hex().to_string()
    }

    /// The files that came along with the source: tokenizer, generation config, licence…; sorted.
    #[must_use]
    pub fn side_files(&self) -> Vec<PathBuf> {
        let list = fs::read_dir(&self.dir).into_iter().flatten().flatten().map(|e| e.path());
        let mut files: Vec<PathBuf> = list
            .filter(|p| p.is_file() && p.file_name().and_then(|n| n.to_str()).is_some_and(|n| !is_own(n)))
            .collect();
        files.sort();
        files
    }

    pub(crate) fn files(&self) -> &[File] {
        &self.files
    }

    pub(crate) fn shard_file(&self, shard: usize) -> &str {
        self.manifest.shards.get(shard).map_or("?", |(name, _)| name)
    }

    /// Shard and file offset of a range of a plane.
    fn locate(&self, entry: &Entry, plane: usize, offset: u64, len: u64) -> Result<(usize, u64), StoreError> {
        let found = || {
            let index = self.entries.binary_search_by(|e| e.name.cmp(&entry.name)).ok()?;
            let (record, tensor) = *self.places.get(index)?;
            let record = &self.manifest.records.get(record)?.record;
            let tensor = record.tensors.get(tensor)?;
            Some((record.shard, tensor.offset, tensor.planes.get(plane)?))
        };
        let name = || entry.name.clone();
        let (shard, start, stored) = found().ok_or_else(|| StoreError::Unknown { tensor: name(), plane })?;
        let end = offset.saturating_add(len);
        if end > stored.bytes {
            return Err(StoreError::Range { tensor: name(), plane, offset, end, bytes: stored.bytes });
        }
        Ok((shard, start + stored.offset + offset))
    }

    fn io(&self, shard: usize, entry: &Entry, offset: u64, len: u64) -> impl FnOnce(std::io::Error) -> StoreError {
        let (file, tensor) = (self.shard_file(shard).to_owned(), entry.name.clone());
        move |source| StoreError::Io { file, tensor, offset, len, source }
    }
}

impl TensorStore for Pack {
    fn entries(&self) -> &[Entry] {
        &self.entries
    }

    fn read(&self, entry: &Entry, plane: usize, offset: u64, out: &mut [u8]) -> Result<(), StoreError> {
        let (shard, at) = self.locate(entry, plane, offset, out.len() as u64)?;
        let io = self.io(shard, entry, at, out.len() as u64);
        match self.files.get(shard) {
            Some(file) => file.read_exact_at(out, at).map_err(io),
            None => Err(io(ErrorKind::NotFound.into())),
        }
    }

    fn map(&self, entry: &Entry, plane: usize) -> Result<Bytes, StoreError> {
        let bytes = entry.planes.get(plane).map_or(0, |p| p.bytes);
        let (shard, at) = self.locate(entry, plane, 0, bytes)?;
        let io = self.io(shard, entry, at, bytes);
        let (Some(file), Some(slot)) = (self.files.get(shard), self.maps.get(shard)) else {
            return Err(io(ErrorKind::NotFound.into()));
        };
        let map = match slot.get() {
            Some(map) => map,
            None => match Bytes::map_file(file) {
                Ok(map) => slot.get_or_init(|| map),
                Err(e) => return Err(io(e)),
            },
        };
        map.slice(at as usize, bytes as usize).ok_or_else(|| io(ErrorKind::UnexpectedEof.into()))
    }

    fn place(&self, entry: &Entry, plane: usize) -> Option<FilePlace> {
        let bytes = entry.planes.get(plane)?.bytes;
        let (shard, offset) = self.locate(entry, plane, 0, bytes).ok()?;
        Some(FilePlace { file: self.dir.join(self.shard_file(shard)), offset })
    }
}

/// Every tensor of `records`, sorted by name, and its record and place there; `file` names shards.
pub(crate) fn entries<'a>(
    records: impl Iterator<Item = &'a Record>,
    file: impl Fn(usize) -> String,
) -> (Vec<Entry>, Vec<(usize, usize)>) {
    let mut all = Vec::new();
    for (r, record) in records.enumerate() {
        let file = file(record.shard);
        for (i, t) in record.tensors.iter().enumerate() {
            let entry = Entry {
                name: t.name.clone(),
                shape: t.shape.clone(),
                format: t.format.clone(),
                order: t.order,
                planes: t.planes.iter().map(|p| Plane { kind: p.kind, bytes: p.bytes }).collect(),
                file: file.clone(),
            };
            all.push((entry, (r, i)));
        }
    }
    all.sort_by(|a, b| a.0.name.cmp(&b.0.name));
    all.into_iter().unzip()
}

fn read_manifest(dir: &Path, path: &Path) -> Result<Vec<u8>, PackError> {
    let file = match open_regular(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Err(PackError::NotAPack { dir: dir.to_owned() }),
        other => other.map_err(PackError::io(path, "open it"))?,
    };
    let mut bytes = Vec::new();
    file.take(MAX_MANIFEST + 1).read_to_end(&mut bytes).map_err(PackError::io(path, "read it"))?;
    if bytes.len() as u64 > MAX_MANIFEST {
        return Err(PackError::malformed(path, format!("the manifest exceeds {MAX_MANIFEST} bytes")));
    }
    Ok(bytes)
}

/// Opens a regular file; a pipe would block for ever.
fn open_regular(path: &Path) -> std::io::Result<File> {
    if fs::metadata(path)?.is_file() {
        File::open(path)
    } else {
        Err(std::io::Error::new(ErrorKind::InvalidInput, "it is not a regular file"))
    }
}

/// Opens a shard whose header holds exactly `tensors` and padding, contiguous to the end of the file.
fn open_shard(path: &Path, bytes: u64, mut tensors: HashMap<&str, &Tensor>) -> Result<File, PackError> {
    let bad = |what: String| PackError::malformed(path, what);
    let file = open_regular(path).map_err(PackError::io(path, "open it"))?;
    let real = file.metadata().map_err(PackError::io(path, "look at it"))?.len();
    if real != bytes {
        return Err(bad(format!("the file has {real} bytes, the manifest says {bytes}")));
    }
    let mut first = [0; 8];
    file.read_exact_at(&mut first, 0).map_err(PackError::io(path, "read its header"))?;
    let data = header::length(first, real).map_err(bad)?;
    let mut json = vec![0; (data - 8) as usize];
    file.read_exact_at(&mut json, 8).map_err(PackError::io(path, "read its header"))?;
    let mut end = 0;
    for e in header::parse(&json).map_err(bad)? {
        end = e.end;
        match tensors.remove(e.name.as_str()) {
            Some(t) => check_entry(t, &e, data).map_err(bad)?,
            None if e.name.starts_with(PADDING) => {}
            None => return Err(bad(format!("tensor `{}` is not in the manifest", e.name))),
        }
    }
    if let Some(name) = tensors.keys().min() {
        return Err(bad(format!("tensor `{name}` is in the manifest, not in the header")));
    }
    match data.checked_add(end) {
        Some(all) if all == real => Ok(file),
        _ => Err(bad(format!("the tensors end at {end} after a header of {data} bytes, the file has {real} bytes"))),
    }
}

fn check_entry(t: &Tensor, e: &HeaderEntry, data: u64) -> Result<(), String> {
    let shape: Vec<u64> =
        if t.order == Order::X16 { vec![t.bytes] } else { t.shape.iter().map(|&d| d as u64).collect() };
    let dtype: Dtype = t.dtype;
    let (start, end) = (e.start.checked_add(data), e.end.checked_add(data));
    if start != Some(t.offset) || end != t.offset.checked_add(t.bytes) || e.dtype != dtype || e.shape != shape {
        return Err(format!(
            "tensor `{}`: the header says {} {:?} at {}..{}, the manifest {dtype} {shape:?} at {}, {} bytes",
            t.name, e.dtype, e.shape, e.start, e.end, t.offset, t.bytes
        ));
    }
    Ok(())
}
