//! `ashlar eval`: perplexity, and what packs lost against their original.

mod anatomy;
mod facts;
mod gates;
pub mod quality;
mod report;
mod show;

pub use show::comparison_text;

use crate::args::Globals;
use crate::device::{self, DeviceArgs};
use crate::exit::{CommandResult, Failure, Outcome};
use crate::interrupt::Interrupt;
use crate::output;
use crate::progress::{Progress, Unit};
use anyhow::{Context, anyhow};
use ashlar_runtime::eval::{
    Ablation, AblationOptions, Comparison, Continuations, Grouping, Windows, ablate, compare, continue_greedily,
    perplexity,
};
use ashlar_runtime::{Model, OpenOptions, RuntimeError, Tokenizer, activation_mode};
use ashlar_tensor::Report;
use clap::{Args, ValueEnum};
use facts::Facts;
use gates::Gate;
use serde_json::Value;
use show::Evaluated;
use std::path::{Path, PathBuf};

/// Tokens of a prompt that is continued.
const PROMPT: usize = 32;

/// Measure how well a model predicts a text, and how far it is from a reference
///
/// The text is cut into windows of --ctx tokens. Perplexity: lower is better; it compares models that have the same
/// tokenizer. With --reference also: KL divergence (how far the predicted probabilities are from the reference's; 0 is
/// identical), the change of the probability of the right token, how often both find the same token most probable, how
/// often routers choose the same experts, all of it with 95 % intervals. docs/eval.md defines every figure.
///
/// What is measured on a pack against a reference is left in it as quality.json, which `inspect` shows. If the pack was
/// made by a recipe with quality gates (`validate:`) and the reference is its source, they are checked: exit code 3 if one
/// is missed.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  ashlar eval Qwen3-0.6B --text wiki.txt
  ashlar eval Qwen3-0.6B-4bit --text wiki.txt --reference Qwen3-0.6B --ctx 512
  ashlar eval PACK --text wiki.txt --reference SRC --continuations --ablation layer
  ashlar eval PACK1 PACK2 PACK3 --text wiki.txt --reference SRC --report out.html")]
pub struct Eval {
    /// Checkpoint folders or packs; several need --reference
    #[arg(required = true, value_name = "SRC")]
    pub src: Vec<PathBuf>,
    /// The text, in UTF-8
    #[arg(long, value_name = "FILE")]
    pub text: PathBuf,
    /// The model to compare with, usually the original
    #[arg(long, value_name = "SRC2")]
    pub reference: Option<PathBuf>,
    /// Tokens per window
    #[arg(long, value_name = "N", default_value_t = 512)]
    pub ctx: usize,
    /// Measure on the first N tokens only
    #[arg(long, value_name = "N")]
    pub max_tokens: Option<usize>,
    /// Also let model and reference continue N prompts from the text: where they part, and whether they loop
    #[arg(long, value_name = "N", num_args = 0..=1, default_missing_value = "20", requires = "reference")]
    pub continuations: Option<usize>,
    /// Tokens written after each prompt
    #[arg(long, value_name = "N", default_value_t = 128)]
    pub continuation_tokens: usize,
    /// Also tell which weights cost most: the KL divergence of the reference with only these taken from the pack
    #[arg(long, value_name = "PARTS", num_args = 0..=1, default_missing_value = "class", requires = "reference", value_enum)]
    pub ablation: Option<Parts>,
    /// Tokens measured for each part of an ablation
    #[arg(long, value_name = "N", default_value_t = 4096)]
    pub ablation_tokens: usize,
    /// Parts of an ablation at most; those with the most parameters are taken
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub ablation_parts: usize,
    /// Also write a page with charts: size against quality, bits and errors by layer, use of experts (no network, no script)
    #[arg(long, value_name = "FILE.html", requires = "reference")]
    pub report: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub device: DeviceArgs,
}

/// Parts of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Parts {
    /// All weights of a class
    Class,
    /// All weights of a layer
    Layer,
    /// The weights of a class in a layer
    LayerClass,
}

impl From<Parts> for Grouping {
    fn from(parts: Parts) -> Self {
        match parts {
            Parts::Class => Self::Class,
            Parts::Layer => Self::Layer,
            Parts::LayerClass => Self::LayerClass,
        }
    }
}

