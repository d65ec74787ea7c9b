use std::collections::BTreeSet;

use super::super::journal::tests::{TestRow, Told, wait_until};
use super::super::journal::{JournalConfig, Payloads};
use super::*;

/// How the fake database behaves.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
enum Mood {
    #[default]
    Well,
    Down,
    /// Accepts connections and never answers.
    Hanging,
    Slow(Duration),
    /// Commits, then loses the answer.
    Forgetful,
}

#[derive(Default)]
struct Database {
    mood: Mood,
    /// Rows that are always refused.
    poison: BTreeSet<u64>,
    /// Rows that are refused with bodies.
    poisonous_bodies: BTreeSet<u64>,
    /// Rows on which the driver panics.
    explosive: BTreeSet<u64>,
    rows: Vec<TestRow>,
    batches: Vec<usize>,
}

#[derive(Clone, Default)]
struct Fake(Arc<Mutex<Database>>);

impl Fake {
    fn set(&self, mood: Mood) {
        self.0.lock().mood = mood;
    }

    fn numbers(&self) -> Vec<u64> {
        self.0.lock().rows.iter().map(|row| row.number).collect()
    }

    fn batches(&self) -> Vec<usize> {
        self.0.lock().batches.clone()
    }
}

impl Sink<TestRow> for Fake {
    async fn insert(&self, table: LogTable, rows: &[TestRow]) -> Result<u64, InsertError> {
        let mood = self.0.lock().mood;
        match mood {
            Mood::Down => return Err(InsertError::Unavailable("connection refused".into())),
            Mood::Hanging => std::future::pending().await,
            Mood::Slow(time) => time::sleep(time).await,
            Mood::Well | Mood::Forgetful => {}
        }
        let mut database = self.0.lock();
        database.batches.push(rows.len());
        assert!(rows.iter().all(|row| row.table() == table));
        if rows.iter().any(|row| database.explosive.contains(&row.number)) {
            drop(database);
            panic!("a driver's bug");
        }
        let refused = |row: &TestRow| {
            let bodies = row.payloads != Payloads::default();
            database.poison.contains(&row.number) || bodies && database.poisonous_bodies.contains(&row.number)
        };
        if rows.iter().any(refused) {
            return Err(InsertError::Refused("invalid byte sequence".into()));
        }
        let known: BTreeSet<u64> = database.rows.iter().map(|row| row.number).collect();
        let new: Vec<TestRow> = rows.iter().filter(|row| !known.contains(&row.number)).cloned().collect();
        let count = u64::try_from(new.len()).unwrap();
        database.rows.extend(new);
        if mood == Mood::Forgetful {
            database.mood = Mood::Well;
            return Err(InsertError::Unavailable("connection reset".into()));
        }
        Ok(count)
    }
}

struct Fixture {
    log: RequestLog<TestRow>,
    database: Fake,
    told: Told,
    dir: tempfile::TempDir,
}

const PATIENT: Duration = Duration::from_secs(20);

fn quick() -> WriterConfig {
    WriterConfig {
        max_age: Duration::from_millis(5),
        insert_timeout: Duration::from_millis(50),
        retry_min: Duration::from_millis(2),
        retry_max: Duration::from_millis(10),
    }
}

fn start(config: impl FnOnce(&mut JournalConfig, &mut WriterConfig), database: Fake) -> Fixture {
    let (told, dir) = (Told::default(), tempfile::tempdir().unwrap());
    let mut journal = JournalConfig { dir: Some(dir.path().join("journal")), ..JournalConfig::default() };
    let mut writer = quick();
    config(&mut journal, &mut writer);
    let journal = Journal::open(journal, told.observer()).unwrap();
    Fixture { log: RequestLog::start(journal, database.clone(), writer).unwrap(), database, told, dir }
}

impl Fixture {
    fn append(&self, numbers: std::ops::Range<u64>) {
        numbers.for_each(|number| self.log.append(TestRow::new(number)));
    }

    fn tally(&self) -> Tally {
        self.log.tally(LogTable::Completions)
    }

    fn rejected(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("journal/rejected.jsonl")).unwrap_or_default()
    }

    async fn until(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        let waiting = async {
            while !condition(self) {
                time::sleep(Duration::from_millis(1)).await;
            }
        };
        assert!(time::timeout(PATIENT, waiting).await.is_ok(), "in vain: {what}");
    }
}

