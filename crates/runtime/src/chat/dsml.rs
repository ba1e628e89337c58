//! The encoding of DeepSeek-V4: no template, but a program beside the weights (`encoding/encoding_dsv4.py` of the release,
//! MIT licence), which this follows to the letter. Tool calls are written in DSML, DeepSeek's markup language.
//!
//! ```text
//! <bos>[effort][system][tools]  { <｜User｜>text<｜Assistant｜> ( </think>answer | <think>reasoning</think>answer ) <eos> }
//! ```
//!
//! Reasoning of turns before the last user's is left out, unless there are tools: then all of it stays. Results of tools are
//! part of the user's turn, in the order of the calls. Levels of reasoning change the marker behind `<｜Assistant｜>`; the
//! highest put a text before everything else. Refused: the tokens of internal tasks (`<｜action｜>` and others).

mod parse;
mod turns;

pub use parse::parse;

use super::python::dumps;
use super::{Conversation, Message, Prompt, ReplyForm, Think, ToolCall};
use crate::RuntimeError;
use ashlar_arch::Efforts;
use serde_json::Value;
use turns::{Block, Turn};

const BEGIN: &str = "<｜begin▁of▁sentence｜>";
const END: &str = "<｜end▁of▁sentence｜>";
const USER: &str = "<｜User｜>";
const ASSISTANT: &str = "<｜Assistant｜>";
const REMINDER: &str = "<｜latest_reminder｜>";
const OPEN: &str = "<think>";
const CLOSE: &str = "</think>";

const ABSOLUTE: &str = "Reasoning Effort: Absolute maximum with no shortcuts permitted.\n\
    You MUST be very thorough in your thinking and comprehensively decompose the problem to resolve the root cause, \
    rigorously stress-testing your logic against all potential paths, edge cases, and adversarial scenarios.\n\
    Explicitly write out your entire deliberation process, documenting every intermediate step, considered alternative, and \
    rejected hypothesis to ensure absolutely no assumption is left unchecked.\n\n";
const BEYOND: &str = "Reasoning Effort: Beyond maximum — exhaustive, relentless, and uncompromising.\n\
    You MUST reason with the utmost depth and rigor, leaving absolutely nothing to chance: exhaustively decompose the problem \
    into its most fundamental components, trace every causal chain to its root, and resolve the underlying cause rather than \
    any surface symptom.\n\
    Do not stop reasoning until you have independently verified the solution from multiple angles and are certain that no \
    assumption remains unchecked and no error remains undiscovered.\n\n";
const TOOLS: &str = "## Tools\n\n\
    You have access to a set of tools to help answer the user's question. You can invoke tools by writing a \
    \"<｜DSML｜tool_calls>\" block like the following:\n\n\
    <｜DSML｜tool_calls>\n\
    <｜DSML｜invoke name=\"$TOOL_NAME\">\n\
    <｜DSML｜parameter name=\"$PARAMETER_NAME\" string=\"true|false\">$PARAMETER_VALUE</｜DSML｜parameter>\n\
    ...\n\
    </｜DSML｜invoke>\n\
    <｜DSML｜invoke name=\"$TOOL_NAME2\">\n\
    ...\n\
    </｜DSML｜invoke>\n\
    </｜DSML｜tool_calls>\n\n\
    String parameters should be specified as is and set `string=\"true\"`. For all other types (numbers, booleans, arrays, \
    objects), pass the value in JSON format and set `string=\"false\"`.\n\n\
    If thinking_mode is enabled (triggered by <think>), you MUST output your complete reasoning inside <think>...</think> \
    BEFORE any tool calls or final response.\n\n\
    Otherwise, output directly after </think> with tool calls or final response.\n\n\
    ### Available Tool Schemas\n\n";
const TOOLS_END: &str =
    "\n\nYou MUST strictly follow the above defined tool name and parameter schemas to invoke tool calls.\n";
const SCHEMA: &str = "## Response Format:\n\nYou MUST strictly adhere to the following schema to reply:\n";

/// The encoding, with the levels of reasoning that a release knows.
#[derive(Clone, Copy, Debug)]
pub struct Dsml {
    efforts: Efforts,
}

/// How the turns of one conversation are written.
struct Style {
    thinking: bool,
    /// Reasoning before the last user's turn is left out.
    drops: bool,
    /// Number of the last turn of a user.
    last_user: Option<usize>,
}

impl Dsml {
    pub fn new(efforts: Efforts) -> Self {
        Self { efforts }
    }

    pub fn levels(self) -> Vec<Think> {
        match self.efforts {
            Efforts::Two => vec![Think::Off, Think::High, Think::Max],
            Efforts::Three => vec![Think::Off, Think::Low, Think::High, Think::Max],
        }
    }

