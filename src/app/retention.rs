//! Deleting old rows of the request log.

use std::sync::Arc;
use std::time::Duration;

use chrono::{Datelike as _, TimeDelta, Utc};
use sea_orm::DatabaseConnection;
use tokio_util::sync::CancellationToken;

use crate::domain::label::LogTable;
use crate::gateway::request_log::RequestLog;
use crate::limit::{Coordination, Lease};
use crate::store::request_log::{self, LogRow};

/// How often old rows are looked for. Retention is counted in days, so minutes do not matter.
const INTERVAL: Duration = Duration::from_secs(60);
/// Rows deleted in one statement: locks and the write-ahead log stay short.
const BATCH: u64 = 1000;
/// The pause between two statements, so that inserts of new rows get their turn.
const REST: Duration = Duration::from_millis(50);

/// Deletes rows older than `keep`, in small batches, in one replica at a time.
pub(super) struct Retention {
    pub(super) database: DatabaseConnection,
    pub(super) keep: TimeDelta,
    /// `None` without Redis: every replica prunes what the others have left.
    pub(super) lease: Option<Lease>,
}

impl Retention {
    /// `None` when rows are kept for ever.
    pub(super) fn new(
        database: DatabaseConnection,
        keep: Duration,
        coordination: Option<&Coordination>,
    ) -> Option<Self> {
        let keep = TimeDelta::from_std(keep).ok().filter(|keep| *keep > TimeDelta::zero())?;
        let lease = coordination.map(|coordination| coordination.lease("retention", INTERVAL * 3));
        Some(Self { database, keep, lease })
    }

    /// Runs until `stop`. Waits for the rows of an earlier process first: one that is in the database already, deleted and
    /// then replayed, would count twice in the sums by day.
    pub(super) async fn run(self, log: Arc<RequestLog<LogRow>>, stop: CancellationToken) {
        tokio::select! {
            () = log.wait_until_replayed() => {}
            () = stop.cancelled() => return,
        }
        drop(log);
        loop {
            tokio::select! {
                () = self.prune() => {}
                () = stop.cancelled() => break,
            }
            tokio::select! {
                () = tokio::time::sleep(INTERVAL) => {}
                () = stop.cancelled() => break,
            }
        }
        if let Some(lease) = &self.lease {
            lease.release().await;
        }
    }

    async fn prune(&self) {
        // With a retention longer than the calendar no row is old.
        let Some(older_than) = Utc::now().checked_sub_signed(self.keep).filter(|then| then.year() >= 0)
        else {
            return;
        };
        for table in LogTable::ALL {
            loop {
                // Another replica has the lease. While Redis is away the holder is unknown, and deleting twice does no
                // harm.
                if let Some(lease) = &self.lease
                    && lease.hold().await == Some(false)
                {
                    return;
                }
                match request_log::prune(&self.database, *table, older_than, BATCH).await {
                    Ok(deleted) if deleted < BATCH => break,
                    Ok(_) => tokio::time::sleep(REST).await,
                    Err(error) => {
                        tracing::warn!(%error, table = table.as_str(), "old rows could not be deleted");
                        break;
                    }
                }
            }
        }
    }
}
