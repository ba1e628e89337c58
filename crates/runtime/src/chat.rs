//! Chat templates: messages to a prompt, by the model's own Jinja template, as transformers renders it.
//!
//! Blocks are trimmed and left-stripped; `raise_exception`, `strftime_now`, `tojson` and Python's string methods are
//! there. Templates come with the model and are not trusted: they run with a limited number of steps and see nothing
//! but their arguments.

mod functions;

use crate::RuntimeError;
use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Value, context};
use std::path::Path;
use std::time::SystemTime;

/// Steps of the template engine; the longest published templates take a few thousand per message.
const FUEL: u64 = 20_000_000;

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// `system`, `user`, `assistant`, or what else the template knows.
    pub role: String,
    /// What was said.
    pub content: String,
}

impl Message {
    /// A message.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into() }
    }
}

/// A model's chat template.
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    source: String,
    file: String,
    bos_token: Option<String>,
    eos_token: Option<String>,
}

impl ChatTemplate {
    /// Reads the template of a model directory: `chat_template.jinja`, else `chat_template` in `tokenizer_config.json`
    /// (a string, or named templates, of which `default` is taken).
    ///
    /// # Errors
    /// [`RuntimeError::Template`] if there is none, a file is malformed, or its syntax is wrong.
    pub fn open(dir: &Path) -> Result<Self, RuntimeError> {
        let (config_path, jinja_path) = (dir.join("tokenizer_config.json"), dir.join("chat_template.jinja"));
        let file = |path: &Path| path.display().to_string();
        let config = match std::fs::read(&config_path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map_err(|e| RuntimeError::Template { file: file(&config_path), what: format!("not JSON: {e}") })?,
            Err(_) => serde_json::Value::Null,
        };
        let token = |key: &str| {
            let value = config.get(key)?;
            Some(value.as_str().or_else(|| value.get("content")?.as_str())?.to_owned())
        };
        let (source, from) = match std::fs::read_to_string(&jinja_path) {
            Ok(source) => (source, file(&jinja_path)),
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(RuntimeError::Template { file: file(&jinja_path), what: e.to_string() });
            }
            Err(_) => (named(&config, &file(&config_path))?, file(&config_path)),
        };
        let template = Self { source, file: from, bos_token: token("bos_token"), eos_token: token("eos_token") };
        template.environment(SystemTime::UNIX_EPOCH)?;
        Ok(template)
    }

    /// The prompt of a conversation. With `add_generation_prompt` it ends where the assistant's answer begins. The
    /// template writes special tokens itself: encode the result without adding any.
    ///
    /// # Errors
    /// [`RuntimeError::Template`] if the template raises an exception (such as roles that do not alternate), refers to
    /// what is not there, or runs too long.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String, RuntimeError> {
        self.render_at(messages, add_generation_prompt, SystemTime::now())
    }

    /// As [`ChatTemplate::render`], with the time that `strftime_now` tells (in UTC).
    ///
    /// # Errors
    /// As [`ChatTemplate::render`].
    pub fn render_at(&self, messages: &[Message], generate: bool, now: SystemTime) -> Result<String, RuntimeError> {
        let environment = self.environment(now)?;
        let template = environment.get_template("chat").map_err(|e| self.error(&e))?;
        let text = |token: &Option<String>| token.as_deref().map_or(Value::from(""), Value::from);
        let turn = |m: &Message| context! { role => m.role.as_str(), content => m.content.as_str() };
        let context = context! {
            messages => messages.iter().map(turn).collect::<Vec<Value>>(),
            add_generation_prompt => generate,
            bos_token => text(&self.bos_token),
            eos_token => text(&self.eos_token),
        };
        template.render(context).map_err(|e| self.error(&e))
    }

    fn environment(&self, now: SystemTime) -> Result<Environment<'_>, RuntimeError> {
        let mut environment = Environment::new();
        let syntax =
            SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(|e| self.error(&e))?;
        environment.set_syntax(syntax);
        environment.set_fuel(Some(FUEL));
        functions::register(&mut environment, now);
        environment.add_template("chat", &self.source).map_err(|e| self.error(&e))?;
        Ok(environment)
    }

    fn error(&self, e: &minijinja::Error) -> RuntimeError {
        let line = e.line().map_or(String::new(), |line| format!("line {line}: "));
        let what = match (e.kind(), e.detail()) {
            (minijinja::ErrorKind::OutOfFuel, _) => format!("runs longer than {FUEL} steps"),
            (_, Some(detail)) => detail.to_owned(),
            (kind, None) => kind.to_string(),
        };
        let what = format!("{line}{what}; --raw or -p give the model text without a template");
        RuntimeError::Template { file: self.file.clone(), what }
    }
}

/// `chat_template` of a tokenizer config.
fn named(config: &serde_json::Value, file: &str) -> Result<String, RuntimeError> {
    let none = |what: &str| RuntimeError::Template { file: file.to_owned(), what: what.to_owned() };
    match config.get("chat_template") {
        Some(serde_json::Value::String(source)) => Ok(source.clone()),
        Some(serde_json::Value::Array(list)) => {
            let is_default = |t: &&serde_json::Value| t.get("name").and_then(|n| n.as_str()) == Some("default");
            let template = list.iter().find(is_default).and_then(|t| t.get("template")?.as_str());
            Ok(template
                .ok_or_else(|| none("has named templates but none is called `default`; use -p or --raw"))?
                .into())
        }
        Some(_) => Err(none("is neither a string nor a list of named templates; use -p or --raw")),
        None => {
            Err(none("there is none, so this model was not made for chat; give it text to continue with -p or --raw"))
        }
    }
}

#[cfg(test)]
mod tests;
