//! Every refusal and failure of the gateway, in OpenAI's shape:
//! `{"error": {"message", "type", "param", "code"}}`.
//!
//! Keeps true: bad input never becomes a 5xx, and no message repeats prompt text or a key.

use crate::fleet::FleetError;
use crate::fleet::dispatch::DispatchError;
use crate::gateway::text::TextError;
use crate::raft::group::GroupError;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

/// Longest piece of the caller's own words (a parameter's or model's name) that a message repeats.
const ECHO_CHARS_MAX: usize = 80;

/// An answer that is not a success.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    pub status: StatusCode,
    pub kind: &'static str,
    pub message: String,
    pub param: Option<String>,
    pub code: Option<&'static str>,
    /// `retry-after`, in seconds.
    pub retry_after_s: Option<u32>,
}

/// The caller's words, cut to a length that is safe to repeat.
pub fn shortened(words: &str) -> String {
    let mut cut: String = words.chars().take(ECHO_CHARS_MAX).collect();
    if cut.len() < words.len() {
        cut.push('…');
    }
    cut
}

/// Whole seconds, at least one.
fn seconds(ms: u64) -> u32 {
    u32::try_from(ms.div_ceil(1_000).max(1)).unwrap_or(u32::MAX)
}

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            kind,
            message: message.into(),
            param: None,
            code: None,
            retry_after_s: None,
        }
    }

    fn coded(mut self, code: &'static str) -> Self {
        self.code = Some(code);
        self
    }

    fn about(mut self, param: &str) -> Self {
        self.param = Some(shortened(param));
        self
    }

    fn retry_after(mut self, seconds: u32) -> Self {
        self.retry_after_s = Some(seconds);
        self
    }

    /// The body as a whole cannot be used.
    pub fn body(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", message)
    }

    /// A parameter's value is not one we take.
    pub fn value(param: &str, message: impl Into<String>) -> Self {
        Self::body(message).about(param).coded("invalid_value")
    }

    /// A parameter's value has the wrong JSON type.
    pub fn wrong_type(param: &str, wanted: &str, got: &Value) -> Self {
        let got = match got {
            Value::Null => "null",
            Value::Bool(_) => "a boolean",
            Value::Number(_) => "a number",
            Value::String(_) => "a string",
            Value::Array(_) => "an array",
            Value::Object(_) => "an object",
        };
        Self::body(format!(
            "'{}' must be {wanted}, not {got}.",
            shortened(param)
        ))
        .about(param)
        .coded("invalid_type")
    }

    pub fn missing(param: &str) -> Self {
        Self::body(format!("The parameter '{param}' is required."))
            .about(param)
            .coded("missing_required_parameter")
    }

    /// A name OpenAI knows and we do not serve.
    pub fn unsupported(param: &str, why: &str) -> Self {
        Self::body(format!("'{}' is not supported: {why}", shortened(param)))
            .about(param)
            .coded("unsupported_parameter")
    }

    /// A name nobody knows.
    pub fn unknown(param: &str) -> Self {
        Self::body(format!(
            "Unknown parameter: '{}'. It is not supported here; leave it out.",
            shortened(param)
        ))
        .about(param)
        .coded("unknown_parameter")
    }

    pub fn context_length(message: impl Into<String>, param: &str) -> Self {
        Self::body(message)
            .about(param)
            .coded("context_length_exceeded")
    }

    pub fn unauthorized(message: &str) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "invalid_request_error", message)
            .coded("invalid_api_key")
    }

    pub fn forbidden(message: &str) -> Self {
        Self::new(StatusCode::FORBIDDEN, "invalid_request_error", message)
            .coded("insufficient_permissions")
    }

    /// The tenant's or the key's own limit is reached: `kind` is `requests` or `tokens`, as OpenAI has it.
    pub fn rate_limited(
        kind: &'static str,
        message: impl Into<String>,
        retry_after_ms: Option<u64>,
    ) -> Self {
        let mut error = Self::new(StatusCode::TOO_MANY_REQUESTS, kind, message);
        error.retry_after_s = retry_after_ms.map(seconds);
        error.coded("rate_limit_exceeded")
    }

    /// There is not enough money.
    pub fn quota(message: impl Into<String>, retry_after_ms: Option<u64>) -> Self {
        let kind = "insufficient_quota";
        let mut error = Self::new(StatusCode::TOO_MANY_REQUESTS, kind, message);
        error.retry_after_s = retry_after_ms.map(seconds);
        error.coded(kind)
    }

    pub fn model_not_found(model: &str) -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "invalid_request_error",
            format!(
                "The model '{}' is not served here. GET /v1/models lists those that are.",
                shortened(model)
            ),
        )
        .about("model")
        .coded("model_not_found")
    }

    pub fn unknown_url(method: &str, path: &str) -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "invalid_request_error",
            format!(
                "Unknown request URL: {method} {}. OpenAI's API is below /v1 here: end the base \
                 URL with it.",
                shortened(path)
            ),
        )
        .coded("unknown_url")
    }

    pub fn method_not_allowed(method: &str, path: &str) -> Self {
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "invalid_request_error",
            format!("{method} is not allowed on {}.", shortened(path)),
        )
        .coded("method_not_allowed")
    }

    pub fn too_large(limit_bytes: usize) -> Self {
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "invalid_request_error",
            format!("The request body is larger than {limit_bytes} bytes."),
        )
        .coded("request_too_large")
    }

    pub fn body_too_slow() -> Self {
        Self::new(
            StatusCode::REQUEST_TIMEOUT,
            "invalid_request_error",
            "The request body did not arrive in time.",
        )
        .coded("request_timeout")
    }

    pub fn media_type() -> Self {
        Self::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "invalid_request_error",
            "Send the body as JSON with the header 'content-type: application/json'.",
        )
        .coded("unsupported_media_type")
    }

    pub fn content_encoding() -> Self {
        Self::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "invalid_request_error",
            "Compressed bodies are not read here: leave out the 'content-encoding' header.",
        )
        .coded("unsupported_content_encoding")
    }

    pub fn conflict(message: impl Into<String>) -> Self {
        Self::body(message).coded("refused")
    }

    /// The act took effect before, and this is not its answer.
    pub fn earlier(message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, "invalid_request_error", message).coded("done_before")
    }

    /// The effect may be there or may yet come: only the same key makes asking again safe.
    pub fn in_doubt(key: &str) -> Self {
        let message = format!(
            "Whether this took effect is unknown: the group did not confirm it in time. Ask again \
             with the header 'Idempotency-Key: {key}' (--request-id {key}): it then takes effect once."
        );
        Self::unavailable("in_doubt", message, 1)
    }

    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "invalid_request_error", message).coded("not_found")
    }

    /// What a log no longer holds.
    pub fn lost(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::GONE, "invalid_request_error", message).coded(code)
    }

    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", message)
            .coded("internal_error")
    }

    /// Nothing is wrong with the request: it may be sent again after `seconds`.
    pub fn unavailable(code: &'static str, message: impl Into<String>, seconds: u32) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", message)
            .coded(code)
            .retry_after(seconds)
    }

    /// The body of the answer, and of an `error` event in a stream.
    pub fn to_json(&self) -> Value {
        json!({"error": {
            "message": self.message,
            "type": self.kind,
            "param": self.param,
            "code": self.code,
        }})
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, axum::Json(self.to_json())).into_response();
        let headers = response.headers_mut();
        if let Some(seconds) = self.retry_after_s {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl From<DispatchError> for ApiError {
    fn from(error: DispatchError) -> Self {
        let words = error.to_string();
        match error {
            DispatchError::NotReady => Self::unavailable("model_not_ready", words, 5),
            DispatchError::Overloaded => Self::unavailable("overloaded", words, 1),
            DispatchError::Lost(_) => Self::unavailable("replica_lost", words, 1),
            DispatchError::Invalid(_) => Self::body(words).coded("refused_by_engine"),
        }
    }
}

impl From<GroupError> for ApiError {
    fn from(error: GroupError) -> Self {
        let words = error.to_string();
        match error {
            GroupError::NoLeader => Self::unavailable("no_leader", words, 1),
            GroupError::InDoubt { .. } => Self::unavailable("in_doubt", words, 1),
            GroupError::Stopped => Self::unavailable("stopping", words, 5),
            GroupError::Random(_) => Self::internal(words),
        }
    }
}

impl From<FleetError> for ApiError {
    fn from(error: FleetError) -> Self {
        match error {
            FleetError::Group(group) => group.into(),
            FleetError::Unknown(why) => Self::not_found(why),
            FleetError::Earlier(why) => Self::earlier(why),
            FleetError::Refused(why) => Self::conflict(why),
            FleetError::TooOften {
                why,
                retry_after_ms,
            } => Self::rate_limited("requests", why, Some(retry_after_ms)),
            FleetError::NotYet(why) => Self::unavailable("upgrading", why, 1),
        }
    }
}

impl From<TextError> for ApiError {
    fn from(error: TextError) -> Self {
        match error {
            TextError::NoTemplate => Self::body(error.to_string()).coded("no_chat_template"),
            // The template is the model's, the messages are the caller's: roles in an order that
            // the template refuses are the caller's to mend.
            TextError::Template(_) => Self::value("messages", error.to_string()),
            TextError::Tokenizer(_) | TextError::Model(_) => Self::internal(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_names_are_cut_at_a_character() {
        let cut = shortened(&"é".repeat(500));
        assert_eq!(cut.chars().count(), ECHO_CHARS_MAX + 1);
        assert_eq!(shortened("model"), "model");
    }

    #[test]
    fn unavailable_says_when_to_come_back() {
        let response = ApiError::from(DispatchError::Overloaded).into_response();
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(response.headers()[header::RETRY_AFTER], "1");
    }

    #[test]
    fn refusals_of_input_are_4xx() {
        for error in [
            ApiError::from(DispatchError::Invalid("x".into())),
            ApiError::from(TextError::NoTemplate),
            ApiError::from(TextError::Template("roles must alternate".into())),
            ApiError::from(FleetError::Refused("needs 4 workers".into())),
        ] {
            assert!(error.status.is_client_error(), "{error:?}");
        }
    }
}
