//! [`TensorFile`]: one safetensors file that is no checkpoint, such as activation statistics.

use crate::header::{Header, TensorInfo};
use crate::shard::{Shard, buffer, io_error};
use crate::{SourceError, text};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// An open safetensors file: checked header, positioned reads.
#[derive(Debug)]
pub struct TensorFile {
    path: PathBuf,
    shard: Shard,
    header: Header,
}

impl TensorFile {
    /// Opens a file and checks its header against its size.
    ///
    /// # Errors
    /// [`SourceError`] if it cannot be read or is not a sound safetensors file.
    pub fn open(path: &Path) -> Result<Self, SourceError> {
        let shard = Shard::open(path, &text::clip(&path.display().to_string(), 200))?;
        let (header, _) = Header::read(&shard)?;
        Ok(Self { path: path.to_owned(), shard, header })
    }

    /// The path it was opened by.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// `__metadata__`.
    #[must_use]
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.header.metadata
    }

    /// Every tensor, sorted by name.
    #[must_use]
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.header.tensors
    }

    /// The tensor of that name.
    #[must_use]
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        let all = &self.header.tensors;
        all.binary_search_by(|t| t.name.as_str().cmp(name)).ok().and_then(|i| all.get(i))
    }

    /// All bytes of a tensor of this file.
    ///
    /// # Errors
    /// [`SourceError::Io`] if the file cannot be read or has shrunk; [`SourceError::Memory`].
    pub fn read(&self, tensor: &TensorInfo) -> Result<Vec<u8>, SourceError> {
        let mut bytes = buffer(&self.shard.name, "a tensor", tensor.end.saturating_sub(tensor.begin))?;
        let at = self.header.data_start.saturating_add(tensor.begin);
        self.shard.read_exact_at(&mut bytes, at).map_err(|e| io_error(&self.path, "read", e))?;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn tensors_are_found_by_name_and_read_whole() -> Result<(), Box<dyn std::error::Error>> {
        let json = br#"{"__metadata__":{"a":"b"},"x":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"y":{"dtype":"U8","shape":[1],"data_offsets":[2,3]}}"#;
        let mut file = tempfile::NamedTempFile::new()?;
        file.write_all(&(json.len() as u64).to_le_bytes())?;
        file.write_all(json)?;
        file.write_all(&[7, 8, 9])?;
        let open = TensorFile::open(file.path())?;
        assert_eq!(open.metadata().get("a").map(String::as_str), Some("b"));
        assert_eq!(open.read(open.tensor("x").ok_or("x")?)?, [7, 8]);
        assert_eq!(open.read(open.tensor("y").ok_or("y")?)?, [9]);
        assert!(open.tensor("z").is_none());
        file.as_file().set_len(json.len() as u64 + 10)?;
        assert!(TensorFile::open(file.path()).is_err(), "truncated");
        Ok(())
    }
}
