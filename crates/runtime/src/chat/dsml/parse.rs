//! Calls of tools, from what a model wrote.

use crate::RuntimeError;
use crate::chat::ToolCall;
use crate::chat::python::dumps;
use serde_json::Value;

/// What calls begin with.
pub const CALLS: &str = "<｜DSML｜tool_calls>";
const CALLS_END: &str = "</｜DSML｜tool_calls>";
const INVOKE: &str = "<｜DSML｜invoke name=\"";
const INVOKE_END: &str = "</｜DSML｜invoke>";
const PARAMETER: &str = "<｜DSML｜parameter name=\"";
const PARAMETER_END: &str = "</｜DSML｜parameter>";

/// The calls of a block that begins with [`CALLS`]. Nothing but the end of the turn may stand behind it. Ids are the
/// caller's to give.
///
/// # Errors
/// [`RuntimeError::Reply`], with what was expected and what stands there.
pub fn parse(text: &str) -> Result<Vec<ToolCall>, RuntimeError> {
    let mut rest = Rest { text: text.trim_end() };
    let mut calls = Vec::new();
    rest.expect(CALLS)?;
    rest.expect("\n")?;
    while rest.take(INVOKE) {
        let name = rest.until("\">\n")?.to_owned();
        let mut arguments: Vec<(String, String)> = Vec::new();
        while rest.take(PARAMETER) {
            let key = rest.until("\" string=\"")?.to_owned();
            let is_text = match rest.until("\">")? {
                "true" => true,
                "false" => false,
                other => return Err(wrong("string=\"true\" or string=\"false\"", other)),
            };
            let value = rest.until(PARAMETER_END)?;
            rest.expect("\n")?;
            if arguments.iter().any(|(k, _)| *k == key) {
                return Err(wrong("every parameter once", &key));
            }
            let value = if is_text { dumps(&Value::from(value)) } else { json(value)? };
            arguments.push((key, value));
        }
        // A call without parameters has an empty line.
        rest.take("\n");
        rest.expect(INVOKE_END)?;
        rest.expect("\n")?;
        let pairs: Vec<String> =
            arguments.iter().map(|(k, v)| format!("{}: {v}", dumps(&Value::from(k.as_str())))).collect();
        calls.push(ToolCall { id: None, name, arguments: format!("{{{}}}", pairs.join(", ")) });
    }
    rest.expect(CALLS_END)?;
    if rest.text.is_empty() { Ok(calls) } else { Err(wrong("the end of the turn", rest.text)) }
}

/// A value that was given as JSON.
fn json(text: &str) -> Result<String, RuntimeError> {
    match serde_json::from_str::<Value>(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(_) => Err(wrong("a value in JSON, as string=\"false\" says", text)),
    }
}

struct Rest<'a> {
    text: &'a str,
}

impl<'a> Rest<'a> {
    fn take(&mut self, what: &str) -> bool {
        let behind = self.text.strip_prefix(what);
        self.text = behind.unwrap_or(self.text);
        behind.is_some()
    }

    fn expect(&mut self, what: &str) -> Result<(), RuntimeError> {
        if self.take(what) { Ok(()) } else { Err(wrong(&format!("`{what}`"), self.text)) }
    }

    fn until(&mut self, end: &str) -> Result<&'a str, RuntimeError> {
        let (before, behind) = self.text.split_once(end).ok_or_else(|| wrong(&format!("`{end}`"), self.text))?;
        self.text = behind;
        Ok(before)
    }
}

fn wrong(expected: &str, got: &str) -> RuntimeError {
    RuntimeError::Reply { expected: expected.to_owned(), got: got.chars().take(80).collect() }
}
