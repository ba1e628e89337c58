//! Server-sent events, as OpenAI frames them: `data: {json}` per chunk, `data: [DONE]` at the end.

use super::answer::{Answers, Event};
use super::error::ApiError;
use axum::body::{Body, Bytes};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde_json::Value;
use std::convert::Infallible;
use std::time::Duration;
use tokio::sync::mpsc::{Sender, channel};
use tokio_stream::wrappers::ReceiverStream;

/// Chunks that wait for a slow reader before its request pauses being told (the engine itself never waits).
const AHEAD: usize = 64;
/// How long a reader may take for one chunk.
const PATIENCE: Duration = Duration::from_secs(120);

/// After so long without a chunk a comment is sent: proxies end what is silent for a minute.
const QUIET: Duration = Duration::from_secs(15);

/// What turns events into chunks.
pub trait Chunks: Send + 'static {
    /// The chunks that an event leads to.
    fn event(&mut self, event: Event) -> Vec<Value>;
    /// The chunks after the last event.
    fn end(&mut self) -> Vec<Value>;
}

/// Streams chunks until the answers end, the client goes, or time is up.
pub fn stream(mut answers: Answers, first: Vec<Value>, mut chunks: impl Chunks, most: Duration) -> Response {
    let (sender, receiver) = channel(AHEAD);
    tokio::spawn(async move {
        let deadline = tokio::time::Instant::now() + most;
        if !send(&sender, first).await {
            return;
        }
        loop {
            let quiet = tokio::time::Instant::now() + QUIET;
            match tokio::time::timeout_at(deadline.min(quiet), answers.next()).await {
                Ok(Some(event)) => {
                    if !send(&sender, chunks.event(event)).await {
                        return;
                    }
                }
                Ok(None) => break,
                Err(_) if quiet < deadline => {
                    if sender.send_timeout(Ok(Bytes::from_static(b": waiting\n\n")), PATIENCE).await.is_err() {
                        return;
                    }
                }
                Err(_) => {
                    let late = ApiError::failed(format!("the answer took longer than {} s", most.as_secs()));
                    send(&sender, vec![late.json()]).await;
                    return;
                }
            }
        }
        if send(&sender, chunks.end()).await {
            let _ = sender.send(Ok(Bytes::from_static(b"data: [DONE]\n\n"))).await;
        }
    });
    let headers = [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-cache")];
    (headers, Body::from_stream(ReceiverStream::new(receiver))).into_response()
}

/// Sends chunks; false if nobody takes them any more.
async fn send(sender: &Sender<Result<Bytes, Infallible>>, chunks: Vec<Value>) -> bool {
    for chunk in chunks {
        let event = Bytes::from(format!("data: {chunk}\n\n"));
        if sender.send_timeout(Ok(event), PATIENCE).await.is_err() {
            return false;
        }
    }
    true
}
