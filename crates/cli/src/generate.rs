//! The loop from a prompt to a text: feed, sample, decode, stop.

use ashlar_runtime::{Model, RuntimeError, Sampler, TextStream, Tokenizer, Wanted};
use serde_json::Value;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// When a text ends.
#[derive(Clone, Debug, Default)]
pub struct Limits {
    /// Tokens, the last one included; `None` for what the context holds.
    pub max_tokens: Option<usize>,
    /// Texts that are cut off with all that follows.
    pub stop: Vec<String>,
    /// Tokens that end a text and are no part of it.
    pub end_tokens: Vec<u32>,
}

/// What a text cost.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stats {
    /// Prompt tokens that had to be fed.
    pub fed: usize,
    /// Prompt tokens that the cache still held.
    pub held: usize,
    pub prompt_seconds: f64,
    /// Tokens generated.
    pub tokens: Vec<u32>,
    pub seconds: f64,
}

/// Tokens that end a text, from `generation_config.json`, else from the config.
#[must_use]
pub fn end_tokens(dir: &Path, config: &Value) -> Vec<u32> {
    let file = std::fs::read(dir.join("generation_config.json")).ok();
    let generation: Value = file.and_then(|b| serde_json::from_slice(&b).ok()).unwrap_or_default();
    let ids = |v: &Value| -> Vec<u32> {
        let list = v.get("eos_token_id");
        let one = list.and_then(Value::as_u64).into_iter();
        let many = list.and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_u64);
        one.chain(many).filter_map(|id| u32::try_from(id).ok()).collect()
    };
    let found = ids(&generation);
    if found.is_empty() { ids(config) } else { found }
}

/// Feeds `prompt` and generates. `held` is what the cache holds and is kept up to date, so that a conversation is fed
/// once. `each` gets every piece of text as soon as it is certain; `cancel` ends the text after the current token.
///
/// # Errors
/// [`RuntimeError`]: the prompt does not fit, or the model fails; what `each` returns.
pub fn generate(
    model: &mut Model,
    tokenizer: &Tokenizer,
    sampler: &mut Sampler,
    held: &mut Vec<u32>,
    prompt: &[u32],
    limits: &Limits,
    cancel: &AtomicBool,
    each: &mut dyn FnMut(&str) -> anyhow::Result<()>,
) -> anyhow::Result<Stats> {
    let same = held.iter().zip(prompt).take_while(|(a, b)| a == b).count().min(prompt.len().saturating_sub(1));
    held.truncate(same);
    let start = Instant::now();
    let cancelled = || cancel.load(Ordering::Relaxed);
    let mut logits = Vec::new();
    let rest = prompt.get(same..).unwrap_or_default();
    let fed = model.feed(0, same, rest, Wanted::Last, &mut |l| logits = l.to_vec(), &mut |_| !cancelled())?;
    held.extend(rest.iter().take(fed));
    let mut stats = Stats { fed, held: same, prompt_seconds: start.elapsed().as_secs_f64(), ..Stats::default() };
    let mut text = Cutter::new(&limits.stop);
    let mut stream = TextStream::new(tokenizer, true);
    let start = Instant::now();
    let room = model.context().saturating_sub(held.len()) + 1;
    let most = limits.max_tokens.unwrap_or(room).min(room);
    while stats.tokens.len() < most && !logits.is_empty() && !cancelled() {
        let seen: Vec<u32> = held.clone();
        let token = sampler.sample(&logits, &seen)?;
        if limits.end_tokens.contains(&token) {
            break;
        }
        stats.tokens.push(token);
        each(&text.push(&stream.push(token)?))?;
        if text.cut || stats.tokens.len() == most {
            break;
        }
        logits.clear();
        model.feed(0, held.len(), &[token], Wanted::Last, &mut |l| logits = l.to_vec(), &mut |_| true)?;
        held.push(token);
    }
    each(&text.push(&stream.finish()))?;
    each(&text.finish())?;
    stats.seconds = start.elapsed().as_secs_f64();
    Ok(stats)
}

/// Cuts a stream of text before the first stop text, holding back what may become one.
struct Cutter<'a> {
    stop: &'a [String],
    pending: String,
    cut: bool,
}

impl<'a> Cutter<'a> {
    fn new(stop: &'a [String]) -> Self {
        Self { stop, pending: String::new(), cut: false }
    }

    /// What is certain to be part of the text.
    fn push(&mut self, text: &str) -> String {
        if self.cut {
            return String::new();
        }
        self.pending.push_str(text);
        let found = self.stop.iter().filter(|s| !s.is_empty()).filter_map(|s| self.pending.find(s.as_str())).min();
        if let Some(at) = found {
            self.cut = true;
            self.pending.truncate(at);
            return std::mem::take(&mut self.pending);
        }
        let certain = self.pending.len() - self.longest_beginning();
        self.pending.drain(..certain).collect()
    }

    /// Bytes at the end of the pending text that are the beginning of a stop text.
    fn longest_beginning(&self) -> usize {
        let begins = |s: &String| {
            let ends = s.char_indices().map(|(i, _)| i).skip(1);
            ends.filter(|&i| s.get(..i).is_some_and(|part| self.pending.ends_with(part))).max()
        };
        self.stop.iter().filter_map(begins).max().unwrap_or(0)
    }

    fn finish(&mut self) -> String {
        std::mem::take(&mut self.pending)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(stop: &[&str], pieces: &[&str]) -> (Vec<String>, bool) {
        let stop: Vec<String> = stop.iter().map(|s| (*s).to_owned()).collect();
        let mut cutter = Cutter::new(&stop);
        let mut out: Vec<String> = pieces.iter().map(|p| cutter.push(p)).collect();
        out.push(cutter.finish());
        (out, cutter.cut)
    }

    #[test]
    fn a_stop_text_spread_over_pieces_is_cut_off() {
        assert_eq!(run(&["END"], &["a E", "N", "D b", "c"]), (vec!["a ".into(), "".into(), "".into(), "".into(), "".into()], true));
    }

    #[test]
    fn what_only_begins_like_a_stop_text_is_handed_out_in_the_end() {
        assert_eq!(run(&["END", "ö!"], &["xEN", "ö"]), (vec!["x".into(), "EN".into(), "ö".into()], false));
    }

    #[test]
    fn the_earliest_stop_text_wins() {
        assert_eq!(run(&["late", "ear"], &["an early late"]).0, ["an ", ""]);
    }
}
