//! One exchange with one provider: the request it gets, and what its answer is worth.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;

use crate::domain::label::{ApiFormat, Outcome};
use crate::domain::model::Target;
use crate::domain::record::Call;
use crate::provider::{Operation, SendError, classify, endpoint, headers, is_retriable, outcome_of_status};
use crate::wire::answer::{Observed, observe_answer};
use crate::wire::head::Edit;

use super::Gateway;
use super::attempt::Attempt;
use super::body::GatewayBody;
use super::dispatch::Job;
use super::finish::FinishGuard;
use super::health::Permit;
use super::transform::Transform;

/// The largest answer that is held in memory, and the largest error that is passed on.
const MAX_ANSWER: usize = 256 << 20;
const MAX_ERROR: usize = 1 << 20;

/// A good answer.
#[expect(clippy::large_enum_variant, reason = "there is one for each request, and it is moved twice")]
pub(super) enum Answer {
    Stream {
        head: http::response::Parts,
        /// Waited for before the client gets its headers, so that a provider that dies at once can still be replaced.
        first: Bytes,
        upstream: Incoming,
        transform: Transform,
        attempt: Attempt,
    },
    Whole {
        head: http::response::Parts,
        body: Bytes,
        observed: Observed,
    },
}

/// An exchange that did not give the client what it asked for.
pub(super) struct Failure {
    pub(super) outcome: Outcome,
    pub(super) retriable: bool,
    pub(super) retry_after: Option<Duration>,
    /// What the upstream answered, if it did.
    pub(super) answer: Option<UpstreamAnswer>,
    /// No provider could even be tried.
    pub(super) no_provider: bool,
    status: Option<StatusCode>,
}

impl Failure {
    fn new(outcome: Outcome, retriable: bool) -> Self {
        Self { outcome, retriable, retry_after: None, answer: None, no_provider: false, status: None }
    }

    /// Every provider is at its concurrency limit.
    pub(super) fn no_provider() -> Self {
        Self { no_provider: true, ..Self::new(Outcome::Connect, false) }
    }

    /// What the record says of it.
    pub(super) fn code(&self) -> String {
        match self.status {
            Some(status) => format!("http_{}", status.as_u16()),
            None if self.no_provider => "no_provider_available".to_owned(),
            None => self.outcome.as_str().to_owned(),
        }
    }
}

/// An upstream's answer that is passed on though it is an error.
pub(super) struct UpstreamAnswer {
    head: http::response::Parts,
    body: Bytes,
    format: ApiFormat,
}

impl UpstreamAnswer {
    /// The answer as the caller gets it: as it came, or in the shape of its own format.
    pub(super) fn into_response(self, call: Call) -> Response<GatewayBody> {
        let _ = (call, self.format);
        Response::from_parts(self.head, GatewayBody::whole(self.body))
    }
}

impl Gateway {
    /// Sends the request to `target` and reads as much of the answer as it takes to know what it is worth.
    pub(super) async fn exchange(
        &self,
        job: &Job,
        target: &Arc<Target>,
        permit: Permit,
        guard: &mut FinishGuard,
    ) -> Result<Answer, Failure> {
        let working = Instant::now();
        self.before_attempt(target);
        guard.tried(target);
        let mut attempt = Attempt::start(self, target, permit);
        let Some((request, transform)) = prepare(job, target) else {
            attempt.finish(Outcome::Protocol);
            return Err(Failure::new(Outcome::Protocol, true));
        };
        guard.worked(working);
        let deadline = tokio::time::Instant::now() + self.settings().upstream_timeout;
        let result = tokio::time::timeout_at(deadline, self.read_answer(job, target, request)).await;
        let working = Instant::now();
        let received = result.unwrap_or_else(|_| Err(Failure::new(Outcome::Timeout, true)));
        let answer = match received {
            Ok(Received::Stream { head, first, upstream }) => {
                Ok(Answer::Stream { head, first, upstream, transform, attempt })
            }
            Ok(Received::Whole { head, body }) => match observe_answer(job.call, &body) {
                Ok(observed) => {
                    attempt.finish(Outcome::Ok);
                    Ok(Answer::Whole { head, body, observed })
                }
                Err(_) => {
                    attempt.finish(Outcome::Protocol);
                    Err(Failure::new(Outcome::Protocol, true))
                }
            },
            Err(failure) => {
                attempt.finish(failure.outcome);
                Err(failure)
            }
        };
        guard.worked(working);
        answer
    }

