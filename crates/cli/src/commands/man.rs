//! `ashlar man`: this command and every subcommand as manual pages.

use crate::args::{Cli, Globals};
use crate::exit::{CommandResult, OrUsage, Outcome};
use crate::output;
use anyhow::Context;
use clap::{Args, CommandFactory};
use std::path::PathBuf;

/// Write manual pages, one per command, into a folder
#[derive(Args, Debug)]
#[command(after_help = "Example:
  ashlar man ~/.local/share/man/man1 && man ashlar-serve")]
pub struct Man {
    /// The folder; it is made if it is not there
    pub dir: PathBuf,
}

impl Man {
    /// Writes them.
    ///
    /// # Errors
    /// If the folder cannot be made or written.
    pub fn run(&self, globals: Globals) -> CommandResult {
        let dir = self.dir.display();
        std::fs::create_dir_all(&self.dir).with_context(|| format!("cannot make {dir}")).or_usage()?;
        clap_mangen::generate_to(Cli::command(), &self.dir).with_context(|| format!("cannot write into {dir}"))?;
        if !globals.quiet {
            output::say(&format!("manual pages: {dir}; read one with `man {dir}/ashlar.1`"));
        }
        Ok(Outcome::Done)
    }
}
