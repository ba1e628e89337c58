//! `ashlar trace`: where a model routes its tokens, written down.

use crate::args::Globals;
use crate::device::{self, DeviceArgs};
use crate::exit::{CommandResult, Failure, OrUsage, Outcome};
use crate::model::check_path;
use crate::progress::{Progress, Unit};
use crate::{hub, output};
use anyhow::{Context, anyhow};
use ashlar_runtime::routing::{Recorder, record};
use ashlar_runtime::{OpenOptions, Tokenizer};
use ashlar_tensor::{Entry, Report, Silent};
use clap::Args;
use std::num::NonZeroUsize;
use std::path::PathBuf;

/// Devices that show what their ops read.
const TAPPED: [&str; 3] = ["cpu", "reference", "virtual"];

/// Record which experts a model chooses for a prompt and for what it says next
///
/// One line per token, layer and chosen expert, with the bytes of an expert and of a layer's other weights, and of decoded tokens what the
/// layer's router named one layer early: what `ashlar simulate` replays. The model decodes greedily, or what the text says (--follow).
#[derive(Args, Debug)]
#[command(after_help = "Example:
  ashlar trace Qwen3-30B-A3B-4bit --text prompt.txt -o qwen.route.csv --max-tokens 256")]
pub struct Trace {
    /// A checkpoint folder or a pack
    pub src: PathBuf,
    /// The prompt, a text file
    #[arg(long, value_name = "FILE")]
    pub text: PathBuf,
    /// The file to write
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
    /// Tokens of the text that are taken
    #[arg(long, value_name = "N", default_value_t = 512)]
    pub prompt_tokens: usize,
    /// Tokens that are decoded after it
    #[arg(long, value_name = "N", default_value_t = NonZeroUsize::new(128).unwrap_or(NonZeroUsize::MIN))]
    pub max_tokens: NonZeroUsize,
    /// Decode the text itself after the prompt, as if the model had said it, and not what it would say
    #[arg(long)]
    pub follow: bool,
    #[command(flatten)]
    pub device: DeviceArgs,
}

impl Trace {
    /// Runs the model and writes the recording.
    ///
    /// # Errors
    /// If the model has no experts or cannot run, or the file cannot be written.
    pub fn run(&self, globals: Globals) -> CommandResult {
        check_path(&self.src)?;
        let name = self.text.display();
        let text = std::fs::read_to_string(&self.text).with_context(|| format!("cannot read {name}")).or_usage()?;
        let local = hub::local(&self.src)?;
        let opened = ashlar_runtime::open(&local, &Silent).map_err(device::failure)?;
        let mut prompt = Tokenizer::open(&opened.dir)?.encode(&text, true)?;
        let mut follow = prompt.split_off(self.prompt_tokens.min(prompt.len()));
        follow.truncate(if self.follow { self.max_tokens.get() } else { 0 });
        if prompt.is_empty() {
            return Err(Failure::usage(anyhow!("{name}: there is no text")));
        }
        let bytes = |tensor: &str| opened.store.entry(tensor).map(Entry::bytes);
        let called = self.src.file_name().map_or_else(|| "model".into(), |n| n.to_string_lossy().into_owned());
        let recorder = Recorder::new(&called, &opened.spec, &bytes).or_usage()?;
        let total = prompt.len() + self.max_tokens.get();
        let options = OpenOptions { context: Some(total), ..self.device.options()? };
        let mut model = device::open(&self.src, &options, globals)?;
        // What routers read can be seen on the processor alone.
        let seen = model.placement().devices.iter().all(|s| TAPPED.contains(&s.offer.device.kind));
        let recorder = match seen {
            true => recorder.with_look_ahead(&opened.spec, &*opened.store).map_err(device::failure)?,
            false => recorder,
        };
        let progress = Progress::new(globals.quiet, Unit::Tokens);
        progress.begin("trace", total as u64);
        let mut told = 0;
        let routes = record(&mut model, recorder, [&prompt, &follow], self.max_tokens.get(), &mut |done| {
            progress.advance((done - told) as u64, "");
            told = done;
            true
        });
        progress.end();
        output::write_atomic(&self.output, routes.map_err(device::failure)?.text().as_bytes())?;
        Ok(Outcome::Done)
    }
}
