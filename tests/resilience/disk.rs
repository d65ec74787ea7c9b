//! A disk that takes nothing more.

use std::process::Command;

use entity::completions;
use sea_orm::{EntityTrait as _, PaginatorTrait as _};

use crate::support::database::connect;
use crate::support::gateway::KEY;
use crate::support::{Replica, Site, machine};

/// Requests of each part of the test.
const REQUESTS: u32 = 40;

/// With no room for the journal, the SQLite file or the output, requests are answered and counted. Their rows wait in
/// memory, go into the database when there is room again, and the journal holds the next ones across a crash.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_fails_no_request_and_loses_no_row() {
    let _machine = machine().await;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let database_url = format!("sqlite://{}?mode=rwc", folder.path().join("nexusgate.db").display());
    let site = Site::over(folder, database_url, &[]).await;
    let mut replica = site.replica("a").started().await;
    answered(&replica).await;
    replica.settled().await;

    let errors = replica.scrape().await.metric("nexusgate_journal_write_errors_total").value();
    file_size(&replica, "0:");
    answered(&replica).await;
    let full = replica
        .eventually("the database has refused a batch", |scrape| {
            scrape.metric("nexusgate_request_log_retries_total").value() > 0.0
        })
        .await;
    assert!(full.metric("nexusgate_journal_write_errors_total").value() > errors, "{}", full.text);
    let finished = full.metric("nexusgate_completions_total").label("status", "completed");
    assert!(finished.is(f64::from(2 * REQUESTS)), "{}", full.text);
    assert!(full.metric("nexusgate_request_log_pending").is(f64::from(REQUESTS)), "{}", full.text);
    assert!(full.metric("nexusgate_audit_mismatch").is(0.0), "{}", full.text);

    file_size(&replica, "unlimited:");
    let settled = replica.settled().await;
    assert!(settled.metric("nexusgate_request_log_rows_dropped_total").is(0.0), "{}", settled.text);
    answered(&replica).await;
    replica.kill();
    replica.start().await;
    replica.settled().await;
    assert!(replica.terminate().await.success(), "everything was written:\n{}", replica.output());
    let database = connect(&site.database_url).await;
    let rows = completions::Entity::find().count(&database).await.expect("a count");
    assert_eq!(rows, u64::from(3 * REQUESTS));
}

async fn answered(replica: &Replica) {
    for _ in 0..REQUESTS {
        assert_eq!(replica.chat(KEY).send().await.expect("an answer").status(), 200);
    }
}

/// Limits the size to which the process may write files (`prlimit --fsize`); beyond it the kernel refuses writes as a full
/// disk does.
fn file_size(replica: &Replica, limit: &str) {
    let id = replica.id().to_string();
    let changed = Command::new("prlimit").args(["--pid", &id, &format!("--fsize={limit}")]).status();
    assert!(changed.expect("prlimit is installed").success());
}
