//! Idempotent requests: one answer for each `X-NexusGate-ReqId` of a key.
//!
//! While the first request with an id runs, a second is told to retry later; when the first has completed, the second
//! is answered from its kept answer, in the format and way it asks for. A request that failed or was aborted may be
//! retried.
//!
//! An answer is found in three places, so that there is no gap: here, from the moment it is finished until its row is in the
//! database; in the database after that; and with Redis the id stays locked for the other replicas in between.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use bytestring::ByteString;
use http::{HeaderMap, HeaderValue, Response, header};
use parking_lot::Mutex;
use uuid::Uuid;

use crate::domain::failure::ErrorCode;
use crate::domain::key::ApiKey;
use crate::domain::label::{ApiFormat, LogTable, RejectReason, Status};
use crate::domain::record::{Call, REQUEST_ID_MAX_BYTES, RequestRecord};
use crate::domain::usage::Usage;
use crate::limit::{Lock, LockGuard};
use crate::store::request_log::{self, LogRow};
use crate::wire::convert::{AnswerContext, add_usage, answer_to_stream, convert_answer};

use super::Gateway;
use super::body::GatewayBody;
use super::dispatch::{Job, NO_CACHE, name_answer};
use super::exchange::{EVENT_STREAM, JSON};
use super::finish::FinishGuard;
use super::reading::fold;
use super::refusal::Refusal;

const HEADER: &str = "x-nexusgate-reqid";
/// The `Retry-After` while the first request runs.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// How long a request waits for a database that does not answer, before it runs without a look-up.
const LOOK_UP: Duration = Duration::from_secs(2);
/// How long a finished answer is kept here at least, and the most answers, and bytes of them, that are kept.
const KEPT_FOR: Duration = Duration::from_secs(2);
const MAX_KEPT: usize = 10_000;
const MAX_KEPT_BYTES: usize = 64 << 20;

/// The id of the request, if it carries one.
///
/// # Errors
/// A refusal when it is empty, too long or has invalid characters.
pub(super) fn request_id(headers: &HeaderMap) -> Result<Option<String>, Refusal> {
    let Some(value) = headers.get(HEADER) else { return Ok(None) };
    let valid = |byte: &u8| byte.is_ascii_alphanumeric() || b"_.:/-".contains(byte);
    let bytes = value.as_bytes();
    if bytes.is_empty() || bytes.len() > REQUEST_ID_MAX_BYTES || !bytes.iter().all(valid) {
        let message = format!(
            "`X-NexusGate-ReqId` must be 1 to {REQUEST_ID_MAX_BYTES} characters of A-Z a-z 0-9 _ . : / -."
        );
        return Err(Refusal::new(RejectReason::InvalidRequest, message));
    }
    Ok(value.to_str().ok().map(str::to_owned))
}

type IdKey = (i64, Call, String);

/// The ids that are taken, and the answers that are not in the database yet.
#[derive(Default)]
pub(super) struct Ids(Mutex<HashMap<IdKey, State>>);

enum State {
    Running,
    Finished(Finished),
}

impl State {
    /// The answer for a repeated request.
    fn answer(&self) -> Result<Kept, Refusal> {
        match self {
            Self::Running => Err(busy()),
            Self::Finished(finished) => Ok(finished.answer.clone()),
        }
    }
}

/// Which rows are not in the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unwritten {
    Nothing,
    /// The oldest one has waited for this long.
    For(Duration),
    /// Rows of an earlier process have not been counted yet, so the age of those behind them is not known.
    Unknown,
}

struct Finished {
    answer: Kept,
    at: Instant,
    /// Keeps the id locked for other replicas until they can see the row.
    _lock: Option<LockGuard>,
}

/// The database did not answer.
struct DatabaseAway;

/// A kept answer.
#[derive(Clone)]
struct Kept {
    id: Uuid,
    format: Option<ApiFormat>,
    stream: bool,
    body: Option<Bytes>,
    /// The usage that the provider reported. The body may lack it: a chat stream has it only when its client asks.
    usage: Usage,
}

