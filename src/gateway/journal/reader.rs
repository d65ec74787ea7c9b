//! The writer's side of the journal: taking rows in order, and settling them.

use std::io;

use bytes::Bytes;

use super::active::Disk;
use super::backlog::{DiskRun, Entry, Position, Run, Tag};
use super::directory::SegmentId;
use super::frame::{self, Frame};
use super::keeper::{is_passing, offset};
use super::{Journal, LogEvent, Payloads, Row, Shared};
use crate::domain::label::LogTable;

/// Bytes read at once: about two full batches of rows without bodies.
const CHUNK: u64 = 1 << 20;
/// A run is given up when this many reads failed in a row.
const READ_ATTEMPTS: u32 = 3;

/// Rows of one table, to be inserted together.
pub(in crate::gateway) struct Group<R> {
    pub(in crate::gateway) table: LogTable,
    pub(in crate::gateway) rows: Vec<R>,
    tags: Vec<Tag>,
    /// Indexes of rows that the database refuses.
    pub(in crate::gateway) rejected: Vec<usize>,
}

/// Rows taken from the backlog, to be settled.
pub(in crate::gateway) struct Batch<R> {
    pub(in crate::gateway) groups: Vec<Group<R>>,
    /// Rows written by another version of this program, already rejected.
    foreign: Vec<Tag>,
}

impl<R> Batch<R> {
    fn new() -> Self {
        Self { groups: Vec::new(), foreign: Vec::new() }
    }

    /// Adds a row; `more` follow.
    fn push(&mut self, row: R, tag: Tag, more: usize) {
        let index = self.groups.iter().position(|group| group.table == tag.table).unwrap_or_else(|| {
            let (rows, tags) = (Vec::with_capacity(more + 1), Vec::with_capacity(more + 1));
            self.groups.push(Group { table: tag.table, rows, tags, rejected: Vec::new() });
            self.groups.len() - 1
        });
        self.groups[index].rows.push(row);
        self.groups[index].tags.push(tag);
    }
}

/// Where the next batch has to come from.
pub(in crate::gateway) enum Next<R> {
    Batch(Batch<R>),
    /// From the disk: call [`Journal::read_disk`] where blocking is allowed.
    Disk,
    Nothing,
}

impl<R: Row> Journal<R> {
    /// Rows that can be taken, and when the first of them was appended (milliseconds since 1970).
    pub(in crate::gateway) fn waiting(&self) -> (u64, Option<u64>) {
        let backlog = self.shared.backlog.lock();
        (backlog.waiting(), backlog.waiting_since())
    }

    /// Takes the next rows if they are in memory. There must be one taker.
    pub(in crate::gateway) fn take(&self) -> Next<R> {
        let mut backlog = self.shared.backlog.lock();
        match backlog.runs.front() {
            Some(Run::Disk(run)) if run.counted => Next::Disk,
            Some(Run::Memory(_)) => {
                let entries = backlog.take_memory(self.shared.batch_rows, self.shared.batch_bytes);
                drop(backlog);
                let (mut batch, mut entries) = (Batch::new(), entries.into_iter());
                while let Some(Entry { row, tag, .. }) = entries.next() {
                    batch.push(row, tag, entries.len());
                }
                Next::Batch(batch)
            }
            _ => Next::Nothing,
        }
    }

    /// Reads the next rows from the disk. `None`: there were only damaged ones. Blocks.
    ///
    /// # Errors
    /// A failed read, which is worth a retry. The file is given up after [`READ_ATTEMPTS`], unless it is not to blame.
    pub(in crate::gateway) fn read_disk(&self) -> io::Result<Option<Batch<R>>> {
        let shared = &*self.shared;
        let Some(disk) = &shared.disk else { return Ok(None) };
        let files = disk.files.lock();
        let Some((run, id)) = shared.first_disk_run() else { return Ok(None) };
        let chunk = match Chunk::read(disk, &run, id, shared.batch_rows, shared.batch_bytes) {
            Ok(chunk) => chunk,
            Err(error) => {
                shared.read_failed(disk, &run, id, &error);
                return Err(error);
            }
        };
        let tags: Vec<Tag> = chunk.frames.iter().map(|frame| chunk.tag(frame, &run, id)).collect();
        shared.advance(&run, chunk.next, &tags);
        drop(files);
        if !run.replayed {
            // Damage in an earlier process' segments was counted at start-up.
            shared.damaged(chunk.damaged);
        }
        let mut batch = Batch::new();
        let mut records = chunk.frames.iter().zip(tags);
        while let Some((frame, tag)) = records.next() {
            match chunk.row::<R>(frame) {
                Ok(row) => batch.push(row, tag, records.len()),
                Err(error) => {
                    self.reject_foreign(&chunk.bytes[frame.row.clone()], &error);
                    batch.foreign.push(tag);
                }
            }
        }
        Ok((!batch.groups.is_empty() || !batch.foreign.is_empty()).then_some(batch))
    }

