//! The backlog: rows that have been appended and are not in the database yet; the one list that everything else works
//! on.
//!
//! It is a sequence of runs, in the order of appending. A memory run holds rows; a disk run is a stretch of a segment
//! whose rows are read back when their turn comes. While the database keeps up there is a single short memory run; an
//! outage fills the memory, then grows disk runs; a start-up begins with disk runs.

use std::collections::{BTreeMap, VecDeque};

use super::directory::{Leftover, SegmentId};
use super::frame::END;
use super::{Payloads, Row};
use crate::domain::label::LogTable;

/// One value for each table, indexed by `table as usize`.
pub(super) type PerTable<T> = [T; LogTable::ALL.len()];

/// Counts of a table's rows by their outcome, since start.
///
/// `accepted = pending + acknowledged + rejected + dropped`, at every moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Appended.
    pub accepted: u64,
    /// Not in the database yet.
    pub pending: u64,
    /// In the database.
    pub acknowledged: u64,
    /// Refused by the database for their contents; kept in `rejected.jsonl`.
    pub rejected: u64,
    /// Lost: no room in memory nor on disk, or their part of the journal is damaged, cannot be read or was deleted.
    pub dropped: u64,
}

/// The end of a record in the journal. Later records compare greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Position {
    pub(super) seq: u64,
    pub(super) generation: u32,
    pub(super) end: u64,
}

/// Bookkeeping of a row that is on its way into the database.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tag {
    pub(super) table: LogTable,
    pub(super) time_ms: u64,
    /// `None`: in memory only.
    pub(super) position: Option<Position>,
    /// Appended by an earlier process.
    pub(super) replayed: bool,
}

pub(super) struct Entry<R> {
    pub(super) row: R,
    pub(super) tag: Tag,
    pub(super) bytes: usize,
}

pub(super) enum Run<R> {
    Memory(VecDeque<Entry<R>>),
    Disk(DiskRun),
}

/// Rows of one segment, between two record boundaries.
#[derive(Debug, Clone)]
pub(super) struct DiskRun {
    pub(super) seq: u64,
    pub(super) from: u64,
    pub(super) to: u64,
    /// Number of rows; meaningless until `counted`.
    pub(super) rows: PerTable<u64>,
    pub(super) counted: bool,
    pub(super) oldest_ms: u64,
    pub(super) replayed: bool,
    /// Reads that failed in a row.
    pub(super) failures: u32,
}

#[derive(Debug, Clone)]
pub(super) struct Segment {
    pub(super) id: SegmentId,
    pub(super) len: u64,
    /// Rows in it that are not in the database.
    pub(super) unacknowledged: u64,
    /// No longer appended to.
    pub(super) sealed: bool,
    /// Its bodies have been dropped.
    pub(super) stripped: bool,
}

/// Limits of the rows that wait in memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct MemoryLimits {
    pub(super) rows: usize,
    pub(super) bytes: usize,
    /// Rows that make a full batch.
    pub(super) batch: usize,
}

/// A record as it lies in the active segment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Written {
    pub(super) id: SegmentId,
    pub(super) start: u64,
    pub(super) end: u64,
    /// The segment is full.
    pub(super) sealed: bool,
}

/// What the caller of [`Backlog::append`] has to do and to report.
#[derive(Debug, Default)]
pub(super) struct Appended {
    /// The writer may have been waiting for this row.
    pub(super) wake: bool,
    pub(super) row_dropped: bool,
    pub(super) bodies_dropped: bool,
}

pub(super) struct Backlog<R> {
    pub(super) runs: VecDeque<Run<R>>,
    pub(super) segments: BTreeMap<u64, Segment>,
    limits: MemoryLimits,
    memory_rows: usize,
    memory_bytes: usize,
    /// Rows in counted runs.
    waiting: u64,
    /// When the oldest row of the batch that is being inserted was appended.
    in_flight: Option<u64>,
    /// Rows of that batch that are not in the journal.
    in_flight_unwritten: usize,
    pub(super) own: PerTable<Tally>,
    pub(super) replayed: PerTable<Tally>,
}