/// The result of claiming an id.
pub(super) enum Found {
    /// The id is free: the request may run, and holds it meanwhile.
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
    fn lock(&self) -> parking_lot::MutexGuard<'_, HashMap<IdKey, State>> {
        self.0.lock()
    }

    fn known(&self, key: &IdKey) -> Result<Option<Kept>, Refusal> {
        self.lock().get(key).map(State::answer).transpose()
    }

    /// Forgets answers that are already in the database, and the oldest past the maximum.
    pub(super) fn sweep(&self, unwritten: Unwritten) {
        let mut ids = self.lock();
        let written = match unwritten {
            Unwritten::Nothing => Some(KEPT_FOR),
            Unwritten::For(age) => Some(age + KEPT_FOR),
            Unwritten::Unknown => None,
        };
        if let Some(written) = written {
            ids.retain(|_, state| !matches!(state, State::Finished(done) if done.at.elapsed() > written));
        }

        let mut kept: Vec<(Instant, usize)> = (ids.values())
            .filter_map(|state| match state {
                State::Finished(finished) => Some((finished.at, finished.answer.size())),
                State::Running => None,
            })
            .collect();
        // The newest first; the first one past a maximum, and all older ones, are dropped.
        kept.sort_unstable_by(|a, b| b.cmp(a));
        let mut bytes = 0;
        let surplus = kept.iter().enumerate().find(|(before, (_, size))| {
            bytes += size;
            *before >= MAX_KEPT || bytes > MAX_KEPT_BYTES
        });
        if let Some((_, &(limit, _))) = surplus {
            ids.retain(|_, state| !matches!(state, State::Finished(finished) if finished.at <= limit));
        }
    }

    /// Forgets answers that are already in the database, as [`Self::sweep`] does, and when it has all rows, without the
    /// delay that running requests need.
    fn release(&self, unwritten: Unwritten) {
        match unwritten {
            Unwritten::Nothing => self.lock().retain(|_, state| matches!(state, State::Running)),
            Unwritten::For(_) | Unwritten::Unknown => self.sweep(unwritten),
        }
    }
}