    /// Every row of the batch is in the database or rejected: forgets the rows, and trims the journal. Blocks when
    /// there is a directory.
    pub(in crate::gateway) fn settle(&self, batch: &Batch<R>) {
        let shared = &*self.shared;
        let rows = || {
            let of = |group: &'_ Group<R>| -> Vec<(Tag, bool)> {
                let tags = group.tags.iter().copied().enumerate();
                tags.map(|(index, tag)| (tag, group.rejected.contains(&index))).collect()
            };
            batch.groups.iter().flat_map(of).chain(batch.foreign.iter().map(|tag| (*tag, true)))
        };
        let (upto, finished) = {
            let mut backlog = shared.backlog.lock();
            (backlog.settle(rows()), shared.forget_finished(&mut backlog))
        };
        for table in LogTable::ALL.iter().copied() {
            let count = |wanted: bool| {
                let these = rows().filter(|(tag, rejected)| tag.table == table && *rejected == wanted);
                u64::try_from(these.count()).unwrap_or(u64::MAX)
            };
            let (written, rejected) = (count(false), count(true));
            if written > 0 {
                self.emit(LogEvent::RowsWritten { table, rows: written });
            }
            if rejected > 0 {
                self.emit(LogEvent::RowsRejected { table, rows: rejected });
            }
        }
        if let Some(disk) = &shared.disk {
            shared.trim(disk, upto, &finished);
        }
        shared.tell_if_drained();
    }

    /// Keeps a row that the database refuses, with its bodies, for inspection. Blocks.
    pub(in crate::gateway) fn reject(&self, line: Vec<u8>) {
        let kept = match &self.shared.disk {
            Some(disk) => disk.directory.reject(line),
            None => Err(io::Error::other("there is no journal directory")),
        };
        if let Err(error) = kept {
            tracing::error!(%error, "a rejected row of the request log could not be kept");
        }
    }

    fn reject_foreign(&self, row: &[u8], error: &serde_json::Error) {
        // Only the position within the row: serde_json's message may quote a value, so it stays out of the log.
        tracing::warn!(
            line = error.line(),
            column = error.column(),
            "a row of another version cannot be read"
        );
        let line = serde_json::json!({ "error": error.to_string(), "text": String::from_utf8_lossy(row) });
        self.reject(line.to_string().into_bytes());
    }
}

impl<R: Row> Shared<R> {
    pub(super) fn first_disk_run(&self) -> Option<(DiskRun, SegmentId)> {
        let backlog = self.backlog.lock();
        match backlog.runs.front() {
            Some(Run::Disk(run)) if run.counted => Some((run.clone(), backlog.segments.get(&run.seq)?.id)),
            _ => None,
        }
    }

    /// Moves the first run on to `next`, past the rows with these tags.
    fn advance(&self, read: &DiskRun, next: u64, tags: &[Tag]) {
        let mut gone = None;
        let mut backlog = self.backlog.lock();
        backlog.took(tags.iter());
        if let Some(Run::Disk(run)) = backlog.runs.front_mut() {
            run.from = next;
            run.failures = 0;
            for tag in tags {
                let rows = &mut run.rows[tag.table as usize];
                *rows = rows.saturating_sub(1);
                run.oldest_ms = tag.time_ms;
            }
            // A run of this process may have grown since it was read. What follows the last row of an earlier one is damaged.
            let is_empty = run.replayed && run.rows.iter().all(|rows| *rows == 0);
            if run.from >= run.to || is_empty {
                gone = Some(run.clone());
                backlog.runs.pop_front();
            }
        }
        // Rows that were counted, or appended, but are not found in the file.
        let Some(run) = gone.filter(|run| run.rows.iter().any(|rows| *rows > 0)) else { return };
        backlog.lose(&run);
        drop(backlog);
        debug_assert_eq!(run.seq, read.seq);
        self.lost(run.rows, "their records in the journal are damaged");
        self.tell_if_drained();
    }

