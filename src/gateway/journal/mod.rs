//! The journal: records of finished requests, safe on disk until the database has them.
//!
//! ```text
//! request path ── append ──► segment file (one write) ──┐
//!                    └─────► backlog: rows in memory ───┼─► writer (request_log) ─► database ─► settle ─► trim
//!                                     or left on disk ──┘
//! keeper thread: counts what an earlier process left, syncs every second, keeps the size below its bound
//! ```
//!
//! **Guarantees.** When [`Journal::append`] returns, the record is in the kernel's page cache: `kill -9`, a panic or an
//! out-of-memory kill loses nothing. A power cut or a kernel crash loses at most the records of the last
//! [`JournalConfig::sync_interval`] (1 s). Replaying is harmless, because ids are UUIDv7 and the insert says `ON
//! CONFLICT DO NOTHING`; so the watermark of acknowledged rows needs no sync.
//!
//! **Why the request's own thread writes.** A client that has received its answer completely must find it in the log
//! after `kill -9`, so the write must come before the last byte is handed to the connection. With a channel to a
//! writing thread the last byte would have to wait for that thread's reply: two context switches instead of one system
//! call of one or two microseconds. The price is that a hanging file system holds the one thread that is writing; all
//! others give up after [`JournalConfig::patience`] and keep their rows in memory.
//!
//! **Bounds.** Rows wait in memory up to [`JournalConfig::memory_rows`] and [`JournalConfig::memory_bytes`]; beyond
//! that they stay on disk and are read back, in order. Beyond [`JournalConfig::max_size`] on disk the oldest request
//! and response bodies are dropped, then, only if the rows alone are too many, the oldest rows; both are counted. When
//! the disk fails, rows wait in memory only, and when the memory is full as well, new rows are dropped and counted.
//!
//! **Why no crate.** `okaywal` calls itself unfit for production, syncs every commit (a millisecond) and calls back to
//! checkpoint; `yaque` sends asynchronously and has no checksums; `walogs` and `open-wal` sync every append or stop at
//! the first damaged record. None continues reading after damage, drops bodies but keeps rows, or bounds its size
//! without losing the oldest entries.

mod active;
mod backlog;
mod directory;
mod frame;
mod keeper;
mod reader;
#[cfg(test)]
pub(super) mod tests;

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use parking_lot::Mutex;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::Notify;

use self::active::{Active, Disk, Room};
use self::backlog::{Backlog, MemoryLimits, Written};
use self::directory::{Directory, WATERMARK_LEN};
use crate::domain::label::LogTable;

pub use self::backlog::Tally;
pub(super) use self::reader::{Batch, Group, Next};

/// A row of the request log, as the journal needs to know it.
pub trait Row: Serialize + DeserializeOwned + Send + Sync + 'static {
    /// The table it goes into.
    fn table(&self) -> LogTable;
    /// The bodies.
    fn payloads(&self) -> Payloads;
    /// Replaces the bodies.
    fn set_payloads(&mut self, payloads: Payloads);
    /// Appends the row without its bodies as JSON that [`Deserialize`](serde::Deserialize) can read back. It runs in
    /// the middle of a request, so a row may override it with a faster way than serde.
    ///
    /// # Errors
    /// The row cannot be written as JSON.
    fn write_json(&self, out: &mut Vec<u8>) -> serde_json::Result<()> {
        serde_json::to_writer(out, self)
    }
}

/// The bodies of a row, its big parts. They are stored beside it, and are dropped first when space is short.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Payloads {
    pub request: Option<Bytes>,
    pub response: Option<Bytes>,
}

impl Payloads {
    fn len(&self) -> usize {
        self.request.as_ref().map_or(0, Bytes::len) + self.response.as_ref().map_or(0, Bytes::len)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.request.is_none() && self.response.is_none()
    }
}

