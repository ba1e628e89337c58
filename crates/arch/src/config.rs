//! Checked access to `config.json`. Every number is bounded before anything is computed or allocated from it.

use crate::ArchError;
use serde_json::{Map, Value};
use std::ops::RangeInclusive;

/// Bound of every width, row count and context length.
pub const MAX_SIZE: usize = 1 << 31;
/// Bound of the number of layers.
pub const MAX_LAYERS: usize = 10_000;
/// Bound of the number of experts per layer.
pub const MAX_EXPERTS: usize = 65_536;
/// Bound of the tensors of a model. The largest published models have about 100 000.
pub const MAX_TENSORS: usize = 250_000;

/// A JSON object of the config, with the path to it. `null` counts as absent everywhere.
#[derive(Clone, Copy, Debug)]
pub struct Config<'a> {
    map: &'a Map<String, Value>,
    path: &'a str,
}

impl<'a> Config<'a> {
    /// The top level.
    pub fn new(value: &'a Value) -> Result<Self, ArchError> {
        let map = value.as_object().ok_or_else(|| ArchError::NotAnObject { got: show(value) })?;
        Ok(Self { map, path: "" })
    }

    /// The value of `key`, unless absent or null.
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    /// The first of `keys` that is present: dialects name the same thing differently.
    pub fn first<'k>(&self, keys: &[&'k str]) -> Option<&'k str> {
        keys.iter().copied().find(|k| self.get(k).is_some())
    }

    /// The object under `key`, if present.
    pub fn object(&self, key: &'a str) -> Result<Option<Self>, ArchError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let map = value.as_object().ok_or_else(|| self.error(key, "an object or null", Some(value)))?;
        Ok(Some(Self { map, path: key }))
    }

    /// A whole number within `range`, if present.
    pub fn optional_size(&self, key: &str, range: RangeInclusive<usize>) -> Result<Option<usize>, ArchError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value
            .as_u64()
            .and_then(|v| usize::try_from(v).ok())
            .filter(|v| range.contains(v))
            .map(Some)
            .ok_or_else(|| self.error(key, &whole(&range), Some(value)))
    }

    /// A whole number within `range`.
    pub fn size(&self, key: &str, range: RangeInclusive<usize>) -> Result<usize, ArchError> {
        self.optional_size(key, range.clone())?.ok_or_else(|| self.error(key, &whole(&range), None))
    }

    /// A finite number within `range`, if present.
    pub fn optional_number(&self, key: &str, range: RangeInclusive<f64>) -> Result<Option<f64>, ArchError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value
            .as_f64()
            .filter(|v| range.contains(v))
            .map(Some)
            .ok_or_else(|| self.error(key, &number(&range), Some(value)))
    }

    /// A finite number within `range`.
    pub fn number(&self, key: &str, range: RangeInclusive<f64>) -> Result<f64, ArchError> {
        self.optional_number(key, range.clone())?.ok_or_else(|| self.error(key, &number(&range), None))
    }

    /// A boolean, `default` if absent.
    pub fn bool_or(&self, key: &str, default: bool) -> Result<bool, ArchError> {
        let Some(value) = self.get(key) else { return Ok(default) };
        value.as_bool().ok_or_else(|| self.error(key, "true or false", Some(value)))
    }

    /// A string, if present.
    pub fn text(&self, key: &str) -> Result<Option<&'a str>, ArchError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_str().map(Some).ok_or_else(|| self.error(key, "a string", Some(value)))
    }

    /// A list, if present.
    pub fn list(&self, key: &str) -> Result<Option<&'a [Value]>, ArchError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_array().map(|v| Some(v.as_slice())).ok_or_else(|| self.error(key, "a list", Some(value)))
    }

    /// The error for `key`; `got` is `None` when it is absent.
    pub fn error(&self, key: &str, expected: &str, got: Option<&Value>) -> ArchError {
        ArchError::Key {
            key: self.dotted(key),
            expected: expected.to_owned(),
            got: got.map_or_else(|| "nothing".to_owned(), show),
        }
    }

    /// The error for a legal value that cannot be run.
    pub fn unsupported(&self, key: &str, what: impl Into<String>) -> ArchError {
        ArchError::Unsupported { key: self.dotted(key), what: what.into() }
    }

    fn dotted(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }
}

/// A value for messages, shortened.
fn show(value: &Value) -> String {
    match value {
        Value::Array(list) => format!("a list of {} values", list.len()),
        Value::Object(map) => format!("an object of {} keys", map.len()),
        Value::String(text) if text.chars().count() > 60 => {
            format!("\"{}…\"", text.chars().take(60).collect::<String>())
        }
        other => other.to_string(),
    }
}

fn whole(range: &RangeInclusive<usize>) -> String {
    format!("a whole number from {} to {}", range.start(), range.end())
}

fn number(range: &RangeInclusive<f64>) -> String {
    format!("a number from {} to {}", range.start(), range.end())
}
