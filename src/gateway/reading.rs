//! Judging a provider's successful answer, and rendering it as the client asked: whole or as a stream, whichever way
//! the provider chose.

use bytes::{Bytes, BytesMut};
use http::response::Parts;
use http::{Response, header};

use crate::domain::label::{ApiFormat, Outcome};
use crate::domain::model::Target;
use crate::domain::record::Call;
use crate::wire::answer::{Observed, observe_answer};
use crate::wire::convert::failure::is_named_error;
use crate::wire::convert::surrogates::read_lossy;
use crate::wire::convert::{AnswerContext, answer_to_stream, convert_answer, stream_to_answer};
use crate::wire::error::{ApiError, parse_error};
use crate::wire::sse::SseScanner;
use crate::wire::watch::StreamWatcher;

use super::dispatch::Job;
use super::exchange::{EVENT_STREAM, JSON};
use super::failure::{Failure, UpstreamAnswer};

/// A whole answer.
pub(super) struct Whole {
    /// As the client asked.
    pub(super) body: Bytes,
    pub(super) observed: Observed,
    /// As the provider sent it, if it is a completion whose tokens it does not report.
    pub(super) uncounted: Option<Bytes>,
}

/// Reads a whole answer and renders it, under its `head`, as the client asked. A success status whose body reports a
/// failure counts as a failure: the next provider is tried, and if none succeeds, a client of the same format gets this
/// body.
pub(super) fn read_whole(
    job: &Job,
    target: &Target,
    context: Option<&AnswerContext>,
    head: &mut Parts,
    body: Bytes,
) -> Result<Whole, Failure> {
    let protocol = || Failure::new(Outcome::Protocol, true);
    let provider = match job.call {
        Call::Completion(_) => Call::Completion(target.provider.kind.chat_format()),
        Call::Embedding => Call::Embedding,
    };
    let Ok(observed) = observe_answer(provider, &body) else {
        // Some providers (OpenRouter) report errors with the status of a success.
        return Err(reported(&body).map_or_else(protocol, |error| Failure::told(job.call, &error)));
    };
    if observed.failed {
        let mut failure = Failure::told(job.call, &parse_error(200, &body)).costing(&observed.usage);
        if context.is_none() {
            let body = as_asked(job, head, body);
            let head = std::mem::replace(head, Response::new(()).into_parts().0);
            failure.answer = Some(Box::new(UpstreamAnswer { head, body, format: None }));
        }
        return Err(failure);
    }
    let is_counted = observed.usage.completion.is_some() || job.call == Call::Embedding;
    let uncounted = (!is_counted).then(|| body.clone());
    let (Call::Completion(client), Some(context)) = (job.call, context) else {
        return Ok(Whole { body: as_asked(job, head, body), observed, uncounted });
    };
    let Ok(converted) = convert_answer(target.provider.kind.chat_format(), client, &body, context) else {
        return Err(protocol().costing(&observed.usage));
    };
    head.headers.insert(header::CONTENT_TYPE, JSON);
    Ok(Whole { body: as_asked(job, head, converted.into()), observed, uncounted })
}

/// The error in a body that is no answer.
fn reported(body: &[u8]) -> Option<ApiError> {
    let body: serde_json::Value = read_lossy(body).ok()?;
    let error = body.get("error").is_some_and(|error| error.is_object() || error.is_string());
    let is_named = || body.as_object().is_some_and(is_named_error);
    (error || is_named()).then(|| parse_error(200, body.to_string().as_bytes()))
}

/// Turns a whole answer, already in the client's format, into an event stream if one was asked for. It stays whole if
/// it holds something that no stream can express.
fn as_asked(job: &Job, head: &mut Parts, answer: Bytes) -> Bytes {
    let Call::Completion(client) = job.call else { return answer };
    let mut events = BytesMut::new();
    if !job.stream || answer_to_stream(client, &answer, job.head.include_usage, &mut events).is_err() {
        return answer;
    }
    head.headers.insert(header::CONTENT_TYPE, EVENT_STREAM);
    events.freeze()
}

/// The whole answer of a provider that streamed it, in `format`, without being asked to. The failure: it reported an
/// error, or the stream is incomplete or none.
pub(super) fn read_unasked(call: Call, format: ApiFormat, events: &Bytes) -> Result<Bytes, Failure> {
    let mut watcher = StreamWatcher::new(format, false);
    watcher.feed(events.clone());
    watcher.finish();
    let failure = match watcher.failure() {
        Some(error) => Failure::told(call, error),
        None => match fold(format, events) {
            Some(answer) => return Ok(answer),
            None => Failure::new(Outcome::Protocol, true),
        },
    };
    Err(failure.costing(&watcher.seen().usage))
}

/// Assembles the whole answer from an event stream of `format`; `None` if the stream is incomplete or not one.
pub(super) fn fold(format: ApiFormat, events: &Bytes) -> Option<Bytes> {
    let mut read: Vec<(Option<String>, String)> = Vec::new();
    let mut scanner = SseScanner::new();
    scanner.feed(events, |event| read.push((event.event.map(str::to_owned), event.data.to_owned()))).ok()?;
    scanner.finish(|event| read.push((event.event.map(str::to_owned), event.data.to_owned())));
    let events = read.iter().map(|(event, data)| (event.as_deref(), data.as_str()));
    stream_to_answer(format, events).ok().map(Bytes::from)
}

/// The failure of a stream that is over before it began: its first bytes are an error that another provider may not
/// make, or no events of its format. The client has seen nothing yet.
pub(super) fn fails_at_once(call: Call, format: ApiFormat, first: &Bytes) -> Option<Failure> {
    let mut watcher = StreamWatcher::new(format, false);
    watcher.feed(first.clone());
    // The provider may have ended with it, without a blank line.
    watcher.finish();
    let seen = watcher.seen();
    if seen.first_token {
        return None;
    }
    let failure = match watcher.failure() {
        Some(error) => Some(Failure::told(call, error)).filter(|failure| failure.retriable),
        None => seen.malformed.then(|| Failure::new(Outcome::Protocol, true)),
    };
    failure.map(|failure| failure.costing(&seen.usage))
}
