//! Chat: a conversation to the prompt that a model was trained on, and its reply to reasoning, answer and calls of tools.
//!
//! [`Chat`] picks the form: the template that comes with the checkpoint, or the encoding of a family whose releases have none
//! (`dsml`, DeepSeek-V4's). [`Think`] is how much the model shall reason, as far as its form has a switch for that.
//! [`Splitter`] takes a reply apart as it comes.

mod calls;
mod dsml;
mod functions;
mod message;
mod python;
mod reply;
mod template;
mod think;

pub use message::{Conversation, Message, ToolCall};
pub use reply::{Part, ReplyForm, Splitter};
pub use think::Think;

use crate::RuntimeError;
use ashlar_arch::{ChatEncoding, chat_encoding};
use dsml::Dsml;
use serde_json::Value;
use std::path::Path;
use std::time::SystemTime;
use template::ChatTemplate;

/// How a model talks.
#[derive(Clone, Debug)]
pub struct Chat {
    form: Form,
}

#[derive(Clone, Debug)]
enum Form {
    Template(Box<ChatTemplate>),
    Dsml(Dsml),
}

/// What a model is given, and how its reply is to be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    /// The text. Special tokens are written out: encode it without adding any.
    pub text: String,
    /// How the reply is divided.
    pub reply: ReplyForm,
}

impl Chat {
    /// The template in a model's directory; where there is none, the encoding that its family is known by.
    ///
    /// # Errors
    /// [`RuntimeError::Template`] if there is neither, a file is malformed, or a template's syntax is wrong.
    pub fn open(dir: &Path, config: &Value) -> Result<Self, RuntimeError> {
        let form = match (ChatTemplate::find(dir)?, chat_encoding(config)) {
            (Some(template), _) => Form::Template(Box::new(template)),
            (None, Some(ChatEncoding::Dsml(efforts))) => Form::Dsml(Dsml::new(efforts)),
            (None, None) => return Err(template::none(dir)),
        };
        Ok(Self { form })
    }

    /// The values of `--think` that this model knows; none where it has no such switch.
    #[must_use]
    pub fn levels(&self) -> Vec<Think> {
        match &self.form {
            Form::Template(t) => t.levels(),
            Form::Dsml(d) => d.levels(),
        }
    }

    /// Whether the model can be asked for the conversation's level of reasoning.
    ///
    /// # Errors
    /// [`RuntimeError::Option`], naming the levels it knows.
    pub fn check(&self, conversation: &Conversation) -> Result<(), RuntimeError> {
        conversation.think.map_or(Ok(()), |level| think::check(level, &self.levels()))
    }

    /// The prompt of a conversation, up to where the model's reply begins.
    ///
    /// # Errors
    /// As [`Chat::check`]; [`RuntimeError::Template`] if the template raises an exception (such as roles that do not alternate), or a role is unknown.
    pub fn render(&self, conversation: &Conversation) -> Result<Prompt, RuntimeError> {
        self.check(conversation)?;
        match &self.form {
            Form::Template(t) => {
                let text = t.render_at(conversation, true, SystemTime::now())?;
                let reply = t.reply(&text, !conversation.tools.is_empty());
                Ok(Prompt { text, reply })
            }
            Form::Dsml(d) => d.encode(conversation),
        }
    }

    /// The calls in what [`Part::Call`] was given, where this program knows the form.
    ///
    /// # Errors
    /// [`RuntimeError::Reply`] if they are not written as the model was told to.
    pub fn calls(&self, text: &str) -> Result<Vec<ToolCall>, RuntimeError> {
        match &self.form {
            Form::Template(t) => t.calls(text),
            Form::Dsml(_) => dsml::parse(text),
        }
    }
}

#[cfg(test)]
mod tests;
