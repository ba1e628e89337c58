//! One request: what it asks for, how far it is, what it is told.

use super::schedule::Demand;
use super::speech::Speech;
use crate::prefixes::{Key, PrefixStore};
use crate::sampler::Values;
use crate::{GenerateOptions, Part, RuntimeError, Sampler, StopReason, Timings, Tokenizer};
use ashlar_backend::{Ask, Survey};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A text to be continued.
pub struct Request {
    /// Its tokens; at least one.
    pub prompt: Vec<u32>,
    /// How to go on.
    pub options: GenerateOptions,
    /// For every token its probability, and that many of the most probable ones; `None` for no probabilities.
    pub logprobs: Option<usize>,
    /// Who is told.
    pub sink: Box<dyn Sink>,
}

/// Who hears of a request. Called between batches: it must not wait.
pub trait Sink: Send {
    /// Text that is certain, and tokens chosen. False if nobody listens any more: the request ends.
    fn piece(&mut self, piece: Piece) -> bool;

    /// The end; nothing follows.
    fn finished(self: Box<Self>, how: Result<Finished, String>);
}

/// What a step added to an answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Piece {
    /// New text, by what it belongs to; nothing while a character, a mark or a stop text may be incomplete.
    pub parts: Vec<(Part, String)>,
    /// Tokens chosen, with probabilities if asked for.
    pub tokens: Vec<Choice>,
}

impl Piece {
    /// The text of all parts.
    #[must_use]
    pub fn text(&self) -> String {
        self.parts.iter().map(|(_, text)| text.as_str()).collect()
    }
}

/// A chosen token.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// The token.
    pub id: u32,
    /// Natural logarithm of its probability before temperature and filters, if asked for.
    pub logprob: Option<f32>,
    /// The most probable tokens of the same position, the best first.
    pub top: Vec<(u32, f32)>,
}

/// How a request ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Finished {
    /// Why.
    pub reason: StopReason,
    /// Tokens and times.
    pub timings: Timings,
    /// Tokens chosen, a stop token included.
    pub tokens: usize,
    /// Of them, tokens that are not of the answer.
    pub reasoning_tokens: usize,
    /// From submission to the first token chosen; `None` if there is none.
    pub first_token: Option<Duration>,
    /// From submission to the start.
    pub waited: Duration,
}

/// A request that was taken.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ticket {
    /// For [`super::Engine::cancel`].
    pub id: u64,
    /// Requests that must start or end first; 0 if it starts with the next step.
    pub ahead: usize,
    /// About how long until all before it are done.
    pub seconds: f64,
}

/// Why a request was not taken.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// It can never be answered here: it is too large, or an option is out of its range.
    #[error(transparent)]
    Never(#[from] RuntimeError),
    /// No place in the queue.
    #[error("{waiting} requests are waiting already; try again in about {seconds:.0} s")]
    Full {
        /// Requests that wait.
        waiting: usize,
        /// About how long they will take.
        seconds: f64,
    },
}

/// What a token led to.
pub(super) enum Heard {
    GoOn,
    Stop(StopReason),
}

/// A request in the engine.
pub(super) struct Running {
    pub id: u64,
    options: GenerateOptions,
    logprobs: Option<usize>,
    sink: Box<dyn Sink>,
    /// Prompt and answer.
    tokens: Vec<u32>,
    prompt: usize,
    /// Tokens whose keys and values lie in the slot.
    fed: usize,
    sampler: Sampler,
    speech: Speech,
    submitted: Instant,
    started: Option<Instant>,
    first_token: Option<Instant>,
    reused: usize,
    /// Of the whole blocks of the tokens, as far as anybody asked.
    pub keys: Vec<Key>,
    /// It was given the beginning of another one's slot.
    pub shares: bool,
    /// The blocks that are being read from the disk end with this one.
    pub until: Option<usize>,
}

impl Running {
    pub fn new(id: u64, request: Request, tokenizer: &Arc<Tokenizer>) -> Result<Self, RuntimeError> {
        let Request { prompt, options, logprobs, sink } = request;
        let empty = || RuntimeError::Option {
            option: "prompt",
            got: "no tokens".into(),
            expected: "at least one token; this model's tokenizer adds none of its own".into(),
        };
        if prompt.is_empty() {
            return Err(empty());
        }
        let sampler = Sampler::new(options.sampling.clone())?;
        let speech = Speech::new(tokenizer, &options);
        let (submitted, count) = (Instant::now(), prompt.len());
        Ok(Self {
            id,
            options,
            logprobs,
            sink,
            tokens: prompt,
            prompt: count,
            fed: 0,
            sampler,
            speech,
            submitted,
            started: None,
            first_token: None,
            reused: 0,
            keys: Vec::new(),
            shares: false,
            until: None,
        })
    }

    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    pub fn fed_tokens(&self) -> &[u32] {
        self.tokens.get(..self.fed).unwrap_or_default()
    }

    /// Tokens that it will at most still take, prompt and answer; an answer without limit counts as a short one.
    pub fn tokens_left(&self) -> usize {
        const SHORT: usize = 256;
        let answered = self.tokens.len() - self.prompt;
        self.tokens.len() - self.fed + self.options.max_tokens.unwrap_or(SHORT).saturating_sub(answered)
    }

    /// It has a slot that holds its first `common` tokens.
    pub fn start(&mut self, common: usize) {
        (self.fed, self.until) = (common, None);
        if self.started.is_none() {
            self.reused = common;
            self.started = Some(Instant::now());
        }
    }

    /// Whether its prompt is read.
    pub fn answers(&self) -> bool {
        self.tokens.len() - self.fed == 1
    }

