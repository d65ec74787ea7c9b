//! Gauges that are set, not counted: keys, providers and models on a timer; the request log at each scrape; the database
//! and Redis as their state changes.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use metrics::{Counter, Gauge};
use parking_lot::Mutex;

use crate::domain::label::{LabelValue, LogTable, ModelType, RedisOp};

use super::catalog as m;
use super::registry::{Registry, RetirableGauge, SafeHistogram};
use super::series::each;

/// Numbers of configured entities, from one aggregate query.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EntityCounts {
    pub api_keys: u64,
    pub providers: u64,
    pub chat_models: u64,
    pub embedding_models: u64,
}

/// One key's usage of its limits.
#[derive(Debug, Clone, PartialEq)]
pub struct KeyUsage {
    pub comment: LabelValue,
    /// Requests taken from the budget, and the limit; `None`: unlimited.
    pub rpm: Option<Used>,
    /// Tokens taken from the budget, and the limit; `None`: unlimited.
    pub tpm: Option<Used>,
}

/// Part of a per-minute budget.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Used {
    pub current: f64,
    pub limit: f64,
}

/// Gauges of keys, providers and models.
pub struct KeyGauges {
    registry: Arc<Registry>,
    api_keys: Gauge,
    providers: Gauge,
    models: [Gauge; ModelType::ALL.len()],
    refresh_errors: Counter,
    refreshed: Gauge,
    shown: Mutex<HashMap<LabelValue, KeySeries>>,
}

/// The four gauges of one comment.
struct KeySeries {
    rpm_usage: RetirableGauge,
    rpm_limit: RetirableGauge,
    tpm_usage: RetirableGauge,
    tpm_limit: RetirableGauge,
}

impl KeyGauges {
    pub(super) fn new(registry: Arc<Registry>) -> Self {
        Self {
            api_keys: registry.gauge(&m::ACTIVE_API_KEYS, &[]),
            providers: registry.gauge(&m::ACTIVE_PROVIDERS, &[]),
            models: each(ModelType::VALUES, |kind| registry.gauge(&m::ACTIVE_MODELS, &[kind])),
            refresh_errors: registry.counter(&m::GAUGE_REFRESH_ERRORS, &[]),
            refreshed: registry.gauge(&m::GAUGE_REFRESH_TIMESTAMP, &[]),
            shown: Mutex::default(),
            registry,
        }
    }

    /// A refresh worked: shows these counts and these keys, and retires the gauges of every other key.
    pub fn refreshed(&self, counts: EntityCounts, keys: &[KeyUsage]) {
        self.api_keys.set(as_f64(counts.api_keys));
        self.providers.set(as_f64(counts.providers));
        self.models[ModelType::Chat as usize].set(as_f64(counts.chat_models));
        self.models[ModelType::Embedding as usize].set(as_f64(counts.embedding_models));
        self.show(keys);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        self.refreshed.set(now.as_secs_f64());
    }

    /// A refresh failed: the gauges keep their last values.
    pub fn refresh_failed(&self, error: &dyn std::fmt::Display) {
        self.refresh_errors.increment(1);
        tracing::warn!(%error, "the gauges could not be refreshed");
    }

    fn show(&self, keys: &[KeyUsage]) {
        let mut shown = self.shown.lock();
        // Keys with one comment are one series: their usage and their limits are summed.
        let mut sums: HashMap<&LabelValue, (Option<Used>, Option<Used>)> = HashMap::new();
        for key in keys {
            let sum = sums.entry(&key.comment).or_default();
            sum.0 = add(sum.0, key.rpm);
            sum.1 = add(sum.1, key.tpm);
        }
        let gone: HashSet<LabelValue> =
            shown.keys().filter(|comment| !sums.contains_key(comment)).cloned().collect();
        for comment in gone {
            if let Some(series) = shown.remove(&comment) {
                series.set(None, None);
            }
        }
        for (comment, (rpm, tpm)) in sums {
            shown
                .entry(comment.clone())
                .or_insert_with(|| KeySeries::new(&self.registry, comment))
                .set(rpm, tpm);
        }
    }
}

impl KeySeries {
    fn new(registry: &Registry, comment: &LabelValue) -> Self {
        let gauge = |metric| registry.retirable_gauge(metric, &[comment.as_str()]);
        Self {
            rpm_usage: gauge(&m::API_KEY_RPM_USAGE),
            rpm_limit: gauge(&m::API_KEY_RPM_LIMIT),
            tpm_usage: gauge(&m::API_KEY_TPM_USAGE),
            tpm_limit: gauge(&m::API_KEY_TPM_LIMIT),
        }
    }

    /// Shows both limits; an unlimited one has no gauges.
    fn set(&self, rpm: Option<Used>, tpm: Option<Used>) {
        for (usage, limit, used) in
            [(&self.rpm_usage, &self.rpm_limit, rpm), (&self.tpm_usage, &self.tpm_limit, tpm)]
        {
            match used {
                Some(used) => {
                    usage.set(used.current);
                    limit.set(used.limit);
                }
                None => {
                    usage.retire();
                    limit.retire();
                }
            }
        }
    }
}

fn add(sum: Option<Used>, one: Option<Used>) -> Option<Used> {
    match (sum, one) {
        (Some(a), Some(b)) => Some(Used { current: a.current + b.current, limit: a.limit + b.limit }),
        (a, b) => a.or(b),
    }
}

/// Gauges and counters of the request log, the database and Redis.
pub struct OperationGauges {
    pub database_up: DatabaseUp,
    log: [LogSeries; LogTable::ALL.len()],
    log_oldest_pending: Gauge,
    journal_bytes: Gauge,
    journal_max_bytes: Gauge,
    journal_damaged: Counter,
    journal_write_errors: Counter,
}

