//! The request log: every finished request, exactly once, in the database, without a request ever waiting for it.
//!
//! [`RequestLog::append`] hands a row to the [`journal`](super::journal); one task, owned here, takes the rows in order
//! and inserts them in batches, by count (2048) or by age (500 ms), whichever comes first. While the database is
//! unavailable it retries for ever, and the rows wait. A row that the database refuses for its contents is found by
//! halving the batch; it goes in without its bodies if they are at fault, and otherwise to `rejected.jsonl`.

use std::future::Future;
use std::io;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time;

use super::journal::{Batch, Group, Journal, LogEvent, Next, Payloads, Row, Status, Tally, age};
use crate::domain::label::LogTable;

#[cfg(test)]
mod tests;

/// Destination of the rows.
pub trait Sink<R>: Send + Sync + 'static {
    /// Inserts rows of one table in one transaction and skips rows whose id is already there. Returns how many were
    /// new.
    fn insert(&self, table: LogTable, rows: &[R]) -> impl Future<Output = Result<u64, InsertError>> + Send;

    /// These rows are in. Whatever this does is not part of the insert, and must not take long.
    fn inserted(&self, rows: &[R]) -> impl Future<Output = ()> + Send {
        let _ = rows;
        std::future::ready(())
    }

    /// Whether inserting holds the thread until the database has answered. The log then has a thread of its own, and
    /// [`WriterConfig::insert_timeout`] cannot end an insert: a hanging disk shows in the age of the oldest row.
    fn holds_thread(&self) -> bool {
        false
    }
}

/// Why rows were not inserted. The texts go to the log: they must not quote the rows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InsertError {
    /// The database is unavailable, busy, full, read-only, not migrated: it is not the rows' fault. Retried for ever,
    /// so this is the answer when in doubt.
    #[error("{0}")]
    Unavailable(String),
    /// The database refuses the rows' contents (SQLSTATE classes 22 and 23): a retry would fail again.
    #[error("{0}")]
    Refused(String),
}

/// Timing of the writer.
#[derive(Debug, Clone, Copy)]
pub struct WriterConfig {
    /// A row waits at most this long for others to share its insert. Half a second: nobody looks at a request sooner, and
    /// every batch, however small, writes the ends of all indexes.
    pub max_age: Duration,
    /// An insert that takes longer is abandoned and retried, with a timeout of up to four times this: a stopped
    /// database answers nothing at all.
    pub insert_timeout: Duration,
    /// The pause after the first failure; it doubles up to `retry_max`, with jitter.
    pub retry_min: Duration,
    /// Also the longest time until the database's return is noticed.
    pub retry_max: Duration,
}

impl Default for WriterConfig {
    fn default() -> Self {
        Self {
            max_age: Duration::from_millis(500),
            insert_timeout: Duration::from_secs(30),
            retry_min: Duration::from_millis(100),
            retry_max: Duration::from_secs(5),
        }
    }
}

/// How long closing waits for the writer, which may hang with the file system.
const FAREWELL: Duration = Duration::from_secs(2);

/// The log's state when it was closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Closed {
    /// Rows that are not in the database. The next start replays them, except the lost ones.
    pub pending: u64,
    /// Rows that were in memory only.
    pub lost: usize,
}

/// The running request log.
pub struct RequestLog<R: Row> {
    journal: Arc<Journal<R>>,
    /// Flushes in progress.
    flushing: Arc<AtomicUsize>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

impl<R: Row> RequestLog<R> {
    /// Starts writing the journal's present and future rows to `sink`. Needs a tokio runtime.
    ///
    /// # Errors
    /// The operating system provides no thread for a sink that wants one.
    pub fn start<S: Sink<R>>(journal: Journal<R>, sink: S, config: WriterConfig) -> io::Result<Self> {
        let journal = Arc::new(journal);
        let flushing = Arc::new(AtomicUsize::new(0));
        let writer = Writer {
            journal: journal.clone(),
            sink,
            config,
            flushing: flushing.clone(),
            down_since: None,
            up: None,
        };
        let writer = if writer.sink.holds_thread() {
            on_own_thread(writer.run())?
        } else {
            tokio::spawn(writer.run())
        };
        Ok(Self { journal, flushing, writer: Mutex::new(Some(writer)) })
    }

