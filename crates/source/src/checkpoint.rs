//! An open checkpoint: entries from the headers, bytes by positioned reads or maps.

use crate::find::{INDEX, SINGLE, Weights, find, side_files};
use crate::header::{Header, TensorInfo};
use crate::index::{MAX_INDEX, check_shard, parse_index};
use crate::shard::Shard;
use crate::strided::{self, Stride};
use crate::{SourceError, config};
use crate::{fp8, fused, nibbles};
use ashlar_tensor::{AlignedBytes, Bytes, Dtype, Entry, Order, Plane, PlaneKind, StoreError, TensorStore};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A Hugging Face checkpoint: `config.json` and safetensors files. Only headers are read when it is opened.
///
/// The files must not change while it is open: a map of a file that is truncated ends the process, as everywhere.
#[derive(Debug)]
pub struct Checkpoint {
    dir: PathBuf,
    config: Value,
    shards: Vec<Shard>,
    entries: Vec<Entry>,
    /// Where the planes of the entry of the same index lie.
    places: Vec<Vec<Place>>,
    metadata: BTreeMap<String, String>,
    identity: String,
}

/// A plane in a file.
#[derive(Clone, Copy, Debug)]
struct Place {
    shard: usize,
    /// From the start of the file.
    offset: u64,
    bytes: u64,
    /// Bytes of one element: what a map must be aligned to.
    element: u64,
    /// Where its rows do not follow one another.
    stride: Option<Stride>,
    /// Whether it holds 4-bit codes in pairs, see [`nibbles`].
    pairs: bool,
}

/// A tensor of some shard, before weights and scales are paired.
struct Found {
    shard: usize,
    data_start: u64,
    info: TensorInfo,
}

impl Checkpoint {
    /// Opens a checkpoint directory, or one `.safetensors` file with `config.json` beside it.
    ///
    /// # Errors
    /// [`SourceError`] for whatever is missing, damaged or not supported.
    pub fn open(path: &Path) -> Result<Self, SourceError> {
        let (dir, weights) = find(path)?;
        let (config, config_bytes) = config::read_config(&dir)?;
        let mut open = Opening::default();
        open.identity.update(b"ashlar checkpoint 1");
        open.hash(&config_bytes);
        match weights {
            Weights::Single(name) => open.shard(&dir.join(&name), &name, None)?,
            Weights::Sharded => open.shards(&dir)?,
        }
        let identity = open.identity.finalize().to_hex().to_string();
        let (entries, places) = open.pair(&config)?;
        Ok(Self { dir, config, shards: open.shards, entries, places, metadata: open.metadata, identity })
    }

    /// `config.json` as it stands, an object.
    #[must_use]
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// The directory of the checkpoint.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What the shards say in `__metadata__`; the first shard wins where they disagree.
    #[must_use]
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Hex BLAKE3 over config.json and every shard's name, size and header: the same model gives the same value
    /// wherever it lies. It does not cover the weights' bytes.
    #[must_use]
    pub fn identity(&self) -> String {
        self.identity.clone()
    }

    /// Name and size in bytes of every shard, in the order of their names.
    pub fn files(&self) -> impl Iterator<Item = (&str, u64)> {
        self.shards.iter().map(|s| (s.name.as_str(), s.len))
    }

    /// What the user should know of how the checkpoint was read: an index that lies beside the single file is not used.
    #[must_use]
    pub fn notes(&self) -> Vec<String> {
        let single = matches!(self.shards.as_slice(), [one] if one.name == SINGLE);
        let unused = single && self.dir.join(INDEX).exists();
        unused.then(|| format!("`{INDEX}` is ignored, as `{SINGLE}` lies beside it")).into_iter().collect()
    }

    /// Paths of the files that belong into a pack as they are: tokenizer, chat template, generation config, licence,
    /// model card. Sorted by name.
    #[must_use]
    pub fn side_files(&self) -> Vec<PathBuf> {
        side_files(&self.dir)
    }

    /// The name of the file that holds a plane: scales may lie in another one than their codes.
    #[must_use]
    pub fn file_of(&self, entry: &Entry, plane: usize) -> Option<&str> {
        self.place(entry, plane).ok().map(|(shard, _)| shard.name.as_str())
    }

    /// Where a plane lies, and the part of it that was asked for.
    fn place(&self, entry: &Entry, plane: usize) -> Result<(&Shard, Place), StoreError> {
        let index = self.entries.binary_search_by(|e| e.name.cmp(&entry.name)).ok();
        let place = index.and_then(|i| self.places.get(i)).and_then(|p| p.get(plane)).copied();
        let found = place.and_then(|p| Some((self.shards.get(p.shard)?, p)));
        found.ok_or_else(|| StoreError::Unknown { tensor: entry.name.clone(), plane })
    }
}