    async fn read_answer(
        &self,
        job: &Job,
        target: &Target,
        request: Request<Full<Bytes>>,
    ) -> Result<Received, Failure> {
        let response = self.client().send(&target.provider, request).await.map_err(|error| {
            tracing::debug!(provider = %target.provider.name, %error, "no answer");
            match error {
                SendError::Connect(_) => Failure::new(Outcome::Connect, true),
                SendError::Broken(_) => Failure::new(Outcome::StreamCut, true),
                SendError::Garbled(_) => Failure::new(Outcome::Protocol, true),
            }
        })?;
        let (mut head, mut upstream) = response.into_parts();
        let retry_after = classify::retry_after(&head.headers);
        let encoded = head.headers.get(header::CONTENT_ENCODING).is_some_and(|coding| coding != "identity");
        let events = is_event_stream(&head.headers);
        head.headers = headers::for_client(&head.headers);
        head.extensions = http::Extensions::new();
        head.version = http::Version::HTTP_11;
        if !head.status.is_success() {
            return Err(read_error(head, upstream, target, retry_after).await);
        }
        if encoded {
            // The gateway asked for plain bytes and can read no others.
            return Err(Failure::new(Outcome::Protocol, true));
        }
        if events && job.call != Call::Embedding {
            let first = first_chunk(&mut upstream).await.ok_or(Failure::new(Outcome::StreamCut, true))?;
            return Ok(Received::Stream { head, first, upstream });
        }
        let body = collect(upstream, MAX_ANSWER).await.ok_or(Failure::new(Outcome::StreamCut, true))?;
        Ok(Received::Whole { head, body })
    }
}

enum Received {
    Stream { head: http::response::Parts, first: Bytes, upstream: Incoming },
    Whole { head: http::response::Parts, body: Bytes },
}

/// The request for `target`, and what is to be done with the stream that answers it.
fn prepare(job: &Job, target: &Target) -> Option<(Request<Full<Bytes>>, Transform)> {
    let provider = &target.provider;
    let format = provider.kind.chat_format();
    let operation = match job.call {
        Call::Completion(_) => Operation::Complete,
        Call::Embedding => Operation::Embeddings,
    };
    let ask_usage = job.stream
        && format == ApiFormat::OpenAiChat
        && provider.ask_stream_usage
        && !job.head.include_usage
        && job.call != Call::Embedding;
    let edit = Edit {
        model: Some(&target.remote_id),
        stream: (job.stream && job.head.stream.is_none()).then_some(true),
        ask_usage,
    };
    let body = job.head.rewrite(&edit);
    let mut request = Request::new(Full::new(body));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = endpoint(provider, operation, &target.remote_id).ok()?;
    *request.headers_mut() = headers::for_upstream(&job.headers, provider);
    Some((request, Transform::pass(format, ask_usage)))
}

async fn read_error(
    head: http::response::Parts,
    upstream: Incoming,
    target: &Target,
    retry_after: Option<Duration>,
) -> Failure {
    let status = head.status;
    let outcome = if status.is_redirection() || status.is_informational() {
        Outcome::Protocol
    } else {
        outcome_of_status(status)
    };
    let answer = collect(upstream, MAX_ERROR).await.map(|body| UpstreamAnswer {
        head,
        body,
        format: target.provider.kind.chat_format(),
    });
    Failure {
        retry_after,
        answer: answer.filter(|_| outcome != Outcome::Protocol),
        status: Some(status),
        ..Failure::new(outcome, is_retriable(status))
    }
}

fn is_event_stream(headers: &HeaderMap) -> bool {
    headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| value.trim_start().to_ascii_lowercase().starts_with("text/event-stream"))
}

/// The first bytes of a stream; `None` when it ends before any.
async fn first_chunk(upstream: &mut Incoming) -> Option<Bytes> {
    while let Some(frame) = upstream.frame().await {
        if let Ok(data) = frame.ok()?.into_data()
            && !data.is_empty()
        {
            return Some(data);
        }
    }
    None
}

/// A whole body of at most `max` bytes; `None` when it breaks off or is larger.
async fn collect(mut upstream: Incoming, max: usize) -> Option<Bytes> {
    let mut first = Bytes::new();
    let mut rest = BytesMut::new();
    while let Some(frame) = upstream.frame().await {
        let Ok(data) = frame.ok()?.into_data() else { continue };
        if first.len() + rest.len() + data.len() > max {
            return None;
        }
        if first.is_empty() {
            first = data;
        } else {
            // More than one chunk: only now is copying needed.
            if rest.is_empty() {
                rest.extend_from_slice(&first);
            }
            rest.extend_from_slice(&data);
        }
    }
    Some(if rest.is_empty() { first } else { rest.freeze() })
}
