//! GGUF files as checkpoints.
//!
//! Owns: the container ([`header`]), its block types ([`types`]), files that are parts of one ([`split`]), the weights as
//! planes of our formats. Which weight a tensor is, and what the metadata mean, `arch` says.
//!
//! Undone here: fused experts are listed one by one, and the rows of q and k that the `llama` architecture stores for rope
//! on neighbouring pairs are read in the order of checkpoints. A block type that one of our formats holds bit for bit is
//! listed as that format; every other one as itself, to be decoded.

mod cursor;
pub mod header;
pub mod split;
pub mod types;

use crate::blocks::{Blocks, Pick, RowOrder};
use crate::checkpoint::Parts;
use crate::place::{Form, Place};
use crate::shard::Shard;
use crate::side::Side;
use crate::{SourceError, fused};
use ashlar_arch::{Gguf, GgufWeight, ROPE_FACTORS};
use ashlar_tensor::{Entry, Order, Plane};
use header::{GgufHeader, GgufTensor};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// Most values of [`ROPE_FACTORS`]: half of a head's width.
const MAX_FACTORS: u64 = 1 << 16;

/// Opens the files `names` of `dir`, the first of which holds the metadata.
pub fn open(dir: &Path, names: &[String]) -> Result<Parts, SourceError> {
    let mut identity = blake3::Hasher::new();
    identity.update(b"ashlar gguf 1");
    let mut shards = Vec::new();
    let mut headers = Vec::new();
    for name in names {
        let shard = Shard::open(&dir.join(name), name)?;
        let header = GgufHeader::read(&shard)?;
        for part in [name.as_bytes(), &shard.len.to_le_bytes(), header.hash.as_bytes()] {
            identity.update(&(part.len() as u64).to_le_bytes());
            identity.update(part);
        }
        shards.push(shard);
        headers.push(header);
    }
    split::check(names, &headers)?;
    let tensors: Vec<(usize, &GgufTensor)> =
        headers.iter().enumerate().flat_map(|(shard, h)| h.tensors.iter().map(move |t| (shard, t))).collect();
    let factors = rope_factors(&shards, &tensors)?;
    let shapes: Vec<(String, Vec<usize>)> = tensors.iter().map(|(_, t)| (t.name.clone(), t.shape.clone())).collect();
    let first = names.first().map(String::as_str).unwrap_or_default();
    let empty = serde_json::Map::new();
    let metadata = headers.first().map_or(&empty, |h| &h.metadata);
    let model = ashlar_arch::gguf(Gguf { metadata, tensors: &shapes, rope_factors: &factors })
        .map_err(|source| SourceError::GgufModel { file: first.to_owned(), source })?;
    let mut listed = Vec::new();
    for ((shard, tensor), weight) in tensors.iter().zip(&model.weights) {
        if let Some(weight) = weight {
            list(names, *shard, tensor, weight, &mut listed)?;
        }
    }
    let (entries, places) = sorted(listed)?;
    let count = u64::try_from(names.len()).unwrap_or(u64::MAX);
    let kind = if count == 1 { "GGUF".to_owned() } else { format!("GGUF in {count} files") };
    let metadata = headers.into_iter().next().map(|h| h.metadata).unwrap_or_default();
    let texts = metadata.iter().filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_owned())));
    // The texts of the chat template and the like are of no use there.
    let texts: BTreeMap<String, String> = texts.filter(|(k, v)| k.starts_with("general.") && v.len() <= 4096).collect();
    Ok(Parts {
        config: Value::clone(&model.config),
        shards,
        entries,
        places,
        metadata: texts,
        identity: identity.finalize().to_hex().to_string(),
        kind,
        side: Side::made(dir, metadata),
    })
}

