//! One exchange with one provider: the request it gets, and what its answer is worth.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use http_body_util::BodyExt as _;

use crate::domain::label::{ApiFormat, Outcome};
use crate::domain::model::Target;
use crate::domain::record::Call;
use crate::domain::usage::Usage;
use crate::provider::{
    Destination, SendError, UpstreamBody, UpstreamRequest, classify, headers, is_retriable, outcome_of_status,
};
use crate::telemetry::events::FailedOver;
use crate::wire::convert::{ConvertError, convert_error};
use crate::wire::error::{ApiError, ErrorFormat, render_error};
use crate::wire::sse::begins_as_events;

use super::Gateway;
use super::attempt::Attempt;
use super::body::GatewayBody;
use super::dispatch::Job;
use super::finish::FinishGuard;
use super::gather::{gather, gather_after};
use super::health::Permit;
use super::prepare::{Prepared, prepare};
use super::reading::{fails_at_once, fold, not_folded, read_whole};
use super::refusal::error_format;
use super::transform::Plan;

/// The largest answer that is held in memory, and the largest error that is passed on.
const MAX_ANSWER: usize = 256 << 20;
pub(super) const MAX_ERROR: usize = 1 << 20;
/// White space that goes on for longer than this is not the beginning of a stream.
const MAX_PEEK: usize = 1 << 10;

pub(super) const JSON: HeaderValue = HeaderValue::from_static("application/json");
pub(super) const EVENT_STREAM: HeaderValue = HeaderValue::from_static("text/event-stream; charset=utf-8");

/// A good answer.
pub(super) enum Answer {
    Stream {
        head: http::response::Parts,
        /// Waited for before the client gets its headers, so that a provider that dies at once can still be replaced.
        first: Bytes,
        upstream: UpstreamBody,
        plan: Plan,
        attempt: Attempt,
    },
    Whole {
        head: http::response::Parts,
        body: Bytes,
    },
}

/// An exchange that did not give the client what it asked for.
pub(super) struct Failure {
    pub(super) outcome: Outcome,
    pub(super) retriable: bool,
    pub(super) retry_after: Option<Duration>,
    /// What the upstream answered, if it did.
    pub(super) answer: Option<Box<UpstreamAnswer>>,
    /// Who answered, when it is passed on.
    pub(super) answered_by: Option<Arc<Target>>,
    /// No provider could even be tried.
    pub(super) no_provider: bool,
    pub(super) status: Option<StatusCode>,
    /// Instead of what follows from the outcome.
    pub(super) code: Option<&'static str>,
    /// What an answer that is of no use says that it cost.
    pub(super) usage: Option<Box<Usage>>,
}

impl Failure {
    pub(super) fn new(outcome: Outcome, retriable: bool) -> Self {
        Self {
            outcome,
            retriable,
            retry_after: None,
            answer: None,
            answered_by: None,
            no_provider: false,
            status: None,
            code: None,
            usage: None,
        }
    }

    /// Every provider is at its concurrency limit.
    pub(super) fn no_provider() -> Self {
        Self { no_provider: true, ..Self::new(Outcome::Connect, false) }
    }

    /// The provider's format has no words for what was asked. Another provider's may.
    fn unsupported(call: Call, error: &ConvertError) -> Self {
        let code = error.code().unwrap_or("unsupported_request");
        let told = ApiError::new(400, error.to_string()).with_code(code);
        let answer = UpstreamAnswer::own(call, Response::new(()).into_parts().0, &told);
        let code = Some("unsupported_request");
        Self { answer: Some(Box::new(answer)), code, ..Self::new(Outcome::Http4xx, true) }
    }

    /// The same, of an answer that says that it cost `usage`.
    pub(super) fn costing(self, usage: &Usage) -> Self {
        Self { usage: usage.is_known().then(|| Box::new(*usage)), ..self }
    }

    /// Whether a provider was called at all.
    pub(super) fn was_sent(&self) -> bool {
        self.code.is_none()
    }

    /// What the record says of it.
    pub(super) fn code(&self) -> String {
        if let Some(code) = self.code {
            return code.to_owned();
        }
        match self.status {
            Some(status) => format!("http_{}", status.as_u16()),
            None if self.no_provider => "no_provider_available".to_owned(),
            None => self.outcome.as_str().to_owned(),
        }
    }
}

