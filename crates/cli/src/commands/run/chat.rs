//! `--chat`: prompts line by line, with the conversation as memory.

use super::speaker::Speaker;
use crate::device;
use crate::exit::Failure;
use crate::output;
use anyhow::Context;
use ashlar_runtime::{Chat, Conversation, Message};
use std::io::{BufRead, IsTerminal, Write};

const COMMANDS: &str = "/reset forgets the conversation, /exit leaves, Ctrl-C ends an answer";

/// What a line asks for.
#[derive(Debug, PartialEq, Eq)]
enum Line<'a> {
    Nothing,
    Say(&'a str),
    Reset,
    Exit,
    Help,
    Unknown(&'a str),
}

fn parse(line: &str) -> Line<'_> {
    match line.trim() {
        "" => Line::Nothing,
        "/reset" => Line::Reset,
        "/exit" | "/quit" => Line::Exit,
        "/help" => Line::Help,
        text if text.starts_with('/') => Line::Unknown(text),
        text => Line::Say(text),
    }
}

/// Talks until the input ends or `/exit`.
///
/// # Errors
/// If the model fails, has no such level of reasoning, or stdin cannot be read. A conversation that outgrows the context is
/// told and goes on.
pub fn talk(speaker: &mut Speaker, form: &Chat, start: Conversation) -> Result<(), Failure> {
    form.check(&start).map_err(device::failure)?;
    let mut said = start.clone();
    speaker.tell(COMMANDS);
    while let Some(line) = read_line(speaker)? {
        match parse(&line) {
            Line::Nothing => {}
            Line::Exit => break,
            Line::Help => speaker.tell(COMMANDS),
            Line::Unknown(what) => output::say(&format!("there is no command `{what}`; {COMMANDS}")),
            Line::Reset => {
                said.clone_from(&start);
                speaker.tell("the conversation is forgotten");
            }
            Line::Say(text) => {
                said.messages.push(Message::new("user", text));
                match speaker.answer(form.render(&said).map_err(device::failure)?)? {
                    Some(answer) => said.messages.push(answer),
                    None => drop(said.messages.pop()),
                }
            }
        }
    }
    Ok(())
}

/// The next line, or `None` at the end of the input.
fn read_line(speaker: &Speaker) -> Result<Option<String>, Failure> {
    let stdin = std::io::stdin();
    if stdin.is_terminal() {
        // The prompt belongs to the terminal, not to the text.
        let _ = write!(std::io::stderr(), "> ").and_then(|()| std::io::stderr().flush());
    }
    let mut line = String::new();
    let read =
        speaker.interrupt().while_idle(|| stdin.lock().read_line(&mut line)).context("cannot read from stdin")?;
    Ok((read > 0).then_some(line))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slash_begins_a_command_and_nothing_else_does() {
        assert_eq!(parse(" /exit \n"), Line::Exit);
        assert_eq!(parse("/rest\n"), Line::Unknown("/rest"));
        assert_eq!(parse("either/or\n"), Line::Say("either/or"));
        assert_eq!(parse("  \n"), Line::Nothing);
    }
}
