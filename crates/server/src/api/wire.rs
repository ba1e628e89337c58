//! What clients get: usage, reasons, probabilities.

use ashlar_runtime::engine::{Choice, Finished};
use ashlar_runtime::{StopReason, Tokenizer};
use serde_json::{Value, json};

/// Tokens of all choices of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    prompt: usize,
    cached: usize,
    completion: usize,
}

impl Usage {
    /// Adds one choice; the prompt counts once.
    pub fn add(&mut self, finished: &Finished) {
        self.prompt = finished.timings.prompt_tokens;
        self.cached = self.cached.max(finished.timings.reused_tokens);
        self.completion += finished.tokens;
    }

    pub fn json(self) -> Value {
        json!({
            "prompt_tokens": self.prompt, "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": self.cached},
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

/// `logprobs` of a plain completion's choice; `offset` is where its text begins, in characters.
pub fn plain_logprobs(tokenizer: &Tokenizer, choices: &[Choice], mut offset: usize) -> Value {
    let (mut tokens, mut logprobs, mut top, mut offsets) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for choice in choices {
        let text = |id: u32| tokenizer.decode(&[id], false).unwrap_or_default();
        offsets.push(offset);
        offset += text(choice.id).chars().count();
        tokens.push(text(choice.id));
        logprobs.push(choice.logprob);
        top.push(choice.top.iter().map(|(id, p)| (text(*id), json!(p))).collect::<serde_json::Map<_, _>>());
    }
    json!({"tokens": tokens, "token_logprobs": logprobs, "top_logprobs": top, "text_offset": offsets})
}
