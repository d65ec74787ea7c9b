//! The time of the admin API's queries over a million rows of the request log, and whether `/metrics` is affected.
//!
//! ```text
//! scripts/with-postgres.sh cargo bench --bench million     # PostgreSQL
//! cargo bench --bench million                              # SQLite
//! ```

#![expect(clippy::expect_used, reason = "a bench that cannot be set up has nothing to measure")]
#![expect(clippy::print_stdout, reason = "a measurement is for people")]

use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use nexusgate::app::RunningApp;
use nexusgate::config::Settings;
use nexusgate::domain::label::{ApiFormat, LogTable, Status};
use nexusgate::store::request_log::{
    self as log, Cursor, LogFilter, Page, StatsRange, UsageFilter, UsageGroup,
};
use sea_orm::{ConnectionTrait, Database, DbBackend};

/// The limit of counting; see [`log::count`].
const COUNTED: u64 = 100_000;
/// Runs of each query; the median and the maximum are printed.
const RUNS: usize = 7;

/// A million completions of the last thirty days: 50 keys, 20 models, 5 providers, 4 % failed, about 1 kB of bodies each.
fn fill(backend: DbBackend) -> Vec<String> {
    let postgres = backend == DbBackend::Postgres;
    // Oldest first, as a log grows; in parts, as one statement may not take a minute.
    let series = |part: u32| {
        let (first, last) = (part * 50_000, (part + 1) * 50_000 - 1);
        if postgres {
            format!("SELECT 1000000 - n AS n FROM generate_series({first}, {last}) AS n")
        } else {
            format!(
                "WITH RECURSIVE s(n) AS (SELECT {first} UNION ALL SELECT n + 1 FROM s WHERE n < {last})
                 SELECT 1000000 - n AS n FROM s"
            )
        }
    };
    let (id, body, at) = if postgres {
        ("gen_random_uuid()", "repeat(md5(n::text), 16)", "now() - n * interval '2.592 seconds'")
    } else {
        (
            "randomblob(16)",
            "hex(randomblob(256))",
            "strftime('%Y-%m-%dT%H:%M:%f+00:00', 'now', '-' || (n * 2.592) || ' seconds')",
        )
    };
    let day =
        if postgres { "CAST(created_at AT TIME ZONE 'UTC' AS date)" } else { "substr(created_at, 1, 10)" };
    let part = |part: u32| {
        let series = series(part);
        format!(
            "INSERT INTO completions (id, api_key_id, model, model_id, provider, provider_id, api_format, status, stream,
                 prompt_tokens, completion_tokens, prompt_cost, completion_cost, duration_ms, ttft_ms, overhead_ms,
                 error, request_id, request_body, response_body, created_at)
             SELECT {id}, n % 50, 'model-' || (n % 20), n % 20, 'provider-' || (n % 5), n % 5,
                 CASE n % 10 WHEN 0 THEN 'anthropic' WHEN 1 THEN 'openai-responses' ELSE 'openai-chat' END,
                 CASE WHEN n % 25 = 0 THEN 'failed' WHEN n % 97 = 0 THEN 'aborted' ELSE 'completed' END, true,
                 n % 3000, n % 700, 0.001, 0.002, n % 9000, n % 900, 0.1,
                 CASE WHEN n % 25 = 0 THEN 'http_' || (500 + n % 30) END, 'request-' || n, {body}, {body}, {at}
             FROM ({series}) AS s"
        )
    };
    let mut statements: Vec<String> = (0..20).map(part).collect();
    statements.extend([
        format!(
            "INSERT INTO usage_daily SELECT {day}, api_key_id, model, provider, 'completions',
                 sum(CASE WHEN status = 'completed' THEN 1 ELSE 0 END), sum(CASE WHEN status = 'failed' THEN 1 ELSE 0 END),
                 sum(CASE WHEN status = 'aborted' THEN 1 ELSE 0 END), 0, sum(prompt_tokens), sum(completion_tokens),
                 0, 0, 0, sum(prompt_cost), sum(completion_cost)
             FROM completions GROUP BY 1, 2, 3, 4"
        ),
        // The server's autovacuum would do this by itself before long.
        if postgres { "VACUUM ANALYZE" } else { "ANALYZE" }.to_owned(),
    ]);
    statements
}

async fn time<T>(what: &str, query: impl AsyncFn() -> T) -> T {
    let mut answer = query().await;
    let mut times = Vec::new();
    for _ in 0..RUNS {
        let started = Instant::now();
        answer = query().await;
        times.push(started.elapsed());
    }
    times.sort_unstable();
    println!("{what:<36} {:>10.2?} {:>10.2?}", times[RUNS / 2], times[RUNS - 1]);
    answer
}

fn main() {
    // `cargo test --benches` runs every bench as a test; this one only measures.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(measure());
}

