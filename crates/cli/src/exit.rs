//! How a command ends: 0 done, 1 failed, 2 wrong usage or recipe, 3 checked and found wanting.

use std::process::ExitCode;

/// A command that ran to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All is well.
    Done,
    /// The check was made, and what was checked is not as it should be.
    Wanting,
}

/// A command that could not do its work.
#[derive(Debug)]
pub struct Failure {
    error: anyhow::Error,
    code: u8,
}

/// What every command returns.
pub type CommandResult = Result<Outcome, Failure>;

impl Failure {
    /// A mistake of the user's: wrong arguments or recipe.
    pub fn usage(error: impl Into<anyhow::Error>) -> Self {
        Self { error: error.into(), code: 2 }
    }

    /// Something asked for that cannot be had of this model.
    pub fn wanting(error: impl Into<anyhow::Error>) -> Self {
        Self { error: error.into(), code: 3 }
    }

    /// The same failure, introduced by a sentence.
    pub fn context(self, sentence: String) -> Self {
        Self { error: self.error.context(sentence), code: self.code }
    }

    /// Whether it only says that whoever read our output has gone away.
    fn is_broken_pipe(&self) -> bool {
        let causes = || self.error.chain().filter_map(|e| e.downcast_ref::<std::io::Error>());
        causes().any(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
    }
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self { error: error.into(), code: 1 }
    }
}

/// Marks errors as the user's mistake.
pub trait OrUsage<T> {
    /// As [`Failure::usage`].
    ///
    /// # Errors
    /// The same error, marked.
    fn or_usage(self) -> Result<T, Failure>;
}

impl<T, E: Into<anyhow::Error>> OrUsage<T> for Result<T, E> {
    fn or_usage(self) -> Result<T, Failure> {
        self.map_err(Failure::usage)
    }
}

/// Prints the error, if there is one, and gives the exit code.
pub fn finish(result: CommandResult) -> ExitCode {
    match result {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::Wanting) => ExitCode::from(3),
        // As other filters do when `head` has read enough.
        Err(failure) if failure.is_broken_pipe() => ExitCode::SUCCESS,
        Err(Failure { error, code }) => {
            print_error(&error);
            ExitCode::from(code)
        }
    }
}

#[expect(clippy::print_stderr, reason = "the one place that prints errors")]
fn print_error(error: &anyhow::Error) {
    let mut said = error.to_string();
    eprintln!("error: {said}");
    for cause in error.chain().skip(1) {
        let text = cause.to_string();
        // Library errors quote their cause in their own sentence already.
        if !said.contains(&text) {
            eprintln!("  because: {text}");
        }
        said = text;
    }
}
