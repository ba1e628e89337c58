//! `ashlar run`: text from a model, streamed as it is made.

mod chat;
mod screen;
mod speaker;

use crate::args::Globals;
use crate::device::{self, DeviceArgs};
use crate::exit::{CommandResult, Failure, Outcome};
use crate::output;
use crate::sampling::SamplingArgs;
use anyhow::{Context, anyhow};
use ashlar_runtime::{Chat, Conversation, GenerateOptions, Message, Model, OpenOptions, ReplyForm};
use clap::{Args, ValueEnum};
use speaker::Speaker;
use std::io::{IsTerminal, Read};
use std::num::NonZeroUsize;
use std::path::PathBuf;

/// Generate text with a pack or an unconverted checkpoint
///
/// The prompt comes from -p, from a file (-p @FILE) or from stdin, and is put into the model's chat template, unless --raw
/// is given or the model has none. The answer goes to stdout, everything else to stderr: also what the model reasons before
/// it answers, dimmed on a terminal, else between `[reasoning]` and `[end of reasoning]`; --quiet leaves it out. Ctrl-C ends the
/// text, a second one the program.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  ashlar run Qwen3-30B-A3B-4bit -p \"Why is the sky blue?\"
  ashlar run Qwen3-30B-A3B-4bit --chat --system \"Answer briefly.\"
  ashlar run Qwen3-30B-A3B-4bit --think off -p \"Why is the sky blue?\"
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
    /// How much the model shall reason before it answers, of the levels it knows [default: what it does by itself]
    #[arg(long, value_name = "LEVEL", value_enum, conflicts_with = "raw")]
    pub think: Option<Think>,
    /// The most tokens to generate per answer, reasoning included [default: as many as the context holds]
    #[arg(long, value_name = "N")]
    pub max_tokens: Option<usize>,
    /// End the text before this one; may be given several times
    #[arg(long, value_name = "TEXT")]
    pub stop: Vec<String>,
    /// Tokens that prompt and answer may have together [default: 4096, or what the model was made for if less]
    #[arg(long, value_name = "N")]
    pub context: Option<usize>,
    /// Tokens of a prompt that go through the model at once [default: 256; up to 4096 where experts are read from disk or copied to slots]
    #[arg(long, value_name = "N")]
    pub chunk: Option<NonZeroUsize>,
    /// Memory that keys and values of earlier tokens may take, such as 2GiB; a text that needs more is refused before
    /// anything starts [default: as much as the context asks for]
    #[arg(long, value_name = "BYTES", value_parser = ashlar_recipe::parse_bytes)]
    pub kv_budget: Option<u64>,
    #[command(flatten)]
    pub device: DeviceArgs,
    #[command(flatten)]
    pub sampling: SamplingArgs,
}

/// Levels of reasoning. Qwen3 knows off and high; gpt-oss low, medium and high; DeepSeek-V4 off, high and max.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Think {
    /// Answer at once
    Off,
    /// A little
    Low,
    /// Between
    Medium,
    /// As the model does when it reasons
    High,
    /// As much as it can
    Max,
}

impl From<Think> for ashlar_runtime::Think {
    fn from(think: Think) -> Self {
        match think {
            Think::Off => Self::Off,
            Think::Low => Self::Low,
            Think::Medium => Self::Medium,
            Think::High => Self::High,
            Think::Max => Self::Max,
        }
    }
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
            chunk: self.chunk.map_or(ashlar_runtime::DEFAULT_CHUNK, NonZeroUsize::get),
            larger_chunks: self.chunk.is_none(),
            kv_budget: self.kv_budget,
            ..self.device.options()?
        };
        let model = device::open(&self.src, &options, globals)?;
        let form = self.form(&model, globals)?;
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
        let conversation = Conversation {
            messages: self.system.iter().map(|s| Message::new("system", s)).collect(),
            think: self.think.map(Into::into),
            ..Conversation::default()
        };
        match form {
            Some(form) if self.chat => chat::talk(&mut speaker, &form, conversation)?,
            Some(form) => {
                let mut conversation = conversation;
                conversation.messages.push(Message::new("user", prompt));
                let prompt = form.render(&conversation).map_err(device::failure)?;
                speaker.speak(&prompt.text, false, prompt.reply)?;
            }
            None => drop(speaker.speak(&prompt, true, ReplyForm::Plain)?),
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

    /// How the model talks, unless the prompt is to be continued as it is.
    fn form(&self, model: &Model, globals: Globals) -> Result<Option<Chat>, Failure> {
        if self.raw {
            return Ok(None);
        }
        match Chat::open(model.dir(), model.config()) {
            Ok(form) => Ok(Some(form)),
            Err(error) if self.chat || self.system.is_some() || self.think.is_some() => Err(error.into()),
            Err(error) => {
                if !globals.quiet {
                    output::say(&format!("note: {error}; continuing the prompt as it is"));
                }
                Ok(None)
            }
        }
    }
}
