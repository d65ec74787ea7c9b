//! Forwarding a stream chunk by chunk as it comes, while watching it.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::StatusCode;
use http_body::{Body, Frame};
use memchr::memmem;
use tokio::time::Sleep;

use crate::domain::failure::ErrorCode;
use crate::domain::label::{ApiFormat, Outcome, Status};
use crate::provider::{UpstreamBody, outcome_of_status};
use crate::wire::error::ApiError;

use super::attempt::Attempt;
use super::finish::FinishGuard;
use super::transform::Transform;

/// How long the provider may take to end its HTTP answer after the last event. The end nearly always comes along with
/// that event, and then the connection can be reused; some servers never send it, and the client would wait for
/// nothing.
const END_GRACE: Duration = Duration::from_secs(1);

/// How long hyper has to send the events before an answer is broken off.
const FLUSH_TIME: Duration = Duration::from_millis(100);

/// A stream from a provider to a client.
pub(super) struct Relay {
    /// `None` once the client has left and the rest is read elsewhere.
    inner: Option<Box<Inner>>,
}

struct Inner {
    upstream: UpstreamBody,
    transform: Transform,
    guard: Box<FinishGuard>,
    attempt: Attempt,
    client_format: ApiFormat,
    /// To be forwarded before the upstream is read again.
    queue: VecDeque<Bytes>,
    /// Silence of this length ends the stream.
    idle: Duration,
    idle_timer: Pin<Box<Sleep>>,
    /// Since when the provider is waited for. `None`: the client is waited for, or the upstream has not been polled
    /// yet.
    waiting: Option<Instant>,
    chunks: u64,
    /// Since when the stream has had its last event.
    over_since: Option<Instant>,
    /// How it ended, once the upstream has.
    ending: Option<Ending>,
    /// hyper is given time to send what it was given.
    flushing: bool,
    /// Where an event begins that says to be an error, and has not ended yet.
    error_from: Option<u64>,
}

#[derive(Clone, Copy)]
struct Ending {
    outcome: Outcome,
    /// The code for the record; `None`: it went well.
    error: Option<ErrorCode>,
    /// Whether the client can see from the stream how it ended.
    told: bool,
}

impl Relay {
    /// Forwards `first`, which was waited for before the client got its headers, and then the rest of `upstream`.
    pub(super) fn new(
        upstream: UpstreamBody,
        first: Bytes,
        transform: Transform,
        guard: Box<FinishGuard>,
        attempt: Attempt,
        client_format: ApiFormat,
    ) -> Self {
        let idle = guard.gateway().settings().stream_idle_timeout;
        let mut inner = Box::new(Inner {
            upstream,
            transform,
            guard,
            attempt,
            client_format,
            queue: VecDeque::new(),
            idle,
            idle_timer: Box::pin(tokio::time::sleep(idle)),
            waiting: None,
            chunks: 0,
            over_since: None,
            ending: None,
            flushing: false,
            error_from: None,
        });
        inner.take_in(first);
        Self { inner: Some(inner) }
    }

    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let Some(inner) = self.inner.as_mut() else { return Poll::Ready(None) };
        loop {
            if let Some(bytes) = inner.queue.pop_front() {
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
            }
            if let Some(ending) = inner.ending {
                if !ending.told {
                    // At an error hyper drops what it has not sent yet: events, and perhaps the head.
                    if !std::mem::replace(&mut inner.flushing, true) {
                        inner.idle_timer.as_mut().reset(tokio::time::Instant::now() + FLUSH_TIME);
                    }
                    ready!(inner.idle_timer.as_mut().poll(cx));
                }
                if let Some(inner) = self.inner.take() {
                    inner.finish(if ending.error.is_none() { Status::Completed } else { Status::Failed });
                }
                if ending.told {
                    return Poll::Ready(None);
                }
                // In the middle of an event no error event can be sent: a broken connection is the honest end.
                return Poll::Ready(Some(Err(io::Error::other("the provider's answer broke off"))));
            }
            ready!(inner.poll_upstream(cx));
        }
    }
}

