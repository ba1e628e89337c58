//! Which files of a directory are the checkpoint, which ones go along with it.

use crate::SourceError;
use crate::gguf::split;
use crate::shard::{io_error, regular};
use std::path::{Path, PathBuf};

/// The single-file name of the hub.
pub const SINGLE: &str = "model.safetensors";
/// The index of a sharded checkpoint.
pub const INDEX: &str = "model.safetensors.index.json";

/// Where the weights are.
#[derive(Debug, PartialEq, Eq)]
pub enum Weights {
    /// One safetensors file of this name.
    Single(String),
    /// Shards listed in [`INDEX`].
    Sharded,
    /// GGUF files of these names, in order.
    Gguf(Vec<String>),
}

/// The directory and the weights `path` means.
pub fn find(path: &Path) -> Result<(PathBuf, Weights), SourceError> {
    let meta = path.metadata().map_err(|e| io_error(path, "find", e))?;
    if meta.is_dir() {
        return Ok((path.to_owned(), in_directory(path)?));
    }
    regular(path)?;
    let dir = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default().to_owned();
    if has_extension(path, &["safetensors"]) {
        return Ok((dir, Weights::Single(name)));
    }
    if has_extension(path, &["gguf"]) {
        let names = gguf_parts(&dir, &name)?;
        return Ok((dir, Weights::Gguf(names)));
    }
    let hint = if name == INDEX || name == "config.json" {
        format!("pass its directory, {}", dir.display())
    } else {
        unsupported_hint(std::slice::from_ref(&name)).unwrap_or_else(|| "got a file of another kind".to_owned())
    };
    Err(SourceError::Unsupported { path: path.display().to_string(), hint })
}

/// The hub's own rule: the single file wins over an index.
fn in_directory(dir: &Path) -> Result<Weights, SourceError> {
    if dir.join(SINGLE).exists() {
        return Ok(Weights::Single(SINGLE.to_owned()));
    }
    if dir.join(INDEX).exists() {
        return Ok(Weights::Sharded);
    }
    let names = list(dir)?;
    let safetensors: Vec<_> = names.iter().filter(|n| has_extension(Path::new(n), &["safetensors"])).collect();
    let ggufs: Vec<_> = names.iter().filter(|n| has_extension(Path::new(n), &["gguf"])).collect();
    // The vision parts of a model lie in a file of their own that is no model.
    let models: Vec<_> = ggufs.into_iter().filter(|n| !n.to_ascii_lowercase().starts_with("mmproj")).collect();
    if let (Some(first), []) = (models.first(), safetensors.as_slice()) {
        let parts = split::siblings(first);
        if let Some(other) = models.iter().find(|n| !parts.contains(n)) {
            let (dir, one, other) = (dir.display().to_string(), (*first).clone(), (*other).clone());
            return Err(SourceError::GgufChoice { dir, one, other, count: models.len() });
        }
        return Ok(Weights::Gguf(gguf_parts(dir, first)?));
    }
    let hint = match safetensors.as_slice() {
        [] => unsupported_hint(&names).unwrap_or_else(|| "is this the directory that holds the weights?".to_owned()),
        [one] => format!("found `{one}`: pass that file itself, or download the index if it is one shard of several"),
        [first, ..] => format!("found {} shards such as `{first}`: download `{INDEX}` too", safetensors.len()),
    };
    Err(SourceError::NoWeights { dir: dir.display().to_string(), hint })
}

/// All parts of a GGUF file, which must be there.
fn gguf_parts(dir: &Path, name: &str) -> Result<Vec<String>, SourceError> {
    let names = split::siblings(name);
    match names.iter().find(|n| !dir.join(n).exists()) {
        None => Ok(names),
        Some(missing) => {
            let message = format!("its part `{missing}` is missing in {}; download it", dir.display());
            Err(SourceError::GgufSplit { file: name.to_owned(), message })
        }
    }
}

/// What to say of weights in other containers, if there are any.
fn unsupported_hint(names: &[String]) -> Option<String> {
    const OTHER: &[&str] = &["bin", "pt", "pth", "npz", "onnx", "h5", "msgpack"];
    let other = names.iter().find(|n| has_extension(Path::new(n), OTHER))?;
    Some(format!(
        "`{other}` is of a kind that is not supported yet, download the safetensors files or a GGUF file of this model"
    ))
}

fn has_extension(path: &Path, any: &[&str]) -> bool {
    path.extension().and_then(|e| e.to_str()).is_some_and(|e| any.iter().any(|a| e.eq_ignore_ascii_case(a)))
}

/// Names in `dir`, sorted; names that are no UTF-8 cannot be ours and are left out.
fn list(dir: &Path) -> Result<Vec<String>, SourceError> {
    let mut names = Vec::new();
    for entry in dir.read_dir().map_err(|e| io_error(dir, "list", e))? {
        let entry = entry.map_err(|e| io_error(dir, "list", e))?;
        names.extend(entry.file_name().into_string());
    }
    names.sort_unstable();
    Ok(names)
}

/// Files that a converted model needs or must carry along: tokenizer, chat template, generation defaults, licence and
/// model card. Sorted; only regular files (or links to them).
pub fn side_files(dir: &Path) -> Vec<PathBuf> {
    let names = list(dir).unwrap_or_default();
    let paths = names.iter().filter(|n| is_side_file(n)).map(|n| dir.join(n));
    paths.filter(|p| regular(p).is_ok()).collect()
}

fn is_side_file(name: &str) -> bool {
    const NAMES: &[&str] =
        &["generation_config.json", "special_tokens_map.json", "added_tokens.json", "readme.md", "merges.txt"];
    const STARTS: &[&str] =
        &["tokenizer", "chat_template", "vocab", "license", "licence", "copying", "notice", "use_policy"];
    const ENDS: &[&str] = &[".tiktoken", ".spm"];
    const WEIGHTS: &[&str] = &["safetensors", "bin", "gguf", "pt", "pth", "h5"];
    let lower = name.to_ascii_lowercase();
    let wanted = NAMES.contains(&lower.as_str())
        || STARTS.iter().any(|s| lower.starts_with(s))
        || ENDS.iter().any(|e| lower.ends_with(e));
    wanted && !has_extension(Path::new(&lower), WEIGHTS)
}