impl Kept {
    fn size(&self) -> usize {
        self.body.as_ref().map_or(0, Bytes::len)
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
        let answer = Kept { id: record.id, format, stream: record.stream, body, usage: record.usage };
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
    /// Looks `request_id` up, and claims it when it is free.
    ///
    /// # Errors
    /// A refusal with 409 while a request with this id runs, here or in another replica.
    pub(super) async fn claim(&self, call: Call, key: &ApiKey, request_id: String) -> Result<Found, Refusal> {
        // Formats share their ids: a request may be repeated in another format.
        let family = if call == Call::Embedding { call } else { Call::Completion(ApiFormat::OpenAiChat) };
        let id_key = (key.id, family, request_id);
        let looking = Instant::now();
        if let Some(kept) = self.ids().known(&id_key)? {
            return Ok(Found::Answered(Stored(kept)));
        }
        // Before the id is taken, so that concurrent repeats do not block each other.
        let looked = self.stored(call, key.id, &id_key.2).await;
        if let Ok(Some(row)) = looked {
            return Ok(Found::Answered(Stored(row.into())));
        }
        let mut claim = {
            let mut ids = self.ids().lock();
            if let Some(state) = ids.get(&id_key) {
                return state.answer().map(|kept| Found::Answered(Stored(kept)));
            }
            ids.insert(id_key.clone(), State::Running);
            Claim { ids: self.ids().clone(), key: Some(id_key.clone()), lock: None }
        };
        // A request that ended here since then is known for this long; one in another replica may have come and gone. A
        // database that has just failed would only take its time again.
        let look_again = looked.is_ok() && (self.coordination().is_some() || looking.elapsed() >= KEPT_FOR);
        let mut elsewhere = false;
        if let Some(coordination) = self.coordination() {
            match coordination.lock(call.table(), key.id, &id_key.2).await {
                Lock::Held(guard) => claim.lock = Some(guard),
                Lock::Busy => elsewhere = true,
                // Without Redis the lock within this process has to suffice.
                Lock::Unavailable => {}
            }
        }
        if look_again && let Ok(Some(row)) = self.stored(call, key.id, &id_key.2).await {
            return Ok(Found::Answered(Stored(row.into())));
        }
        // Still locked and no row found: the other request is running, because a completed one keeps its lock until its
        // row is there.
        if elsewhere { Err(busy()) } else { Ok(Found::Free(claim)) }
    }

    /// Frees the ids of finished requests whose rows are in the database. Call it when no request runs any more and the
    /// log has been closed: other replicas find the rows, and need not wait until the locks expire.
    pub fn release_ids(&self) {
        self.ids().release(self.unwritten());
    }

    pub(super) fn unwritten(&self) -> Unwritten {
        let status = self.0.parts.log.status();
        match status.oldest {
            Some(age) => Unwritten::For(age),
            None if LogTable::ALL.iter().all(|table| status.pending(*table) == 0) => Unwritten::Nothing,
            None => Unwritten::Unknown,
        }
    }

    /// The log row that completed this id. When the database does not answer, the request runs: its answer matters more
    /// than the risk of answering twice.
    async fn stored(
        &self,
        call: Call,
        key_id: i64,
        request_id: &str,
    ) -> Result<Option<LogRow>, DatabaseAway> {
        // The row may still be in the journal of an earlier process.
        self.replayed().await;
        let found = request_log::find_by_request_id(self.database(), call.table(), key_id, request_id);
        let away = |error: &dyn fmt::Display| {
            tracing::warn!(%error, "a request id could not be looked up");
            DatabaseAway
        };
        match tokio::time::timeout(LOOK_UP, found).await {
            Ok(found) => found.map_err(|error| away(&error)),
            Err(late) => Err(away(&late)),
        }
    }

    /// Answers from a kept answer, as if the provider had just given it.
    pub(super) fn answer_again(
        &self,
        job: &Job,
        mut guard: Box<FinishGuard>,
        stored: Stored,
    ) -> Response<GatewayBody> {
        let Stored(kept) = stored;
        guard.answered_from(kept.id);
        let id = guard.record().id;
        let Some(body) = render(job, &kept) else {
            let message = "The request with this id has completed, but its answer was not kept.";
            guard.blame(ErrorCode::AnswerNotKept);
            let mut refusal = Refusal::new(RejectReason::InFlightDuplicate, message);
            refusal.error = refusal.error.with_code(ErrorCode::AnswerNotKept.to_string());
            let mut response = refusal.into_response(job.call);
            // The request was accepted, so it must not be counted as a refusal.
            response.extensions_mut().clear();
            name_answer(response.headers_mut(), id, None);
            if let Some(bytes) = response.body().bytes() {
                guard.answered(bytes);
            }
            guard.finish(Status::Failed);
            return response;
        };
        guard.answered(&body);
        let mut response = Response::new(GatewayBody::answer(body, guard, Status::CacheHit));
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, if job.stream { EVENT_STREAM } else { JSON });
        if job.stream {
            headers.insert(header::CACHE_CONTROL, NO_CACHE);
        }
        headers.insert("x-cache", HeaderValue::from_static("HIT"));
        name_answer(headers, id, None);
        if let Ok(id) = HeaderValue::from_str(&kept.id.to_string()) {
            headers.insert("x-nexusgate-source", id);
        }
        response
    }
}

impl From<LogRow> for Kept {
    fn from(row: LogRow) -> Self {
        let tokens = |count: Option<i64>| count.and_then(|count| u64::try_from(count).ok());
        let usage = Usage {
            prompt: tokens(row.prompt_tokens),
            completion: tokens(row.completion_tokens),
            cached: tokens(row.cached_tokens),
            cache_write: tokens(row.cache_write_tokens),
            reasoning: tokens(row.reasoning_tokens),
        };
        Self {
            id: row.id,
            format: row.api_format.as_deref().and_then(ApiFormat::parse),
            stream: row.stream,
            body: row.response_body.map(ByteString::into_bytes),
            usage,
        }
    }
}

