//! Idempotent requests: one answer for each `X-NexusGate-ReqId` of a key.
//!
//! While the first request with an id runs, a second is told to come again; when it has completed, the second is answered
//! from what was kept of the first, in the way it asks. A request that failed or was aborted may be tried again.
//!
//! An answer is found in three places, so that there is no gap: here, from the moment it is finished until its row is in the
//! database; in the database after that; and with Redis the id stays locked for the other replicas in between.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use bytestring::ByteString;
use http::{HeaderMap, HeaderValue, Response, header};
use uuid::Uuid;

use crate::domain::key::ApiKey;
use crate::domain::label::{ApiFormat, RejectReason, Status};
use crate::domain::record::{Call, RequestRecord};
use crate::limit::{Lock, LockGuard};
use crate::store::request_log::{self, LogRow};
use crate::wire::convert::{AnswerContext, answer_to_stream, convert_answer};

use super::Gateway;
use super::body::GatewayBody;
use super::dispatch::Job;
use super::finish::FinishGuard;
use super::reading::fold;
use super::refusal::Refusal;

const HEADER: &str = "x-nexusgate-reqid";
/// The longest id: what fits the reference system's column.
const MAX_LENGTH: usize = 127;
/// How soon it is worth asking again for a running request.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// How long a finished answer is kept here at least, and how many at most.
const KEPT_FOR: Duration = Duration::from_secs(2);
const MAX_KEPT: usize = 10_000;

/// The id of the request, if it carries one.
///
/// # Errors
/// A refusal when it is too long or has characters it must not have.
pub(super) fn request_id(headers: &HeaderMap) -> Result<Option<String>, Refusal> {
    let Some(value) = headers.get(HEADER) else { return Ok(None) };
    let valid = |byte: &u8| byte.is_ascii_alphanumeric() || b"_.:/-".contains(byte);
    let bytes = value.as_bytes();
    if bytes.is_empty() || bytes.len() > MAX_LENGTH || !bytes.iter().all(valid) {
        let message =
            format!("`X-NexusGate-ReqId` must be 1 to {MAX_LENGTH} characters of A-Z a-z 0-9 _ . : / -.");
        return Err(Refusal::new(RejectReason::InvalidRequest, message));
    }
    Ok(value.to_str().ok().map(str::to_owned))
}

type IdKey = (i64, Call, String);

/// Which ids are taken, and the answers that are not in the database yet.
#[derive(Default)]
pub(super) struct Ids(Mutex<HashMap<IdKey, State>>);

enum State {
    Running,
    Finished(Finished),
}

struct Finished {
    answer: Kept,
    at: Instant,
    /// Keeps the other replicas away until the row is where they can see it.
    _lock: Option<LockGuard>,
}

/// What was kept of an answer.
#[derive(Clone)]
struct Kept {
    id: Uuid,
    format: Option<ApiFormat>,
    stream: bool,
    body: Option<Bytes>,
}

/// What an id stands for.
pub(super) enum Found {
    /// Nobody has it: the request may run, and holds it meanwhile.
    Free(Claim),
    Answered(Stored),
}

/// An answer that was given before.
pub(super) struct Stored(Kept);

/// An id that is taken by a running request; free again when dropped.
pub(super) struct Claim {
    ids: Arc<Ids>,
    key: Option<IdKey>,
    lock: Option<LockGuard>,
}

impl Ids {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<IdKey, State>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets answers whose rows are in the database (`all_written`), and the oldest past the maximum.
    pub(super) fn sweep(&self, all_written: bool) {
        let mut ids = self.lock();
        if all_written {
            ids.retain(
                |_, state| !matches!(state, State::Finished(finished) if finished.at.elapsed() > KEPT_FOR),
            );
        }
        if ids.len() > MAX_KEPT {
            let mut ages: Vec<Instant> = (ids.values())
                .filter_map(|state| match state {
                    State::Finished(finished) => Some(finished.at),
                    State::Running => None,
                })
                .collect();
            ages.sort_unstable();
            let surplus = ids.len() - MAX_KEPT;
            if let Some(limit) = ages.get(surplus.min(ages.len()).saturating_sub(1)).copied() {
                ids.retain(|_, state| !matches!(state, State::Finished(finished) if finished.at <= limit));
            }
        }
    }
}

impl Claim {
    pub(super) fn request_id(&self) -> &str {
        self.key.as_ref().map_or("", |(_, _, id)| id)
    }

    /// The request ended: a completed one is kept, any other leaves the id free.
    pub(super) fn finish(mut self, record: &RequestRecord) {
        if record.status != Status::Completed {
            return;
        }
        let Some(key) = self.key.take() else { return };
        let format = match record.call {
            Call::Completion(format) => Some(format),
            Call::Embedding => None,
        };
        let body = record.response_body.clone();
        let answer = Kept { id: record.id, format, stream: record.stream, body };
        let finished = Finished { answer, at: Instant::now(), _lock: self.lock.take() };
        self.ids.lock().insert(key, State::Finished(finished));
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if let Some(key) = self.key.take() {
            self.ids.lock().remove(&key);
        }
    }
}

