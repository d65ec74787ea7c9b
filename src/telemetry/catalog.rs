//! Every metric, declared once: name, type, unit, help, labels and buckets.
//!
//! The doc comment is the help text, the braces are the labels. A label with a type takes its values from that closed
//! enum; a bare one takes a configured name ([`LabelValue`](crate::domain::label::LabelValue)). `docs/METRICS.md` is
//! generated from here, and dashboards and rules are checked against it.

use crate::domain::label::{
    ApiFormat, FinishReason, LimitType, LogTable, ModelType, Outcome, RedisOp, RejectReason, Status,
    WasteReason,
};

use super::surface::Surface;

/// What kind of series a metric is made of.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// A `u64` that only grows.
    Counter,
    /// An `f64` that only grows. The exporter has no such type: it is kept in a gauge and announced as a counter.
    FloatCounter,
    Gauge,
    /// Cumulative buckets with these upper bounds; `+Inf` is added by the exporter.
    Histogram(Buckets),
}

impl Kind {
    /// The word after the name in a `# TYPE` line.
    pub const fn type_name(self) -> &'static str {
        match self {
            Self::Counter | Self::FloatCounter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram(_) => "histogram",
        }
    }
}

/// A named set of bucket bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Buckets {
    /// Seconds of whole requests and first tokens. The reference system's bounds (0.1 … 120), with finer ones below for
    /// cached and small models and coarser ones above for reasoning models. `METRICS_LATENCY_BUCKETS` replaces them.
    Latency,
    /// Seconds that the gateway itself takes: 25 µs to 250 ms.
    Overhead,
    /// Seconds per output token, the bounds of the OpenTelemetry GenAI conventions (`gen_ai.server.time_per_output_token`).
    TimePerToken,
    /// Tokens of one request: powers of four, as the OpenTelemetry GenAI conventions advise (`gen_ai.client.token.usage`).
    Tokens,
    /// Seconds of internal work: rendering, flushing.
    Internal,
}

impl Buckets {
    pub const ALL: &'static [Self] =
        &[Self::Latency, Self::Overhead, Self::TimePerToken, Self::Tokens, Self::Internal];

    /// The default upper bounds, ascending.
    pub const fn bounds(self) -> &'static [f64] {
        match self {
            Self::Latency => {
                &[0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0]
            }
            Self::Overhead => &[
                0.000_025, 0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05,
                0.1, 0.25,
            ],
            Self::TimePerToken => &[0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5],
            Self::Tokens => &[
                1.0,
                4.0,
                16.0,
                64.0,
                256.0,
                1_024.0,
                4_096.0,
                16_384.0,
                65_536.0,
                262_144.0,
                1_048_576.0,
                4_194_304.0,
                16_777_216.0,
                67_108_864.0,
            ],
            Self::Internal => {
                &[0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0]
            }
        }
    }
}

/// What a metric's value counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    Count,
    Bytes,
    Seconds,
    Tokens,
    Usd,
}

impl Unit {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Count => "count",
            Self::Bytes => "bytes",
            Self::Seconds => "seconds",
            Self::Tokens => "tokens",
            Self::Usd => "USD",
        }
    }
}

/// A label of a metric.
#[derive(Debug, Clone, Copy)]
pub struct Label {
    pub name: &'static str,
    /// Every value it can take, when that is a closed set; `None`: configured names.
    pub values: Option<&'static [&'static str]>,
}

/// The declaration of a metric.
#[derive(Debug)]
pub struct Metric {
    pub name: &'static str,
    pub kind: Kind,
    pub unit: Unit,
    pub labels: &'static [Label],
    help: &'static str,
}

impl Metric {
    /// One sentence for `# HELP` and the docs.
    pub fn help(&self) -> &'static str {
        self.help.trim()
    }
}

macro_rules! label {
    ($name:ident) => {
        Label { name: stringify!($name), values: None }
    };
    ($name:ident, $values:ty) => {
        Label { name: stringify!($name), values: Some(<$values>::VALUES) }
    };
}

