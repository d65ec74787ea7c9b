//! A database outage: requests do not notice, and every row arrives afterwards.

use sea_orm::ConnectionTrait as _;

use crate::support::TestApp;
use crate::support::app::{EMBEDDING_MODEL, MODEL};
use crate::support::scrape::Scrape;

#[tokio::test]
async fn inserts_fail_and_recover() {
    let app = TestApp::spawn().await;
    app.chat(MODEL).send().await.bytes().await.expect("an answer");
    app.settled().await;
    let database = app.running().database();
    database.execute_unprepared("ALTER TABLE completions RENAME TO completions_away").await.expect("renamed");

    let pending = |scrape: &Scrape| {
        scrape.metric("nexusgate_request_log_pending").label("table", "completions").value()
    };
    let journal = |scrape: &Scrape| scrape.metric("nexusgate_journal_bytes").value();
    let before = journal(&app.scrape().await);
    for number in 1..=20 {
        let answer = app.chat(MODEL).send().await;
        assert_eq!(answer.status(), 200, "requests go on");
        answer.bytes().await.expect("an answer");
        assert_eq!(pending(&app.scrape().await), f64::from(number), "at once, not at some timer's next turn");
    }
    let scrape = app
        .eventually("rows are pending and tried again", |scrape| {
            pending(scrape) == 20.0 && scrape.metric("nexusgate_request_log_retries_total").value() >= 1.0
        })
        .await;
    assert!(scrape.metric("nexusgate_database_up").is(0.0));
    assert!(journal(&scrape) > before + 20.0 * 500.0, "{} bytes, {before} before", journal(&scrape));
    assert!(scrape.metric("nexusgate_journal_max_bytes").is(f64::from(1 << 30)));
    assert!(scrape.metric("nexusgate_audit_mismatch").is(0.0), "pending rows are accounted for");
    assert!(scrape.metric("nexusgate_completions_total").label("status", "completed").is(21.0));

    database.execute_unprepared("ALTER TABLE completions_away RENAME TO completions").await.expect("renamed");
    let scrape = app.eventually("the rows arrive", |scrape| pending(scrape) == 0.0).await;
    assert!(scrape.metric("nexusgate_database_up").is(1.0));
    assert_eq!(app.log_rows().await.len(), 21);
}

/// `LOG_PAYLOADS=metadata`: everything is counted and logged except the bodies.
#[tokio::test]
async fn metadata_alone_can_be_kept() {
    let app = TestApp::builder().setting("LOG_PAYLOADS", "metadata").spawn().await;
    app.chat(MODEL).send().await.bytes().await.expect("an answer");
    app.chat(MODEL).streamed().send().await.bytes().await.expect("an answer");
    app.embeddings(EMBEDDING_MODEL).send().await.bytes().await.expect("an answer");
    app.settled().await;
    let rows = app.log_rows().await;
    assert_eq!(rows.len(), 2);
    assert!(rows.iter().all(|row| row.prompt_tokens.is_some() && row.status == "completed"));
    assert!(rows.iter().all(|row| row.request_body.is_none() && row.response_body.is_none()));
    let rows = app.embedding_rows().await;
    assert!(rows.len() == 1 && rows[0].request_body.is_none() && rows[0].response_body.is_none());
}
