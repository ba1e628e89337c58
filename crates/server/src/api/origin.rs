//! Which web pages may call: the server's own, and those of an origin that it was told of.
//!
//! Browsers name the origin of a page with everything that a page sends elsewhere, and with what changes something. They keep answers
//! from pages that may not see them, but send simple requests all the same: here these are refused before anything is computed.

use super::error::ApiError;
use crate::State;
use axum::extract::{Request, State as Given};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use std::sync::Arc;

/// Headers of answers that pages may read beside the usual ones.
const EXPOSED: &str = "retry-after, x-queue-position, x-queue-seconds, x-request-id";
/// Headers that pages may send where they do not ask for any.
const USUAL: &str = "authorization, content-type";

/// Answers what may call, and tells browsers so.
pub async fn check(Given(state): Given<Arc<State>>, request: Request, next: Next) -> Response {
    let headers = request.headers();
    let allowed = state.options.cors.as_deref();
    let Some(origin) = headers.get(header::ORIGIN).filter(|origin| !is_own(origin, headers)).cloned() else {
        return next.run(request).await;
    };
    if !allowed.is_some_and(|allowed| allowed == "*" || allowed.as_bytes() == origin.as_bytes()) {
        return ApiError::foreign_origin().into_response();
    }
    let preflight = request.method() == Method::OPTIONS && headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    let asked = headers.get(header::ACCESS_CONTROL_REQUEST_HEADERS).cloned();
    let mut response = if preflight { StatusCode::NO_CONTENT.into_response() } else { next.run(request).await };
    let mut say = |name: HeaderName, value: HeaderValue| drop(response.headers_mut().insert(name, value));
    say(header::ACCESS_CONTROL_ALLOW_ORIGIN, if allowed == Some("*") { HeaderValue::from_static("*") } else { origin });
    say(header::VARY, HeaderValue::from_static("origin"));
    if preflight {
        say(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST, OPTIONS"));
        // Client libraries send headers of their own; none means anything here but the key.
        say(header::ACCESS_CONTROL_ALLOW_HEADERS, asked.unwrap_or(HeaderValue::from_static(USUAL)));
    } else {
        say(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(EXPOSED));
    }
    response
}

/// Whether an origin is the address that was called. Behind a proxy that renames the host the browser's own word counts, which no page
/// can make it say.
fn is_own(origin: &HeaderValue, headers: &HeaderMap) -> bool {
    if headers.get("sec-fetch-site").is_some_and(|site| site == "same-origin") {
        return true;
    }
    let text = origin.to_str().unwrap_or_default();
    let authority = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"));
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    authority.zip(host).is_some_and(|(authority, host)| authority.eq_ignore_ascii_case(host))
}