/// An answer that is passed on though it is an error.
pub(super) struct UpstreamAnswer {
    pub(super) head: http::response::Parts,
    pub(super) body: Bytes,
    /// The provider's format; `None`: it is in the caller's already.
    pub(super) format: Option<ApiFormat>,
}

impl UpstreamAnswer {
    /// What the gateway says in the place of a provider, under what is known of its `head`.
    pub(super) fn own(call: Call, mut head: http::response::Parts, error: &ApiError) -> Self {
        head.status = StatusCode::from_u16(error.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        head.headers.insert(header::CONTENT_TYPE, JSON);
        head.headers.remove(header::CONTENT_ENCODING);
        Self { head, body: render_error(error_format(call), error).into(), format: None }
    }

    /// The answer as the caller gets it: as it came, or in the shape of its own format.
    pub(super) fn into_response(mut self, call: Call) -> Response<GatewayBody> {
        let body = match (call, self.format) {
            (Call::Completion(client), Some(provider)) if error_shape(client) != error_shape(provider) => {
                self.head.headers.insert(header::CONTENT_TYPE, JSON);
                // A proxy's error may be compressed in spite of what was asked; what is written here is not.
                self.head.headers.remove(header::CONTENT_ENCODING);
                convert_error(client, self.head.status.as_u16(), &self.body).into()
            }
            _ => self.body,
        };
        Response::from_parts(self.head, GatewayBody::whole(body))
    }
}

fn error_shape(format: ApiFormat) -> ErrorFormat {
    format.into()
}

impl Gateway {
    /// Works since `since`: sends the request to `target` and reads as much of the answer as it takes to know what it is worth.
    /// `moved` says which provider was left for this one, if any.
    pub(super) async fn exchange(
        &self,
        job: &Job,
        target: &Arc<Target>,
        permit: Permit,
        since: Instant,
        moved: Option<FailedOver<'_>>,
        guard: &mut FinishGuard,
    ) -> Result<Answer, Failure> {
        self.before_attempt(target);
        let Prepared { request, to, plan, dropped } = prepare(self.endpoints(), job, target, guard.record())
            .map_err(|error| Failure::unsupported(job.call, &error))?;
        guard.tried(target);
        guard.dropped(dropped);
        if let Some(moved) = moved {
            moved.emit();
        }
        let sent = Instant::now();
        let mut attempt = Attempt::start(self, target, permit, sent);
        guard.worked(sent - since);
        let deadline = sent + self.settings().upstream_timeout;
        let result =
            tokio::time::timeout_at(deadline.into(), self.read_answer(job, target, &to, request)).await;
        let working = Instant::now();
        let received = result.unwrap_or_else(|_| Err(Failure::new(Outcome::Timeout, true)));
        let answer = match received {
            Ok(Received::Stream { head, first, upstream }) => {
                Ok(Answer::Stream { head, first, upstream, plan, attempt })
            }
            Ok(Received::Whole { mut head, body }) => {
                match read_whole(job, target, plan.context(), &mut head, body) {
                    Ok((body, observed)) => {
                        attempt.finish(Outcome::Ok);
                        guard.observed(&observed.usage, observed.finish_reason);
                        Ok(Answer::Whole { head, body })
                    }
                    Err(failure) => {
                        attempt.finish(failure.outcome);
                        Err(failure)
                    }
                }
            }
            Err(failure) => {
                attempt.finish(failure.outcome);
                Err(failure)
            }
        };
        if let Err(Failure { usage: Some(usage), .. }) = &answer {
            guard.observed(usage, None);
        }
        guard.worked(working.elapsed());
        answer
    }

