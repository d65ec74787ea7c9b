//! The one place where a request ends.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use uuid::Uuid;

use crate::domain::failure::ErrorCode;
use crate::domain::key::ApiKey;
use crate::domain::label::{FinishReason, LabelValue, Status};
use crate::domain::model::Target;
use crate::domain::record::RequestRecord;
use crate::domain::usage::{Cost, Usage};
use crate::telemetry::events::RequestFinished;
use crate::telemetry::series::{CallSeries, UpstreamSeries};
use crate::wire::guess::tokens_of_json;

use super::Gateway;
use super::dedup::Claim;
use super::dispatch::Job;
use super::scope::RequestScope;

/// An accepted request in flight. Whatever happens to it, its record is finished exactly once: by
/// [`finish`](Self::finish), or otherwise when this is dropped.
pub(super) struct FinishGuard {
    gateway: Gateway,
    scope: Arc<RequestScope>,
    record: RequestRecord,
    /// Those of the provider that was called last; at first, of the one that will be called first.
    series: CallSeries,
    /// The provider that `series` belong to.
    provider: LabelValue,
    /// The answer so far, for the request log; `None`: it does not get there. Copied, because a small part of a stream may
    /// lie in a large buffer, with parts of other streams.
    answer: Option<Vec<u8>>,
    /// The request of a key with a limit of tokens, which may have to be guessed at the end.
    request: Option<Bytes>,
    /// A guess at the tokens of an answer whose provider has not reported them all.
    guessed: u64,
    /// Request fields that the provider's format could not express.
    dropped: Vec<String>,
    /// Time until the client had the whole answer, if that was before the request ended.
    answered_after: Option<Duration>,
    /// Held while a request with a request id runs.
    claim: Option<Claim>,
    finished: bool,
}

/// Larger answers are not kept in the request log: they would be held in memory until their end.
const MAX_LOGGED_ANSWER: usize = 4 << 20;

impl FinishGuard {
    /// Accepts a request. Its series exist from now on: those of its first target.
    pub(super) fn accept(
        gateway: &Gateway,
        scope: Arc<RequestScope>,
        key: Arc<ApiKey>,
        job: &Job,
    ) -> Box<Self> {
        let first = &job.targets[0];
        let model = first.system_name.clone();
        let provider = first.provider.name.clone();
        let series = gateway.telemetry().call_series(scope.call, &model, &provider, &key.comment);
        let overhead = scope.arrived.elapsed().saturating_sub(scope.client_wait());
        let id = Uuid::now_v7();
        let request = key.limits.tpm.is_some().then(|| job.body.clone());
        // Allocated first, so that the guard is built in place and not copied.
        let room = Box::new_uninit();
        let guard = Self {
            gateway: gateway.clone(),
            record: RequestRecord {
                id,
                call: scope.call,
                key,
                model,
                target: None,
                status: Status::Failed,
                stream: job.stream,
                usage: Usage::default(),
                cost: Cost::default(),
                spent: None,
                finish_reason: None,
                error: None,
                started_at: scope.arrived_at,
                duration: Duration::ZERO,
                ttft: None,
                longest_stall: None,
                overhead,
                request_id: None,
                source: None,
                request_body: gateway.logs_payloads().then(|| job.body.clone()),
                response_body: None,
            },
            series,
            provider,
            scope,
            answer: gateway.logs_payloads().then(Vec::new),
            request,
            guessed: 0,
            dropped: Vec::new(),
            answered_after: None,
            claim: None,
            finished: false,
        };
        Box::write(room, guard)
    }

    pub(super) fn gateway(&self) -> &Gateway {
        &self.gateway
    }

    pub(super) fn scope(&self) -> &Arc<RequestScope> {
        &self.scope
    }

    pub(super) fn record(&self) -> &RequestRecord {
        &self.record
    }

    /// The request is being sent to `target`. Usage that the previous attempt reported is still charged. The series of its
    /// provider exist from now on, so that what it will add to them is seen as an increase.
    pub(super) fn tried(&mut self, target: &Arc<Target>) {
        let provider = &target.provider.name;
        if *provider != self.provider {
            let record = &self.record;
            let telemetry = self.gateway.telemetry();
            self.series = telemetry.call_series(record.call, &record.model, provider, &record.key.comment);
            self.provider = provider.clone();
        }
        let before = self.record.target.replace(target.clone());
        // It belongs to the previous attempt; this one will set its own if it fails.
        self.record.error = None;
        if self.record.usage.is_known() {
            let usage = std::mem::take(&mut self.record.usage);
            let spent = self.record.spent.get_or_insert_default();
            spent.usage += usage;
            spent.cost += before.map_or_else(Cost::default, |target| target.price.cost(&usage));
        }
    }

    /// The series of calls to the provider that is being tried.
    pub(super) fn upstream_series(&self) -> &Arc<UpstreamSeries> {
        self.series.upstream()
    }

    /// Takes in the usage and the finish reason that the provider has reported so far.
    pub(super) fn observed(&mut self, usage: &Usage, finish_reason: Option<FinishReason>) {
        self.record.usage.merge(usage);
        self.record.finish_reason = finish_reason.or(self.record.finish_reason);
    }

    /// Whether anything depends on a guess at tokens.
    pub(super) fn may_guess(&self) -> bool {
        self.request.is_some()
    }

