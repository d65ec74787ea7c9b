//! A database outage under load: requests do not notice, and every row arrives afterwards.
//!
//! PostgreSQL is stopped (SIGSTOP: connections stay open and nothing is answered) and killed, for
//! `NEXUSGATE_TEST_OUTAGE_SECONDS` each (10 if not set).

use std::time::{Duration, Instant};

use entity::{completions, embeddings};
use sea_orm::{
    ConnectionTrait, DbBackend, EntityTrait, PaginatorTrait, QueryOrder, Statement, TransactionTrait,
};

use crate::support::database::{connect, rows_by_marker};
use crate::support::gateway::{KEY, MODEL};
use crate::support::load::{End, Seen, failed, p99, with_status};
use crate::support::postgres::PostgresServer;
use crate::support::scrape::Scrape;
use crate::support::{Load, PATIENCE, Replica, Site, eventually, machine};

/// Requests per second.
const RATE: u32 = 100;

/// The number of calls in the phases before and after.
const CALLS: usize = 400;

fn length() -> Duration {
    let given = std::env::var("NEXUSGATE_TEST_OUTAGE_SECONDS");
    Duration::from_secs(given.map_or(10, |seconds| seconds.parse().expect("a number of seconds")))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgresql_is_stopped() {
    go_through(Harm::Stopped).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgresql_is_killed_and_restarted() {
    go_through(Harm::Killed).await;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Harm {
    Stopped,
    Killed,
}

async fn go_through(harm: Harm) {
    let _machine = machine().await;
    let mut postgres = PostgresServer::start().await;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let site = Site::over(folder, postgres.url(), &[]).await;
    let mut replica = site.replica("a").started().await;
    let load = Load::on(&[replica.url("")], RATE).start();
    // The first requests only open the connections.
    load.more(CALLS / 4).await;
    let before = Instant::now();
    load.more(CALLS).await;

    let began = Instant::now();
    // Requests in addition to the load.
    let mut aside = 0;
    let oldest = match harm {
        Harm::Stopped => {
            let family = postgres.pause();
            let oldest = rows_wait(&replica).await;
            // An id is looked up in the database first, but not for long: the driver alone would wait for ten seconds.
            let asked = replica.chat(KEY).header("x-nexusgate-reqid", "one").send();
            let answer = tokio::time::timeout(Duration::from_secs(8), asked).await.expect("in time");
            assert_eq!(answer.expect("an answer").status(), 200);
            aside = 1;
            postgres.resume(&family);
            oldest
        }
        Harm::Killed => {
            postgres.kill();
            let oldest = rows_wait(&replica).await;
            // The driver retries connecting until its own timeout before it reports that there is no database.
            let down = |scrape: &Scrape| scrape.metric("nexusgate_database_up").is(0.0);
            replica.eventually("the outage is seen", down).await;
            postgres.resume_from_disk().await;
            oldest
        }
    };
    let back = Instant::now();
    replica
        .eventually("the backlog is written", |scrape| {
            scrape.metric("nexusgate_request_log_oldest_pending_seconds").value() < 2.0
        })
        .await;
    let caught_up = Instant::now();
    load.more(CALLS).await;
    let end = Instant::now();
    let seen = load.stop().await;

    let scrape = replica.settled().await;
    let counted = scrape.metric("nexusgate_completions_total").value()
        + scrape.metric("nexusgate_embeddings_total").value();
    let retries = scrape.metric("nexusgate_request_log_retries_total").value();
    assert!(scrape.metric("nexusgate_database_up").is(1.0));
    assert!(replica.terminate().await.success(), "everything was written:\n{}", replica.output());
    let rows = count_rows(&postgres.url()).await;
    let failed = failed(&seen, &[200]);
    println!(
        "PostgreSQL {harm:?} for {:.0} s at {RATE} requests/s: {} requests, {} failed; p99 before {:.1} ms, during \
         {:.1} ms, while catching up {:.1} ms ({:.1} s), after {:.1} ms; the oldest row waited {oldest:.0} s; {retries} \
         inserts tried again; {rows} rows, audit mismatch 0",
        (back - began).as_secs_f64(),
        seen.len(),
        failed.len(),
        p99(&seen, before..began),
        p99(&seen, began..back),
        p99(&seen, back..caught_up),
        (caught_up - back).as_secs_f64(),
        p99(&seen, caught_up..end),
    );
    assert!(failed.is_empty(), "{failed:?}");
    assert_eq!(rows, with_status(&seen, 200) + aside, "every row is there");
    assert_eq!(counted, rows as f64);
}

/// The gateway is killed during a database outage: the answers its clients got are in the journal, and are stored once
/// when both are back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_during_an_outage_loses_nothing() {
    let _machine = machine().await;
    let mut postgres = PostgresServer::start().await;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let site = Site::over(folder, postgres.url(), &[]).await;
    let mut replica = site.replica("a").started().await;
    let load = Load::on(&[replica.url("")], RATE).start();
    load.more(CALLS / 4).await;
    postgres.kill();
    load.more(CALLS / 2).await;
    replica.kill();
    let seen = load.stop().await;
    postgres.resume_from_disk().await;
    replica.start().await;
    replica.settled().await;
    assert!(replica.terminate().await.success());

    let rows = rows_by_marker(&postgres.url()).await;
    let answered: Vec<&Seen> = seen.iter().filter(|one| one.end == End::Answered(200)).collect();
    let lost = answered.iter().filter(|one| !rows.contains_key(&one.marker)).count();
    let doubled = rows.values().filter(|count| **count > 1).count();
    println!("killed while PostgreSQL was away: {} answered, {lost} lost, {doubled} doubled", answered.len());
    assert_eq!((lost, doubled), (0, 0));
    assert!(answered.len() >= CALLS / 2);
}

/// A database that hangs holds up neither the end of the process nor a row.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shutdown_while_the_database_hangs_ends() {
    let _machine = machine().await;
    let postgres = PostgresServer::start().await;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let site = Site::over(folder, postgres.url(), &[]).await;
    let replica =
        site.replica("a").setting("SHUTDOWN_GRACE", "2s").setting("GAUGE_REFRESH_INTERVAL", "100ms");
    let mut replica = replica.setting("SNAPSHOT_REFRESH_INTERVAL", "100ms").started().await;
    let load = Load::on(&[replica.url("")], RATE).start();
    load.more(CALLS / 4).await;
    let family = postgres.pause();
    // Readiness is probed meanwhile, as load balancers do.
    assert_eq!(site.http.get(replica.url("/readyz")).send().await.expect("an answer").status(), 503);
    let without = site.http.get(replica.url("/readyz?exclude=database")).send().await.expect("an answer");
    assert_eq!(without.status(), 200, "inference goes on");
    load.more(CALLS / 4).await;
    let seen = load.stop().await;
    let told = Instant::now();
    let status = replica.terminate().await;
    let took = told.elapsed();
    assert!(status.success(), "what is not written is in the journal:\n{}", replica.output());
    // The grace period, the log's own time, and the pool's.
    assert!(took < Duration::from_secs(15), "{took:?}");
    postgres.resume(&family);
    replica.start().await;
    // Its end waits for the replay, which the gauges may not show yet.
    assert!(replica.terminate().await.success());
    let rows = rows_by_marker(&postgres.url()).await;
    assert!(failed(&seen, &[200]).is_empty());
    let wrong: Vec<_> = seen.iter().filter(|one| rows.get(&one.marker) != Some(&1)).collect();
    assert!(wrong.is_empty(), "{} of {} rows are not there once: {wrong:?}", wrong.len(), seen.len());
    println!(
        "SIGTERM while PostgreSQL hangs: ended after {:.1} s; {} rows, none lost",
        took.as_secs_f64(),
        seen.len()
    );
}

/// Nor does a change that hangs in the database, half way through a statement.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shutdown_while_a_change_hangs_in_the_database_ends() {
    let _machine = machine().await;
    let postgres = PostgresServer::start().await;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let site = Site::over(folder, postgres.url(), &[]).await;
    let mut replica = site.replica("a").setting("SHUTDOWN_GRACE", "1s").started().await;
    let database = connect(&postgres.url()).await;
    let other = database.begin().await.expect("a transaction");
    other.execute_unprepared("LOCK TABLE api_keys IN ACCESS EXCLUSIVE MODE").await.expect("locked");
    let change = replica.admin(reqwest::Method::POST, "/api/admin/apiKey");
    let change = tokio::spawn(change.json(&serde_json::json!({ "comment": "late" })).send());
    eventually("the change waits for the lock", async || {
        let waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE 'INSERT INTO \"api_keys\"%'";
        let waiting = Statement::from_string(DbBackend::Postgres, waiting);
        database.query_one_raw(waiting).await.expect("an answer").is_some()
    })
    .await;
    let family = postgres.pause();
    let told = Instant::now();
    let status = replica.terminate().await;
    let took = told.elapsed();
    assert!(!status.success(), "a request was still running:\n{}", replica.output());
    assert!(took < Duration::from_secs(20), "{took:?}");
    assert!(!change.await.expect("joined").is_ok_and(|answer| answer.status().is_success()));
    postgres.resume(&family);
    println!("SIGTERM while a change hangs in PostgreSQL: ended after {:.1} s", took.as_secs_f64());
}