#[tokio::test]
async fn rows_go_into_their_tables_in_batches_by_age_and_by_count() {
    let fixture = start(|journal, _| journal.batch_rows = 10, Fake::default());
    fixture.append(0..3);
    fixture.until("they are old enough", |f| f.database.numbers() == [0, 1, 2]).await;
    assert_eq!(fixture.database.batches(), [3]);
    fixture.append(3..28);
    fixture.log.append(TestRow { embedding: true, ..TestRow::new(28) });
    assert!(fixture.log.flush(PATIENT).await);
    assert_eq!(fixture.database.batches(), [3, 10, 10, 5, 1]);
    let completions = Tally { accepted: 28, acknowledged: 28, ..Tally::default() };
    assert_eq!(fixture.tally(), completions);
    assert_eq!(fixture.log.tally(LogTable::Embeddings).acknowledged, 1);
    assert_eq!(fixture.log.mismatch(LogTable::Completions, || 28), 0);
    assert_eq!(fixture.log.mismatch(LogTable::Completions, || 30), 2);
    assert_eq!(fixture.log.mismatch(LogTable::Completions, || 27), -1);
    let told = fixture.told.all();
    assert_eq!(told[0], LogEvent::DatabaseUp(true));
    assert!(told.contains(&LogEvent::RowsWritten { table: LogTable::Embeddings, rows: 1 }));
    assert!(told.iter().any(|event| matches!(event, LogEvent::Flushed { .. })));
}

#[tokio::test]
async fn an_outage_loses_nothing_keeps_the_order_and_is_told_once() {
    let database = Fake::default();
    database.set(Mood::Down);
    let settings = |journal: &mut JournalConfig, _: &mut WriterConfig| {
        (journal.memory_rows, journal.batch_rows, journal.segment_size) = (50, 20, 3000);
    };
    let fixture = start(settings, database.clone());
    fixture.append(0..500);
    fixture
        .until("it has been tried", |f| f.told.sum(|e| u64::from(matches!(e, LogEvent::Retried { .. }))) > 3)
        .await;
    let status = fixture.log.status();
    assert_eq!((status.pending(LogTable::Completions), fixture.tally().pending), (500, 500));
    assert!(status.oldest.is_some() && fixture.log.journal.rows_in_memory() <= 50);
    assert_eq!(fixture.log.mismatch(LogTable::Completions, || 500), 0, "a row that waits is accounted for");
    database.set(Mood::Well);
    fixture.append(500..600);
    assert!(fixture.log.flush(PATIENT).await);
    assert_eq!(database.numbers(), (0..600).collect::<Vec<_>>());
    let changes: Vec<_> =
        fixture.told.all().into_iter().filter(|event| matches!(event, LogEvent::DatabaseUp(_))).collect();
    assert_eq!(changes, [LogEvent::DatabaseUp(false), LogEvent::DatabaseUp(true)]);
    assert_eq!(fixture.log.status().oldest, None);
}

#[tokio::test]
async fn a_database_that_hangs_is_left_and_asked_again() {
    let database = Fake::default();
    database.set(Mood::Hanging);
    let fixture = start(|_, _| {}, database.clone());
    fixture.append(0..3);
    fixture.until("it is given up", |f| f.told.all().contains(&LogEvent::DatabaseUp(false))).await;
    database.set(Mood::Well);
    fixture.until("the rows arrive", |f| f.database.numbers() == [0, 1, 2]).await;
}

#[tokio::test]
async fn an_insert_that_needs_longer_than_the_limit_gets_longer() {
    let database = Fake::default();
    database.set(Mood::Slow(Duration::from_millis(100)));
    let fixture = start(|_, _| {}, database.clone());
    fixture.append(0..3);
    fixture.until("the rows arrive", |f| f.database.numbers() == [0, 1, 2]).await;
}

#[tokio::test]
async fn a_slow_database_holds_nobody_and_gets_larger_batches() {
    let database = Fake::default();
    database.set(Mood::Slow(Duration::from_millis(20)));
    let fixture = start(|journal, _| journal.batch_rows = 500, database.clone());
    let start = Instant::now();
    fixture.append(0..1000);
    assert!(start.elapsed() < Duration::from_millis(500), "appending waited for the database");
    assert!(fixture.log.flush(PATIENT).await);
    assert_eq!(database.numbers(), (0..1000).collect::<Vec<_>>());
    assert!(database.batches().contains(&500));
}

#[tokio::test]
async fn an_insert_whose_answer_was_lost_is_repeated_without_doubles() {
    let database = Fake::default();
    database.set(Mood::Forgetful);
    let fixture = start(|_, _| {}, database.clone());
    fixture.append(0..5);
    assert!(fixture.log.flush(PATIENT).await);
    assert_eq!(database.numbers(), [0, 1, 2, 3, 4]);
    assert_eq!(fixture.tally().acknowledged, 5);
}