impl TensorStore for Checkpoint {
    fn entries(&self) -> &[Entry] {
        &self.entries
    }

    fn read(&self, entry: &Entry, plane: usize, offset: u64, out: &mut [u8]) -> Result<(), StoreError> {
        let (shard, place) = self.place(entry, plane)?;
        let end = offset.saturating_add(out.len() as u64);
        if end > place.bytes {
            return Err(StoreError::Range { tensor: entry.name.clone(), plane, offset, end, bytes: place.bytes });
        }
        let len = out.len() as u64;
        let read = if place.pairs { place.read_codes(shard, offset, out) } else { place.read(shard, offset, out) };
        read.map_err(|e| read_error(shard, entry, place.offset.saturating_add(offset), len, e))
    }

    fn map(&self, entry: &Entry, plane: usize) -> Result<Bytes, StoreError> {
        let (shard, place) = self.place(entry, plane)?;
        let fail = |e| read_error(shard, entry, place.offset, place.bytes, e);
        if !place.offset.is_multiple_of(place.element) || place.stride.is_some() || place.pairs {
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

/// What accumulates while shards are opened.
#[derive(Default)]
struct Opening {
    shards: Vec<Shard>,
    /// By name: unique over all shards.
    found: BTreeMap<String, Found>,
    metadata: BTreeMap<String, String>,
    identity: blake3::Hasher,
}

impl Opening {
    /// Length first, so that no two lists of texts hash alike.
    fn hash(&mut self, bytes: &[u8]) {
        self.identity.update(&(bytes.len() as u64).to_le_bytes());
        self.identity.update(bytes);
    }

    /// Every shard of the index.
    fn shards(&mut self, dir: &Path) -> Result<(), SourceError> {
        let bytes = config::read_json(&dir.join(INDEX), INDEX, MAX_INDEX)?;
        for (name, listed) in parse_index(&bytes, INDEX)? {
            let path = dir.join(&name);
            if !path.exists() {
                return Err(SourceError::MissingShard {
                    index: INDEX.to_owned(),
                    shard: name,
                    dir: dir.display().to_string(),
                    tensors: listed.len(),
                    tensor: listed.into_iter().next().unwrap_or_default(),
                });
            }
            self.shard(&path, &name, Some(&listed))?;
        }
        Ok(())
    }

    /// One file; `listed` is what the index expects in it.
    fn shard(&mut self, path: &Path, name: &str, listed: Option<&[String]>) -> Result<(), SourceError> {
        let shard = Shard::open(path, name)?;
        let (header, json) = Header::read(&shard)?;
        self.hash(name.as_bytes());
        self.identity.update(&shard.len.to_le_bytes());
        self.hash(&json);
        drop(json);
        let index = self.shards.len();
        self.shards.push(shard);
        // A tensor in two shards is told as such, before the index is found to disagree with one of them.
        if let Some((tensor, other)) = header.tensors.iter().find_map(|t| self.found.get_key_value(&t.name)) {
            let other = self.shards.get(other.shard).map(|s| s.name.clone()).unwrap_or_default();
            return Err(SourceError::TwoShards { tensor: tensor.clone(), shard: name.to_owned(), other });
        }
        if let Some(listed) = listed {
            check_shard(INDEX, name, listed, &header)?;
        }
        for (key, value) in header.metadata {
            self.metadata.entry(key).or_insert(value);
        }
        for info in header.tensors {
            self.found.insert(info.name.clone(), Found { shard: index, data_start: header.data_start, info });
        }
        Ok(())
    }

    fn file(&self, found: &Found) -> String {
        self.shards.get(found.shard).map(|s| s.name.clone()).unwrap_or_default()
    }

    /// Entries in the order of their names, with FP8 weights and scales paired.
    fn pair(&self, config: &Value) -> Result<(Vec<Entry>, Vec<Vec<Place>>), SourceError> {
        let (mut entries, mut places) = (Vec::new(), Vec::new());
        for found in self.found.values() {
            let Found { info, .. } = found;
            if self.fused(found, &mut entries, &mut places)? {
                continue;
            }
            if let Some((weight, surely)) = fp8::weight_of(&info.name)
                && (surely || self.is_scaled(&weight))
            {
                self.check_scale(found, &weight)?;
                continue;
            }
            let mut shape = info.shape.clone();
            let (format, kinds) = match info.dtype {
                Dtype::F8E4M3 => {
                    let scale = self.scale_of(found)?;
                    let block = fp8::block_size(config, &info.name)?;
                    let format = fp8::format(&self.file(found), info, &self.file(scale), &scale.info, block)?;
                    (format, vec![(PlaneKind::Codes, found.place()), (PlaneKind::Scales, scale.place())])
                }
                Dtype::I8 if self.is_scaled(&info.name) => {
                    let scale = self.scale_of(found)?;
                    let k = fp8::packed_inputs(&self.file(found), info, &scale.info)?;
                    if let Some(last) = shape.last_mut() {
                        *last = k;
                    }
                    let codes = Place { pairs: true, ..found.place() };
                    ("mxfp4".to_owned(), vec![(PlaneKind::Codes, codes), (PlaneKind::Scales, scale.place())])
                }
                dtype => (dtype.name().to_ascii_lowercase(), vec![(PlaneKind::Values, found.place())]),
            };
            entries.push(Entry {
                name: info.name.clone(),
                shape,
                format,
                order: Order::Rows,
                planes: kinds.iter().map(|(kind, place)| Plane { kind: *kind, bytes: place.bytes }).collect(),
                file: self.file(found),
            });
            places.push(kinds.into_iter().map(|(_, place)| place).collect());
        }
        // The names of fused experts are new ones.
        let mut both: Vec<_> = entries.into_iter().zip(places).collect();
        both.sort_by(|(a, _), (b, _)| a.name.cmp(&b.name));
        let twice = |pair: &&[(Entry, Vec<Place>)]| matches!(pair, [(a, _), (b, _)] if a.name == b.name);
        if let Some([(one, _), ..]) = both.windows(2).find(twice) {
            return Err(SourceError::FusedTwice { file: one.file.clone(), name: one.name.clone() });
        }
        Ok(both.into_iter().unzip())
    }

    /// Lists the experts of a fused tensor; false if it is none.
    fn fused(
        &self,
        found: &Found,
        entries: &mut Vec<Entry>,
        places: &mut Vec<Vec<Place>>,
    ) -> Result<bool, SourceError> {
        let name = found.info.name.as_str();
        let stem = |end: &str| Some((name.strip_suffix(end)?, name.strip_suffix(end).and_then(fused::split)?));
        let other = |stem: &str, end: &str| self.found.get(&format!("{stem}{end}"));
        if let Some((stem, _)) = stem(fused::SCALES).filter(|_| found.info.dtype == Dtype::U8) {
            return match other(stem, fused::BLOCKS) {
                Some(_) => Ok(true),
                None => Err(self.half(found, stem, fused::BLOCKS)),
            };
        }
        if let Some((stem, at)) = stem(fused::BLOCKS).filter(|_| found.info.dtype == Dtype::U8) {
            let scales = other(stem, fused::SCALES).ok_or_else(|| self.half(found, stem, fused::SCALES))?;
            self.fused_weights(found, scales, at, entries, places)?;
            return Ok(true);
        }
        if let Some((stem, at)) = stem(fused::BIAS).filter(|(stem, _)| other(stem, fused::BLOCKS).is_some()) {
            debug_assert!(!stem.is_empty());
            self.fused_biases(found, at, entries, places)?;
            return Ok(true);
        }
        Ok(false)
    }

    fn half(&self, found: &Found, stem: &str, end: &str) -> SourceError {
        let (file, tensor) = (self.file(found), found.info.name.clone());
        SourceError::FusedHalf { file, tensor, expected: format!("{stem}{end}") }
    }

    fn fused_weights(
        &self,
        blocks: &Found,
        scales: &Found,
        (path, name): (&str, &str),
        entries: &mut Vec<Entry>,
        places: &mut Vec<Vec<Place>>,
    ) -> Result<(), SourceError> {
        let file = self.file(blocks);
        let sizes = fused::sizes(&file, &blocks.info, &scales.info)?;
        let parts = fused::projections(name);
        let n = sizes.n.checked_div(parts.len()).unwrap_or(0);
        fused::check_count(&file, &blocks.info, entries.len().saturating_add(sizes.experts.saturating_mul(2)))?;
        for expert in 0..sizes.experts {
            for (projection, rows) in &parts {
                let part = |found: &Found, row: usize| found.place().expert(expert, sizes.n, row as u64, *rows);
                let codes = Place { pairs: true, ..part(blocks, sizes.blocks.saturating_mul(nibbles::BLOCK)) };
                let planes = [(PlaneKind::Codes, codes), (PlaneKind::Scales, part(scales, sizes.blocks))];
                entries.push(Entry {
                    name: format!("{path}.{expert}.{projection}.weight"),
                    shape: vec![n, sizes.blocks.saturating_mul(32)],
                    format: "mxfp4".to_owned(),
                    order: Order::Rows,
                    planes: planes.iter().map(|(kind, p)| Plane { kind: *kind, bytes: p.bytes }).collect(),
                    file: file.clone(),
                });
                places.push(planes.into_iter().map(|(_, place)| place).collect());
            }
        }
        Ok(())
    }

    fn fused_biases(
        &self,
        bias: &Found,
        (path, name): (&str, &str),
        entries: &mut Vec<Entry>,
        places: &mut Vec<Vec<Place>>,
    ) -> Result<(), SourceError> {
        let file = self.file(bias);
        let [experts, n] = fused::bias_sizes(&file, &bias.info)?;
        let parts = fused::projections(name);
        fused::check_count(&file, &bias.info, entries.len().saturating_add(experts.saturating_mul(2)))?;
        for expert in 0..experts {
            for (projection, rows) in &parts {
                let place = bias.place().expert(expert, n, bias.info.dtype.size() as u64, *rows);
                entries.push(Entry {
                    name: format!("{path}.{expert}.{projection}.bias"),
                    shape: vec![n.checked_div(parts.len()).unwrap_or(0)],
                    format: bias.info.dtype.name().to_ascii_lowercase(),
                    order: Order::Rows,
                    planes: vec![Plane { kind: PlaneKind::Values, bytes: place.bytes }],
                    file: file.clone(),
                });
                places.push(vec![place]);
            }
        }
        Ok(())
    }

    /// Whether there is a weight of that name in codes of 8 or 4 bits, with scales of E8M0 or under FP8's usual name.
    fn is_scaled(&self, weight: &str) -> bool {
        let scales = || fp8::scale_names(weight).into_iter().filter_map(|name| self.found.get(&name));
        match self.found.get(weight).map(|w| w.info.dtype) {
            Some(Dtype::F8E4M3) => true,
            Some(Dtype::I8) => scales().any(|scale| scale.info.dtype == Dtype::F8E8M0),
            _ => false,
        }
    }

    /// The scales of a weight that has some.
    fn scale_of(&self, weight: &Found) -> Result<&Found, SourceError> {
        let names = fp8::scale_names(&weight.info.name);
        names.iter().find_map(|name| self.found.get(name)).ok_or_else(|| SourceError::ScaleMissing {
            file: self.file(weight),
            tensor: weight.info.name.clone(),
            expected: names.into_iter().next().unwrap_or_default(),
        })
    }

    /// Scales are listed with their weight, which must exist and be FP8.
    fn check_scale(&self, scale: &Found, weight: &str) -> Result<(), SourceError> {
        let got = match self.found.get(weight).map(|w| w.info.dtype) {
            Some(Dtype::F8E4M3) => return Ok(()),
            Some(Dtype::I8) if self.is_scaled(weight) => return Ok(()),
            Some(other) => format!("one of dtype {other}"),
            None => "none".to_owned(),
        };
        let (file, tensor) = (self.file(scale), scale.info.name.clone());
        Err(SourceError::ScaleOrphan { file, tensor, expected: weight.to_owned(), got })
    }
}

impl Found {
    fn place(&self) -> Place {
        Place {
            shard: self.shard,
            offset: self.data_start.saturating_add(self.info.begin),
            bytes: self.info.end.saturating_sub(self.info.begin),
            element: self.info.dtype.size() as u64,
            stride: None,
            pairs: false,
        }
    }
}

impl Place {
    /// Bytes of the plane from `offset` on, as the file has them.
    fn read(&self, shard: &Shard, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
        match self.stride {
            Some(stride) => strided::read(shard, self.offset, stride, offset, out),
            None => shard.read_exact_at(out, self.offset.saturating_add(offset)),
        }
    }

    /// As [`Place::read`], of codes in pairs.
    fn read_codes(&self, shard: &Shard, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
        let block = nibbles::BLOCK as u64;
        let before = offset.checked_rem(block).and_then(|b| usize::try_from(b).ok()).unwrap_or(0);
        if before == 0 && out.len().is_multiple_of(nibbles::BLOCK) {
            self.read(shard, offset, out)?;
            nibbles::to_halves(out);
            return Ok(());
        }
        // Part of a block cannot be reordered alone.
        let mut whole = vec![0; before.saturating_add(out.len()).next_multiple_of(nibbles::BLOCK)];
        self.read(shard, offset.saturating_sub(before as u64), &mut whole)?;
        nibbles::to_halves(&mut whole);
        for (to, from) in out.iter_mut().zip(whole.iter().skip(before)) {
            *to = *from;
        }
        Ok(())
    }

    /// The rows `rows` of one expert, of a plane that holds `n` rows of `row` bytes for each.
    fn expert(self, expert: usize, n: usize, row: u64, rows: fused::Rows) -> Self {
        let expert_bytes = (n as u64).saturating_mul(row);
        let first = expert_bytes.saturating_mul(expert as u64).saturating_add(rows.first.saturating_mul(row));
        let stride = (rows.step > 1).then(|| Stride { row, pitch: row.saturating_mul(rows.step) });
        Self {
            offset: self.offset.saturating_add(first),
            bytes: expert_bytes.checked_div(rows.step).unwrap_or(0),
            stride,
            ..self
        }
    }
}

#[cfg(test)]
mod tests;
