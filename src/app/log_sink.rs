//! The database's side of the request log: inserts batches, and notes which keys are in use.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use parking_lot::Mutex;
use tokio::time;

use crate::domain::label::LogTable;
use crate::gateway::request_log::{InsertError, Sink};
use crate::store::request_log::{self, LogRow, LogWriter};
use crate::store::{StoreError, keys};

/// How precisely the last use of a key is recorded: one statement a minute for a busy key, not one per batch.
const SEEN_INTERVAL: Duration = Duration::from_secs(60);

/// How long recording may take, and how long it rests after a failure: rows wait meanwhile.
const SEEN_PATIENCE: Duration = Duration::from_secs(1);
const SEEN_REST: Duration = Duration::from_secs(20);

/// Writes batches of rows through a [`LogWriter`].
pub(super) struct DatabaseSink {
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
        // Older entries tell as much as none, and keys come and go.
        self.recorded.retain(|_, before| now.duration_since(*before) < SEEN_INTERVAL);
        self.recorded.extend(due.keys().map(|id| (*id, now)));
        due
    }

    /// These were not recorded: another time.
    fn failed(&mut self, due: HashMap<i64, DateTime<Utc>>, now: Instant) {
        self.recorded.retain(|id, _| !due.contains_key(id));
        self.due.extend(due);
        self.rests_until = Some(now + SEEN_REST);
    }
}

/// The keys that were last used within the same minute, with the latest of their times: one statement for each minute,
/// since rows that had to wait, or are replayed, may be hours apart.
fn by_minute(due: &HashMap<i64, DateTime<Utc>>) -> Vec<(DateTime<Utc>, Vec<i64>)> {
    let mut minutes: BTreeMap<i64, (DateTime<Utc>, Vec<i64>)> = BTreeMap::new();
    for (id, at) in due {
        let (latest, ids) = minutes.entry(at.timestamp().div_euclid(60)).or_default();
        *latest = (*latest).max(*at);
        ids.push(*id);
    }
    minutes.into_values().collect()
}

impl DatabaseSink {
    pub(super) fn new(writer: Arc<LogWriter>) -> Self {
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
        let mut due = self.seen.lock().note(uses, now);
        if due.is_empty() {
            return;
        }
        // Rows must not wait for long while other work uses up the connections.
        let noting = async {
            for (latest, ids) in by_minute(&due) {
                keys::mark_seen(self.writer.database(), &ids, latest).await?;
                for id in &ids {
                    due.remove(id);
                }
            }
            Ok::<_, StoreError>(())
        };
        let error = match time::timeout(SEEN_PATIENCE, noting).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no answer in time".to_owned(),
        };
        tracing::debug!(error, "it could not be noted which keys are in use");
        self.seen.lock().failed(due, now);
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

    #[test]
    fn keys_that_are_used_no_more_are_forgotten() {
        let (mut seen, start) = (Seen::default(), Instant::now());
        let at = DateTime::UNIX_EPOCH;
        assert_eq!(seen.note((0..1000).map(|id| (id, at)), start).len(), 1000);
        assert_eq!(seen.note([(1000, at)].into_iter(), start + SEEN_INTERVAL / 2).len(), 1);
        assert_eq!(seen.recorded.len(), 1001);
        assert_eq!(seen.note([(1, at), (1000, at)].into_iter(), start + SEEN_INTERVAL).len(), 1);
        assert_eq!(
            seen.recorded.keys().copied().collect::<std::collections::BTreeSet<_>>(),
            [1, 1000].into()
        );
    }

    #[test]
    fn keys_are_recorded_with_the_time_of_their_own_minute() {
        let at = |seconds| DateTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let due = HashMap::from([(1, at(119)), (2, at(60)), (3, at(120)), (4, at(7200))]);
        let mut groups = by_minute(&due);
        groups.iter_mut().for_each(|(_, ids)| ids.sort_unstable());
        assert_eq!(groups, [(at(119), vec![1, 2]), (at(120), vec![3]), (at(7200), vec![4])]);
    }
}
