//! Messages in channels: a header, `<|message|>`, a body, and a token that ends it.

use super::{Part, before_mark, emit};

const MESSAGE: &str = "<|message|>";
const CHANNEL: &str = "<|channel|>";
const ENDS: [&str; 4] = ["<|end|>", "<|start|>", "<|return|>", "<|call|>"];

/// Every mark.
pub const MARKS: &[&str] = &[MESSAGE, CHANNEL, "<|end|>", "<|start|>", "<|return|>", "<|call|>", "<|constrain|>"];

#[derive(Clone, Debug, Default)]
pub struct Channels {
    /// Of the message whose body comes; `None` in a header.
    body: Option<Part>,
    header: String,
    /// What was handed out last, and whether the next body is another message of that part.
    last: Option<(Part, bool)>,
}

impl Channels {
    pub fn part(&self) -> Part {
        // A header is none of the user's business either.
        self.body.unwrap_or(Part::Reasoning)
    }

    /// As [`super::tags::Tags::step`].
    pub fn step(&mut self, held: &mut String, end: bool, out: &mut dyn FnMut(Part, &str)) -> bool {
        let Some(part) = self.body else { return self.header(held, end, out) };
        let last = &mut self.last;
        let found = before_mark(held, &ENDS, end, &mut |text| {
            if !text.is_empty() && *last == Some((part, true)) {
                out(part, "\n\n");
            }
            if !text.is_empty() {
                *last = Some((part, false));
            }
            emit(part, text, out);
        });
        let Some(mark) = found else { return false };
        if mark == "<|call|>" {
            // One call per message: what comes next is a message of its own.
            emit(Part::Call, "\n", out);
        }
        self.last = self.last.map(|(part, _)| (part, true));
        (self.body, self.header) = (None, String::new());
        true
    }

    fn header(&mut self, held: &mut String, end: bool, out: &mut dyn FnMut(Part, &str)) -> bool {
        let header = &mut self.header;
        let found = before_mark(held, &[MESSAGE], end, &mut |text| header.push_str(text));
        if found.is_none() {
            if end {
                // A reply without channels must not be lost.
                let said = MARKS.iter().fold(std::mem::take(header), |text, mark| text.replace(mark, ""));
                let part = if said.trim().is_empty() { "" } else { &said };
                emit(Part::Answer, part, out);
            }
            return false;
        }
        let part = part_of(header);
        if part == Part::Call {
            let to = header.split("to=").nth(1).and_then(|t| t.split([' ', '<']).next()).unwrap_or_default();
            emit(Part::Call, &format!("{to} "), out);
        }
        self.body = Some(part);
        true
    }
}

/// By the channel a header names, and by whether it names a recipient.
fn part_of(header: &str) -> Part {
    let channel = header.rsplit_once(CHANNEL).map_or("", |(_, behind)| behind);
    if header.contains("to=") {
        Part::Call
    } else if channel.starts_with("analysis") {
        Part::Reasoning
    } else {
        Part::Answer
    }
}