impl<R: Row> Backlog<R> {
    pub(super) fn new(limits: MemoryLimits, leftovers: Vec<Leftover>) -> Self {
        let mut backlog = Self {
            runs: VecDeque::new(),
            segments: BTreeMap::new(),
            limits,
            memory_rows: 0,
            memory_bytes: 0,
            waiting: 0,
            in_flight: None,
            in_flight_unwritten: 0,
            own: Default::default(),
            replayed: Default::default(),
        };
        for Leftover { id, from, len } in leftovers {
            backlog
                .segments
                .insert(id.seq, Segment { id, len, unacknowledged: 0, sealed: true, stripped: false });
            backlog.runs.push_back(Run::Disk(DiskRun {
                seq: id.seq,
                from,
                to: len,
                rows: Default::default(),
                counted: false,
                oldest_ms: u64::MAX,
                replayed: true,
                failures: 0,
            }));
        }
        backlog
    }

    /// Takes over a row; `written` says where it lies in the journal, and whether its bodies do too.
    pub(super) fn append(
        &mut self,
        mut row: R,
        table: LogTable,
        time_ms: u64,
        bytes: usize,
        written: Option<(Written, bool)>,
    ) -> Appended {
        let mut done = Appended::default();
        self.own[table as usize].accepted += 1;
        if let Some((at, _)) = written {
            let segment = self.segments.entry(at.id.seq).or_insert(Segment {
                id: at.id,
                len: 0,
                unacknowledged: 0,
                sealed: false,
                stripped: false,
            });
            segment.len = at.end;
            segment.unacknowledged += 1;
            segment.sealed = at.sealed;
        }
        let room = self.memory_rows < self.limits.rows;
        let light = self.memory_bytes.saturating_add(bytes) <= self.limits.bytes;
        // Once rows are left to the disk, their successors are too, until the writer has caught up: the memory is for
        // rows that go into the database at once, in order.
        let behind = matches!(self.runs.back(), Some(Run::Disk(run)) if !run.replayed);
        match written {
            Some((at, with_bodies)) if behind || !room || !light => {
                self.extend_disk(at, table, time_ms);
                done.bodies_dropped = bytes > 0 && !with_bodies;
            }
            None if !room => {
                self.own[table as usize].dropped += 1;
                done.row_dropped = true;
                return done;
            }
            _ => {
                let mut bytes = bytes;
                if !light && bytes > 0 {
                    row.set_payloads(Payloads::default());
                    bytes = 0;
                    done.bodies_dropped = true;
                }
                let position = written.map(|(at, _)| at.position());
                self.push_memory(Entry {
                    row,
                    tag: Tag { table, time_ms, position, replayed: false },
                    bytes,
                });
            }
        }
        self.own[table as usize].pending += 1;
        self.waiting += 1;
        let batch = u64::try_from(self.limits.batch).unwrap_or(u64::MAX);
        done.wake = self.waiting == 1 || self.waiting == batch;
        done
    }

    fn push_memory(&mut self, entry: Entry<R>) {
        self.memory_rows += 1;
        self.memory_bytes += entry.bytes;
        match self.runs.back_mut() {
            Some(Run::Memory(rows)) => rows.push_back(entry),
            _ => {
                // Allocates room for a whole batch: growing would move the waiting rows, in the middle of a request.
                let room = if self.runs.is_empty() { self.limits.batch.min(self.limits.rows) } else { 1 };
                let mut rows = VecDeque::with_capacity(room);
                rows.push_back(entry);
                self.runs.push_back(Run::Memory(rows));
            }
        }
    }

    fn extend_disk(&mut self, at: Written, table: LogTable, time_ms: u64) {
        match self.runs.back_mut() {
            Some(Run::Disk(run)) if run.seq == at.id.seq && run.to == at.start => {
                run.to = at.end;
                run.rows[table as usize] += 1;
            }
            _ => {
                let mut rows = PerTable::default();
                rows[table as usize] = 1;
                self.runs.push_back(Run::Disk(DiskRun {
                    seq: at.id.seq,
                    from: at.start,
                    to: at.end,
                    rows,
                    counted: true,
                    oldest_ms: time_ms,
                    replayed: false,
                    failures: 0,
                }));
            }
        }
    }

