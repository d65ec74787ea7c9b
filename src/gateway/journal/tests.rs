use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Instant;

use proptest::prelude::*;
use serde::Deserialize;

use super::*;

mod files;
mod kill;
mod size;

/// A numbered row, so that order and completeness can be checked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(in crate::gateway) struct TestRow {
    pub(in crate::gateway) number: u64,
    pub(in crate::gateway) embedding: bool,
    #[serde(skip)]
    pub(in crate::gateway) payloads: Payloads,
}

impl TestRow {
    pub(in crate::gateway) fn new(number: u64) -> Self {
        Self { number, embedding: false, payloads: Payloads::default() }
    }

    pub(in crate::gateway) fn with_bodies(number: u64, size: usize) -> Self {
        let body = |fill: u8| Some(Bytes::from(vec![fill; size]));
        Self { number, embedding: false, payloads: Payloads { request: body(b'q'), response: body(b'a') } }
    }
}

impl Row for TestRow {
    fn table(&self) -> LogTable {
        if self.embedding { LogTable::Embeddings } else { LogTable::Completions }
    }

    fn payloads(&self) -> Payloads {
        self.payloads.clone()
    }

    fn set_payloads(&mut self, payloads: Payloads) {
        self.payloads = payloads;
    }
}

/// Collects the events of a journal or a log.
#[derive(Clone, Default)]
pub(in crate::gateway) struct Told(Arc<Mutex<Vec<LogEvent>>>);

impl Told {
    pub(in crate::gateway) fn observer(&self) -> Observer {
        let told = self.0.clone();
        Box::new(move |event| told.lock().push(event))
    }

    pub(in crate::gateway) fn sum(&self, of: impl Fn(&LogEvent) -> u64) -> u64 {
        self.0.lock().iter().map(of).sum()
    }

    pub(in crate::gateway) fn all(&self) -> Vec<LogEvent> {
        self.0.lock().clone()
    }

    pub(in crate::gateway) fn payloads_dropped(&self) -> u64 {
        self.sum(|event| if let LogEvent::PayloadsDropped { rows, .. } = event { *rows } else { 0 })
    }

    pub(in crate::gateway) fn rows_dropped(&self) -> u64 {
        self.sum(|event| if let LogEvent::RowsDropped { rows, .. } = event { *rows } else { 0 })
    }

    fn damaged(&self) -> u64 {
        self.sum(|event| if let LogEvent::RecordsDamaged { records } = event { *records } else { 0 })
    }

    fn journal_failed(&self) -> u64 {
        self.sum(|event| u64::from(*event == LogEvent::JournalFailed))
    }
}

pub(in crate::gateway) fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(20), "in vain: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn config(dir: &Path) -> JournalConfig {
    JournalConfig { dir: Some(dir.into()), ..JournalConfig::default() }
}

fn open(config: JournalConfig) -> (Journal<TestRow>, Told) {
    let told = Told::default();
    let journal = Journal::open(config, told.observer()).unwrap();
    let counted = || {
        let backlog = journal.shared.backlog.lock();
        backlog.runs.iter().all(|run| !matches!(run, backlog::Run::Disk(run) if !run.counted))
    };
    wait_until("leftovers are counted", counted);
    (journal, told)
}

fn pending(journal: &Journal<TestRow>) -> u64 {
    LogTable::ALL.iter().map(|table| journal.status().pending(*table)).sum()
}

fn next(journal: &Journal<TestRow>) -> Option<Batch<TestRow>> {
    loop {
        match journal.take() {
            Next::Batch(batch) => return Some(batch),
            Next::Nothing => return None,
            Next::Disk => match journal.read_disk() {
                Ok(None) | Err(_) => {}
                Ok(batch) => return batch,
            },
        }
    }
}

/// Takes and settles everything, as the writer would.
fn drain(journal: &Journal<TestRow>) -> Vec<TestRow> {
    let mut rows = Vec::new();
    while let Some(batch) = next(journal) {
        rows.extend(batch.groups.iter().flat_map(|group| group.rows.iter().cloned()));
        journal.settle(&batch);
    }
    rows
}

fn numbers(rows: &[TestRow]) -> Vec<u64> {
    rows.iter().map(|row| row.number).collect()
}

fn segments(dir: &Path) -> Vec<std::path::PathBuf> {
    let mut found: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.retain(|path| path.extension().is_some_and(|extension| extension == "seg"));
    found.sort();
    found
}

