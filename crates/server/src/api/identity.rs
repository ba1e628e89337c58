//! Every request has an id: the client's `x-request-id`, or one of ours. It comes back in the answer and stands in the log.

use crate::State;
use axum::extract::{Request, State as Given};
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;
use std::fmt;
use std::sync::Arc;
use std::time::Instant;

const HEADER: HeaderName = HeaderName::from_static("x-request-id");
/// Bytes of a client's id; a longer one is replaced.
const MOST: usize = 128;

/// The id of one request.
#[derive(Clone)]
pub struct RequestId(Arc<str>);

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Gives the request its id, logs what became of it, and sends the id back.
pub async fn identify(Given(state): Given<Arc<State>>, mut request: Request, next: Next) -> Response {
    let sent = request.headers().get(&HEADER).and_then(|v| v.to_str().ok());
    // It will stand in a log: nothing but what ids are made of.
    let plain = |id: &&str| {
        !id.is_empty() && id.len() <= MOST && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.:".contains(&b))
    };
    let id = RequestId(sent.filter(plain).map_or_else(|| format!("req-{}", super::unique(&state)).into(), Into::into));
    request.extensions_mut().insert(id.clone());
    let (method, path, begin) = (request.method().clone(), request.uri().path().to_owned(), Instant::now());
    let mut response = next.run(request).await;
    if let Ok(value) = HeaderValue::from_str(&id.0) {
        response.headers_mut().insert(HEADER, value);
    }
    let (status, ms) = (response.status().as_u16(), begin.elapsed().as_millis() as u64);
    // Who watches the figures asks every second.
    if path == "/metrics" || path == "/health" {
        tracing::debug!(request = %id, %method, path, status, ms, "answered");
    } else {
        tracing::info!(request = %id, %method, path, status, ms, "answered");
    }
    response
}
