//! Files for tests, honest or not: nothing here checks what it is told to write.

use std::fmt::Write;
use std::path::Path;

/// What tests return.
pub type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;

/// One tensor of a header, as JSON.
pub fn tensor(name: &str, dtype: &str, shape: &[u64], begin: u64, end: u64) -> String {
    format!("{name:?}:{{\"dtype\":\"{dtype}\",\"shape\":{shape:?},\"data_offsets\":[{begin},{end}]}}")
}

/// A header of these parts.
pub fn header(parts: &[String]) -> String {
    format!("{{{}}}", parts.join(","))
}

/// A safetensors file: length, header, data.
pub fn file(header: &str, data: &[u8]) -> Vec<u8> {
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend_from_slice(header.as_bytes());
    out.extend_from_slice(data);
    out
}

/// A safetensors file of U8 tensors with these names, four bytes each: 0, 1, 2, …
pub fn bytes_file(names: &[&str]) -> Vec<u8> {
    let at = |i: usize| 4 * i as u64;
    let parts: Vec<_> = names.iter().enumerate().map(|(i, n)| tensor(n, "U8", &[4], at(i), at(i + 1))).collect();
    let data: Vec<u8> = (0..4 * names.len()).map(|i| i as u8).collect();
    file(&header(&parts), &data)
}

/// An index of (tensor, shard) pairs.
pub fn index(pairs: &[(&str, &str)]) -> String {
    let mut map = String::new();
    for (i, (tensor, shard)) in pairs.iter().enumerate() {
        let comma = if i == 0 { "" } else { "," };
        let _ = write!(map, "{comma}{tensor:?}:{shard:?}");
    }
    format!("{{\"metadata\":{{\"total_size\":0}},\"weight_map\":{{{map}}}}}")
}

/// A directory of these files.
pub fn directory(files: &[(&str, &[u8])]) -> Result<tempfile::TempDir> {
    let dir = tempfile::tempdir()?;
    for (name, bytes) in files {
        std::fs::write(dir.path().join(name), bytes)?;
    }
    Ok(dir)
}

/// The message of the error that opening `path` gives.
pub fn refusal(path: &Path) -> Result<String> {
    match crate::Checkpoint::open(path) {
        Ok(_) => Err(format!("{} was accepted", path.display()).into()),
        Err(e) => Ok(e.to_string()),
    }
}

/// Fails unless every part occurs in `message`.
pub fn expect(message: &str, parts: &[&str]) -> Result {
    match parts.iter().find(|p| !message.contains(**p)) {
        Some(part) => Err(format!("`{part}` is not in: {message}").into()),
        None => Ok(()),
    }
}
