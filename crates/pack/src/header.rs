//! The safetensors header: written deterministically, parsed defensively.

use ashlar_tensor::Dtype;
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use std::fmt;

/// The key that holds no tensor.
pub(crate) const METADATA: &str = "__metadata__";
/// What readers of safetensors accept.
const MAX_HEADER: u64 = 100_000_000;
const HEADER_ALIGN: usize = 4096;

/// One tensor of a header; offsets from the start of the data section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HeaderEntry {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<u64>,
    pub start: u64,
    pub end: u64,
}

/// The first bytes of a shard: the length of the JSON, the JSON in the order of `entries` (by offset), and spaces so
/// that the data section starts at a multiple of 4096.
pub(crate) fn write(entries: &[HeaderEntry]) -> Vec<u8> {
    let mut json = format!("{{\"{METADATA}\":{{\"format\":\"ashlar\",\"version\":\"{}\"}}", crate::VERSION);
    for e in entries {
        let name = serde_json::Value::from(e.name.as_str());
        let shape = serde_json::Value::from(e.shape.clone());
        let (dtype, start, end) = (e.dtype, e.start, e.end);
        json.push_str(&format!(",{name}:{{\"dtype\":\"{dtype}\",\"shape\":{shape},\"data_offsets\":[{start},{end}]}}"));
    }
    json.push('}');
    let total = (json.len() + 8).next_multiple_of(HEADER_ALIGN);
    let mut out = ((total - 8) as u64).to_le_bytes().to_vec();
    out.extend_from_slice(json.as_bytes());
    out.resize(total, b' ');
    out
}

/// The length of the whole header, from its first 8 bytes.
///
/// # Errors
/// Says what is wrong: longer than the file or than the limit.
pub(crate) fn length(first: [u8; 8], file_bytes: u64) -> Result<u64, String> {
    let json = u64::from_le_bytes(first);
    if json > MAX_HEADER {
        return Err(format!("the header claims {json} bytes, the limit is {MAX_HEADER}"));
    }
    if json + 8 > file_bytes {
        return Err(format!("the header claims {json} bytes, the file has {file_bytes}"));
    }
    Ok(json + 8)
}

/// Parses the JSON part: entries sorted by offset, contiguous from 0.
///
/// # Errors
/// Says what is wrong: bad JSON, duplicate name, unknown dtype, a size that is not shape × dtype, holes, overlaps.
pub(crate) fn parse(json: &[u8]) -> Result<Vec<HeaderEntry>, String> {
    let raw: RawHeader =
        serde_json::from_slice(json).map_err(|e| format!("the header is no safetensors header: {e}"))?;
    let mut entries = Vec::new();
    for (name, raw) in raw.0 {
        let dtype = Dtype::from_name(&raw.dtype)
            .ok_or_else(|| format!("tensor `{name}` has the unknown dtype `{}`", raw.dtype))?;
        let [start, end] = raw.data_offsets;
        let bytes = raw.shape.iter().try_fold(dtype.size() as u64, |a, &d| a.checked_mul(d));
        if end < start || bytes != Some(end - start) {
            return Err(format!("tensor `{name}`: {dtype} {:?} does not fill bytes {start}..{end}", raw.shape));
        }
        entries.push(HeaderEntry { name, dtype, shape: raw.shape, start, end });
    }
    entries.sort_by(|a, b| (a.start, a.end, &a.name).cmp(&(b.start, b.end, &b.name)));
    let mut at = 0;
    for e in &entries {
        if e.start != at {
            return Err(format!("tensor `{}` starts at {}, expected {at}: a hole or an overlap", e.name, e.start));
        }
        at = e.end;
    }
    let mut names: Vec<&str> = entries.iter().map(|e| e.name.as_str()).collect();
    names.sort_unstable();
    if let Some(twice) = names.windows(2).find_map(|w| (w.first() == w.last()).then(|| w.first()).flatten()) {
        return Err(format!("tensor `{twice}` occurs twice"));
    }
    Ok(entries)
}

#[derive(Deserialize)]
struct RawEntry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

/// A list, so that duplicate keys are seen.
struct RawHeader(Vec<(String, RawEntry)>);

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = RawHeader;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
        let mut list = Vec::new();
        while let Some(name) = map.next_key::<String>()? {
            if name == METADATA {
                map.next_value::<IgnoredAny>()?;
            } else {
                list.push((name, map.next_value()?));
            }
        }
        Ok(RawHeader(list))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, start: u64, end: u64) -> HeaderEntry {
        HeaderEntry { name: name.into(), dtype: Dtype::U8, shape: vec![end - start], start, end }
    }

    #[test]
    fn a_written_header_parses_back_and_ends_on_a_page() {
        let entries = vec![entry("a \"quoted\" \u{1} name", 0, 7), entry("b", 7, 7), entry("c", 7, 100)];
        let bytes = write(&entries);
        assert_eq!(bytes.len() % 4096, 0);
        let first = bytes[..8].try_into().unwrap();
        assert_eq!(length(first, 1 << 20), Ok(bytes.len() as u64));
        assert_eq!(parse(&bytes[8..]), Ok(entries));
    }

    #[test]
    fn lying_lengths_are_refused() {
        assert!(length(u64::MAX.to_le_bytes(), 100).unwrap_err().contains("limit"));
        assert!(length(1000u64.to_le_bytes(), 100).unwrap_err().contains("the file has 100"));
    }

    #[test]
    fn holes_overlaps_duplicates_and_bad_sizes_are_refused() {
        let json = |body: &str| parse(format!("{{{body}}}").as_bytes()).unwrap_err();
        let u8_at = |n: &str, a: u64, b: u64| {
            format!("\"{n}\":{{\"dtype\":\"U8\",\"shape\":[{}],\"data_offsets\":[{a},{b}]}}", b - a)
        };
        assert!(json(&u8_at("a", 4, 8)).contains("hole"));
        assert!(json(&format!("{},{}", u8_at("a", 0, 8), u8_at("b", 4, 9))).contains("overlap"));
        assert!(json(&format!("{},{}", u8_at("a", 0, 8), u8_at("a", 8, 9))).contains("twice"));
        assert!(json("\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,4]}").contains("does not fill"));
        assert!(
            json("\"a\":{\"dtype\":\"U8\",\"shape\":[9223372036854775807,4],\"data_offsets\":[0,4]}")
                .contains("does not fill")
        );
        assert!(json("\"a\":{\"dtype\":\"Q\",\"shape\":[4],\"data_offsets\":[0,4]}").contains("unknown dtype"));
        assert!(parse(b"[1]").unwrap_err().contains("no safetensors header"));
    }
}