impl Inner {
    /// Reads one chunk, or the end, into the queue.
    fn poll_upstream(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match Pin::new(&mut self.upstream).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                if let Ok(chunk) = frame.into_data() {
                    self.take_in(chunk);
                }
                // Bytes after the last event, pings for example, must not hold up the client.
                if let Some(since) = self.over_since.filter(|since| since.elapsed() >= END_GRACE) {
                    self.guard.client_has_it_all(since);
                    self.upstream_ended();
                }
                Poll::Ready(())
            }
            // Some providers close without HTTP's last chunk; after the last event nothing is lost by that.
            Poll::Ready(Some(Err(_))) if self.is_over() => {
                self.upstream_ended();
                Poll::Ready(())
            }
            Poll::Ready(Some(Err(error))) => {
                if error.tell_again() {
                    self.attempt.excuse();
                }
                let outcome = if error.is_garbled() { Outcome::Protocol } else { Outcome::StreamCut };
                self.cut_off(outcome);
                Poll::Ready(())
            }
            Poll::Ready(None) => {
                self.upstream_ended();
                Poll::Ready(())
            }
            Poll::Pending => self.poll_idle(cx),
        }
    }

    /// Notices silence. The timer is not reset with every chunk: it looks at the clock when it fires.
    fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let waiting = *self.waiting.get_or_insert_with(Instant::now);
        let over = self.over_since.is_some();
        let since = self.over_since.unwrap_or(waiting);
        let idle = if over { self.idle.min(END_GRACE) } else { self.idle };
        if over {
            // The timer was set for the longer silence that is allowed in the middle of an answer.
            let until = tokio::time::Instant::from_std(since + idle);
            if self.idle_timer.deadline() > until {
                self.idle_timer.as_mut().reset(until);
            }
        }
        loop {
            ready!(self.idle_timer.as_mut().poll(cx));
            let silent = since.elapsed();
            if silent >= idle {
                // Some providers say why the model stopped, and then neither `[DONE]` nor anything else.
                let seen = self.transform.seen();
                if over || (seen.is_complete() && !seen.malformed) {
                    self.guard.client_has_it_all(waiting);
                    self.upstream_ended();
                    return Poll::Ready(());
                }
                self.break_off(
                    Outcome::Timeout,
                    ErrorCode::StreamIdleTimeout,
                    "The provider fell silent in the middle of its answer.",
                );
                return Poll::Ready(());
            }
            let next = tokio::time::Instant::now() + (idle - silent);
            self.idle_timer.as_mut().reset(next);
        }
    }

    fn take_in(&mut self, chunk: Bytes) {
        let now = Instant::now();
        // A chunk that was already there when the upstream was polled was not waited for, however long the client took
        // to ask.
        let waited = self.waiting.take().map_or(Duration::ZERO, |since| now - since);
        if self.chunks > 0 {
            self.guard.stalled(waited);
        }
        self.chunks += 1;
        let from = self.queue.len();
        self.transform.feed(chunk, &mut self.queue);
        if self.transform.seen().first_token {
            self.guard.first_token();
            self.attempt.answers();
        }
        if self.over_since.is_none() && self.is_over() {
            self.over_since = Some(now);
        }
        self.release(from);
        self.guard.worked(now.elapsed());
    }

    fn upstream_ended(&mut self) {
        let was_whole = self.verdict().is_some();
        let rest = self.transform.read_rest();
        let Some(ending) = self.verdict() else {
            return self.cut_off(Outcome::StreamCut);
        };
        let from = self.queue.len();
        self.transform.finish(rest, !was_whole, &mut self.queue);
        self.release(from);
        // Judged again, because it may be the very end that cannot be converted.
        self.end(self.verdict().unwrap_or(ending));
    }

    /// Whether the stream has had its last event, however the connection ends.
    fn is_over(&self) -> bool {
        self.transform.is_over() || self.transform.failure().is_some()
    }

    /// How the answer ended, as soon as that is certain.
    fn verdict(&self) -> Option<Ending> {
        let seen = self.transform.seen();
        let (outcome, error) = if seen.malformed {
            // The client's SDK stumbles over it too, so the answer is no success, whatever else came.
            (Outcome::Protocol, Some(ErrorCode::MalformedStream))
        } else if let Some(error) = self.transform.failure() {
            // A limit, or a request that it finds wrong, is not the provider's failure, however it reports the error.
            let status = StatusCode::from_u16(error.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            (outcome_of_status(status), Some(ErrorCode::UpstreamError))
        } else if self.transform.has_failed() {
            (Outcome::Protocol, Some(ErrorCode::ConversionFailed))
        } else if seen.terminal {
            (Outcome::Ok, None)
        } else {
            return None;
        };
        Some(Ending { outcome, error, told: true })
    }

    fn cut_off(&mut self, outcome: Outcome) {
        self.break_off(outcome, ErrorCode::Call(Outcome::StreamCut), "The provider's answer broke off.");
    }

    /// The upstream is gone or useless: the client is told by an event of its own format.
    fn break_off(&mut self, outcome: Outcome, code: ErrorCode, message: &'static str) {
        let from = self.queue.len();
        let status = if outcome == Outcome::Timeout { 504 } else { 502 };
        let error = ApiError::new(status, message).with_code(code.to_string());
        let told = self.transform.fail(self.client_format, &error, &mut self.queue);
        self.release(from);
        self.end(Ending { outcome, error: Some(code), told });
    }

    fn end(&mut self, ending: Ending) {
        self.attempt.finish(ending.outcome);
        if let Some(error) = ending.error {
            self.guard.blame(error);
        }
        self.ending = Some(ending);
    }

    /// Makes the chunks from `from` on ready for the client, and keeps them for the request log.
    fn release(&mut self, from: usize) {
        self.keep_secrets(from);
        if self.guard.scope().has_client_left() {
            return;
        }
        for bytes in self.queue.iter().skip(from) {
            self.guard.answered(bytes);
        }
    }

    /// Takes out of errors what their provider must not tell the client; what a model says is left as it is. An error is
    /// known as one when it is whole, which may be too late, so an event is one as soon as it says so. What is missed: a
    /// secret that comes in two pieces, or in one before the one that says so.
    fn keep_secrets(&mut self, from: usize) {
        let transform = &self.transform;
        let has_failed = transform.failure().is_some() || transform.seen().malformed;
        let event = if has_failed { None } else { transform.unfinished_event() };
        if !has_failed && event.is_none() {
            return;
        }
        let Some(target) = &self.guard.record().target else { return };
        for bytes in self.queue.iter_mut().skip(from) {
            let mut at = 0;
            if let Some((begins, event)) = event {
                at = bytes.len().saturating_sub(event.len());
                if says_error(event, bytes.len() - at) {
                    self.error_from = Some(begins);
                }
                if self.error_from != Some(begins) {
                    continue;
                }
            }
            if let Cow::Owned(clean) = target.provider.without_secrets(&bytes[at..]) {
                *bytes = [&bytes[..at], &clean].concat().into();
            }
        }
    }

    fn finish(mut self: Box<Self>, status: Status) {
        let seen = self.transform.seen();
        self.guard.observed(&seen.usage, seen.finish_reason);
        if !seen.is_counted() {
            self.guard.guessed(self.transform.guessed_tokens());
        }
        self.guard.finish(status);
    }

    /// The status if the client leaves now. A client that already has the end of the answer, or an error, lost nothing:
    /// SDKs close the connection as soon as they have read either.
    fn status_for_leaver(&self) -> Status {
        let transform = &self.transform;
        match self.ending {
            Some(Ending { error: Some(_), .. }) => Status::Failed,
            _ if !self.queue.is_empty() => Status::Aborted,
            _ if transform.failure().is_some() || transform.has_failed() => Status::Failed,
            _ if !transform.client_has_all() => Status::Aborted,
            _ if transform.seen().malformed => Status::Failed,
            _ => Status::Completed,
        }
    }

    /// Ends the attempt by its verdict, if there is one, though the provider has not ended the answer.
    fn settle(&mut self) {
        if self.ending.is_none()
            && let Some(ending) = self.verdict()
        {
            self.end(ending);
        }
    }

    /// Reads the rest of the answer, for its usage.
    async fn drain(&mut self) {
        while self.ending.is_none() {
            std::future::poll_fn(|cx| self.poll_upstream(cx)).await;
            self.queue.clear();
        }
    }
}