#[tokio::test]
async fn a_poisonous_row_is_found_and_set_aside_and_the_others_go_in() {
    let database = Fake::default();
    database.0.lock().poison.extend([7, 8, 63]);
    database.0.lock().explosive.insert(30);
    let fixture = start(|_, _| {}, database.clone());
    fixture.append(0..100);
    assert!(fixture.log.flush(PATIENT).await);
    assert_eq!(database.numbers(), (0..100).filter(|n| ![7, 8, 30, 63].contains(n)).collect::<Vec<_>>());
    assert_eq!(fixture.tally(), Tally { accepted: 100, acknowledged: 96, rejected: 4, ..Tally::default() });
    assert_eq!(
        fixture.log.mismatch(LogTable::Completions, || 100),
        4,
        "they are not in the log, and that shows"
    );
    let rejected = fixture.rejected();
    let rejected: Vec<serde_json::Value> =
        rejected.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let numbers: Vec<_> = rejected.iter().map(|line| line["row"]["number"].as_u64().unwrap()).collect();
    assert_eq!(numbers, [7, 8, 30, 63]);
    assert_eq!(rejected[0]["error"], "invalid byte sequence");
}

#[tokio::test]
async fn a_row_with_poisonous_bodies_goes_in_without_them() {
    let database = Fake::default();
    database.0.lock().poisonous_bodies.insert(2);
    let fixture = start(|_, _| {}, database.clone());
    (0..5).for_each(|number| fixture.log.append(TestRow::with_bodies(number, 10)));
    assert!(fixture.log.flush(PATIENT).await);
    assert_eq!(database.numbers(), [0, 1, 2, 3, 4]);
    let without: Vec<u64> =
        database.0.lock().rows.iter().filter(|r| r.payloads.is_empty()).map(|r| r.number).collect();
    assert_eq!((without, fixture.told.payloads_dropped()), (vec![2], 1));
    assert_eq!((fixture.tally().acknowledged, fixture.tally().rejected), (5, 0));
    assert!(fixture.rejected().contains("qqqqqqqqqq"), "the bodies are kept");
}

