//! The safetensors header, read without trust.
//!
//! ```text
//! u64 LE n | n bytes of JSON, first byte `{`, padded with spaces | data: the tensors, end to end
//! {"__metadata__": {"key": "text"}, "NAME": {"dtype": "BF16", "shape": [n, k], "data_offsets": [begin, end]}, …}
//! ```
//! Offsets count from the first data byte. The tensors must tile the data: no overlap, no hole, nothing after the last.
//! serde_json keeps the last of two equal keys, so the header is read by visitors that see every key.

use crate::SourceError;
use crate::shard::{Shard, buffer};
use crate::text::{check_name, clip, json_message};
use ashlar_tensor::Dtype;
use serde::Deserialize;
use serde::de::{Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

/// Largest header that is read, as in the safetensors reference.
const MAX_HEADER: u64 = 100_000_000;
/// Most dimensions of a tensor, as in PyTorch and NumPy.
const MAX_RANK: usize = 64;
/// Bytes of the length field.
const PREFIX: u64 = 8;

/// The header of one safetensors file, checked against the file's size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// `__metadata__`.
    pub metadata: BTreeMap<String, String>,
    /// Every tensor, sorted by name, names unique.
    pub tensors: Vec<TensorInfo>,
    /// Where the data section starts in the file, in bytes.
    pub data_start: u64,
}

/// One tensor of a safetensors file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Printable, not empty, at most 1024 bytes.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Dimensions; the product of those that are not zero, times the element size, fits `isize`.
    pub shape: Vec<usize>,
    /// First byte in the data section.
    pub begin: u64,
    /// One past the last byte; `end - begin` is what dtype and shape need.
    pub end: u64,
}

impl Header {
    /// Reads and checks the header of an open file; also returns its JSON bytes (for the identity).
    pub(crate) fn read(file: &Shard) -> Result<(Self, Vec<u8>), SourceError> {
        let io = |source| SourceError::Io { path: file.name.clone(), action: "read the header of", source };
        let Some(rest) = file.len.checked_sub(PREFIX) else {
            return Err(SourceError::TooShort { file: file.name.clone(), got: file.len });
        };
        let mut prefix = [0; 8];
        file.read_exact_at(&mut prefix, 0).map_err(io)?;
        let len = u64::from_le_bytes(prefix);
        let (max, why) = if rest < MAX_HEADER { (rest, "the rest of the file") } else { (MAX_HEADER, "the limit") };
        if len > max {
            return Err(SourceError::HeaderLength { file: file.name.clone(), got: len, max, why });
        }
        let mut json = buffer(&file.name, "the header", len)?;
        file.read_exact_at(&mut json, PREFIX).map_err(io)?;
        Ok((Self::parse(&file.name, &json, rest.saturating_sub(len))?, json))
    }

    /// Checks the JSON part of a header. `file` is the name messages show, `data_len` the number of bytes that follow
    /// the header in the file.
    ///
    /// # Errors
    /// [`SourceError`] for whatever the safetensors specification forbids; also for unknown dtypes and names that
    /// cannot be printed.
    pub fn parse(file: &str, json: &[u8], data_len: u64) -> Result<Self, SourceError> {
        let refuse = |message| SourceError::Header { file: file.to_owned(), message };
        // The specification wants it, and it tells a header from other JSON at once.
        if json.first() != Some(&b'{') {
            return Err(refuse("expected the JSON to begin with `{`".to_owned()));
        }
        let raw: Raw<'_> = serde_json::from_slice(json).map_err(|e| refuse(json_message(&e)))?;
        let mut tensors = Vec::new();
        for (name, tensor) in raw.tensors {
            tensors.push(check_tensor(file, name.into_owned(), &tensor)?);
        }
        tensors.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        let twice = tensors.windows(2).find_map(|pair| match pair {
            [a, b] if a.name == b.name => Some(a),
            _ => None,
        });
        if let Some(twice) = twice {
            return Err(SourceError::Duplicate { file: file.to_owned(), tensor: twice.name.clone() });
        }
        let data_start = PREFIX.saturating_add(json.len() as u64);
        check_tiling(file, &tensors, data_start, data_len)?;
        Ok(Self { metadata: raw.metadata.unwrap_or_default(), tensors, data_start })
    }
}

/// One tensor by itself: name, dtype, shape, length of its range.
fn check_tensor(file: &str, name: String, raw: &RawTensor<'_>) -> Result<TensorInfo, SourceError> {
    check_name(file, &name)?;
    let file = file.to_owned();
    let Some(dtype) = Dtype::from_name(&raw.dtype) else {
        let expected = Dtype::all().map(Dtype::name).collect::<Vec<_>>().join(", ");
        return Err(SourceError::Dtype { file, tensor: name, got: clip(&raw.dtype, 40), expected });
    };
    let Some((shape, expected)) = size(&raw.shape.0, dtype) else {
        return Err(SourceError::ShapeOverflow { file, tensor: name, shape: raw.shape.0.clone(), dtype: dtype.name() });
    };
    let (begin, end) = raw.data_offsets;
    let Some(got) = end.checked_sub(begin) else {
        return Err(SourceError::Backwards { file, tensor: name, begin, end });
    };
    if got != expected {
        let dtype = dtype.name();
        return Err(SourceError::RangeSize { file, tensor: name, dtype, shape, expected, got, begin });
    }
    Ok(TensorInfo { name, dtype, shape, begin, end })
}

