//! Facts, in the past tense. `emit` writes the metrics and the log line of a fact together; it never blocks, awaits or
//! fails.

use std::time::Duration;

use metrics::Counter;

use crate::domain::label::{LabelValue, LimitType, Outcome, RejectReason, Status, WasteReason};
use crate::domain::model::Target;
use crate::domain::record::{Call, RequestRecord};
use crate::domain::usage::{Cost, Usage};

use super::Telemetry;
use super::series::{CallSeries, CompletionSeries, CostSeries, EmbeddingSeries, ModelSeries, UpstreamSeries};

/// An accepted completion ended.
pub struct CompletionFinished<'a> {
    pub record: &'a RequestRecord,
    pub series: &'a CompletionSeries,
}

impl CompletionFinished<'_> {
    pub fn emit(self) {
        let Self { record, series } = self;
        series.finished[record.status as usize].increment(1);
        log_finished("completion", record);
        if record.status != Status::CacheHit {
            self.count();
        }
    }

    fn count(&self) {
        let Self { record, series } = self;
        let model = &*series.model;
        series.cost.add(record.total_cost());
        count_tokens(model, record);
        if let Some(spent) = &record.spent {
            count_waste(model, spent.usage, spent.cost, WasteReason::Failed);
        }
        match record.status {
            Status::Completed => count_completed(model, record),
            Status::Aborted => count_waste(model, record.usage, record.cost, WasteReason::Aborted),
            Status::Failed => count_waste(model, record.usage, record.cost, WasteReason::Failed),
            Status::CacheHit => {}
        }
        count_gaps(&model.unpriced, &model.usage_missing, record);
    }
}

/// An accepted embedding request ended.
pub struct EmbeddingFinished<'a> {
    pub record: &'a RequestRecord,
    pub series: &'a EmbeddingSeries,
}

impl EmbeddingFinished<'_> {
    pub fn emit(self) {
        let Self { record, series } = self;
        let model = &*series.model;
        series.finished[record.status as usize].increment(1);
        log_finished("embedding", record);
        if record.status == Status::CacheHit {
            return;
        }
        series.cost.add(record.total_cost());
        if let Some(tokens) = record.total_usage().prompt {
            model.tokens.increment(tokens);
        }
        if record.status == Status::Completed {
            model.duration.record(record.duration.as_secs_f64());
        }
        count_gaps(&model.unpriced, &model.usage_missing, record);
    }
}

/// Counts an answer whose price or usage is not known: its cost is missing.
fn count_gaps(unpriced: &Counter, usage_missing: &Counter, record: &RequestRecord) {
    if !record.was_answered() {
        return;
    }
    if record.target.as_ref().is_some_and(|target| !target.price.is_set()) {
        unpriced.increment(1);
    }
    if !record.usage.is_known() {
        usage_missing.increment(1);
    }
}

/// The counters sum the usage of all attempts; the histograms get the size of the last one.
fn count_tokens(model: &ModelSeries, record: &RequestRecord) {
    let usage = record.total_usage();
    if let Some(tokens) = usage.prompt {
        model.tokens_prompt.increment(tokens);
    }
    if let Some(tokens) = usage.completion {
        model.tokens_completion.increment(tokens);
    }
    if let Some(tokens) = record.usage.prompt {
        model.prompt_tokens.record(as_f64(tokens));
    }
    if let Some(tokens) = record.usage.completion {
        model.output_tokens.record(as_f64(tokens));
    }
    for (counter, tokens) in [
        (&model.tokens_cached, usage.cached),
        (&model.tokens_cache_write, usage.cache_write),
        (&model.tokens_reasoning, usage.reasoning),
    ] {
        if let Some(tokens) = tokens.filter(|tokens| *tokens > 0) {
            counter.increment(tokens);
        }
    }
}

fn count_completed(model: &ModelSeries, record: &RequestRecord) {
    model.duration.record(record.duration.as_secs_f64());
    if let Some(reason) = record.finish_reason {
        model.finish_reasons[reason as usize].increment(1);
    }
    let tpot = record.tpot();
    if let Some(ttft) = record.ttft {
        model.ttft.record(ttft.as_secs_f64());
    }
    if let Some(tpot) = tpot {
        model.tpot.record(tpot.as_secs_f64());
    }
    if let Some(stall) = record.longest_stall {
        model.stall.record(stall.as_secs_f64());
    }
    match record.target.as_ref().and_then(|target| within_slo(target, record, tpot)) {
        Some(true) => model.within_slo.increment(1),
        Some(false) => model.missed_slo.increment(1),
        None => {}
    }
}

/// Whether a stream met its model's targets; `None` without a target, or without what it takes to tell.
fn within_slo(target: &Target, record: &RequestRecord, tpot: Option<Duration>) -> Option<bool> {
    let slo = target.slo;
    let ttft = record.ttft.filter(|_| slo.ttft.is_some() || slo.tpot.is_some())?;
    if slo.ttft.is_some_and(|goal| ttft > goal) {
        return Some(false);
    }
    let Some(goal) = slo.tpot else { return Some(true) };
    record.usage.completion?;
    // An answer of one token has no time per further token, so it cannot miss that target.
    Some(tpot.is_none_or(|tpot| tpot <= goal))
}