/// With little space the oldest bodies are dropped, and every row is kept, across a crash too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_journal_gives_up_bodies_and_no_rows() {
    const REQUESTS: u64 = 60;
    let _machine = machine().await;
    let mut postgres = PostgresServer::start().await;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let site = Site::over(folder, postgres.url(), &[]).await;
    let mut replica = site.replica("a").setting("JOURNAL_MAX_SIZE", "256KiB").started().await;
    postgres.kill();
    let prompt = "x".repeat(16 << 10);
    let journal = site.folder.path().join("a/journal");
    let size = || -> u64 {
        let files = std::fs::read_dir(&journal).expect("the journal").filter_map(Result::ok);
        files.filter_map(|file| file.metadata().ok()).map(|file| file.len()).sum()
    };
    for _ in 0..REQUESTS {
        // Not faster than space is freed: beyond that the newest rows lose their bodies, too.
        eventually("the journal is within its size", async || size() <= 256 << 10).await;
        let messages = serde_json::json!([{ "role": "user", "content": prompt }]);
        let body = serde_json::json!({ "model": MODEL, "messages": messages });
        let request = site.http.post(replica.url("/v1/chat/completions")).bearer_auth(KEY).json(&body);
        assert_eq!(request.send().await.expect("an answer").status(), 200);
    }
    eventually("the journal is within its size", async || size() <= 256 << 10).await;
    let scrape = replica.scrape().await;
    assert!(scrape.metric("nexusgate_request_log_rows_dropped_total").is(0.0));
    replica.kill();
    postgres.resume_from_disk().await;
    replica.start().await;
    replica.settled().await;
    assert!(replica.terminate().await.success());

    let database = connect(&postgres.url()).await;
    let rows =
        completions::Entity::find().order_by_asc(completions::Column::Id).all(&database).await.expect("rows");
    assert_eq!(rows.len() as u64, REQUESTS);
    let bare = rows.iter().take_while(|row| row.request_body.is_none()).count();
    assert!((1..rows.len()).contains(&bare), "{bare}");
    let kept: String = rows.iter().map(|row| if row.request_body.is_some() { '#' } else { '.' }).collect();
    assert!(!kept.contains("#."), "the oldest lose theirs, not others: {kept}");
    println!(
        "a journal of 256 KiB for 960 KiB: {REQUESTS} rows kept, the oldest {bare} without their bodies"
    );
}

