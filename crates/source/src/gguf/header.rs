//! The header of a GGUF file, read without trust.
//!
//! ```text
//! "GGUF" | u32 version (2, 3) | u64 tensors | u64 keys
//! keys × (text key, u32 type, value)           text: u64 length, bytes; array: u32 type, u64 count, values
//! tensors × (text name, u32 rank, rank × u64 dimension, u32 type, u64 offset)     dimensions: columns first
//! padding to a multiple of general.alignment (32) | data, offsets count from here
//! ```
//! Reference: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.

use super::cursor::{Cursor, Input, Remote};
use super::types::{self, Type};
use crate::SourceError;
use crate::shard::Shard;
use crate::text::{MAX_NAME, check_name, clip};
use serde_json::{Map, Number, Value};

/// Most keys; real files have some fifty.
const MAX_KEYS: u64 = 1 << 16;
/// Most values of all arrays; the largest vocabularies take 1.3 million.
const MAX_VALUES: u64 = 1 << 22;
/// Longest text; chat templates have some 20 thousand bytes.
const MAX_TEXT: u64 = 16 << 20;
/// Most tensors; experts are fused, so that real files have a few thousand.
const MAX_TENSORS: u64 = 1 << 16;
/// Most dimensions, as in ggml.
const MAX_RANK: u32 = 4;
/// Largest alignment that is believed.
const MAX_ALIGNMENT: u64 = 1 << 20;

/// A checked header.
#[derive(Debug)]
pub struct GgufHeader {
    /// Keys and values in the order of the file; numbers and texts as JSON, arrays as lists.
    pub metadata: Map<String, Value>,
    /// Every tensor, in the order of the file; names are unique.
    pub tensors: Vec<GgufTensor>,
    /// Hex BLAKE3 of the header's bytes.
    pub hash: String,
}

/// One tensor.
#[derive(Debug, PartialEq, Eq)]
pub struct GgufTensor {
    /// Printable, not empty.
    pub name: String,
    /// Outputs first (the file has it the other way round); the product times the element size fits `isize`.
    pub shape: Vec<usize>,
    /// How its values are stored.
    pub(crate) kind: &'static Type,
    /// From the start of the file.
    pub offset: u64,
    /// What type and shape need; they lie inside the file and overlap no other tensor's.
    pub bytes: u64,
}

impl GgufTensor {
    /// The block type, as llama.cpp calls it.
    #[must_use]
    pub fn type_name(&self) -> &'static str {
        self.kind.name
    }
}

impl GgufHeader {
    /// Of an open file.
    pub(crate) fn read(shard: &Shard) -> Result<Self, SourceError> {
        Self::of(shard, &shard.name)
    }

    /// Of a whole file in memory. `file` is the name messages show.
    ///
    /// # Errors
    /// [`SourceError`] for whatever the format forbids, or what this version does not read.
    pub fn parse(file: &str, bytes: &[u8]) -> Result<Self, SourceError> {
        Self::of(&bytes, file)
    }

    /// Of a file of `len` bytes that lies elsewhere. `read(at, out)` fills `out` from byte `at`; it is asked for the header from
    /// front to back, a megabyte at a time, and for nothing behind it but the rest of the last megabyte.
    ///
    /// # Errors
    /// As [`GgufHeader::parse`]; what `read` fails with is in the message.
    pub fn fetch(
        file: &str,
        len: u64,
        read: &dyn Fn(u64, &mut [u8]) -> std::io::Result<()>,
    ) -> Result<Self, SourceError> {
        Self::of(&Remote { len, read }, file)
    }

