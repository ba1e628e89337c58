//! `config.json` as JSON: bounded, an object, errors with line and column. What it means is `arch`'s business.

use crate::SourceError;
use crate::shard::{Shard, buffer};
use crate::text::json_message;
use serde_json::Value;
use std::path::Path;

/// No real config comes near it (the largest known ones, with label maps, have 2 MB).
const MAX_CONFIG: u64 = 16 << 20;

/// A config and the bytes it was read from (for the identity).
pub fn read_config(dir: &Path) -> Result<(Value, Vec<u8>), SourceError> {
    let path = dir.join("config.json");
    if !path.exists() {
        return Err(SourceError::ConfigMissing { path: path.display().to_string() });
    }
    let bytes = read_json(&path, "config.json", MAX_CONFIG)?;
    Ok((parse_config(&bytes, "config.json")?, bytes))
}

/// The JSON object in `bytes`.
///
/// # Errors
/// [`SourceError::Json`] with line and column if `bytes` is not JSON, nested too deeply, or not an object.
pub fn parse_config(bytes: &[u8], file: &str) -> Result<Value, SourceError> {
    let refuse = |message| SourceError::Json { file: file.to_owned(), message, expected: "a JSON object" };
    let value: Value = serde_json::from_slice(bytes).map_err(|e| refuse(json_message(&e)))?;
    let got = match &value {
        Value::Object(_) => return Ok(value),
        Value::Array(_) => "an array",
        Value::String(_) => "a string",
        Value::Number(_) => "a number",
        Value::Bool(_) | Value::Null => "a literal",
    };
    Err(refuse(format!("line 1, column 1: got {got}")))
}

/// The bytes of a regular file of at most `max` bytes.
pub fn read_json(path: &Path, name: &str, max: u64) -> Result<Vec<u8>, SourceError> {
    let file = Shard::open(path, name)?;
    if file.len > max {
        return Err(SourceError::TooLarge { file: name.to_owned(), got: file.len, max });
    }
    let mut bytes = buffer(name, "its text", file.len)?;
    file.read_exact_at(&mut bytes, 0).map_err(|e| crate::shard::io_error(path, "read", e))?;
    Ok(bytes)
}