fn count_waste(model: &ModelSeries, usage: Usage, cost: Cost, reason: WasteReason) {
    model.tokens_wasted[reason as usize].increment(usage.total());
    model.cost_wasted[reason as usize].add(cost.total());
}

impl CostSeries {
    fn add(&self, cost: Cost) {
        self.prompt.add(cost.prompt);
        self.completion.add(cost.completion);
        self.total.add(cost.total());
    }
}

fn log_finished(what: &'static str, record: &RequestRecord) {
    tracing::debug!(
        id = %record.id,
        model = %record.model,
        key = %record.key.comment,
        status = record.status.as_str(),
        error = record.error.map(tracing::field::display),
        duration_ms = record.duration.as_millis(),
        "{what} finished"
    );
}

#[expect(clippy::cast_precision_loss, reason = "token counts stay far below 2^53")]
fn as_f64(count: u64) -> f64 {
    count as f64
}

/// An accepted request ended, whatever its kind.
pub struct RequestFinished<'a> {
    pub telemetry: &'a Telemetry,
    pub record: &'a RequestRecord,
    /// Of the provider that was called last.
    pub series: &'a CallSeries,
}

impl RequestFinished<'_> {
    pub fn emit(self) {
        let Self { telemetry, record, series } = self;
        // Each of up to seven histograms pins the epoch of its samples, which is a memory fence; when it is already
        // pinned, that is only an addition.
        let _pinned = crossbeam_epoch::pin();
        telemetry.audit.counted(record.call.table());
        telemetry.surfaces.overhead(record.call).record(record.overhead.as_secs_f64());
        match series {
            CallSeries::Completion(series) => CompletionFinished { record, series }.emit(),
            CallSeries::Embedding(series) => EmbeddingFinished { record, series }.emit(),
        }
    }
}

/// An inference request was refused before it reached a model.
pub struct RequestRejected<'a> {
    pub telemetry: &'a Telemetry,
    pub reason: RejectReason,
    pub call: Call,
}

impl RequestRejected<'_> {
    pub fn emit(self) {
        self.telemetry.rejected[self.reason as usize].increment(1);
        tracing::debug!(reason = self.reason.as_str(), call = ?self.call, "request rejected");
    }
}

/// Rate-limit rejections were added to the exposed count.
pub struct RateLimitRejectionsExposed<'a> {
    pub telemetry: &'a Telemetry,
    pub comment: &'a LabelValue,
    pub limit_type: LimitType,
    pub count: u64,
}

impl RateLimitRejectionsExposed<'_> {
    pub fn emit(self) {
        self.telemetry.rate_limit_rejections(self.comment)[self.limit_type as usize].increment(self.count);
    }
}

/// An HTTP request was answered.
pub struct HttpRequestFinished<'a> {
    pub telemetry: &'a Telemetry,
    /// The template, never the path.
    pub route: &'a str,
    pub method: &'a http::Method,
    pub code: http::StatusCode,
}

impl HttpRequestFinished<'_> {
    pub fn emit(self) {
        self.telemetry.http_requests.get(self.route, self.method, self.code).increment(1);
    }
}

/// One call to one provider ended.
pub struct AttemptFinished<'a> {
    pub series: &'a UpstreamSeries,
    pub target: &'a Target,
    pub outcome: Outcome,
    /// From sending to the last byte, or to the failure.
    pub duration: Duration,
}

impl AttemptFinished<'_> {
    pub fn emit(self) {
        self.series.attempts[self.outcome as usize].increment(1);
        self.series.duration.record(self.duration.as_secs_f64());
        let (provider, model) = (&self.target.provider.name, &self.target.system_name);
        let duration_ms = self.duration.as_millis();
        match self.outcome {
            Outcome::Ok => {}
            Outcome::Cancelled => {
                tracing::debug!(%provider, %model, duration_ms, "upstream attempt cancelled")
            }
            outcome => {
                let outcome = outcome.as_str();
                tracing::info!(%provider, %model, outcome, duration_ms, "upstream attempt failed");
            }
        }
    }
}

/// A request left one provider for the next.
pub struct FailedOver<'a> {
    pub telemetry: &'a Telemetry,
    /// The target that was left.
    pub target: &'a Target,
    pub outcome: Outcome,
}

impl FailedOver<'_> {
    pub fn emit(self) {
        let series = self.telemetry.upstream_series(self.target);
        series.failovers[self.outcome as usize].increment(1);
    }
}

/// A provider's circuit breaker opened or closed.
pub struct ProviderUpChanged<'a> {
    pub telemetry: &'a Telemetry,
    pub provider: &'a LabelValue,
    pub up: bool,
}

impl ProviderUpChanged<'_> {
    pub fn emit(self) {
        self.telemetry.provider_is_up(self.provider, self.up);
        if self.up {
            tracing::info!(provider = %self.provider, "provider is back");
        } else {
            tracing::warn!(provider = %self.provider, "provider is taken out by its circuit breaker");
        }
    }
}
