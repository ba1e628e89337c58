//! The planner: from sizes to offsets. Pure; nothing is read or written.
//!
//! Order of records: first the small ones (norms, biases: below 256 KiB), so that one read fetches them all; then the
//! dense weights in execution order, as a loader wants them; experts last, layer by layer, so that what may stay on
//! disk lies in shards of its own.

use crate::error::PackError;
use crate::header::{self, HeaderEntry};
use ashlar_tensor::{Dtype, Order, Plane, PlaneKind};
use std::collections::HashSet;

/// Planes and records start at multiples of this.
pub(crate) const ALIGN: u64 = 64;
/// Records of at least [`BIG_RECORD`] bytes start at multiples of this.
pub(crate) const BIG_ALIGN: u64 = 4096;
/// From this size on a record is page-aligned.
pub(crate) const BIG_RECORD: u64 = 256 << 10;
/// Default bound on the data section of a shard.
pub const DEFAULT_SHARD_BYTES: u64 = 4 << 30;
/// Entries per shard, so that a header stays far below the 100 MB that readers accept.
const MAX_ENTRIES: usize = 100_000;
/// Bound on the sum of all records: far above any disk, far below where offsets could overflow.
const MAX_TOTAL: u64 = 1 << 60;
/// Names that begin so are padding.
pub(crate) const PADDING: &str = "ashlar.padding.";

/// How a tensor is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// Plain values under their own dtype and shape, row-major.
    Plain(Dtype),
    /// U8: these planes in x16 order, each at the next multiple of 64 bytes.
    Planes(Vec<Plane>),
}

/// A tensor to be stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// The checkpoint's name.
    pub name: String,
    /// Logical shape.
    pub shape: Vec<usize>,
    /// What the bits mean; opaque here.
    pub format: String,
    /// How it is stored.
    pub content: Content,
}

/// What is to be read at once: one dense weight, or one expert.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordSpec {
    /// Layer index, where it belongs to one.
    pub layer: Option<usize>,
    /// Expert index, for experts.
    pub expert: Option<usize>,
    /// Its tensors, contiguous in this order.
    pub tensors: Vec<TensorSpec>,
}

/// One plane of a stored tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredPlane {
    /// What the bytes are.
    pub kind: PlaneKind,
    /// First byte, from the start of the tensor.
    pub offset: u64,
    /// Length in bytes.
    pub bytes: u64,
}

/// A stored tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// The checkpoint's name.
    pub name: String,
    /// Logical shape.
    pub shape: Vec<usize>,
    /// What the bits mean; opaque here.
    pub format: String,
    /// Rows for plain values, X16 for planes.
    pub order: Order,
    /// The dtype of the safetensors entry.
    pub dtype: Dtype,
    /// First byte, from the start of the shard.
    pub offset: u64,
    /// Length in bytes, alignment after the last plane included.
    pub bytes: u64,
    /// Its planes.
    pub planes: Vec<StoredPlane>,
}

/// A stored record.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// Index of its shard.
    pub shard: usize,
    /// First byte, from the start of the shard.
    pub offset: u64,
    /// Length in bytes, alignment between tensors included.
    pub bytes: u64,
    /// Layer index, where it belongs to one.
    pub layer: Option<usize>,
    /// Expert index, for experts.
    pub expert: Option<usize>,
    /// Its tensors, by offset.
    pub tensors: Vec<Tensor>,
}

impl Record {
    /// The bytes of the record that belong to no plane: (offset from the record's start, length). They are zero.
    #[must_use]
    pub fn gaps(&self) -> Vec<(u64, u64)> {
        let mut gaps = Vec::new();
        let mut at = 0;
        for (offset, bytes) in
            self.tensors.iter().flat_map(|t| t.planes.iter().map(|p| (t.offset + p.offset - self.offset, p.bytes)))
        {
            if offset > at {
                gaps.push((at, offset - at));
            }
            at = offset + bytes;
        }
        if self.bytes > at {
            gaps.push((at, self.bytes - at));
        }
        gaps
    }
}

/// A shard: its name, size and complete header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shard {
    /// File name.
    pub file: String,
    /// File size.
    pub bytes: u64,
    /// The first bytes of the file: length, JSON, spaces; a multiple of 4096.
    pub header: Vec<u8>,
}

/// Every offset of a pack.
#[derive(Clone, Debug, PartialEq)]
pub struct Layout {
    /// The shards.
    pub shards: Vec<Shard>,
    /// The records, in file order.
    pub records: Vec<Record>,
}

impl Layout {
    /// Bytes of all shards, headers and padding included; manifest, config and copied files are not.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.shards.iter().map(|s| s.bytes).sum()
    }

    /// A hash of every name, size and offset: equal layouts put equal bytes in equal places.
    #[must_use]
    pub fn hash(&self) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        for shard in &self.shards {
            hasher.update(&shard.bytes.to_le_bytes()).update(&shard.header);
        }
        for t in self.records.iter().flat_map(|r| &r.tensors) {
            let planes: Vec<(u64, u64)> = t.planes.iter().map(|p| (p.offset, p.bytes)).collect();
            hasher.update(format!("{:?}", (&t.name, &t.shape, &t.format, t.offset, planes)).as_bytes());
        }
        hasher.finalize()
    }
}

/// The name of shard `index` (from 0) of `count`.
pub(crate) fn shard_name(index: usize, count: usize) -> String {
    format!("ashlar-{:05}-of-{count:05}.safetensors", index + 1)
}

