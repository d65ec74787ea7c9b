//! Why a request failed.

use std::fmt;

use super::label::Outcome;

/// The code of a failed request, in the request log and, where the gateway tells the failure itself, in the client's error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorCode {
    /// The provider answered with this HTTP status, or with an error that stands for it: `http_500`.
    Http(u16),
    /// The call to the provider ended so, without an answer: `timeout`, `stream_cut`.
    Call(Outcome),
    /// The provider fell silent in the middle of a stream.
    StreamIdleTimeout,
    /// The provider's stream violates its format.
    MalformedStream,
    /// The provider reported an error in the middle of a stream.
    UpstreamError,
    /// The provider's answer cannot be expressed in the client's format.
    ConversionFailed,
    /// No provider's format can express the request.
    UnsupportedRequest,
    /// Every provider of the model is at its limit of concurrent requests.
    NoProviderAvailable,
    /// The request with the same request id has completed, but its answer was not kept.
    AnswerNotKept,
    /// A handler panicked.
    Panic,
    /// The gateway stopped before the request ended.
    Shutdown,
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Http(status) => return write!(f, "http_{status}"),
            Self::Call(outcome) => outcome.as_str(),
            Self::StreamIdleTimeout => "stream_idle_timeout",
            Self::MalformedStream => "malformed_stream",
            Self::UpstreamError => "upstream_error",
            Self::ConversionFailed => "conversion_failed",
            Self::UnsupportedRequest => "unsupported_request",
            Self::NoProviderAvailable => "no_provider_available",
            Self::AnswerNotKept => "answer_not_kept",
            Self::Panic => "panic",
            Self::Shutdown => "shutdown",
        })
    }
}