/// Events of the request log. The receiver must be quick and must not call back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogEvent {
    /// The database has these rows (now, or already before a replay).
    RowsWritten { table: LogTable, rows: u64 },
    /// The database answered an insert.
    Flushed { table: LogTable, took: Duration },
    /// An insert failed and will be tried again.
    Retried { table: LogTable },
    /// The database answered, or stopped answering. Emitted only on a change.
    DatabaseUp(bool),
    /// Rows go into the database without their bodies: space was short, or the database refused the bodies.
    PayloadsDropped { table: LogTable, rows: u64 },
    /// Rows are lost: neither memory nor disk had room, or their part of the journal is damaged, cannot be read or was
    /// deleted.
    RowsDropped { table: LogTable, rows: u64 },
    /// The database refuses rows for their contents; they are in `rejected.jsonl`.
    RowsRejected { table: LogTable, rows: u64 },
    /// Damaged or torn stretches of the journal were skipped.
    RecordsDamaged { records: u64 },
    /// The journal could not be written, synced or shortened, or its active segment was deleted. Rows that it does not
    /// hold wait in memory only.
    JournalFailed,
}

/// Receives [`LogEvent`]s.
pub type Observer = Box<dyn Fn(LogEvent) + Send + Sync>;

/// The journal's location and limits.
#[derive(Debug, Clone)]
pub struct JournalConfig {
    /// `DATA_DIR/journal`; `None` keeps everything in memory (tests, benches).
    pub dir: Option<PathBuf>,
    /// `JOURNAL_MAX_SIZE`, in bytes.
    pub max_size: u64,
    /// A segment ends beyond this many bytes; at most an eighth of `max_size`, so that there is always a sealed one to
    /// drop.
    pub segment_size: u64,
    /// Time between two syncs: a power cut may take the records of this long.
    pub sync_interval: Duration,
    /// How long a request waits for another request's write.
    pub patience: Duration,
    /// Rows waiting in memory.
    pub memory_rows: usize,
    /// Bytes of bodies waiting in memory.
    pub memory_bytes: usize,
    /// Rows of one insert. Each insert is a transaction and a sync of the disk, and rewrites the ends of all indexes,
    /// so it should be many; they wait in memory meanwhile. A power of two takes the fewest statements
    /// (`store/request_log/write.rs`).
    pub batch_rows: usize,
    /// Bytes of bodies of one insert: bounds its time and memory.
    pub batch_bytes: usize,
}

impl Default for JournalConfig {
    fn default() -> Self {
        Self {
            dir: None,
            max_size: 1 << 30,
            // Small, so that the files in use stay near the processor; see `directory`.
            segment_size: 4 << 20,
            sync_interval: Duration::from_secs(1),
            // Longer than a container has to pause for its CPU limit (a tenth of a second), because the thread that
            // writes may be paused too. Shorter than the kernel lets a writer wait for a disk that cannot keep up (a
            // fifth): no other thread should wait for that.
            patience: Duration::from_millis(150),
            memory_rows: 10_000,
            memory_bytes: 64 << 20,
            batch_rows: 2048,
            batch_bytes: 8 << 20,
        }
    }
}

/// Why the journal cannot be used; one line for standard error.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("DATA_DIR: cannot create the journal directory {}: {source}", path.display())]
    Create { path: PathBuf, source: io::Error },
    #[error("DATA_DIR: the journal directory {} is in use by another process", path.display())]
    InUse { path: PathBuf },
    #[error("DATA_DIR: cannot use the journal directory {}: {source}", path.display())]
    Unusable { path: PathBuf, source: io::Error },
}

/// The state of the backlog.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Status {
    pending: backlog::PerTable<u64>,
    /// Age of the oldest row that is not in the database.
    pub oldest: Option<Duration>,
    /// Bytes of the journal's files.
    pub disk_bytes: u64,
}

impl Status {
    /// Rows that are not in the database, including rows left by an earlier process.
    pub fn pending(&self, table: LogTable) -> u64 {
        self.pending[table as usize]
    }
}

/// The open journal.
pub struct Journal<R: Row> {
    shared: Arc<Shared<R>>,
    _keeper: Option<keeper::Keeper>,
}

struct Shared<R> {
    disk: Option<Disk>,
    backlog: Mutex<Backlog<R>>,
    batch_rows: usize,
    batch_bytes: usize,
    /// Signals rows for the writer.
    work: Notify,
    /// Signals that nothing is pending any more.
    drained: Notify,
    keeper: Arc<keeper::Signal>,
    /// The last append could not be written.
    failing: AtomicBool,
    observer: Observer,
}

