//! `ashlar completions`: what a shell needs to complete this command's options.

use crate::args::Cli;
use crate::exit::{CommandResult, Outcome};
use crate::output;
use clap::{Args, CommandFactory};
use clap_complete::Shell;

/// Print completions for a shell
///
/// The script goes to stdout; where a shell looks for it is the shell's own business.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  ashlar completions bash > ~/.local/share/bash-completion/completions/ashlar
  ashlar completions zsh > \"${fpath[1]}/_ashlar\"
  ashlar completions fish > ~/.config/fish/completions/ashlar.fish")]
pub struct Completions {
    /// The shell
    #[arg(value_enum)]
    pub shell: Shell,
}

impl Completions {
    /// Prints the script.
    ///
    /// # Errors
    /// If stdout cannot be written.
    pub fn run(&self) -> CommandResult {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "ashlar", &mut script);
        output::print(&String::from_utf8_lossy(&script))?;
        Ok(Outcome::Done)
    }
}
