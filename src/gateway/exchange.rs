//! One exchange with one provider: sending the request, and judging the answer.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, header};
use http_body_util::BodyExt as _;

use crate::domain::label::Outcome;
use crate::domain::model::Target;
use crate::domain::record::Call;
use crate::provider::{BodyError, Destination, SendError, UpstreamBody, UpstreamRequest, classify, headers};
use crate::telemetry::events::FailedOver;
use crate::wire::error::ApiError;
use crate::wire::guess::tokens_of_json;
use crate::wire::sse::begins_as_events;

use super::Gateway;
use super::attempt::Attempt;
use super::dispatch::Job;
use super::failure::{Failure, UpstreamAnswer};
use super::finish::FinishGuard;
use super::gather::{NotGathered, gather, gather_after};
use super::health::Permit;
use super::prepare::{Prepared, prepare};
use super::reading::{Whole, fails_at_once, read_unasked, read_whole};
use super::transform::Plan;

/// The largest answer that is held in memory, and the largest error that is passed on.
const MAX_ANSWER: usize = 256 << 20;
const MAX_ERROR: usize = 1 << 20;
/// How long the body of an error is waited for: another provider may give an answer meanwhile.
const ERROR_PATIENCE: Duration = Duration::from_secs(5);
/// The first event is waited for up to this size.
const MAX_FIRST_EVENT: usize = 64 << 10;
/// A longer run of white space is not the beginning of a stream.
const MAX_PEEK: usize = 1 << 10;

pub(super) const JSON: HeaderValue = HeaderValue::from_static("application/json");
pub(super) const EVENT_STREAM: HeaderValue = HeaderValue::from_static("text/event-stream; charset=utf-8");

