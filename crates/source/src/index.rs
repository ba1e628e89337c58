//! `model.safetensors.index.json`: which shard holds which tensor.
//!
//! ```text
//! {"metadata": {…}, "weight_map": {"NAME": "model-00001-of-00002.safetensors", …}}
//! ```
//! `metadata.total_size` is ignored: exporters disagree on what it counts.

use crate::SourceError;
use crate::header::{Header, TensorInfo};
use crate::text::{MAX_NAME, check_name, clip, json_message};
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

/// Largest index that is read: 671B models have 9 MB.
pub const MAX_INDEX: u64 = 100_000_000;

/// Shard file name → the names of its tensors, sorted.
///
/// # Errors
/// [`SourceError`] if `bytes` is no index, a tensor is listed twice, or a shard is not a plain file name.
pub fn parse_index(bytes: &[u8], file: &str) -> Result<BTreeMap<String, Vec<String>>, SourceError> {
    let refuse =
        |message| SourceError::Json { file: file.to_owned(), message, expected: "a `weight_map` of tensor to file" };
    let raw: RawIndex<'_> = serde_json::from_slice(bytes).map_err(|e| refuse(json_message(&e)))?;
    let mut entries = raw.weight_map.0;
    entries.sort_unstable();
    let twice = entries.windows(2).find_map(|pair| match pair {
        [(a, _), (b, _)] if a == b => Some(a),
        _ => None,
    });
    if let Some(twice) = twice {
        return Err(SourceError::Duplicate { file: file.to_owned(), tensor: clip(twice, 80) });
    }
    let mut shards: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (tensor, shard) in entries {
        check_name(file, &tensor)?;
        if !plain_file_name(&shard) {
            return Err(SourceError::ShardPath {
                file: file.to_owned(),
                tensor: tensor.into_owned(),
                got: clip(&shard, 80),
            });
        }
        match shards.get_mut(shard.as_ref()) {
            Some(tensors) => tensors.push(tensor.into_owned()),
            None => {
                shards.insert(shard.into_owned(), vec![tensor.into_owned()]);
            }
        }
    }
    Ok(shards)
}

/// Whether `name` can only mean a file in the same directory, on any system.
fn plain_file_name(name: &str) -> bool {
    let separators = |c: char| c == '/' || c == '\\' || c == ':' || c.is_control();
    !name.is_empty() && name.len() <= MAX_NAME && name != "." && name != ".." && !name.contains(separators)
}

/// Compares a shard's header with what the index says of it; both lists are sorted by name.
pub fn check_shard(index: &str, shard: &str, listed: &[String], header: &Header) -> Result<(), SourceError> {
    let has = |name: &str| header.tensors.binary_search_by(|t| t.name.as_str().cmp(name)).is_ok();
    if let Some(absent) = listed.iter().find(|name| !has(name)) {
        let got = format!("holds {} tensors but not this one", header.tensors.len());
        let (index, shard) = (index.to_owned(), shard.to_owned());
        return Err(SourceError::NotInShard { index, tensor: absent.clone(), shard, got });
    }
    let unlisted = |t: &&TensorInfo| listed.binary_search(&t.name).is_err();
    match header.tensors.iter().find(unlisted) {
        Some(t) => {
            Err(SourceError::NotInIndex { index: index.to_owned(), tensor: t.name.clone(), shard: shard.to_owned() })
        }
        None => Ok(()),
    }
}

#[derive(Deserialize)]
struct RawIndex<'a> {
    #[serde(borrow)]
    weight_map: WeightMap<'a>,
}

/// Every pair as it stands, duplicates included.
struct WeightMap<'a>(Vec<(Cow<'a, str>, Cow<'a, str>)>);

impl<'de: 'a, 'a> Deserialize<'de> for WeightMap<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(WeightMapVisitor)
    }
}

struct WeightMapVisitor;

impl<'de> Visitor<'de> for WeightMapVisitor {
    type Value = WeightMap<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensor name to file name")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<WeightMap<'de>, A::Error> {
        let mut all = Vec::new();
        while let Some((Text(tensor), Text(shard))) = map.next_entry()? {
            all.push((tensor, shard));
        }
        Ok(WeightMap(all))
    }
}

#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);
