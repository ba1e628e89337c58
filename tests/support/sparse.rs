//! Releases at their real size in sparse files: every tensor under its released name, dtype and shape, all of it zeros that
//! take no room.

use ashlar_recipe::Release;
use ashlar_tensor::{Entry, TensorStore};
use std::fs::File;
use std::io::Write;
use std::path::Path;

/// Bytes of a shard's data, about.
const SHARD_BYTES: u64 = 5_000_000_000;

/// A tensor of a file: name, dtype, shape, bytes.
type Stored = (String, &'static str, Vec<usize>, u64);

/// The tensors that a release stores an entry as.
fn stored(entry: &Entry) -> Vec<Stored> {
    let [n, k] = match *entry.shape.as_slice() {
        [n, k] => [n, k],
        _ => [1, entry.shape.iter().product()],
    };
    let stem = entry.name.strip_suffix(".weight").unwrap_or(&entry.name);
    let blocks = vec![n.div_ceil(128), k.div_ceil(128)];
    let count = |shape: &[usize]| shape.iter().product::<usize>() as u64;
    let plain = |dtype, size: u64| vec![(entry.name.clone(), dtype, entry.shape.clone(), size * count(&entry.shape))];
    match entry.format.as_str() {
        "bf16" => plain("BF16", 2),
        "f32" => plain("F32", 4),
        "i64" => plain("I64", 8),
        "mxfp4" => vec![
            (entry.name.clone(), "I8", vec![n, k / 2], count(&[n, k / 2])),
            (format!("{stem}.scale"), "F8_E8M0", vec![n, k / 32], count(&[n, k / 32])),
        ],
        "fp8:128x128,e8m0" => vec![
            (entry.name.clone(), "F8_E4M3", vec![n, k], count(&[n, k])),
            (format!("{stem}.scale"), "F8_E8M0", blocks.clone(), count(&blocks)),
        ],
        "fp8:128x128,f32" => vec![
            (entry.name.clone(), "F8_E4M3", vec![n, k], count(&[n, k])),
            (format!("{}_scale_inv", entry.name), "F32", blocks.clone(), 4 * count(&blocks)),
        ],
        other => panic!("no release stores {other}"),
    }
}

/// Writes config, index and shards; returns the number of tensors and their bytes.
pub fn write_release(dir: &Path, release: &Release) -> std::io::Result<(usize, u64)> {
    std::fs::write(dir.join("config.json"), release.config.to_string())?;
    let mut shards: Vec<(u64, Vec<Stored>)> = vec![(0, Vec::new())];
    // In the order in which releases are written: by layer, which is how the specification lists them.
    for leaf in release.spec.tensors() {
        for tensor in stored(release.entry(&leaf.name).expect("an entry")) {
            let full = shards.last().is_some_and(|(bytes, _)| bytes + tensor.3 > SHARD_BYTES);
            if full {
                shards.push((0, Vec::new()));
            }
            let (bytes, list) = shards.last_mut().expect("a shard");
            *bytes += tensor.3;
            list.push(tensor);
        }
    }
    let (count, mut map) = (shards.len(), serde_json::Map::new());
    for (i, (bytes, tensors)) in shards.iter().enumerate() {
        let file = format!("model-{:05}-of-{count:05}.safetensors", i + 1);
        write_shard(&dir.join(&file), tensors, *bytes)?;
        map.extend(tensors.iter().map(|t| (t.0.clone(), file.clone().into())));
    }
    let index = serde_json::json!({"metadata": {}, "weight_map": map});
    std::fs::write(dir.join("model.safetensors.index.json"), index.to_string())?;
    Ok((shards.iter().map(|(_, t)| t.len()).sum(), shards.iter().map(|(b, _)| b).sum()))
}

fn write_shard(path: &Path, tensors: &[Stored], bytes: u64) -> std::io::Result<()> {
    let (mut header, mut at) = (serde_json::Map::new(), 0);
    for (name, dtype, shape, size) in tensors {
        let entry = serde_json::json!({"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]});
        header.insert(name.clone(), entry);
        at += size;
    }
    let mut text = serde_json::Value::Object(header).to_string();
    text.extend(std::iter::repeat_n(' ', (8 - text.len() % 8) % 8));
    let mut file = File::create(path)?;
    file.write_all(&(text.len() as u64).to_le_bytes())?;
    file.write_all(text.as_bytes())?;
    file.set_len(8 + text.len() as u64 + bytes)
}
