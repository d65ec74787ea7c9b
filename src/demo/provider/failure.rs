//! Errors as the real providers word and shape them.

use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use serde_json::{Value, json};

use super::Endpoint;

/// An error answer; its body takes the format of the requested endpoint.
#[derive(Debug, Clone)]
pub struct Failure {
    pub(super) status: StatusCode,
    message: Option<String>,
    pub(super) retry_after: Option<Duration>,
}

/// Part of every error message of the scripted provider, so that a client can tell them from the gateway's own.
pub const FAILURE_MARK: &str = "(scripted provider)";

impl Failure {
    pub fn new(status: StatusCode) -> Self {
        Self { status, message: None, retry_after: None }
    }

    /// Uses this message instead of the usual sentence.
    pub fn message(mut self, message: impl Into<String>) -> Self {
        self.message = Some(message.into());
        self
    }

    /// Sends `Retry-After`, rounded up to whole seconds (RFC 9110 § 10.2.3).
    pub fn retry_after(mut self, delay: Duration) -> Self {
        self.retry_after = Some(delay);
        self
    }

    fn text(&self) -> String {
        let usual = match self.status.as_u16() {
            400 => "The request is not valid.",
            401 => "Incorrect API key provided.",
            403 => "The project does not have access to this model.",
            404 => "The model does not exist or you do not have access to it.",
            429 => "Rate limit reached for requests.",
            503 | 529 => "The engine is currently overloaded, please try again later.",
            _ => "The server had an error while processing your request.",
        };
        format!("{} {FAILURE_MARK}", self.message.as_deref().unwrap_or(usual))
    }

    /// Type and code as OpenAI's API gives them (platform.openai.com/docs/guides/error-codes).
    fn openai(&self) -> (&'static str, Option<&'static str>) {
        match self.status.as_u16() {
            401 => ("invalid_request_error", Some("invalid_api_key")),
            404 => ("invalid_request_error", Some("model_not_found")),
            429 => ("requests", Some("rate_limit_exceeded")),
            400..=499 => ("invalid_request_error", None),
            _ => ("server_error", None),
        }
    }

    /// Type as Anthropic's API gives it (docs.anthropic.com/en/api/errors).
    fn anthropic(&self) -> &'static str {
        match self.status.as_u16() {
            401 => "authentication_error",
            403 => "permission_error",
            404 => "not_found_error",
            413 => "request_too_large",
            429 => "rate_limit_error",
            400..=499 => "invalid_request_error",
            503 | 529 => "overloaded_error",
            _ => "api_error",
        }
    }

    /// The JSON body for a failed request.
    pub(super) fn body(&self, endpoint: Endpoint) -> Bytes {
        Bytes::from(self.value(endpoint).to_string())
    }

    fn value(&self, endpoint: Endpoint) -> Value {
        match endpoint {
            Endpoint::Messages | Endpoint::CountTokens => json!({
                "type": "error",
                "error": {"type": self.anthropic(), "message": self.text()},
                "request_id": "req_scripted",
            }),
            _ => {
                let (kind, code) = self.openai();
                json!({"error": {"message": self.text(), "type": kind, "param": null, "code": code}})
            }
        }
    }

    /// The events with which a stream that has begun reports the failure.
    pub(super) fn stream_events(&self, endpoint: Endpoint, sequence: usize) -> Vec<Bytes> {
        match endpoint {
            Endpoint::Messages => {
                let error =
                    json!({"type": "error", "error": {"type": self.anthropic(), "message": self.text()}});
                vec![super::render::named_event(&error)]
            }
            Endpoint::Responses => {
                let (kind, code) = self.openai();
                let code = code.unwrap_or(kind);
                let error = json!({
                    "type": "error", "sequence_number": sequence,
                    "error": {"type": kind, "code": code, "message": self.text(), "param": null},
                });
                let failed = json!({
                    "type": "response.failed", "sequence_number": sequence + 1,
                    "response": {
                        "id": "resp_scripted", "object": "response", "created_at": super::render::CREATED,
                        "status": "failed", "error": {"code": code, "message": self.text()},
                        "incomplete_details": null, "output": [], "usage": null,
                    },
                });
                vec![super::render::named_event(&error), super::render::named_event(&failed)]
            }
            _ => vec![super::render::data_event(&self.value(endpoint))],
        }
    }
}
