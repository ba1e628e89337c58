//! `/v1/completions`: text to be continued as it is.

use super::answer::Answers;
use super::error::ApiError;
use super::framing::{Choices, Sending, send};
use super::identity::RequestId;
use super::request::{Common, alternatives};
use super::wire::plain_logprobs;
use super::{body, check_model};
use crate::State;
use ashlar_runtime::Tokenizer;
use ashlar_runtime::engine::{Choice, Piece};
use axum::body::Body;
use axum::extract::{Extension, State as Given};
use axum::response::Response;
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;

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
pub async fn answer(
    Given(state): Given<Arc<State>>,
    Extension(id): Extension<RequestId>,
    sent: Body,
) -> Result<Response, ApiError> {
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
    let answers = Answers::ask(&state, id, &tokens, &options, logprobs, choices).await?;
    let echoed = if echo { text } else { String::new() };
    let offset = echoed.chars().count();
    let one = Said { text: echoed.clone(), tokens: Vec::new(), offset, finish: "stop" };
    let told = Texts {
        tokenizer: Arc::clone(&state.tokenizer),
        logprobs: logprobs.is_some(),
        echoed,
        said: vec![one; choices],
    };
    send(state, answers, told, Sending::of(common.stream, common.stream_options)).await
}

/// What the choices have said so far.
struct Texts {
    tokenizer: Arc<Tokenizer>,
    logprobs: bool,
    echoed: String,
    said: Vec<Said>,
}

#[derive(Clone)]
struct Said {
    text: String,
    tokens: Vec<Choice>,
    /// Where the next piece begins, in characters.
    offset: usize,
    finish: &'static str,
}

fn choice(index: usize, text: &str, logprobs: &Value, finish: Option<&str>) -> Value {
    json!({"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish})
}

impl Choices for Texts {
    const NAMES: [&'static str; 3] = ["cmpl", "text_completion", "text_completion"];

    fn begin(&self) -> Vec<Value> {
        let echoes = !self.echoed.is_empty();
        (0..self.said.len()).filter(|_| echoes).map(|i| choice(i, &self.echoed, &Value::Null, None)).collect()
    }

    fn piece(&mut self, index: usize, piece: Piece) -> Vec<Value> {
        let Some(said) = self.said.get_mut(index) else { return Vec::new() };
        let text = piece.text();
        let mut logprobs = Value::Null;
        if self.logprobs {
            logprobs = plain_logprobs(&self.tokenizer, &piece.tokens, said.offset);
            said.tokens.extend(piece.tokens);
        }
        said.offset += text.chars().count();
        said.text.push_str(&text);
        let empty = text.is_empty() && logprobs.is_null();
        if empty { Vec::new() } else { vec![choice(index, &text, &logprobs, None)] }
    }

    fn end(&mut self, index: usize, reason: &'static str) -> Vec<Value> {
        self.said.get_mut(index).into_iter().for_each(|said| said.finish = reason);
        vec![choice(index, "", &Value::Null, Some(reason))]
    }

    fn whole(&mut self) -> Vec<Value> {
        let begin = self.echoed.chars().count();
        let one = |(index, said): (usize, &Said)| {
            let logprobs =
                if self.logprobs { plain_logprobs(&self.tokenizer, &said.tokens, begin) } else { Value::Null };
            choice(index, &said.text, &logprobs, Some(said.finish))
        };
        self.said.iter().enumerate().map(one).collect()
    }
}