impl<R: Row> Journal<R> {
    /// Opens the journal. Rows that an earlier process left are found here, and counted and replayed in the background.
    ///
    /// # Errors
    /// The directory cannot be created or written to, or another process uses it.
    pub fn open(config: JournalConfig, observer: Observer) -> Result<Self, OpenError> {
        let limits =
            MemoryLimits { rows: config.memory_rows, bytes: config.memory_bytes, batch: config.batch_rows };
        let (disk, leftovers) = match &config.dir {
            None => (None, Vec::new()),
            Some(path) => {
                let found = Directory::open(path)?;
                let active = Active::new(found.next_seq, config.segment_size.min(config.max_size / 8).max(1));
                let room = config.max_size.saturating_sub(WATERMARK_LEN as u64);
                let disk = Disk::new(found.directory, active, config.patience, room);
                (Some(disk), found.leftovers)
            }
        };
        let on_disk = disk.is_some();
        let shared = Arc::new(Shared {
            disk,
            backlog: Mutex::new(Backlog::new(limits, leftovers)),
            batch_rows: config.batch_rows.max(1),
            batch_bytes: config.batch_bytes,
            work: Notify::new(),
            drained: Notify::new(),
            keeper: Arc::default(),
            failing: AtomicBool::new(false),
            observer,
        });
        shared.note_size(&shared.backlog.lock());
        let keeper = match config.dir {
            Some(path) if on_disk => Some(
                keeper::Keeper::start(&shared, config.sync_interval)
                    .map_err(|source| OpenError::Unusable { path, source })?,
            ),
            _ => None,
        };
        Ok(Self { shared, _keeper: keeper })
    }

    /// Takes over a row. When this returns, the row survives the death of the process, unless the file system failed
    /// (then [`LogEvent::JournalFailed`] was emitted). Never waits for the database.
    pub fn append(&self, row: R) {
        let shared = &*self.shared;
        let (table, time_ms) = (row.table(), now_ms());
        let Some(disk) = &shared.disk else { return shared.keep(row, table, time_ms) };
        let payloads = row.payloads();
        let encode = |payloads: &Payloads| {
            frame::encode(|head| row.write_json(head), table, payloads, disk.salt, time_ms)
        };
        let head = match encode(&payloads) {
            Ok(head) => head,
            Err(error) => return shared.keep_unwritten(row, table, time_ms, &error),
        };
        let Some(mut active) = disk.lock() else {
            return shared.keep_unwritten(row, table, time_ms, &"the file system hangs");
        };
        let written = match disk.room(&active) {
            Room::Everything => active.write(disk, head, &payloads).map(|written| (written, true)),
            Room::RowOnly => encode(&Payloads::default())
                .map_err(io::Error::other)
                .and_then(|head| active.write(disk, head, &Payloads::default()))
                .map(|written| (written, payloads.is_empty())),
            Room::Nothing => Err(io::Error::new(io::ErrorKind::StorageFull, "JOURNAL_MAX_SIZE is used up")),
        };
        match written {
            Ok(written) => {
                let bytes = payloads.len();
                // The active segment stays locked until the backlog knows the record, so that both have one order.
                let done = shared.backlog.lock().append(row, table, time_ms, bytes, Some(written));
                drop(active);
                shared.report(table, done);
                shared.wrote(written.0);
            }
            Err(error) => {
                drop(active);
                shared.keep_unwritten(row, table, time_ms, &error);
            }
        }
    }

    /// The state of the backlog: read at a scrape, costs a lock and no I/O.
    pub fn status(&self) -> Status {
        let backlog = self.shared.backlog.lock();
        let pending = |table: usize| backlog.own[table].pending + backlog.replayed[table].pending;
        Status {
            pending: std::array::from_fn(pending),
            oldest: backlog.oldest().map(age),
            disk_bytes: backlog.disk_bytes(),
        }
    }

    /// The tally of rows that this process appended.
    pub fn tally(&self, table: LogTable) -> Tally {
        self.shared.backlog.lock().own[table as usize]
    }

    /// Rows in memory, without those being inserted.
    #[cfg(test)]
    pub(super) fn rows_in_memory(&self) -> usize {
        self.shared.backlog.lock().memory_rows()
    }

