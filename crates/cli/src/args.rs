//! What can be typed: the command list and the options that commands share.

use crate::commands;
use crate::exit::CommandResult;
use crate::units;
use clap::{Args, Parser, Subcommand};

/// Cut a Hugging Face checkpoint into blocks of the precision each place needs, and run the result.
///
/// A checkpoint (a folder with config.json and .safetensors files) is converted by a recipe into a pack: a folder in
/// which every weight has the precision its recipe chose. Packs and unconverted checkpoints both run.
///
/// New here? `ashlar demo` shows the whole path on a small bundled model.
#[derive(Debug, Parser)]
#[command(name = "ashlar", version, arg_required_else_help = true, max_term_width = 110)]
#[command(after_help = "Exit codes: 0 done, 1 failed, 2 wrong usage or recipe, 3 checked and found wanting.")]
pub struct Cli {
    #[command(flatten)]
    pub globals: Globals,
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Args, Clone, Copy, Debug)]
pub struct Globals {
    /// Say nothing but the result and errors
    #[arg(short, long, global = true, display_order = 900)]
    pub quiet: bool,
    /// Say more: instruction set, threads, device, what falls back to what
    #[arg(short, long, global = true, display_order = 901)]
    pub verbose: bool,
}

/// The commands, in the order a newcomer meets them.
#[derive(Debug, Subcommand)]
pub enum Command {
    Demo(commands::demo::Demo),
    Pull(commands::pull::Pull),
    Inspect(commands::inspect::Inspect),
    Plan(commands::plan::PlanCommand),
    Calibrate(commands::calibrate::Calibrate),
    Convert(commands::convert::Convert),
    Verify(commands::verify::Verify),
    Eval(commands::eval::Eval),
    Logits(commands::logits::Logits),
    Run(commands::run::Run),
    Serve(Box<commands::serve::Serve>),
    Bench(commands::bench::Bench),
    Doctor(commands::doctor::Doctor),
    Trace(commands::trace::Trace),
    Simulate(commands::simulate::Simulate),
    Completions(commands::completions::Completions),
    Man(commands::man::Man),
}

impl Command {
    /// Does what was asked.
    ///
    /// # Errors
    /// The command's.
    pub fn run(&self, globals: Globals) -> CommandResult {
        crate::hub::be_quiet(globals.quiet);
        match self {
            Self::Demo(c) => c.run(globals),
            Self::Pull(c) => c.run(globals),
            Self::Inspect(c) => c.run(globals),
            Self::Plan(c) => c.run(globals),
            Self::Calibrate(c) => c.run(globals),
            Self::Convert(c) => c.run(globals),
            Self::Verify(c) => c.run(globals),
            Self::Eval(c) => c.run(globals),
            Self::Logits(c) => c.run(globals),
            Self::Run(c) => c.run(globals),
            Self::Serve(c) => c.run(globals),
            Self::Bench(c) => c.run(globals),
            Self::Doctor(c) => c.run(globals),
            Self::Trace(c) => c.run(globals),
            Self::Simulate(c) => c.run(globals),
            Self::Completions(c) => c.run(),
            Self::Man(c) => c.run(globals),
        }
    }
}

/// Reads a size in bytes; clap prints the message.
fn bytes(text: &str) -> Result<u64, String> {
    units::parse_bytes(text)
}

/// How much memory a conversion may use.
#[derive(Args, Clone, Copy, Debug)]
pub struct MemoryArgs {
    /// Memory for weights in flight, such as 512MiB or 4GB (the process itself needs a little more)
    #[arg(long, value_name = "BYTES", default_value = "1GiB", value_parser = bytes)]
    pub memory: u64,
}

#[cfg(test)]
mod tests {
    use super::Cli;
    use clap::CommandFactory;
    use std::collections::HashSet;

    /// clap itself looks for this in debug builds only; here options of several groups meet.
    #[test]
    fn no_command_has_two_options_of_the_same_name() {
        for command in Cli::command().get_subcommands() {
            let mut seen = HashSet::new();
            for option in command.get_arguments() {
                let name = option.get_id().as_str();
                assert!(seen.insert(name.to_owned()), "{}: {name}", command.get_name());
            }
        }
    }
}
