//! The gateway's own error answers.

use std::borrow::Cow;
use std::time::Duration;

use http::{HeaderMap, HeaderValue, Response, StatusCode, header};

use crate::domain::label::{ApiFormat, RejectReason};
use crate::domain::record::Call;
use crate::limit::retry_after_seconds;
use crate::wire::error::{ApiError, ErrorFormat, render_error};

use super::body::GatewayBody;

/// The status of a request whose client left before the head of the answer (nginx' code; RFC 9110 has none).
pub const CLIENT_CLOSED_REQUEST: u16 = 499;

/// A request that is refused before it reaches a model.
#[derive(Debug)]
pub struct Refusal {
    pub reason: RejectReason,
    pub error: ApiError,
    pub headers: HeaderMap,
}

impl Refusal {
    /// A refusal with the status and code that belong to its reason.
    pub fn new(reason: RejectReason, message: impl Into<Cow<'static, str>>) -> Self {
        let (status, code) = match reason {
            RejectReason::MissingApiKey => (401, "missing_api_key"),
            RejectReason::InvalidApiKey => (401, "invalid_api_key"),
            RejectReason::ExpiredApiKey => (401, "expired_api_key"),
            RejectReason::RevokedApiKey => (401, "revoked_api_key"),
            RejectReason::ModelNotFound => (404, "model_not_found"),
            RejectReason::InvalidRequest => (400, "invalid_request"),
            RejectReason::BodyTooLarge => (413, "body_too_large"),
            RejectReason::RateLimited => (429, "rate_limit_exceeded"),
            RejectReason::InFlightDuplicate => (409, "request_in_flight"),
            RejectReason::Overloaded => (503, "overloaded"),
            RejectReason::ShuttingDown => (503, "shutting_down"),
            RejectReason::ClientClosed => (CLIENT_CLOSED_REQUEST, "client_closed_request"),
            RejectReason::InternalError => (500, "internal_error"),
        };
        Self { reason, error: ApiError::new(status, message).with_code(code), headers: HeaderMap::new() }
    }

    /// Another status than its reason's.
    pub fn with_status(mut self, status: u16) -> Self {
        self.error.status = status;
        self
    }

    /// Names the field of the request that is wrong.
    pub fn with_param(mut self, param: Option<&'static str>) -> Self {
        if let Some(param) = param {
            self.error = self.error.with_param(param);
        }
        self
    }

    /// Adds `Retry-After`, in whole seconds rounded up.
    pub fn with_retry_after(mut self, wait: Duration) -> Self {
        self.headers.insert(header::RETRY_AFTER, retry_after_seconds(wait).into());
        self
    }

    /// The answer, in the caller's format. It carries the reason, so that the HTTP layer that sends it can count it.
    pub fn into_response(self, call: Call) -> Response<GatewayBody> {
        let mut response = error_response(call, &self.error);
        response.headers_mut().extend(self.headers);
        if self.reason == RejectReason::ShuttingDown {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response.extensions_mut().insert(Refused(self.reason));
        response
    }
}

/// Marks an answer to a request that was refused.
#[derive(Debug, Clone, Copy)]
pub struct Refused(pub RejectReason);

/// The error format that callers of this endpoint understand.
pub fn error_format(call: Call) -> ErrorFormat {
    match call {
        Call::Completion(format) => format.into(),
        Call::Embedding => ApiFormat::OpenAiChat.into(),
    }
}

/// An error in the caller's format.
pub fn error_response(call: Call, error: &ApiError) -> Response<GatewayBody> {
    let mut response = Response::new(GatewayBody::whole(render_error(error_format(call), error).into()));
    *response.status_mut() = StatusCode::from_u16(error.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