    /// The tally of rows that an earlier process left.
    #[cfg(test)]
    fn replay_tally(&self, table: LogTable) -> Tally {
        self.shared.backlog.lock().replayed[table as usize]
    }

    /// Nothing is waiting or being inserted.
    pub fn is_drained(&self) -> bool {
        self.shared.backlog.lock().is_drained()
    }

    /// Waits until rows come for the writer. May return spuriously.
    pub(super) async fn wait_for_work(&self) {
        self.shared.work.notified().await;
    }

    /// Wakes the writer.
    pub(super) fn wake(&self) {
        self.shared.work.notify_one();
    }

    /// No row of an earlier process is still on its way to the database.
    pub(super) fn is_replayed(&self) -> bool {
        self.shared.backlog.lock().is_replayed()
    }

    /// Waits until nothing is waiting or being inserted.
    pub(super) async fn wait_until_drained(&self) {
        self.wait_until(Self::is_drained).await;
    }

    /// Waits until no row of an earlier process is still on its way to the database.
    pub(super) async fn wait_until_replayed(&self) {
        self.wait_until(Self::is_replayed).await;
    }

    async fn wait_until(&self, is_done: fn(&Self) -> bool) {
        loop {
            let settled = self.shared.drained.notified();
            if is_done(self) {
                return;
            }
            settled.await;
        }
    }

    /// Ends the active segment, for a clean exit. Blocks.
    pub(super) fn finish(&self) {
        self.shared.finish();
    }

    pub(super) fn has_directory(&self) -> bool {
        self.shared.disk.is_some()
    }

    /// Rows of one insert.
    pub(super) fn batch_rows(&self) -> usize {
        self.shared.batch_rows
    }

    /// Rows that are in this process' memory only.
    pub(super) fn only_in_memory(&self) -> usize {
        self.shared.backlog.lock().only_in_memory()
    }

    pub(super) fn emit(&self, event: LogEvent) {
        (self.shared.observer)(event);
    }
}

impl<R: Row> Shared<R> {
    fn keep(&self, row: R, table: LogTable, time_ms: u64) {
        let bytes = row.payloads().len();
        let done = self.backlog.lock().append(row, table, time_ms, bytes, None);
        self.report(table, done);
    }

    fn keep_unwritten(&self, row: R, table: LogTable, time_ms: u64, why: &dyn std::fmt::Display) {
        self.keep(row, table, time_ms);
        (self.observer)(LogEvent::JournalFailed);
        if !self.failing.swap(true, Ordering::Relaxed) {
            tracing::error!(error = %why, "the request log's journal cannot be written: records wait in memory only");
        }
    }

    fn wrote(&self, written: Written) {
        // Read first: a store would bounce the cache line between the threads on every request.
        if self.failing.load(Ordering::Relaxed) && self.failing.swap(false, Ordering::Relaxed) {
            tracing::info!("the request log's journal can be written again");
        }
        if written.sealed {
            self.note_size(&self.backlog.lock());
            self.keeper.nudge();
        }
    }

    fn report(&self, table: LogTable, done: backlog::Appended) {
        if done.wake {
            self.work.notify_one();
        }
        if done.bodies_dropped {
            (self.observer)(LogEvent::PayloadsDropped { table, rows: 1 });
        }
        if done.row_dropped {
            (self.observer)(LogEvent::RowsDropped { table, rows: 1 });
        }
    }
}

/// Unix milliseconds, the unit of the records' times, from a clock that never goes back: wall time at the first call
/// plus monotonic time since. A clock that was set back would make unwritten rows look written, and answers that
/// repeated requests need would be forgotten too early.
fn now_ms() -> u64 {
    static START: LazyLock<(Instant, Duration)> = LazyLock::new(|| {
        let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        (Instant::now(), since_1970)
    });
    let (start, since_1970) = &*START;
    u64::try_from((*since_1970 + start.elapsed()).as_millis()).unwrap_or(u64::MAX)
}

/// The time since `then_ms`; zero when an earlier process dated it later than now.
pub(super) fn age(then_ms: u64) -> Duration {
    Duration::from_millis(now_ms().saturating_sub(then_ms))
}
