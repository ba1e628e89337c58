//! `/v1/chat/completions`: conversations, with reasoning and calls of tools apart from the answer.

use super::answer::Answers;
use super::error::ApiError;
use super::framing::{Choices, Sending, send};
use super::identity::RequestId;
use super::request::{Fields, alternatives};
use super::wire::chat_logprobs;
use super::{body, check_model};
use crate::State;
use ashlar_runtime::engine::Piece;
use ashlar_runtime::{Chat, Conversation, Message, Part, Think, Tokenizer, ToolCall};
use axum::body::Body;
use axum::extract::{Extension, State as Given};
use axum::response::Response;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// Who says something.
const ROLES: [&str; 5] = ["system", "developer", "user", "assistant", "tool"];

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
#[serde(untagged, expecting = "expected a text or a list of parts as content")]
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
        if !ROLES.contains(&self.role.as_str()) {
            let message = format!("there is no role `{}`, expected one of {}", self.role, ROLES.join(", "));
            return Err(ApiError::field("messages", message));
        }
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
fn conversation(fields: &mut Fields) -> Result<Conversation, ApiError> {
    let sent: Vec<Sent> =
        fields.take("messages")?.ok_or_else(|| ApiError::field("messages", "`messages` is missing"))?;
    if sent.is_empty() {
        return Err(ApiError::field("messages", "`messages` is empty"));
    }
    let messages = sent.into_iter().map(Sent::message).collect::<Result<_, _>>()?;
    let mut tools: Vec<Value> = fields.take("tools")?.unwrap_or_default();
    match fields.take::<Value>("tool_choice")? {
        None => {}
        Some(Value::String(choice)) if choice == "auto" => {}
        Some(Value::String(choice)) if choice == "none" => tools.clear(),
        Some(choice) => {
            let message = format!("`tool_choice` {choice}: only `auto` and `none` are supported here");
            return Err(ApiError::field("tool_choice", message));
        }
    }
    let response_format = match fields.take::<Value>("response_format")? {
        Some(format) if format.get("type").is_some_and(|t| t == "text") => None,
        Some(_) => {
            return Err(ApiError::field("response_format", "only `text` is supported here: nothing enforces a schema"));
        }
        None => None,
    };
    let effort = fields.take::<String>("reasoning_effort")?.map(|effort| effort_of(&effort)).transpose()?;
    let think = effort.or(template_switch(fields)?);
    Ok(Conversation { messages, tools, response_format, think })
}

