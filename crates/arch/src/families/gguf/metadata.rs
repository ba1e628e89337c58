//! Checked access to the keys of one architecture.

use super::GgufError;
use serde_json::{Map, Value};

/// The metadata, and whose keys `{architecture}.…` are meant.
#[derive(Clone, Copy)]
pub struct Metadata<'a> {
    pub architecture: &'a str,
    map: &'a Map<String, Value>,
}

impl<'a> Metadata<'a> {
    pub fn new(architecture: &'a str, map: &'a Map<String, Value>) -> Self {
        Self { architecture, map }
    }

    fn dotted(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    fn error(&self, key: &str, expected: &'static str, got: Option<&Value>) -> GgufError {
        GgufError::Key { key: self.dotted(key), expected, got: show(got) }
    }

    /// The value of `{architecture}.{key}`.
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(&self.dotted(key))
    }

    /// A whole number, if present; a list must hold the same number for every layer.
    pub fn size(&self, key: &str) -> Result<Option<u64>, GgufError> {
        let found = self.get(key);
        match found {
            None => Ok(None),
            Some(Value::Array(list)) => match list.split_first() {
                Some((first, rest)) if rest.iter().all(|v| v == first) && first.as_u64().is_some() => {
                    Ok(first.as_u64())
                }
                _ => Err(self.error(key, "a whole number, the same for all layers", found)),
            },
            Some(value) => value.as_u64().map(Some).ok_or_else(|| self.error(key, "a whole number", found)),
        }
    }

    /// A whole number.
    pub fn need(&self, key: &str) -> Result<u64, GgufError> {
        self.size(key)?.ok_or_else(|| self.error(key, "a whole number", None))
    }

    /// A finite number, if present.
    pub fn number(&self, key: &str) -> Result<Option<f64>, GgufError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_f64().map(Some).ok_or_else(|| self.error(key, "a number", Some(value)))
    }

    /// A boolean, if present.
    pub fn flag(&self, key: &str) -> Result<Option<bool>, GgufError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_bool().map(Some).ok_or_else(|| self.error(key, "true or false", Some(value)))
    }

    /// A text, if present.
    pub fn text(&self, key: &str) -> Result<Option<&'a str>, GgufError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_str().map(Some).ok_or_else(|| self.error(key, "a text", Some(value)))
    }
}

/// A value for messages, shortened.
pub fn show(value: Option<&Value>) -> String {
    match value {
        None => "nothing".to_owned(),
        Some(Value::Array(list)) => format!("a list of {} values", list.len()),
        Some(Value::String(text)) => format!("{:?}", text.chars().take(60).collect::<String>()),
        Some(other) => other.to_string().chars().take(60).collect(),
    }
}