#[tokio::test]
async fn closing_writes_what_waits_and_leaves_a_clean_directory() {
    let fixture = start(|_, writer| writer.max_age = Duration::from_secs(3600), Fake::default());
    fixture.append(0..10);
    assert_eq!(fixture.log.close(PATIENT).await, Closed { pending: 0, lost: 0 });
    assert_eq!(fixture.database.numbers().len(), 10);
    let mut names: Vec<_> = std::fs::read_dir(fixture.dir.path().join("journal"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["acknowledged", "lock"]);
}

#[tokio::test]
async fn closing_without_the_database_leaves_the_rows_to_the_next_start() {
    let database = Fake::default();
    database.set(Mood::Down);
    let Fixture { log, dir, .. } = start(|_, _| {}, database.clone());
    (0..10).for_each(|number| log.append(TestRow::new(number)));
    assert_eq!(log.close(Duration::from_millis(50)).await, Closed { pending: 10, lost: 0 });
    drop(log);
    database.set(Mood::Well);
    let settings = JournalConfig { dir: Some(dir.path().join("journal")), ..JournalConfig::default() };
    let told = Told::default();
    let log = RequestLog::start(Journal::open(settings, told.observer()).unwrap(), database.clone(), quick())
        .unwrap();
    log.append(TestRow::new(10));
    assert!(log.flush(PATIENT).await);
    assert_eq!(database.numbers(), (0..=10).collect::<Vec<_>>());
    assert_eq!(log.tally(LogTable::Completions).acknowledged, 1, "what others left is not in the audit");
    assert_eq!(log.mismatch(LogTable::Completions, || 1), 0);
    assert_eq!(told.sum(|e| if let LogEvent::RowsWritten { rows, .. } = e { *rows } else { 0 }), 11);
}

/// A database after whose inserts something panics.
struct Clumsy(Fake);

impl Sink<TestRow> for Clumsy {
    async fn insert(&self, table: LogTable, rows: &[TestRow]) -> Result<u64, InsertError> {
        self.0.insert(table, rows).await
    }

    async fn inserted(&self, _: &[TestRow]) {
        panic!("a bookkeeper's bug");
    }
}

#[tokio::test]
async fn a_panic_after_an_insert_does_not_end_the_log() {
    let database = Fake::default();
    let journal = Journal::open(JournalConfig::default(), Box::new(|_| {})).unwrap();
    let log = RequestLog::start(journal, Clumsy(database.clone()), quick()).unwrap();
    for number in 0..3 {
        log.append(TestRow::new(number));
        assert!(log.flush(PATIENT).await);
    }
    assert_eq!(database.numbers(), [0, 1, 2]);
}

/// A database that blocks the thread while the lock is held elsewhere.
struct Holding(Fake, Arc<Mutex<()>>);

impl Sink<TestRow> for Holding {
    async fn insert(&self, table: LogTable, rows: &[TestRow]) -> Result<u64, InsertError> {
        drop(self.1.lock());
        self.0.insert(table, rows).await
    }

    fn holds_thread(&self) -> bool {
        true
    }
}

/// Holds the lock until the first value is dropped.
fn hold(lock: &Arc<Mutex<()>>) -> (std::sync::mpsc::Sender<()>, std::thread::JoinHandle<()>) {
    let (hold, dropped) = std::sync::mpsc::channel();
    let (held, holds) = std::sync::mpsc::channel();
    let lock = lock.clone();
    let thread = std::thread::spawn(move || {
        let _lock = lock.lock();
        held.send(()).unwrap();
        let _ = dropped.recv();
    });
    holds.recv().unwrap();
    (hold, thread)
}

#[tokio::test]
async fn a_database_that_holds_its_thread_holds_nobody_else() {
    let (database, lock, dir) = (Fake::default(), Arc::new(Mutex::new(())), tempfile::tempdir().unwrap());
    let open = || {
        let settings = JournalConfig { dir: Some(dir.path().to_owned()), ..JournalConfig::default() };
        Journal::open(settings, Box::new(|_| {}))
    };
    let start =
        |journal| RequestLog::start(journal, Holding(database.clone(), lock.clone()), quick()).unwrap();
    let log = start(open().unwrap());
    log.append(TestRow::new(0));
    assert!(log.flush(PATIENT).await);

    let (hold, held) = hold(&lock);
    (1..2000).for_each(|number| log.append(TestRow::new(number)));
    assert!(!log.flush(Duration::from_millis(20)).await, "this thread goes on");
    assert_eq!(log.close(Duration::from_millis(20)).await, Closed { pending: 1999, lost: 0 });
    drop(log);
    drop(hold);
    held.join().unwrap();
    // The thread ends with its insert, which frees the journal.
    let since = Instant::now();
    let journal = loop {
        match open() {
            Ok(journal) => break journal,
            Err(error) => assert!(since.elapsed() < PATIENT, "the thread goes on: {error}"),
        }
        time::sleep(Duration::from_millis(1)).await;
    };
    let log = start(journal);
    assert!(log.flush(PATIENT).await);
    let mut numbers = database.numbers();
    numbers.sort_unstable();
    assert_eq!(numbers, (0..2000).collect::<Vec<_>>());
    assert_eq!(log.close(PATIENT).await, Closed { pending: 0, lost: 0 });
}

#[tokio::test]
async fn without_a_directory_what_closing_cannot_write_is_lost_and_said() {
    let database = Fake::default();
    database.set(Mood::Down);
    let fixture = start(|journal, _| journal.dir = None, database);
    fixture.append(0..10);
    assert_eq!(fixture.log.close(Duration::from_millis(50)).await, Closed { pending: 10, lost: 10 });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_load_with_the_database_coming_and_going_every_row_arrives_once() {
    let settings = |journal: &mut JournalConfig, _: &mut WriterConfig| {
        (journal.memory_rows, journal.batch_rows, journal.segment_size) = (100, 50, 20_000);
    };
    let fixture = start(settings, Fake::default());
    std::thread::scope(|scope| {
        let appending: Vec<_> = (0..3_u64)
            .map(|thread| {
                let log = &fixture.log;
                scope.spawn(move || {
                    for number in 0..700 {
                        log.append(TestRow::with_bodies(thread * 700 + number, 30));
                        std::thread::sleep(Duration::from_micros(100));
                    }
                })
            })
            .collect();
        let moods = [Mood::Down, Mood::Well, Mood::Forgetful, Mood::Hanging, Mood::Well];
        for mood in moods.into_iter().cycle() {
            fixture.database.set(mood);
            std::thread::sleep(Duration::from_millis(5));
            if appending.iter().all(|thread| thread.is_finished()) {
                break;
            }
        }
    });
    fixture.database.set(Mood::Well);
    assert!(fixture.log.flush(PATIENT).await);
    let mut numbers = fixture.database.numbers();
    assert_eq!(numbers.len(), 2100);
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), 2100);
    assert_eq!(fixture.log.mismatch(LogTable::Completions, || 2100), 0);
    wait_until("the journal is trimmed", || fixture.log.status().disk_bytes < 40_000);
}
