//! Which files of a repository a model consists of: a checkpoint, one of several GGUF files, or a pack.

mod gguf;

use crate::{HubError, RemoteFile, Repo, Revision};
use ashlar_source::parse_index;
use std::path::{Path, PathBuf};

pub use gguf::{choose, is_gguf};

/// The config of every model.
pub const CONFIG: &str = "config.json";
/// The manifest of a pack.
pub const PACK: &str = "ashlar.json";
/// Weights in one file.
pub const SINGLE: &str = "model.safetensors";
/// Where weights lie in several.
pub const INDEX: &str = "model.safetensors.index.json";
/// Larger files beside the weights are none that a model needs to run.
const MAX_SIDE: u64 = 256 << 20;

/// What has to be read before the rest can be chosen.
pub fn first(repo: &Repo, revision: &Revision) -> Result<Vec<RemoteFile>, HubError> {
    if of_gguf(repo, revision)?.is_some() {
        return Ok(Vec::new());
    }
    let missing = |what: String| HubError::Missing { repo: repo.to_string(), what };
    let config = revision.file(CONFIG).ok_or_else(|| missing(format!("it has no {CONFIG}{}", other(revision))))?;
    let index = revision.file(INDEX).filter(|_| revision.file(SINGLE).is_none());
    Ok([Some(config), index].into_iter().flatten().cloned().collect())
}

/// The files that hold the weights; `index` is the text of [`INDEX`], where that is needed.
pub fn weights(repo: &Repo, revision: &Revision, index: Option<&[u8]>) -> Result<Vec<RemoteFile>, HubError> {
    let missing = |what: String| HubError::Missing { repo: repo.to_string(), what };
    if let Some(files) = of_gguf(repo, revision)? {
        return Ok(files);
    }
    if revision.file(PACK).is_some() {
        return Ok(revision.files.iter().filter(|f| is_shard(&f.path)).cloned().collect());
    }
    if let Some(single) = revision.file(SINGLE) {
        return Ok(vec![single.clone()]);
    }
    let index = index.ok_or_else(|| missing(format!("it has no weights in safetensors files{}", other(revision))))?;
    let mut files = Vec::new();
    for (shard, _) in parse_index(index, INDEX)? {
        let file = revision.file(&shard).cloned();
        files.push(
            file.ok_or_else(|| missing(format!("its index names `{shard}`, which it lacks; is the upload complete?")))?,
        );
    }
    Ok(files)
}

/// Configs, tokenizer, templates, licence, model card: all small files at the top that hold no weights.
pub fn beside(revision: &Revision) -> Vec<RemoteFile> {
    const OTHER: &[&str] = &[
        "safetensors",
        "bin",
        "gguf",
        "pt",
        "pth",
        "h5",
        "msgpack",
        "onnx",
        "ot",
        "npz",
        "tflite",
        "png",
        "jpg",
        "jpeg",
        "gif",
        "svg",
        "webp",
        "mp4",
        "pdf",
        "gitattributes",
    ];
    let wanted = |f: &&RemoteFile| {
        let ending = f.path.rsplit('.').next().unwrap_or_default().to_ascii_lowercase();
        !f.path.contains('/') && f.size <= MAX_SIDE && !OTHER.contains(&ending.as_str())
    };
    revision.files.iter().filter(wanted).cloned().collect()
}

/// The GGUF file that is meant, all its parts: one was named, or there are no other weights.
fn of_gguf(repo: &Repo, revision: &Revision) -> Result<Option<Vec<RemoteFile>>, HubError> {
    let named = repo.gguf.is_some();
    let weights = |name: &&str| revision.file(name).is_some();
    let has_gguf = revision.files.iter().any(|f| is_gguf(&f.path));
    if !named && (!has_gguf || [SINGLE, INDEX, PACK].iter().any(weights)) {
        return Ok(None);
    }
    let all: Vec<(&str, u64)> = revision.files.iter().map(|f| (f.path.as_str(), f.size)).collect();
    let chosen = choose(repo, &all)?;
    Ok(Some(chosen.iter().filter_map(|path| revision.file(path)).cloned().collect()))
}

/// What of a directory that holds these weights is to be opened.
pub fn root(dir: &Path, weights: &[RemoteFile]) -> PathBuf {
    match weights.first() {
        Some(first) if is_gguf(&first.path) => dir.join(&first.path),
        _ => dir.to_owned(),
    }
}

/// A shard of a pack.
pub fn is_shard(name: &str) -> bool {
    name.starts_with("ashlar-") && name.ends_with(".safetensors")
}

/// Refuses packs: their headers alone are of no use.
pub fn no_pack(repo: &Repo, revision: &Revision) -> Result<(), HubError> {
    if revision.file(PACK).is_none() || repo.gguf.is_some() {
        return Ok(());
    }
    let what = format!("it holds a pack, which is read once it is here: `ashlar pull {repo}` downloads it");
    Err(HubError::Missing { repo: repo.to_string(), what })
}

/// What it has instead.
fn other(revision: &Revision) -> String {
    let known = |f: &&RemoteFile| [".bin", ".pt", ".pth", ".onnx", ".npz"].iter().any(|end| f.path.ends_with(end));
    revision.files.iter().find(known).map(|f| format!(", but `{}`, which is not supported", f.path)).unwrap_or_default()
}
