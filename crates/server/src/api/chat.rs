//! `/v1/chat/completions`: conversations, with reasoning and calls of tools apart from the answer.

use super::answer::{Answers, Event};
use super::error::ApiError;
use super::request::{Common, StreamOptions, alternatives};
use super::stream::{Chunks, stream};
use super::wire::{Usage, chat_logprobs, reason};
use super::{body, check_model};
use crate::State;
use ashlar_runtime::{Chat, Conversation, Message, Part, Think, ToolCall};
use axum::Json;
use axum::body::Body;
use axum::extract::State as Given;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// A message as clients send it.
#[derive(Debug, Deserialize)]
struct Sent {
    role: String,
    content: Option<Content>,
    reasoning_content: Option<String>,
    tool_calls: Option<Vec<SentCall>>,
    tool_call_id: Option<String>,
}

/// Text, or parts of which only text is understood here.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Parts(Vec<ContentPart>),
}

#[derive(Debug, Deserialize)]
struct ContentPart {
    r#type: String,
    text: Option<String>,
}

#[derive(Debug, Deserialize)]
struct SentCall {
    id: Option<String>,
    function: SentFunction,
}

#[derive(Debug, Deserialize)]
struct SentFunction {
    name: String,
    #[serde(default)]
    arguments: String,
}

impl Sent {
    fn message(self) -> Result<Message, ApiError> {
        let content = match self.content {
            None => String::new(),
            Some(Content::Text(text)) => text,
            Some(Content::Parts(parts)) => {
                let text = |part: ContentPart| match (part.r#type.as_str(), part.text) {
                    ("text", Some(text)) => Ok(text),
                    (kind, _) => Err(ApiError::field(
                        "messages",
                        format!("a part of type `{kind}`: only text is understood here"),
                    )),
                };
                parts.into_iter().map(text).collect::<Result<Vec<_>, _>>()?.concat()
            }
        };
        let call = |c: SentCall| ToolCall { id: c.id, name: c.function.name, arguments: c.function.arguments };
        // A newer name of the same thing.
        let role = if self.role == "developer" { "system".to_owned() } else { self.role };
        Ok(Message {
            role,
            content,
            reasoning: self.reasoning_content.unwrap_or_default(),
            calls: self.tool_calls.unwrap_or_default().into_iter().map(call).collect(),
            call_id: self.tool_call_id,
        })
    }
}

/// The conversation of a request.
fn conversation(common: &mut Common) -> Result<Conversation, ApiError> {
    let sent: Vec<Sent> =
        common.take("messages")?.ok_or_else(|| ApiError::field("messages", "`messages` is missing"))?;
    if sent.is_empty() {
        return Err(ApiError::field("messages", "`messages` is empty"));
    }
    let messages = sent.into_iter().map(Sent::message).collect::<Result<_, _>>()?;
    let mut tools: Vec<Value> = common.take("tools")?.unwrap_or_default();
    match common.take::<Value>("tool_choice")? {
        None => {}
        Some(Value::String(choice)) if choice == "auto" => {}
        Some(Value::String(choice)) if choice == "none" => tools.clear(),
        Some(choice) => {
            let message = format!("`tool_choice` {choice}: only `auto` and `none` are supported here");
            return Err(ApiError::field("tool_choice", message));
        }
    }
    let response_format = match common.take::<Value>("response_format")? {
        Some(format) if format.get("type").is_some_and(|t| t == "text") => None,
        Some(_) => {
            return Err(ApiError::field("response_format", "only `text` is supported here: nothing enforces a schema"));
        }
        None => None,
    };
    let think = common.take::<String>("reasoning_effort")?.map(|effort| effort_of(&effort)).transpose()?;
    Ok(Conversation { messages, tools, response_format, think })
}

fn effort_of(effort: &str) -> Result<Think, ApiError> {
    let known = |think: &&Think| think.name() == effort || (effort == "none" && **think == Think::Off);
    Think::ALL.iter().find(known).copied().ok_or_else(|| {
        let names: Vec<&str> = Think::ALL.iter().map(|t| t.name()).collect();
        ApiError::field(
            "reasoning_effort",
            format!("`reasoning_effort` is `{effort}`, expected one of {}", names.join(", ")),
        )
    })
}