/// Whether the model shall reason, where a client says so as templates do. Other variables of templates are not set from outside.
fn template_switch(fields: &mut Fields) -> Result<Option<Think>, ApiError> {
    let mut think = None;
    for (name, value) in fields.take::<Map<String, Value>>("chat_template_kwargs")?.unwrap_or_default() {
        think = match (name.as_str(), value.as_bool()) {
            ("enable_thinking" | "thinking", Some(on)) => Some(if on { Think::High } else { Think::Off }),
            _ => {
                let message = format!(
                    "`chat_template_kwargs`: only `enable_thinking` is understood here, and not {name} {value}"
                );
                return Err(ApiError::field("chat_template_kwargs", message));
            }
        };
    }
    Ok(think)
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
pub async fn answer(
    Given(state): Given<Arc<State>>,
    Extension(id): Extension<RequestId>,
    sent: Body,
) -> Result<Response, ApiError> {
    let sent = body(&state, sent).await?;
    let mut fields = Fields::parse(&sent)?;
    check_model(&state, &mut fields)?;
    let conversation = conversation(&mut fields)?;
    let asked = fields.take::<bool>("logprobs")?.unwrap_or(false);
    let top = fields.take("top_logprobs")?.map(|top| alternatives("top_logprobs", top)).transpose()?;
    if top.is_some() && !asked {
        return Err(ApiError::field("top_logprobs", "`top_logprobs` needs `logprobs: true`"));
    }
    let logprobs = asked.then(|| top.unwrap_or(0));
    let (choices, mut options) = (fields.choices()?, fields.options(&state.options.defaults)?);
    let sending = Sending::of(&mut fields)?;
    let chat = state.chat.clone().map_err(|why| ApiError::bad(format!("this model does not talk: {why}")))?;
    let tokenizer = Arc::clone(&state.tokenizer);
    // Templates and long texts take their time; others go on meanwhile.
    let encoded = tokio::task::spawn_blocking(move || {
        let prompt = chat.render(&conversation)?;
        Ok::<_, ashlar_runtime::RuntimeError>((tokenizer.encode(&prompt.text, false)?, prompt.reply))
    });
    let (tokens, reply) = encoded.await.map_err(|e| ApiError::failed(e.to_string()))??;
    options.reply = reply;
    let answers = Answers::ask(&state, id, &[tokens], &options, logprobs, choices).await?;
    let told = Replies {
        chat: state.chat.clone(),
        tokenizer: Arc::clone(&state.tokenizer),
        call: format!("call_{}", super::unique(&state)),
        logprobs: asked,
        all: vec![Reply::default(); choices],
    };
    send(state, answers, told, sending).await
}

/// What the choices have said so far.
struct Replies {
    chat: Result<Chat, String>,
    tokenizer: Arc<Tokenizer>,
    /// What ids of calls begin with.
    call: String,
    logprobs: bool,
    all: Vec<Reply>,
}

/// What one choice has said.
#[derive(Clone, Default)]
struct Reply {
    answer: String,
    reasoning: String,
    /// As it was written, then empty if it could be read.
    written_calls: String,
    calls: Vec<Value>,
    logprobs: Vec<Value>,
    finish: &'static str,
}

impl Reply {
    fn add(&mut self, part: Part, text: &str) {
        match part {
            Part::Answer => self.answer.push_str(text),
            Part::Reasoning => self.reasoning.push_str(text),
            Part::Call => self.written_calls.push_str(text),
        }
    }

    /// Reads its calls into OpenAI's shape; where they cannot be read, what the model wrote belongs to the answer, and is
    /// returned.
    fn read_calls(&mut self, chat: &Result<Chat, String>, id: &str) -> Option<String> {
        let written = std::mem::take(&mut self.written_calls);
        if written.trim().is_empty() {
            return None;
        }
        let read = chat.as_ref().ok().and_then(|chat| chat.calls(&written).ok()).unwrap_or_default();
        if read.is_empty() {
            self.answer.push_str(&written);
            return Some(written);
        }
        let one = |(i, call): (usize, ToolCall)| {
            let id = call.id.unwrap_or_else(|| format!("{id}_{i}"));
            let function = json!({"name": call.name, "arguments": call.arguments});
            json!({"index": i, "id": id, "type": "function", "function": function})
        };
        self.calls = read.into_iter().enumerate().map(one).collect();
        None
    }

    fn message(&self) -> Value {
        // Calls alone are no answer.
        let silent = self.answer.is_empty() && !self.calls.is_empty();
        let content = if silent { Value::Null } else { json!(self.answer) };
        let mut message = Map::from_iter([("role".to_owned(), json!("assistant")), ("content".to_owned(), content)]);
        if !self.reasoning.is_empty() {
            message.insert("reasoning_content".into(), json!(self.reasoning));
        }
        if !self.calls.is_empty() {
            let mut calls = self.calls.clone();
            calls.iter_mut().filter_map(Value::as_object_mut).for_each(|call| drop(call.remove("index")));
            message.insert("tool_calls".into(), calls.into());
        }
        message.into()
    }
}

fn chunk(index: usize, delta: &Value, logprobs: &Value, finish: Option<&str>) -> Value {
    json!({"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish})
}

impl Choices for Replies {
    const NAMES: [&'static str; 3] = ["chatcmpl", "chat.completion", "chat.completion.chunk"];

    fn begin(&self) -> Vec<Value> {
        let delta = json!({"role": "assistant", "content": ""});
        (0..self.all.len()).map(|i| chunk(i, &delta, &Value::Null, None)).collect()
    }

    fn piece(&mut self, index: usize, piece: Piece) -> Vec<Value> {
        let Some(reply) = self.all.get_mut(index) else { return Vec::new() };
        let mut logprobs = Value::Null;
        if self.logprobs && !piece.tokens.is_empty() {
            let told = chat_logprobs(&self.tokenizer, &piece.tokens);
            logprobs = json!({"content": told});
            reply.logprobs.extend(told);
        }
        let mut chunks = Vec::new();
        for (part, text) in &piece.parts {
            reply.add(*part, text);
            let name = match part {
                Part::Answer => "content",
                Part::Reasoning => "reasoning_content",
                // Calls are told whole, when they can be read.
                Part::Call => continue,
            };
            chunks.push(chunk(index, &json!({name: text}), &logprobs.take(), None));
        }
        if !logprobs.is_null() {
            chunks.push(chunk(index, &json!({}), &logprobs, None));
        }
        chunks
    }

    fn end(&mut self, index: usize, reason: &'static str) -> Vec<Value> {
        let Some(reply) = self.all.get_mut(index) else { return Vec::new() };
        let unread = reply.read_calls(&self.chat, &format!("{}_{index}", self.call));
        reply.finish = if reply.calls.is_empty() { reason } else { "tool_calls" };
        let delta = match (reply.calls.is_empty(), unread) {
            (false, _) => Some(json!({"tool_calls": reply.calls})),
            (true, Some(text)) => Some(json!({"content": text})),
            (true, None) => None,
        };
        let mut chunks: Vec<Value> = delta.iter().map(|d| chunk(index, d, &Value::Null, None)).collect();
        chunks.push(chunk(index, &json!({}), &Value::Null, Some(reply.finish)));
        chunks
    }

    fn whole(&mut self) -> Vec<Value> {
        let one = |(index, reply): (usize, &Reply)| {
            let logprobs = if self.logprobs { json!({"content": reply.logprobs}) } else { Value::Null };
            json!({"index": index, "message": reply.message(), "logprobs": logprobs, "finish_reason": reply.finish})
        };
        self.all.iter().enumerate().map(one).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    /// Replies of a model that writes calls between tags.
    fn replies() -> Replies {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("chat_template.jinja"), "{# <tool_call> #}").unwrap();
        let chat = Chat::open(dir.path(), &Value::Null).map_err(|e| e.to_string());
        let demo = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/demo-moe");
        let tokenizer = Arc::new(Tokenizer::open(&demo).unwrap());
        Replies { chat, tokenizer, call: "call_7".into(), logprobs: false, all: vec![Reply::default(); 1] }
    }

    fn said(replies: &mut Replies, parts: &[(Part, &str)]) -> Vec<Value> {
        let parts = parts.iter().map(|(part, text)| (*part, (*text).to_owned())).collect();
        replies.piece(0, Piece { parts, tokens: Vec::new() })
    }

    #[test]
    fn calls_are_told_as_openai_does_in_a_stream_and_whole() {
        let mut replies = replies();
        let chunks = said(
            &mut replies,
            &[(Part::Reasoning, "Hm."), (Part::Answer, "I look."), (Part::Call, "<tool_call>{\"name\": ")],
        );
        assert_eq!(chunks[0]["delta"], json!({"reasoning_content": "Hm."}));
        assert_eq!((chunks.len(), &chunks[1]["delta"]), (2, &json!({"content": "I look."})));
        assert!(said(&mut replies, &[(Part::Call, "\"find\", \"arguments\": {\"q\": 1}}</tool_call>")]).is_empty());
        let last = replies.end(0, "stop");
        let function = json!({"name": "find", "arguments": "{\"q\":1}"});
        let call = json!([{"index": 0, "id": "call_7_0_0", "type": "function", "function": function}]);
        assert_eq!((&last[0]["delta"]["tool_calls"], &last[1]["finish_reason"]), (&call, &json!("tool_calls")));
        let whole = replies.whole();
        let message = &whole[0]["message"];
        assert_eq!((&message["content"], &message["reasoning_content"]), (&json!("I look."), &json!("Hm.")));
        assert_eq!(message["tool_calls"], json!([{"id": "call_7_0_0", "type": "function", "function": function}]));
        assert_eq!(whole[0]["finish_reason"], "tool_calls");
    }

    #[test]
    fn a_call_that_was_cut_off_is_told_as_text() {
        let mut replies = replies();
        said(&mut replies, &[(Part::Call, "<tool_call>{\"name\": \"f")]);
        let last = replies.end(0, "length");
        assert_eq!(last[0]["delta"], json!({"content": "<tool_call>{\"name\": \"f"}));
        assert_eq!(
            (&last[1]["finish_reason"], &replies.whole()[0]["message"]["content"]),
            (&json!("length"), &last[0]["delta"]["content"])
        );
    }
}
