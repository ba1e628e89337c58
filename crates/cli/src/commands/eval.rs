//! `ashlar eval`: perplexity, and what a pack lost against its original.

use crate::args::Globals;
use crate::device::{self, DeviceArgs};
use crate::exit::{CommandResult, Failure, Outcome};
use crate::interrupt::Interrupt;
use crate::model::QUALITY_FILE;
use crate::output;
use crate::progress::{Progress, Unit};
use anyhow::Context;
use ashlar_pack::Pack;
use ashlar_runtime::eval::{Comparison, Divergence, Perplexity, Windows, compare, perplexity};
use ashlar_runtime::{Model, OpenOptions, RuntimeError, Tokenizer};
use clap::Args;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Measure how well a model predicts a text, and how far it is from a reference
///
/// The text is cut into windows of --ctx tokens. Perplexity: lower is better; it compares models that have the same tokenizer.
/// With --reference also KL divergence (how far the predicted probabilities are from the reference's; 0 is identical)
/// and how often both find the same token most probable. What is measured on a pack against a reference is left in the
/// pack as quality.json.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  ashlar eval Qwen3-0.6B --text wiki.txt
  ashlar eval Qwen3-0.6B-4bit --text wiki.txt --reference Qwen3-0.6B --ctx 512")]
pub struct Eval {
    /// A checkpoint folder or a pack
    pub src: PathBuf,
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
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub device: DeviceArgs,
}

impl Eval {
    /// Measures, prints, leaves quality.json in a pack.
    ///
    /// # Errors
    /// If the text or a model cannot be used.
    pub fn run(&self, globals: Globals) -> CommandResult {
        crate::model::check_path(&self.src)?;
        let name = self.text.display().to_string();
        let text = std::fs::read_to_string(&self.text)
            .with_context(|| format!("cannot read {name}"))
            .map_err(Failure::usage)?;
        let dir = if self.src.is_dir() { self.src.as_path() } else { self.src.parent().unwrap_or(Path::new(".")) };
        let windows =
            Windows::of(&Tokenizer::open(dir)?, &text, self.ctx, self.max_tokens).map_err(|e| unusable(e, &name))?;
        let options = OpenOptions { context: Some(windows.ctx()), ..self.device.options() };
        let mut model = device::open(&self.src, &options, globals)?;
        let mut reference = self.reference.as_ref().map(|r| device::open(r, &options, globals)).transpose()?;
        let interrupt = Interrupt::install()?;
        let progress = Progress::new(globals.quiet, Unit::Tokens);
        let measured = Measured::take(&mut model, reference.as_mut(), &windows, &interrupt, &progress)?;
        let Some(measured) = measured else {
            return Err(anyhow::anyhow!("interrupted; nothing was measured").into());
        };
        let mut result = measured.json();
        if let Some(object) = result.as_object_mut() {
            object.insert("ctx".into(), windows.ctx().into());
            object.insert("device".into(), model.device().into());
        }
        if measured.is_comparison() && Pack::is_pack(&self.src) {
            output::write_atomic(&self.src.join(QUALITY_FILE), format!("{result:#}\n").as_bytes())?;
        }
        if self.json {
            output::print_json(&result)?;
        } else {
            output::print(&measured.text())?;
        }
        Ok(Outcome::Done)
    }
}

fn unusable(error: RuntimeError, file: &str) -> Failure {
    Failure::usage(anyhow::Error::new(error).context(format!("cannot measure on {file}")))
}

/// What was measured.
pub enum Measured {
    Alone(Perplexity),
    Beside(Comparison),
}

impl Measured {
    /// Measures; `None` if interrupted.
    ///
    /// # Errors
    /// If a model fails, or the two cannot be compared.
    pub fn take(
        model: &mut Model,
        reference: Option<&mut Model>,
        windows: &Windows,
        interrupt: &Interrupt,
        progress: &Progress,
    ) -> Result<Option<Self>, Failure> {
        let measured = match reference {
            Some(reference) => {
                compare(model, reference, windows, interrupt.flag(), progress).map(|c| c.map(Self::Beside))
            }
            None => perplexity(model, windows, interrupt.flag(), progress).map(|p| p.map(Self::Alone)),
        };
        measured.map_err(device::failure)
    }

    fn is_comparison(&self) -> bool {
        matches!(self, Self::Beside(_))
    }

    fn json(&self) -> Value {
        let (model, beside) = match self {
            Self::Alone(p) => (p, None),
            Self::Beside(c) => (&c.model, Some(c)),
        };
        json!({
            "perplexity": model.perplexity,
            "perplexity_ci95": model.ci95,
            "tokens": model.tokens,
            "windows": model.windows,
            "reference_perplexity": beside.map(|c| c.reference.perplexity),
            "perplexity_delta": beside.map(|c| c.delta),
            "perplexity_delta_ci95": beside.map(|c| c.delta_ci95),
            "kl": beside.map(|c| kl_json(&c.kl)),
            "top1": beside.map(|c| c.top1),
            "top1_ci95": beside.map(|c| c.top1_ci95),
        })
    }

    /// For people.
    #[must_use]
    pub fn text(&self) -> String {
        match self {
            Self::Alone(p) => format!(
                "perplexity {:.3} (95 %: {:.3} to {:.3}) over {} tokens\n",
                p.perplexity, p.ci95[0], p.ci95[1], p.tokens
            ),
            Self::Beside(c) => format!(
                "perplexity      {:.3}, reference {:.3}: {:+.3} (95 %: {:+.3} to {:+.3}) over {} tokens\n\
                 KL divergence   mean {:.5} nats (95 %: {:.5} to {:.5}); 90 % below {:.4}, 99 % below {:.4}, 99.9 % below {:.4}\n\
                 same top token  {:.2} % (95 %: {:.2} to {:.2})\n",
                c.model.perplexity,
                c.reference.perplexity,
                c.delta,
                c.delta_ci95[0],
                c.delta_ci95[1],
                c.model.tokens,
                c.kl.mean,
                c.kl.ci95[0],
                c.kl.ci95[1],
                c.kl.p90,
                c.kl.p99,
                c.kl.p999,
                100.0 * c.top1,
                100.0 * c.top1_ci95[0],
                100.0 * c.top1_ci95[1],
            ),
        }
    }
}

fn kl_json(kl: &Divergence) -> Value {
    json!({"mean": kl.mean, "ci95": kl.ci95, "p90": kl.p90, "p99": kl.p99, "p999": kl.p999})
}
