//! `ashlar.json`: what a pack holds and where. Deterministic: no time, path, host or thread count.

use crate::error::PackError;
use crate::layout::{Layout, Record, StoredPlane, Tensor, shard_name};
use ashlar_tensor::{Dtype, Order, PlaneKind};
use blake3::Hash;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// The major version of the format that this build writes and reads.
pub const VERSION: u64 = 1;
/// The manifest's file name.
pub const MANIFEST_FILE: &str = "ashlar.json";
/// Bound on the manifest's size; a million tensors take about 300 MB.
pub(crate) const MAX_MANIFEST: u64 = 1 << 30;

/// A record with its checksum.
#[derive(Clone, Debug, PartialEq)]
pub struct SealedRecord {
    /// Where it lies and what it holds.
    pub record: Record,
    /// BLAKE3 of its bytes.
    pub blake3: Hash,
    /// For tensors stored losslessly but in another order: BLAKE3 of the source's own planes, one after the other.
    pub source_blake3: BTreeMap<String, Hash>,
}

/// The contents of `ashlar.json`.
#[derive(Clone, Debug, PartialEq)]
pub struct Manifest {
    /// What wrote it, such as `ashlar 0.1.0`.
    pub generator: String,
    /// Identity of the source checkpoint (a hash; no path).
    pub source: String,
    /// The source's own `config.json`.
    pub config: Value,
    /// The resolved recipe.
    pub recipe: String,
    /// File name and size of every shard.
    pub shards: Vec<(String, u64)>,
    /// Every record, in file order.
    pub records: Vec<SealedRecord>,
    /// What the converter measured; opaque here, `null` when nothing.
    pub measured: Value,
}

/// The `config.json` of a pack: the source's, marked so that nothing takes the pack for a plain checkpoint.
#[must_use]
pub fn pack_config(config: &Value) -> Value {
    let mut config = config.clone();
    if let Some(map) = config.as_object_mut() {
        map.insert("quantization_config".into(), json!({"quant_method": "ashlar", "version": VERSION}));
    }
    config
}

impl Manifest {
    /// The bytes of `ashlar.json`: one line per record, so that it can be looked at and compared.
    #[must_use]
    pub fn to_json(&self) -> String {
        let shards: Vec<RawShard> =
            self.shards.iter().map(|(file, bytes)| RawShard { file: file.clone(), bytes: *bytes }).collect();
        let records: Vec<String> = self.records.iter().map(|r| text(&RawRecord::from(r))).collect();
        format!(
            "{{\n\"format_version\": {VERSION},\n\"generator\": {},\n\"source\": {},\n\"config\": {},\n\"recipe\": {},\n\"measured\": {},\n\"shards\": {},\n\"records\": [\n{}\n]\n}}\n",
            text(&self.generator),
            text(&self.source),
            text(&self.config),
            text(&self.recipe),
            text(&self.measured),
            text(&shards),
            records.join(",\n")
        )
    }

    /// Parses and checks everything that can be checked without the shards.
    ///
    /// # Errors
    /// [`PackError::Version`] for another major version, [`PackError::Malformed`] for everything else.
    pub fn parse(bytes: &[u8], path: &Path) -> Result<Self, PackError> {
        let bad = |what: String| PackError::malformed(path, what);
        // The version is looked at alone first: the rest of another version may have any form.
        let version: RawVersion = serde_json::from_slice(bytes).map_err(|e| bad(format!("no ashlar manifest: {e}")))?;
        if version.format_version != VERSION {
            return Err(PackError::Version {
                path: path.to_owned(),
                found: version.format_version,
                supported: VERSION,
            });
        }
        let raw: RawManifest = serde_json::from_slice(bytes).map_err(|e| bad(format!("no ashlar manifest: {e}")))?;
        let count = raw.shards.len();
        for (index, shard) in raw.shards.iter().enumerate() {
            if shard.file != shard_name(index, count) {
                return Err(bad(format!(
                    "shard {index} is called `{}`, expected `{}`",
                    shard.file,
                    shard_name(index, count)
                )));
            }
        }
        let mut records = Vec::new();
        for (index, record) in raw.records.into_iter().enumerate() {
            records.push(record.check(count).map_err(|e| bad(format!("record {index}: {e}")))?);
        }
        Ok(Self {
            generator: raw.generator,
            source: raw.source,
            config: raw.config,
            recipe: raw.recipe,
            shards: raw.shards.into_iter().map(|s| (s.file, s.bytes)).collect(),
            records,
            measured: raw.measured,
        })
    }

