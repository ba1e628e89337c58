//! An HTTP server that speaks OpenAI's API over one model.
//!
//! The cast: [`Worker`] (the thread that owns the engine; requests reach it as messages), `api` (routes, requests and answers as
//! OpenAI writes them), `metrics` (Prometheus), `connections` (who may connect, and how slowly). What runs when is the engine's
//! business (`ashlar_runtime::engine`); this crate queues nothing itself.
#![forbid(unsafe_code)]

mod api;
mod connections;
mod metrics;
mod worker;

pub use connections::{Served, serve};
pub use worker::Worker;

use ashlar_runtime::{Chat, Sampling};
use metrics::Metrics;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Duration;

/// How a server behaves.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// The name clients see.
    pub model: String,
    /// What clients must send as `Authorization: Bearer`; `None` for anyone.
    pub key: Option<String>,
    /// The origin that browsers may call from (`*` for all); `None` for none but the server's own page.
    pub cors: Option<String>,
    /// Bytes that a request may have.
    pub max_body: usize,
    /// How long a client may take to send a request.
    pub read_timeout: Duration,
    /// How long an answer may take.
    pub answer_timeout: Duration,
    /// Connections at the same time; more wait to be accepted.
    pub connections: usize,
    /// How long requests may go on after the server was asked to stop.
    pub grace: Duration,
    /// What requests leave open.
    pub defaults: Defaults,
}

/// How tokens are chosen where a request does not say.
#[derive(Clone, Debug)]
pub struct Defaults {
    /// All but its seed.
    pub sampling: Sampling,
    /// The seed; `None` for another one each time.
    pub seed: Option<u64>,
}

/// What every request sees.
pub(crate) struct State {
    options: ServerOptions,
    worker: worker::Handle,
    tokenizer: Arc<ashlar_runtime::Tokenizer>,
    /// How the model talks, or why it does not.
    chat: Result<Chat, String>,
    context: usize,
    /// Requests that can run and wait at the same time.
    places: usize,
    metrics: Metrics,
    stopping: AtomicBool,
    /// Numbers of answers.
    next: AtomicU64,
    started: u64,
}
