//! The thread that looks after the files: counts an earlier process' rows, syncs on a timer, keeps the size bounded.
//!
//! A thread of its own, because each of these tasks may wait for the disk, and nothing else may wait for them.

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rustix::io::Errno;

use super::active::Disk;
use super::backlog::{Backlog, PerTable, Run, Segment};
use super::directory::SegmentId;
use super::frame::{self, Frame};
use super::{LogEvent, Row, Shared};
use crate::domain::label::LogTable;

/// How long closing waits for the thread, which may hang with the file system.
const FAREWELL: Duration = Duration::from_secs(2);

/// Wakes and stops the thread.
#[derive(Default)]
pub(super) struct Signal {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    nudged: bool,
    stop: bool,
    gone: bool,
}

impl Signal {
    /// A segment has been sealed: there may be something to drop.
    pub(super) fn nudge(&self) {
        self.state.lock().nudged = true;
        self.changed.notify_all();
    }

    fn stopped(&self) -> bool {
        self.state.lock().stop
    }

    /// Waits for `timeout`, a nudge or the end; returns whether to go on.
    fn wait(&self, timeout: Duration) -> bool {
        let mut state = self.state.lock();
        if !state.nudged && !state.stop {
            self.changed.wait_for(&mut state, timeout);
        }
        state.nudged = false;
        !state.stop
    }
}

/// The running thread; dropping this ends it.
pub(super) struct Keeper {
    signal: Arc<Signal>,
}

impl Keeper {
    pub(super) fn start<R: Row>(shared: &Arc<Shared<R>>, sync_interval: Duration) -> io::Result<Self> {
        let signal = shared.keeper.clone();
        let (weak, at_end) = (Arc::downgrade(shared), Gone(signal.clone()));
        thread::Builder::new().name("journal".into()).spawn(move || {
            let at_end = at_end;
            keep(&weak, &at_end.0, sync_interval);
        })?;
        Ok(Self { signal })
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        let mut state = self.signal.state.lock();
        state.stop = true;
        self.signal.changed.notify_all();
        let until = Instant::now() + FAREWELL;
        while !state.gone && !self.signal.changed.wait_until(&mut state, until).timed_out() {}
    }
}

struct Gone(Arc<Signal>);

impl Drop for Gone {
    fn drop(&mut self) {
        self.0.state.lock().gone = true;
        self.0.changed.notify_all();
    }
}

fn keep<R: Row>(weak: &Weak<Shared<R>>, signal: &Signal, sync_interval: Duration) {
    if let Some(shared) = weak.upgrade() {
        shared.count_leftovers(signal);
    }
    let (mut synced, mut begun) = (Instant::now(), None);
    loop {
        if !signal.wait(sync_interval.saturating_sub(synced.elapsed())) {
            return;
        }
        let Some(shared) = weak.upgrade() else { return };
        let Some(disk) = &shared.disk else { return };
        // Retries leftovers that could not be read before.
        shared.count_leftovers(signal);
        if synced.elapsed() >= sync_interval {
            shared.sync(disk);
            synced = Instant::now();
            forget_old_records(disk, &mut begun);
        }
        shared.tidy(disk);
        shared.enforce_size(disk);
    }
}

/// Removes the spares and old records, which should be gone, unless a segment was begun since the last call and could
/// reuse them.
fn forget_old_records(disk: &Disk, begun: &mut Option<SegmentId>) {
    let mut active = disk.active.lock();
    let current = active.current();
    let idle = current == *begun;
    if idle {
        active.cut();
    }
    drop(active);
    *begun = current;
    if idle {
        disk.directory.remove_spares();
    }
}

impl<R: Row> Shared<R> {
    /// Counts the rows that an earlier process left, so that `pending` is right before they are replayed. Returns early
    /// when a file cannot be read now.
    fn count_leftovers(&self, signal: &Signal) {
        let Some(disk) = &self.disk else { return };
        while !signal.stopped() {
            let uncounted = |run: &Run<R>| match run {
                Run::Disk(run) if !run.counted => Some((run.seq, run.from, run.to)),
                _ => None,
            };
            let next = {
                let backlog = self.backlog.lock();
                let next = backlog.runs.iter().find_map(uncounted);
                next.and_then(|(seq, from, to)| Some((backlog.segments.get(&seq)?.id, from, to)))
            };
            let Some((id, from, to)) = next else { return };
            let (mut rows, mut oldest) = (PerTable::default(), u64::MAX);
            let (end, damaged) = match disk.directory.read(id, from, to) {
                Ok(bytes) => {
                    let scan = frame::scan(&bytes, id, true, usize::MAX);
                    for frame in &scan.frames {
                        rows[frame.table as usize] += 1;
                        oldest = oldest.min(frame.time_ms);
                    }
                    (from + offset(scan.consumed), scan.damaged)
                }
                Err(error) if is_passing(&error) => {
                    tracing::warn!(%error, "the journal cannot be read: trying again");
                    return;
                }
                Err(error) => {
                    self.set_aside(disk, id, &error);
                    (from, 1)
                }
            };
            let finished = {
                let mut backlog = self.backlog.lock();
                backlog.counted(id.seq, end, rows, oldest);
                self.forget_finished(&mut backlog)
            };
            self.remove(disk, &finished);
            self.damaged(damaged);
            self.work.notify_one();
            self.tell_if_drained();
        }
    }

