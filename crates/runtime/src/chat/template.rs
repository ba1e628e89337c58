//! Chat templates: messages to a prompt, by the model's own Jinja template, as transformers renders it.
//!
//! Blocks are trimmed and left-stripped; `raise_exception`, `strftime_now`, `tojson` and Python's string methods are
//! there. Templates come with the model and are not trusted: they run with a limited number of steps and see nothing
//! but their arguments.
//!
//! What a template knows of reasoning is read from the variables it asks for: `enable_thinking` or `thinking` is a switch,
//! `reasoning_effort` a level. How its model divides replies, from the marks that stand in it.

use super::calls::{self, Calls};
use super::{Conversation, Message, ReplyForm, Think, ToolCall, functions};
use crate::RuntimeError;
use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Value, context};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::SystemTime;

/// Steps of the template engine; the longest published templates take a few thousand per message.
const FUEL: u64 = 20_000_000;

/// A model's chat template.
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    source: String,
    file: String,
    bos_token: Option<String>,
    eos_token: Option<String>,
    /// The variable that switches reasoning on and off.
    switch: Option<&'static str>,
    /// The levels of `reasoning_effort`.
    efforts: Vec<Think>,
}

impl ChatTemplate {
    /// Reads the template of a model directory: `chat_template.jinja`, else `chat_template` in `tokenizer_config.json`
    /// (a string, or named templates, of which `default` is taken). `None` if there is none.
    ///
    /// # Errors
    /// [`RuntimeError::Template`] if a file is malformed, or the syntax is wrong.
    pub fn find(dir: &Path) -> Result<Option<Self>, RuntimeError> {
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
            Err(_) => match named(&config, &file(&config_path))? {
                Some(source) => (source, file(&config_path)),
                None => return Ok(None),
            },
        };
        let (bos_token, eos_token) = (token("bos_token"), token("eos_token"));
        let mut template = Self { source, file: from, bos_token, eos_token, switch: None, efforts: Vec::new() };
        (template.switch, template.efforts) = template.knows()?;
        Ok(Some(template))
    }

    /// The variables of reasoning that the template asks for.
    fn knows(&self) -> Result<(Option<&'static str>, Vec<Think>), RuntimeError> {
        let environment = self.environment(SystemTime::UNIX_EPOCH)?;
        let asked = environment.get_template("chat").map_err(|e| self.error(&e))?.undeclared_variables(false);
        let switch = ["enable_thinking", "thinking"].into_iter().find(|name| asked.contains(*name));
        if !asked.contains("reasoning_effort") {
            return Ok((switch, Vec::new()));
        }
        // A template that compares names its levels; one that only repeats the level has those of OpenAI's API.
        let quoted = |level: &Think| ['"', '\''].iter().any(|q| self.source.contains(&format!("{q}{level}{q}")));
        let named: Vec<Think> = Think::ALL.into_iter().skip(1).filter(quoted).collect();
        let efforts = match named.as_slice() {
            [] | [Think::Medium] => vec![Think::Low, Think::Medium, Think::High],
            // Without a comparison, `high` is to reason as usual.
            [Think::Max] => vec![Think::High, Think::Max],
            _ => named,
        };
        Ok((switch, efforts))
    }

    /// The levels of reasoning that can be asked for.
    pub(super) fn levels(&self) -> Vec<Think> {
        let off = self.switch.map(|_| Think::Off);
        let on: &[Think] =
            if self.switch.is_some() && self.efforts.is_empty() { &[Think::High] } else { &self.efforts };
        off.into_iter().chain(on.iter().copied()).collect()
    }

    /// How the model divides its reply to a prompt; calls are looked for if it was offered tools.
    pub(super) fn reply(&self, prompt: &str, tools: bool) -> ReplyForm {
        let calls = self.writes_calls();
        if calls == Some(Calls::Channels) {
            return ReplyForm::Channels;
        }
        let calls = calls.filter(|_| tools).map(|_| calls::OPEN.to_owned());
        let (open, close) = ("<think>".to_owned(), "</think>".to_owned());
        if !self.source.contains(&close) && self.switch.is_none() && calls.is_none() {
            return ReplyForm::Plain;
        }
        ReplyForm::Tags { begins_inside: prompt.trim_end().ends_with(&open), open, close, calls }
    }

    /// The calls in what a reply has of them.
    pub(super) fn calls(&self, text: &str) -> Result<Vec<ToolCall>, RuntimeError> {
        match self.writes_calls() {
            Some(Calls::Tags) => calls::in_tags(text),
            Some(Calls::Channels) => calls::in_channels(text),
            None => Ok(Vec::new()),
        }
    }

    /// How the model writes calls, by the marks that stand in its template.
    fn writes_calls(&self) -> Option<Calls> {
        let has = |mark: &str| self.source.contains(mark);
        match (has("<|channel|>") && has("<|message|>"), has(calls::OPEN)) {
            (true, _) => Some(Calls::Channels),
            (false, true) => Some(Calls::Tags),
            (false, false) => None,
        }
    }

    /// The prompt of a conversation. With `generate` it ends where the assistant's answer begins. The template writes
    /// special tokens itself: encode the result without adding any. `now` is what `strftime_now` tells (in UTC).
    ///
    /// # Errors
    /// [`RuntimeError::Template`] if the template raises an exception (such as roles that do not alternate), refers to
    /// what is not there, or runs too long.
    pub fn render_at(
        &self,
        conversation: &Conversation,
        generate: bool,
        now: SystemTime,
    ) -> Result<String, RuntimeError> {
        let environment = self.environment(now)?;
        let template = environment.get_template("chat").map_err(|e| self.error(&e))?;
        let text = |token: &Option<String>| token.as_deref().map_or(Value::from(""), Value::from);
        let mut given = BTreeMap::from([
            ("messages", conversation.messages.iter().map(turn).collect::<Vec<Value>>().into()),
            ("add_generation_prompt", generate.into()),
            ("bos_token", text(&self.bos_token)),
            ("eos_token", text(&self.eos_token)),
        ]);
        // Templates ask whether these are defined.
        if !conversation.tools.is_empty() {
            given.insert("tools", conversation.tools.iter().map(value).collect::<Vec<Value>>().into());
        }
        if let Some(schema) = &conversation.response_format {
            given.insert("response_format", value(schema));
        }
        if let Some(think) = conversation.think {
            if let Some(switch) = self.switch {
                given.insert(switch, (think != Think::Off).into());
            }
            if self.efforts.contains(&think) {
                given.insert("reasoning_effort", think.name().into());
            }
        }
        template.render(given).map_err(|e| self.error(&e))
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

/// A message as templates expect it. What it does not have is left out: templates ask whether it is defined.
fn turn(message: &Message) -> Value {
    let mut turn = BTreeMap::from([("role", Value::from(&message.role)), ("content", Value::from(&message.content))]);
    if !message.reasoning.is_empty() {
        // Two names are in use.
        turn.extend(["reasoning_content", "thinking"].map(|key| (key, Value::from(&message.reasoning))));
    }
    if !message.calls.is_empty() {
        let call = |c: &ToolCall| {
            let function = context! { name => &c.name, arguments => value(&c.object()) };
            context! { id => &c.id, type => "function", function => function }
        };
        turn.insert("tool_calls", message.calls.iter().map(call).collect::<Vec<Value>>().into());
    }
    if let Some(id) = &message.call_id {
        turn.insert("tool_call_id", Value::from(id));
    }
    turn.into()
}

/// JSON as templates see it, keys in their order.
fn value(json: &serde_json::Value) -> Value {
    match json {
        serde_json::Value::Null => Value::from(()),
        serde_json::Value::Bool(b) => (*b).into(),
        serde_json::Value::Number(n) => match (n.as_i64(), n.as_u64()) {
            (Some(n), _) => n.into(),
            (None, Some(n)) => n.into(),
            (None, None) => n.as_f64().into(),
        },
        serde_json::Value::String(text) => text.into(),
        serde_json::Value::Array(items) => items.iter().map(value).collect::<Vec<Value>>().into(),
        serde_json::Value::Object(map) => Value::from_pairs(map.iter().map(|(key, item)| (key, value(item)))),
    }
}

/// The error of a model that has no form for conversations.
pub(super) fn none(dir: &Path) -> RuntimeError {
    let file = dir.join("tokenizer_config.json").display().to_string();
    let what = "there is none, so this model was not made for chat; give it text to continue with -p or --raw";
    RuntimeError::Template { file, what: what.into() }
}

/// `chat_template` of a tokenizer config.
fn named(config: &serde_json::Value, file: &str) -> Result<Option<String>, RuntimeError> {
    let none = |what: &str| RuntimeError::Template { file: file.to_owned(), what: what.to_owned() };
    match config.get("chat_template") {
        Some(serde_json::Value::String(source)) => Ok(Some(source.clone())),
        Some(serde_json::Value::Array(list)) => {
            let is_default = |t: &&serde_json::Value| t.get("name").and_then(|n| n.as_str()) == Some("default");
            let template = list.iter().find(is_default).and_then(|t| t.get("template")?.as_str());
            let source =
                template.ok_or_else(|| none("has named templates but none is called `default`; use -p or --raw"))?;
            Ok(Some(source.to_owned()))
        }
        Some(_) => Err(none("is neither a string nor a list of named templates; use -p or --raw")),
        None => Ok(None),
    }
}
