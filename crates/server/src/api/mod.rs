//! Routes, and what all of them ask for: a key, a complete body, a server that is not stopping.

mod answer;
mod chat;
mod completions;
mod error;
mod framing;
mod identity;
mod origin;
mod request;
mod stream;
mod wire;

use crate::State;
use axum::body::Body;
use axum::extract::{Path, Request, State as Given};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use error::ApiError;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use request::Fields;
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{SystemTime, UNIX_EPOCH};

/// The whole server as a service.
pub fn router(state: Arc<State>) -> Router {
    let api = Router::new()
        .route("/v1/chat/completions", post(chat::answer))
        .route("/v1/completions", post(completions::answer))
        .route("/v1/models", get(models))
        .route("/v1/models/{*name}", get(model))
        .route("/metrics", get(metrics))
        .layer(from_fn_with_state(Arc::clone(&state), check_key));
    let open = Router::new().route("/", get(page)).route("/health", get(health));
    let all = api.merge(open).fallback(missing).method_not_allowed_fallback(wrong_method);
    let all = all.layer(from_fn_with_state(Arc::clone(&state), origin::check));
    all.layer(from_fn_with_state(Arc::clone(&state), identity::identify)).with_state(state)
}

async fn missing(request: Request) -> ApiError {
    ApiError::not_found(request.method(), request.uri().path())
}

async fn wrong_method(request: Request) -> ApiError {
    ApiError::wrong_method(request.method(), request.uri().path())
}

/// The page may load nothing from elsewhere and talk to nobody but this server.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

async fn page() -> impl IntoResponse {
    let headers = [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    (headers, Html(include_str!("../page.html")))
}

async fn health(Given(state): Given<Arc<State>>) -> Response {
    let stopping = state.stopping.load(Ordering::Relaxed);
    let (code, status) = if stopping { (StatusCode::SERVICE_UNAVAILABLE, "stopping") } else { (StatusCode::OK, "ok") };
    (code, Json(json!({"status": status}))).into_response()
}

fn served(state: &State) -> Value {
    let State { options, started, context, .. } = state;
    json!({"id": options.model, "object": "model", "created": started, "owned_by": "ashlar", "context_length": context})
}

async fn models(Given(state): Given<Arc<State>>) -> Json<Value> {
    Json(json!({"object": "list", "data": [served(&state)]}))
}

async fn model(Given(state): Given<Arc<State>>, Path(asked): Path<String>) -> Result<Json<Value>, ApiError> {
    let name = &state.options.model;
    if asked == *name { Ok(Json(served(&state))) } else { Err(ApiError::unknown_model(&asked, name)) }
}

async fn metrics(Given(state): Given<Arc<State>>) -> Response {
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4")];
    (kind, state.metrics.render(&state.worker.stats())).into_response()
}

/// Lets only those in who know the key.
async fn check_key(Given(state): Given<Arc<State>>, request: Request, next: Next) -> Response {
    let Some(key) = &state.options.key else { return next.run(request).await };
    let sent = request.headers().get(header::AUTHORIZATION).map(HeaderValue::as_bytes);
    match sent.and_then(|value| value.strip_prefix(b"Bearer ")) {
        Some(sent) if same(sent, key.as_bytes()) => next.run(request).await,
        _ => ApiError::unauthorized().into_response(),
    }
}

/// Compares in a time that does not tell where the difference is.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |all, (a, b)| all | (a ^ b)) == 0
}

/// A complete body, if it comes in time and is not too large, and the server takes requests.
async fn body(state: &State, body: Body) -> Result<Vec<u8>, ApiError> {
    if state.stopping.load(Ordering::Relaxed) {
        return Err(ApiError::stopping());
    }
    let (most, patience) = (state.options.max_body, state.options.read_timeout);
    let collected = tokio::time::timeout(patience, Limited::new(body, most).collect()).await;
    match collected.map_err(|_| ApiError::too_slow(patience.as_secs_f64()))? {
        Ok(whole) => Ok(whole.to_bytes().to_vec()),
        Err(error) if error.is::<LengthLimitError>() => Err(ApiError::too_large(most)),
        Err(error) => Err(ApiError::bad(format!("the request broke off: {error}"))),
    }
}

/// Whether the model that a request names is the one here. None at all is.
fn check_model(state: &State, fields: &mut Fields) -> Result<(), ApiError> {
    match fields.take::<String>("model")? {
        Some(asked) if asked != state.options.model => Err(ApiError::unknown_model(&asked, &state.options.model)),
        _ => Ok(()),
    }
}

/// A number that no other request of this server has, nor of the one before it.
fn unique(state: &State) -> String {
    format!("{:x}-{}", state.started, state.next.fetch_add(1, Ordering::Relaxed))
}

/// Seconds since 1970.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// How many requests come first, and about how long they take.
fn queue_headers(answers: &answer::Answers) -> [(&'static str, String); 2] {
    [("x-queue-position", answers.ahead.to_string()), ("x-queue-seconds", format!("{:.1}", answers.seconds))]
}