    /// Records how many rows a leftover run holds and where its last record ends. `oldest_ms` is when its first row was
    /// appended.
    pub(super) fn counted(&mut self, seq: u64, end: u64, rows: PerTable<u64>, oldest_ms: u64) {
        let run = self.runs.iter_mut().find_map(|run| match run {
            Run::Disk(run) if run.seq == seq && !run.counted => Some(run),
            _ => None,
        });
        let Some(run) = run else { return };
        run.to = end;
        run.rows = rows;
        run.oldest_ms = oldest_ms;
        run.counted = true;
        for (tally, rows) in self.replayed.iter_mut().zip(rows) {
            tally.accepted += rows;
            tally.pending += rows;
        }
        let all = rows.iter().sum::<u64>();
        self.waiting += all;
        if let Some(segment) = self.segments.get_mut(&seq) {
            segment.unacknowledged += all;
            segment.len = end;
        }
        // A stretch without rows is damaged, and has been reported.
        self.runs.retain(
            |run| !matches!(run, Run::Disk(run) if run.counted && run.rows.iter().all(|rows| *rows == 0)),
        );
    }

    /// Rows that the writer can take now. None while the first run still has to be counted.
    pub(super) fn waiting(&self) -> u64 {
        if matches!(self.runs.front(), Some(Run::Disk(run)) if !run.counted) { 0 } else { self.waiting }
    }

    /// When the first waiting row was appended.
    pub(super) fn waiting_since(&self) -> Option<u64> {
        self.runs.front().and_then(|run| match run {
            Run::Memory(rows) => rows.front().map(|entry| entry.tag.time_ms),
            Run::Disk(run) => run.counted.then_some(run.oldest_ms),
        })
    }

    /// When the oldest row that is not in the database was appended.
    pub(super) fn oldest(&self) -> Option<u64> {
        self.in_flight.or_else(|| self.waiting_since())
    }

    /// Nothing is waiting, being inserted or still to be counted.
    pub(super) fn is_drained(&self) -> bool {
        self.runs.is_empty() && self.in_flight.is_none()
    }

    /// No row of an earlier process is still to be counted or inserted.
    pub(super) fn is_replayed(&self) -> bool {
        let uncounted = |run: &Run<R>| matches!(run, Run::Disk(run) if !run.counted);
        self.replayed.iter().all(|tally| tally.pending == 0) && !self.runs.iter().any(uncounted)
    }

    /// Rows in memory, without those being inserted.
    #[cfg(test)]
    pub(super) fn memory_rows(&self) -> usize {
        self.memory_rows
    }

    /// Bytes of the segments' files, with the mark that ends each.
    pub(super) fn disk_bytes(&self) -> u64 {
        self.segments.values().map(|segment| segment.len + END as u64).sum()
    }

    /// Rows that would be lost if the process ended now.
    pub(super) fn only_in_memory(&self) -> usize {
        let unwritten = |rows: &VecDeque<Entry<R>>| rows.iter().filter(|e| e.tag.position.is_none()).count();
        let of = |run: &Run<R>| if let Run::Memory(rows) = run { unwritten(rows) } else { 0 };
        self.in_flight_unwritten + self.runs.iter().map(of).sum::<usize>()
    }

    /// Takes rows from the first run if they are in memory.
    pub(super) fn take_memory(&mut self, max_rows: usize, max_bytes: usize) -> Vec<Entry<R>> {
        let mut taken = Vec::new();
        if let Some(Run::Memory(rows)) = self.runs.front_mut() {
            taken.reserve_exact(max_rows.min(rows.len()));
            let mut bytes = 0;
            while taken.len() < max_rows
                && let Some(entry) =
                    rows.pop_front_if(|next| taken.is_empty() || bytes + next.bytes <= max_bytes)
            {
                bytes += entry.bytes;
                taken.push(entry);
            }
            if rows.is_empty() {
                self.runs.pop_front();
            }
            self.memory_rows -= taken.len();
            self.memory_bytes -= bytes;
            self.took(taken.iter().map(|entry| &entry.tag));
        }
        taken
    }

