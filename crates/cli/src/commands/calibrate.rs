//! `ashlar calibrate`: what the weights of a model see, for `convert --stats`.

use super::convert;
use crate::args::{Globals, MemoryArgs};
use crate::device;
use crate::exit::{CommandResult, Failure, Outcome};
use crate::interrupt::Interrupt;
use crate::model::check_path;
use crate::progress::{Progress, Unit};
use crate::{hub, output, units};
use anyhow::Context;
use ashlar_calibrate::{
    CalibrateError, Input, Options, SensitivityOptions, Starved, calibrate, default_texts, measure_sensitivity, starved,
};
use ashlar_convert::stats::{StatsFile, merge, merge_origins};
use ashlar_tensor::Report;
use clap::Args;
use serde_json::{Value, json};
use std::fmt::Write;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

/// Experts that are named before the list is cut.
const LISTED: usize = 12;

/// Run text through a model and write down what its weights see, for `convert --stats`
///
/// One layer is in memory at a time, and 8 bytes per token and hidden unit. The result holds the mean square of every
/// input column of every matrix and expert, and how often each expert was chosen; it does not depend on threads. After a
/// kill the same command goes on after the last finished layer. Files of the same model can be merged.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  ashlar calibrate Qwen3-30B-A3B -o qwen.stats
  ashlar calibrate Qwen3-30B-A3B --text mine.txt --text code.txt -o mine.stats
  ashlar calibrate Qwen3-30B-A3B --sensitivity -o qwen.stats
  ashlar calibrate small-model --hessians -o small.stats
  ashlar calibrate --merge qwen.stats mine.stats -o both.stats
  ashlar convert Qwen3-30B-A3B -o out --recipe 4bit-experts --stats both.stats")]
pub struct Calibrate {
    /// A checkpoint folder or a pack
    #[arg(required_unless_present = "merge", conflicts_with = "merge")]
    pub src: Option<PathBuf>,
    /// Texts in UTF-8; may be given several times [default: the text that comes with the program, about 170 KB]
    #[arg(long, value_name = "FILE", conflicts_with = "merge")]
    pub text: Vec<PathBuf>,
    /// The statistics file to write
    #[arg(short, long, value_name = "S")]
    pub output: PathBuf,
    /// Add up statistics of the same model instead of running it
    #[arg(long, value_name = "S", num_args = 2..)]
    pub merge: Vec<PathBuf>,
    /// Tokens per window
    #[arg(long, value_name = "N", default_value_t = 512)]
    pub ctx: usize,
    /// Use at most N tokens, in windows spread evenly over the text
    #[arg(long, value_name = "N")]
    pub tokens: Option<usize>,
    /// Also store the Hessian of the inputs of every matrix, which `method: gptq` needs: 2 bytes × columns² each, one for
    /// q, k and v, one for a router and its experts' gate and up, one for every expert's down. That is 1.8 MB per matrix
    /// of 2048 columns and expert of 768, 9 GB for a model of 30B-A3B; `convert --calibrate` needs no such file
    #[arg(long, conflicts_with = "merge")]
    pub hessians: bool,
    /// Experts that saw fewer tokens than this are named
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub min_tokens: u64,
    /// Measure as well how much predictions suffer from errors in each part of the model, for `--target-size` and
    /// `--target-bpw`. Adds to statistics that are there
    #[arg(long, conflicts_with = "merge")]
    pub sensitivity: bool,
    /// Tokens for --sensitivity: each part of each layer takes a run of these through the layers that follow
    #[arg(long, value_name = "N", default_value_t = 4096, requires = "sensitivity")]
    pub sensitivity_tokens: usize,
    /// Where to run: auto, cpu or reference
    #[arg(long, value_name = "D", default_value = "auto", value_parser = device::word)]
    pub device: String,
    /// Threads [default: one per core]
    #[arg(long, value_name = "N")]
    pub threads: Option<NonZeroUsize>,
    #[command(flatten)]
    pub memory: MemoryArgs,
    /// Replace an existing file
    #[arg(long)]
    pub force: bool,
    /// Discard what an interrupted run with other inputs left in S.partial
    #[arg(long)]
    pub restart: bool,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

impl Calibrate {
    /// Gathers or merges, and prints the coverage of experts.
    ///
    /// # Errors
    /// Texts that cannot be used, an existing output and other inputs than the journal's are the user's mistake.
    pub fn run(&self, globals: Globals) -> CommandResult {
        let progress = Progress::new(globals.quiet, Unit::Tokens);
        Interrupt::exit_saying(&format!(
            "interrupted; run the same command again to go on, or delete what is left in {0}.partial or {0}.sensitivity",
            self.output.display()
        ))?;
        let resumed = match &self.src {
            // Statistics that are there are what sensitivities are added to.
            Some(src) if self.sensitivity && self.output.exists() && !self.force => {
                self.sensitivities(src, &progress)?;
                0
            }
            Some(src) => {
                let resumed = self.gather(src, &progress)?;
                if self.sensitivity {
                    self.sensitivities(src, &progress)?;
                }
                resumed
            }
            None => {
                self.add_up()?;
                0
            }
        };
        let file = StatsFile::open(&self.output)?;
        let few = starved(&file, self.min_tokens)?;
        if self.json {
            output::print_json(&self.summary(&file, &few, resumed)?)?;
        } else {
            output::print(&self.text(&file, &few, resumed)?)?;
        }
        Ok(Outcome::Done)
    }

