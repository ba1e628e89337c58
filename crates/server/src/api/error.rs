//! Errors in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`.

use ashlar_runtime::RuntimeError;
use ashlar_runtime::engine::Refused;
use axum::Json;
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

/// Options of the runtime that requests call otherwise.
const FIELDS: [(&str, &str); 6] = [
    ("--min-p", "min_p"),
    ("--repetition-penalty", "repetition_penalty"),
    ("--temperature", "temperature"),
    ("--think", "reasoning_effort"),
    ("--top-p", "top_p"),
    ("prompt", "prompt"),
];

/// Why a request is not answered.
#[derive(Clone, Debug, PartialEq)]
pub struct ApiError {
    status: StatusCode,
    message: String,
    param: Option<&'static str>,
    code: Option<&'static str>,
    /// Seconds after which it may be tried again.
    retry: Option<u64>,
}

impl ApiError {
    fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), param: None, code: None, retry: None }
    }

    /// The client's mistake.
    pub fn bad(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// The client's mistake in a field.
    pub fn field(param: &'static str, message: impl Into<String>) -> Self {
        Self { param: Some(param), ..Self::bad(message) }
    }

    /// No key, or not the one.
    pub fn unauthorized() -> Self {
        let message = "the key is missing or wrong; send it as `Authorization: Bearer KEY`";
        Self { code: Some("invalid_api_key"), ..Self::new(StatusCode::UNAUTHORIZED, message) }
    }

    /// A model other than the one served.
    pub fn unknown_model(asked: &str, served: &str) -> Self {
        let message = format!("there is no model `{asked}` here; this server has `{served}`");
        let param = Some("model");
        Self { param, code: Some("model_not_found"), ..Self::new(StatusCode::NOT_FOUND, message) }
    }

    /// More at once than can ever run and wait.
    pub fn too_many(asked: usize, places: usize) -> Self {
        let message = format!(
            "the request asks for {asked} answers, but this server runs and queues at most {places} at a time \
             (--max-sequences and --queue)"
        );
        Self::field("n", message)
    }

    /// A page of another origin.
    pub fn foreign_origin() -> Self {
        let message = "pages of this origin may not call here; start the server with --cors ORIGIN to allow it";
        Self { code: Some("origin_not_allowed"), ..Self::new(StatusCode::FORBIDDEN, message) }
    }

    /// A route that wants another method.
    pub fn wrong_method(method: &Method, path: &str) -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, format!("{path} does not understand {method}"))
    }

    /// A route that there is not.
    pub fn not_found(method: &Method, path: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, format!("there is no {method} {path} here"))
    }

    /// A body beyond the limit.
    pub fn too_large(most: usize) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, format!("the request is larger than {most} bytes"))
    }

    /// A body that takes too long.
    pub fn too_slow(seconds: f64) -> Self {
        Self::new(StatusCode::REQUEST_TIMEOUT, format!("the request was not complete after {seconds} s"))
    }

    /// No new requests.
    pub fn stopping() -> Self {
        Self { retry: Some(5), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, "the server is stopping") }
    }

    /// Something is wrong here, not there.
    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }

    fn kind(&self) -> &'static str {
        match self.status {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::FORBIDDEN => "permission_error",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        }
    }

    /// The body.
    pub fn json(&self) -> serde_json::Value {
        json!({"error": {"message": self.message, "type": self.kind(), "param": self.param, "code": self.code}})
    }
}

impl From<Refused> for ApiError {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Full { seconds, .. } => Self {
                retry: Some(seconds.ceil().max(1.0) as u64),
                code: Some("queue_full"),
                ..Self::new(StatusCode::TOO_MANY_REQUESTS, refused.to_string())
            },
            Refused::Never(error) => error.into(),
        }
    }
}

impl From<RuntimeError> for ApiError {
    fn from(error: RuntimeError) -> Self {
        if let RuntimeError::Option { option, got, expected } = &error
            && let Some((_, field)) = FIELDS.iter().find(|(name, _)| name == option)
        {
            return Self::field(field, format!("`{field}`: got {got}, expected {expected}"));
        }
        let code = match error {
            RuntimeError::Context { .. } | RuntimeError::KvBudget { .. } => Some("context_length_exceeded"),
            RuntimeError::Option { .. } | RuntimeError::Template { .. } | RuntimeError::Tokenizer { .. } => None,
            _ => return Self::failed(error.to_string()),
        };
        Self { code, ..Self::bad(error.to_string()) }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.json())).into_response();
        if let Some(seconds) = self.retry {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}
