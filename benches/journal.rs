//! The cost of journaling a finished request: `cargo bench --bench journal`.
//!
//! `append/*` is the request's own part (frame, one write, backlog) while the writer empties the backlog into a sink
//! that accepts everything; `write/*` is the floor: the bare system call for the same bytes, over a file of 4 MiB that
//! is overwritten repeatedly, as the journal's are. `JOURNAL_BENCH_DIR` chooses the file system (default: the system's
//! temporary folder).

#![expect(clippy::expect_used, reason = "a bench that cannot be set up has nothing to measure")]

use std::fs::OpenOptions;
use std::hint::black_box;
use std::os::unix::fs::FileExt as _;

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use nexusgate::domain::label::LogTable;
use nexusgate::gateway::journal::{Journal, JournalConfig, Payloads, Row};
use nexusgate::gateway::request_log::{InsertError, RequestLog, Sink, WriterConfig};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// As wide as a row of `completions`.
#[derive(Clone, Serialize, Deserialize)]
struct BenchRow {
    id: Uuid,
    api_key_id: i64,
    model_id: i64,
    provider_id: i64,
    model: String,
    provider: String,
    api_format: String,
    status: String,
    stream: bool,
    prompt_tokens: Option<i64>,
    completion_tokens: Option<i64>,
    cached_tokens: Option<i64>,
    reasoning_tokens: Option<i64>,
    ttft_ms: Option<f64>,
    duration_ms: f64,
    cost_prompt: f64,
    cost_completion: f64,
    error: Option<String>,
    finish_reason: Option<String>,
    request_id: Option<String>,
    created_at: String,
    #[serde(skip)]
    payloads: Payloads,
}

impl BenchRow {
    fn new(body: usize) -> Self {
        let payload = (body > 0).then(|| Bytes::from(vec![b'x'; body]));
        Self {
            id: Uuid::now_v7(),
            api_key_id: 42,
            model_id: 7,
            provider_id: 3,
            model: "gpt-4o-mini".into(),
            provider: "openai-eu".into(),
            api_format: "openai-chat".into(),
            status: "completed".into(),
            stream: true,
            prompt_tokens: Some(1234),
            completion_tokens: Some(567),
            cached_tokens: Some(1024),
            reasoning_tokens: None,
            ttft_ms: Some(321.5),
            duration_ms: 4567.25,
            cost_prompt: 0.000_185_1,
            cost_completion: 0.000_340_2,
            error: None,
            finish_reason: Some("stop".into()),
            request_id: None,
            created_at: "2026-11-22T11:22:31.123456Z".into(),
            payloads: Payloads { request: payload.clone(), response: payload },
        }
    }
}

impl Row for BenchRow {
    fn table(&self) -> LogTable {
        LogTable::Completions
    }

    fn payloads(&self) -> Payloads {
        self.payloads.clone()
    }

    fn set_payloads(&mut self, payloads: Payloads) {
        self.payloads = payloads;
    }
}

struct Nowhere;

impl Sink<BenchRow> for Nowhere {
    async fn insert(&self, _: LogTable, rows: &[BenchRow]) -> Result<u64, InsertError> {
        Ok(u64::try_from(rows.len()).unwrap_or(u64::MAX))
    }
}

fn temporary() -> tempfile::TempDir {
    let parent = std::env::var_os("JOURNAL_BENCH_DIR").map_or_else(std::env::temp_dir, Into::into);
    tempfile::tempdir_in(parent).expect("a temporary folder")
}

fn append(c: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_time()
        .build()
        .expect("a runtime");
    let mut group = c.benchmark_group("append");
    for (name, body, on_disk) in [
        ("row", 0, true),
        ("bodies of 2 KiB", 1 << 10, true),
        ("bodies of 64 KiB", 32 << 10, true),
        ("row, no directory", 0, false),
    ] {
        let dir = temporary();
        let config =
            JournalConfig { dir: on_disk.then(|| dir.path().join("journal")), ..JournalConfig::default() };
        let journal = Journal::open(config, Box::new(|_| {})).expect("a journal");
        let log = {
            let _inside = runtime.enter();
            RequestLog::start(journal, Nowhere, WriterConfig::default()).expect("the log")
        };
        let row = BenchRow::new(body);
        group.bench_function(name, |b| {
            b.iter_batched(|| row.clone(), |row| log.append(row), criterion::BatchSize::SmallInput);
        });
        runtime.block_on(log.close(std::time::Duration::from_secs(5)));
    }
    group.finish();
}

/// As long as a segment of the journal.
const SEGMENT: u64 = 4 << 20;

fn write(c: &mut Criterion) {
    let mut group = c.benchmark_group("write");
    for (name, size) in [("700 bytes", 700), ("2.7 KiB", 2 << 10 | 700), ("65 KiB", 64 << 10 | 700)] {
        let dir = temporary();
        let path = dir.path().join("file");
        let file = OpenOptions::new().create_new(true).write(true).open(&path).expect("a file");
        let bytes = vec![b'x'; size];
        let mut at = 0;
        group.throughput(Throughput::Bytes(u64::try_from(size).unwrap_or(u64::MAX)));
        group.bench_function(name, |b| {
            b.iter(|| {
                file.write_all_at(black_box(&bytes), at).expect("room");
                at += bytes.len() as u64;
                if at > SEGMENT {
                    at = 0;
                }
            });
        });
    }
    group.finish();
}

criterion_group!(benches, append, write);
criterion_main!(benches);