/// What the parts of a run share.
struct Session<'a> {
    args: &'a Eval,
    windows: Windows,
    text_hash: String,
    options: OpenOptions,
    interrupt: Interrupt,
    progress: Progress,
    globals: Globals,
}

impl Eval {
    /// Measures, prints, leaves quality.json in packs, checks their gates.
    ///
    /// # Errors
    /// If the text or a model cannot be used.
    pub fn run(&self, globals: Globals) -> CommandResult {
        self.src.iter().try_for_each(|src| crate::model::check_path(src))?;
        let (Some(first), true) = (self.src.first(), self.src.len() == 1 || self.reference.is_some()) else {
            return Err(Failure::usage(anyhow!("several models are compared with --reference; name it")));
        };
        let session = self.session(first, globals)?;
        match &self.reference {
            None => session.alone(first),
            Some(reference) => session.beside(reference),
        }
    }

    fn session(&self, first: &Path, globals: Globals) -> Result<Session<'_>, Failure> {
        let name = self.text.display().to_string();
        let text = std::fs::read_to_string(&self.text)
            .with_context(|| format!("cannot read {name}"))
            .map_err(Failure::usage)?;
        let first = &crate::hub::local(first)?;
        let dir = ashlar_runtime::side_dir(first)?;
        let windows =
            Windows::of(&Tokenizer::open(&dir)?, &text, self.ctx, self.max_tokens).map_err(|e| unusable(e, &name))?;
        let written = self.continuations.map_or(0, |_| PROMPT + self.continuation_tokens);
        Ok(Session {
            args: self,
            options: OpenOptions { context: Some(windows.ctx().max(written)), ..self.device.options()? },
            windows,
            text_hash: blake3::hash(text.as_bytes()).to_hex().to_string(),
            interrupt: Interrupt::install()?,
            progress: Progress::new(globals.quiet, Unit::Tokens),
            globals,
        })
    }
}

