//! Generation: prompt to prefill, then token by token until something says stop.
//!
//! Owns: the loop, what ends it, streaming of text, reuse of what the cache holds of the prompt, timings. The choice of
//! a token is [`crate::Sampler`]'s, the parts of a reply are [`crate::Splitter`]'s.

use crate::stop::StopStrings;
use crate::{Model, Part, ReplyForm, RuntimeError, Sampler, Sampling, Splitter, TextStream, Tokenizer, Wanted};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

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
    model: Model,
    tokenizer: Tokenizer,
    stop_tokens: Vec<u32>,
    /// Tokens in slot 0 of the cache.
    cached: Vec<u32>,
}

/// State of one call.
struct Run<'t> {
    sampler: Sampler,
    stream: TextStream<'t>,
    splitter: Splitter,
    stops: StopStrings,
    said: Said,
    ids: Vec<u32>,
    reasoning_tokens: usize,
}

/// The parts of a reply so far.
#[derive(Default)]
struct Said {
    answer: String,
    reasoning: String,
    calls: String,
}

impl Generator {
    /// Stop tokens are those of `generation_config.json`, `config.json` and `tokenizer_config.json`.
    ///
    /// # Errors
    /// [`RuntimeError::Tokenizer`] if there is no usable tokenizer.
    pub fn new(model: Model) -> Result<Self, RuntimeError> {
        let tokenizer = Tokenizer::open(model.dir())?;
        let stop_tokens = crate::stop::stop_tokens(model.dir(), model.config(), &tokenizer);
        Ok(Self { model, tokenizer, stop_tokens, cached: Vec::new() })
    }

    /// The model.
    #[must_use]
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Its tokenizer.
    #[must_use]
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Tokens that end an answer.
    #[must_use]
    pub fn stop_tokens(&self) -> &[u32] {
        &self.stop_tokens
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
        let sampler = Sampler::new(options.sampling.clone())?;
        let wanted = options.max_tokens.map_or(prompt.len(), |max| prompt.len().saturating_add(max));
        self.model.kv().check("prompt and answer", wanted.min(self.model.context()), 1)?;
        let mut timings = Timings { prompt_tokens: prompt.len(), ..Timings::default() };
        let begin = Instant::now();
        let (reused, logits) = self.prefill(prompt, cancel)?;
        (timings.reused_tokens, timings.prefill) = (reused, begin.elapsed());
        let Some(mut logits) = logits else {
            return Ok(Generation::empty(StopReason::Cancelled, timings));
        };
        let Self { model, tokenizer, stop_tokens, cached } = self;
        let mut run = Run {
            sampler,
            stream: TextStream::new(tokenizer, true).keeping(&options.reply.marks()),
            splitter: Splitter::new(&options.reply),
            stops: StopStrings::new(&options.stop),
            said: Said::default(),
            ids: Vec::new(),
            reasoning_tokens: 0,
        };
        let capacity = model.capacity();
        let begin = Instant::now();
        let reason = loop {
            if options.max_tokens.is_some_and(|max| run.ids.len() >= max) {
                break StopReason::MaxTokens;
            }
            let seen: Vec<u32> = window(prompt, &run.ids, options.sampling.repetition_window);
            let token = run.sampler.sample(&logits, &seen)?;
            run.ids.push(token);
            if stop_tokens.contains(&token) && !options.ignore_stop_tokens {
                break StopReason::Token(token);
            }
            if let Some(stop) = run.say(token, on_text)? {
                break StopReason::Text(stop);
            }
            if cancel.load(Ordering::Relaxed) {
                break StopReason::Cancelled;
            }
            if cached.len() >= capacity {
                break StopReason::Context;
            }
            // The last token's logits are not needed.
            if options.max_tokens.is_some_and(|max| run.ids.len() >= max) {
                break StopReason::MaxTokens;
            }
            model.feed(0, cached.len(), &[token], Wanted::Last, &mut |row| logits = row.to_vec(), &mut |_| true)?;
            cached.push(token);
            timings.decoded_tokens += 1;
        };
        if !matches!(reason, StopReason::Text(_)) {
            run.finish(on_text);
        }
        timings.decode = begin.elapsed();
        let Said { answer: text, reasoning, calls } = run.said;
        Ok(Generation { text, reasoning, calls, reasoning_tokens: run.reasoning_tokens, ids: run.ids, reason, timings })
    }

