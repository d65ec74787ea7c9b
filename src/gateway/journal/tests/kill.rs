//! A real `kill -9`: this test binary runs itself as the process that is killed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::gateway::request_log::{InsertError, RequestLog, Sink, WriterConfig};

const DIR: &str = "NEXUSGATE_TEST_JOURNAL";
const FIRST: &str = "NEXUSGATE_TEST_FIRST";
/// A row of the file that stands in for the database: 16 hexadecimal digits and a line feed.
const ROW: u64 = 17;

/// A table in a file: rows with a number that it already has are skipped.
struct Table {
    path: PathBuf,
    numbers: Mutex<BTreeSet<u64>>,
}

impl Table {
    fn open(path: PathBuf) -> Self {
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path).unwrap();
        // A database rolls back a dying client's incomplete write.
        let len = file.metadata().unwrap().len();
        file.set_len(len - len % ROW).unwrap();
        let numbers = Self::read(&path).into_keys().collect();
        Self { path, numbers: Mutex::new(numbers) }
    }

    /// How often each number occurs.
    fn read(path: &Path) -> BTreeMap<u64, u64> {
        let mut text = String::new();
        File::open(path).unwrap().read_to_string(&mut text).unwrap();
        let mut found = BTreeMap::new();
        for line in text.lines() {
            *found.entry(u64::from_str_radix(line, 16).unwrap()).or_default() += 1;
        }
        found
    }
}

impl Sink<TestRow> for Table {
    async fn insert(&self, _: LogTable, rows: &[TestRow]) -> Result<u64, InsertError> {
        let mut numbers = self.numbers.lock();
        let new: Vec<u64> = rows.iter().map(|row| row.number).filter(|n| !numbers.contains(n)).collect();
        let text: String = new.iter().map(|number| format!("{number:016x}\n")).collect();
        OpenOptions::new().append(true).open(&self.path).unwrap().write_all(text.as_bytes()).unwrap();
        numbers.extend(&new);
        Ok(u64::try_from(new.len()).unwrap())
    }
}

/// Small enough that memory, disk, many segments and their removal are all in play when the process dies.
fn small(dir: &Path) -> JournalConfig {
    JournalConfig { segment_size: 16 << 10, memory_rows: 40, batch_rows: 50, ..config(&dir.join("journal")) }
}

fn start(dir: &Path) -> RequestLog<TestRow> {
    let journal = Journal::open(small(dir), Box::new(|_| {})).unwrap();
    RequestLog::start(journal, Table::open(dir.join("table")), WriterConfig::default()).unwrap()
}

/// Not a test by itself: the process that is killed. Appends rows and reports each one afterwards, as fast as it can.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_process_that_is_killed() {
    let (Ok(dir), Ok(first)) = (std::env::var(DIR), std::env::var(FIRST)) else { return };
    let log = start(Path::new(&dir));
    let number = AtomicU64::new(first.parse().unwrap());
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                loop {
                    let number = number.fetch_add(1, Ordering::Relaxed);
                    log.append(TestRow::with_bodies(number, usize::try_from(number % 300).unwrap()));
                    let line = format!("answered {number}\n");
                    std::io::stdout().write_all(line.as_bytes()).unwrap();
                    std::thread::sleep(Duration::from_micros(100));
                }
            });
        }
    });
}

fn child(dir: &Path, first: u64) -> std::process::Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["gateway::journal::tests::kill::the_process_that_is_killed", "--exact", "--nocapture"])
        .env(DIR, dir)
        .env(FIRST, first.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_kills_lose_nothing_and_double_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut answered = BTreeSet::new();
    for round in 0..10 {
        let mut child = child(dir.path(), round * 1_000_000);
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let reading = std::thread::spawn(move || {
            let mut numbers = Vec::new();
            let mut seen = Vec::new();
            for line in lines {
                let line = line.unwrap();
                match line.strip_prefix("answered ").map(str::parse::<u64>) {
                    Some(number) => numbers.push(number.unwrap()),
                    None => seen.push(line),
                }
            }
            (numbers, seen)
        });
        let table = dir.path().join("table");
        let before = if table.exists() { std::fs::metadata(&table).unwrap().len() } else { 0 };
        wait_until("the child writes", || std::fs::metadata(&table).is_ok_and(|found| found.len() > before));
        // The moment of the kill is the subject of this test: any will do.
        std::thread::sleep(Duration::from_millis(rand::random_range(0..150)));
        child.kill().unwrap();
        child.wait().unwrap();
        let (numbers, seen) = reading.join().unwrap();
        assert!(!numbers.is_empty(), "{seen:?}");
        // A line cut by the kill is too short a number, so it never names another row.
        answered.extend(numbers.into_iter().filter(|number| number / 1_000_000 == round));
    }
    let log = start(dir.path());
    assert!(log.flush(Duration::from_secs(20)).await);
    drop(log);
    let table = Table::read(&dir.path().join("table"));
    let lost: Vec<_> = answered.iter().filter(|number| !table.contains_key(number)).collect();
    assert_eq!(lost, Vec::<&u64>::new(), "of {}", answered.len());
    let doubled: Vec<_> = table.iter().filter(|(_, times)| **times > 1).collect();
    assert_eq!(doubled, Vec::<(&u64, &u64)>::new());
}

#[test]
fn another_process_is_refused_with_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let held = Journal::<TestRow>::open(small(dir.path()), Box::new(|_| {})).unwrap();
    let output = child(dir.path(), 0).wait_with_output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && error.contains("InUse"), "{error}");
    drop(held);
}