#[test]
fn what_a_process_left_is_replayed_in_order_with_its_bodies() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(config(dir.path()));
    let rows: Vec<_> = (0..5).map(|n| TestRow::with_bodies(n, 100)).collect();
    rows.iter().cloned().for_each(|row| journal.append(row));
    drop(journal);
    let (journal, told) = open(config(dir.path()));
    assert_eq!(pending(&journal), 5);
    assert!(journal.status().oldest.is_some());
    journal.append(TestRow::new(5));
    let replayed = drain(&journal);
    assert_eq!(numbers(&replayed), [0, 1, 2, 3, 4, 5]);
    assert_eq!(replayed[..5], rows);
    assert_eq!(
        journal.tally(LogTable::Completions),
        Tally { accepted: 1, acknowledged: 1, ..Tally::default() }
    );
    assert_eq!(journal.replay_tally(LogTable::Completions).acknowledged, 5);
    assert_eq!((told.damaged(), journal.is_drained()), (0, true));
    assert_eq!(segments(dir.path()).len(), 1, "the active one only");
    drop(journal);
    let (journal, _) = open(config(dir.path()));
    assert_eq!(pending(&journal), 0, "the mark says that all is done");
    assert!(segments(dir.path()).is_empty());
}

#[test]
fn a_clean_exit_leaves_no_segment() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(config(dir.path()));
    journal.append(TestRow::new(0));
    drain(&journal);
    journal.finish();
    assert!(segments(dir.path()).is_empty());
    journal.append(TestRow::new(1));
    journal.finish();
    assert_eq!(segments(dir.path()).len(), 1, "a row that is not in the database stays");
}

#[test]
fn segments_are_removed_as_their_rows_arrive() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(JournalConfig { segment_size: 1000, batch_rows: 10, ..config(dir.path()) });
    (0..100).for_each(|n| journal.append(TestRow::new(n)));
    let mut left = segments(dir.path()).len();
    assert!(left > 5);
    while let Some(batch) = next(&journal) {
        journal.settle(&batch);
        let now = segments(dir.path()).len();
        assert!(now <= left);
        left = now;
    }
    assert!(left <= 1);
}

#[test]
fn rows_beyond_the_memory_wait_on_disk_and_keep_their_order() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, told) =
        open(JournalConfig { memory_rows: 10, batch_rows: 7, segment_size: 2000, ..config(dir.path()) });
    (0..100).for_each(|n| journal.append(TestRow::with_bodies(n, 10)));
    assert_eq!((journal.rows_in_memory(), pending(&journal)), (10, 100));
    // More rows arrive while the first ones leave.
    let mut rows = Vec::new();
    for n in 100..120 {
        let batch = next(&journal).unwrap();
        rows.extend(batch.groups[0].rows.clone());
        journal.append(TestRow::with_bodies(n, 10));
        journal.settle(&batch);
    }
    rows.extend(drain(&journal));
    assert_eq!(numbers(&rows), (0..120).collect::<Vec<_>>());
    assert!(rows.iter().all(|row| row.payloads.request.as_ref().is_some_and(|body| body.len() == 10)));
    journal.append(TestRow::new(120));
    assert_eq!(journal.rows_in_memory(), 1, "caught up: the memory is used again");
    assert_eq!((told.payloads_dropped(), told.rows_dropped()), (0, 0));
}

#[test]
fn bodies_in_memory_are_bounded_too() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(JournalConfig { memory_bytes: 1000, batch_bytes: 500, ..config(dir.path()) });
    (0..10).for_each(|n| journal.append(TestRow::with_bodies(n, 100)));
    assert_eq!(journal.rows_in_memory(), 5);
    let Some(batch) = next(&journal) else { panic!("rows wait") };
    assert_eq!(batch.groups[0].rows.len(), 2, "an insert's bodies are bounded");
    journal.settle(&batch);
    assert_eq!(numbers(&drain(&journal)), (2..10).collect::<Vec<_>>());
}

#[test]
fn a_record_larger_than_a_chunk_and_a_segment_is_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(JournalConfig { segment_size: 1000, ..config(dir.path()) });
    (0..3).for_each(|n| journal.append(TestRow::with_bodies(n, 3 << 20)));
    drop(journal);
    let (journal, _) = open(config(dir.path()));
    let rows = drain(&journal);
    assert_eq!(numbers(&rows), [0, 1, 2]);
    assert!(rows.iter().all(|row| row.payloads.len() == 6 << 20));
}

/// The total size of the files in a directory.
fn bytes(dir: &Path) -> u64 {
    fs::read_dir(dir).unwrap().filter_map(|entry| Some(entry.ok()?.metadata().ok()?.len())).sum()
}

