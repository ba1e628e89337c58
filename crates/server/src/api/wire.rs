//! What clients get: usage, reasons, probabilities.

use ashlar_runtime::engine::{Choice, Finished};
use ashlar_runtime::{StopReason, Tokenizer};
use serde_json::{Value, json};

/// Tokens of all choices of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    choices: usize,
    prompt: usize,
    cached: usize,
    completion: usize,
    reasoning: usize,
}

impl Usage {
    /// Nothing yet, of so many choices per prompt.
    pub fn new(choices: usize) -> Self {
        Self { choices, prompt: 0, cached: 0, completion: 0, reasoning: 0 }
    }

    /// Adds one choice; a prompt counts once, with its first.
    pub fn add(&mut self, index: usize, finished: &Finished) {
        if index.is_multiple_of(self.choices) {
            self.prompt += finished.timings.prompt_tokens;
            self.cached += finished.timings.reused_tokens;
        }
        self.completion += finished.tokens;
        self.reasoning += finished.reasoning_tokens;
    }

    pub fn json(self) -> Value {
        json!({
            "prompt_tokens": self.prompt, "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": self.cached},
            "completion_tokens_details": {"reasoning_tokens": self.reasoning},
        })
    }
}

/// `finish_reason`.
pub fn reason(reason: &StopReason) -> &'static str {
    match reason {
        StopReason::Token(_) | StopReason::Text(_) | StopReason::Cancelled => "stop",
        StopReason::MaxTokens | StopReason::Context => "length",
    }
}

/// A token as text and bytes. A part of a character is U+FFFD as text.
fn token(tokenizer: &Tokenizer, id: u32, logprob: f32) -> Value {
    let bytes = tokenizer.token_bytes(id).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    json!({"token": text, "logprob": logprob, "bytes": bytes})
}

/// `logprobs.content` of a chat's choice.
pub fn chat_logprobs(tokenizer: &Tokenizer, choices: &[Choice]) -> Vec<Value> {
    let one = |choice: &Choice| {
        let mut told = token(tokenizer, choice.id, choice.logprob?);
        let top: Vec<Value> = choice.top.iter().map(|(id, p)| token(tokenizer, *id, *p)).collect();
        told.as_object_mut()?.insert("top_logprobs".into(), top.into());
        Some(told)
    };
    choices.iter().filter_map(one).collect()
}

/// A token's text; where that is no whole characters, its bytes as OpenAI writes them there.
fn text_or_bytes(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().fold("bytes:".to_owned(), |text, byte| text + &format!("\\x{byte:02x}")),
    }
}

/// `logprobs` of a plain completion's choice; `offset` is where its text begins, in characters, and then where it goes on.
pub fn plain_logprobs(tokenizer: &Tokenizer, choices: &[Choice], offset: &mut usize) -> Value {
    let (mut tokens, mut logprobs, mut top, mut offsets) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let bytes = |id: u32| tokenizer.token_bytes(id).unwrap_or_default();
    for choice in choices {
        let own = bytes(choice.id);
        let begins = |byte: &u8| byte & 0xc0 != 0x80;
        // What goes on in a character lies where that begins.
        offsets.push(if own.first().is_some_and(begins) { *offset } else { offset.saturating_sub(1) });
        *offset += own.iter().filter(|byte| begins(byte)).count();
        tokens.push(text_or_bytes(&own));
        logprobs.push(choice.logprob);
        let ranked = choice.top.iter().map(|(id, p)| (text_or_bytes(&bytes(*id)), json!(p)));
        top.push(ranked.collect::<serde_json::Map<_, _>>());
    }
    json!({"tokens": tokens, "token_logprobs": logprobs, "top_logprobs": top, "text_offset": offsets})
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    #[test]
    fn parts_of_characters_are_told_as_bytes_where_their_character_begins() {
        let demo = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/tiny/llama");
        let tokenizer = Tokenizer::open(&demo).unwrap();
        let ids = tokenizer.encode("a🙂 b", false).unwrap();
        let choice = |id: &u32| Choice { id: *id, logprob: Some(-1.0), top: vec![(*id, -1.0)] };
        let choices: Vec<Choice> = ids.iter().map(choice).collect();
        let mut offset = 5;
        let told = plain_logprobs(&tokenizer, &choices, &mut offset);
        let (tokens, offsets) = (told["tokens"].as_array().unwrap(), told["text_offset"].as_array().unwrap());
        let split =
            tokens.iter().position(|t| t.as_str().unwrap().starts_with("bytes:\\xf0")).expect("no token is a smile");
        assert!(tokens[split + 1].as_str().unwrap().starts_with("bytes:\\x"), "{told}");
        assert_eq!((&offsets[split], &offsets[split + 1]), (&json!(6), &json!(6)));
        assert_eq!((offset, &tokens[0]), (9, &json!("a")));
        // The same in two pieces, as a stream tells it.
        let mut later = 5;
        let first = plain_logprobs(&tokenizer, &choices[..=split], &mut later);
        let second = plain_logprobs(&tokenizer, &choices[split + 1..], &mut later);
        let both =
            [first, second].iter().flat_map(|l| l["text_offset"].as_array().unwrap().clone()).collect::<Vec<_>>();
        assert_eq!(&both, offsets);
    }
}
