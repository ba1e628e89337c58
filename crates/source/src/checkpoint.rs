//! An open checkpoint: entries from the headers, bytes by positioned reads or maps.

use crate::find::{INDEX, SINGLE, Weights, find};
use crate::place::Place;
use crate::shard::Shard;
use crate::side::{Side, SideDir};
use crate::{SourceError, gguf, shards};
use ashlar_tensor::{AlignedBytes, Bytes, Entry, StoreError, TensorStore};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A model as it is released: `config.json` and safetensors files, or a GGUF file read as if it were those. Only headers
/// are read when it is opened.
///
/// The files must not change while it is open: a map of a file that is truncated ends the process, as everywhere.
#[derive(Debug)]
pub struct Checkpoint {
    dir: PathBuf,
    parts: Parts,
}

/// What opening files of either kind gives.
#[derive(Debug)]
pub struct Parts {
    /// `config.json`, or what stands for it.
    pub config: Value,
    pub shards: Vec<Shard>,
    /// By name.
    pub entries: Vec<Entry>,
    /// Where the planes of the entry of the same index lie.
    pub places: Vec<Vec<Place>>,
    pub metadata: BTreeMap<String, String>,
    pub identity: String,
    /// Of the files.
    pub kind: String,
    /// Tokenizer, templates, licence.
    pub side: Side,
}

impl Checkpoint {
    /// Opens a checkpoint directory, one `.safetensors` file with `config.json` beside it, or a `.gguf` file: of a model in
    /// several, any one of them, or their directory.
    ///
    /// # Errors
    /// [`SourceError`] for whatever is missing, damaged or not supported.
    pub fn open(path: &Path) -> Result<Self, SourceError> {
        let (dir, weights) = find(path)?;
        let parts = match weights {
            Weights::Gguf(names) => gguf::open(&dir, &names)?,
            other => shards::open(&dir, other)?,
        };
        Ok(Self { dir, parts })
    }

    /// What an output may not lie in nor replace: the checkpoint's folder; of GGUF, which shares its folder with others, the
    /// first file.
    #[must_use]
    pub fn place_on_disk(&self) -> PathBuf {
        match self.parts.shards.first() {
            Some(first) if self.parts.kind.starts_with("GGUF") => self.dir.join(&first.name),
            _ => self.dir.clone(),
        }
    }

    /// What the files are: `safetensors`, `GGUF` or `GGUF in 3 files`.
    #[must_use]
    pub fn kind(&self) -> &str {
        &self.parts.kind
    }

    /// The directory of tokenizer, templates and licence: the checkpoint's own, or a temporary one, where they are made from what a GGUF file says of them.
    #[must_use]
    pub fn side_dir(&self) -> SideDir {
        self.parts.side.dir()
    }

    /// `config.json` as it stands, an object.
    #[must_use]
    pub fn config(&self) -> &Value {
        &self.parts.config
    }

    /// The directory of the checkpoint.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What the shards say in `__metadata__`; the first shard wins where they disagree.
    #[must_use]
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.parts.metadata
    }

    /// Hex BLAKE3 over config.json and every shard's name, size and header: the same model gives the same value
    /// wherever it lies. It does not cover the weights' bytes.
    #[must_use]
    pub fn identity(&self) -> String {
        self.parts.identity.clone()
    }

    /// Name and size in bytes of every shard, in the order of their names.
    pub fn files(&self) -> impl Iterator<Item = (&str, u64)> {
        self.parts.shards.iter().map(|s| (s.name.as_str(), s.len))
    }

    /// What the user should know of how the checkpoint was read: an index that lies beside the single file is not used.
    #[must_use]
    pub fn notes(&self) -> Vec<String> {
        let single = matches!(self.parts.shards.as_slice(), [one] if one.name == SINGLE);
        let unused = single && self.dir.join(INDEX).exists();
        let unused = unused.then(|| format!("`{INDEX}` is ignored, as `{SINGLE}` lies beside it"));
        unused.into_iter().chain(self.parts.side.note()).collect()
    }

    /// Paths of the files that belong into a pack as they are: tokenizer, chat template, generation config, licence,
    /// model card. Sorted by name.
    #[must_use]
    pub fn side_files(&self) -> Vec<PathBuf> {
        self.parts.side.files()
    }

    /// The name of the file that holds a plane: scales may lie in another one than their codes.
    #[must_use]
    pub fn file_of(&self, entry: &Entry, plane: usize) -> Option<&str> {
        self.place(entry, plane).ok().map(|(shard, _)| shard.name.as_str())
    }

    /// Where a plane lies, and the part of it that was asked for.
    fn place(&self, entry: &Entry, plane: usize) -> Result<(&Shard, Place), StoreError> {
        let index = self.parts.entries.binary_search_by(|e| e.name.cmp(&entry.name)).ok();
        let place = index.and_then(|i| self.parts.places.get(i)).and_then(|p| p.get(plane)).copied();
        let found = place.and_then(|p| Some((self.parts.shards.get(p.shard)?, p)));
        found.ok_or_else(|| StoreError::Unknown { tensor: entry.name.clone(), plane })
    }
}

impl TensorStore for Checkpoint {
    fn entries(&self) -> &[Entry] {
        &self.parts.entries
    }

    fn read(&self, entry: &Entry, plane: usize, offset: u64, out: &mut [u8]) -> Result<(), StoreError> {
        let (shard, place) = self.place(entry, plane)?;
        let end = offset.saturating_add(out.len() as u64);
        if end > place.bytes {
            return Err(StoreError::Range { tensor: entry.name.clone(), plane, offset, end, bytes: place.bytes });
        }
        let len = out.len() as u64;
        place
            .read(shard, offset, out)
            .map_err(|e| read_error(shard, entry, place.offset.saturating_add(offset), len, e))
    }

    fn map(&self, entry: &Entry, plane: usize) -> Result<Bytes, StoreError> {
        let (shard, place) = self.place(entry, plane)?;
        let fail = |e| read_error(shard, entry, place.offset, place.bytes, e);
        if !place.offset.is_multiple_of(place.element) || !place.is_plain() {
            // The header has an odd length (old exporters), or the bytes lie in another order: a copy is the price.
            let len = usize::try_from(place.bytes).ok();
            let mut copy =
                len.and_then(AlignedBytes::zeroed).ok_or_else(|| fail(std::io::ErrorKind::OutOfMemory.into()))?;
            self.read(entry, plane, 0, &mut copy)?;
            return Ok(copy.into());
        }
        let map = shard.map().map_err(fail)?;
        let range = usize::try_from(place.offset).ok().zip(usize::try_from(place.bytes).ok());
        // The file may have been cut since it was opened.
        range
            .and_then(|(start, len)| map.slice(start, len))
            .ok_or_else(|| fail(std::io::ErrorKind::UnexpectedEof.into()))
    }
}

fn read_error(shard: &Shard, entry: &Entry, offset: u64, len: u64, source: std::io::Error) -> StoreError {
    StoreError::Io { file: shard.name.clone(), tensor: entry.name.clone(), offset, len, source }
}

#[cfg(test)]
mod tests;