/// The shape in native words and the bytes it needs. Zero dimensions make the size zero but do not excuse the others:
/// callers multiply dimensions in any order and must not overflow.
fn size(shape: &[u64], dtype: Dtype) -> Option<(Vec<usize>, u64)> {
    let mut bytes = dtype.size();
    let mut dims = Vec::new();
    for &dim in shape {
        let dim = usize::try_from(dim).ok()?;
        bytes = bytes.checked_mul(dim.max(1)).filter(|&b| isize::try_from(b).is_ok())?;
        dims.push(dim);
    }
    let bytes = if dims.contains(&0) { 0 } else { bytes };
    Some((dims, bytes as u64))
}

/// The ranges together: they must cover the data section exactly.
fn check_tiling(file: &str, tensors: &[TensorInfo], data_start: u64, data_len: u64) -> Result<(), SourceError> {
    let mut by_offset: Vec<&TensorInfo> = tensors.iter().collect();
    by_offset.sort_unstable_by_key(|t| (t.begin, t.end));
    let outside = by_offset.iter().copied().find(|t| t.end > data_len);
    let file = file.to_owned();
    let (mut cursor, mut last) = (0, "");
    for &TensorInfo { ref name, begin, end, .. } in by_offset {
        if begin < cursor {
            let (tensor, other) = (name.clone(), last.to_owned());
            return Err(SourceError::Overlap { file, tensor, other, begin, end, expected: cursor });
        }
        if begin > cursor {
            // A tensor said to lie outside leaves a hole behind; it is the one to name.
            return Err(match outside {
                Some(t) => {
                    let (tensor, begin, end) = (t.name.clone(), t.begin, t.end);
                    SourceError::OutsideFile { file, tensor, begin, end, data_len }
                }
                None => SourceError::Hole { file, tensor: name.clone(), begin, expected: cursor },
            });
        }
        (cursor, last) = (end, name);
    }
    let (got, expected) = (data_start.saturating_add(data_len), data_start.saturating_add(cursor));
    match outside {
        Some(t) => Err(SourceError::Truncated { file, tensor: t.name.clone(), got, expected }),
        None if got > expected => Err(SourceError::Trailing { file, got, expected }),
        None => Ok(()),
    }
}

/// The header as it stands, every key kept.
struct Raw<'a> {
    metadata: Option<BTreeMap<String, String>>,
    tensors: Vec<(Cow<'a, str>, RawTensor<'a>)>,
}

#[derive(Deserialize)]
struct RawTensor<'a> {
    #[serde(borrow)]
    dtype: Cow<'a, str>,
    shape: RawShape,
    data_offsets: (u64, u64),
}

impl<'de: 'a, 'a> Deserialize<'de> for Raw<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Raw<'de>, A::Error> {
        let mut raw = Raw { metadata: None, tensors: Vec::new() };
        while let Some(Key(name)) = map.next_key()? {
            if name == "__metadata__" {
                let Metadata(metadata) =
                    map.next_value().map_err(|e| A::Error::custom(format!("__metadata__: {e}")))?;
                if raw.metadata.replace(metadata).is_some() {
                    return Err(A::Error::custom("`__metadata__` is listed twice, expected once"));
                }
                continue;
            }
            let tensor =
                map.next_value().map_err(|e| A::Error::custom(format!("tensor `{}`: {e}", clip(&name, 80))))?;
            raw.tensors.push((name, tensor));
        }
        Ok(raw)
    }
}

#[derive(Deserialize)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

/// Dimensions, at most [`MAX_RANK`] of them.
struct RawShape(Vec<u64>);

impl<'de> Deserialize<'de> for RawShape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(ShapeVisitor)
    }
}

struct ShapeVisitor;

impl<'de> Visitor<'de> for ShapeVisitor {
    type Value = RawShape;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of at most {MAX_RANK} dimensions")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<RawShape, A::Error> {
        let mut dims = Vec::new();
        while let Some(dim) = seq.next_element()? {
            if dims.len() == MAX_RANK {
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                return Err(A::Error::invalid_length(MAX_RANK.saturating_add(1), &self));
            }
            dims.push(dim);
        }
        Ok(RawShape(dims))
    }
}

/// `__metadata__`: text to text, no key twice.
struct Metadata(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for Metadata {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(MetadataVisitor)
    }
}

struct MetadataVisitor;

impl<'de> Visitor<'de> for MetadataVisitor {
    type Value = Metadata;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of strings")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Metadata, A::Error> {
        let mut all = BTreeMap::new();
        while let Some((key, value)) = map.next_entry::<String, String>()? {
            let shown = clip(&key, 80);
            if all.insert(key, value).is_some() {
                return Err(A::Error::custom(format!("key `{shown}` is listed twice, expected once")));
            }
        }
        Ok(Metadata(all))
    }
}

#[cfg(test)]
mod tests;