async fn measure() {
    let folder = tempfile::tempdir().expect("a folder");
    let url = match std::env::var("NEXUSGATE_TEST_POSTGRES") {
        Ok(server) => {
            let admin = Database::connect(&server).await.expect("PostgreSQL");
            admin.execute_unprepared("CREATE DATABASE million").await.expect("a database");
            let mut url: url::Url = server.parse().expect("a URL");
            url.set_path("/million");
            url.to_string()
        }
        Err(_) => format!("sqlite://{}", folder.path().join("million.db").display()),
    };
    let data = folder.path().display().to_string();
    let key = "00".repeat(32);
    let settings = Settings::with(&[
        ("PORT", "0"),
        ("LISTEN_ADDR", "127.0.0.1"),
        ("DATABASE_URL", &url),
        ("DATA_DIR", &data),
        ("ENCRYPTION_KEY", &key),
        ("REQUEST_LOG_RETENTION", "0s"),
    ])
    .expect("settings");
    let app = RunningApp::start(&settings, Default::default()).await.expect("a gateway");
    let db = app.database();
    let backend = db.get_database_backend();
    println!("{backend:?}: median and worst of {RUNS}\n");
    let render = async || app.telemetry().render(false).len();
    time("/metrics, no rows", render).await;
    for sql in fill(backend) {
        db.execute_unprepared(&sql).await.expect("rows");
    }
    time("/metrics, a million rows", render).await;

    let now: DateTime<Utc> = Utc::now();
    let table = LogTable::Completions;
    let all = LogFilter::default;
    let page = Page { bodies: true, ..Page::default() };
    let first =
        time("first page", async || log::list(db, table, &all(), &page).await.expect("a query")).await;
    assert_eq!(first.len(), 100);
    let filters = [
        ("key", LogFilter { api_key_id: Some(7), ..all() }),
        ("key, none", LogFilter { api_key_id: Some(999), ..all() }),
        ("model", LogFilter { model: Some("model-3".to_owned()), ..all() }),
        ("provider", LogFilter { provider_id: Some(2), ..all() }),
        ("failed", LogFilter { status: Some(Status::Failed), ..all() }),
        ("format", LogFilter { api_format: Some(ApiFormat::Anthropic), ..all() }),
        ("error text", LogFilter { error: Some("http_510".to_owned()), ..all() }),
        ("error text, none", LogFilter { error: Some("no such".to_owned()), ..all() }),
        (
            "key, model, failed",
            LogFilter {
                api_key_id: Some(7),
                model: Some("model-7".to_owned()),
                status: Some(Status::Failed),
                ..all()
            },
        ),
        (
            "a day",
            LogFilter {
                from: Some(now - Duration::from_secs(10 * 86_400)),
                to: Some(now - Duration::from_secs(9 * 86_400)),
                ..all()
            },
        ),
    ];
    for (name, filter) in &filters {
        time(&format!("list by {name}"), async || {
            log::list(db, table, filter, &page).await.expect("a query")
        })
        .await;
        time(&format!("count by {name}"), async || {
            log::count(db, table, filter, COUNTED).await.expect("a query")
        })
        .await;
    }
    assert_eq!(
        time("count all", async || log::count(db, table, &all(), COUNTED).await.expect("a query")).await,
        COUNTED
    );
    let old = LogFilter { to: Some(now - Duration::from_secs(25 * 86_400)), ..all() };
    let last = log::list(db, table, &old, &page).await.expect("a query");
    let deep = Page { after: last.last().map(Cursor::from), ..page.clone() };
    time("page deep inside, by cursor", async || log::list(db, table, &all(), &deep).await.expect("a query"))
        .await;
    let offset = Page { offset: 100_000, ..page.clone() };
    time("page 1,000, by offset", async || log::list(db, table, &all(), &offset).await.expect("a query"))
        .await;
    time("request id", async || {
        log::find_by_request_id(db, table, 7, "request-500007").await.expect("a query").expect("a row")
    })
    .await;
    for range in StatsRange::ALL.iter().copied() {
        time(&format!("overview {}", range.as_str()), async || {
            log::overview(db, range, now).await.expect("a query")
        })
        .await;
    }
    let every =
        [UsageGroup::Day, UsageGroup::ApiKey, UsageGroup::Model, UsageGroup::Provider, UsageGroup::Table];
    let any = UsageFilter::default();
    let usage = time("usage, all", async || log::usage_by(db, &any, &every).await.expect("a query")).await;
    assert_eq!(usage.iter().map(|group| group.sums.requests()).sum::<u64>(), 1_000_000);
    let filter = UsageFilter { api_key_id: Some(7), ..UsageFilter::default() };
    time("usage of a key", async || log::usage_by(db, &filter, &every).await.expect("a query")).await;
    app.shutdown().await;
}
