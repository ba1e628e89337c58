//! The safetensors files of a checkpoint: headers read, weights paired with their scales, fused experts taken apart.

use crate::checkpoint::Parts;
use crate::find::{INDEX, Weights};
use crate::header::{Header, TensorInfo};
use crate::index::{MAX_INDEX, check_shard, parse_index};
use crate::place::{Form, Place};
use crate::quantized::{self, Claim, Tensors};
use crate::shard::Shard;
use crate::side::Side;
use crate::{SourceError, config};
use crate::{fp8, fused, nibbles};
use ashlar_tensor::{Dtype, Entry, Order, Plane, PlaneKind};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// Opens the shards of `dir`, beside its `config.json`.
pub fn open(dir: &Path, weights: Weights) -> Result<Parts, SourceError> {
    let (config, config_bytes) = config::read_config(dir)?;
    let mut open = Opening::default();
    open.identity.update(b"ashlar checkpoint 1");
    open.hash(&config_bytes);
    match weights {
        Weights::Single(name) => open.shard(&dir.join(&name), &name, None)?,
        _ => open.shards(dir)?,
    }
    let identity = open.identity.finalize().to_hex().to_string();
    let (entries, places) = open.pair(&config)?;
    Ok(Parts {
        config,
        shards: open.shards,
        entries,
        places,
        metadata: open.metadata,
        identity,
        kind: "safetensors".to_owned(),
        side: Side::own(dir),
    })
}

/// A tensor of some shard, before weights and scales are paired.
#[derive(Debug)]
pub struct Found {
    pub shard: usize,
    data_start: u64,
    pub info: TensorInfo,
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
        let scheme = quantized::scheme(config)?;
        let tensors = Tensors { found: &self.found, shards: &self.shards };
        for found in self.found.values() {
            let Found { info, .. } = found;
            if self.fused(found, &mut entries, &mut places)? {
                continue;
            }
            match scheme.as_ref().map_or(Ok(Claim::Plain), |scheme| scheme.claim(tensors, found))? {
                Claim::Plain => {}
                Claim::Part => continue,
                Claim::Weight(weight) => {
                    entries.push(self.entry(found, weight.name, weight.shape.to_vec(), weight.format, &weight.planes));
                    places.push(weight.planes.into_iter().map(|(_, place)| place).collect());
                    continue;
                }
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
                    let codes = Place { form: Form::Rows { stride: None, pairs: true }, ..found.place() };
                    ("mxfp4".to_owned(), vec![(PlaneKind::Codes, codes), (PlaneKind::Scales, scale.place())])
                }
                dtype => (dtype.name().to_ascii_lowercase(), vec![(PlaneKind::Values, found.place())]),
            };
            entries.push(self.entry(found, info.name.clone(), shape, format, &kinds));
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

    /// A weight whose codes or values `found` holds.
    fn entry(
        &self,
        found: &Found,
        name: String,
        shape: Vec<usize>,
        format: String,
        planes: &[(PlaneKind, Place)],
    ) -> Entry {
        let planes = planes.iter().map(|(kind, place)| Plane { kind: *kind, bytes: place.bytes }).collect();
        Entry { name, shape, format, order: Order::Rows, planes, file: self.file(found) }
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
                let part =
                    |found: &Found, row: usize, pairs| found.place().expert(expert, sizes.n, row as u64, *rows, pairs);
                let codes = part(blocks, sizes.blocks.saturating_mul(nibbles::BLOCK), true);
                let planes = [(PlaneKind::Codes, codes), (PlaneKind::Scales, part(scales, sizes.blocks, false))];
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
                let place = bias.place().expert(expert, n, bias.info.dtype.size() as u64, *rows, false);
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
    /// Where its bytes lie.
    pub fn place(&self) -> Place {
        Place {
            shard: self.shard,
            offset: self.data_start.saturating_add(self.info.begin),
            bytes: self.info.end.saturating_sub(self.info.begin),
            element: self.info.dtype.size() as u64,
            form: Form::Plain,
        }
    }
}
