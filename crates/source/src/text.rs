//! Text that comes from a file, made fit for a terminal: bounded and without control characters.

use crate::SourceError;

/// Longest name of a tensor or a shard, in bytes. Real ones stay below 200.
pub const MAX_NAME: usize = 1024;

/// `text` with control characters escaped, cut after `max` characters.
pub fn clip(text: &str, max: usize) -> String {
    let mut out: String = text
        .chars()
        .take(max)
        .flat_map(|c| if c.is_control() { Shown::Escaped(c.escape_default()) } else { Shown::Plain(Some(c)) })
        .collect();
    if text.chars().nth(max).is_some() {
        out.push('…');
    }
    out
}

enum Shown {
    Plain(Option<char>),
    Escaped(std::char::EscapeDefault),
}

impl Iterator for Shown {
    type Item = char;
    fn next(&mut self) -> Option<char> {
        match self {
            Self::Plain(c) => c.take(),
            Self::Escaped(e) => e.next(),
        }
    }
}

/// What serde_json says, bounded; positions are kept since they come last.
pub fn json_message(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let position = format!(" at line {} column {}", error.line(), error.column());
    let what = text.strip_suffix(&position).unwrap_or(&text);
    format!("line {}, column {}: {}", error.line(), error.column(), clip(what, 300))
}

/// Names reach terminals, manifests and file systems: they must be printable and of sane length.
pub fn check_name(file: &str, name: &str) -> Result<(), SourceError> {
    let why = if name.is_empty() {
        "is empty".to_owned()
    } else if name.len() > MAX_NAME {
        format!("is {} bytes long, at most {MAX_NAME} are allowed", name.len())
    } else if name.chars().any(char::is_control) {
        "holds a control character".to_owned()
    } else {
        return Ok(());
    };
    Err(SourceError::Name { file: file.to_owned(), name: clip(name, 80), why })
}