impl Gateway {
    /// Finds out what `request_id` stands for, and takes it when it is free.
    ///
    /// # Errors
    /// A refusal with 409 while a request with this id runs, here or in another replica.
    pub(super) async fn claim(&self, call: Call, key: &ApiKey, request_id: String) -> Result<Found, Refusal> {
        // Formats share their ids: the same request may be repeated in another one.
        let family = if call == Call::Embedding { call } else { Call::Completion(ApiFormat::OpenAiChat) };
        let id_key = (key.id, family, request_id);
        let mut claim = {
            let mut ids = self.ids().lock();
            match ids.get(&id_key) {
                Some(State::Running) => return Err(busy()),
                Some(State::Finished(finished)) => {
                    return Ok(Found::Answered(Stored(finished.answer.clone())));
                }
                None => {}
            }
            ids.insert(id_key.clone(), State::Running);
            Claim { ids: self.ids().clone(), key: Some(id_key.clone()), lock: None }
        };
        if let Some(coordination) = self.coordination() {
            claim.lock = match coordination.lock(key.id, &id_key.2).await {
                Lock::Held(guard) => Some(guard),
                Lock::Busy => return Err(busy()),
                // Without Redis the lock within this process has to do.
                Lock::Unavailable => None,
            };
        }
        match self.stored(call, key.id, &id_key.2).await {
            Some(row) => Ok(Found::Answered(Stored(row.into()))),
            None => Ok(Found::Free(claim)),
        }
    }

    /// The log row that completed this id. When the database does not answer, the request runs: its answer matters more
    /// than the chance that it was given before.
    async fn stored(&self, call: Call, key_id: i64, request_id: &str) -> Option<LogRow> {
        // What an earlier process left in the journal may be the very row.
        self.replayed().await;
        let found = request_log::find_by_request_id(self.database(), call.table(), key_id, request_id).await;
        found.unwrap_or_else(|error| {
            tracing::warn!(%error, "a request id could not be looked up");
            None
        })
    }

    /// Answers from what was kept, as if the provider had just given it.
    pub(super) fn answer_again(
        &self,
        job: &Job,
        mut guard: Box<FinishGuard>,
        stored: Stored,
    ) -> Response<GatewayBody> {
        let Stored(kept) = stored;
        guard.answered_from(kept.id);
        let Some(body) = render(job, &kept) else {
            let message = "The request with this id has completed, but its answer was not kept.";
            guard.blame("answer_not_kept");
            guard.finish(Status::Failed);
            let mut refusal = Refusal::new(RejectReason::InFlightDuplicate, message);
            refusal.error = refusal.error.with_code("answer_not_kept");
            let mut response = refusal.into_response(job.call);
            // It was accepted, so it is counted as such.
            response.extensions_mut().clear();
            return response;
        };
        guard.answered(&body);
        let mut response = Response::new(GatewayBody::answer(body, guard, Status::CacheHit));
        let content_type = if job.stream { "text/event-stream; charset=utf-8" } else { "application/json" };
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        headers.insert("x-cache", HeaderValue::from_static("HIT"));
        if let Ok(id) = HeaderValue::from_str(&kept.id.to_string()) {
            headers.insert("x-nexusgate-source", id);
        }
        response
    }
}

impl From<LogRow> for Kept {
    fn from(row: LogRow) -> Self {
        Self {
            id: row.id,
            format: row.api_format.as_deref().and_then(ApiFormat::parse),
            stream: row.stream,
            body: row.response_body.map(ByteString::into_bytes),
        }
    }
}

fn busy() -> Refusal {
    let message = "A request with this `X-NexusGate-ReqId` is still running.";
    Refusal::new(RejectReason::InFlightDuplicate, message).with_retry_after(RETRY_AFTER)
}

/// The kept answer in the format, and in the way, that is asked for now.
fn render(job: &Job, kept: &Kept) -> Option<Bytes> {
    let body = kept.body.clone()?;
    let (Call::Completion(asked), Some(format)) = (job.call, kept.format) else { return Some(body) };
    // What a stream left behind begins with an event; a whole answer with a brace.
    let streamed = kept.stream && !body.trim_ascii_start().starts_with(b"{");
    let include_usage = job.head.include_usage;
    if asked == format && streamed == job.stream && (!streamed || asked != ApiFormat::OpenAiChat) {
        return Some(body);
    }
    let mut answer = if streamed { fold(format, &body)? } else { body };
    if asked != format {
        let context = AnswerContext::new(asked, &job.body, &job.head.model, &kept.id.simple().to_string(), 0);
        answer = convert_answer(format, asked, &answer, &context).ok()?.into();
    }
    if !job.stream {
        return Some(answer);
    }
    let mut events = BytesMut::new();
    answer_to_stream(asked, &answer, include_usage, &mut events).ok()?;
    Some(events.freeze())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_short_and_plain() {
        let check = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(HEADER, HeaderValue::from_str(text).expect("header"));
            request_id(&headers)
        };
        assert!(matches!(check("job-1:a/b_c.d"), Ok(Some(_))));
        assert!(check(&"x".repeat(127)).is_ok());
        for wrong in ["", "with space", "ü", &"x".repeat(128)] {
            let mut headers = HeaderMap::new();
            headers.insert(HEADER, HeaderValue::from_bytes(wrong.as_bytes()).expect("header"));
            assert!(request_id(&headers).is_err(), "{wrong}");
        }
        assert!(matches!(request_id(&HeaderMap::new()), Ok(None)));
    }
}