    /// Renames a file that cannot be read, and appends nothing more to it.
    pub(super) fn set_aside(&self, disk: &Disk, id: SegmentId, error: &io::Error) {
        tracing::error!(%error, ?id, "a segment of the journal cannot be read: it is set aside");
        let mut active = disk.active.lock();
        if active.current() == Some(id) {
            active.close();
        }
        drop(active);
        // Best effort: the file may be gone; if it is not, the next start tries again.
        let _ = disk.directory.set_aside(id);
    }

    fn sync(&self, disk: &Disk) {
        let (unsynced, deleted) = {
            let mut active = disk.active.lock();
            (active.take_unsynced(), active.give_up_if_deleted())
        };
        if let Some(id) = deleted {
            tracing::error!(?id, "a segment of the journal was deleted: its rows are in memory only");
            (self.observer)(LogEvent::JournalFailed);
            let _files = disk.files.lock();
            let lost = self.backlog.lock().drop_segment(id.seq);
            self.lost(lost, "their segment of the journal was deleted");
            self.tell_if_drained();
        }
        // Syncs each file, even if another one fails.
        let files = unsynced.files.iter().map(|file| file.sync_data()).fold(Ok(()), Result::and);
        let names = if unsynced.names { disk.directory.sync() } else { Ok(()) };
        if let Err(error) = files.and(names) {
            // The kernel reports a failed write once and forgets the pages: there is nothing left to retry.
            tracing::error!(%error, "the request log's journal cannot be synced: a power cut may take records");
            (self.observer)(LogEvent::JournalFailed);
        }
    }

    /// Seals segments that a failed write abandoned, and removes finished ones.
    fn tidy(&self, disk: &Disk) {
        let finished = {
            let active = disk.active.lock();
            let mut backlog = self.backlog.lock();
            for segment in backlog.segments.values_mut() {
                segment.sealed |= active.current() != Some(segment.id);
            }
            self.forget_finished(&mut backlog)
        };
        self.remove(disk, &finished);
    }

    /// Ends the active segment, for a clean exit: when every row is in the database, nothing is left to replay.
    pub(super) fn finish(&self) {
        let Some(disk) = &self.disk else { return };
        let current = disk.active.lock().close();
        self.tidy(disk);
        if let Some(empty) = current.filter(|id| !self.backlog.lock().segments.contains_key(&id.seq)) {
            self.remove(disk, &[empty]);
        }
        disk.directory.remove_spares();
        self.sync(disk);
    }

    pub(super) fn forget_finished(&self, backlog: &mut Backlog<R>) -> Vec<SegmentId> {
        let finished = backlog.remove_finished();
        self.note_size(backlog);
        finished
    }

    pub(super) fn remove(&self, disk: &Disk, segments: &[SegmentId]) {
        // While a write hangs no further files are opened, so those that stay open then are few. To close one may take
        // time, for which no request should wait.
        if !segments.is_empty() {
            let files = disk.lock().map(|mut active| active.take_finished(segments));
            drop(files);
        }
        for id in segments {
            if let Err(error) = disk.directory.retire(*id) {
                tracing::warn!(%error, ?id, "a finished segment of the journal cannot be removed");
            }
        }
    }

    /// Brings the journal below its maximum size: drops the oldest bodies first, and the oldest rows only when no
    /// bodies are left.
    pub(super) fn enforce_size(&self, disk: &Disk) {
        loop {
            // The reader must not be in the middle of the segment.
            let _files = disk.files.lock();
            let (segment, rows_too) = {
                let backlog = self.backlog.lock();
                if backlog.disk_bytes() <= disk.max_size {
                    break;
                }
                let sealed = |s: &&Segment| s.sealed;
                let with_bodies = backlog.segments.values().filter(sealed).find(|s| !s.stripped).cloned();
                let rows_too = with_bodies.is_none();
                match with_bodies.or_else(|| backlog.segments.values().find(sealed).cloned()) {
                    Some(segment) => (segment, rows_too),
                    None => break,
                }
            };
            if rows_too {
                self.drop_rows(disk, &segment);
            } else if let Err(error) = self.strip(disk, &segment) {
                tracing::error!(%error, "the journal is over JOURNAL_MAX_SIZE and cannot be shortened");
                (self.observer)(LogEvent::JournalFailed);
                break;
            }
        }
    }