macro_rules! catalog {
    ($(
        $(#[doc = $help:literal])+
        $ident:ident: $kind:expr, $unit:ident = $name:literal $({ $($label:ident $(: $values:ty)?),+ })?;
    )+) => {
        $(
            $(#[doc = $help])+
            pub static $ident: Metric = Metric {
                name: $name,
                kind: $kind,
                unit: Unit::$unit,
                labels: &[$($(label!($label $(, $values)?)),+)?],
                help: concat!($($help),+),
            };
        )+

        /// Every metric, in the order of the docs.
        pub static ALL: &[&Metric] = &[$(&$ident),+];
    };
}

use Kind::{Counter, FloatCounter, Gauge, Histogram};

catalog! {
    // The reference system's names.

    /// Completion requests that finished, by how they ended.
    COMPLETIONS: Counter, Count = "nexusgate_completions_total" { model, status: Status, api_format: ApiFormat, api_key_comment };
    /// Embedding requests that finished, by how they ended.
    EMBEDDINGS: Counter, Count = "nexusgate_embeddings_total" { model, status: Status, api_key_comment };
    /// Input tokens of completions as providers reported them, cached ones included.
    TOKENS_PROMPT: Counter, Tokens = "nexusgate_tokens_prompt_total" { model };
    /// Output tokens of completions as providers reported them, reasoning included.
    TOKENS_COMPLETION: Counter, Tokens = "nexusgate_tokens_completion_total" { model };
    /// Input tokens of embeddings as providers reported them.
    TOKENS_EMBEDDING: Counter, Tokens = "nexusgate_tokens_embedding_total" { model };
    /// USD spent on input tokens of models with a price; cached tokens at their own price, where the model has one.
    COST_PROMPT: FloatCounter, Usd = "nexusgate_cost_prompt_usd_total" { model, provider, api_key_comment };
    /// USD spent on output tokens of models with a price.
    COST_COMPLETION: FloatCounter, Usd = "nexusgate_cost_completion_usd_total" { model, provider, api_key_comment };
    /// USD spent on input and output tokens of models with a price; the cost of failed attempts at other providers is
    /// added to the provider that answered.
    COST_TOTAL: FloatCounter, Usd = "nexusgate_cost_total_usd_total" { model, provider, api_key_comment };
    /// Seconds from a completion request's arrival to the last byte of its answer; completed requests only.
    COMPLETION_DURATION: Histogram(Buckets::Latency), Seconds = "nexusgate_completion_duration_seconds" { model };
    /// Seconds from a request's arrival to the first content token; completed streams only.
    COMPLETION_TTFT: Histogram(Buckets::Latency), Seconds = "nexusgate_completion_ttft_seconds" { model };
    /// Seconds from an embedding request's arrival to the last byte of its answer; completed requests only.
    EMBEDDING_DURATION: Histogram(Buckets::Latency), Seconds = "nexusgate_embedding_duration_seconds" { model };
    /// API keys that are neither revoked nor expired.
    ACTIVE_API_KEYS: Gauge, Count = "nexusgate_active_api_keys";
    /// Configured providers.
    ACTIVE_PROVIDERS: Gauge, Count = "nexusgate_active_providers";
    /// Configured models, by type; a name offered by several providers counts once for each.
    ACTIVE_MODELS: Gauge, Count = "nexusgate_active_models" { type: ModelType };
    /// Requests that keys with this comment have taken from their per-minute budget.
    API_KEY_RPM_USAGE: Gauge, Count = "nexusgate_api_key_rpm_usage" { api_key_comment };
    /// Requests per minute allowed to keys with this comment.
    API_KEY_RPM_LIMIT: Gauge, Count = "nexusgate_api_key_rpm_limit" { api_key_comment };
    /// Tokens that keys with this comment have taken from their per-minute budget; above the limit while in debt.
    API_KEY_TPM_USAGE: Gauge, Tokens = "nexusgate_api_key_tpm_usage" { api_key_comment };
    /// Tokens per minute allowed to keys with this comment.
    API_KEY_TPM_LIMIT: Gauge, Tokens = "nexusgate_api_key_tpm_limit" { api_key_comment };
    /// Requests refused because a key was over a limit, by limit; with Redis the count survives restarts.
    RATE_LIMIT_REJECTIONS: Counter, Count = "nexusgate_rate_limit_rejections_total" { api_key_comment, limit_type: LimitType };
    /// Always 1; the label tells the version and commit.
    INFO: Gauge, Count = "nexusgate_info" { version };
    /// 1 when this scrape could not be rendered and only the essentials are served.
    METRICS_ERROR: Gauge, Count = "nexusgate_metrics_error";

    // Requests as the gateway sees them.

    /// HTTP requests by route template; code 499 when the client left before the answer began.
    HTTP_REQUESTS: Counter, Count = "nexusgate_http_requests_total" { route, method, code };
    /// Inference requests refused before they reached a model.
    REQUESTS_REJECTED: Counter, Count = "nexusgate_requests_rejected_total" { reason: RejectReason };
    /// Inference requests in progress.
    REQUESTS_IN_FLIGHT: Gauge, Count = "nexusgate_requests_in_flight" { api_format: Surface };
    /// Seconds spent in the gateway itself: total time less the waits for the upstream and for the client.
    GATEWAY_OVERHEAD: Histogram(Buckets::Overhead), Seconds = "nexusgate_gateway_overhead_seconds" { api_format: Surface };

    // Upstreams.

    /// Calls to providers, by outcome.
    UPSTREAM_ATTEMPTS: Counter, Count = "nexusgate_upstream_attempts_total" { provider, model, outcome: Outcome };
    /// Requests that moved on to another provider, by the provider that failed and its outcome.
    FAILOVERS: Counter, Count = "nexusgate_failovers_total" { model, provider, outcome: Outcome };
    /// 1 while the circuit breaker lets traffic through to the provider, 0 while it is open.
    PROVIDER_UP: Gauge, Count = "nexusgate_provider_up" { provider };
    /// Seconds from sending a call to a provider to the last byte of its answer.
    UPSTREAM_DURATION: Histogram(Buckets::Latency), Seconds = "nexusgate_upstream_duration_seconds" { provider };

    // Properties of completions.

    /// Seconds per output token after the first; completed streams only.
    COMPLETION_TPOT: Histogram(Buckets::TimePerToken), Seconds = "nexusgate_completion_tpot_seconds" { model };
    /// Seconds of a stream's longest wait for the provider between two chunks; completed streams only.
    STREAM_STALL: Histogram(Buckets::Latency), Seconds = "nexusgate_stream_stall_seconds" { model };
    /// Input tokens of one completion.
    COMPLETION_PROMPT_TOKENS: Histogram(Buckets::Tokens), Tokens = "nexusgate_completion_prompt_tokens" { model };
    /// Output tokens of one completion.
    COMPLETION_OUTPUT_TOKENS: Histogram(Buckets::Tokens), Tokens = "nexusgate_completion_output_tokens" { model };
    /// Input tokens read from a provider's cache; part of the prompt tokens.
    TOKENS_CACHED: Counter, Tokens = "nexusgate_tokens_cached_total" { model };
    /// Input tokens written to a provider's cache; part of the prompt tokens.
    TOKENS_CACHE_WRITE: Counter, Tokens = "nexusgate_tokens_cache_write_total" { model };
    /// Output tokens spent on reasoning; part of the completion tokens.
    TOKENS_REASONING: Counter, Tokens = "nexusgate_tokens_reasoning_total" { model };
    /// Tokens of completions that were aborted or failed, and of failed attempts at one that another attempt answered.
    TOKENS_WASTED: Counter, Tokens = "nexusgate_tokens_wasted_total" { model, reason: WasteReason };
    /// USD spent on completions that were aborted or failed, and on failed attempts at one that another attempt answered.
    COST_WASTED: FloatCounter, Usd = "nexusgate_cost_wasted_usd_total" { model, reason: WasteReason };
    /// Completed completions, by finish reason.
    FINISH_REASONS: Counter, Count = "nexusgate_completion_finish_reasons_total" { model, finish_reason: FinishReason };
    /// Completed streams that met their model's targets for first token and time per token (goodput). Models without targets
    /// and answers that were not streamed count neither here nor as missed, nor do streams whose tokens nobody counted.
    WITHIN_SLO: Counter, Count = "nexusgate_completions_within_slo_total" { model };
    /// Completed streams that missed one of their model's targets.
    MISSED_SLO: Counter, Count = "nexusgate_completions_missed_slo_total" { model };
    /// Finished requests that a provider answered for a model without a price.
    UNPRICED_REQUESTS: Counter, Count = "nexusgate_unpriced_requests_total" { model };
    /// Finished requests that a provider answered without reporting the usage.
    USAGE_MISSING: Counter, Count = "nexusgate_usage_missing_total" { model };

    // The request log.

    /// Rows written to the request log.
    REQUEST_LOG_ROWS: Counter, Count = "nexusgate_request_log_rows_total" { table: LogTable };
    /// Finished requests whose row is not in the database yet.
    REQUEST_LOG_PENDING: Gauge, Count = "nexusgate_request_log_pending" { table: LogTable };
    /// Seconds the oldest row has been waiting for the database.
    REQUEST_LOG_OLDEST_PENDING: Gauge, Seconds = "nexusgate_request_log_oldest_pending_seconds";
    /// Failed attempts to write a batch of rows, which were repeated.
    REQUEST_LOG_RETRIES: Counter, Count = "nexusgate_request_log_retries_total" { table: LogTable };
    /// Seconds to write one batch of rows.
    REQUEST_LOG_FLUSH_DURATION: Histogram(Buckets::Internal), Seconds = "nexusgate_request_log_flush_duration_seconds" { table: LogTable };
    /// Payloads dropped from a row that was kept: the journal had reached its size, the memory for rows was full, or the database refused the payload.
    REQUEST_LOG_PAYLOADS_DROPPED: Counter, Count = "nexusgate_request_log_payloads_dropped_total" { table: LogTable };
    /// Rows lost: refused by the database for their content, past the journal's size, in an unreadable part of the journal, or past the memory for rows while the journal cannot be written.
    REQUEST_LOG_ROWS_DROPPED: Counter, Count = "nexusgate_request_log_rows_dropped_total" { table: LogTable };
    /// Bytes of the journal's files: rows on their way to the database.
    JOURNAL_BYTES: Gauge, Bytes = "nexusgate_journal_bytes";
    /// Bytes that the journal may have (`JOURNAL_MAX_SIZE`); past them payloads are dropped, then rows.
    JOURNAL_MAX_BYTES: Gauge, Bytes = "nexusgate_journal_max_bytes";
    /// Torn or damaged stretches of the journal that were skipped; each may have held several records.
    JOURNAL_DAMAGED: Counter, Count = "nexusgate_journal_damaged_records_total";
    /// Failed writes and syncs of the journal's files; meanwhile rows are kept in memory only.
    JOURNAL_WRITE_ERRORS: Counter, Count = "nexusgate_journal_write_errors_total";
    /// Finished requests counted since start, less the rows logged or still waiting; 0 when both agree.
    AUDIT_MISMATCH: Gauge, Count = "nexusgate_audit_mismatch" { table: LogTable };

    // Dependencies.

    /// 1 when the last read of the database and the last write of the request log succeeded.
    DATABASE_UP: Gauge, Count = "nexusgate_database_up";
    /// 1 when Redis answers; absent when none is configured.
    REDIS_UP: Gauge, Count = "nexusgate_redis_up";
    /// Failed Redis calls, by operation.
    REDIS_ERRORS: Counter, Count = "nexusgate_redis_errors_total" { op: RedisOp };
    /// Failed gauge refreshes; the gauges kept their last values.
    GAUGE_REFRESH_ERRORS: Counter, Count = "nexusgate_gauge_refresh_errors_total";
    /// Unix time of the last successful gauge refresh.
    GAUGE_REFRESH_TIMESTAMP: Gauge, Seconds = "nexusgate_gauge_refresh_timestamp_seconds";

    // Metrics about metrics.

    /// Existing series; a histogram with one set of labels counts as one.
    METRICS_SERIES: Gauge, Count = "nexusgate_metrics_series";
    /// Series refused by the series cap: counted under `_overflow` instead, gauges left out.
    METRICS_OVERFLOW: Counter, Count = "nexusgate_metrics_overflow_total" { metric };
    /// Seconds to render one scrape.
    METRICS_RENDER_DURATION: Histogram(Buckets::Internal), Seconds = "nexusgate_metrics_render_duration_seconds";

    // The runtime.

    /// Worker threads of the tokio runtime.
    TOKIO_WORKERS: Gauge, Count = "tokio_workers";
    /// Live tasks of the tokio runtime.
    TOKIO_LIVE_TASKS: Gauge, Count = "tokio_live_tasks";
    /// Tasks waiting in the tokio runtime's shared queue.
    TOKIO_GLOBAL_QUEUE_DEPTH: Gauge, Count = "tokio_global_queue_depth";
    /// Seconds that tokio workers were busy.
    TOKIO_BUSY: FloatCounter, Seconds = "tokio_busy_seconds_total";
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_are_unique_and_follow_the_conventions() {
        let mut seen = HashSet::new();
        for metric in ALL {
            assert!(seen.insert(metric.name), "{} is declared twice", metric.name);
            assert!(metric.help().ends_with(['.', ')']), "{}: the help is a sentence", metric.name);
            let counts = matches!(metric.kind, Kind::Counter | Kind::FloatCounter);
            assert_eq!(counts, metric.name.ends_with("_total"), "{}: counters end in _total", metric.name);
        }
    }

    #[test]
    fn bounds_ascend() {
        for buckets in Buckets::ALL {
            assert!(buckets.bounds().is_sorted_by(|a, b| a < b), "{buckets:?}");
            assert!(buckets.bounds().iter().all(|bound| bound.is_finite() && *bound > 0.0));
        }
    }

    #[test]
    fn the_panels_of_the_reference_find_their_buckets() {
        for bound in [0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0] {
            assert!(Buckets::Latency.bounds().contains(&bound), "le={bound}");
        }
    }
}
