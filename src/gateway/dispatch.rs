//! Trying one target after the other until one answers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use rand::RngExt as _;
use uuid::Uuid;

use crate::domain::failure::ErrorCode;
use crate::domain::label::{Outcome, Status};
use crate::domain::model::Target;
use crate::domain::record::Call;
use crate::telemetry::events::FailedOver;
use crate::wire::error::ApiError;
use crate::wire::head::RequestHead;

use super::Gateway;
use super::body::GatewayBody;
use super::exchange::{Admitted, Answer, EVENT_STREAM};
use super::failure::{Failure, UpstreamAnswer};
use super::finish::FinishGuard;
use super::refusal::error_response;
use super::relay::Relay;
use super::transform::Transform;

/// Providers called for one request, at most.
const MAX_PROVIDERS: usize = 3;

/// The wait before a retry at the same provider; jittered by half. Short, because the caller is waiting.
const RETRY_BACKOFF: Duration = Duration::from_millis(250);

/// The longest wait that an upstream may ask for; beyond it the caller gets the error instead.
const MAX_RETRY_WAIT: Duration = Duration::from_secs(2);

/// Proxies must not keep a stream.
pub(super) const NO_CACHE: HeaderValue = HeaderValue::from_static("no-cache");

/// Tells the caller which provider answered.
static PROVIDER_HEADER: HeaderName = HeaderName::from_static("x-nexusgate-provider");
/// Names the fields of the request that the provider's format could not express.
static DROPPED_HEADER: HeaderName = HeaderName::from_static("x-nexusgate-dropped");
/// Tells the caller the id of the request in the log.
static ID_HEADER: HeaderName = HeaderName::from_static("x-nexusgate-id");

/// An accepted request.
pub(super) struct Job {
    pub(super) call: Call,
    pub(super) head: RequestHead,
    /// As the client sent them.
    pub(super) headers: HeaderMap,
    /// As the client sent it.
    pub(super) body: Bytes,
    pub(super) stream: bool,
    /// In the order to try them; never empty.
    pub(super) targets: Vec<Arc<Target>>,
}

impl Gateway {
    /// Runs an accepted request to the head of its answer.
    pub(super) async fn dispatch(self, job: Job, mut guard: Box<FinishGuard>) -> Response<GatewayBody> {
        match self.try_targets(&job, &mut guard).await {
            Ok((answer, target)) => deliver(&job, answer, &target, guard),
            Err(failure) => give_up(&job, failure, guard),
        }
    }

    async fn try_targets(
        &self,
        job: &Job,
        guard: &mut FinishGuard,
    ) -> Result<(Answer, Arc<Target>), Failure> {
        let mut tried = Tried::default();
        // When every breaker is open, one provider is tried nevertheless: a refusal would be no better.
        for last_resort in [false, true] {
            // The last time only providers without room are passed over.
            tried.passed_over = false;
            for target in &job.targets {
                let force = last_resort && tried.last.is_none();
                let moved = tried.last.as_ref().map(|(target, failure)| self.failed_over(target, failure));
                match self.attempt(job, target, force, moved, guard).await {
                    None => {
                        tried.passed_over = true;
                        continue;
                    }
                    Some(Ok(answer)) => return Ok((answer, target.clone())),
                    Some(Err(failure)) => tried.add(target, failure, guard),
                }
                if tried.is_final() || guard.scope().has_client_left() {
                    break;
                }
            }
            if tried.last.is_some() || !tried.passed_over || guard.scope().has_client_left() {
                break;
            }
        }
        // No provider is left: the last one gets a retry.
        if let Some((target, failure)) = &tried.last
            && let Some(wait) = retry_wait(failure)
            && !guard.scope().has_client_left()
        {
            let target = *target;
            tokio::time::sleep(wait).await;
            if !guard.scope().has_client_left() {
                // A breaker that was closed when the request came, and has opened since, does not take its retry away.
                match self.attempt(job, target, !failure.past_breaker, None, guard).await {
                    None => {}
                    Some(Ok(answer)) => return Ok((answer, target.clone())),
                    Some(Err(failure)) => tried.add(target, failure, guard),
                }
            }
        }
        Err(tried.into_failure())
    }

    /// Calls `target`, and at once a second time when only a stale connection failed. `None`: its breaker is open, unless
    /// `force`, or it has no room.
    async fn attempt(
        &self,
        job: &Job,
        target: &Arc<Target>,
        force: bool,
        mut moved: Option<FailedOver<'_>>,
        guard: &mut FinishGuard,
    ) -> Option<Result<Answer, Failure>> {
        let mut stale = None;
        loop {
            let since = Instant::now();
            let Some(permit) = self.health().admit(&target.provider, since, force) else { return stale };
            let past_breaker = force || permit.is_probe();
            let again = stale.is_some();
            let admitted = Admitted { permit, since, moved: moved.take(), fresh: again };
            match self.exchange(job, target, admitted, guard).await {
                Err(failure) if failure.stale && !again && !guard.scope().has_client_left() => {
                    stale = Some(Err(failure))
                }
                result => return Some(result.map_err(|failure| Failure { past_breaker, ..failure })),
            }
        }
    }

    fn failed_over<'a>(&'a self, target: &'a Target, failure: &Failure) -> FailedOver<'a> {
        FailedOver { telemetry: self.telemetry(), target, outcome: failure.outcome }
    }
}

