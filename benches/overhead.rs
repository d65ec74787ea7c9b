//! The gateway's overhead per request, and the share of counting in it: `cargo bench --bench overhead`.
//!
//! * `events`: everything that is recorded for one successful completion, in order: in flight, series, attempt, HTTP
//!   request, record. With recording on and off (handles that do nothing), in nanoseconds; the allocations are printed.
//!   `upkeep` is the later work of a timer: sorting the samples into buckets.
//! * `request`: the whole way of a request through `Surface::answer` (key, limits, route, metrics, log), without a client's
//!   connection, to a provider that is a thread with a canned answer. `provider alone` is the same bytes to the same
//!   thread and back, without the gateway. Allocations are printed: those of the way alone, for prepared requests; the
//!   difference between on and off is the cost of instrumentation.

#![expect(clippy::expect_used, reason = "a bench that cannot be set up has nothing to measure")]

#[path = "support/counting.rs"]
mod counting;
#[path = "support/records.rs"]
mod records;
#[path = "support/say.rs"]
mod say;

use std::hint::black_box;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use criterion::{Criterion, criterion_group, criterion_main};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use nexusgate::config::Origins;
use nexusgate::domain::key::{Limits, Secret};
use nexusgate::domain::label::{LogTable, ModelType, Outcome};
use nexusgate::domain::provider::ProviderKind;
use nexusgate::domain::record::RequestRecord;
use nexusgate::gateway::journal::{Journal, JournalConfig};
use nexusgate::gateway::request_log::{InsertError, RequestLog, Sink, WriterConfig};
use nexusgate::gateway::{self, Gateway, Hooks, Parts};
use nexusgate::http::{Admin, AdminParts, HttpState, Surface};
use nexusgate::limit::{self, LimitServices, Observer};
use nexusgate::store::crypt::{Cipher, EncryptionKey};
use nexusgate::store::declared::{Declared, DeclaredModel};
use nexusgate::store::keys::NewApiKey;
use nexusgate::store::models::NewModel;
use nexusgate::store::providers::NewProvider;
use nexusgate::store::request_log::LogRow;
use nexusgate::store::{self, SnapshotStore, Source};
use nexusgate::telemetry::events::{AttemptFinished, HttpRequestFinished, RequestFinished};
use nexusgate::telemetry::{InFlight, Telemetry, registry};
use records::record;
use say::say;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

#[global_allocator]
static ALLOCATOR: counting::Counting = counting::Counting;

const PEER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 1);

const KEY: &str = "sk-bench-0123456789abcdef0123456789abcdef";

fn telemetry(recording: bool) -> Arc<Telemetry> {
    Telemetry::new(&registry::Settings { recording, ..registry::Settings::default() }, "bench")
}

/// The events of one completion, from its arrival to its end.
fn events(telemetry: &Arc<Telemetry>, record: &RequestRecord) {
    let in_flight = InFlight::start(telemetry.clone(), record.call);
    let target = record.target.as_ref().expect("a target");
    let provider = &target.provider.name;
    let series = telemetry.call_series(record.call, &record.model, provider, &record.key.comment);
    let upstream = series.upstream();
    AttemptFinished { series: upstream, target, outcome: Outcome::Ok, duration: record.duration }.emit();
    let (method, code) = (&Method::POST, StatusCode::OK);
    HttpRequestFinished { telemetry, route: "/v1/chat/completions", method, code }.emit();
    RequestFinished { telemetry, record, series: &series }.emit();
    drop(in_flight);
}

fn events_of_a_request(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("events");
    let record = record(0);
    for (name, recording) in [("on", true), ("off", false)] {
        let telemetry = telemetry(recording);
        events(&telemetry, &record);
        let ((), taken) = counting::measure(|| (0..1000).for_each(|_| events(&telemetry, &record)));
        say(format_args!("events, recording {name}: {} allocations for 1000 requests", taken.allocations));
        group.bench_function(name, |b| {
            b.iter_custom(|rounds| {
                let mut spent = Duration::ZERO;
                let mut left = rounds;
                while left > 0 {
                    let batch = left.min(4096);
                    let started = std::time::Instant::now();
                    (0..batch).for_each(|_| events(&telemetry, &record));
                    spent += started.elapsed();
                    // The app does this on a timer; otherwise samples of histograms pile up.
                    telemetry.run_upkeep();
                    left -= batch;
                }
                spent
            });
        });
    }
    let telemetry = telemetry(true);
    group.bench_function("upkeep", |b| {
        b.iter_custom(|rounds| {
            let mut spent = Duration::ZERO;
            let mut left = rounds;
            while left > 0 {
                let batch = left.min(4096);
                (0..batch).for_each(|_| events(&telemetry, &record));
                let started = std::time::Instant::now();
                telemetry.run_upkeep();
                spent += started.elapsed();
                left -= batch;
            }
            spent
        });
    });
    group.finish();
}

struct Nowhere;

impl Sink<LogRow> for Nowhere {
    async fn insert(&self, _: LogTable, rows: &[LogRow]) -> Result<u64, InsertError> {
        Ok(u64::try_from(rows.len()).unwrap_or(u64::MAX))
    }
}

/// A provider with one answer.
fn provider() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || answer(stream));
        }
    });
    address
}

