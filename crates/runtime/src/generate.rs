//! One text at a time: [`Generator`], an engine with a single request. Also what all requests have in common: options,
//! why they end, how long they took.

use crate::engine::{Engine, EngineOptions, Finished, Piece, Refused, Request, Sink};
use crate::{Model, Part, ReplyForm, RuntimeError, Sampling, Tokenizer};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

/// What to generate.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerateOptions {
    /// At most this many tokens; `None` until something else ends it.
    pub max_tokens: Option<usize>,
    /// Texts that end the answer; they are not part of it. In reasoning they end nothing.
    pub stop: Vec<String>,
    /// How the model divides its reply.
    pub reply: ReplyForm,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Goes on after the model's stop tokens.
    pub ignore_stop_tokens: bool,
}

/// Why generation ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// The model said so, with this token.
    Token(u32),
    /// One of [`GenerateOptions::stop`].
    Text(String),
    /// [`GenerateOptions::max_tokens`].
    MaxTokens,
    /// The context is full.
    Context,
    /// The cancellation flag.
    Cancelled,
}

/// How long it took.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Timings {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Of these, tokens the cache already held.
    pub reused_tokens: usize,
    /// Time for the others.
    pub prefill: Duration,
    /// Tokens that went through the model one by one.
    pub decoded_tokens: usize,
    /// Time for them, sampling and text included.
    pub decode: Duration,
}

impl Timings {
    /// Prompt tokens per second, of those that were not reused.
    #[must_use]
    pub fn prefill_rate(&self) -> f64 {
        rate(self.prompt_tokens - self.reused_tokens.min(self.prompt_tokens), self.prefill)
    }

    /// Generated tokens per second.
    #[must_use]
    pub fn decode_rate(&self) -> f64 {
        rate(self.decoded_tokens, self.decode)
    }
}

fn rate(tokens: usize, time: Duration) -> f64 {
    if time.is_zero() { 0.0 } else { tokens as f64 / time.as_secs_f64() }
}

/// What was generated.
#[derive(Clone, Debug, PartialEq)]
pub struct Generation {
    /// The answer, without a stop text, special tokens left out.
    pub text: String,
    /// What the model reasoned before it.
    pub reasoning: String,
    /// What it called, as it wrote it.
    pub calls: String,
    /// Tokens that are not of the answer.
    pub reasoning_tokens: usize,
    /// The tokens, a stop token included.
    pub ids: Vec<u32>,
    /// Why it ended.
    pub reason: StopReason,
    /// How long it took.
    pub timings: Timings,
}

/// A model with its tokenizer, generating one sequence after another. What the cache holds of an earlier conversation
/// is kept as far as the next prompt begins with it.
pub struct Generator {
    engine: Engine,
}

/// What is heard of a request.
enum Event {
    Piece(Piece),
    End(Result<Finished, String>),
}

struct Channel(Sender<Event>);

impl Sink for Channel {
    fn piece(&mut self, piece: Piece) -> bool {
        self.0.send(Event::Piece(piece)).is_ok()
    }

    fn finished(self: Box<Self>, how: Result<Finished, String>) {
        // Nobody listens after an error, which the step has returned.
        let _ = self.0.send(Event::End(how));
    }
}

impl Generator {
    /// Stop tokens are those of `generation_config.json`, `config.json` and `tokenizer_config.json`.
    ///
    /// # Errors
    /// [`RuntimeError::Tokenizer`] if there is no usable tokenizer.
    pub fn new(model: Model) -> Result<Self, RuntimeError> {
        let options = EngineOptions { queue: 1, chunk: model.chunk(), shared_chunk: model.chunk() };
        Ok(Self { engine: Engine::new(model, options)? })
    }

    /// The model.
    #[must_use]
    pub fn model(&self) -> &Model {
        self.engine.model()
    }

    /// Its tokenizer.
    #[must_use]
    pub fn tokenizer(&self) -> &Tokenizer {
        self.engine.tokenizer()
    }

    /// Tokens that end an answer.
    #[must_use]
    pub fn stop_tokens(&self) -> &[u32] {
        self.engine.stop_tokens()
    }

    /// Continues `prompt`. Text goes to `on_text` as soon as it is certain: whole characters, and nothing that could
    /// be the beginning of a stop text. `cancel` is looked at after every chunk and token.
    ///
    /// # Errors
    /// [`RuntimeError`] if the prompt is empty or longer than the context, if keys and values of prompt and
    /// [`GenerateOptions::max_tokens`] cannot be held, an option is out of range, or the device fails.
    pub fn generate(
        &mut self,
        prompt: &[u32],
        options: &GenerateOptions,
        cancel: &AtomicBool,
        on_text: &mut dyn FnMut(Part, &str),
    ) -> Result<Generation, RuntimeError> {
        let (sender, events) = channel();
        let sink = Box::new(Channel(sender));
        let request = Request { prompt: prompt.to_vec(), options: options.clone(), logprobs: None, sink };
        let ticket = self.engine.submit(request).map_err(|refused| match refused {
            Refused::Never(error) => error,
            full @ Refused::Full { .. } => RuntimeError::Evaluate(full.to_string()),
        })?;
        let mut said = Said::default();
        loop {
            let stepped = self.engine.step();
            let mut end = said.hear(&events, on_text);
            if end.is_none() && cancel.load(Ordering::Relaxed) {
                self.engine.cancel(ticket.id);
                end = said.hear(&events, on_text);
            }
            match end {
                Some(Ok(Finished { reason, timings, reasoning_tokens, .. })) => {
                    let Said { text, reasoning, calls, ids } = said;
                    return Ok(Generation { text, reasoning, calls, reasoning_tokens, ids, reason, timings });
                }
                Some(Err(what)) => return Err(stepped.err().unwrap_or(RuntimeError::Evaluate(what))),
                None => drop(stepped?),
            }
        }
    }
}

/// An answer so far.
#[derive(Default)]
struct Said {
    text: String,
    reasoning: String,
    calls: String,
    ids: Vec<u32>,
}

impl Said {
    /// Takes what the engine has told; returns how it ended, if it has.
    fn hear(
        &mut self,
        events: &Receiver<Event>,
        on_text: &mut dyn FnMut(Part, &str),
    ) -> Option<Result<Finished, String>> {
        for event in events.try_iter() {
            match event {
                Event::Piece(piece) => {
                    self.ids.extend(piece.tokens.iter().map(|choice| choice.id));
                    for (part, text) in &piece.parts {
                        self.part(*part).push_str(text);
                        on_text(*part, text);
                    }
                }
                Event::End(how) => return Some(how),
            }
        }
        None
    }

    fn part(&mut self, part: Part) -> &mut String {
        match part {
            Part::Answer => &mut self.text,
            Part::Reasoning => &mut self.reasoning,
            Part::Call => &mut self.calls,
        }
    }
}