#[test]
fn a_torn_end_and_damage_in_the_middle_are_passed_over_and_counted() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(config(dir.path()));
    (0..10).for_each(|n| journal.append(TestRow::new(n)));
    drop(journal);
    let path = segments(dir.path()).remove(0);
    let mut bytes = fs::read(&path).unwrap();
    bytes.truncate(bytes.len() - frame::END - 3);
    let third = bytes.len() / 10 * 3 + 5;
    bytes[third] ^= 0xff;
    fs::write(&path, bytes).unwrap();
    let (journal, told) = open(config(dir.path()));
    assert_eq!((pending(&journal), told.damaged()), (8, 2));
    assert_eq!(numbers(&drain(&journal)), [0, 1, 2, 4, 5, 6, 7, 8]);
    assert_eq!(told.damaged(), 2, "counted once");
    assert!(journal.is_drained());
}

/// What a file ends with after a power cut. Nothing waits for rows that are not there, and the file goes.
#[test]
fn a_segment_whose_end_was_lost_is_done_with_its_rows() {
    for whole in [0, 4] {
        let dir = tempfile::tempdir().unwrap();
        let (journal, _) = open(config(dir.path()));
        (0..10).for_each(|n| journal.append(TestRow::new(n)));
        drop(journal);
        let path = segments(dir.path()).remove(0);
        let mut bytes = fs::read(&path).unwrap();
        let record = (bytes.len() - frame::END) / 10;
        bytes[whole * record..].fill(0);
        fs::write(&path, bytes).unwrap();
        let (journal, told) = open(config(dir.path()));
        assert_eq!((pending(&journal), told.damaged()), (whole as u64, 1));
        assert_eq!(drain(&journal).len(), whole);
        wait_until("nothing is left", || journal.is_drained());
        wait_until("the segment is gone", || segments(dir.path()).is_empty());
    }
}

#[test]
fn a_segment_that_vanishes_is_lost_loudly_and_blocks_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, told) = open(JournalConfig { memory_rows: 2, segment_size: 1000, ..config(dir.path()) });
    (0..50).for_each(|n| journal.append(TestRow::new(n)));
    fs::remove_file(&segments(dir.path())[1]).unwrap();
    let rows = drain(&journal);
    let lost = 50 - u64::try_from(rows.len()).unwrap();
    assert!(lost > 0 && journal.is_drained());
    assert_eq!((told.rows_dropped(), journal.tally(LogTable::Completions).dropped), (lost, lost));
    assert_eq!(rows.last().unwrap().number, 49);
}

#[test]
fn a_row_of_another_version_is_set_aside() {
    #[derive(Serialize, Deserialize)]
    struct Other;
    impl Row for Other {
        fn table(&self) -> LogTable {
            LogTable::Embeddings
        }
        fn payloads(&self) -> Payloads {
            Payloads::default()
        }
        fn set_payloads(&mut self, _: Payloads) {}
    }
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::<Other>::open(config(dir.path()), Box::new(|_| {})).unwrap();
    journal.append(Other);
    drop(journal);
    let (journal, told) = open(config(dir.path()));
    assert!(drain(&journal).is_empty() && journal.is_drained());
    assert_eq!(journal.replay_tally(LogTable::Embeddings).rejected, 1);
    assert!(told.all().contains(&LogEvent::RowsRejected { table: LogTable::Embeddings, rows: 1 }));
    assert!(fs::read_to_string(dir.path().join("rejected.jsonl")).unwrap().contains("\"text\":\"null\""));
}

#[test]
fn a_hanging_file_system_holds_nobody_for_long() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, told) = open(config(dir.path()));
    journal.append(TestRow::new(0));
    let hanging = journal.shared.disk.as_ref().unwrap().active.lock();
    std::thread::scope(|scope| {
        let appending = scope.spawn(|| {
            let start = Instant::now();
            (1..100).for_each(|n| journal.append(TestRow::new(n)));
            start.elapsed()
        });
        // One patience in all, not 99; the bound is generous because the machine may be busy.
        assert!(appending.join().unwrap() < JournalConfig::default().patience * 50);
    });
    drop(hanging);
    assert_eq!((told.journal_failed(), journal.only_in_memory()), (99, 99));
    journal.append(TestRow::new(100));
    assert_eq!(journal.only_in_memory(), 99, "the disk is used again at once");
    assert_eq!(numbers(&drain(&journal)), (0..=100).collect::<Vec<_>>());
    assert_eq!(journal.only_in_memory(), 0);
}

