//! Calls of tools as models with templates write them: JSON between tags (Hermes, Qwen), parameters between tags (Qwen3-Coder),
//! or a channel per call (gpt-oss).

use super::ToolCall;
use crate::RuntimeError;
use serde::Deserialize;
use serde_json::{Map, Value};

/// What a call between tags begins with.
pub const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";
const FUNCTION: &str = "<function=";
const FUNCTION_END: &str = "</function>";
const PARAMETER: &str = "<parameter=";
const PARAMETER_END: &str = "</parameter>";
/// What gpt-oss writes before the names of tools that it was given.
const NAMESPACE: &str = "functions.";

/// A way to write calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Calls {
    /// Each between [`OPEN`] and its end.
    Tags,
    /// Each a message to a recipient.
    Channels,
}

/// A call as JSON. Some models give `parameters`.
#[derive(Deserialize)]
struct Written {
    name: String,
    #[serde(alias = "parameters")]
    arguments: Option<Value>,
}

/// One or more calls between tags, and nothing else. The last may lack its end.
///
/// # Errors
/// [`RuntimeError::Reply`], with what was expected and what stands there.
pub fn in_tags(text: &str) -> Result<Vec<ToolCall>, RuntimeError> {
    let mut calls = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        let body = rest.strip_prefix(OPEN).ok_or_else(|| wrong(OPEN, rest))?;
        let (body, behind) = body.split_once(CLOSE).unwrap_or((body, ""));
        let body = body.trim();
        calls.push(if body.starts_with(FUNCTION) { parameters(body)? } else { json(body)? });
        rest = behind.trim_start();
    }
    Ok(calls)
}

fn json(body: &str) -> Result<ToolCall, RuntimeError> {
    let call: Written = serde_json::from_str(body).map_err(|_| wrong("{\"name\": …, \"arguments\": {…}}", body))?;
    let arguments = match call.arguments {
        None => "{}".to_owned(),
        // Arguments that were written as a text are what the text says.
        Some(Value::String(text)) => text,
        Some(other) => other.to_string(),
    };
    Ok(ToolCall { id: None, name: call.name, arguments })
}

/// `<function=NAME><parameter=KEY>value</parameter>…</function>`: values as text, or as JSON where that is what stands there.
fn parameters(body: &str) -> Result<ToolCall, RuntimeError> {
    let inside = body.strip_prefix(FUNCTION).and_then(|b| b.split_once('>'));
    let (name, mut rest) = inside.ok_or_else(|| wrong("<function=NAME>", body))?;
    let mut arguments = Map::new();
    while let Some(parameter) = rest.trim_start().strip_prefix(PARAMETER) {
        let (key, behind) = parameter.split_once('>').ok_or_else(|| wrong("<parameter=KEY>", parameter))?;
        let (value, behind) = behind.split_once(PARAMETER_END).ok_or_else(|| wrong(PARAMETER_END, behind))?;
        let value = value.strip_prefix('\n').unwrap_or(value);
        let value = value.strip_suffix('\n').unwrap_or(value);
        let read = serde_json::from_str(value).unwrap_or_else(|_| Value::from(value));
        arguments.insert(key.to_owned(), read);
        rest = behind;
    }
    match rest.trim() {
        "" | FUNCTION_END => {
            Ok(ToolCall { id: None, name: name.to_owned(), arguments: Value::Object(arguments).to_string() })
        }
        other => Err(wrong(FUNCTION_END, other)),
    }
}

/// Calls as [`super::Splitter`] gives them of channels: a recipient, a space, JSON, and the end of the line.
///
/// # Errors
/// As [`in_tags`].
pub fn in_channels(text: &str) -> Result<Vec<ToolCall>, RuntimeError> {
    let mut calls = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        let (name, behind) = rest.split_once(' ').ok_or_else(|| wrong("a recipient and its arguments", rest))?;
        let mut values = serde_json::Deserializer::from_str(behind).into_iter::<Value>();
        let Some(Ok(_)) = values.next() else { return Err(wrong("arguments in JSON", behind)) };
        let (arguments, behind) = behind.split_at_checked(values.byte_offset()).unwrap_or((behind, ""));
        let name = name.strip_prefix(NAMESPACE).unwrap_or(name).to_owned();
        calls.push(ToolCall { id: None, name, arguments: arguments.trim().to_owned() });
        rest = behind.trim_start();
    }
    Ok(calls)
}

fn wrong(expected: &str, got: &str) -> RuntimeError {
    RuntimeError::Reply { expected: expected.to_owned(), got: got.chars().take(80).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(calls: Result<Vec<ToolCall>, RuntimeError>) -> Vec<(String, String)> {
        calls.unwrap().into_iter().map(|c| (c.name, c.arguments)).collect()
    }

    fn pair(name: &str, arguments: &str) -> (String, String) {
        (name.to_owned(), arguments.to_owned())
    }

    #[test]
    fn json_between_tags() {
        let two = "<tool_call>\n{\"name\": \"find\", \"arguments\": {\"q\": \"a </b>\", \"n\": 1.5}}\n</tool_call>\n<tool_call>\n{\"name\": \"stop\"}\n</tool_call>\n";
        let want = [pair("find", "{\"q\":\"a </b>\",\"n\":1.5}"), pair("stop", "{}")];
        assert_eq!(pairs(in_tags(two)), want);
        // Without an end, as a text, under the other name.
        assert_eq!(
            pairs(in_tags("<tool_call>{\"name\": \"f\", \"arguments\": \"{\\\"a\\\": 1}\"}")),
            [pair("f", "{\"a\": 1}")]
        );
        assert_eq!(pairs(in_tags("<tool_call>{\"name\": \"f\", \"parameters\": {}}</tool_call>")), [pair("f", "{}")]);
    }

    #[test]
    fn parameters_between_tags() {
        let text = "<tool_call>\n<function=edit>\n<parameter=path>\na.rs\n</parameter>\n<parameter=lines>\n[1, 2]\n</parameter>\n</function>\n</tool_call>";
        assert_eq!(pairs(in_tags(text)), [pair("edit", "{\"path\":\"a.rs\",\"lines\":[1,2]}")]);
    }

    #[test]
    fn channels_name_a_recipient() {
        let text = "functions.find {\"q\": {\"a\": [1]},\n \"n\": 2}\nstop {}\n";
        assert_eq!(pairs(in_channels(text)), [pair("find", "{\"q\": {\"a\": [1]},\n \"n\": 2}"), pair("stop", "{}")]);
    }

    #[test]
    fn what_is_cut_off_or_something_else_is_an_error_that_shows_it() {
        for text in [
            "<tool_call>{\"name\": \"f\", \"argu",
            "<tool_call>[1]</tool_call>",
            "<tool_call>{\"name\": \"f\"}</tool_call> So",
            "<tool_call><function=f><parameter=a>1",
        ] {
            assert!(in_tags(text).unwrap_err().to_string().contains("expected"), "{text}");
        }
        assert!(in_channels("python print(1)").is_err() && in_channels("find").is_err());
        assert!(in_tags(" \n").unwrap().is_empty());
    }
}