    async fn read_answer(
        &self,
        job: &Job,
        target: &Target,
        to: &Destination,
        request: UpstreamRequest<'_>,
    ) -> Result<Received, Failure> {
        let response = self.client().send(&target.provider, to, request).await.map_err(|error| {
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
        let mut events = is_event_stream(&head.headers);
        let untold = job.stream && !events && !is_json(&head.headers);
        headers::keep_for_client(&mut head.headers);
        head.extensions = http::Extensions::new();
        head.version = http::Version::HTTP_11;
        if !head.status.is_success() {
            return Err(Box::pin(read_error(job.call, head, upstream, target, retry_after)).await);
        }
        if encoded {
            // The gateway asked for plain bytes and can read no others.
            return Err(Failure::new(Outcome::Protocol, true));
        }
        let cut = || Failure::new(Outcome::StreamCut, true);
        let format = target.provider.kind.chat_format();
        let mut begun = Bytes::new();
        if untold {
            (begun, events) = Box::pin(peek(&mut upstream)).await.ok_or_else(cut)?;
            if events {
                head.headers.insert(header::CONTENT_TYPE, EVENT_STREAM);
            }
        }
        if events && job.stream {
            let first = if untold { begun } else { first_chunk(&mut upstream).await.ok_or_else(cut)? };
            return match fails_at_once(job.call, format, &first) {
                Some(failure) => Err(failure),
                None => Ok(Received::Stream { head, first, upstream }),
            };
        }
        let mut body = gather_after(begun, upstream, MAX_ANSWER, None).await.map_err(|_| cut())?;
        if events && job.call != Call::Embedding {
            // Some providers can only stream, whatever they are asked.
            body = fold(format, &body).ok_or_else(|| not_folded(job.call, format, &body))?;
            head.headers.insert(header::CONTENT_TYPE, JSON);
        }
        Ok(Received::Whole { head, body })
    }
}

enum Received {
    Stream { head: http::response::Parts, first: Bytes, upstream: UpstreamBody },
    Whole { head: http::response::Parts, body: Bytes },
}

async fn read_error(
    call: Call,
    head: http::response::Parts,
    upstream: UpstreamBody,
    target: &Target,
    retry_after: Option<Duration>,
) -> Failure {
    let status = head.status;
    let outcome = if status.is_redirection() || status.is_informational() {
        Outcome::Protocol
    } else {
        outcome_of_status(status)
    };
    let format = Some(target.provider.kind.chat_format());
    let answer = match gather(upstream, MAX_ERROR, None).await {
        Ok(body) => UpstreamAnswer { head, body, format },
        // Too long, or cut off. The status is what callers go by.
        Err(_) => {
            let message = "The provider answered with an error that could not be read.";
            UpstreamAnswer::own(call, head, &ApiError::new(status.as_u16(), message))
        }
    };
    Failure {
        retry_after,
        answer: (outcome != Outcome::Protocol).then(|| Box::new(answer)),
        status: Some(status),
        // A redirection is as good as no answer; another provider may give one.
        ..Failure::new(outcome, outcome == Outcome::Protocol || is_retriable(status))
    }
}

fn is_event_stream(headers: &HeaderMap) -> bool {
    const EVENTS: &str = "text/event-stream";
    headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.trim_start().get(..EVENTS.len()))
        .is_some_and(|kind| kind.eq_ignore_ascii_case(EVENTS))
}

fn is_json(headers: &HeaderMap) -> bool {
    headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|kind| kind.to_ascii_lowercase().contains("json"))
}

/// As many bytes of an answer as it takes to tell whether it is a stream that does not say so, and whether it is; `None` when
/// it breaks off.
async fn peek(upstream: &mut UpstreamBody) -> Option<(Bytes, bool)> {
    let mut begun = BytesMut::new();
    loop {
        let events = begins_as_events(&begun);
        if events.is_some() || begun.len() > MAX_PEEK {
            return Some((begun.freeze(), events == Some(true)));
        }
        let Some(frame) = upstream.frame().await else { return Some((begun.freeze(), false)) };
        if let Ok(data) = frame.ok()?.into_data() {
            begun.extend_from_slice(&data);
        }
    }
}

/// The first bytes of a stream; `None` when it ends before any.
async fn first_chunk(upstream: &mut UpstreamBody) -> Option<Bytes> {
    while let Some(frame) = upstream.frame().await {
        if let Ok(data) = frame.ok()?.into_data()
            && !data.is_empty()
        {
            return Some(data);
        }
    }
    None
}