    /// Feeds what the cache does not hold yet. Returns how much it held, and the last logits unless cancelled.
    fn prefill(&mut self, prompt: &[u32], cancel: &AtomicBool) -> Result<(usize, Option<Vec<f32>>), RuntimeError> {
        let Some(last) = prompt.len().checked_sub(1) else {
            return Err(RuntimeError::Option {
                option: "prompt",
                got: "no tokens".into(),
                expected: "at least one token; this model's tokenizer adds none of its own".into(),
            });
        };
        // After an error the model may hold less than was recorded here.
        self.cached.truncate(self.model.held(0));
        let common = self.cached.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        // At least one token is fed: its logits are needed.
        let reused = self.model.kv().go_on(0, common.min(last));
        let rest = prompt.get(reused..).unwrap_or_default();
        self.model.check("the prompt", prompt.len())?;
        self.cached.truncate(reused);
        let mut logits = None;
        let mut go_on = |_| !cancel.load(Ordering::Relaxed);
        let done =
            self.model.feed(0, reused, rest, Wanted::Last, &mut |row| logits = Some(row.to_vec()), &mut go_on)?;
        self.cached.extend(rest.iter().take(done));
        Ok((reused, logits.filter(|_| !cancel.load(Ordering::Relaxed))))
    }
}

impl Generation {
    fn empty(reason: StopReason, timings: Timings) -> Self {
        let (text, reasoning, calls) = Default::default();
        Self { text, reasoning, calls, reasoning_tokens: 0, ids: Vec::new(), reason, timings }
    }
}

impl Run<'_> {
    /// Hands out what a token makes certain; returns the stop text if that completes one.
    fn say(&mut self, token: u32, on_text: &mut dyn FnMut(Part, &str)) -> Result<Option<String>, RuntimeError> {
        self.reasoning_tokens += usize::from(self.splitter.part() != Part::Answer);
        let new = self.stream.push(token)?;
        let Self { splitter, stops, said, .. } = self;
        let mut stopped = None;
        splitter.push(&new, &mut |part, text| said.add(part, text, stops, &mut stopped, on_text));
        Ok(stopped)
    }

    fn finish(&mut self, on_text: &mut dyn FnMut(Part, &str)) {
        let rest = self.stream.finish();
        let Self { splitter, stops, said, .. } = self;
        let mut stopped = None;
        let mut add = |part, text: &str| said.add(part, text, stops, &mut stopped, on_text);
        splitter.push(&rest, &mut add);
        splitter.finish(&mut add);
        if stopped.is_none() {
            said.emit(Part::Answer, &stops.finish(), on_text);
        }
    }
}

impl Said {
    /// Adds text up to a stop text, which is an answer's; behind it nothing counts.
    fn add(
        &mut self,
        part: Part,
        text: &str,
        stops: &mut StopStrings,
        stopped: &mut Option<String>,
        on_text: &mut dyn FnMut(Part, &str),
    ) {
        if stopped.is_some() {
            return;
        }
        if part != Part::Answer {
            self.emit(Part::Answer, &stops.finish(), on_text);
            return self.emit(part, text, on_text);
        }
        let (text, stop) = stops.push(text);
        *stopped = stop;
        self.emit(part, &text, on_text);
    }

    fn emit(&mut self, part: Part, text: &str, on_text: &mut dyn FnMut(Part, &str)) {
        if text.is_empty() {
            return;
        }
        match part {
            Part::Answer => self.answer.push_str(text),
            Part::Reasoning => self.reasoning.push_str(text),
            Part::Call => self.calls.push_str(text),
        }
        on_text(part, text);
    }
}

/// The last `len` tokens of prompt and answer.
fn window(prompt: &[u32], ids: &[u32], len: usize) -> Vec<u32> {
    let skip = (prompt.len() + ids.len()).saturating_sub(len);
    prompt.iter().chain(ids).skip(skip).copied().collect()
}
