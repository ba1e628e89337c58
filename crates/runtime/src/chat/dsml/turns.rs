//! From messages to turns: the results of tools join the user's, in the order of the calls they answer.

use crate::RuntimeError;
use crate::chat::Message;
use std::collections::HashMap;

/// A turn, as the encoding has them.
pub enum Turn<'a> {
    System(&'a str),
    Developer(&'a str),
    /// Date, place and the like.
    Reminder(&'a str),
    User(Vec<Block<'a>>),
    Assistant(&'a Message),
}

/// A part of a user's turn.
pub enum Block<'a> {
    Text(&'a str),
    Result { call_id: Option<&'a str>, content: &'a str },
}

impl Turn<'_> {
    /// Whether an assistant answers it.
    pub fn is_users(&self) -> bool {
        matches!(self, Self::User(_) | Self::Developer(_))
    }

    /// Whether the turn before it must hand over to the assistant.
    pub fn takes_over(&self) -> bool {
        matches!(self, Self::Assistant(_) | Self::Reminder(_))
    }
}

/// With `needs_system` there is a system turn, if need be an empty one; with `drops`, a developer's turns before the last
/// user's are left out, as reasoning is.
///
/// # Errors
/// [`RuntimeError::Template`] for a role that the encoding does not know.
pub fn turns(messages: &[Message], needs_system: bool, drops: bool) -> Result<Vec<Turn<'_>>, RuntimeError> {
    let mut turns: Vec<Turn<'_>> = Vec::new();
    if needs_system && !messages.iter().any(|m| m.role == "system") {
        turns.push(Turn::System(""));
    }
    for message in messages {
        let text = message.content.as_str();
        let block = match message.role.as_str() {
            "tool" => Block::Result { call_id: message.call_id.as_deref(), content: text },
            "user" => Block::Text(text),
            other => {
                turns.push(match other {
                    "system" => Turn::System(text),
                    "developer" => Turn::Developer(text),
                    "latest_reminder" => Turn::Reminder(text),
                    "assistant" => Turn::Assistant(message),
                    _ => return Err(unknown(other)),
                });
                continue;
            }
        };
        match turns.last_mut() {
            Some(Turn::User(blocks)) => blocks.push(block),
            _ => turns.push(Turn::User(vec![block])),
        }
    }
    sort_results(&mut turns);
    if drops {
        let last = turns.iter().rposition(Turn::is_users).unwrap_or(0);
        let mut number = 0..;
        turns.retain(|turn| number.next().is_some_and(|i| i >= last) || !matches!(turn, Turn::Developer(_)));
    }
    Ok(turns)
}

/// Results change places among themselves; texts between them stay where they are.
fn sort_results(turns: &mut [Turn<'_>]) {
    let mut order: HashMap<&str, usize> = HashMap::new();
    for turn in turns {
        match turn {
            Turn::Assistant(message) if !message.calls.is_empty() => {
                let ids = message.calls.iter().enumerate().filter_map(|(i, c)| Some((c.id.as_deref()?, i)));
                order = ids.filter(|(id, _)| !id.is_empty()).collect();
            }
            Turn::User(blocks) if !order.is_empty() => {
                let place = |b: &Block<'_>| match b {
                    Block::Result { call_id, .. } => Some(call_id.and_then(|id| order.get(id)).copied().unwrap_or(0)),
                    Block::Text(_) => None,
                };
                let (mut results, mut texts) = (Vec::new(), Vec::new());
                let kinds: Vec<bool> = blocks.iter().map(|b| place(b).is_some()).collect();
                for block in blocks.drain(..) {
                    if place(&block).is_some() { results.push(block) } else { texts.push(block) }
                }
                results.sort_by_key(|b| place(b));
                let (mut results, mut texts) = (results.into_iter(), texts.into_iter());
                blocks
                    .extend(kinds.into_iter().filter_map(|result| if result { results.next() } else { texts.next() }));
            }
            _ => {}
        }
    }
}

fn unknown(role: &str) -> RuntimeError {
    let what = format!(
        "a message of role `{role}`; this model's encoding knows system, user, assistant, tool, developer and \
         latest_reminder"
    );
    RuntimeError::Template { file: "conversation".into(), what }
}
