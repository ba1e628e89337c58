//! A reply taken apart as it comes: what the model reasons, what it answers, what it calls.
//!
//! Marks may be tokens of their own or come in pieces: text that could be the beginning of one is held back until that is
//! decided. `<think>` counts at the very beginning only; later it is text that the model writes about.

mod channels;
mod tags;

use channels::Channels;
use tags::Tags;

/// What a piece of a reply is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Part {
    /// For the model itself.
    Reasoning,
    /// For the user.
    Answer,
    /// For tools.
    Call,
}

/// How a model divides its replies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ReplyForm {
    /// Not at all.
    #[default]
    Plain,
    /// Reasoning between two tags, then the answer.
    Tags {
        /// The prompt ends with the first tag.
        begins_inside: bool,
        /// The first tag.
        open: String,
        /// The second one.
        close: String,
        /// What calls of tools begin with; they end with the reply. Also where there is no reasoning before them.
        calls: Option<String>,
    },
    /// Messages in channels, as gpt-oss writes them (OpenAI's harmony format): `analysis` is reasoning, `final` the answer;
    /// in `commentary` stands what is said to the user before calls, and the calls.
    Channels,
}

impl ReplyForm {
    /// All marks. Special tokens that are part of one must not be left out of the text.
    #[must_use]
    pub fn marks(&self) -> Vec<&str> {
        match self {
            Self::Plain => Vec::new(),
            Self::Tags { open, close, calls, .. } => {
                [Some(open), Some(close), calls.as_ref()].into_iter().flatten().map(String::as_str).collect()
            }
            Self::Channels => channels::MARKS.to_vec(),
        }
    }
}

/// Divides one reply.
#[derive(Clone, Debug)]
pub struct Splitter {
    state: State,
    held: String,
}

#[derive(Clone, Debug)]
enum State {
    Plain,
    Tags(Tags),
    Channels(Channels),
}

impl Splitter {
    /// For one reply.
    #[must_use]
    pub fn new(form: &ReplyForm) -> Self {
        let state = match form {
            ReplyForm::Plain => State::Plain,
            ReplyForm::Tags { begins_inside, open, close, calls } => {
                State::Tags(Tags::new(*begins_inside, open, close, calls.as_deref()))
            }
            ReplyForm::Channels => State::Channels(Channels::default()),
        };
        Self { state, held: String::new() }
    }

    /// What the text that comes next belongs to, as far as is known.
    #[must_use]
    pub fn part(&self) -> Part {
        match &self.state {
            State::Plain => Part::Answer,
            State::Tags(tags) => tags.part(),
            State::Channels(channels) => channels.part(),
        }
    }

    /// Adds text; hands out what is certain.
    pub fn push(&mut self, text: &str, out: &mut dyn FnMut(Part, &str)) {
        self.held.push_str(text);
        self.drain(false, out);
    }

    /// Hands out what was held back, when no more text comes.
    pub fn finish(&mut self, out: &mut dyn FnMut(Part, &str)) {
        self.drain(true, out);
    }

    fn drain(&mut self, end: bool, out: &mut dyn FnMut(Part, &str)) {
        match &mut self.state {
            State::Plain => emit(Part::Answer, &std::mem::take(&mut self.held), out),
            State::Tags(tags) => while tags.step(&mut self.held, end, out) {},
            State::Channels(channels) => while channels.step(&mut self.held, end, out) {},
        }
    }
}

fn emit(part: Part, text: &str, out: &mut dyn FnMut(Part, &str)) {
    if !text.is_empty() {
        out(part, text);
    }
}

/// Where the first of some marks begins in a text, and which one it is; of several at one place the longest.
fn find<'m>(text: &str, marks: &[&'m str]) -> Option<(usize, &'m str)> {
    let found = marks.iter().filter_map(|mark| Some((text.find(mark)?, *mark)));
    found.min_by_key(|(at, mark)| (*at, std::cmp::Reverse(mark.len())))
}

/// Where the end of a text begins that could be the beginning of a mark.
fn uncertain(text: &str, marks: &[&str]) -> usize {
    let begins = |i: &usize| text.get(*i..).is_some_and(|tail| marks.iter().any(|mark| mark.starts_with(tail)));
    text.char_indices().map(|(i, _)| i).find(begins).unwrap_or(text.len())
}

/// Hands out and removes the text before a mark (which is removed too), or, where there is none, all that is certain.
fn before_mark(held: &mut String, marks: &[&str], end: bool, say: &mut dyn FnMut(&str)) -> Option<String> {
    if let Some((at, mark)) = find(held, marks) {
        let behind = held.split_off(at + mark.len());
        held.truncate(at);
        say(&std::mem::replace(held, behind));
        return Some(mark.to_owned());
    }
    let certain = if end { held.len() } else { uncertain(held, marks) };
    let rest = held.split_off(certain);
    say(&std::mem::replace(held, rest));
    None
}

#[cfg(test)]
mod tests;
