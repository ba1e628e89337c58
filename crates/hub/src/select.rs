//! Which files of a repository a checkpoint consists of.

use crate::{HubError, RemoteFile, Repo, Revision};
use ashlar_source::parse_index;

/// The config of every model.
pub const CONFIG: &str = "config.json";
/// Weights in one file.
const SINGLE: &str = "model.safetensors";
/// Where weights lie in several.
pub const INDEX: &str = "model.safetensors.index.json";
/// Larger files beside the weights are none that a model needs to run.
const MAX_SIDE: u64 = 256 << 20;

/// What has to be read before the rest can be chosen.
pub fn first(repo: &Repo, revision: &Revision) -> Result<Vec<RemoteFile>, HubError> {
    let missing = |what: String| HubError::Missing { repo: repo.to_string(), what };
    let config = revision.file(CONFIG).ok_or_else(|| missing(format!("it has no {CONFIG}{}", other(revision))))?;
    let index = revision.file(INDEX).filter(|_| revision.file(SINGLE).is_none());
    Ok([Some(config), index].into_iter().flatten().cloned().collect())
}

/// The files that hold the weights; `index` is the text of [`INDEX`], where that is needed.
pub fn weights(repo: &Repo, revision: &Revision, index: Option<&[u8]>) -> Result<Vec<RemoteFile>, HubError> {
    let missing = |what: String| HubError::Missing { repo: repo.to_string(), what };
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

/// What it has instead.
fn other(revision: &Revision) -> String {
    let gguf = revision.files.iter().find(|f| f.path.to_ascii_lowercase().ends_with(".gguf"));
    gguf.map(|f| format!("; it has `{}`: download that file and give it as SRC", f.path)).unwrap_or_default()
}
