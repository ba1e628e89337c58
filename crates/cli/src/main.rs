//! The `ashlar` command: arguments, output and exit codes. Everything else lives in the library crates; a subcommand
//! is one file in `commands/`.
#![forbid(unsafe_code)]

mod allocation;
mod args;
mod card;
mod commands;
mod device;
mod exit;
mod hub;
mod interrupt;
mod license;
mod log;
mod model;
mod output;
mod placement;
mod progress;
mod recipe;
mod resident;
mod sampling;
mod table;
mod units;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = args::Cli::parse();
    exit::finish(cli.command.run(cli.globals))
}