/// Whether the beginning of an event says that it is an error; all but its last `new` bytes were asked before.
fn says_error(event: &[u8], new: usize) -> bool {
    /// No name of an event stands farther behind.
    const HEAD: usize = 256;
    const FIELD: &[u8] = b"\"error\"";
    /// What follows the field may tell that there is none: Responses that go well have the field too.
    const NULL: &[u8] = b"null";
    let names_error = |line: &[u8]| {
        let name = line.strip_prefix(b"event:").map(<[u8]>::trim_ascii);
        line.starts_with(b"error:") || name == Some(b"error")
    };
    let mut head = event[..event.len().min(HEAD)].split(|byte| matches!(byte, b'\n' | b'\r'));
    // The field may have been cut.
    let searched = &event[event.len().saturating_sub(new + 2 * FIELD.len())..];
    let is_error = |at: usize| {
        let rest = searched[at + FIELD.len()..].trim_ascii_start();
        match rest.strip_prefix(b":").map(<[u8]>::trim_ascii_start) {
            Some(value) => !NULL.starts_with(&value[..value.len().min(NULL.len())]),
            None => !rest.is_empty(),
        }
    };
    head.any(names_error) || memmem::find_iter(searched, FIELD).any(is_error)
}

impl Drop for Relay {
    fn drop(&mut self) {
        let Some(mut inner) = self.inner.take() else { return };
        if std::thread::panicking() {
            return;
        }
        let gateway = inner.guard.gateway().clone();
        let mut status = inner.status_for_leaver();
        let told = status != Status::Aborted;
        let mut unread_since = Instant::now();
        match status {
            // At the end of a shutdown it is the gateway that leaves, not the client.
            Status::Aborted if gateway.abandoned().is_cancelled() => {
                inner.guard.blame(ErrorCode::Shutdown);
                status = Status::Failed;
            }
            // It may have left before the answer began.
            Status::Aborted => unread_since = inner.guard.scope().client_left(),
            // The client has its answer; the rest is read only to end the provider's stream.
            _ => inner.guard.client_has_it_all(unread_since),
        }
        let runtime = tokio::runtime::Handle::try_current();
        if inner.ending.is_some() || !gateway.is_patient() || runtime.is_err() {
            if told {
                inner.settle();
            }
            return inner.finish(status);
        }
        gateway.clone().tracker().spawn(async move {
            let ended = tokio::select! {
                biased;
                () = inner.drain() => true,
                () = gateway.patience(unread_since) => false,
            };
            // Past the deadline the attempt counts as cancelled, unless its verdict was certain.
            if !ended && told {
                inner.settle();
            }
            inner.finish(status);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_says_that_it_is_an_error_wherever_it_is_cut() {
        for (event, expected) in [
            (r#"data: {"error":{"message":"no"#, true),
            (r#"data: {"type":"error","message":"no"#, true),
            ("event: error\ndata: {\"message\":\"no", true),
            ("id: 7\r\nevent:error\r\ndata: {", true),
            ("error: {\"message\":\"no", true),
            (r#"data: {"response":{"error" : null,"output":["#, false),
            (r#"data: {"error":nu"#, false),
            (r#"data: {"delta":"event: error \"error\" error:"#, false),
        ] {
            let event = event.as_bytes();
            for cut in 0..=event.len() {
                let (begun, new) = event.split_at(cut);
                let said = says_error(begun, begun.len()) || says_error(event, new.len());
                assert_eq!(said, expected, "{} cut at {cut}", String::from_utf8_lossy(event));
            }
        }
    }
}