/// A successful answer.
pub(super) enum Answer {
    Stream {
        head: http::response::Parts,
        /// Waited for before the client gets its headers, so that failover is still possible when the provider fails at
        /// once.
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

/// What an exchange begins with.
pub(super) struct Admitted<'a> {
    pub(super) permit: Permit,
    /// When the gateway began to work on it.
    pub(super) since: Instant,
    /// The provider that was left for this one, if any.
    pub(super) moved: Option<FailedOver<'a>>,
    /// Not over a kept HTTP/1.1 connection: the call before failed over one.
    pub(super) fresh: bool,
}

impl Gateway {
    /// Sends the request to `target` and reads as much of the answer as it takes to judge it. The attempt is timed from when
    /// it is sent; what comes before is the gateway's own time.
    pub(super) async fn exchange(
        &self,
        job: &Job,
        target: &Arc<Target>,
        admitted: Admitted<'_>,
        guard: &mut FinishGuard,
    ) -> Result<Answer, Failure> {
        self.before_attempt(target);
        let Admitted { permit, since, moved, fresh } = admitted;
        let Prepared { mut request, to, plan, dropped } =
            prepare(self.endpoints(), job, target, guard.record())
                .map_err(|error| Failure::unsupported(job.call, &error))?;
        request.fresh = fresh;
        guard.tried(target);
        guard.dropped(dropped);
        if let Some(moved) = moved {
            moved.emit();
        }
        let sent = Instant::now();
        let mut attempt = Attempt::start(guard.upstream_series(), target, permit, sent);
        if !job.stream {
            // A whole answer may take its time before its first byte.
            attempt.begins();
        }
        guard.worked(sent - since);
        let deadline = sent + self.settings().upstream_timeout;
        let result = tokio::time::timeout_at(
            deadline.into(),
            self.read_answer(job, target, &to, request, &mut attempt),
        )
        .await;
        let working = Instant::now();
        let received = result.unwrap_or_else(|_| Err(Failure::new(Outcome::Timeout, true)));
        let mut answer = match received {
            Ok(Received::Stream { head, first, upstream }) => {
                Ok(Answer::Stream { head, first, upstream, plan, attempt })
            }
            Ok(Received::Whole { mut head, body }) => {
                match read_whole(job, target, plan.context(), &mut head, body) {
                    Ok(Whole { body, observed, uncounted }) => {
                        attempt.finish(Outcome::Ok);
                        guard.observed(&observed.usage, observed.finish_reason);
                        if let Some(answer) = uncounted
                            && guard.may_guess()
                        {
                            guard.guessed(tokens_of_json(&answer));
                        }
                        Ok(Answer::Whole { head, body })
                    }
                    Err(failure) => {
                        attempt.finish(failure.outcome);
                        Err(failure)
                    }
                }
            }
            Err(failure) => {
                if failure.stale && !fresh {
                    attempt.excuse();
                }
                attempt.finish(failure.outcome);
                Err(failure)
            }
        };
        if let Err(failure) = &mut answer {
            failure.keep_secrets_of(&target.provider);
            if let Some(usage) = &failure.usage {
                guard.observed(usage, None);
            }
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
        attempt: &mut Attempt,
    ) -> Result<Received, Failure> {
        let response = self.client().send(&target.provider, to, request).await.map_err(|error| {
            tracing::debug!(provider = %target.provider.name, %error, "no answer");
            match error {
                SendError::Connect(_) => Failure::new(Outcome::Connect, true),
                SendError::Broken(_) => Failure::new(Outcome::StreamCut, true),
                SendError::Stale(_) => Failure::stale(),
                SendError::Garbled(_) => Failure::new(Outcome::Protocol, true),
            }
        })?;
        attempt.begins();
        let (mut head, mut upstream) = response.into_parts();
        let retry_after = classify::retry_after(&head.headers);
        let encoded = is_encoded(&head.headers);
        let mut events = is_event_stream(&head.headers);
        let untold = job.stream && !events && !is_json(&head.headers);
        headers::keep_for_client(&mut head.headers);
        head.extensions = http::Extensions::new();
        head.version = http::Version::HTTP_11;
        if !head.status.is_success() {
            return Err(Box::pin(read_error(job.call, head, upstream, target, retry_after)).await);
        }
        if encoded {
            // The gateway asked for an uncompressed answer and cannot read another.
            return Err(Failure::new(Outcome::Protocol, true));
        }
        let format = target.provider.kind.chat_format();
        let mut begun = Bytes::new();
        if untold {
            (begun, events) = Box::pin(peek(&mut upstream)).await.map_err(|error| broken(&error, attempt))?;
            if events {
                head.headers.insert(header::CONTENT_TYPE, EVENT_STREAM);
            }
        }
        if events && job.stream {
            let first = first_event(begun, &mut upstream, attempt).await?;
            return match fails_at_once(job.call, format, &first) {
                Some(failure) => Err(failure),
                None => Ok(Received::Stream { head, first, upstream }),
            };
        }
        let mut body = gather_after(begun, upstream, MAX_ANSWER, None).await.map_err(|why| match why {
            NotGathered::Broken(error) => broken(&error, attempt),
            NotGathered::TooLarge => Failure::new(Outcome::Protocol, true),
        })?;
        if events && job.call != Call::Embedding {
            // Some providers stream even when not asked to.
            body = read_unasked(job.call, format, &body)?;
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
    let format = Some(target.provider.kind.chat_format());
    let answer = match tokio::time::timeout(ERROR_PATIENCE, gather(upstream, MAX_ERROR, None)).await {
        Ok(Ok(body)) => UpstreamAnswer { head, body, format },
        // Too long, too late, or cut off. Callers act on the status.
        Ok(Err(_)) | Err(_) => {
            let message = "The provider answered with an error that could not be read.";
            UpstreamAnswer::own_under(head, call, &ApiError::new(status.as_u16(), message))
        }
    };
    Failure::answered(status, answer, retry_after)
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

/// Whether the body has a content coding; their names have no case (RFC 9110 § 8.4.1).
pub fn is_encoded(headers: &HeaderMap) -> bool {
    let codings = headers.get_all(header::CONTENT_ENCODING);
    codings
        .iter()
        .map(|coding| coding.as_bytes().trim_ascii())
        .any(|coding| !coding.is_empty() && !coding.eq_ignore_ascii_case(b"identity"))
}

/// A failure in the middle of a body. Nonsense has used the provider's time, as in a head.
fn broken(error: &BodyError, attempt: &mut Attempt) -> Failure {
    if error.tell_again() {
        attempt.excuse();
    }
    Failure::new(if error.is_garbled() { Outcome::Protocol } else { Outcome::StreamCut }, true)
}

/// Reads as many bytes of an answer as it takes to tell whether it is an event stream without the content type; returns
/// them, and whether it is.
async fn peek(upstream: &mut UpstreamBody) -> Result<(Bytes, bool), BodyError> {
    let mut begun = BytesMut::new();
    loop {
        let events = begins_as_events(&begun);
        if events.is_some() || begun.len() > MAX_PEEK {
            return Ok((begun.freeze(), events == Some(true)));
        }
        let Some(frame) = upstream.frame().await else { return Ok((begun.freeze(), false)) };
        if let Ok(data) = frame?.into_data() {
            begun.extend_from_slice(&data);
        }
    }
}

/// The beginning of a stream, `begun` included, to the end of its first event, so that a provider that fails before it can
/// be replaced.
async fn first_event(
    begun: Bytes,
    upstream: &mut UpstreamBody,
    attempt: &mut Attempt,
) -> Result<Bytes, Failure> {
    let mut read = BytesMut::from(begun);
    let mut searched = 0;
    loop {
        if has_whole_event(&read[searched..]) || read.len() > MAX_FIRST_EVENT {
            return Ok(read.freeze());
        }
        // The blank line may lie across two pieces.
        searched = read.len().saturating_sub(1);
        match upstream.frame().await {
            Some(frame) => {
                let data = frame.map_err(|error| broken(&error, attempt))?.into_data();
                read.extend_from_slice(&data.unwrap_or_default());
            }
            None if read.is_empty() => return Err(Failure::new(Outcome::StreamCut, true)),
            // The watcher of the stream judges what it consisted of.
            None => return Ok(read.freeze()),
        }
    }
}

/// Whether an event ends in `bytes`: with a blank line, of any kind of line end.
fn has_whole_event(bytes: &[u8]) -> bool {
    [b"\n\n".as_slice(), b"\n\r", b"\r\r"].iter().any(|end| memchr::memmem::find(bytes, end).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codings_have_no_case() {
        let encoded = |codings: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for coding in codings {
                headers.append(header::CONTENT_ENCODING, HeaderValue::from_static(coding));
            }
            is_encoded(&headers)
        };
        assert!(!encoded(&[]) && !encoded(&["Identity"]) && !encoded(&["", "identity"]));
        assert!(encoded(&["gzip"]) && encoded(&["identity", "BR"]));
    }

    #[test]
    fn events_end_with_a_blank_line() {
        for whole in ["data: 1\n\n", "data: 1\r\n\r\ndata", "data: 1\r\r"] {
            assert!(has_whole_event(whole.as_bytes()), "{whole:?}");
        }
        for part in ["", "data: 1\n", "data: 1\r\n", "\rdata"] {
            assert!(!has_whole_event(part.as_bytes()), "{part:?}");
        }
    }
}
