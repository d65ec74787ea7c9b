//! The segment that is being appended to.

use std::fs::File;
use std::io::{self, ErrorKind, IoSlice};
use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};

use super::Payloads;
use super::backlog::Written;
use super::directory::{Directory, SegmentId};
use super::frame::{self, END};

/// The pause after a segment could not be created: a full disk must not cost every request a failing system call on the
/// directory.
const REOPEN_AFTER: Duration = Duration::from_secs(1);

/// The journal's place on disk.
pub(super) struct Disk {
    pub(super) directory: Directory,
    /// The initial value of this process' checksums.
    pub(super) salt: u32,
    pub(super) active: Mutex<Active>,
    /// A thread timed out waiting for `active`: the file system hangs.
    stalled: AtomicBool,
    /// How long a request may wait for another one's write.
    patience: Duration,
    /// Bytes that the segments may take.
    pub(super) max_size: u64,
    /// Bytes of all segments but the active one, as of the last change.
    pub(super) sealed_bytes: AtomicU64,
    /// Held while a segment is read back or written anew, so that the two never meet.
    pub(super) files: Mutex<()>,
}

impl Disk {
    pub(super) fn new(directory: Directory, active: Active, patience: Duration, max_size: u64) -> Self {
        Self {
            directory,
            salt: rand::random(),
            active: Mutex::new(active),
            stalled: AtomicBool::new(false),
            patience,
            max_size,
            sealed_bytes: AtomicU64::new(0),
            files: Mutex::new(()),
        }
    }

