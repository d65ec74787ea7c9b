//! Wiring between modules that do not know each other.

use std::sync::{Arc, Once};
use std::time::Duration;

use super::StartError;
use super::log_sink::DatabaseSink;
use crate::config::Settings;
use crate::domain::key::Limits;
use crate::domain::model::Slo;
use crate::domain::usage::Price;
use crate::gateway::journal::{Journal, JournalConfig, LogEvent};
use crate::gateway::request_log::{RequestLog, WriterConfig};
use crate::limit::{self, Burst, InvalidRedisUrl, LimitServices, Observer};
use crate::store::Source;
use crate::store::declared::{Declared, DeclaredModel};
use crate::store::keys::NewApiKey;
use crate::store::models::NewModel;
use crate::store::providers::NewProvider;
use crate::store::request_log::{LogRow, LogWriter};
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
    telemetry.operations.show_journal_limit(config.max_size);
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