/// Decides where everything lies. No shard's data section exceeds `max_shard_bytes`, except that a record larger than
/// that gets a shard of its own: records are never split.
///
/// # Errors
/// [`PackError::Layout`] for duplicate or reserved names and sizes that overflow.
pub fn plan_layout(records: Vec<RecordSpec>, max_shard_bytes: u64) -> Result<Layout, PackError> {
    check_names(&records)?;
    let (mut placed, mut total) = (Vec::new(), 0u64);
    for spec in records {
        let record = place(spec)?;
        total = total.checked_add(record.bytes).filter(|t| *t <= MAX_TOTAL).ok_or_else(|| too_large(&record))?;
        placed.push(record);
    }
    placed.sort_by_key(|r| match (r.expert, r.bytes) {
        (Some(_), _) => 2,
        (None, BIG_RECORD..) => 1,
        _ => 0,
    });
    let mut open = OpenShard::default();
    let mut shards = Vec::new();
    for record in &mut placed {
        let mut start = align(open.end, record_align(record.bytes));
        let end = start + record.bytes;
        if (end > max_shard_bytes || open.entries.len() + 2 * record.tensors.len() > MAX_ENTRIES) && open.end > 0 {
            shards.push(std::mem::take(&mut open));
            start = 0;
        }
        record.shard = shards.len();
        open.push(record, start);
    }
    shards.push(open);
    finish(shards, placed)
}

fn finish(shards: Vec<OpenShard>, mut records: Vec<Record>) -> Result<Layout, PackError> {
    let count = shards.len();
    let mut out = Vec::new();
    for (index, shard) in shards.into_iter().enumerate() {
        let header = header::write(&shard.entries);
        out.push(Shard { file: shard_name(index, count), bytes: header.len() as u64 + shard.end, header });
    }
    for record in &mut records {
        let data = out.get(record.shard).map_or(0, |s| s.header.len() as u64);
        record.offset += data;
        record.tensors.iter_mut().for_each(|t| t.offset += data);
    }
    Ok(Layout { shards: out, records })
}

fn check_names(records: &[RecordSpec]) -> Result<(), PackError> {
    let mut seen = HashSet::new();
    for t in records.iter().flat_map(|r| &r.tensors) {
        let error = |what: &str| PackError::Layout { tensor: t.name.clone(), what: what.into() };
        if t.name.starts_with(PADDING) || t.name == header::METADATA {
            return Err(error("the name is reserved"));
        }
        if !seen.insert(t.name.as_str()) {
            return Err(error("the name occurs twice"));
        }
    }
    Ok(())
}

/// Offsets from the record's own start.
fn place(spec: RecordSpec) -> Result<Record, PackError> {
    let mut record =
        Record { shard: 0, offset: 0, bytes: 0, layer: spec.layer, expert: spec.expert, tensors: Vec::new() };
    for t in spec.tensors {
        let too_large = || PackError::Layout { tensor: t.name.clone(), what: "its size overflows 64 bits".into() };
        let offset = align(record.bytes, ALIGN);
        let (dtype, order, planes, bytes) = match &t.content {
            Content::Plain(dtype) => {
                let size = t
                    .shape
                    .iter()
                    .try_fold(dtype.size() as u64, |a, &d| a.checked_mul(d as u64))
                    .ok_or_else(too_large)?;
                (*dtype, Order::Rows, vec![StoredPlane { kind: PlaneKind::Values, offset: 0, bytes: size }], size)
            }
            Content::Planes(planes) => {
                let mut at = 0u64;
                let mut stored = Vec::new();
                for p in planes {
                    stored.push(StoredPlane { kind: p.kind, offset: at, bytes: p.bytes });
                    at = at
                        .checked_add(p.bytes)
                        .and_then(|e| e.checked_next_multiple_of(ALIGN))
                        .ok_or_else(too_large)?;
                }
                (Dtype::U8, Order::X16, stored, at)
            }
        };
        record.bytes = offset.checked_add(bytes).filter(|b| *b <= MAX_TOTAL).ok_or_else(too_large)?;
        record.tensors.push(Tensor {
            name: t.name,
            shape: t.shape,
            format: t.format,
            order,
            dtype,
            offset,
            bytes,
            planes,
        });
    }
    Ok(record)
}

fn align(at: u64, to: u64) -> u64 {
    at.next_multiple_of(to)
}

/// What the start of a record of that size is a multiple of.
pub(crate) fn record_align(bytes: u64) -> u64 {
    if bytes >= BIG_RECORD { BIG_ALIGN } else { ALIGN }
}

fn too_large(record: &Record) -> PackError {
    let tensor = record.tensors.first().map(|t| t.name.clone()).unwrap_or_default();
    PackError::Layout { tensor, what: format!("with it the pack exceeds {MAX_TOTAL} bytes") }
}

/// A shard being filled; offsets from its data section.
#[derive(Default)]
struct OpenShard {
    end: u64,
    entries: Vec<HeaderEntry>,
    paddings: usize,
}

impl OpenShard {
    fn push(&mut self, record: &mut Record, start: u64) {
        record.offset = start;
        for t in &mut record.tensors {
            t.offset += start;
            self.pad_to(t.offset);
            let shape = if t.order == Order::X16 { vec![t.bytes] } else { t.shape.iter().map(|&d| d as u64).collect() };
            self.entries.push(HeaderEntry {
                name: t.name.clone(),
                dtype: t.dtype,
                shape,
                start: t.offset,
                end: t.offset + t.bytes,
            });
            self.end = t.offset + t.bytes;
        }
    }

    fn pad_to(&mut self, to: u64) {
        if to > self.end {
            let name = format!("{PADDING}{:05}", self.paddings);
            self.paddings += 1;
            self.entries.push(HeaderEntry {
                name,
                dtype: Dtype::U8,
                shape: vec![to - self.end],
                start: self.end,
                end: to,
            });
        }
    }
}
