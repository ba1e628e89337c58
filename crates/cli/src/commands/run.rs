//! `ashlar run`: text from a model, streamed as it is made.

mod chat;
mod speaker;

use crate::args::Globals;
use crate::device::{self, DeviceArgs};
use crate::exit::{CommandResult, Failure, Outcome};
use crate::output;
use crate::sampling::SamplingArgs;
use anyhow::{Context, anyhow};
use ashlar_runtime::{ChatTemplate, GenerateOptions, Message, Model, OpenOptions};
use clap::Args;
use speaker::Speaker;
use std::io::{IsTerminal, Read};
use std::num::NonZeroUsize;
use std::path::PathBuf;

/// Generate text with a pack or an unconverted checkpoint
///
/// The prompt comes from -p, from a file (-p @FILE) or from stdin, and is put into the model's chat template, unless --raw
/// is given or the model has none. Text goes to stdout, everything else to stderr. Ctrl-C ends the text, a second one the
/// program.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  ashlar run Qwen3-30B-A3B-4bit -p \"Why is the sky blue?\"
  ashlar run Qwen3-30B-A3B-4bit --chat --system \"Answer briefly.\"
  ashlar run Qwen3-30B-A3B-4bit --raw -p @story.txt --max-tokens 200 --temperature 0.8 --seed 1
  echo \"Say hello\" | ashlar run Qwen3-30B-A3B-4bit")]
pub struct Run {
    /// A checkpoint folder or a pack
    pub src: PathBuf,
    /// The prompt, or @FILE to read it from a file [default: stdin]
    #[arg(short, long, value_name = "PROMPT")]
    pub prompt: Option<String>,
    /// Talk: a prompt line by line, with memory; /reset forgets, /exit leaves
    #[arg(long, conflicts_with_all = ["prompt", "raw"])]
    pub chat: bool,
    /// Continue the prompt as it is, without chat template
    #[arg(long)]
    pub raw: bool,
    /// What the model is told before the first prompt
    #[arg(long, value_name = "TEXT", conflicts_with = "raw")]
    pub system: Option<String>,
    /// The most tokens to generate per answer [default: as many as the context holds]
    #[arg(long, value_name = "N")]
    pub max_tokens: Option<usize>,
    /// End the text before this one; may be given several times
    #[arg(long, value_name = "TEXT")]
    pub stop: Vec<String>,
    /// Tokens that prompt and answer may have together [default: 4096, or what the model was made for if less]
    #[arg(long, value_name = "N")]
    pub context: Option<usize>,
    /// Tokens of a prompt that go through the model at once
    #[arg(long, value_name = "N", default_value_t = NonZeroUsize::new(ashlar_runtime::DEFAULT_CHUNK).unwrap_or(NonZeroUsize::MIN))]
    pub chunk: NonZeroUsize,
    /// Memory that keys and values of earlier tokens may take, such as 2GiB; a text that needs more is refused before
    /// anything starts [default: as much as the context asks for]
    #[arg(long, value_name = "BYTES", value_parser = ashlar_recipe::parse_bytes)]
    pub kv_budget: Option<u64>,
    #[command(flatten)]
    pub device: DeviceArgs,
    #[command(flatten)]
    pub sampling: SamplingArgs,
}

impl Run {
    /// Generates one text, or talks.
    ///
    /// # Errors
    /// If the model cannot be opened or run, or a prompt does not fit.
    pub fn run(&self, globals: Globals) -> CommandResult {
        crate::model::check_path(&self.src)?;
        let prompt = if self.chat { String::new() } else { self.prompt()? };
        let options = OpenOptions {
            context: self.context,
            chunk: self.chunk.get(),
            kv_budget: self.kv_budget,
            ..self.device.options()?
        };
        let model = device::open(&self.src, &options, globals)?;
        let template = self.template(&model, globals)?;
        let chosen = self.sampling.choose(model.dir())?;
        if !globals.quiet && (globals.verbose || !chosen.is_greedy()) {
            output::say(&format!("sampling: {}", chosen.told));
        }
        let options = GenerateOptions {
            max_tokens: self.max_tokens,
            stop: self.stop.clone(),
            sampling: chosen.sampling,
            ..GenerateOptions::default()
        };
        let mut speaker = Speaker::new(model, options, globals)?;
        match template {
            Some(template) if self.chat => chat::talk(&mut speaker, &template, self.system.as_deref())?,
            Some(template) => {
                let mut messages: Vec<Message> = self.system.iter().map(|s| Message::new("system", s)).collect();
                messages.push(Message::new("user", prompt));
                speaker.speak(&template.render(&messages, true)?, false)?;
            }
            None => drop(speaker.speak(&prompt, true)?),
        }
        Ok(Outcome::Done)
    }

    fn prompt(&self) -> Result<String, Failure> {
        match self.prompt.as_deref() {
            Some(text) => match text.strip_prefix('@') {
                Some(file) => std::fs::read_to_string(file)
                    .with_context(|| format!("cannot read the prompt from {file}"))
                    .map_err(Failure::usage),
                None => Ok(text.to_owned()),
            },
            None if std::io::stdin().is_terminal() => {
                Err(Failure::usage(anyhow!("there is no prompt; give -p PROMPT, pipe one in, or talk with --chat")))
            }
            None => {
                let mut text = String::new();
                std::io::stdin().lock().read_to_string(&mut text).context("cannot read the prompt from stdin")?;
                Ok(text)
            }
        }
    }

    /// The model's template, unless the prompt is to be continued as it is.
    fn template(&self, model: &Model, globals: Globals) -> Result<Option<ChatTemplate>, Failure> {
        if self.raw {
            return Ok(None);
        }
        match ChatTemplate::open(model.dir()) {
            Ok(template) => Ok(Some(template)),
            Err(error) if self.chat || self.system.is_some() => Err(error.into()),
            Err(error) => {
                if !globals.quiet {
                    output::say(&format!("note: {error}; continuing the prompt as it is"));
                }
                Ok(None)
            }
        }
    }
}