    /// Gives the file up when it is to blame and has failed often enough.
    pub(super) fn read_failed(&self, disk: &Disk, read: &DiskRun, id: SegmentId, error: &io::Error) {
        if is_passing(error) {
            return;
        }
        let mut backlog = self.backlog.lock();
        let Some(Run::Disk(run)) = backlog.runs.front_mut() else { return };
        run.failures += 1;
        if run.failures < READ_ATTEMPTS {
            return;
        }
        let run = run.clone();
        backlog.runs.pop_front();
        backlog.lose(&run);
        drop(backlog);
        debug_assert_eq!(run.seq, read.seq);
        self.set_aside(disk, id, error);
        self.lost(run.rows, "their segment of the journal cannot be read");
        self.tell_if_drained();
    }

    fn trim(&self, disk: &Disk, upto: Option<Position>, finished: &[SegmentId]) {
        if let Some(error) = upto.and_then(|upto| disk.directory.acknowledge(upto).err()) {
            // Harmless: after a crash more rows are offered again.
            tracing::debug!(%error, "the journal's mark could not be moved");
        }
        self.remove(disk, finished);
    }
}

/// A piece of a segment.
struct Chunk {
    bytes: Bytes,
    frames: Vec<Frame>,
    damaged: u64,
    /// Offset of `bytes` in the segment, and of the next piece.
    base: u64,
    next: u64,
}

impl Chunk {
    fn read(
        disk: &Disk,
        run: &DiskRun,
        id: SegmentId,
        max_rows: usize,
        max_bytes: usize,
    ) -> io::Result<Self> {
        let mut size = CHUNK;
        loop {
            let to = run.to.min(run.from.saturating_add(size));
            let bytes = disk.directory.read(id, run.from, to)?;
            // A file shorter than expected is read to its end.
            let short = offset(bytes.len()) < to - run.from;
            let last = to == run.to || short;
            let mut scan = frame::scan(&bytes, id, last, max_rows);
            if scan.consumed == 0 && !last && !scan.ended {
                size *= 2;
                continue;
            }
            let mut total = 0;
            let fits = |frame: &Frame| {
                total += frame.end - frame.row.end;
                total <= max_bytes
            };
            let keep = scan.frames.iter().map(fits).take_while(|fits| *fits).count().max(1);
            if let Some(first) = scan.frames.get(keep) {
                scan.consumed = first.start;
                scan.ended = false;
                scan.frames.truncate(keep);
            }
            let all = scan.consumed == bytes.len();
            let next = if scan.ended || (short && all) { run.to } else { run.from + offset(scan.consumed) };
            return Ok(Self {
                bytes: bytes.into(),
                frames: scan.frames,
                damaged: scan.damaged,
                base: run.from,
                next,
            });
        }
    }

    fn tag(&self, frame: &Frame, run: &DiskRun, id: SegmentId) -> Tag {
        Tag {
            table: frame.table,
            time_ms: frame.time_ms,
            position: Some(Position {
                seq: id.seq,
                generation: id.generation,
                end: self.base + offset(frame.end),
            }),
            replayed: run.replayed,
        }
    }

    fn row<R: Row>(&self, frame: &Frame) -> Result<R, serde_json::Error> {
        let mut row: R = serde_json::from_slice(&self.bytes[frame.row.clone()])?;
        let body =
            |range: &Option<std::ops::Range<usize>>| range.clone().map(|range| self.bytes.slice(range));
        row.set_payloads(Payloads { request: body(&frame.request), response: body(&frame.response) });
        Ok(row)
    }
}