    fn of(input: &dyn Input, file: &str) -> Result<Self, SourceError> {
        let mut c = Cursor::new(input, file);
        let magic: [u8; 4] = c.array("the magic number")?;
        if magic != *b"GGUF" {
            return Err(c.error("the file does not begin with `GGUF`"));
        }
        match c.u32("the version")? {
            2 | 3 => {}
            other if matches!(other.swap_bytes(), 1..=3) => {
                return Err(c.error("it is big-endian, which is not supported"));
            }
            other => return Err(c.error(format!("version {other}, expected 2 or 3"))),
        }
        let (tensors, keys) = (c.u64("the number of tensors")?, c.u64("the number of keys")?);
        for (count, max, what) in [(tensors, MAX_TENSORS, "tensors"), (keys, MAX_KEYS, "keys")] {
            if count > max {
                return Err(c.error(format!("{count} {what} are claimed, at most {max} are read")));
            }
        }
        let metadata = metadata(&mut c, keys)?;
        let alignment = alignment(&c, &metadata)?;
        let mut raw = Vec::new();
        for _ in 0..tensors {
            raw.push(tensor(&mut c, file)?);
        }
        let data = c.at().checked_next_multiple_of(alignment).unwrap_or(u64::MAX);
        let tensors = place(&c, raw, data, alignment, input.len())?;
        Ok(Self { metadata, tensors, hash: c.hash() })
    }
}

fn metadata(c: &mut Cursor<'_>, keys: u64) -> Result<Map<String, Value>, SourceError> {
    let mut out = Map::new();
    let mut budget = MAX_VALUES;
    for _ in 0..keys {
        let key = c.text(MAX_NAME as u64, "a key")?;
        let kind = c.u32(&key)?;
        let value = value(c, &key, kind, &mut budget)?;
        if out.insert(key.clone(), value).is_some() {
            return Err(c.error(format!("key `{}` is listed twice", clip(&key, 80))));
        }
    }
    Ok(out)
}

/// The type of arrays.
const ARRAY: u32 = 9;

fn value(c: &mut Cursor<'_>, key: &str, kind: u32, budget: &mut u64) -> Result<Value, SourceError> {
    if kind != ARRAY {
        return scalar(c, key, kind);
    }
    let (kind, count) = (c.u32(key)?, c.u64(key)?);
    if kind == ARRAY {
        return Err(c.error(format!("key `{}` holds an array of arrays, which is not supported", clip(key, 80))));
    }
    *budget = budget.checked_sub(count).ok_or_else(|| {
        c.error(format!("key `{}`: {count} values, at most {MAX_VALUES} in all are read", clip(key, 80)))
    })?;
    // Every value takes a byte at least: what is missing shows before much is allocated.
    let mut list = Vec::new();
    for _ in 0..count {
        list.push(scalar(c, key, kind)?);
    }
    Ok(Value::Array(list))
}

fn scalar(c: &mut Cursor<'_>, key: &str, kind: u32) -> Result<Value, SourceError> {
    Ok(match kind {
        0 => u8::from_le_bytes(c.array(key)?).into(),
        1 => i8::from_le_bytes(c.array(key)?).into(),
        2 => u16::from_le_bytes(c.array(key)?).into(),
        3 => i16::from_le_bytes(c.array(key)?).into(),
        4 => u32::from_le_bytes(c.array(key)?).into(),
        5 => i32::from_le_bytes(c.array(key)?).into(),
        6 => float(f32::from_le_bytes(c.array(key)?)),
        7 => match u8::from_le_bytes(c.array(key)?) {
            0 => false.into(),
            1 => true.into(),
            other => return Err(c.error(format!("key `{}` is {other}, expected 0 or 1", clip(key, 80)))),
        },
        8 => Value::String(c.text(MAX_TEXT, key)?),
        10 => u64::from_le_bytes(c.array(key)?).into(),
        11 => i64::from_le_bytes(c.array(key)?).into(),
        12 => Number::from_f64(f64::from_le_bytes(c.array(key)?)).map_or(Value::Null, Value::Number),
        other => return Err(c.error(format!("key `{}` has the unknown type {other}", clip(key, 80)))),
    })
}

/// The shortest decimal that is this number, so that a config shows 1e-6 as what it was made from. No number: null.
fn float(value: f32) -> Value {
    let decimal = value.to_string().parse().ok().and_then(Number::from_f64);
    decimal.map_or(Value::Null, Value::Number)
}