#[test]
fn without_a_usable_directory_rows_wait_in_memory() {
    let parent = tempfile::tempdir().unwrap();
    let (dir, away) = (parent.path().join("journal"), parent.path().join("away"));
    let (journal, told) = open(JournalConfig { segment_size: 1, memory_rows: 20, ..config(&dir) });
    journal.append(TestRow::new(0));
    // A file in its place: not even root can create a segment there.
    fs::rename(&dir, &away).unwrap();
    fs::write(&dir, "").unwrap();
    (1..10).for_each(|n| journal.append(TestRow::new(n)));
    assert_eq!((told.journal_failed(), journal.only_in_memory(), told.rows_dropped()), (9, 9, 0));
    fs::remove_file(&dir).unwrap();
    fs::rename(&away, &dir).unwrap();
    let number = std::cell::Cell::new(10);
    wait_until("the directory is tried again", || {
        // One row at a time, so that the memory does not fill.
        journal.append(TestRow::new(number.get()));
        number.set(number.get() + 1);
        let batch = next(&journal).unwrap();
        journal.settle(&batch);
        let failed = told.journal_failed();
        journal.append(TestRow::new(number.get()));
        number.set(number.get() + 1);
        told.journal_failed() == failed
    });
    drain(&journal);
    let tally = journal.tally(LogTable::Completions);
    assert_eq!((tally.accepted, tally.acknowledged), (number.get(), number.get()));
}

#[test]
fn without_a_directory_the_queue_is_bounded_and_says_what_it_drops() {
    let (journal, told) =
        open(JournalConfig { memory_rows: 10, memory_bytes: 500, ..JournalConfig::default() });
    (0..15).for_each(|n| journal.append(TestRow::with_bodies(n, 50)));
    assert_eq!((told.payloads_dropped(), told.rows_dropped()), (5, 5));
    let tally = journal.tally(LogTable::Completions);
    assert_eq!((tally.accepted, tally.pending, tally.dropped), (15, 10, 5));
    let rows = drain(&journal);
    assert_eq!(numbers(&rows), (0..10).collect::<Vec<_>>());
    assert!(rows[..5].iter().all(|row| row.payloads.len() == 100));
}

#[test]
fn many_threads_append_and_nothing_is_lost_or_doubled() {
    let dir = tempfile::tempdir().unwrap();
    // A thread that waits for another keeps the order of its rows, however busy the machine.
    let patience = Duration::from_secs(60);
    let settings = JournalConfig { segment_size: 20_000, memory_rows: 50, patience, ..config(dir.path()) };
    let (journal, told) = open(settings);
    let mut rows = Vec::new();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let journal = &journal;
            scope.spawn(move || {
                (0..1000).for_each(|n| journal.append(TestRow::with_bodies(thread * 1000 + n, 20)));
            });
        }
        while rows.len() < 4000 {
            rows.extend(drain(&journal));
            assert_eq!((told.journal_failed(), told.rows_dropped()), (0, 0));
        }
    });
    for thread in 0..4 {
        let of_thread: Vec<_> = numbers(&rows).into_iter().filter(|n| n / 1000 == thread).collect();
        assert_eq!(of_thread, (thread * 1000..(thread + 1) * 1000).collect::<Vec<_>>());
    }
    assert!(journal.is_drained() && segments(dir.path()).len() <= 1);
}

#[derive(Debug, Clone)]
enum Step {
    Append {
        rows: u64,
        body: Option<usize>,
    },
    /// Rows reach the database, and the journal learns of it.
    Write,
    /// Rows reach the database, and the process dies before it learns of it.
    WriteThenCrash,
    Crash,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let append = (1_u64..20, proptest::option::of(0_usize..200));
    let step = prop_oneof![
        4 => append.prop_map(|(rows, body)| Step::Append { rows, body }),
        4 => Just(Step::Write),
        1 => Just(Step::WriteThenCrash),
        1 => Just(Step::Crash),
    ];
    proptest::collection::vec(step, 1..30)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn whatever_happens_every_row_arrives(steps in steps(), memory_rows in 1_usize..30, segment_size in 1_u64..4000) {
        let dir = tempfile::tempdir().unwrap();
        let settings = JournalConfig { memory_rows, segment_size, batch_rows: 7, ..config(dir.path()) };
        let (mut journal, _) = open(settings.clone());
        let (mut number, mut database) = (0, BTreeSet::new());
        for step in steps {
            match step {
                Step::Append { rows, body } => for _ in 0..rows {
                    journal.append(body.map_or(TestRow::new(number), |size| TestRow::with_bodies(number, size)));
                    number += 1;
                },
                Step::Write | Step::WriteThenCrash => if let Some(batch) = next(&journal) {
                    database.extend(batch.groups.iter().flat_map(|g| numbers(&g.rows)));
                    if matches!(step, Step::Write) {
                        journal.settle(&batch);
                    }
                },
                Step::Crash => {}
            }
            if matches!(step, Step::Crash | Step::WriteThenCrash) {
                drop(journal);
                journal = open(settings.clone()).0;
            }
            // Rows that are not in the database are pending; after a crash, some stored rows may be pending, too.
            prop_assert!(pending(&journal) >= number - u64::try_from(database.len()).unwrap());
        }
        database.extend(numbers(&drain(&journal)));
        prop_assert_eq!(database, (0..number).collect());
        prop_assert!(journal.is_drained());
        prop_assert!(segments(dir.path()).len() <= 1);
    }
}
