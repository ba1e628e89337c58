//! `/v1/completions`: text to be continued as it is.

use super::answer::Answers;
use super::error::ApiError;
use super::framing::{Choices, Sending, send};
use super::identity::RequestId;
use super::request::{Fields, alternatives};
use super::wire::plain_logprobs;
use super::{body, check_model};
use crate::State;
use ashlar_runtime::engine::{Choice, Piece};
use ashlar_runtime::{RuntimeError, Tokenizer};
use axum::body::Body;
use axum::extract::{Extension, State as Given};
use axum::response::Response;
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;

/// Tokens of an answer where a request does not say: OpenAI's default.
const DEFAULT_TOKENS: usize = 16;

/// The most prompts of one request.
const MOST_PROMPTS: usize = 128;

/// A prompt as text or as tokens, or several.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "expected a text, a list of tokens, or a list of texts or of lists of tokens")]
enum Prompts {
    Text(String),
    Tokens(Vec<u32>),
    Texts(Vec<String>),
    TokenLists(Vec<Vec<u32>>),
}

/// A prompt with its text.
type Prompt = (Vec<u32>, String);

impl Prompts {
    fn count(&self) -> usize {
        match self {
            Self::Text(_) | Self::Tokens(_) => 1,
            Self::Texts(all) => all.len(),
            Self::TokenLists(all) => all.len(),
        }
    }

    fn read(self, tokenizer: &Tokenizer) -> Result<Vec<Prompt>, RuntimeError> {
        let of_text = |text: String| Ok((tokenizer.encode(&text, true)?, text));
        let of_tokens = |tokens: Vec<u32>| tokenizer.decode(&tokens, false).map(|text| (tokens, text));
        match self {
            Self::Text(text) => Ok(vec![of_text(text)?]),
            Self::Tokens(tokens) => Ok(vec![of_tokens(tokens)?]),
            Self::Texts(all) => all.into_iter().map(of_text).collect(),
            Self::TokenLists(all) => all.into_iter().map(of_tokens).collect(),
        }
    }
}

/// The prompts of a request.
fn prompts(fields: &mut Fields) -> Result<Prompts, ApiError> {
    let prompts: Prompts = fields.take("prompt")?.ok_or_else(|| ApiError::field("prompt", "`prompt` is missing"))?;
    match prompts.count() {
        1..=MOST_PROMPTS => Ok(prompts),
        count => Err(ApiError::field("prompt", format!("`prompt` has {count} texts, expected 1 to {MOST_PROMPTS}"))),
    }
}

/// Answers, whole or as a stream.
pub async fn answer(
    Given(state): Given<Arc<State>>,
    Extension(id): Extension<RequestId>,
    sent: Body,
) -> Result<Response, ApiError> {
    let sent = body(&state, sent).await?;
    let mut fields = Fields::parse(&sent)?;
    check_model(&state, &mut fields)?;
    let prompts = prompts(&mut fields)?;
    let echo = fields.take::<bool>("echo")?.unwrap_or(false);
    if fields.take::<String>("suffix")?.is_some_and(|s| !s.is_empty()) {
        return Err(ApiError::field("suffix", "`suffix` is not supported here; leave it out"));
    }
    let logprobs = fields.take("logprobs")?.map(|asked| alternatives("logprobs", asked)).transpose()?;
    if echo && logprobs.is_some() {
        let message = "probabilities of a prompt are not computed here: ask for `logprobs` without `echo`";
        return Err(ApiError::field("logprobs", message));
    }
    let (choices, mut options) = (fields.choices()?, fields.options(&state.options.defaults)?);
    options.max_tokens = options.max_tokens.or(Some(DEFAULT_TOKENS));
    let sending = Sending::of(&mut fields)?;
    let tokenizer = Arc::clone(&state.tokenizer);
    let read = tokio::task::spawn_blocking(move || prompts.read(&tokenizer)).await;
    let (prompts, texts): (Vec<_>, Vec<_>) = read.map_err(|e| ApiError::failed(e.to_string()))??.into_iter().unzip();
    let answers = Answers::ask(&state, id, &prompts, &options, logprobs, choices).await?;
    let said = texts.into_iter().flat_map(|text| {
        let begin = Said { echoed: if echo { text } else { String::new() }, ..Said::default() };
        std::iter::repeat_n(begin, choices)
    });
    let told = Texts { tokenizer: Arc::clone(&state.tokenizer), logprobs: logprobs.is_some(), said: said.collect() };
    send(state, answers, told, sending).await
}

/// What the choices have said so far.
struct Texts {
    tokenizer: Arc<Tokenizer>,
    logprobs: bool,
    said: Vec<Said>,
}

#[derive(Clone, Default)]
struct Said {
    /// The prompt, where it is to be told again.
    echoed: String,
    text: String,
    tokens: Vec<Choice>,
    /// Where the next token begins, in characters.
    offset: usize,
    finish: &'static str,
}

fn choice(index: usize, text: &str, logprobs: &Value, finish: Option<&str>) -> Value {
    json!({"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish})
}

impl Choices for Texts {
    const NAMES: [&'static str; 3] = ["cmpl", "text_completion", "text_completion"];

    fn begin(&self) -> Vec<Value> {
        let echoes = self.said.iter().enumerate().filter(|(_, said)| !said.echoed.is_empty());
        echoes.map(|(i, said)| choice(i, &said.echoed, &Value::Null, None)).collect()
    }

    fn piece(&mut self, index: usize, piece: Piece) -> Vec<Value> {
        let Some(said) = self.said.get_mut(index) else { return Vec::new() };
        let text = piece.text();
        let mut logprobs = Value::Null;
        if self.logprobs && !piece.tokens.is_empty() {
            logprobs = plain_logprobs(&self.tokenizer, &piece.tokens, &mut said.offset);
            said.tokens.extend(piece.tokens);
        }
        said.text.push_str(&text);
        let empty = text.is_empty() && logprobs.is_null();
        if empty { Vec::new() } else { vec![choice(index, &text, &logprobs, None)] }
    }

    fn end(&mut self, index: usize, reason: &'static str) -> Vec<Value> {
        self.said.get_mut(index).into_iter().for_each(|said| said.finish = reason);
        vec![choice(index, "", &Value::Null, Some(reason))]
    }

    fn whole(&mut self) -> Vec<Value> {
        let one = |(index, said): (usize, &Said)| {
            let told = || plain_logprobs(&self.tokenizer, &said.tokens, &mut 0);
            let logprobs = if self.logprobs { told() } else { Value::Null };
            choice(index, &format!("{}{}", said.echoed, said.text), &logprobs, Some(said.finish))
        };
        self.said.iter().enumerate().map(one).collect()
    }
}