/// Whether the last read and the last write worked. Both count: a gateway without traffic writes nothing, and a
/// database whose disk is full can still read.
pub struct DatabaseUp {
    gauge: Gauge,
    works: Mutex<Works>,
}

struct Works {
    reads: bool,
    writes: bool,
}

impl DatabaseUp {
    pub fn read(&self, worked: bool) {
        self.note(|works| works.reads = worked);
    }

    /// A successful write proves that reads work, too.
    pub fn wrote(&self, worked: bool) {
        self.note(|works| *works = Works { reads: works.reads || worked, writes: worked });
    }

    fn note(&self, change: impl FnOnce(&mut Works)) {
        let mut works = self.works.lock();
        change(&mut works);
        self.gauge.set(if works.reads && works.writes { 1.0 } else { 0.0 });
    }
}

/// Series of one table of the request log.
struct LogSeries {
    rows: Counter,
    pending: Gauge,
    retries: Counter,
    flush_duration: SafeHistogram,
    payloads_dropped: Counter,
    rows_dropped: Counter,
    mismatch: Gauge,
}

impl OperationGauges {
    pub(super) fn new(registry: &Registry) -> Self {
        Self {
            database_up: DatabaseUp {
                gauge: registry.gauge(&m::DATABASE_UP, &[]),
                works: Mutex::new(Works { reads: true, writes: true }),
            },
            log: each(LogTable::VALUES, |table| LogSeries {
                rows: registry.counter(&m::REQUEST_LOG_ROWS, &[table]),
                pending: registry.gauge(&m::REQUEST_LOG_PENDING, &[table]),
                retries: registry.counter(&m::REQUEST_LOG_RETRIES, &[table]),
                flush_duration: registry.histogram(&m::REQUEST_LOG_FLUSH_DURATION, &[table]),
                payloads_dropped: registry.counter(&m::REQUEST_LOG_PAYLOADS_DROPPED, &[table]),
                rows_dropped: registry.counter(&m::REQUEST_LOG_ROWS_DROPPED, &[table]),
                mismatch: registry.gauge(&m::AUDIT_MISMATCH, &[table]),
            }),
            log_oldest_pending: registry.gauge(&m::REQUEST_LOG_OLDEST_PENDING, &[]),
            journal_bytes: registry.gauge(&m::JOURNAL_BYTES, &[]),
            journal_max_bytes: registry.gauge(&m::JOURNAL_MAX_BYTES, &[]),
            journal_damaged: registry.counter(&m::JOURNAL_DAMAGED, &[]),
            journal_write_errors: registry.counter(&m::JOURNAL_WRITE_ERRORS, &[]),
        }
    }

    /// The state of one table: rows on their way to the database, and requests counted less the rows accounted for.
    #[expect(clippy::cast_precision_loss, reason = "counts of rows")]
    pub fn show_log(&self, table: LogTable, pending: u64, mismatch: i64) {
        let series = self.log(table);
        series.pending.set(as_f64(pending));
        series.mismatch.set(mismatch as f64);
    }

    /// The age of the oldest row that is not in the database.
    pub fn show_oldest_row(&self, age: Option<Duration>) {
        self.log_oldest_pending.set(age.unwrap_or_default().as_secs_f64());
    }

    /// Bytes of the journal's files.
    pub fn show_journal(&self, bytes: u64) {
        self.journal_bytes.set(as_f64(bytes));
    }

    /// Bytes that the journal may have.
    pub fn show_journal_limit(&self, bytes: u64) {
        self.journal_max_bytes.set(as_f64(bytes));
    }

    /// The database has these rows.
    pub fn rows_written(&self, table: LogTable, rows: u64) {
        self.log(table).rows.increment(rows);
    }

    /// It answered an insert.
    pub fn flushed(&self, table: LogTable, took: Duration) {
        self.log(table).flush_duration.record(took.as_secs_f64());
    }

    /// An insert failed and will be tried again.
    pub fn retried(&self, table: LogTable) {
        self.log(table).retries.increment(1);
    }

    /// Rows went in without their bodies.
    pub fn payloads_dropped(&self, table: LogTable, rows: u64) {
        self.log(table).payloads_dropped.increment(rows);
    }

    /// Rows are lost to the database.
    pub fn rows_dropped(&self, table: LogTable, rows: u64) {
        self.log(table).rows_dropped.increment(rows);
    }

    /// Damaged stretches of the journal were skipped.
    pub fn journal_damaged(&self, records: u64) {
        self.journal_damaged.increment(records);
    }

    /// The journal's files could not be written.
    pub fn journal_failed(&self) {
        self.journal_write_errors.increment(1);
    }

    fn log(&self, table: LogTable) -> &LogSeries {
        &self.log[table as usize]
    }
}

/// Series of the Redis connection; they exist only when Redis is configured.
pub struct RedisGauges {
    up: Gauge,
    errors: [Counter; RedisOp::ALL.len()],
}

impl RedisGauges {
    pub fn new(telemetry: &super::Telemetry) -> Self {
        let registry = &telemetry.registry;
        Self {
            up: registry.gauge(&m::REDIS_UP, &[]),
            errors: each(RedisOp::VALUES, |op| registry.counter(&m::REDIS_ERRORS, &[op])),
        }
    }

    pub fn up(&self, up: bool) {
        self.up.set(if up { 1.0 } else { 0.0 });
    }

    /// A call failed.
    pub fn error(&self, op: RedisOp) {
        self.errors[op as usize].increment(1);
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts and sizes stay far below 2^53")]
fn as_f64(count: u64) -> f64 {
    count as f64
}