/// The values of the tensor with factors of rope's frequencies.
fn rope_factors(shards: &[Shard], tensors: &[(usize, &GgufTensor)]) -> Result<Vec<f32>, SourceError> {
    let Some((shard, tensor)) = tensors.iter().find(|(_, t)| t.name == ROPE_FACTORS) else { return Ok(Vec::new()) };
    let Some(shard) = shards.get(*shard) else { return Ok(Vec::new()) };
    let refuse = |message: String| SourceError::Gguf { file: shard.name.clone(), message };
    if tensor.kind.name != "F32" || tensor.bytes > MAX_FACTORS.saturating_mul(4) {
        let message =
            format!("tensor `{ROPE_FACTORS}` is {} of {} bytes, expected F32", tensor.kind.name, tensor.bytes);
        return Err(refuse(message));
    }
    let mut bytes = crate::shard::buffer(&shard.name, "factors of rope", tensor.bytes)?;
    shard.read_exact_at(&mut bytes, tensor.offset).map_err(|e| refuse(format!("cannot read `{ROPE_FACTORS}`: {e}")))?;
    Ok(bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
}

/// Entries by name, which must be unique: experts have names of their own.
fn sorted(mut listed: Vec<(Entry, Vec<Place>)>) -> Result<(Vec<Entry>, Vec<Vec<Place>>), SourceError> {
    listed.sort_by(|(a, _), (b, _)| a.name.cmp(&b.name));
    let twice = |pair: &&[(Entry, Vec<Place>)]| matches!(pair, [(a, _), (b, _)] if a.name == b.name);
    if let Some([(one, _), ..]) = listed.windows(2).find(twice) {
        return Err(SourceError::Duplicate { file: one.file.clone(), tensor: one.name.clone() });
    }
    Ok(listed.into_iter().unzip())
}

/// Lists the weights that a tensor is: one, or one for each expert.
fn list(
    names: &[String],
    shard: usize,
    tensor: &GgufTensor,
    weight: &GgufWeight,
    out: &mut Vec<(Entry, Vec<Place>)>,
) -> Result<(), SourceError> {
    let file = names.get(shard).cloned().unwrap_or_default();
    let refuse = |message: String| SourceError::Gguf { file: file.clone(), message };
    let experts = match (&weight.after_expert, tensor.shape.as_slice()) {
        (Some(_), [experts, ..]) => *experts,
        _ => 1,
    };
    if out.len().saturating_add(experts) > fused::MAX_LISTED {
        return Err(refuse(format!("tensor `{}`: more than {} weights in all", tensor.name, fused::MAX_LISTED)));
    }
    let (n, k) = match *weight.shape.as_slice() {
        [k] => (1, k),
        [n, k] => (n, k),
        _ => {
            let message =
                format!("tensor `{}` has shape {:?}, expected a vector or a matrix", tensor.name, tensor.shape);
            return Err(refuse(message));
        }
    };
    let order = match weight.rotated {
        None => RowOrder::Same,
        // A vector that is turned: its values are its rows.
        Some(head) if head > 0 && head.is_multiple_of(2) && (if n == 1 { k } else { n }).is_multiple_of(head) => {
            RowOrder::Rotated(head as u64)
        }
        Some(head) => {
            let message =
                format!("tensor `{}` has {n} rows, expected a multiple of {head}, the width of a head", tensor.name);
            return Err(refuse(message));
        }
    };
    let bytes = tensor.bytes.checked_div(experts as u64).unwrap_or(0);
    for expert in 0..experts {
        let name = match &weight.after_expert {
            Some(after) => format!("{}{expert}{after}", weight.name),
            None => weight.name.clone(),
        };
        let start = tensor.offset.saturating_add(bytes.saturating_mul(expert as u64));
        let places = planes(tensor, shard, start, (n, k), order);
        let planes =
            tensor.kind.planes.iter().zip(&places).map(|(p, place)| Plane { kind: p.kind, bytes: place.bytes });
        let entry = Entry {
            name,
            shape: weight.shape.clone(),
            format: tensor.kind.format.to_owned(),
            order: Order::Rows,
            planes: planes.collect(),
            file: file.clone(),
        };
        out.push((entry, places));
    }
    Ok(())
}

/// Where the planes of a weight lie whose blocks begin at `start`.
fn planes(tensor: &GgufTensor, shard: usize, start: u64, (n, k): (usize, usize), order: RowOrder) -> Vec<Place> {
    let kind = tensor.kind;
    let row = (k as u64).checked_div(kind.values).unwrap_or(0);
    let total = row.saturating_mul(n as u64);
    let place = |piece: u64, pick: Pick| {
        let whole = piece == kind.bytes;
        let form = match order {
            RowOrder::Same if whole => Form::Plain,
            RowOrder::Same => Form::Blocks(Blocks { block: kind.bytes, piece, pick, row, order }),
            // A vector's values are its rows.
            RowOrder::Rotated(_) if n == 1 => Form::Blocks(Blocks { block: kind.bytes, piece, pick, row: 1, order }),
            // Rows of plain values are moved as a whole.
            RowOrder::Rotated(_) if whole => {
                let bytes = kind.bytes.saturating_mul(row);
                Form::Blocks(Blocks { block: bytes, piece: bytes, pick, row: 1, order })
            }
            RowOrder::Rotated(_) => Form::Blocks(Blocks { block: kind.bytes, piece, pick, row, order }),
        };
        let element = if kind.values == 1 { kind.bytes } else { 1 };
        Place { shard, offset: start, bytes: piece.saturating_mul(total), element: element.max(1), form }
    };
    kind.planes.iter().map(|p| place(p.bytes, p.pick)).collect()
}

#[cfg(test)]
mod tests;