    /// Takes over a row; when this returns, the row survives the death of the process (see [`Journal::append`]). Call
    /// it before the last byte of the answer is handed to the connection.
    pub fn append(&self, row: R) {
        self.journal.append(row);
    }

    /// The state of the backlog; read it at a scrape.
    pub fn status(&self) -> Status {
        self.journal.status()
    }

    /// Waits until the rows that an earlier process left are in the database. Returns whether they were in time.
    pub async fn replayed(&self, within: Duration) -> bool {
        if self.journal.is_replayed() {
            return true;
        }
        let _flushing = Flushing::start(&self.flushing);
        self.journal.wake();
        time::timeout(within, self.journal.wait_until_replayed()).await.is_ok()
    }

    /// Waits until the rows that an earlier process left are in the database, at the writer's own pace.
    pub async fn wait_until_replayed(&self) {
        self.journal.wait_until_replayed().await;
    }

    /// Where the rows of this process went.
    pub fn tally(&self, table: LogTable) -> Tally {
        self.journal.tally(table)
    }

    /// `nexusgate_audit_mismatch`: requests counted since start, minus rows in the database or on their way there.
    ///
    /// A request is counted and appended by one thread, one after the other, so that under load the two differ for moments by
    /// the number of such threads. `counted` is therefore asked again until they agree, at most ten times.
    pub fn mismatch(&self, table: LogTable, counted: impl Fn() -> u64) -> i64 {
        let mut least = i64::MAX;
        for _ in 0..10 {
            let tally = self.tally(table);
            let logged = tally.acknowledged + tally.pending;
            let difference = counted().wrapping_sub(logged).cast_signed();
            if difference.unsigned_abs() < least.unsigned_abs() {
                least = difference;
            }
            if least == 0 {
                break;
            }
            std::thread::yield_now();
        }
        least
    }

    /// Writes everything that is pending, without waiting for batches to fill. Returns whether that was done in time.
    pub async fn flush(&self, within: Duration) -> bool {
        let _flushing = Flushing::start(&self.flushing);
        self.journal.wake();
        time::timeout(within, self.journal.wait_until_drained()).await.is_ok()
    }

    /// Flushes, stops the writer and leaves the journal's directory clean if everything went in. For shutdown, after the
    /// last [`RequestLog::append`].
    pub async fn close(&self, within: Duration) -> Closed {
        self.flush(within).await;
        let writer = self.writer.lock().take();
        if let Some(writer) = writer {
            writer.abort();
            // Whether it ended by itself or was aborted does not matter any more. A thread that hangs in a system call ends
            // with the process.
            let _ = time::timeout(FAREWELL, writer).await;
        }
        let closed = Closed {
            pending: LogTable::ALL.iter().map(|table| self.status().pending(*table)).sum(),
            lost: self.journal.only_in_memory(),
        };
        if closed.lost > 0 {
            tracing::error!(rows = closed.lost, "rows of the request log are LOST: they were in memory only");
        }
        let journal = self.journal.clone();
        // The writer's thread may hold a lock that this waits for.
        let _ = time::timeout(FAREWELL, blocking(move || journal.finish())).await;
        closed
    }
}

impl<R: Row> Drop for RequestLog<R> {
    fn drop(&mut self) {
        if let Some(writer) = self.writer.lock().take() {
            writer.abort();
        }
    }
}

struct Flushing<'a>(&'a AtomicUsize);

impl<'a> Flushing<'a> {
    fn start(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(count)
    }
}

impl Drop for Flushing<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

struct Writer<R: Row, S> {
    journal: Arc<Journal<R>>,
    sink: S,
    config: WriterConfig,
    flushing: Arc<AtomicUsize>,
    up: Option<bool>,
    down_since: Option<Instant>,
}