/// Answers, whole or as a stream.
pub async fn answer(Given(state): Given<Arc<State>>, sent: Body) -> Result<Response, ApiError> {
    let sent = body(&state, sent).await?;
    let mut common = Common::parse(&sent)?;
    check_model(&state, common.model.as_deref())?;
    let conversation = conversation(&mut common)?;
    let asked = common.take::<bool>("logprobs")?.unwrap_or(false);
    let top = common.take("top_logprobs")?.map(|top| alternatives("top_logprobs", top)).transpose()?;
    if top.is_some() && !asked {
        return Err(ApiError::field("top_logprobs", "`top_logprobs` needs `logprobs: true`"));
    }
    let logprobs = asked.then(|| top.unwrap_or(0));
    let (choices, mut options) = (common.choices()?, common.options(&state.options.sampling)?);
    let chat = state.chat.clone().map_err(|why| ApiError::bad(format!("this model does not talk: {why}")))?;
    let tokenizer = Arc::clone(&state.tokenizer);
    // Templates and long texts take their time; others go on meanwhile.
    let encoded = tokio::task::spawn_blocking(move || {
        let prompt = chat.render(&conversation)?;
        Ok::<_, ashlar_runtime::RuntimeError>((tokenizer.encode(&prompt.text, false)?, prompt.reply))
    });
    let (tokens, reply) = encoded.await.map_err(|e| ApiError::failed(e.to_string()))??;
    options.reply = reply;
    let answers = Answers::ask(&state, &tokens, &options, logprobs, choices).await?;
    let number = state.next.fetch_add(1, Ordering::Relaxed);
    let head =
        Head { id: format!("chatcmpl-{:x}-{number}", state.started), created: super::now(), state: Arc::clone(&state) };
    let mut told = Told {
        head,
        logprobs: asked,
        usage: Usage::default(),
        usage_asked: false,
        replies: vec![Reply::default(); choices],
    };
    let most = state.options.answer_timeout;
    let headers = super::queue_headers(&answers);
    if common.stream {
        told.usage_asked = common.stream_options.is_some_and(|StreamOptions { include_usage }| include_usage);
        let first =
            (0..choices).map(|i| told.head.chunk(i, &json!({"role": "assistant", "content": ""}), &Value::Null, None));
        let first = first.collect();
        return Ok((headers, stream(answers, first, told, most)).into_response());
    }
    let whole = tokio::time::timeout(most, told.whole(answers)).await;
    let whole = whole.map_err(|_| ApiError::failed(format!("the answer took longer than {} s", most.as_secs())))??;
    Ok((headers, Json(whole)).into_response())
}

/// What one choice has said.
#[derive(Clone, Default)]
struct Reply {
    answer: String,
    reasoning: String,
    calls: String,
    logprobs: Vec<Value>,
    finish: &'static str,
}

impl Reply {
    fn add(&mut self, part: Part, text: &str) {
        match part {
            Part::Answer => self.answer.push_str(text),
            Part::Reasoning => self.reasoning.push_str(text),
            Part::Call => self.calls.push_str(text),
        }
    }

    /// The calls in OpenAI's shape; where they cannot be read, what the model wrote belongs to the answer.
    fn calls(&mut self, chat: &Result<Chat, String>, id: &str) -> Vec<Value> {
        if self.calls.trim().is_empty() {
            return Vec::new();
        }
        let read = chat.as_ref().ok().and_then(|chat| chat.calls(&self.calls).ok()).unwrap_or_default();
        if read.is_empty() {
            let written = std::mem::take(&mut self.calls);
            self.answer.push_str(&written);
        }
        let one = |(i, call): (usize, ToolCall)| {
            let id = call.id.unwrap_or_else(|| format!("call_{id}_{i}"));
            let function = json!({"name": call.name, "arguments": call.arguments});
            json!({"index": i, "id": id, "type": "function", "function": function})
        };
        read.into_iter().enumerate().map(one).collect()
    }
}

struct Head {
    id: String,
    created: u64,
    state: Arc<State>,
}

impl Head {
    fn object(&self, kind: &str, choices: &Value) -> Value {
        let model = &self.state.options.model;
        json!({"id": self.id, "object": kind, "created": self.created, "model": model, "choices": choices})
    }

