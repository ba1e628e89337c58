//! Whether the source's files are still those that the work began with. Headers tell models apart, not downloads: a
//! file that was replaced or written to meanwhile keeps its header.

use crate::error::ConvertError;
use ashlar_pack::PackError;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What shows without reading a file that it was changed: size, time of the last change, inode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stamps(Vec<(u64, i64, i64, u64)>);

impl Stamps {
    /// Of `files`, as they are now.
    pub fn take(files: &[PathBuf]) -> Result<Self, ConvertError> {
        files.iter().map(|f| stamp(f)).collect::<Result<_, _>>().map(Self)
    }

    /// For the journal. It is no part of a pack, which must not depend on times.
    pub fn hash(&self) -> String {
        blake3::hash(format!("{:?}", self.0).as_bytes()).to_hex().to_string()
    }

    /// Fails if one of `files`, the same list as before, has changed since.
    pub fn check(&self, files: &[PathBuf]) -> Result<(), ConvertError> {
        for (file, before) in files.iter().zip(&self.0) {
            if stamp(file)? != *before {
                return Err(ConvertError::SourceChanged { file: file.clone() });
            }
        }
        Ok(())
    }
}

fn stamp(file: &Path) -> Result<(u64, i64, i64, u64), ConvertError> {
    let io = |source| PackError::Io { path: file.to_owned(), what: "look at it", source };
    let meta = fs::metadata(file).map_err(io)?;
    Ok((meta.len(), meta.mtime(), meta.mtime_nsec(), meta.ino()))
}

/// Refuses an output that is the source, lies in it or holds it: replacing or discarding the output must never touch
/// what it is made from.
pub(crate) fn check_apart(source: &Path, outputs: &[&Path]) -> Result<(), ConvertError> {
    // A source that is no directory (or none at all) cannot be hit.
    let Ok(source) = fs::canonicalize(source) else { return Ok(()) };
    for out in outputs {
        let real = real(out);
        let what = if real == source {
            "is the source itself"
        } else if real.starts_with(&source) {
            "lies inside the source"
        } else if source.starts_with(&real) {
            "holds the source"
        } else {
            continue;
        };
        let what = format!("{what}, {}; choose an output beside it", source.display());
        return Err(PackError::Exists { path: (*out).to_owned(), what }.into());
    }
    Ok(())
}

/// The path without links, as far as it exists.
fn real(path: &Path) -> PathBuf {
    let mut rest = Vec::new();
    for part in path.ancestors() {
        let part = if part.as_os_str().is_empty() { Path::new(".") } else { part };
        if let Ok(real) = fs::canonicalize(part) {
            return rest.iter().rev().fold(real, |path, name| path.join(name));
        }
        rest.extend(part.file_name());
    }
    path.to_owned()
}
