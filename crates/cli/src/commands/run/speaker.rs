//! One answer after another from a loaded model: streamed to stdout, measured on stderr.

use crate::args::Globals;
use crate::device;
use crate::exit::Failure;
use crate::interrupt::Interrupt;
use crate::output;
use crate::resident;
use ashlar_runtime::{GenerateOptions, Generator, Model, StopReason, Timings};
use std::sync::atomic::Ordering;

/// A loaded model and all it needs to answer.
pub struct Speaker {
    generator: Generator,
    options: GenerateOptions,
    interrupt: Interrupt,
    globals: Globals,
}

impl Speaker {
    /// Puts the parts together.
    ///
    /// # Errors
    /// If the model has no usable tokenizer, or nobody may listen for Ctrl-C.
    pub fn new(model: Model, options: GenerateOptions, globals: Globals) -> Result<Self, Failure> {
        Ok(Self { generator: Generator::new(model)?, options, interrupt: Interrupt::install()?, globals })
    }

    /// The Ctrl-C of this process.
    #[must_use]
    pub fn interrupt(&self) -> &Interrupt {
        &self.interrupt
    }

    /// Tells the user something, unless they want quiet.
    pub fn tell(&self, text: &str) {
        if !self.globals.quiet {
            output::say(text);
        }
    }

    /// Streams the answer to `prompt`, ends it with a newline, tells why it ended and the tokens per second. With
    /// `begin`, the tokenizer puts its beginning-of-text token first (templates write their own).
    ///
    /// # Errors
    /// If the prompt does not fit, the model fails, or nobody reads.
    pub fn speak(&mut self, prompt: &str, begin: bool) -> Result<String, Failure> {
        let tokens = self.generator.tokenizer().encode(prompt, begin)?;
        self.interrupt.reset();
        let stop = self.interrupt.flag();
        let mut written = Ok(());
        let made = self.generator.generate(&tokens, &self.options, stop, &mut |piece| {
            if written.is_ok() {
                written = output::print(piece);
            }
            if written.is_err() {
                // Nobody reads any more.
                stop.store(true, Ordering::SeqCst);
            }
        });
        written?;
        let made = made.map_err(device::failure)?;
        if !made.text.ends_with('\n') {
            output::print("\n")?;
        }
        let full = self.generator.model().capacity() < self.generator.model().context();
        self.tell(&cost(&made.timings, made.ids.len(), &made.reason, full));
        if self.globals.verbose {
            self.tell(&resident::told(self.generator.model()));
        }
        Ok(made.text)
    }

    /// As [`Speaker::speak`] for a conversation: one that no longer fits the context is told, and answered by `None`.
    ///
    /// # Errors
    /// If the model fails, or nobody reads.
    pub fn answer(&mut self, prompt: &str) -> Result<Option<String>, Failure> {
        let (needed, context) =
            (self.generator.tokenizer().encode(prompt, false)?.len(), self.generator.model().capacity());
        if needed >= context {
            output::say(&format!(
                "the conversation has {needed} tokens and no longer fits into the context of {context}; /reset, or start with a larger --context"
            ));
            return Ok(None);
        }
        self.speak(prompt, false).map(Some)
    }
}

/// `budgeted`: it is --kv-budget, not --context, that ends a text.
fn cost(timings: &Timings, tokens: usize, reason: &StopReason, budgeted: bool) -> String {
    let reused = match timings.reused_tokens {
        0 => String::new(),
        n => format!(" ({n} of them known)"),
    };
    let why = match reason {
        StopReason::Context if budgeted => "; keys and values take all of --kv-budget",
        StopReason::Context => "; the context is full, --context makes it larger",
        StopReason::MaxTokens => "; --max-tokens reached",
        StopReason::Cancelled => "; interrupted",
        StopReason::Token(_) | StopReason::Text(_) => "",
    };
    format!(
        "[prompt: {} tokens{reused}, {:.1} tokens/s; text: {tokens} tokens, {:.1} tokens/s{why}]",
        timings.prompt_tokens,
        timings.prefill_rate(),
        timings.decode_rate()
    )
}