/// Waits until the oldest row has waited for the length of the outage, and returns that wait. Meanwhile rows are
/// pending and accounted for.
async fn rows_wait(replica: &Replica) -> f64 {
    let length = length();
    let start = Instant::now();
    let mut oldest = 0.0_f64;
    while oldest < length.as_secs_f64() {
        assert!(start.elapsed() < length + PATIENCE, "the rows do not wait: {oldest} s");
        let scrape = replica.scrape().await;
        oldest = oldest.max(scrape.metric("nexusgate_request_log_oldest_pending_seconds").value());
        // One or two threads may be between counting and appending.
        let mismatch = scrape.metric("nexusgate_audit_mismatch").value();
        assert!(mismatch.abs() <= 4.0, "{mismatch} rows are unaccounted for");
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    let scrape = replica.scrape().await;
    assert!(scrape.metric("nexusgate_request_log_pending").value() > 0.0, "rows are waiting");
    oldest
}

async fn count_rows(database_url: &str) -> usize {
    let database = connect(database_url).await;
    let completions = completions::Entity::find().count(&database).await.expect("a count");
    let embeddings = embeddings::Entity::find().count(&database).await.expect("a count");
    usize::try_from(completions + embeddings).expect("few")
}

/// An outage is detected without any request.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_is_seen_by_an_idle_gateway() {
    let _machine = machine().await;
    let mut postgres = PostgresServer::start().await;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let site = Site::over(folder, postgres.url(), &[]).await;
    let replica = site.replica("a").setting("GAUGE_REFRESH_INTERVAL", "300ms").started().await;
    let up = |value: f64| move |scrape: &Scrape| scrape.metric("nexusgate_database_up").is(value);
    replica.eventually("it is up", up(1.0)).await;
    postgres.kill();
    replica.eventually("it is down", up(0.0)).await;
    postgres.resume_from_disk().await;
    replica.eventually("it is up again", up(1.0)).await;
}
