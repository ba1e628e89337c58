//! One answer after another from a loaded model: streamed to stdout, measured on stderr.

use super::Run;
use crate::args::Globals;
use crate::device;
use crate::exit::Failure;
use crate::generate::{Limits, Stats, end_tokens, generate};
use crate::interrupt::Interrupt;
use crate::output;
use ashlar_runtime::{Model, RuntimeError, Sampler, Tokenizer};

/// A loaded model and all it needs to answer.
pub struct Speaker {
    model: Model,
    tokenizer: Tokenizer,
    sampler: Sampler,
    limits: Limits,
    /// Tokens that the model's cache holds.
    held: Vec<u32>,
    interrupt: Interrupt,
    quiet: bool,
}

impl Speaker {
    /// Puts the parts together.
    ///
    /// # Errors
    /// If the operating system lets nobody listen for Ctrl-C.
    pub fn new(model: Model, tokenizer: Tokenizer, sampler: Sampler, args: &Run, globals: Globals) -> Result<Self, Failure> {
        let end_tokens = end_tokens(model.dir(), model.config());
        let limits = Limits { max_tokens: args.max_tokens, stop: args.stop.clone(), end_tokens };
        let interrupt = Interrupt::install()?;
        Ok(Self { model, tokenizer, sampler, limits, held: Vec::new(), interrupt, quiet: globals.quiet })
    }

    /// The Ctrl-C of this process.
    #[must_use]
    pub fn interrupt(&self) -> &Interrupt {
        &self.interrupt
    }

    /// Tells the user something, unless they want quiet.
    pub fn tell(&self, text: &str) {
        if !self.quiet {
            output::say(text);
        }
    }

    /// Streams the answer to `prompt`, ends it with a newline, tells tokens per second. With `begin`, the tokenizer puts
    /// its beginning-of-text token first (templates write their own).
    ///
    /// # Errors
    /// If the prompt does not fit, the model fails, or nobody reads.
    pub fn speak(&mut self, prompt: &str, begin: bool) -> Result<String, Failure> {
        let tokens = self.tokenizer.encode(prompt, begin).map_err(device::failure)?;
        if tokens.is_empty() {
            return Err(Failure::usage(anyhow::anyhow!("the prompt is empty")));
        }
        self.interrupt.reset();
        let mut answer = String::new();
        let mut each = |piece: &str| {
            answer.push_str(piece);
            output::print(piece)
        };
        let Self { model, tokenizer, sampler, held, limits, .. } = self;
        let stats = generate(model, tokenizer, sampler, held, &tokens, limits, self.interrupt.flag(), &mut each).map_err(usage_or_failure)?;
        if !answer.ends_with('\n') {
            output::print("\n")?;
        }
        self.tell(&cost(&stats));
        Ok(answer)
    }

    /// As [`Speaker::speak`], but a prompt that no longer fits the context is told, and answered by `None`.
    ///
    /// # Errors
    /// If the model fails, or nobody reads.
    pub fn answer(&mut self, prompt: &str) -> Result<Option<String>, Failure> {
        let fits = self.tokenizer.encode(prompt, false).map_err(device::failure)?.len() < self.model.context();
        if !fits {
            let context = self.model.context();
            output::say(&format!("the conversation no longer fits into the context of {context} tokens; /reset, or start with a larger --context"));
            return Ok(None);
        }
        self.speak(prompt, false).map(Some)
    }
}

fn usage_or_failure(error: anyhow::Error) -> Failure {
    match error.downcast::<RuntimeError>() {
        Ok(error) => device::failure(error),
        Err(error) => error.into(),
    }
}

fn cost(stats: &Stats) -> String {
    let rate = |tokens: usize, seconds: f64| tokens as f64 / seconds.max(1e-9);
    format!(
        "[prompt: {} tokens, {:.1} tokens/s; text: {} tokens, {:.1} tokens/s]",
        stats.fed + stats.held,
        rate(stats.fed, stats.prompt_seconds),
        stats.tokens.len(),
        rate(stats.tokens.len(), stats.seconds)
    )
}