    /// The shard list of a layout.
    #[must_use]
    pub fn shards_of(layout: &Layout) -> Vec<(String, u64)> {
        layout.shards.iter().map(|s| (s.file.clone(), s.bytes)).collect()
    }
}

fn text(value: &impl Serialize) -> String {
    // Strings, numbers, lists and maps with string keys: serialisation cannot fail.
    serde_json::to_string(value).unwrap_or_default()
}

#[derive(Deserialize)]
struct RawVersion {
    format_version: u64,
}

#[derive(Deserialize)]
struct RawManifest {
    generator: String,
    source: String,
    config: Value,
    recipe: String,
    #[serde(default)]
    measured: Value,
    shards: Vec<RawShard>,
    records: Vec<RawRecord>,
}

#[derive(Serialize, Deserialize)]
struct RawShard {
    file: String,
    bytes: u64,
}

#[derive(Serialize, Deserialize)]
struct RawRecord {
    shard: usize,
    offset: u64,
    bytes: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    layer: Option<usize>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expert: Option<usize>,
    blake3: String,
    tensors: Vec<RawTensor>,
}

#[derive(Serialize, Deserialize)]
struct RawTensor {
    name: String,
    shape: Vec<usize>,
    format: String,
    order: String,
    dtype: String,
    offset: u64,
    bytes: u64,
    planes: Vec<RawPlane>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    source_blake3: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct RawPlane {
    kind: String,
    offset: u64,
    bytes: u64,
}

const ORDERS: &[(Order, &str)] = &[(Order::Rows, "rows"), (Order::X16, "x16")];
const KINDS: &[(PlaneKind, &str)] = &[
    (PlaneKind::Values, "values"),
    (PlaneKind::Codes, "codes"),
    (PlaneKind::HighCodes, "high_codes"),
    (PlaneKind::Scales, "scales"),
    (PlaneKind::OuterScales, "outer_scales"),
    (PlaneKind::Zeros, "zeros"),
    (PlaneKind::Outliers, "outliers"),
];

fn name_of<T: Copy + PartialEq>(table: &[(T, &str)], value: T) -> String {
    table.iter().find(|(v, _)| *v == value).map_or("", |(_, n)| n).to_owned()
}

fn value_of<T: Copy>(table: &[(T, &str)], what: &str, name: &str) -> Result<T, String> {
    table.iter().find(|(_, n)| *n == name).map(|(v, _)| *v).ok_or_else(|| format!("unknown {what} `{name}`"))
}

impl From<&SealedRecord> for RawRecord {
    fn from(sealed: &SealedRecord) -> Self {
        let r = &sealed.record;
        let tensor = |t: &Tensor| RawTensor {
            name: t.name.clone(),
            shape: t.shape.clone(),
            format: t.format.clone(),
            order: name_of(ORDERS, t.order),
            dtype: t.dtype.name().to_owned(),
            offset: t.offset,
            bytes: t.bytes,
            planes: t
                .planes
                .iter()
                .map(|p| RawPlane { kind: name_of(KINDS, p.kind), offset: p.offset, bytes: p.bytes })
                .collect(),
            source_blake3: sealed.source_blake3.get(&t.name).map(|h| h.to_hex().to_string()),
        };
        Self {
            shard: r.shard,
            offset: r.offset,
            bytes: r.bytes,
            layer: r.layer,
            expert: r.expert,
            blake3: sealed.blake3.to_hex().to_string(),
            tensors: r.tensors.iter().map(tensor).collect(),
        }
    }
}

impl RawRecord {
    fn check(self, shards: usize) -> Result<SealedRecord, String> {
        if self.shard >= shards {
            return Err(format!("is in shard {} of {shards}", self.shard));
        }
        let align = crate::layout::record_align(self.bytes);
        if !self.offset.is_multiple_of(align) {
            return Err(format!("starts at {}, expected a multiple of {align}", self.offset));
        }
        let end = self.offset.checked_add(self.bytes).ok_or("its end overflows")?;
        let blake3 = hash(&self.blake3)?;
        let (mut tensors, mut source_blake3, mut at) = (Vec::new(), BTreeMap::new(), self.offset);
        for raw in self.tensors {
            if let Some(h) = &raw.source_blake3 {
                source_blake3.insert(raw.name.clone(), hash(h)?);
            }
            let name = raw.name.clone();
            let t = raw.check().map_err(|e| format!("tensor `{name}`: {e}"))?;
            if t.offset < at || t.offset + t.bytes > end {
                return Err(format!(
                    "tensor `{name}`: bytes {}..{} overlap or leave the record",
                    t.offset,
                    t.offset + t.bytes
                ));
            }
            at = t.offset + t.bytes;
            tensors.push(t);
        }
        if tensors.first().map(|t| t.offset) != Some(self.offset) || at != end {
            return Err(format!("its tensors end at {at}, the record at {end}"));
        }
        let (shard, offset, bytes, layer, expert) = (self.shard, self.offset, self.bytes, self.layer, self.expert);
        Ok(SealedRecord { record: Record { shard, offset, bytes, layer, expert, tensors }, blake3, source_blake3 })
    }
}

impl RawTensor {
    fn check(self) -> Result<Tensor, String> {
        self.offset.checked_add(self.bytes).ok_or("its end overflows")?;
        let order = value_of(ORDERS, "order", &self.order)?;
        let dtype = Dtype::from_name(&self.dtype).ok_or_else(|| format!("unknown dtype `{}`", self.dtype))?;
        if self.name.is_empty() || self.name.chars().any(char::is_control) {
            return Err("its name is empty or not printable".into());
        }
        // What `Entry` promises: dimensions may be multiplied in any order.
        let product = self.shape.iter().filter(|d| **d != 0).try_fold(dtype.size(), |a, &d| a.checked_mul(d));
        if product.is_none_or(|p| p > isize::MAX as usize / 4) {
            return Err(format!("its shape {:?} overflows", self.shape));
        }
        let elements =
            self.shape.iter().try_fold(1u64, |a, &d| a.checked_mul(d as u64)).ok_or("its shape overflows")?;
        let (mut planes, mut at) = (Vec::new(), 0u64);
        for p in self.planes {
            let kind = value_of(KINDS, "plane kind", &p.kind)?;
            let end = p.offset.checked_add(p.bytes).filter(|e| *e <= self.bytes).ok_or("a plane leaves the tensor")?;
            if p.offset < at || p.offset % crate::layout::ALIGN != 0 {
                return Err(format!("a plane starts at {}: it overlaps or is not 64-byte aligned", p.offset));
            }
            at = end;
            planes.push(StoredPlane { kind, offset: p.offset, bytes: p.bytes });
        }
        let plain = order == Order::Rows;
        if plain
            && (elements.checked_mul(dtype.size() as u64) != Some(self.bytes) || planes.len() != 1 || at != self.bytes)
        {
            return Err(format!("{dtype} {:?} does not fill {} bytes", self.shape, self.bytes));
        }
        if !plain && dtype != Dtype::U8 {
            return Err(format!("x16 planes are stored as U8, not {dtype}"));
        }
        let Self { name, shape, format, offset, bytes, .. } = self;
        Ok(Tensor { name, shape, format, order, dtype, offset, bytes, planes })
    }
}

fn hash(hex: &str) -> Result<Hash, String> {
    Hash::from_hex(hex).map_err(|e| format!("`{hex}` is no BLAKE3 hash: {e}"))
}