    /// Rewrites a segment without its bodies.
    fn strip(&self, disk: &Disk, segment: &Segment) -> io::Result<()> {
        let old = segment.id;
        let new = SegmentId { generation: old.generation + 1, ..old };
        let bytes = match disk.directory.read(old, 0, segment.len) {
            // Its last row reached the database meanwhile, and its file is gone.
            Err(error)
                if error.kind() == io::ErrorKind::NotFound
                    && !self.backlog.lock().segments.contains_key(&old.seq) =>
            {
                return Ok(());
            }
            read => read?,
        };
        let frames = frame::scan(&bytes, old, true, usize::MAX).frames;
        let (mut content, mut starts) = (Vec::new(), Vec::new());
        for frame in &frames {
            starts.push((offset(frame.start), offset(content.len())));
            content.extend(frame::without_bodies(&bytes, frame, old));
        }
        let end = offset(content.len());
        let has_bodies = frames.iter().any(Frame::has_bodies);
        if has_bodies {
            disk.directory.replace(old, new, &content)?;
        }
        let mut dropped = PerTable::<u64>::default();
        {
            let mut backlog = self.backlog.lock();
            let Some(segment) = backlog.segments.get_mut(&old.seq) else {
                // Its last row reached the database meanwhile.
                drop(backlog);
                return disk.directory.remove(new);
            };
            segment.stripped = true;
            if has_bodies {
                segment.id = new;
                segment.len = end;
                // A run ends where a record ends, that is, where the next one starts.
                let moved =
                    |at: u64| starts.get(starts.partition_point(|(old, _)| *old < at)).map_or(end, |s| s.1);
                for run in &mut backlog.runs {
                    if let Run::Disk(run) = run
                        && run.seq == old.seq
                    {
                        // Rows that are in memory still have their bodies.
                        for frame in frames.iter().filter(|f| f.has_bodies()) {
                            let within = (run.from..run.to).contains(&offset(frame.start));
                            dropped[frame.table as usize] += u64::from(within);
                        }
                        (run.from, run.to) = (moved(run.from), moved(run.to));
                    }
                }
            }
            self.note_size(&backlog);
        }
        for (table, rows) in LogTable::ALL.iter().copied().zip(dropped).filter(|(_, rows)| *rows > 0) {
            tracing::warn!(%table, rows, "the journal is over JOURNAL_MAX_SIZE: the oldest bodies are dropped");
            (self.observer)(LogEvent::PayloadsDropped { table, rows });
        }
        Ok(())
    }

    /// Drops a whole segment. Rows of it that are in memory still reach the database.
    fn drop_rows(&self, disk: &Disk, segment: &Segment) {
        let lost = {
            let mut backlog = self.backlog.lock();
            let lost = backlog.drop_segment(segment.id.seq);
            self.note_size(&backlog);
            lost
        };
        self.remove(disk, &[segment.id]);
        self.lost(lost, "the journal is over JOURNAL_MAX_SIZE without any bodies");
        self.tell_if_drained();
    }

    pub(super) fn lost(&self, rows: PerTable<u64>, why: &str) {
        for (table, rows) in LogTable::ALL.iter().copied().zip(rows).filter(|(_, rows)| *rows > 0) {
            tracing::error!(%table, rows, why, "rows of the request log are LOST");
            (self.observer)(LogEvent::RowsDropped { table, rows });
        }
    }

    pub(super) fn damaged(&self, records: u64) {
        if records > 0 {
            tracing::warn!(records, "damaged stretches of the journal were passed over");
            (self.observer)(LogEvent::RecordsDamaged { records });
        }
    }

    pub(super) fn tell_if_drained(&self) {
        let backlog = self.backlog.lock();
        if backlog.is_drained() || backlog.is_replayed() {
            self.drained.notify_waiters();
        }
    }

    /// Stores the size of the sealed segments where the request path can read it without a lock.
    pub(super) fn note_size(&self, backlog: &Backlog<R>) {
        if let Some(disk) = &self.disk {
            let sealed = backlog.segments.values().filter(|s| s.sealed).map(|s| s.len).sum();
            disk.sealed_bytes.store(sealed, Ordering::Relaxed);
        }
    }
}

/// Whether the process or the machine is short of a resource: the file is not to blame and can be read later.
pub(super) fn is_passing(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::AGAIN | Errno::INTR | Errno::BUSY)
    )
}

pub(super) fn offset(at: usize) -> u64 {
    u64::try_from(at).unwrap_or(u64::MAX)
}
