//! Wiring between modules that do not know each other.

use std::collections::HashMap;
use std::sync::{Arc, Once};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use parking_lot::Mutex;
use tokio::time;

use super::StartError;
use crate::config::Settings;
use crate::domain::key::Limits;
use crate::domain::label::LogTable;
use crate::domain::model::Slo;
use crate::domain::usage::Price;
use crate::gateway::journal::{Journal, JournalConfig, LogEvent};
use crate::gateway::request_log::{InsertError, RequestLog, Sink, WriterConfig};
use crate::limit::{self, Burst, InvalidRedisUrl, LimitServices, Observer};
use crate::store::declared::{Declared, DeclaredModel};
use crate::store::keys::{self, NewApiKey};
use crate::store::models::NewModel;
use crate::store::providers::NewProvider;
use crate::store::request_log::{self, LogRow, LogWriter};
use crate::store::{Source, StoreError};
use crate::telemetry::Telemetry;
use crate::telemetry::events::RateLimitRejectionsExposed;
use crate::telemetry::gauges::RedisGauges;

/// Limits and rejection counts, in Redis or in this process.
pub(super) async fn limits(
    settings: &Settings,
    telemetry: &Arc<Telemetry>,
) -> Result<LimitServices, InvalidRedisUrl> {
    let limit_settings = limit::Settings {
        burst: Burst::new(settings.rate_limit_burst).unwrap_or_default(),
        redis_url: settings.redis_url.clone(),
        redis_timeout: settings.redis_timeout.0,
        instance_id: settings.instance(),
    };
    let exposed = telemetry.clone();
    let seeded = telemetry.clone();
    let mut observer = Observer {
        rejections_seeded: Arc::new(move || seeded.rejections_seeded()),
        rejections_exposed: Arc::new(move |limit_type, comment, count| {
            RateLimitRejectionsExposed { telemetry: &exposed, comment, limit_type, count }.emit();
        }),
        ..Observer::default()
    };
    if settings.redis_url.is_some() {
        let redis = Arc::new(RedisGauges::new(telemetry));
        let errors = redis.clone();
        let (instance, told) = (limit_settings.instance_id.clone(), Once::new());
        observer.instance_shared = Arc::new(move || {
            let tell = || {
                tracing::warn!(
                    instance,
                    "another process has the same INSTANCE_ID: give each its own, or rejections are counted twice \
                     after a restart"
                );
            };
            told.call_once(tell);
        });
        observer.redis_up = Arc::new(move |up| redis.up(up));
        observer.redis_error = Arc::new(move |op| errors.error(op));
    }
    LimitServices::start(&limit_settings, observer).await
}

/// The request log over the journal in `DATA_DIR`, writing to `database`.
pub(super) fn request_log(
    settings: &Settings,
    telemetry: &Arc<Telemetry>,
    writer: Arc<LogWriter>,
) -> Result<RequestLog<LogRow>, StartError> {
    let config = JournalConfig {
        dir: Some(settings.data_dir.join("journal")),
        max_size: settings.journal_max_size.bytes() as u64,
        ..JournalConfig::default()
    };
    telemetry.operations.database_up.read(true);
    let observer = telemetry.clone();
    let journal = Journal::open(config, Box::new(move |event| observe(&observer, event)))?;
    RequestLog::start(journal, DatabaseSink::new(writer), WriterConfig::default())
        .map_err(StartError::RequestLog)
}

fn observe(telemetry: &Telemetry, event: LogEvent) {
    let operations = &telemetry.operations;
    match event {
        LogEvent::RowsWritten { table, rows } => operations.rows_written(table, rows),
        LogEvent::Flushed { table, took } => operations.flushed(table, took),
        LogEvent::Retried { table } => operations.retried(table),
        LogEvent::DatabaseUp(up) => operations.database_up.wrote(up),
        LogEvent::PayloadsDropped { table, rows } => operations.payloads_dropped(table, rows),
        LogEvent::RowsDropped { table, rows } | LogEvent::RowsRejected { table, rows } => {
            operations.rows_dropped(table, rows);
        }
        LogEvent::RecordsDamaged { records } => operations.journal_damaged(records),
        LogEvent::JournalFailed => operations.journal_failed(),
    }
}

/// How precisely the last use of a key is recorded: one statement a minute for a busy key, not one per batch.
const SEEN_INTERVAL: Duration = Duration::from_secs(60);

/// How long recording may take, and how long it rests after a failure: rows wait meanwhile.
const SEEN_PATIENCE: Duration = Duration::from_secs(1);
const SEEN_REST: Duration = Duration::from_secs(20);

/// The database's side of the request log.
struct DatabaseSink {
    writer: Arc<LogWriter>,
    seen: Mutex<Seen>,
}

/// When keys were used.
#[derive(Default)]
struct Seen {
    /// When each key's last use was recorded.
    recorded: HashMap<i64, Instant>,
    /// Keys whose use is to be recorded, with the time of the latest.
    due: HashMap<i64, DateTime<Utc>>,
    /// After a failure: when to go on.
    rests_until: Option<Instant>,
}