/// The failures of the targets tried so far.
#[derive(Default)]
struct Tried<'a> {
    /// Targets whose providers were called.
    called: usize,
    /// The last provider called, with its failure.
    last: Option<(&'a Arc<Target>, Failure)>,
    /// The last error answer from any of them.
    answer: Option<(Box<UpstreamAnswer>, &'a Arc<Target>)>,
    /// A target whose format cannot express the request. Nothing was sent, so any real answer is worth more to the
    /// client.
    unsupported: Option<Failure>,
    /// Whether there are providers that were not asked now, and might take the request at another time.
    passed_over: bool,
}

impl<'a> Tried<'a> {
    fn add(&mut self, target: &'a Arc<Target>, mut failure: Failure, guard: &mut FinishGuard) {
        if !failure.sent {
            self.unsupported = Some(failure);
            return;
        }
        self.called += 1;
        guard.blame(failure.code);
        if let Some(answer) = failure.answer.take() {
            self.answer = Some((answer, target));
        }
        self.last = Some((target, failure));
    }

    /// Whether no other provider would do better, or enough have been called.
    fn is_final(&self) -> bool {
        self.called >= MAX_PROVIDERS || self.last.as_ref().is_some_and(|(_, failure)| !failure.retriable)
    }

    fn into_failure(self) -> Failure {
        let Some((_, mut failure)) = self.last else {
            let never = self.unsupported.filter(|_| !self.passed_over);
            return never.unwrap_or_else(Failure::no_provider);
        };
        if let Some((answer, target)) = self.answer {
            failure.answer = Some(answer);
            failure.answered_by = Some(target.clone());
        }
        failure
    }
}

/// How long to wait before a retry at the same provider; `None`: it would not help.
fn retry_wait(failure: &Failure) -> Option<Duration> {
    // A provider that timed out or sent nonsense has used its time, and maybe the caller's money.
    let hopeful = failure.retriable && !matches!(failure.outcome, Outcome::Timeout | Outcome::Protocol);
    if !hopeful {
        return None;
    }
    match failure.retry_after {
        Some(asked) => (asked <= MAX_RETRY_WAIT).then_some(asked),
        None => Some(RETRY_BACKOFF.mul_f64(rand::rng().random_range(0.5..1.5))),
    }
}

/// Starts the answer on its way to the client.
fn deliver(job: &Job, answer: Answer, target: &Target, mut guard: Box<FinishGuard>) -> Response<GatewayBody> {
    let working = Instant::now();
    let id = guard.record().id;
    let dropped = guard.take_dropped();
    let mut response = match answer {
        Answer::Stream { head, first, upstream, plan, attempt } => {
            let format = match job.call {
                Call::Completion(format) => format,
                Call::Embedding => target.provider.kind.chat_format(),
            };
            let converts = plan.context().is_some();
            guard.worked(working.elapsed());
            let relay = Relay::new(upstream, first, Transform::new(plan), guard, attempt, format);
            let mut response = Response::from_parts(head, GatewayBody::relay(relay));
            let headers = response.headers_mut();
            headers.entry(header::CACHE_CONTROL).or_insert(NO_CACHE);
            if converts {
                headers.insert(header::CONTENT_TYPE, EVENT_STREAM);
            }
            response
        }
        Answer::Whole { head, body } => {
            guard.answered(&body);
            guard.worked(working.elapsed());
            let mut response =
                Response::from_parts(head, GatewayBody::answer(body, guard, Status::Completed));
            let headers = response.headers_mut();
            if headers.get(header::CONTENT_TYPE) == Some(&EVENT_STREAM) {
                headers.entry(header::CACHE_CONTROL).or_insert(NO_CACHE);
            }
            response
        }
    };
    let headers = response.headers_mut();
    if !dropped.is_empty()
        && let Ok(names) = HeaderValue::from_str(&dropped.join(", "))
    {
        headers.insert(DROPPED_HEADER.clone(), names);
    }
    name_answer(headers, id, Some(target));
    response
}

/// Tells the caller the request's id in the log, and the provider that answered.
pub(super) fn name_answer(headers: &mut HeaderMap, id: Uuid, target: Option<&Target>) {
    if let Some(target) = target
        && let Ok(provider) = HeaderValue::from_str(target.provider.name.as_str())
    {
        headers.insert(PROVIDER_HEADER.clone(), provider);
    }
    if let Ok(id) = HeaderValue::from_str(id.hyphenated().encode_lower(&mut [0; 36])) {
        headers.insert(ID_HEADER.clone(), id);
    }
}

/// No provider succeeded: the client gets the last error answer of an upstream, or the gateway's own error.
fn give_up(job: &Job, failure: Failure, mut guard: Box<FinishGuard>) -> Response<GatewayBody> {
    guard.blame(failure.code);
    let answered_by = failure.answered_by.clone();
    let mut response = match failure.answer {
        Some(answer) => answer.into_response(job.call),
        None => {
            let no_provider = failure.code == ErrorCode::NoProviderAvailable;
            let timeout = failure.outcome == Outcome::Timeout;
            let status = match (timeout, no_provider) {
                (_, true) => StatusCode::SERVICE_UNAVAILABLE,
                (true, _) => StatusCode::GATEWAY_TIMEOUT,
                _ => StatusCode::BAD_GATEWAY,
            };
            let message = if no_provider {
                "Every provider of this model is at its limit of concurrent requests; try again."
            } else if timeout {
                "No provider of this model answered in time."
            } else {
                "No provider of this model could be reached or gave a usable answer."
            };
            let error = ApiError::new(status.as_u16(), message).with_code("all_providers_failed");
            let mut response = error_response(job.call, &error);
            if no_provider {
                response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            }
            response
        }
    };
    name_answer(response.headers_mut(), guard.record().id, answered_by.as_deref());
    if let Some(bytes) = response.body().bytes() {
        guard.answered(bytes);
    }
    guard.finish(Status::Failed);
    response
}
