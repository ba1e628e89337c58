//! What was said, by whom.

use super::Think;
use serde_json::Value;

/// One turn of a conversation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// `system`, `user`, `assistant`, `tool`, or what else the model's form knows.
    pub role: String,
    /// What was said.
    pub content: String,
    /// What an assistant thought before it. Most forms leave it out of the prompt once the user has spoken again.
    pub reasoning: String,
    /// The tools an assistant called, after what it said.
    pub calls: Vec<ToolCall>,
    /// Of a `tool`: the call it answers.
    pub call_id: Option<String>,
}

/// An assistant's call of a tool.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ToolCall {
    /// By which the result names it.
    pub id: Option<String>,
    /// The function.
    pub name: String,
    /// Its arguments: a JSON object.
    pub arguments: String,
}

/// What a model is asked to go on with.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Conversation {
    /// What was said so far.
    pub messages: Vec<Message>,
    /// Functions the model may call, as `{"type": "function", "function": {…}}`.
    pub tools: Vec<Value>,
    /// The JSON schema the answer shall follow.
    pub response_format: Option<Value>,
    /// How much it shall reason; `None` for what the model does by itself.
    pub think: Option<Think>,
}

impl Message {
    /// A message of text alone.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into(), ..Self::default() }
    }
}

impl Conversation {
    /// A conversation of messages alone.
    #[must_use]
    pub fn of(messages: Vec<Message>) -> Self {
        Self { messages, ..Self::default() }
    }
}

impl ToolCall {
    /// The arguments as JSON; text that is no JSON object stands for itself.
    #[must_use]
    pub fn object(&self) -> Value {
        match serde_json::from_str(&self.arguments) {
            Ok(object @ Value::Object(_)) => object,
            _ => Value::String(self.arguments.clone()),
        }
    }
}
