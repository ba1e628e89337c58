//! Where the parts of a reply are shown: the answer on stdout, what the model reasons and calls on stderr.

use crate::output;
use ashlar_runtime::Part;
use std::io::{IsTerminal, Write};

/// Shows one reply.
pub struct Screen {
    quiet: bool,
    /// Terminals show what is no answer dimmed; files get marks around it.
    dims: bool,
    /// What is being shown that is no answer, and whether its last line is open.
    aside: Option<(Part, bool)>,
}

impl Screen {
    /// With `quiet`, answers alone are shown.
    pub fn new(quiet: bool) -> Self {
        Self { quiet, dims: std::io::stderr().is_terminal(), aside: None }
    }

    /// Shows what comes next.
    ///
    /// # Errors
    /// If nobody reads the answer. What is no answer may get lost.
    pub fn show(&mut self, part: Part, text: &str) -> anyhow::Result<()> {
        if part == Part::Answer {
            self.close();
            return output::print(text);
        }
        if self.quiet {
            return Ok(());
        }
        if self.aside.is_none_or(|(before, _)| before != part) {
            self.close();
            whisper(begin(part, self.dims));
        }
        whisper(text);
        self.aside = Some((part, !text.ends_with('\n')));
        Ok(())
    }

    /// Ends what is no answer.
    pub fn close(&mut self) {
        if let Some((part, open)) = self.aside.take() {
            whisper(if open { "\n" } else { "" });
            whisper(end(part, self.dims));
        }
    }
}

fn begin(part: Part, dims: bool) -> &'static str {
    match (dims, part) {
        (true, _) => "\x1b[2m",
        (false, Part::Call) => "[call of a tool]\n",
        (false, _) => "[reasoning]\n",
    }
}

fn end(part: Part, dims: bool) -> &'static str {
    match (dims, part) {
        (true, _) => "\x1b[0m",
        (false, Part::Call) => "[end of the call]\n",
        (false, _) => "[end of reasoning]\n",
    }
}

fn whisper(text: &str) {
    let mut err = std::io::stderr().lock();
    // Whoever closed stderr does not want to know.
    let _ = err.write_all(text.as_bytes()).and_then(|()| err.flush());
}