    /// The answer, whose provider has not reported all of its tokens, has about so many.
    pub(super) fn guessed(&mut self, tokens: u64) {
        self.guessed = tokens;
    }

    /// The first content token was forwarded now.
    pub(super) fn first_token(&mut self) {
        if self.record.ttft.is_none() {
            self.record.ttft = Some(self.scope.arrived.elapsed());
        }
    }

    /// The provider was silent for `gap` in the middle of its stream. A client that already has its whole answer is not
    /// waiting, so the gap does not count.
    pub(super) fn stalled(&mut self, gap: Duration) {
        if self.answered_after.is_some() {
            return;
        }
        self.record.longest_stall = Some(self.record.longest_stall.map_or(gap, |longest| longest.max(gap)));
    }

    /// The gateway itself was at work for `time`.
    pub(super) fn worked(&mut self, time: Duration) {
        self.record.overhead += time;
    }

    /// Puts a part of the answer aside for the request log.
    pub(super) fn answered(&mut self, part: &[u8]) {
        let Some(answer) = &mut self.answer else { return };
        if answer.len() + part.len() > MAX_LOGGED_ANSWER {
            self.answer = None;
        } else {
            answer.extend_from_slice(part);
        }
    }

    /// Sets the error code for the case that the request fails.
    pub(super) fn blame(&mut self, code: ErrorCode) {
        self.record.error = Some(code);
    }

    /// Fields of the request were left out for the provider that is being tried.
    pub(super) fn dropped(&mut self, names: Vec<String>) {
        if !names.is_empty() {
            tracing::info!(id = %self.record.id, fields = names.join(", "), "fields were dropped in conversion");
        }
        self.dropped = names;
    }

    pub(super) fn take_dropped(&mut self) -> Vec<String> {
        std::mem::take(&mut self.dropped)
    }

    /// The request carries a request id, which is taken until it ends.
    pub(super) fn holds(&mut self, claim: Claim) {
        self.record.request_id = Some(claim.request_id().to_owned());
        self.claim = Some(claim);
    }

    /// It was answered from the log row `source`.
    pub(super) fn answered_from(&mut self, source: Uuid) {
        self.record.source = Some(source);
    }

    /// The client has had the whole answer since `at`, though the provider has not ended it yet.
    pub(super) fn client_has_it_all(&mut self, at: Instant) {
        self.answered_after.get_or_insert(at.saturating_duration_since(self.scope.arrived));
    }

    /// Ends the request. A failure after the client left is an abort: the client left first.
    pub(super) fn finish(mut self: Box<Self>, status: Status) {
        self.end(status);
    }

    fn end(&mut self, status: Status) {
        if std::mem::replace(&mut self.finished, true) || !self.scope.claim() {
            return;
        }
        let record = &mut self.record;
        record.status = match status {
            Status::Failed if self.scope.has_client_left() => Status::Aborted,
            status => status,
        };
        if record.status == Status::Completed {
            record.error = None;
        }
        record.duration = self.answered_after.unwrap_or_else(|| self.scope.arrived.elapsed());
        record.cost = match &record.target {
            Some(target) => target.price.cost(&record.usage),
            None => Cost::default(),
        };
        record.response_body = self.answer.take().filter(|answer| !answer.is_empty()).map(Bytes::from);
        let gateway = &self.gateway;
        RequestFinished { telemetry: gateway.telemetry(), record, series: &self.series }.emit();
        gateway
            .limiter()
            .charge(&record.key, tokens_to_charge(record, self.request.as_deref(), self.guessed));
        gateway.log(record);
        // After the log has it: the next request with this id then finds the answer in one place or the other.
        if let Some(claim) = self.claim.take() {
            claim.finish(record);
        }
    }
}

impl Drop for FinishGuard {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        if std::thread::panicking() {
            self.blame(ErrorCode::Panic);
            self.end(Status::Failed);
        } else if self.gateway.abandoned().is_cancelled() {
            self.blame(ErrorCode::Shutdown);
            self.end(Status::Failed);
        } else {
            self.end(Status::Aborted);
        }
    }
}

/// The tokens that the limit of the request's key is charged with: those that were reported, and a guess at the others.
/// Otherwise a client that leaves its streams early, or a provider that counts nothing, would get past the limit.
fn tokens_to_charge(record: &RequestRecord, request: Option<&[u8]>, guessed: u64) -> u64 {
    let reported = record.total_usage().total();
    // A provider that was at work when its client left has read the prompt, and maybe written half of an answer.
    let was_at_work = record.status == Status::Aborted && record.target.is_some() && record.error.is_none();
    // A failure that reports zeros has cost nothing.
    let has_begun = record.status == Status::Completed
        || record.ttft.is_some()
        || record.usage.total() > 0
        || was_at_work;
    let Some(request) = request.filter(|_| has_begun) else { return reported };
    // No prompt has 0 tokens: some providers say so at first, and correct it at the end of the stream.
    let prompt = if record.usage.prompt.unwrap_or(0) == 0 { tokens_of_json(request) } else { 0 };
    // Of an answer that was cut off, Anthropic has reported its first tokens.
    let completion = guessed.saturating_sub(record.usage.completion.unwrap_or(0));
    reported.saturating_add(prompt).saturating_add(completion)
}
