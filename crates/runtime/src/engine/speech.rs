//! Tokens to text: whole characters, the parts of a reply, an end at a stop text.

use crate::stop::StopStrings;
use crate::{GenerateOptions, Part, RuntimeError, Splitter, TextStream, Tokenizer};
use std::sync::Arc;

/// New text by what it belongs to.
pub type Parts = Vec<(Part, String)>;

/// What one request says.
pub struct Speech {
    stream: TextStream,
    splitter: Splitter,
    stops: StopStrings,
    /// The stop text that has ended it.
    stopped: Option<String>,
    /// Tokens that are not of the answer.
    pub reasoning_tokens: usize,
}

impl Speech {
    pub fn new(tokenizer: &Arc<Tokenizer>, options: &GenerateOptions) -> Self {
        let stream = TextStream::new(Arc::clone(tokenizer), true).keeping(&options.reply.marks());
        let (splitter, stops) = (Splitter::new(&options.reply), StopStrings::new(&options.stop));
        Self { stream, splitter, stops, stopped: None, reasoning_tokens: 0 }
    }

    /// The text that a token makes certain, and the stop text if that completes one.
    pub fn push(&mut self, token: u32) -> Result<(Parts, Option<String>), RuntimeError> {
        self.reasoning_tokens += usize::from(self.splitter.part() != Part::Answer);
        let new = self.stream.push(token)?;
        let mut parts = Parts::new();
        let Self { splitter, stops, stopped, .. } = self;
        splitter.push(&new, &mut |part, text| add(&mut parts, stops, stopped, part, text));
        Ok((parts, self.stopped.clone()))
    }

    /// What was held back, when no more tokens come.
    pub fn finish(&mut self) -> Parts {
        let rest = self.stream.finish();
        let mut parts = Parts::new();
        let Self { splitter, stops, stopped, .. } = self;
        let mut out = |part, text: &str| add(&mut parts, stops, stopped, part, text);
        splitter.push(&rest, &mut out);
        splitter.finish(&mut out);
        if self.stopped.is_none() {
            say(&mut parts, Part::Answer, self.stops.finish());
        }
        parts
    }
}

/// Adds text up to a stop text, which is an answer's; behind it nothing counts.
fn add(parts: &mut Parts, stops: &mut StopStrings, stopped: &mut Option<String>, part: Part, text: &str) {
    if stopped.is_some() {
        return;
    }
    if part != Part::Answer {
        say(parts, Part::Answer, stops.finish());
        return say(parts, part, text.to_owned());
    }
    let (text, stop) = stops.push(text);
    *stopped = stop;
    say(parts, part, text);
}

fn say(parts: &mut Parts, part: Part, text: String) {
    match parts.last_mut() {
        _ if text.is_empty() => {}
        Some((last, said)) if *last == part => said.push_str(&text),
        _ => parts.push((part, text)),
    }
}
