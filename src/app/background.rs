//! Periodic tasks.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use rand::RngExt as _;
use sea_orm::DatabaseConnection;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::Settings;
use crate::domain::key::{ApiKey, Limits};
use crate::domain::label::LabelValue;
use crate::gateway::Gateway;
use crate::limit::{Coordination, Subscription};
use crate::store::{self, SnapshotStore};
use crate::telemetry::gauges::{EntityCounts, KeyUsage, Used};
use crate::telemetry::{Telemetry, UPKEEP_INTERVAL};

/// How often request ids that can be looked up in the database are forgotten.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// How soon keys and routes are read again after a failure. The change that made us read them may be a revoked key.
const READ_AGAIN: Duration = Duration::from_secs(2);

/// How long a refresh may take. A database whose machine vanished answers nothing for a quarter of an hour, until TCP gives
/// up; meanwhile the refresh counts as failed, and the next one tries a new connection.
const REFRESH_TIMEOUT: Duration = Duration::from_secs(15);

/// The state that the timers work on.
#[derive(Clone)]
pub(super) struct Background {
    pub(super) gateway: Gateway,
    pub(super) telemetry: Arc<Telemetry>,
    pub(super) database: DatabaseConnection,
    pub(super) snapshots: Arc<SnapshotStore>,
    pub(super) stop: CancellationToken,
}

impl Background {
    /// Starts every timer; they end when `stop` is cancelled.
    pub(super) fn spawn(self, tasks: &TaskTracker, settings: &Settings) {
        let gauges = settings.gauge_refresh_interval.0;
        self.every(tasks, gauges, |this| async move { this.refresh_gauges().await });
        let snapshot = settings.snapshot_refresh_interval.0;
        self.every(tasks, snapshot, |this| async move { this.refresh_snapshot().await });
        self.every(tasks, READ_AGAIN, |this| async move {
            if this.snapshots.is_behind() {
                this.refresh_snapshot().await;
            }
        });
        self.every(tasks, UPKEEP_INTERVAL, |this| async move {
            // Off the async workers: it may have many samples to sort into buckets.
            let _ = tokio::task::spawn_blocking(move || this.telemetry.run_upkeep()).await;
        });
        self.every(tasks, SWEEP_INTERVAL, |this| async move { this.gateway.sweep_ids() });
    }

    /// Reloads keys and routes as soon as another replica announces a change.
    pub(super) fn follow(&self, coordination: &Coordination, tasks: &TaskTracker) -> Subscription {
        let changed = Arc::new(Notify::new());
        let this = self.clone();
        let heard = changed.clone();
        tasks.spawn(async move {
            loop {
                let next = async {
                    heard.notified().await;
                    this.refresh_snapshot().await;
                };
                tokio::select! {
                    () = next => {}
                    () = this.stop.cancelled() => return,
                }
            }
        });
        coordination.on_announcement(move || changed.notify_one())
    }

    fn every<F>(
        &self,
        tasks: &TaskTracker,
        period: Duration,
        work: impl Fn(Self) -> F + Send + Sync + 'static,
    ) where
        F: Future<Output = ()> + Send,
    {
        let this = self.clone();
        tasks.spawn(async move {
            loop {
                // A tenth of jitter, so that replicas started together do not ask the database together.
                let wait = period.mul_f64(rand::rng().random_range(0.9..1.1));
                let next = async {
                    tokio::time::sleep(wait).await;
                    work(this.clone()).await;
                };
                // A database that hangs must not hold up the end.
                tokio::select! {
                    () = next => {}
                    () = this.stop.cancelled() => return,
                }
            }
        });
    }

    /// Sets the gauges of keys, providers and models. A failure keeps their last values.
    pub(super) async fn refresh_gauges(&self) {
        let counts = tokio::time::timeout(REFRESH_TIMEOUT, store::counts(&self.database)).await;
        self.telemetry.operations.database_up.read(matches!(counts, Ok(Ok(_))));
        match counts {
            Ok(Ok(counts)) => {
                let keys = self.key_usage().await;
                let counts = EntityCounts {
                    api_keys: counts.keys,
                    providers: counts.providers,
                    chat_models: counts.chat_models,
                    embedding_models: counts.embedding_models,
                };
                self.telemetry.keys.refreshed(counts, &keys);
            }
            Ok(Err(error)) => self.telemetry.keys.refresh_failed(&error),
            Err(late) => self.telemetry.keys.refresh_failed(&late),
        }
    }

    /// The usage and the limits of all keys that share a comment with a recently used limited key. The limits are the
    /// current ones, even if a key was used under others.
    async fn key_usage(&self) -> Vec<KeyUsage> {
        let recent = self.gateway.limiter().recent_usage().await;
        if recent.is_empty() {
            return Vec::new();
        }
        let snapshot = self.snapshots.load_full();
        let mut recent: HashMap<i64, _> = recent.into_iter().map(|usage| (usage.key_id, usage)).collect();
        let living = || snapshot.keys().filter(|key| !key.revoked);
        let mut shown: HashSet<&LabelValue> = HashSet::new();
        for key in living() {
            let Some(usage) = recent.get_mut(&key.id) else { continue };
            shown.insert(&key.comment);
            let seen = Limits { rpm: usage.rpm.map(|rpm| rpm.limit), tpm: usage.tpm.map(|tpm| tpm.limit) };
            if seen != key.limits {
                // Usage that was counted against an old limit means nothing beside the new one.
                *usage = self.gateway.limiter().usage(key).await;
            }
        }
        let used = |usage: Option<crate::limit::Usage>, limit: Option<u32>| {
            let current = usage.map_or(0.0, |usage| as_f64(usage.current));
            limit.map(|limit| Used { current, limit: f64::from(limit) })
        };
        let usage = |key: &Arc<ApiKey>| {
            let (rpm, tpm) = recent.get(&key.id).map_or((None, None), |usage| (usage.rpm, usage.tpm));
            let (rpm, tpm) = (used(rpm, key.limits.rpm), used(tpm, key.limits.tpm));
            KeyUsage { comment: key.comment.clone(), rpm, tpm }
        };
        living().filter(|key| shown.contains(&key.comment)).map(usage).collect()
    }

    /// Reloads keys and routes.
    pub(super) async fn refresh_snapshot(&self) {
        let was_behind = self.snapshots.is_behind();
        match self.snapshots.refresh(&self.database).await {
            Ok(_) => {
                if was_behind {
                    tracing::info!("keys and routes are read again");
                }
                self.gateway.announce();
            }
            Err(error) if was_behind => tracing::debug!(%error, "keys and routes still cannot be read"),
            Err(error) => {
                tracing::warn!(%error, "keys and routes could not be read; the last ones stay in use")
            }
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts of requests and tokens")]
fn as_f64(count: u64) -> f64 {
    count as f64
}