impl Session<'_> {
    /// Perplexity, without a reference.
    fn alone(&self, src: &Path) -> CommandResult {
        let mut model = device::open(src, &self.options, self.globals)?;
        let measured = perplexity(&mut model, &self.windows, self.interrupt.flag(), &self.progress);
        let measured = measured.map_err(device::failure)?.ok_or_else(interrupted)?;
        if self.args.json {
            output::print_json(&show::perplexity_json(&measured, &self.windows, &model.device()))?;
        } else {
            output::print(&show::perplexity_text(&measured))?;
        }
        Ok(if measured.non_finite == 0 { Outcome::Done } else { Outcome::Wanting })
    }

    /// Everything that needs a reference.
    fn beside(&self, reference: &Path) -> CommandResult {
        let facts = Facts::of_all(&self.args.src, reference)?;
        let mut original = device::open(reference, &self.options, self.globals)?;
        let mut models = Vec::new();
        for src in &self.args.src {
            models.push(device::open(src, &self.options, self.globals)?);
        }
        let compared =
            compare("eval", &mut models, &mut original, &self.windows, self.interrupt.flag(), &self.progress);
        let compared = compared.map_err(device::failure)?.ok_or_else(interrupted)?;
        let written = self.continuations(&mut models, &mut original)?;
        let device = original.device();
        drop((models, original));
        let mut all = Vec::new();
        for ((facts, comparison), continuations) in facts.into_iter().zip(compared).zip(written) {
            let ablation = self.ablation(&facts, reference)?;
            all.push(Self::evaluated(facts, comparison, continuations, ablation));
        }
        for one in &all {
            self.keep(one)?;
        }
        if let Some(path) = &self.args.report {
            let about = report::About {
                text: file_name(&self.args.text),
                reference: file_name(reference),
                ctx: self.windows.ctx(),
                device: device.clone(),
            };
            output::write_atomic(path, report::render(&all, &about).as_bytes())?;
        }
        self.print(&all, &device)?;
        Ok(if all.iter().all(Evaluated::passes) { Outcome::Done } else { Outcome::Wanting })
    }

    fn continuations(
        &self,
        models: &mut [Model],
        reference: &mut Model,
    ) -> Result<Vec<Option<Continuations>>, Failure> {
        let Some(count) = self.args.continuations.filter(|n| *n > 0) else {
            return Ok(models.iter().map(|_| None).collect());
        };
        let write = |model: &mut Model| -> Result<Vec<Vec<u32>>, Failure> {
            let sizes = [count, PROMPT, self.args.continuation_tokens];
            let ids = continue_greedily(model, &self.windows, sizes, self.interrupt.flag(), &self.progress);
            Ok(ids.map_err(device::failure)?.ok_or_else(interrupted)?)
        };
        let theirs = write(reference)?;
        let prompts = self.windows.prompts(count, PROMPT);
        models.iter_mut().map(|m| Ok(Some(Continuations::of(&prompts, &write(m)?, &theirs)))).collect()
    }

    fn ablation(&self, facts: &Facts, reference: &Path) -> Result<Option<Ablation>, Failure> {
        let Some(parts) = self.args.ablation else { return Ok(None) };
        let options = AblationOptions {
            grouping: parts.into(),
            parts: self.args.ablation_parts,
            same_source: facts.is_from_reference(),
        };
        let windows = self.windows.thinned(self.args.ablation_tokens);
        let paths = [facts.path.as_path(), reference];
        let quiet = Quieter(&self.progress);
        let found = ablate(paths, &self.options, options, &windows, self.interrupt.flag(), &quiet);
        Ok(Some(found.map_err(device::failure)?.ok_or_else(interrupted)?))
    }

    fn evaluated(
        facts: Facts,
        comparison: Comparison,
        continuations: Option<Continuations>,
        ablation: Option<Ablation>,
    ) -> Evaluated {
        let (gates, unchecked) = match facts.gates() {
            Ok(wanted) => (Gate::check(wanted, &comparison), None),
            Err(why) => (Vec::new(), Some(why)),
        };
        Evaluated { facts, comparison, continuations, ablation, gates, unchecked }
    }

    /// Leaves what was measured in the pack.
    fn keep(&self, one: &Evaluated) -> Result<(), Failure> {
        let Some(identity) = &one.facts.pack_identity else { return Ok(()) };
        let device = &self.options.device;
        let about = quality::About {
            text: &self.text_hash,
            windows: &self.windows,
            max_tokens: self.args.max_tokens,
            device: if device == "auto" { "cpu" } else { device },
            activations: activation_mode(device, self.options.activations),
        };
        let evaluation = quality::evaluation(&about, one);
        let dropped = quality::add(&one.facts.path, identity, evaluation)?;
        if dropped > 0 {
            let path = one.facts.path.join(quality::FILE);
            self.progress.note(&format!("{}: {dropped} evaluations of another pack were removed", path.display()));
        }
        Ok(())
    }

    fn print(&self, all: &[Evaluated], device: &str) -> Result<(), Failure> {
        if !self.args.json {
            let titled = all.len() > 1;
            let text: Vec<String> = all.iter().map(|one| one.text(titled)).collect();
            return Ok(output::print(&text.join("\n"))?);
        }
        let mut each: Vec<Value> = all.iter().map(|one| one.json(&self.windows, device)).collect();
        if let (1, Some(only)) = (each.len(), each.first_mut()) {
            return Ok(output::print_json(only)?);
        }
        Ok(output::print_json(&serde_json::json!({ "models": each }))?)
    }
}

/// Progress of a run that opens many models: what opening tells was told already.
struct Quieter<'a>(&'a Progress);

impl Report for Quieter<'_> {
    fn begin(&self, stage: &str, total: u64) {
        if stage != "load" {
            self.0.begin(stage, total);
        }
    }

    fn advance(&self, amount: u64, current: &str) {
        // Only loading names tensors.
        if current.is_empty() {
            self.0.advance(amount, current);
        }
    }

    fn note(&self, _text: &str) {}

    fn end(&self) {
        self.0.end();
    }
}

/// The last part of a path.
fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

fn interrupted() -> anyhow::Error {
    anyhow!("interrupted; nothing was measured")
}

fn unusable(error: RuntimeError, file: &str) -> Failure {
    Failure::usage(anyhow::Error::new(error).context(format!("cannot measure on {file}")))
}
