//! An exchange that failed, and the error answer that a client gets for it.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Response, StatusCode, header};

use crate::domain::failure::ErrorCode;
use crate::domain::label::{ApiFormat, Outcome};
use crate::domain::model::Target;
use crate::domain::provider::Provider;
use crate::domain::record::Call;
use crate::domain::usage::Usage;
use crate::provider::{is_retriable, outcome_of_status};
use crate::wire::convert::{ConvertError, convert_error};
use crate::wire::error::{ApiError, ErrorFormat, has_shape, render_error};

use super::body::GatewayBody;
use super::exchange::{JSON, is_encoded};
use super::refusal::error_format;

/// An exchange that failed to answer the client's request.
pub(super) struct Failure {
    pub(super) outcome: Outcome,
    /// For the record.
    pub(super) code: ErrorCode,
    /// Whether a provider was called at all.
    pub(super) sent: bool,
    pub(super) retriable: bool,
    pub(super) retry_after: Option<Duration>,
    /// The upstream's answer, if any.
    pub(super) answer: Option<Box<UpstreamAnswer>>,
    /// The target that gave `answer`, when it is passed on.
    pub(super) answered_by: Option<Arc<Target>>,
    /// The usage reported by an answer that could not be used.
    pub(super) usage: Option<Box<Usage>>,
    /// The connection had rested for too long. The provider is not to blame, and a new connection may serve at once.
    pub(super) stale: bool,
    /// The provider's breaker was open already: it was called as a last resort, or to see whether it works again.
    pub(super) past_breaker: bool,
}

impl Failure {
    /// A call that ended without an answer that could be used.
    pub(super) fn new(outcome: Outcome, retriable: bool) -> Self {
        Self {
            outcome,
            code: ErrorCode::Call(outcome),
            sent: true,
            retriable,
            retry_after: None,
            answer: None,
            answered_by: None,
            usage: None,
            stale: false,
            past_breaker: false,
        }
    }

    /// The connection broke that had been kept from an earlier call.
    pub(super) fn stale() -> Self {
        Self { stale: true, ..Self::new(Outcome::StreamCut, true) }
    }

    /// The provider answered with the status of an error.
    pub(super) fn answered(
        status: StatusCode,
        answer: UpstreamAnswer,
        retry_after: Option<Duration>,
    ) -> Self {
        let code = ErrorCode::Http(status.as_u16());
        if status.is_redirection() || status.is_informational() {
            // A redirection is no answer; another provider may give one.
            return Self { code, retry_after, ..Self::new(Outcome::Protocol, true) };
        }
        let answer = Some(Box::new(answer));
        Self { code, retry_after, answer, ..Self::new(outcome_of_status(status), is_retriable(status)) }
    }

    /// The provider reported an error with the status of a success. It is passed on with the status that the error stands
    /// for.
    pub(super) fn told(call: Call, error: &ApiError) -> Self {
        let status = StatusCode::from_u16(error.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Self {
            code: ErrorCode::Http(status.as_u16()),
            answer: Some(Box::new(UpstreamAnswer::own(call, error))),
            ..Self::new(outcome_of_status(status), is_retriable(status))
        }
    }

    /// Every provider is at its concurrency limit.
    pub(super) fn no_provider() -> Self {
        Self { code: ErrorCode::NoProviderAvailable, sent: false, ..Self::new(Outcome::Connect, false) }
    }

    /// The provider's format cannot express the request; another provider's may.
    pub(super) fn unsupported(call: Call, error: &ConvertError) -> Self {
        let code = error.code().map_or_else(|| ErrorCode::UnsupportedRequest.to_string(), str::to_owned);
        let mut told = ApiError::new(400, error.to_string()).with_code(code);
        told.param = error.param().map(|param| param.to_owned().into());
        Self {
            code: ErrorCode::UnsupportedRequest,
            sent: false,
            answer: Some(Box::new(UpstreamAnswer::own(call, &told))),
            ..Self::new(Outcome::Http4xx, true)
        }
    }

    /// Takes out of the answer what its provider must not tell the client.
    pub(super) fn keep_secrets_of(&mut self, provider: &Provider) {
        if let Some(answer) = &mut self.answer
            && let Cow::Owned(clean) = provider.without_secrets(&answer.body)
        {
            answer.body = clean.into();
        }
    }

    /// Adds the usage that the unusable answer reported.
    pub(super) fn costing(self, usage: &Usage) -> Self {
        Self { usage: usage.is_known().then(|| Box::new(*usage)), ..self }
    }
}

/// An error answer that is passed on.
pub(super) struct UpstreamAnswer {
    pub(super) head: http::response::Parts,
    pub(super) body: Bytes,
    /// The provider's format; `None`: it is in the caller's already.
    pub(super) format: Option<ApiFormat>,
}

impl UpstreamAnswer {
    /// The gateway's own error in place of a provider's answer.
    pub(super) fn own(call: Call, error: &ApiError) -> Self {
        Self::own_under(Response::new(()).into_parts().0, call, error)
    }

    /// As [`own`](Self::own), with the headers of the provider's answer.
    pub(super) fn own_under(mut head: http::response::Parts, call: Call, error: &ApiError) -> Self {
        head.status = StatusCode::from_u16(error.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        head.headers.insert(header::CONTENT_TYPE, JSON);
        head.headers.remove(header::CONTENT_ENCODING);
        Self { head, body: render_error(error_format(call), error).into(), format: None }
    }

    /// The answer for the caller: unchanged, if its SDK can read it, else in the shape of its format.
    pub(super) fn into_response(mut self, call: Call) -> Response<GatewayBody> {
        let shape = error_format(call);
        let headers = &mut self.head.headers;
        let readable = match self.format {
            None => true,
            Some(provider) => {
                // Compressed although the gateway asked for an uncompressed answer: the client may be able to read it,
                // the gateway cannot.
                let compressed = is_encoded(headers);
                ErrorFormat::from(provider) == shape && (compressed || has_shape(shape, &self.body))
            }
        };
        if !readable {
            headers.insert(header::CONTENT_TYPE, JSON);
            headers.remove(header::CONTENT_ENCODING);
            self.body = convert_error(shape, self.head.status.as_u16(), &self.body).into();
        }
        Response::from_parts(self.head, GatewayBody::whole(self.body))
    }
}