    /// Its slot was given what comes before `end`; how many tokens need not be computed because of that.
    pub fn gain(&mut self, end: usize) -> usize {
        let gained = end.saturating_sub(self.fed);
        self.fed = end.max(self.fed);
        if self.first_token.is_none() {
            self.reused += gained;
        }
        gained
    }

    /// Its slot is empty again.
    pub fn start_anew(&mut self) {
        (self.fed, self.until) = (0, None);
        if self.first_token.is_none() {
            self.reused = 0;
        }
    }

    /// Makes the keys known of the blocks before `end`.
    pub fn extend_keys(&mut self, store: &PrefixStore, end: usize) {
        store.extend(&mut self.keys, self.tokens.get(..end).unwrap_or_default());
    }

    pub fn demand(&self, slot: usize) -> Demand {
        Demand {
            slot,
            age: self.id,
            position: self.fed,
            tokens: self.tokens.get(self.fed..).unwrap_or_default().to_vec(),
        }
    }

    /// So many more tokens are in its slot; how many of them are of its prompt.
    pub fn fed(&mut self, rows: usize) -> usize {
        let before = self.fed.min(self.prompt);
        self.fed += rows;
        self.fed.min(self.prompt) - before
    }

    /// The next token of a row of logits.
    pub fn choose(&mut self, logits: &[f32]) -> Result<Choice, RuntimeError> {
        let token = self.sampler.sample(logits, &self.tokens)?;
        Ok(self.choice(token, logits))
    }

    /// What it takes to choose without the row; `None` if that cannot be done.
    pub fn ask(&self, row: usize, vocab: usize) -> Option<Ask> {
        if self.logprobs.is_some() { None } else { self.sampler.ask(row, vocab, &self.tokens) }
    }

    /// The next token by what was asked, the same as of the row; `None` if it takes the row.
    pub fn choose_by(
        &mut self,
        vocab: usize,
        (ask, survey): (&Ask, &Survey),
        values: &mut Values<'_>,
    ) -> Result<Option<Choice>, RuntimeError> {
        let chosen = self.sampler.choose(vocab, ask, survey, values)?;
        Ok(chosen.map(|id| Choice { id, logprob: None, top: Vec::new() }))
    }

    /// Whether an answer has as many tokens as it may.
    pub fn is_full(&self) -> bool {
        self.options.max_tokens.is_some_and(|max| self.tokens.len() - self.prompt >= max)
    }

    /// Takes the next token and tells it.
    pub fn hear(&mut self, choice: Choice, stop_tokens: &[u32], capacity: usize) -> Result<Heard, RuntimeError> {
        let token = choice.id;
        self.first_token.get_or_insert_with(Instant::now);
        self.tokens.push(token);
        if stop_tokens.contains(&token) && !self.options.ignore_stop_tokens {
            self.sink.piece(Piece { parts: Vec::new(), tokens: vec![choice] });
            return Ok(Heard::Stop(StopReason::Token(token)));
        }
        let (parts, stop) = self.speech.push(token)?;
        let heard = self.sink.piece(Piece { parts, tokens: vec![choice] });
        Ok(match stop {
            Some(stop) => Heard::Stop(StopReason::Text(stop)),
            None if !heard => Heard::Stop(StopReason::Cancelled),
            None if self.is_full() => Heard::Stop(StopReason::MaxTokens),
            // The token just chosen needs a position of its own.
            None if self.tokens.len() > capacity => Heard::Stop(StopReason::Context),
            None => Heard::GoOn,
        })
    }

    fn choice(&self, id: u32, logits: &[f32]) -> Choice {
        let Some(count) = self.logprobs else { return Choice { id, logprob: None, top: Vec::new() } };
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = logits.iter().map(|l| f64::from(l - max).exp()).sum();
        let norm = f64::from(max) + sum.ln();
        let of = |logit: f32| (f64::from(logit) - norm) as f32;
        let mut ranked: Vec<(u32, f32)> = (0..).zip(logits.iter().copied()).collect();
        let by_logit = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        if count > 0 && count < ranked.len() {
            ranked.select_nth_unstable_by(count - 1, by_logit);
        }
        ranked.truncate(count);
        ranked.sort_unstable_by(by_logit);
        let top = ranked.into_iter().map(|(id, logit)| (id, of(logit))).collect();
        Choice { id, logprob: logits.get(id as usize).map(|l| of(*l)), top }
    }

    /// Hands out what was held back and says how it ended.
    pub fn finish(mut self, how: Result<StopReason, String>) {
        let reason = match how {
            Ok(reason) => reason,
            Err(error) => return self.sink.finished(Err(error)),
        };
        if !matches!(reason, StopReason::Text(_)) {
            let parts = self.speech.finish();
            if !parts.is_empty() {
                self.sink.piece(Piece { parts, tokens: Vec::new() });
            }
        }
        let now = Instant::now();
        let (started, answered) = (self.started.unwrap_or(now), self.tokens.len() - self.prompt);
        let first = self.first_token.unwrap_or(now);
        let timings = Timings {
            prompt_tokens: self.prompt,
            reused_tokens: self.reused,
            prefill: first - started,
            decoded_tokens: answered.saturating_sub(1),
            decode: now - first,
        };
        let first_token = self.first_token.map(|at| at - self.submitted);
        let waited = started - self.submitted;
        let (tokens, reasoning_tokens) = (answered, self.speech.reasoning_tokens);
        self.sink.finished(Ok(Finished { reason, timings, tokens, reasoning_tokens, first_token, waited }));
    }
}