    /// Returns the layers that an earlier run had done.
    fn gather(&self, src: &Path, report: &dyn Report) -> Result<usize, Failure> {
        check_path(src)?;
        let src = &hub::local(src)?;
        let texts = texts(&self.text)?;
        let options = Options {
            ctx: self.ctx,
            tokens: self.tokens,
            hessians: self.hessians,
            memory: self.memory.memory,
            device: self.device.clone(),
            threads: self.threads.map(NonZeroUsize::get),
            force: self.force,
            restart: self.restart,
        };
        let summary = calibrate(src, &texts, &self.output, &options, report).map_err(failure)?;
        Ok(summary.resumed_layers)
    }

    /// Adds sensitivities to the statistics at the output.
    fn sensitivities(&self, src: &Path, report: &dyn Report) -> Result<(), Failure> {
        check_path(src)?;
        let src = &hub::local(src)?;
        let options = SensitivityOptions {
            ctx: self.ctx,
            tokens: self.sensitivity_tokens,
            device: self.device.clone(),
            threads: self.threads.map(NonZeroUsize::get),
            restart: self.restart,
        };
        let measured = measure_sensitivity(src, &self.texts()?, &self.output, &options, report).map_err(failure)?;
        for name in &measured.unmeasured {
            report.note(&format!(
                "{name}: its shape takes no trial format; its sensitivity is estimated from the others"
            ));
        }
        Ok(())
    }

    /// The texts named, or ours.
    fn texts(&self) -> Result<Vec<Input>, Failure> {
        if self.text.is_empty() {
            return Ok(default_texts());
        }
        self.text.iter().map(|path| read(path)).collect::<Result<_, _>>().map_err(Failure::usage)
    }

    fn add_up(&self) -> Result<(), Failure> {
        if self.output.exists() && !self.force {
            return Err(failure(CalibrateError::Exists { path: self.output.display().to_string() }));
        }
        let inputs = self.merge.iter().map(|p| StatsFile::open(p)).collect::<Result<Vec<_>, _>>()?;
        let origin = merge_origins(&inputs).map_err(Failure::usage)?;
        Ok(merge(&inputs, &origin, &self.output)?)
    }

    fn summary(&self, file: &StatsFile, few: &[Starved], resumed: usize) -> anyhow::Result<Value> {
        let origin = file.origin();
        Ok(json!({
            "output": self.output.display().to_string(),
            "source": origin.source,
            "tokens": origin.tokens,
            "ctx": origin.ctx,
            "texts": origin.texts,
            "tensors": tensors(file),
            "experts": experts(file),
            "min_tokens": self.min_tokens,
            "starved": starved_json(few),
            "resumed_layers": resumed,
        }))
    }

    fn text(&self, file: &StatsFile, few: &[Starved], resumed: usize) -> anyhow::Result<String> {
        let (out, origin) = (self.output.display(), file.origin());
        let mut text = format!(
            "{out}: {} tokens, statistics of {} tensors",
            units::thousands(origin.tokens),
            units::thousands(tensors(file) as u64)
        );
        if resumed > 0 {
            write!(text, " ({resumed} layers were there from an earlier run)")?;
        }
        text.push('\n');
        text += &coverage(few, experts(file), self.min_tokens)?;
        writeln!(text, "use it:   ashlar convert SRC -o OUT --recipe R --stats {out}")?;
        Ok(text)
    }
}

/// The texts at these paths, or ours.
///
/// # Errors
/// A text that cannot be read is the user's mistake.
pub fn texts(paths: &[PathBuf]) -> Result<Vec<Input>, Failure> {
    if paths.is_empty() {
        return Ok(default_texts());
    }
    paths.iter().map(|path| read(path)).collect::<Result<_, _>>().map_err(Failure::usage)
}

/// Experts that saw too few tokens, for a program.
#[must_use]
pub fn starved_json(few: &[Starved]) -> Vec<Value> {
    few.iter().map(|s| json!({"layer": s.layer, "expert": s.expert, "tokens": s.tokens})).collect()
}

/// Which of `experts` experts saw fewer than `min_tokens` tokens, for a person; nothing if there are none at all.
///
/// # Errors
/// None in practice: writing to a text does not fail.
pub fn coverage(few: &[Starved], experts: usize, min_tokens: u64) -> anyhow::Result<String> {
    let mut text = String::new();
    if experts > 0 && few.is_empty() {
        writeln!(text, "coverage: each of {experts} experts saw at least {min_tokens} tokens")?;
    } else if experts > 0 {
        writeln!(
            text,
            "coverage: {} of {experts} experts saw fewer than {min_tokens} tokens; more text would help them, until then they lean on the others of their layer:",
            few.len(),
        )?;
        for s in few.iter().take(LISTED) {
            writeln!(text, "  layer {}, expert {}: {} tokens", s.layer, s.expert, s.tokens)?;
        }
        if few.len() > LISTED {
            writeln!(text, "  … and {} more (--json lists all)", few.len() - LISTED)?;
        }
    }
    Ok(text)
}

fn read(path: &Path) -> anyhow::Result<Input> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok(Input { name, text })
}

fn tensors(file: &StatsFile) -> usize {
    file.arrays().iter().filter(|a| a.name.starts_with("moments.")).count()
}

/// Experts of all layers.
fn experts(file: &StatsFile) -> usize {
    let routing = file.arrays().iter().filter(|a| a.name.starts_with("routing."));
    routing.filter_map(|a| a.shape.get(1)).sum()
}

/// Tells mistakes of the user's from failures.
pub fn failure(error: CalibrateError) -> Failure {
    match error {
        CalibrateError::Convert(error) => convert::failure(*error),
        CalibrateError::Exists { .. }
        | CalibrateError::OtherRun { .. }
        | CalibrateError::HessianSize { .. }
        | CalibrateError::StreamMemory { .. }
        | CalibrateError::Text { .. } => Failure::usage(error),
        CalibrateError::Runtime(error) => device::failure(error),
        error => error.into(),
    }
}