impl<R: Row, S: Sink<R>> Writer<R, S> {
    async fn run(mut self) {
        loop {
            self.wait_for_a_batch().await;
            let batch = match self.journal.take() {
                Next::Batch(batch) => Some(batch),
                Next::Disk => self.read_disk().await,
                Next::Nothing => None,
            };
            if let Some(mut batch) = batch {
                for group in &mut batch.groups {
                    self.deliver(group).await;
                }
                self.settle(batch).await;
                // A sink that holds the thread never yields by itself: let other tasks run, and an abort take effect.
                tokio::task::yield_now().await;
            }
        }
    }

    /// Returns when a full batch waits, or the first row has waited long enough.
    async fn wait_for_a_batch(&self) {
        let mut until: Option<time::Instant> = None;
        loop {
            let (rows, since) = self.journal.waiting();
            let flushing = self.flushing.load(Ordering::SeqCst) > 0;
            let full = usize::try_from(rows).unwrap_or(usize::MAX) >= self.journal.batch_rows();
            if full || (rows > 0 && flushing) {
                return;
            }
            if rows == 0 {
                self.journal.wait_for_work().await;
                continue;
            }
            // The end is fixed once, by the monotonic clock.
            let until = *until.get_or_insert_with(|| {
                let waited = since.map_or(Duration::ZERO, age);
                time::Instant::now() + self.config.max_age.saturating_sub(waited)
            });
            if time::timeout_at(until, self.journal.wait_for_work()).await.is_err() {
                return;
            }
        }
    }

    async fn read_disk(&self) -> Option<Batch<R>> {
        let journal = self.journal.clone();
        match blocking(move || journal.read_disk()).await? {
            Ok(batch) => batch,
            Err(error) => {
                tracing::warn!(%error, "the journal cannot be read: trying again");
                time::sleep(self.config.retry_min).await;
                None
            }
        }
    }

    /// Inserts a group; the rows that the database refuses are marked.
    async fn deliver(&mut self, group: &mut Group<R>) {
        let whole = 0..group.rows.len();
        let mut parts = vec![whole];
        while let Some(part) = parts.pop() {
            let Err(reason) = self.insert(group.table, &group.rows[part.clone()]).await else { continue };
            if part.len() == 1 {
                self.save_what_can_be(group, part.start, reason).await;
            } else {
                let middle = part.start + part.len() / 2;
                parts.push(middle..part.end);
                parts.push(part.start..middle);
            }
        }
    }

    /// Handles a row that the database refuses: its bodies are often the reason (PostgreSQL takes no NUL in a text),
    /// and the row counts without them too.
    async fn save_what_can_be(&mut self, group: &mut Group<R>, index: usize, reason: String) {
        let table = group.table;
        let payloads = group.rows[index].payloads();
        group.rows[index].set_payloads(Payloads::default());
        let line = rejection(&group.rows[index], table, &payloads, &reason);
        let without_bodies =
            !payloads.is_empty() && self.insert(table, &group.rows[index..=index]).await.is_ok();
        tracing::warn!(%table, reason, without_bodies, "the database refuses a row of the request log");
        if without_bodies {
            self.journal.emit(LogEvent::PayloadsDropped { table, rows: 1 });
        } else {
            group.rejected.push(index);
        }
        let journal = self.journal.clone();
        blocking(move || journal.reject(line)).await;
    }