impl Seen {
    /// Notes uses of keys, except those that have been recorded a short while ago. Returns what is to be recorded now.
    fn note(
        &mut self,
        uses: impl Iterator<Item = (i64, DateTime<Utc>)>,
        now: Instant,
    ) -> HashMap<i64, DateTime<Utc>> {
        for (id, at) in uses {
            let is_due =
                self.recorded.get(&id).is_none_or(|before| now.duration_since(*before) >= SEEN_INTERVAL);
            if is_due {
                let latest = self.due.entry(id).or_insert(at);
                *latest = at.max(*latest);
            }
        }
        if self.due.is_empty() || self.rests_until.is_some_and(|end| now < end) {
            return HashMap::new();
        }
        let due = std::mem::take(&mut self.due);
        self.recorded.extend(due.keys().map(|id| (*id, now)));
        due
    }

    /// Nothing was recorded: another time.
    fn failed(&mut self, due: HashMap<i64, DateTime<Utc>>, now: Instant) {
        self.recorded.retain(|id, _| !due.contains_key(id));
        self.due.extend(due);
        self.rests_until = Some(now + SEEN_REST);
    }
}

impl DatabaseSink {
    fn new(writer: Arc<LogWriter>) -> Self {
        Self { writer, seen: Mutex::default() }
    }
}

impl Sink<LogRow> for DatabaseSink {
    fn holds_thread(&self) -> bool {
        self.writer.holds_thread()
    }

    async fn insert(&self, _table: LogTable, rows: &[LogRow]) -> Result<u64, InsertError> {
        request_log::insert_batch(&self.writer, rows).await.map_err(|error| match error {
            StoreError::Database(_) | StoreError::Sqlite(_) if !error.is_transient() => {
                InsertError::Refused(error.to_string())
            }
            _ => InsertError::Unavailable(error.to_string()),
        })
    }

    /// Records when these rows' keys were used. No request depends on it, so a failure is only logged.
    async fn inserted(&self, rows: &[LogRow]) {
        let now = Instant::now();
        let uses = rows.iter().map(|row| (row.api_key_id, row.created_at));
        let due = self.seen.lock().note(uses, now);
        let Some(latest) = due.values().max() else { return };
        let ids: Vec<i64> = due.keys().copied().collect();
        // Rows must not wait for long while other work uses up the connections.
        let noted =
            time::timeout(SEEN_PATIENCE, keys::mark_seen(self.writer.database(), &ids, *latest)).await;
        let error = match noted {
            Ok(Ok(_)) => return,
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no answer in time".to_owned(),
        };
        tracing::debug!(error, "it could not be noted which keys are in use");
        self.seen.lock().failed(due, now);
    }
}

/// The declarations of the settings file, in the store's types.
pub(super) fn declared(settings: &Settings) -> Declared {
    let declared = &settings.declared;
    Declared {
        providers: (declared.providers.iter())
            .map(|provider| NewProvider {
                name: provider.name.clone(),
                kind: provider.kind,
                base_url: provider.base_url.clone(),
                api_key: provider.api_key.clone(),
                api_version: provider.api_version.clone(),
                comment: provider.comment.clone(),
                proxy_url: provider.proxy_url.clone(),
                proxy_enabled: provider.proxy_url.is_some() && provider.proxy_enabled,
                ask_stream_usage: provider.ask_stream_usage,
                max_concurrency: provider.max_concurrency,
                source: Source::Config,
            })
            .collect(),
        models: (declared.models.iter())
            .map(|model| DeclaredModel {
                provider: model.provider.clone(),
                model: NewModel {
                    system_name: model.name.clone(),
                    remote_id: model.remote_id.clone(),
                    model_type: model.model_type,
                    context_length: model.context_length,
                    price: Price {
                        input: model.input_price,
                        output: model.output_price,
                        cached_input: model.cached_input_price,
                        cache_write: model.cache_write_price,
                    },
                    weight: model.weight,
                    comment: model.comment.clone(),
                    slo: Slo {
                        ttft: model.slo_ttft_ms.map(|ms| Duration::from_millis(ms.into())),
                        tpot: model.slo_tpot_ms.map(|ms| Duration::from_millis(ms.into())),
                    },
                    source: Source::Config,
                },
            })
            .collect(),
        api_keys: (declared.api_keys.iter())
            .map(|key| NewApiKey {
                key: Some(key.key.clone()),
                comment: key.comment.clone(),
                limits: Limits { rpm: key.rpm_limit, tpm: key.tpm_limit },
                expires_at: key.expires_at,
                allowed_models: key.allowed_models.clone(),
                ..NewApiKey::new(Source::Config)
            })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_use_is_recorded_once_a_minute_and_none_is_forgotten_while_that_fails() {
        let (mut seen, start) = (Seen::default(), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        let at = |seconds| DateTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let first = seen.note([(1, at(1)), (2, at(5)), (1, at(3))].into_iter(), start);
        assert_eq!(first, HashMap::from([(1, at(3)), (2, at(5))]));
        assert!(seen.note([(1, at(30))].into_iter(), after(30)).is_empty(), "not again so soon");

        let second = seen.note([(1, at(60))].into_iter(), after(60));
        assert_eq!(second, HashMap::from([(1, at(60))]));
        seen.failed(second, after(60));
        assert!(seen.note([(3, at(61))].into_iter(), after(61)).is_empty(), "it rests");
        let third = seen.note(std::iter::empty(), after(80));
        assert_eq!(third, HashMap::from([(1, at(60)), (3, at(61))]));
    }
}