fn alignment(c: &Cursor<'_>, metadata: &Map<String, Value>) -> Result<u64, SourceError> {
    let Some(given) = metadata.get("general.alignment") else { return Ok(32) };
    let usable = given.as_u64().filter(|a| a.is_power_of_two() && *a <= MAX_ALIGNMENT);
    usable.ok_or_else(|| {
        let got = clip(&given.to_string(), 40);
        c.error(format!("`general.alignment` is {got}, expected a power of two up to {MAX_ALIGNMENT}"))
    })
}

/// A tensor as listed; its offset counts from the data.
fn tensor(c: &mut Cursor<'_>, file: &str) -> Result<GgufTensor, SourceError> {
    let name = c.text(MAX_NAME as u64, "a tensor's name")?;
    check_name(file, &name)?;
    let rank = c.u32(&name)?;
    if !(1..=MAX_RANK).contains(&rank) {
        return Err(c.error(format!("tensor `{name}` has {rank} dimensions, expected 1 to {MAX_RANK}")));
    }
    let mut dims = Vec::new();
    for _ in 0..rank {
        dims.push(c.u64(&name)?);
    }
    let (id, offset) = (c.u32(&name)?, c.u64(&name)?);
    let kind = types::find(id).ok_or_else(|| SourceError::GgufType {
        file: file.to_owned(),
        tensor: name.clone(),
        got: types::other(id),
        supported: types::supported(),
    })?;
    let columns = dims.first().copied().unwrap_or(0);
    if !columns.is_multiple_of(kind.values) {
        let (values, kind) = (kind.values, kind.name);
        return Err(c.error(format!(
            "tensor `{name}` has rows of {columns} values, expected a multiple of {values} for {kind}"
        )));
    }
    let (shape, bytes) = size(&dims, kind).ok_or_else(|| {
        c.error(format!("tensor `{name}`: dimensions {dims:?} are zero or overflow the address space"))
    })?;
    Ok(GgufTensor { name, shape, kind, offset, bytes })
}

/// The shape, outputs first, and the bytes it needs. Four bytes a value must be addressable, as it may be decoded.
fn size(dims: &[u64], kind: &Type) -> Option<(Vec<usize>, u64)> {
    let values = dims.iter().try_fold(1u64, |n, &d| n.checked_mul(d)).filter(|n| *n > 0)?;
    isize::try_from(values.checked_mul(4)?).ok()?;
    let bytes = values.checked_div(kind.values)?.checked_mul(kind.bytes)?;
    isize::try_from(bytes).ok()?;
    let shape = dims.iter().rev().map(|&d| usize::try_from(d).ok()).collect::<Option<_>>()?;
    Some((shape, bytes))
}

/// Offsets from the start of the file, checked: aligned, inside, apart from each other; names are unique.
fn place(
    c: &Cursor<'_>,
    mut tensors: Vec<GgufTensor>,
    data: u64,
    alignment: u64,
    len: u64,
) -> Result<Vec<GgufTensor>, SourceError> {
    for t in &mut tensors {
        if !t.offset.is_multiple_of(alignment) {
            return Err(
                c.error(format!("tensor `{}` lies at {}, expected a multiple of {alignment}", t.name, t.offset))
            );
        }
        let start = data.saturating_add(t.offset);
        let end = start.saturating_add(t.bytes);
        if end > len {
            return Err(c.error(format!("tensor `{}` ends at byte {end}, the file has {len}: it is truncated", t.name)));
        }
        t.offset = start;
    }
    let mut order: Vec<&GgufTensor> = tensors.iter().collect();
    order.sort_by_key(|t| (t.offset, t.bytes));
    for pair in order.windows(2) {
        if let [a, b] = pair
            && a.offset.saturating_add(a.bytes) > b.offset
        {
            return Err(c.error(format!("tensors `{}` and `{}` overlap", a.name, b.name)));
        }
    }
    order.sort_by(|a, b| a.name.cmp(&b.name));
    if let Some([one, _]) = order.windows(2).find(|pair| matches!(pair, [a, b] if a.name == b.name)) {
        return Err(c.error(format!("tensor `{}` is listed twice", one.name)));
    }
    Ok(tensors)
}
