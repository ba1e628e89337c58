//! What all kinds of answers have in common: the frame around choices, whole or as chunks of a stream.

use super::answer::{Answers, Event};
use super::error::ApiError;
use super::queue_headers;
use super::request::{Fields, StreamOptions};
use super::stream::{Chunks, stream};
use super::wire::{Usage, reason};
use crate::State;
use ashlar_runtime::engine::Piece;
use axum::Json;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use std::sync::Arc;

/// How choices of one kind are told.
pub trait Choices: Send + 'static {
    /// What stands before ids, and the names of a whole answer and of a chunk.
    const NAMES: [&'static str; 3];

    /// Chunks before anything was said.
    fn begin(&self) -> Vec<Value>;
    /// Takes in what a choice has said; the chunks that follow from it.
    fn piece(&mut self, index: usize, piece: Piece) -> Vec<Value>;
    /// Takes in why it ended; its last chunks.
    fn end(&mut self, index: usize, reason: &'static str) -> Vec<Value>;
    /// All of them, with what they said in all.
    fn whole(&mut self) -> Vec<Value>;
}

/// How an answer is sent.
#[derive(Clone, Copy)]
pub enum Sending {
    /// At once.
    Whole,
    /// As it comes; with what it took at the end, if asked for.
    Stream { usage: bool },
}

impl Sending {
    /// As a request says.
    pub fn of(fields: &mut Fields) -> Result<Self, ApiError> {
        let (stream, options) =
            (fields.take("stream")?.unwrap_or(false), fields.take::<StreamOptions>("stream_options")?);
        Ok(if stream { Self::Stream { usage: options.is_some_and(|o| o.include_usage) } } else { Self::Whole })
    }
}

/// Sends the answers to one request.
pub async fn send<C: Choices>(
    state: Arc<State>,
    answers: Answers,
    choices: C,
    sending: Sending,
) -> Result<Response, ApiError> {
    let (id, most) = (format!("{}-{}", C::NAMES[0], super::unique(&state)), state.options.answer_timeout);
    let headers = queue_headers(&answers);
    let usage_asked = matches!(sending, Sending::Stream { usage: true });
    let framed = Framed { id, created: super::now(), state, choices, usage: Usage::new(answers.choices), usage_asked };
    if let Sending::Stream { .. } = sending {
        let first = framed.chunks(framed.choices.begin());
        return Ok((headers, stream(answers, first, framed, most)).into_response());
    }
    let whole = tokio::time::timeout(most, framed.whole(answers)).await;
    let whole = whole.map_err(|_| ApiError::failed(format!("the answer took longer than {} s", most.as_secs())))??;
    Ok((headers, Json(whole)).into_response())
}

struct Framed<C> {
    id: String,
    created: u64,
    state: Arc<State>,
    choices: C,
    usage: Usage,
    usage_asked: bool,
}

impl<C: Choices> Framed<C> {
    fn frame(&self, kind: &str, choices: Vec<Value>) -> Value {
        let model = &self.state.options.model;
        json!({"id": self.id, "object": kind, "created": self.created, "model": model, "choices": choices})
    }

    fn with_usage(&self, mut frame: Value) -> Value {
        frame.as_object_mut().map(|o| o.insert("usage".into(), self.usage.json()));
        frame
    }

    /// Each in a frame of its own.
    fn chunks(&self, choices: Vec<Value>) -> Vec<Value> {
        let one = |choice| {
            let mut frame = self.frame(C::NAMES[2], vec![choice]);
            // Who asked for usage finds the field in every chunk, and its value in the last.
            frame.as_object_mut().filter(|_| self.usage_asked).map(|o| o.insert("usage".into(), Value::Null));
            frame
        };
        choices.into_iter().map(one).collect()
    }

    async fn whole(mut self, mut answers: Answers) -> Result<Value, ApiError> {
        while let Some(event) = answers.next().await {
            match event {
                Event::Piece(index, piece) => drop(self.choices.piece(index, piece)),
                Event::End(index, how) => {
                    let finished = how.map_err(ApiError::failed)?;
                    self.usage.add(index, &finished);
                    self.choices.end(index, reason(&finished.reason));
                }
            }
        }
        let choices = self.choices.whole();
        Ok(self.with_usage(self.frame(C::NAMES[1], choices)))
    }
}

impl<C: Choices> Chunks for Framed<C> {
    fn event(&mut self, event: Event) -> Vec<Value> {
        let choices = match event {
            Event::Piece(index, piece) => self.choices.piece(index, piece),
            Event::End(index, Ok(finished)) => {
                self.usage.add(index, &finished);
                self.choices.end(index, reason(&finished.reason))
            }
            Event::End(_, Err(error)) => return vec![ApiError::failed(error).json()],
        };
        self.chunks(choices)
    }

    fn end(&mut self) -> Vec<Value> {
        let usage = self.usage_asked.then(|| self.with_usage(self.frame(C::NAMES[2], Vec::new())));
        usage.into_iter().collect()
    }
}