    /// The active segment, unless a write to it hangs: then no other thread waits for it.
    ///
    /// A write to the page cache takes microseconds, but a file system can make it wait for ever. The one thread that
    /// is caught cannot be helped; all others skip the disk.
    pub(super) fn lock(&self) -> Option<MutexGuard<'_, Active>> {
        let waits = !self.stalled.load(Ordering::Relaxed);
        let guard = if waits { self.active.try_lock_for(self.patience) } else { self.active.try_lock() };
        match &guard {
            // One that did not wait may only have been slower than another thread.
            None if waits => self.stalled.store(true, Ordering::Relaxed),
            Some(_) if self.stalled.load(Ordering::Relaxed) => self.stalled.store(false, Ordering::Relaxed),
            _ => {}
        }
        guard
    }

    /// Which parts of a record may be written: beyond `JOURNAL_MAX_SIZE` the keeper makes room, and these bounds take
    /// effect only when it cannot keep up.
    pub(super) fn room(&self, active: &Active) -> Room {
        let used = self.sealed_bytes.load(Ordering::Relaxed) + active.current().map_or(0, |_| active.len);
        if used > self.max_size + self.max_size / 4 {
            Room::Nothing
        } else if used > self.max_size + self.max_size / 8 {
            Room::RowOnly
        } else {
            Room::Everything
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Room {
    Everything,
    RowOnly,
    Nothing,
}

#[derive(Debug)]
pub(super) struct Active {
    file: Option<Arc<File>>,
    id: SegmentId,
    len: u64,
    /// The end mark, which follows `len` in the file.
    end_mark: [u8; END],
    /// The file's length when it was reused: there may be old records up to there.
    used_before: u64,
    segment_size: u64,
    next_seq: u64,
    reopen_at: Option<Instant>,
    /// Written to since the last sync, and not finished yet.
    unsynced: Vec<(SegmentId, Arc<File>)>,
    new_names: bool,
}

/// Files to sync, so that a power cut cannot take their records.
pub(super) struct Unsynced {
    pub(super) files: Vec<Arc<File>>,
    pub(super) names: bool,
}

impl Active {
    pub(super) fn new(next_seq: u64, segment_size: u64) -> Self {
        Self {
            file: None,
            id: SegmentId { seq: 0, generation: 0, salt: 0 },
            len: 0,
            end_mark: [0; END],
            used_before: 0,
            segment_size,
            next_seq,
            reopen_at: None,
            unsynced: Vec::new(),
            new_names: false,
        }
    }

    /// Appends one record with one system call. The record is safe from `kill -9` when this returns.
    ///
    /// # Errors
    /// A failed write. A partial record is cut off, or the segment ends before it.
    pub(super) fn write(
        &mut self,
        disk: &Disk,
        mut head: Vec<u8>,
        payloads: &Payloads,
    ) -> io::Result<Written> {
        let file = self.open(disk)?;
        let start = self.len;
        frame::seal(&mut head, self.id);
        let request = payloads.request.as_deref().unwrap_or_default();
        let response = payloads.response.as_deref().unwrap_or_default();
        let length = head.len() + request.len() + response.len();
        let written = if frame::is_short(payloads) {
            for part in [request, response, &self.end_mark] {
                head.extend_from_slice(part);
            }
            write_all_at(&file, &mut [IoSlice::new(&head)], start)
        } else {
            let parts = [&head[..], request, response, &self.end_mark];
            write_all_at(&file, &mut parts.map(IoSlice::new), start)
        };
        if let Err(error) = written {
            // With the partial record cut off, the next one follows the last whole one. If even that fails, the segment
            // ends here and the reader skips the rest. So it does on a full disk: once its rows are in the database, it
            // makes room.
            let is_cut = file.set_len(start).is_ok();
            let is_full = matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded);
            if is_cut && !(is_full && start > 0) {
                self.used_before = 0;
            } else {
                self.file = None;
                if start == 0 {
                    // It holds no row, so nothing else would remove it.
                    let _ = disk.directory.remove(self.id);
                }
            }
            return Err(error);
        }
        self.len = start + u64::try_from(length).unwrap_or(u64::MAX);
        if self.unsynced.last().is_none_or(|(last, _)| *last != self.id) {
            self.unsynced.push((self.id, file));
        }
        let sealed = self.len >= self.segment_size;
        if sealed {
            self.close();
        }
        Ok(Written { id: self.id, start, end: self.len, sealed })
    }

    fn open(&mut self, disk: &Disk) -> io::Result<Arc<File>> {
        if let Some(file) = &self.file {
            return Ok(file.clone());
        }
        if self.reopen_at.is_some_and(|at| Instant::now() < at) {
            return Err(io::Error::new(ErrorKind::NotConnected, "no segment could be created a moment ago"));
        }
        let id = SegmentId { seq: self.next_seq, generation: 0, salt: disk.salt };
        match disk.directory.create_segment(id) {
            Ok((file, used_before)) => {
                let file = Arc::new(file);
                self.file = Some(file.clone());
                self.next_seq += 1;
                self.id = id;
                self.len = 0;
                self.end_mark = frame::end_mark(id);
                self.used_before = used_before;
                self.reopen_at = None;
                self.new_names = true;
                Ok(file)
            }
            Err(error) => {
                self.reopen_at = Some(Instant::now() + REOPEN_AFTER);
                // A sequence number that is already in use is skipped.
                self.next_seq += u64::from(error.kind() == ErrorKind::AlreadyExists);
                Err(error)
            }
        }
    }

    /// The segment that is open for appending.
    pub(super) fn current(&self) -> Option<SegmentId> {
        self.file.is_some().then_some(self.id)
    }

    /// Ends the segment, so that it can be removed.
    pub(super) fn close(&mut self) -> Option<SegmentId> {
        let current = self.current();
        self.cut();
        self.file = None;
        current
    }

    /// Ends the segment if somebody has deleted its file, so that the next row gets another one.
    pub(super) fn give_up_if_deleted(&mut self) -> Option<SegmentId> {
        // Best effort: a file whose links cannot be counted is taken to be there.
        let is_deleted = |file: &Arc<File>| file.metadata().is_ok_and(|metadata| metadata.nlink() == 0);
        self.file.take_if(|file| is_deleted(file)).map(|_| self.id)
    }

    /// Removes old records behind the last one.
    pub(super) fn cut(&mut self) {
        let Some(file) = &self.file else { return };
        let end = self.len + self.end_mark.len() as u64;
        // Best effort: the reader would not read them anyway.
        if self.used_before > end && file.set_len(end).is_ok() {
            self.used_before = 0;
        }
    }

    pub(super) fn take_unsynced(&mut self) -> Unsynced {
        let files = std::mem::take(&mut self.unsynced).into_iter().map(|(_, file)| file).collect();
        Unsynced { files, names: std::mem::take(&mut self.new_names) }
    }

    /// Takes out the files of finished segments. A power cut may have them, because their rows are in the database; here
    /// they would stay open for as long as a sync hangs.
    pub(super) fn take_finished(&mut self, finished: &[SegmentId]) -> Vec<(SegmentId, Arc<File>)> {
        // A segment that was rewritten has another generation.
        let is_finished = |seq| finished.iter().any(|id| id.seq == seq);
        self.unsynced.extract_if(.., |(id, _)| is_finished(id.seq)).collect()
    }
}

fn write_all_at(file: &File, mut parts: &mut [IoSlice<'_>], mut at: u64) -> io::Result<()> {
    // One call in practice: the kernel writes a regular file short only when the disk is full or after a signal.
    while !parts.is_empty() {
        let written = match &*parts {
            [part] => rustix::io::pwrite(file, part, at),
            parts => rustix::io::pwritev(file, parts, at),
        };
        match written {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(written) => {
                at += u64::try_from(written).unwrap_or(u64::MAX);
                IoSlice::advance_slices(&mut parts, written);
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::hint;
    use std::thread;

    use super::*;

    /// Threads that find the segment taken just after a hang has ended have learnt nothing about the file system.
    #[test]
    fn to_be_slower_than_another_thread_is_no_hang() {
        const ROUNDS: u64 = 50_000;
        let folder = tempfile::tempdir().unwrap();
        let directory = Directory::open(folder.path()).unwrap().directory;
        let disk = Disk::new(directory, Active::new(1, 1024), Duration::from_secs(60), u64::MAX);
        let (arrived, still) = (AtomicU64::new(0), AtomicU64::new(0));
        // Spins, because threads that are woken do not start at the same moment; but not for long, as there may be fewer
        // cores than threads.
        let meet = |count: u64| {
            arrived.fetch_add(1, Ordering::SeqCst);
            for turn in 0.. {
                match arrived.load(Ordering::SeqCst) {
                    there if there >= count => break,
                    _ if turn < 1000 => hint::spin_loop(),
                    _ => thread::yield_now(),
                }
            }
        };
        let race = || {
            for round in 0..ROUNDS {
                disk.stalled.store(true, Ordering::SeqCst);
                meet(round * 6 + 2);
                drop(disk.lock());
                meet(round * 6 + 4);
                still.fetch_add(u64::from(disk.stalled.load(Ordering::SeqCst)), Ordering::SeqCst);
                meet(round * 6 + 6);
            }
        };
        thread::scope(|scope| (0..2).for_each(|_| drop(scope.spawn(race))));
        assert_eq!(still.into_inner(), 0, "the journal is taken to hang still");
    }
}
