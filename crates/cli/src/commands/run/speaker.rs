//! One answer after another from a loaded model: streamed to stdout, measured on stderr.

use super::screen::Screen;
use crate::args::Globals;
use crate::device;
use crate::exit::Failure;
use crate::interrupt::Interrupt;
use crate::output;
use crate::resident;
use ashlar_runtime::{GenerateOptions, Generation, Generator, Message, Model, Prompt, ReplyForm, StopReason};
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

    /// Streams the reply to `prompt`, ends it with a newline, tells why it ended and the tokens per second. With
    /// `begin`, the tokenizer puts its beginning-of-text token first (templates write their own).
    ///
    /// # Errors
    /// If the prompt does not fit, the model fails, or nobody reads.
    pub fn speak(&mut self, prompt: &str, begin: bool, reply: ReplyForm) -> Result<Generation, Failure> {
        let tokens = self.generator.tokenizer().encode(prompt, begin)?;
        self.options.reply = reply;
        self.interrupt.reset();
        let stop = self.interrupt.flag();
        let mut screen = Screen::new(self.globals.quiet);
        let mut written = Ok(());
        let made = self.generator.generate(&tokens, &self.options, stop, &mut |part, piece| {
            if written.is_ok() {
                written = screen.show(part, piece);
            }
            if written.is_err() {
                // Nobody reads any more.
                stop.store(true, Ordering::SeqCst);
            }
        });
        screen.close();
        written?;
        let made = made.map_err(device::failure)?;
        if !made.text.ends_with('\n') {
            output::print("\n")?;
        }
        let full = self.generator.model().capacity() < self.generator.model().context();
        self.tell(&cost(&made, full));
        if self.globals.verbose {
            self.tell(&resident::told(self.generator.model()));
            for (device, used) in self.generator.model().slots() {
                self.tell(&resident::slots(&device, &used));
            }
            if let Some(line) = self.generator.model().modelled().as_ref().and_then(resident::modelled) {
                self.tell(&line);
            }
            if let Some(used) = self.generator.model().nvme() {
                self.tell(&resident::disk(&used));
                resident::ahead(&used.ahead).iter().for_each(|line| self.tell(line));
            }
        }
        Ok(made)
    }

    /// As [`Speaker::speak`] for a conversation: one that no longer fits the context is told, and answered by `None`.
    ///
    /// # Errors
    /// If the model fails, or nobody reads.
    pub fn answer(&mut self, prompt: Prompt) -> Result<Option<Message>, Failure> {
        let (needed, context) =
            (self.generator.tokenizer().encode(&prompt.text, false)?.len(), self.generator.model().capacity());
        if needed >= context {
            output::say(&format!(
                "the conversation has {needed} tokens and no longer fits into the context of {context}; /reset, or start with a larger --context"
            ));
            return Ok(None);
        }
        let made = self.speak(&prompt.text, false, prompt.reply)?;
        Ok(Some(Message { reasoning: made.reasoning, ..Message::new("assistant", made.text) }))
    }
}

/// `budgeted`: it is --kv-budget, not --context, that ends a text.
fn cost(made: &Generation, budgeted: bool) -> String {
    let timings = &made.timings;
    let reused = match timings.reused_tokens {
        0 => String::new(),
        n => format!(" ({n} of them known)"),
    };
    let reasoned = match made.reasoning_tokens {
        0 => String::new(),
        n => format!(" ({n} of them reasoning)"),
    };
    let why = match made.reason {
        StopReason::Context if budgeted => "; keys and values take all of --kv-budget",
        StopReason::Context => "; the context is full, --context makes it larger",
        StopReason::MaxTokens if made.text.is_empty() && !made.reasoning.is_empty() => {
            "; --max-tokens reached before the answer began: raise it, or reason less with --think"
        }
        StopReason::MaxTokens => "; --max-tokens reached",
        StopReason::Cancelled => "; interrupted",
        StopReason::Token(_) | StopReason::Text(_) => "",
    };
    format!(
        "[prompt: {} tokens{reused}, {:.1} tokens/s; text: {} tokens{reasoned}, {:.1} tokens/s{why}]",
        timings.prompt_tokens,
        timings.prefill_rate(),
        made.ids.len(),
        timings.decode_rate()
    )
}