fn busy() -> Refusal {
    let message = "A request with this `X-NexusGate-ReqId` is still running.";
    Refusal::new(RejectReason::InFlightDuplicate, message).with_retry_after(RETRY_AFTER)
}

/// The kept answer in the format, whole or streamed, that is requested now.
fn render(job: &Job, kept: &Kept) -> Option<Bytes> {
    let body = kept.body.clone()?;
    let (Call::Completion(asked), Some(format)) = (job.call, kept.format) else { return Some(body) };
    // A kept stream begins with an event; a whole answer with a brace.
    let streamed = kept.stream && !body.trim_ascii_start().starts_with(b"{");
    let include_usage = job.head.include_usage;
    if asked == format && streamed == job.stream && (!streamed || asked != ApiFormat::OpenAiChat) {
        return Some(body);
    }
    let mut answer =
        if streamed { add_usage(format, &fold(format, &body)?, &kept.usage).ok()?.into() } else { body };
    if asked != format {
        let created = kept.id.get_timestamp().map_or(0, |timestamp| timestamp.to_unix().0.cast_signed());
        let context =
            AnswerContext::new(asked, &job.body, &job.head.model, &kept.id.simple().to_string(), created);
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

    /// Ids with their age in seconds and the size of their answer in bytes.
    fn finished(all: impl IntoIterator<Item = (u64, usize)>) -> Ids {
        let ids = Ids::default();
        for (age, size) in all {
            let at = Instant::now().checked_sub(Duration::from_secs(age)).expect("a time");
            let body = Some(vec![b'x'; size].into());
            let usage = Usage::default();
            let answer = Kept { id: Uuid::now_v7(), format: None, stream: false, body, usage };
            let state = State::Finished(Finished { answer, at, _lock: None });
            ids.lock().insert((1, Call::Embedding, age.to_string()), state);
        }
        ids
    }

    fn ages(ids: &Ids) -> Vec<u64> {
        let mut ages: Vec<u64> = ids.lock().keys().map(|(_, _, id)| id.parse().expect("a number")).collect();
        ages.sort_unstable();
        ages
    }

    #[test]
    fn an_answer_is_forgotten_when_its_row_is_written_whatever_else_is_not() {
        let ids = finished([(0, 1), (10, 1), (20, 1), (60, 1)]);
        ids.sweep(Unwritten::For(Duration::from_secs(30)));
        assert_eq!(ages(&ids), [0, 10, 20]);
        ids.sweep(Unwritten::For(Duration::from_millis(400)));
        assert_eq!(ages(&ids), [0]);
        ids.sweep(Unwritten::Nothing);
        assert_eq!(ages(&ids), [0], "it is kept for a moment anyhow");
    }

    #[test]
    fn at_the_end_answers_are_kept_only_for_rows_that_are_not_written() {
        let ids = finished([(0, 1), (10, 1), (60, 1)]);
        ids.lock().insert((1, Call::Embedding, "99".to_owned()), State::Running);
        ids.release(Unwritten::Unknown);
        assert_eq!(ages(&ids), [0, 10, 60, 99]);
        ids.release(Unwritten::For(Duration::from_secs(30)));
        assert_eq!(ages(&ids), [0, 10, 99]);
        ids.release(Unwritten::Nothing);
        assert_eq!(ages(&ids), [99]);
    }

    #[test]
    fn while_nothing_is_written_the_oldest_answers_go() {
        for unwritten in [Unwritten::For(Duration::from_secs(1_000_000)), Unwritten::Unknown] {
            let ids = finished([(1, 40 << 20), (2, 20 << 20), (3, 20 << 20), (4, 1)]);
            ids.lock().insert((1, Call::Embedding, "99".to_owned()), State::Running);
            ids.sweep(unwritten);
            assert_eq!(ages(&ids), [1, 2, 99], "in 64 MiB, and what runs stays: {unwritten:?}");
            let many = u64::try_from(MAX_KEPT).expect("a number") + 5;
            let ids = finished((0..many).map(|age| (age, 0)));
            ids.sweep(unwritten);
            assert_eq!(ages(&ids), (0..many - 5).collect::<Vec<_>>(), "{unwritten:?}");
        }
    }

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
