//! `/v1/completions`: text to be continued as it is.

use super::answer::{Answers, Event};
use super::error::ApiError;
use super::request::{Common, StreamOptions, alternatives};
use super::stream::{Chunks, stream};
use super::wire::{Usage, plain_logprobs, reason};
use super::{body, check_model};
use crate::State;
use axum::Json;
use axum::body::Body;
use axum::extract::State as Given;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Tokens of an answer where a request does not say: OpenAI's default.
const DEFAULT_TOKENS: usize = 16;

/// A prompt as text, or as tokens.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Prompt {
    Text(String),
    Tokens(Vec<u32>),
    One([String; 1]),
}

/// Answers, whole or as a stream.
pub async fn answer(Given(state): Given<Arc<State>>, sent: Body) -> Result<Response, ApiError> {
    let sent = body(&state, sent).await?;
    let mut common = Common::parse(&sent)?;
    check_model(&state, common.model.as_deref())?;
    let prompt: Prompt = common.take("prompt")?.ok_or_else(|| ApiError::field("prompt", "`prompt` is missing"))?;
    let echo = common.take::<bool>("echo")?.unwrap_or(false);
    if common.take::<String>("suffix")?.is_some_and(|s| !s.is_empty()) {
        return Err(ApiError::field("suffix", "`suffix` is not supported here; leave it out"));
    }
    let logprobs = common.take("logprobs")?.map(|asked| alternatives("logprobs", asked)).transpose()?;
    let (choices, mut options) = (common.choices()?, common.options(&state.options.sampling)?);
    options.max_tokens = options.max_tokens.or(Some(DEFAULT_TOKENS));
    let (text, tokens) = match prompt {
        Prompt::Text(text) | Prompt::One([text]) => {
            let tokenizer = Arc::clone(&state.tokenizer);
            let encoded = tokio::task::spawn_blocking(move || (tokenizer.encode(&text, true), text)).await;
            let (tokens, text) = encoded.map_err(|e| ApiError::failed(e.to_string()))?;
            (text, tokens?)
        }
        Prompt::Tokens(tokens) => (state.tokenizer.decode(&tokens, false)?, tokens),
    };
    let answers = Answers::ask(&state, &tokens, &options, logprobs, choices).await?;
    let number = state.next.fetch_add(1, Ordering::Relaxed);
    let head =
        Head { id: format!("cmpl-{:x}-{number}", state.started), created: super::now(), state: Arc::clone(&state) };
    let echoed = if echo { text } else { String::new() };
    let offset = echoed.chars().count();
    let mut told = Told {
        head,
        logprobs: logprobs.is_some(),
        usage: Usage::default(),
        usage_asked: false,
        offsets: vec![offset; choices],
    };
    let most = state.options.answer_timeout;
    let headers = super::queue_headers(&answers);
    if common.stream {
        told.usage_asked = common.stream_options.is_some_and(|StreamOptions { include_usage }| include_usage);
        let first = (0..choices).filter(|_| echo).map(|i| told.head.chunk(i, &echoed, &Value::Null, None)).collect();
        return Ok((headers, stream(answers, first, told, most)).into_response());
    }
    let whole = tokio::time::timeout(most, told.whole(answers, &echoed)).await;
    let whole = whole.map_err(|_| ApiError::failed(format!("the answer took longer than {} s", most.as_secs())))??;
    Ok((headers, Json(whole)).into_response())
}

struct Head {
    id: String,
    created: u64,
    state: Arc<State>,
}

impl Head {
    fn object(&self, choices: &Value) -> Value {
        let model = &self.state.options.model;
        json!({"id": self.id, "object": "text_completion", "created": self.created, "model": model, "choices": choices})
    }

    fn chunk(&self, index: usize, text: &str, logprobs: &Value, finish: Option<&str>) -> Value {
        self.object(&json!([{"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}]))
    }
}

struct Told {
    head: Head,
    logprobs: bool,
    usage: Usage,
    usage_asked: bool,
    /// Where the next text of every choice begins, in characters.
    offsets: Vec<usize>,
}

impl Told {
    async fn whole(mut self, mut answers: Answers, echoed: &str) -> Result<Value, ApiError> {
        let begin = echoed.chars().count();
        let mut all: Vec<(String, Vec<_>, &str)> =
            self.offsets.iter().map(|_| (echoed.to_owned(), Vec::new(), "stop")).collect();
        while let Some(event) = answers.next().await {
            match event {
                Event::Piece(index, piece) => {
                    if let Some((text, tokens, _)) = all.get_mut(index) {
                        text.push_str(&piece.text());
                        tokens.extend(piece.tokens);
                    }
                }
                Event::End(index, how) => {
                    let finished = how.map_err(ApiError::failed)?;
                    self.usage.add(&finished);
                    if let Some((_, _, why)) = all.get_mut(index) {
                        *why = reason(&finished.reason);
                    }
                }
            }
        }
        let tokenizer = &self.head.state.tokenizer;
        let choices = all.iter().enumerate().map(|(index, (text, tokens, why))| {
            let logprobs = if self.logprobs { plain_logprobs(tokenizer, tokens, begin) } else { Value::Null };
            json!({"index": index, "text": text, "logprobs": logprobs, "finish_reason": why})
        });
        let mut whole = self.head.object(&choices.collect());
        whole.as_object_mut().map(|o| o.insert("usage".into(), self.usage.json()));
        Ok(whole)
    }
}

impl Chunks for Told {
    fn event(&mut self, event: Event) -> Vec<Value> {
        match event {
            Event::Piece(index, piece) => {
                let text = piece.text();
                let mut logprobs = Value::Null;
                if let Some(offset) = self.offsets.get_mut(index).filter(|_| self.logprobs) {
                    logprobs = plain_logprobs(&self.head.state.tokenizer, &piece.tokens, *offset);
                    *offset += text.chars().count();
                }
                let empty = text.is_empty() && logprobs.is_null();
                if empty { Vec::new() } else { vec![self.head.chunk(index, &text, &logprobs, None)] }
            }
            Event::End(index, Ok(finished)) => {
                self.usage.add(&finished);
                vec![self.head.chunk(index, "", &Value::Null, Some(reason(&finished.reason)))]
            }
            Event::End(_, Err(error)) => vec![ApiError::failed(error).json()],
        }
    }

    fn end(&mut self) -> Vec<Value> {
        if !self.usage_asked {
            return Vec::new();
        }
        let mut last = self.head.object(&json!([]));
        last.as_object_mut().map(|o| o.insert("usage".into(), self.usage.json()));
        vec![last]
    }
}