    /// What stands before everything else.
    fn effort(self, think: Think) -> &'static str {
        match (self.efforts, think) {
            (Efforts::Two, Think::Max) | (Efforts::Three, Think::High) => ABSOLUTE,
            (Efforts::Three, Think::Max) => BEYOND,
            _ => "",
        }
    }

    /// The prompt of a conversation. Without a level the model answers at once, as the release's own program has it.
    ///
    /// # Errors
    /// [`RuntimeError::Template`] for a role that the encoding does not know.
    pub fn encode(self, conversation: &Conversation) -> Result<Prompt, RuntimeError> {
        let think = conversation.think.unwrap_or(Think::Off);
        let (thinking, drops) = (think != Think::Off, conversation.tools.is_empty());
        let turns = turns::turns(&conversation.messages, conversation.needs_system(), thinking && drops)?;
        let last_user = turns.iter().rposition(Turn::is_users);
        let style = Style { thinking, drops, last_user };
        let mut text = format!("{BEGIN}{}", if turns.is_empty() { "" } else { self.effort(think) });
        let system = turns.iter().position(|t| matches!(t, Turn::System(_)));
        for (i, turn) in turns.iter().enumerate() {
            match turn {
                Turn::System(said) => {
                    text.push_str(said);
                    if Some(i) == system {
                        text.push_str(&instructions(conversation));
                    }
                }
                Turn::Developer(said) => text.extend([USER, said]),
                Turn::Reminder(said) => text.extend([REMINDER, said]),
                Turn::User(blocks) => text.extend([USER, &blocks_text(blocks)]),
                Turn::Assistant(message) => text.push_str(&style.assistant(i, message)),
            }
            if turn.is_users() && turns.get(i + 1).is_none_or(Turn::takes_over) {
                text.extend([ASSISTANT, if style.opens(i) { OPEN } else { CLOSE }]);
            }
        }
        let begins_inside = text.ends_with(OPEN);
        let reply =
            ReplyForm::Tags { begins_inside, open: OPEN.into(), close: CLOSE.into(), calls: Some(parse::CALLS.into()) };
        Ok(Prompt { text, reply })
    }
}

impl Conversation {
    /// Whether there must be a system message to carry what the model is told about tools and its answer's form.
    fn needs_system(&self) -> bool {
        !self.tools.is_empty() || self.response_format.is_some()
    }
}

impl Style {
    /// Whether the assistant behind turn `i` begins by reasoning.
    fn opens(&self, i: usize) -> bool {
        self.thinking && (!self.drops || self.last_user.is_none_or(|last| i >= last))
    }

    fn assistant(&self, i: usize, message: &Message) -> String {
        let kept = self.thinking && (!self.drops || self.last_user.is_none_or(|last| i > last));
        let reasoning = if kept { format!("{}{CLOSE}", message.reasoning) } else { String::new() };
        let calls: Vec<String> = message.calls.iter().map(call).collect();
        let calls = match calls.as_slice() {
            [] => String::new(),
            calls => format!("\n\n<｜DSML｜tool_calls>\n{}\n</｜DSML｜tool_calls>", calls.join("\n")),
        };
        format!("{reasoning}{}{calls}{END}", message.content)
    }
}

/// What the first system message ends with.
fn instructions(conversation: &Conversation) -> String {
    let mut text = String::new();
    if !conversation.tools.is_empty() {
        let schema = |tool: &Value| dumps(tool.get("function").unwrap_or(tool));
        let schemas: Vec<String> = conversation.tools.iter().map(schema).collect();
        text = format!("\n\n{TOOLS}{}{TOOLS_END}", schemas.join("\n"));
    }
    if let Some(schema) = &conversation.response_format {
        text.extend(["\n\n", SCHEMA, &dumps(schema)]);
    }
    text
}

fn blocks_text(blocks: &[Block<'_>]) -> String {
    let text = |block: &Block<'_>| match block {
        Block::Text(text) => (*text).to_owned(),
        Block::Result { content, .. } => format!("<tool_result>{content}</tool_result>"),
    };
    blocks.iter().map(text).collect::<Vec<_>>().join("\n\n")
}

/// One call. Texts stand as they are, everything else as JSON.
fn call(call: &ToolCall) -> String {
    let one = |(key, value): (&String, &Value)| {
        let (is_text, value) = match value {
            Value::String(text) => (true, text.clone()),
            other => (false, dumps(other)),
        };
        format!("<｜DSML｜parameter name=\"{key}\" string=\"{is_text}\">{value}</｜DSML｜parameter>")
    };
    let parameters: Vec<String> = match call.object() {
        Value::Object(map) => map.iter().map(one).collect(),
        other => vec![one((&"arguments".to_owned(), &other))],
    };
    format!("<｜DSML｜invoke name=\"{}\">\n{}\n</｜DSML｜invoke>", call.name, parameters.join("\n"))
}

#[cfg(test)]
mod tests;