    fn chunk(&self, index: usize, delta: &Value, logprobs: &Value, finish: Option<&str>) -> Value {
        let choice = json!([{"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}]);
        self.object("chat.completion.chunk", &choice)
    }
}

struct Told {
    head: Head,
    logprobs: bool,
    usage: Usage,
    usage_asked: bool,
    replies: Vec<Reply>,
}

impl Told {
    async fn whole(mut self, mut answers: Answers) -> Result<Value, ApiError> {
        while let Some(event) = answers.next().await {
            match event {
                Event::Piece(index, piece) => {
                    let Some(reply) = self.replies.get_mut(index) else { continue };
                    piece.parts.iter().for_each(|(part, text)| reply.add(*part, text));
                    reply.logprobs.extend(chat_logprobs(&self.head.state.tokenizer, &piece.tokens));
                }
                Event::End(index, how) => {
                    let finished = how.map_err(ApiError::failed)?;
                    self.usage.add(&finished);
                    if let Some(reply) = self.replies.get_mut(index) {
                        reply.finish = reason(&finished.reason);
                    }
                }
            }
        }
        let choices = self.replies.iter_mut().enumerate().map(|(index, reply)| {
            let mut calls = reply.calls(&self.head.state.chat, &format!("{}_{index}", self.head.id));
            calls.iter_mut().filter_map(Value::as_object_mut).for_each(|call| drop(call.remove("index")));
            let mut message =
                Map::from_iter([("role".to_owned(), json!("assistant")), ("content".to_owned(), json!(reply.answer))]);
            if !reply.reasoning.is_empty() {
                message.insert("reasoning_content".into(), json!(reply.reasoning));
            }
            let finish = if calls.is_empty() { reply.finish } else { "tool_calls" };
            if !calls.is_empty() {
                message.insert("tool_calls".into(), calls.into());
            }
            let logprobs = if self.logprobs { json!({"content": reply.logprobs}) } else { Value::Null };
            json!({"index": index, "message": message, "logprobs": logprobs, "finish_reason": finish})
        });
        let choices = choices.collect();
        let mut whole = self.head.object("chat.completion", &choices);
        whole.as_object_mut().map(|o| o.insert("usage".into(), self.usage.json()));
        Ok(whole)
    }
}

impl Chunks for Told {
    fn event(&mut self, event: Event) -> Vec<Value> {
        let (index, finished) = match event {
            Event::Piece(index, piece) => {
                let mut chunks = Vec::new();
                let mut logprobs = Value::Null;
                if self.logprobs && !piece.tokens.is_empty() {
                    logprobs = json!({"content": chat_logprobs(&self.head.state.tokenizer, &piece.tokens)});
                }
                for (part, text) in &piece.parts {
                    let delta = match part {
                        Part::Answer => json!({"content": text}),
                        Part::Reasoning => json!({"reasoning_content": text}),
                        // Calls are told whole, when they can be read.
                        Part::Call => {
                            self.replies.get_mut(index).into_iter().for_each(|reply| reply.add(*part, text));
                            continue;
                        }
                    };
                    chunks.push(self.head.chunk(index, &delta, &logprobs.take(), None));
                }
                if !logprobs.is_null() {
                    chunks.push(self.head.chunk(index, &json!({}), &logprobs, None));
                }
                return chunks;
            }
            Event::End(_, Err(error)) => return vec![ApiError::failed(error).json()],
            Event::End(index, Ok(finished)) => (index, finished),
        };
        self.usage.add(&finished);
        let Some(reply) = self.replies.get_mut(index) else { return Vec::new() };
        let calls = reply.calls(&self.head.state.chat, &format!("{}_{index}", self.head.id));
        let finish = if calls.is_empty() { reason(&finished.reason) } else { "tool_calls" };
        let delta = match (calls.is_empty(), reply.answer.is_empty()) {
            (false, _) => Some(json!({"tool_calls": calls})),
            // Calls that could not be read.
            (true, false) => Some(json!({"content": reply.answer})),
            (true, true) => None,
        };
        let mut chunks: Vec<Value> = delta.iter().map(|d| self.head.chunk(index, d, &Value::Null, None)).collect();
        chunks.push(self.head.chunk(index, &json!({}), &Value::Null, Some(finish)));
        chunks
    }

    fn end(&mut self) -> Vec<Value> {
        if !self.usage_asked {
            return Vec::new();
        }
        let mut last = self.head.object("chat.completion.chunk", &json!([]));
        last.as_object_mut().map(|o| o.insert("usage".into(), self.usage.json()));
        vec![last]
    }
}
