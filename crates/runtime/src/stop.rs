//! What ends an answer: the model's stop tokens and the caller's stop texts.

use crate::Tokenizer;
use serde_json::Value;
use std::path::Path;

/// Watches text for stop texts, holding back what could be the beginning of one.
#[derive(Clone, Debug)]
pub struct StopStrings {
    stops: Vec<String>,
    held: String,
}

impl StopStrings {
    /// Empty texts are left out.
    #[must_use]
    pub fn new(stops: &[String]) -> Self {
        Self { stops: stops.iter().filter(|s| !s.is_empty()).cloned().collect(), held: String::new() }
    }

    /// Adds text; returns what is certain not to be part of a stop text, and the stop text if one is complete.
    pub fn push(&mut self, text: &str) -> (String, Option<String>) {
        self.held.push_str(text);
        let found = self.stops.iter().filter_map(|s| Some((self.held.find(s.as_str())?, s)));
        // The earliest; of several at one place the longest.
        if let Some((at, stop)) = found.min_by_key(|(at, s)| (*at, std::cmp::Reverse(s.len()))) {
            let (before, stop) = (self.held.get(..at).unwrap_or_default().to_owned(), stop.clone());
            self.held.clear();
            return (before, Some(stop));
        }
        let keep = self.held.char_indices().map(|(i, _)| i).find(|&i| {
            let tail = self.held.get(i..).unwrap_or_default();
            self.stops.iter().any(|s| s.starts_with(tail))
        });
        let rest = self.held.split_off(keep.unwrap_or(self.held.len()));
        (std::mem::replace(&mut self.held, rest), None)
    }

    /// What was held back, when no more text comes.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// Tokens that end an answer: `eos_token_id` (a number or a list) of `generation_config.json` and `config.json`, and
/// `eos_token` of `tokenizer_config.json`. Files that are absent say nothing.
#[must_use]
pub fn stop_tokens(dir: &Path, config: &Value, tokenizer: &Tokenizer) -> Vec<u32> {
    let read = |name: &str| -> Option<Value> { serde_json::from_slice(&std::fs::read(dir.join(name)).ok()?).ok() };
    let mut tokens = Vec::new();
    for source in [read("generation_config.json").as_ref(), Some(config)].into_iter().flatten() {
        let one = |v: &Value| v.as_u64().and_then(|id| u32::try_from(id).ok());
        match source.get("eos_token_id") {
            Some(Value::Array(list)) => tokens.extend(list.iter().filter_map(one)),
            Some(value) => tokens.extend(one(value)),
            None => {}
        }
    }
    let named = read("tokenizer_config.json").and_then(|c| {
        let eos = c.get("eos_token")?;
        tokenizer.id(eos.as_str().or_else(|| eos.get("content")?.as_str())?)
    });
    tokens.extend(named);
    tokens.sort_unstable();
    tokens.dedup();
    tokens
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(stops: &[&str], parts: &[&str]) -> (Vec<String>, Option<String>) {
        let mut s = StopStrings::new(&stops.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>());
        let mut said = Vec::new();
        for part in parts {
            let (text, stop) = s.push(part);
            said.push(text);
            if stop.is_some() {
                return (said, stop);
            }
        }
        said.push(s.finish());
        (said, None)
    }

    fn owned(parts: &[&str]) -> Vec<String> {
        parts.iter().map(|s| (*s).to_owned()).collect()
    }

    #[test]
    fn the_beginning_of_a_stop_text_is_held_back_until_it_is_none() {
        assert_eq!(run(&["END"], &["aE", "N", "x", "b"]), (owned(&["a", "", "ENx", "b", ""]), None));
        assert_eq!(run(&["END"], &["aE", "N"]), (owned(&["a", "", "EN"]), None));
        assert_eq!(run(&["aab"], &["aa", "ab", "c"]), (owned(&["", "a"]), Some("aab".into())));
    }

    #[test]
    fn a_stop_text_is_not_part_of_the_answer_however_it_is_split() {
        assert_eq!(run(&["\n\n"], &["one\n", "\ntwo"]), (owned(&["one", ""]), Some("\n\n".into())));
        assert_eq!(run(&["é!"], &["caf", "é", "!"]), (owned(&["caf", "", ""]), Some("é!".into())));
    }

    #[test]
    fn the_earliest_stop_text_wins_and_empty_ones_are_ignored() {
        assert_eq!(run(&["", "cd", "bc"], &["abcd"]), (owned(&["a"]), Some("bc".into())));
        assert_eq!(run(&["b", "bc"], &["abc"]).1, Some("bc".into()));
        assert_eq!(run(&[], &["abc"]), (owned(&["abc", ""]), None));
    }
}
