//! One request's answers: handed to the engine, heard as events.

use super::error::ApiError;
use super::identity::RequestId;
use crate::State;
use ashlar_runtime::engine::{Finished, Piece, Request, Sink, Ticket};
use ashlar_runtime::{GenerateOptions, Timings};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// What is heard of one of the choices.
#[derive(Debug)]
pub enum Event {
    /// More of it.
    Piece(usize, Piece),
    /// Its end.
    End(usize, Result<Finished, String>),
}

struct Channel {
    choice: usize,
    events: UnboundedSender<Event>,
}

impl Sink for Channel {
    fn piece(&mut self, piece: Piece) -> bool {
        self.events.send(Event::Piece(self.choice, piece)).is_ok()
    }

    fn finished(self: Box<Self>, how: Result<Finished, String>) {
        // A client that has gone has dropped the other end.
        let _ = self.events.send(Event::End(self.choice, how));
    }
}

/// Requests in the engine; dropping them ends them there.
pub struct Answers {
    state: Arc<State>,
    ids: Vec<u64>,
    events: UnboundedReceiver<Event>,
    left: usize,
    begun: Instant,
    last: Vec<Option<Instant>>,
    id: RequestId,
    /// Answers to each prompt: those of the first come first.
    pub choices: usize,
    /// Requests before the first of these, and about how long they take.
    pub ahead: usize,
    pub seconds: f64,
}

impl Answers {
    /// Asks the engine for `choices` texts after each prompt; each but the first with the next seed.
    ///
    /// # Errors
    /// If that is more than can ever be waiting, or the engine refuses one of them; the others are ended then.
    pub async fn ask(
        state: &Arc<State>,
        id: RequestId,
        prompts: &[Vec<u32>],
        options: &GenerateOptions,
        logprobs: Option<usize>,
        choices: usize,
    ) -> Result<Self, ApiError> {
        let left = prompts.len().saturating_mul(choices);
        if left > state.places {
            return Err(ApiError::too_many(left, state.places));
        }
        let (sender, events) = unbounded_channel();
        let (ids, last) = (Vec::new(), vec![None; left]);
        let (state, begun) = (Arc::clone(state), Instant::now());
        let mut answers = Self { state, ids, events, left, begun, last, id, choices, ahead: 0, seconds: 0.0 };
        for (prompt, choice) in prompts.iter().flat_map(|prompt| (0..choices).map(move |choice| (prompt, choice))) {
            let mut options = options.clone();
            options.sampling.seed = options.sampling.seed.wrapping_add(choice as u64);
            let sink = Box::new(Channel { choice: answers.ids.len(), events: sender.clone() });
            let request = Request { prompt: prompt.clone(), options, logprobs, sink };
            let ticket: Ticket = answers.state.worker.submit(request).await.ok_or_else(ApiError::stopping)??;
            if answers.ids.is_empty() {
                (answers.ahead, answers.seconds) = (ticket.ahead, ticket.seconds);
            }
            answers.ids.push(ticket.id);
        }
        Ok(answers)
    }

    /// The next event; `None` after the last end.
    pub async fn next(&mut self) -> Option<Event> {
        if self.left == 0 {
            return None;
        }
        let event = self.events.recv().await?;
        match &event {
            Event::Piece(choice, piece) if !piece.tokens.is_empty() => {
                let now = Instant::now();
                if let Some(last) = self.last.get_mut(*choice) {
                    match last.replace(now) {
                        None => self.state.metrics.first_token(now - self.begun),
                        Some(before) => self.state.metrics.next_token(now - before),
                    }
                }
            }
            Event::Piece(..) => {}
            Event::End(_, how) => {
                self.left -= 1;
                match how {
                    Ok(finished) => {
                        self.state.metrics.waited(finished.waited);
                        self.log(finished);
                    }
                    Err(error) => tracing::error!(request = %self.id, error, "failed"),
                }
            }
        }
        Some(event)
    }
}

impl Answers {
    fn log(&self, finished: &Finished) {
        let ms = |time: Duration| time.as_millis() as u64;
        let Timings { prompt_tokens, reused_tokens, .. } = finished.timings;
        tracing::info!(
            request = %self.id,
            prompt_tokens,
            reused_tokens,
            tokens = finished.tokens,
            waited_ms = ms(finished.waited),
            first_token_ms = finished.first_token.map(ms),
            ms = ms(self.begun.elapsed()),
            reason = ?finished.reason,
            "done"
        );
    }
}

impl Drop for Answers {
    fn drop(&mut self) {
        if self.left > 0 {
            tracing::info!(request = %self.id, left = self.left, "the client went away, or time was up");
            self.ids.iter().for_each(|id| self.state.worker.cancel(*id));
        }
    }
}