    /// Notes that rows have left the runs for the database.
    pub(super) fn took<'a>(&mut self, tags: impl Iterator<Item = &'a Tag>) {
        for tag in tags {
            self.waiting = self.waiting.saturating_sub(1);
            self.in_flight_unwritten += usize::from(tag.position.is_none());
            self.in_flight = Some(self.in_flight.map_or(tag.time_ms, |oldest| oldest.min(tag.time_ms)));
        }
    }

    /// Settles a batch: each row is in the database, or was `rejected`. Returns the position up to which the journal is
    /// settled.
    pub(super) fn settle(&mut self, rows: impl Iterator<Item = (Tag, bool)>) -> Option<Position> {
        let mut upto = None;
        for (tag, rejected) in rows {
            let tally = self.tally_mut(tag.table, tag.replayed);
            tally.pending = tally.pending.saturating_sub(1);
            *if rejected { &mut tally.rejected } else { &mut tally.acknowledged } += 1;
            upto = upto.max(tag.position);
            if let Some(segment) = tag.position.and_then(|at| self.segments.get_mut(&at.seq)) {
                segment.unacknowledged = segment.unacknowledged.saturating_sub(1);
            }
        }
        self.in_flight = None;
        self.in_flight_unwritten = 0;
        // A segment that was rewritten since the row was read has other offsets.
        upto.filter(|to| self.segments.get(&to.seq).is_none_or(|s| s.id.generation == to.generation))
    }

    /// Forgets the segments whose rows are all in the database.
    pub(super) fn remove_finished(&mut self) -> Vec<SegmentId> {
        let is_to_be_read =
            |runs: &VecDeque<Run<R>>, seq| runs.iter().any(|r| matches!(r, Run::Disk(run) if run.seq == seq));
        let finished: Vec<SegmentId> = self
            .segments
            .values()
            .filter(|s| s.sealed && s.unacknowledged == 0 && !is_to_be_read(&self.runs, s.id.seq))
            .map(|s| s.id)
            .collect();
        for id in &finished {
            self.segments.remove(&id.seq);
        }
        finished
    }

    /// Forgets a segment whose file is to be removed, and gives up its rows that are nowhere else. Those in memory, or on
    /// their way into the database, are in memory only from now on.
    pub(super) fn drop_segment(&mut self, seq: u64) -> PerTable<u64> {
        let mut lost = PerTable::<u64>::default();
        let mut in_memory = 0;
        for mut run in std::mem::take(&mut self.runs) {
            match &mut run {
                Run::Disk(gone) if gone.seq == seq => {
                    self.lose(gone);
                    lost.iter_mut().zip(gone.rows).for_each(|(lost, rows)| *lost += rows);
                    continue;
                }
                Run::Disk(_) => {}
                Run::Memory(entries) => {
                    let of_segment =
                        |entry: &&mut Entry<R>| entry.tag.position.is_some_and(|at| at.seq == seq);
                    for entry in entries.iter_mut().filter(of_segment) {
                        entry.tag.position = None;
                        in_memory += 1;
                    }
                }
            }
            self.runs.push_back(run);
        }
        let unacknowledged = self.segments.remove(&seq).map_or(0, |segment| segment.unacknowledged);
        let in_flight = usize::try_from(unacknowledged).unwrap_or(usize::MAX).saturating_sub(in_memory);
        self.in_flight_unwritten += in_flight;
        lost
    }

    /// Gives up `rows` of a run that cannot be read.
    pub(super) fn lose(&mut self, run: &DiskRun) {
        for (table, lost) in LogTable::ALL.iter().zip(run.rows) {
            let tally = self.tally_mut(*table, run.replayed);
            tally.pending = tally.pending.saturating_sub(lost);
            tally.dropped += lost;
            self.waiting = self.waiting.saturating_sub(lost);
            if let Some(segment) = self.segments.get_mut(&run.seq) {
                segment.unacknowledged = segment.unacknowledged.saturating_sub(lost);
            }
        }
    }

    fn tally_mut(&mut self, table: LogTable, replayed: bool) -> &mut Tally {
        let tallies = if replayed { &mut self.replayed } else { &mut self.own };
        &mut tallies[table as usize]
    }
}

impl Written {
    pub(super) fn position(self) -> Position {
        Position { seq: self.id.seq, generation: self.id.generation, end: self.end }
    }
}