    /// Retries the insert until the database has answered; `Err`: it refuses the rows.
    async fn insert(&mut self, table: LogTable, rows: &[R]) -> Result<(), String> {
        let (mut pause, mut limit) = (self.config.retry_min, self.config.insert_timeout);
        loop {
            let started = Instant::now();
            // A driver that panics on some value must not end the log: the row is found and rejected.
            let insert = AssertUnwindSafe(self.sink.insert(table, rows)).catch_unwind();
            let answer = match time::timeout(limit, insert).await {
                Ok(Ok(answer)) => answer,
                Ok(Err(_)) => Err(InsertError::Refused("the insert panicked".into())),
                Err(_) => {
                    // Perhaps it only needs longer: then it must not fail for ever, and block all rows behind it.
                    limit = (limit * 2).min(self.config.insert_timeout * 4);
                    Err(InsertError::Unavailable("no answer in time".into()))
                }
            };
            match answer {
                Ok(new) => {
                    self.now_up();
                    self.journal.emit(LogEvent::Flushed { table, took: started.elapsed() });
                    let known = rows.len().saturating_sub(usize::try_from(new).unwrap_or(usize::MAX));
                    tracing::trace!(%table, new, known, "rows of the request log written");
                    let noted = AssertUnwindSafe(self.sink.inserted(rows)).catch_unwind().await;
                    if noted.is_err() {
                        tracing::error!("the work after an insert panicked");
                    }
                    return Ok(());
                }
                Err(InsertError::Refused(reason)) => {
                    self.now_up();
                    return Err(reason);
                }
                Err(InsertError::Unavailable(reason)) => {
                    self.now_down(&reason);
                    self.journal.emit(LogEvent::Retried { table });
                    self.pause(&mut pause).await;
                }
            }
        }
    }

    async fn pause(&self, pause: &mut Duration) {
        // Half fixed, half random: replicas that lost the same database do not return to it in step.
        let time = pause.mul_f64(rand::random_range(0.5..1.0));
        *pause = (*pause * 2).min(self.config.retry_max);
        let end = time::Instant::now() + time;
        loop {
            if self.flushing.load(Ordering::SeqCst) > 0 {
                return time::sleep(self.config.retry_min.min(time)).await;
            }
            if time::timeout_at(end, self.journal.wait_for_work()).await.is_err() {
                return;
            }
        }
    }

    fn now_up(&mut self) {
        if let Some(since) = self.down_since.take() {
            let away = since.elapsed();
            tracing::info!(?away, "the database takes the request log again");
        }
        if self.up.replace(true) != Some(true) {
            self.journal.emit(LogEvent::DatabaseUp(true));
        }
    }

    fn now_down(&mut self, reason: &str) {
        self.down_since.get_or_insert_with(Instant::now);
        if self.up.replace(false) != Some(false) {
            tracing::warn!(reason, "the database does not take the request log: rows wait in the journal");
            self.journal.emit(LogEvent::DatabaseUp(false));
        }
    }

    async fn settle(&self, batch: Batch<R>) {
        if self.journal.has_directory() && !self.sink.holds_thread() {
            let journal = self.journal.clone();
            blocking(move || journal.settle(&batch)).await;
        } else {
            self.journal.settle(&batch);
        }
    }
}

/// Runs a task on a thread of its own.
fn on_own_thread(task: impl Future<Output = ()> + Send + 'static) -> io::Result<JoinHandle<()>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    let (running, ended) = oneshot::channel::<()>();
    let handle = runtime.spawn(async move {
        // Dropped when the task ends, also when it is aborted.
        let _running = running;
        task.await;
    });
    thread::Builder::new().name("request-log".into()).spawn(move || {
        let _ = runtime.block_on(ended);
        // Hanging background work must not keep the thread alive.
        runtime.shutdown_background();
    })?;
    Ok(handle)
}

/// A line of `rejected.jsonl`: enough to put the row into the database by hand.
fn rejection<R: Row>(row: &R, table: LogTable, payloads: &Payloads, reason: &str) -> Vec<u8> {
    let text = |body: &Option<bytes::Bytes>| body.as_deref().map(String::from_utf8_lossy).map(String::from);
    let line = serde_json::json!({
        "table": table.as_str(),
        "error": reason,
        "row": serde_json::to_value(row).unwrap_or_default(),
        "request": text(&payloads.request),
        "response": text(&payloads.response),
    });
    line.to_string().into_bytes()
}

/// Runs `work` where blocking is allowed. `None` when the runtime is shutting down, or `work` panicked.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    tokio::task::spawn_blocking(work)
        .await
        .inspect_err(|error| tracing::error!(%error, "work on the journal did not end"))
        .ok()
}