fn answer(mut stream: TcpStream) {
    const BODY: &str = r#"{"id":"1","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,"message":{"role":"assistant","content":"Hello."},"finish_reason":"stop"}],"usage":{"prompt_tokens":9,"completion_tokens":3,"total_tokens":12}}"#;
    let answer = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{BODY}",
        BODY.len()
    );
    let mut buffer = [0; 16 << 10];
    // A request arrives in one piece: it is small, and sent in one write.
    while stream.read(&mut buffer).is_ok_and(|read| read > 0) {
        if stream.write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

/// A gateway with one model at `provider` and one limited key, whose log is discarded.
async fn surface(recording: bool, provider: SocketAddr) -> Surface {
    let database = store::connect(&store::Settings::new("sqlite::memory:")).await.expect("a database");
    store::migrate::up(&database).await.expect("a schema");
    let cipher = Arc::new(Cipher::new(&EncryptionKey::random()));
    let mut provider =
        NewProvider::new("fake", ProviderKind::OpenAi, format!("http://{provider}/v1"), Source::Config);
    provider.api_key = Some(Secret::new("sk-upstream"));
    let mut key = NewApiKey::new(Source::Config);
    key.key = Some(Secret::new(KEY));
    // High limits, but they must be checked, and their headers written.
    key.limits = Limits { rpm: Some(1_000_000_000), tpm: Some(2_000_000_000) };
    let model = NewModel::new("bench", ModelType::Chat, Source::Config);
    let declared = Declared {
        providers: vec![provider],
        models: vec![DeclaredModel { provider: "fake".into(), model }],
        api_keys: vec![key],
    };
    store::declared::apply(&database, &cipher, &declared).await.expect("declared");
    let snapshots = Arc::new(SnapshotStore::new(cipher.clone()));
    snapshots.refresh(&database).await.expect("a snapshot");
    let journal = Journal::open(JournalConfig::default(), Box::new(|_| {})).expect("a journal");
    let limits = limit::Settings {
        burst: limit::Burst::default(),
        redis_url: None,
        redis_timeout: limit::Settings::REDIS_TIMEOUT,
        instance_id: "bench".into(),
    };
    let limits = Arc::new(LimitServices::start(&limits, Observer::default()).await.expect("limits"));
    let gateway = Gateway::new(Parts {
        settings: gateway::Settings {
            upstream_timeout: Duration::from_secs(60),
            upstream_connect_timeout: Duration::from_secs(5),
            upstream_trust: nexusgate::provider::Trust::default(),
            stream_idle_timeout: Duration::from_secs(60),
            drain_on_disconnect: Duration::from_secs(30),
            max_in_flight: 1000,
            log_payloads: true,
        },
        telemetry: telemetry(recording),
        snapshots: snapshots.clone(),
        limits: limits.clone(),
        database: database.clone(),
        log: Arc::new(RequestLog::start(journal, Nowhere, WriterConfig::default()).expect("the log")),
        hooks: Hooks::default(),
    });
    let max_body_size = 1 << 20;
    let admin = Admin::new(AdminParts {
        gateway: gateway.clone(),
        database: database.clone(),
        cipher,
        snapshots,
        limits,
        secret: Secret::new("bench"),
        max_body_size,
        version: "bench".into(),
        commit: None,
        tasks: TaskTracker::new(),
        stop: CancellationToken::new(),
    });
    let state = HttpState { gateway, max_body_size, metrics_token: None, rendering: Arc::default(), admin };
    Surface::new(&state, &Origins::List(Vec::new()), true)
}

const BODY: &str = r#"{"model":"bench","messages":[{"role":"user","content":"Hello?"}]}"#;

fn request() -> Request<Full<Bytes>> {
    Request::post("/v1/chat/completions")
        .header("authorization", format!("Bearer {KEY}"))
        .header("content-type", "application/json")
        .header("content-length", BODY.len())
        .body(Full::new(Bytes::from_static(BODY.as_bytes())))
        .expect("a request")
}

async fn ask(surface: &Surface, request: Request<Full<Bytes>>) {
    let Ok(response) = surface.clone().answer(request, PEER).await;
    assert_eq!(response.status(), StatusCode::OK);
    let mut body = response.into_body();
    while let Some(frame) = body.frame().await {
        black_box(frame.expect("a body"));
    }
}

/// A request to the provider, and its answer, over a bare socket.
async fn exchange(stream: &mut tokio::net::TcpStream, request: &[u8], buffer: &mut [u8]) {
    stream.write_all(request).await.expect("written");
    assert!(stream.read(buffer).await.expect("an answer") > 0);
}

fn whole_requests(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let provider = provider();
    let mut group = criterion.benchmark_group("request");
    group.sample_size(20).warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(3));
    for (name, recording) in [("on", true), ("off", false)] {
        let surface = runtime.block_on(surface(recording, provider));
        let ask_all = |requests: Vec<_>| {
            runtime.block_on(async {
                for request in requests {
                    ask(&surface, request).await;
                }
            });
        };
        let requests = || (0..1000).map(|_| request()).collect();
        ask_all(requests());
        let made = requests();
        let ((), taken) = counting::measure(|| ask_all(made));
        say(format_args!(
            "request, recording {name}: {} allocations for 1000 requests, {} KiB held at most on top",
            taken.allocations,
            taken.peak / 1024
        ));
        group.bench_function(name, |b| {
            b.iter_batched(
                request,
                |request| runtime.block_on(ask(&surface, request)),
                criterion::BatchSize::SmallInput,
            );
        });
    }
    let mut stream = runtime.block_on(tokio::net::TcpStream::connect(provider)).expect("a connection");
    stream.set_nodelay(true).expect("a socket");
    // About the gateway's request.
    let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:10000\r\nauthorization: Bearer sk-upstream\r\n\
                accept-encoding: identity\r\ncontent-type: application/json\r\n";
    let request = format!("{head}content-length: {}\r\n\r\n{BODY}", BODY.len());
    let mut buffer = [0; 16 << 10];
    group.bench_function("provider alone", |b| {
        b.iter(|| runtime.block_on(exchange(&mut stream, request.as_bytes(), &mut buffer)));
    });
    group.finish();
}

criterion_group!(group, events_of_a_request, whole_requests);
criterion_main!(group);
