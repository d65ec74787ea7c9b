//! Every way a request can end: counted once, with the right status, and the log agrees.

use std::time::{Duration, Instant};

use entity::completions;
use futures_util::StreamExt as _;
use http::StatusCode;
use nexusgate::demo::provider::{Gate, RefusedPort, Reply};
use nexusgate::domain::key::Secret;
use nexusgate::domain::label::ApiFormat;
use nexusgate::domain::provider::ProviderKind;
use nexusgate::gateway::Hooks;
use sea_orm::EntityTrait as _;
use tokio::io::AsyncWriteExt as _;

use crate::support::TestApp;
use crate::support::app::{Builder, EMBEDDING_MODEL, MODEL};
use crate::support::scrape::Scrape;

/// The expected traces of one ending.
struct Expected {
    status: &'static str,
    /// The outcome of the last upstream attempt; `None`: none was made.
    outcome: Option<&'static str>,
    /// The code in the log row.
    error: Option<&'static str>,
}

async fn check(app: &TestApp, expected: Expected) {
    let scrape = app.settled().await;
    let all = scrape.metric("nexusgate_completions_total");
    assert!(all.is(1.0), "one completion is counted, not {}", all.value());
    let counted = scrape.metric("nexusgate_completions_total").label("status", expected.status);
    assert!(counted.is(1.0), "it is counted as {}:\n{}", expected.status, scrape.text);
    assert!(scrape.metric("nexusgate_requests_rejected_total").is(0.0));
    if let Some(outcome) = expected.outcome {
        let attempts = scrape.metric("nexusgate_upstream_attempts_total");
        let same = scrape.metric("nexusgate_upstream_attempts_total").label("outcome", outcome);
        assert!(
            same.value() >= 1.0 && same.is(attempts.value()),
            "attempts end as {outcome}:\n{}",
            scrape.text
        );
    }
    let rows = app.log_rows().await;
    assert_eq!(rows.len(), 1, "one row");
    assert_eq!(rows[0].status, expected.status);
    assert_eq!(rows[0].error.as_deref(), expected.error);
    app.eventually("the audit agrees", |scrape| scrape.metric("nexusgate_audit_mismatch").is(0.0)).await;
}

fn call(app: &TestApp, stream: bool) -> reqwest::RequestBuilder {
    let call = app.chat(MODEL);
    if stream { call.streamed().build() } else { call.build() }
}

/// Sends, and reads the answer to its end, whichever end that is.
async fn send(app: &TestApp, stream: bool) -> Option<StatusCode> {
    let response = call(app, stream).send().await.ok()?;
    let status = response.status();
    // A stream that breaks off ends in an error here; the test checks the gateway's counters.
    let _ = response.bytes().await;
    Some(status)
}

#[tokio::test]
async fn completed() {
    for stream in [false, true] {
        let app = TestApp::spawn().await;
        assert_eq!(send(&app, stream).await, Some(StatusCode::OK));
        check(&app, Expected { status: "completed", outcome: Some("ok"), error: None }).await;
    }
}

#[tokio::test]
async fn upstream_errors() {
    for (status, outcome, error) in [
        (StatusCode::INTERNAL_SERVER_ERROR, "http_5xx", "http_500"),
        (StatusCode::TOO_MANY_REQUESTS, "http_429", "http_429"),
        (StatusCode::BAD_REQUEST, "http_4xx", "http_400"),
    ] {
        for stream in [false, true] {
            let app = TestApp::spawn().await;
            app.provider().always(Reply::status(status));
            assert_eq!(send(&app, stream).await, Some(status), "the provider's answer is passed on");
            check(&app, Expected { status: "failed", outcome: Some(outcome), error: Some(error) }).await;
        }
    }
}

/// The error that the client received is in the request log, whether the provider's or the gateway's.
#[tokio::test]
async fn errors_are_logged_as_the_client_got_them() {
    let app = TestApp::spawn().await;
    for reply in [Reply::status(StatusCode::BAD_REQUEST), Reply::garbage()] {
        app.provider().always(reply);
        let told = app.chat(MODEL).send().await.text().await.expect("an error");
        app.settled().await;
        let row = app.log_rows().await.pop().expect("a row");
        assert_eq!(row.response_body.as_deref(), Some(&*told));
        assert!(told.contains("error"), "{told}");
    }
}

#[tokio::test]
async fn refused_connection() {
    for stream in [false, true] {
        let nobody = RefusedPort::reserve().expect("a port");
        let app = TestApp::builder().upstream(nobody.base_url()).spawn().await;
        assert_eq!(send(&app, stream).await, Some(StatusCode::BAD_GATEWAY));
        check(&app, Expected { status: "failed", outcome: Some("connect"), error: Some("connect") }).await;
    }
}

#[tokio::test]
async fn timeout() {
    for stream in [false, true] {
        let app = TestApp::builder().setting("UPSTREAM_TIMEOUT", "200ms").spawn().await;
        app.provider().always(Reply::text("late").held_by(&Gate::new()));
        assert_eq!(send(&app, stream).await, Some(StatusCode::GATEWAY_TIMEOUT));
        check(&app, Expected { status: "failed", outcome: Some("timeout"), error: Some("timeout") }).await;
    }
}

#[tokio::test]
async fn silence_in_the_middle_of_a_stream() {
    let app = TestApp::builder().setting("STREAM_IDLE_TIMEOUT", "200ms").spawn().await;
    app.provider().always(Reply::text("one two three four").stalled_after(2, &Gate::new()));
    assert_eq!(send(&app, true).await, Some(StatusCode::OK));
    check(&app, Expected { status: "failed", outcome: Some("timeout"), error: Some("stream_idle_timeout") })
        .await;
}

/// Nor do all providers send `[DONE]`, and some do not close the connection either.
#[tokio::test]
async fn silence_after_the_finish_reason() {
    let app = TestApp::builder().setting("STREAM_IDLE_TIMEOUT", "200ms").spawn().await;
    let said =
        "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"well\"},\"finish_reason\":\"stop\"}]}\n\n";
    app.provider().always(Reply::raw_stream([said, "data: [DONE]\n\n"]).stalled_after(1, &Gate::new()));
    assert_eq!(send(&app, true).await, Some(StatusCode::OK));
    check(&app, Expected { status: "completed", outcome: Some("ok"), error: None }).await;
}

/// A stream with a finish reason in every chunk has not ended by it.
#[tokio::test]
async fn silence_in_a_stream_of_reasons() {
    let app = TestApp::builder().setting("STREAM_IDLE_TIMEOUT", "200ms").spawn().await;
    let said =
        "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"well\"},\"finish_reason\":\"stop\"}]}\n\n";
    app.provider().always(Reply::raw_stream([said, said, "data: [DONE]\n\n"]).stalled_after(2, &Gate::new()));
    assert_eq!(send(&app, true).await, Some(StatusCode::OK));
    check(&app, Expected { status: "failed", outcome: Some("timeout"), error: Some("stream_idle_timeout") })
        .await;
    let app = TestApp::spawn().await;
    app.provider().always(Reply::raw_stream([said, said, "data: [DONE]\n\n"]));
    assert_eq!(send(&app, true).await, Some(StatusCode::OK));
    check(&app, Expected { status: "completed", outcome: Some("ok"), error: None }).await;
}

#[tokio::test]
async fn cut_in_the_middle() {
    let app = TestApp::spawn().await;
    app.provider().always(Reply::text("one two three four").cut_after(3));
    assert_eq!(send(&app, true).await, Some(StatusCode::OK));
    check(&app, Expected { status: "failed", outcome: Some("stream_cut"), error: Some("stream_cut") }).await;

    let app = TestApp::spawn().await;
    app.provider().always(Reply::text("one two three four").cut_after(1));
    assert_eq!(send(&app, false).await, Some(StatusCode::BAD_GATEWAY));
    check(&app, Expected { status: "failed", outcome: Some("stream_cut"), error: Some("stream_cut") }).await;
}

#[tokio::test]
async fn malformed_answer() {
    for stream in [false, true] {
        let app = TestApp::spawn().await;
        app.provider().always(Reply::garbage());
        assert_eq!(send(&app, stream).await, Some(StatusCode::BAD_GATEWAY));
        check(&app, Expected { status: "failed", outcome: Some("protocol"), error: Some("protocol") }).await;
    }
}

#[tokio::test]
async fn malformed_in_the_middle() {
    let app = TestApp::spawn().await;
    let good = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"well\"}}]}\n\n";
    app.provider().always(Reply::raw_stream([good, "data: {\"choices\":[{\"del\n\n", "data: [DONE]\n\n"]));
    assert_eq!(send(&app, true).await, Some(StatusCode::OK));
    check(&app, Expected { status: "failed", outcome: Some("protocol"), error: Some("malformed_stream") })
        .await;
}

#[tokio::test]
async fn client_gone_before_the_first_byte() {
    for stream in [false, true] {
        let app = TestApp::spawn().await;
        let gate = Gate::new();
        app.provider().always(Reply::text("too late").held_by(&gate));
        let waiting = tokio::spawn(call(&app, stream).send());
        gate.reached(1).await;
        waiting.abort();
        app.eventually("the gateway noticed", |scrape| {
            scrape.metric("nexusgate_http_requests_total").label("code", "499").is(1.0)
        })
        .await;
        gate.open();
        // The provider answered all the same, and its charge is known.
        check(&app, Expected { status: "aborted", outcome: Some("ok"), error: None }).await;
        let scrape = app.scrape().await;
        assert!(scrape.metric("nexusgate_tokens_completion_total").value() > 0.0);
        assert!(scrape.metric("nexusgate_tokens_wasted_total").label("reason", "aborted").value() > 0.0);
    }
}

#[tokio::test]
async fn client_gone_in_the_middle() {
    let app = TestApp::spawn().await;
    let gate = Gate::new();
    app.provider().always(Reply::text("one two three four").stalled_after(2, &gate));
    let mut chunks = call(&app, true).send().await.expect("headers").bytes_stream();
    chunks.next().await.expect("a chunk").expect("bytes");
    drop(chunks);
    gate.open();
    check(&app, Expected { status: "aborted", outcome: Some("ok"), error: None }).await;
    assert!(
        app.scrape().await.metric("nexusgate_tokens_completion_total").value() > 0.0,
        "drained for the usage"
    );
}

/// An earlier failure of another provider is not the reason for the client's disconnect.
#[tokio::test]
async fn client_gone_after_a_failover() {
    let targets = ["alpha", "beta"].map(|name| (name, ProviderKind::OpenAi, None)).to_vec();
    let app = TestApp::builder().targets(targets).spawn().await;
    let gate = Gate::new();
    app.providers[0].always(Reply::status(StatusCode::SERVICE_UNAVAILABLE));
    app.providers[1].always(Reply::text("one two three four").stalled_after(2, &gate));
    let mut chunks = call(&app, true).send().await.expect("headers").bytes_stream();
    chunks.next().await.expect("a chunk").expect("bytes");
    drop(chunks);
    gate.open();
    check(&app, Expected { status: "aborted", outcome: None, error: None }).await;
    assert!(app.scrape().await.metric("nexusgate_failovers_total").is(1.0));
}

/// No client is left to answer, so there is no retry.
#[tokio::test]
async fn client_gone_before_a_retry() {
    let app = TestApp::spawn().await;
    app.provider().always(Reply::rate_limited(Duration::from_secs(2)));
    let call = call(&app, false).timeout(Duration::from_millis(300));
    assert!(call.send().await.is_err_and(|error| error.is_timeout()));
    let scrape = app.settled().await;
    assert!(
        scrape.metric("nexusgate_completions_total").label("status", "aborted").is(1.0),
        "{}",
        scrape.text
    );
    assert_eq!(app.provider().calls().len(), 1);
}

/// SDKs disconnect as soon as they have read an error; that does not count as an abort.
#[tokio::test]
async fn client_gone_after_an_error() {
    let events = concat!(
        "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"begun\"}}]}\n\n",
        "data: {\"error\":{\"message\":\"Slow down.\",\"code\":\"rate_limit_exceeded\"}}\n\n",
    );
    for drain in ["0s", "100ms"] {
        let app = TestApp::builder().setting("DRAIN_ON_DISCONNECT", drain).spawn().await;
        let never = Gate::new();
        app.provider().always(Reply::raw_stream([events, "data: [DONE]\n\n"]).stalled_after(1, &never));
        let mut chunks = call(&app, true).send().await.expect("headers").bytes_stream();
        let chunk = chunks.next().await.expect("a chunk").expect("bytes");
        assert!(chunk.ends_with(b"}}\n\n"), "both events");
        drop(chunks);
        check(&app, Expected { status: "failed", outcome: Some("http_429"), error: Some("upstream_error") })
            .await;
    }
}

/// An error event ends a stream, even if the connection breaks afterwards.
#[tokio::test]
async fn a_cut_after_an_error() {
    let events = "data: {\"error\":{\"message\":\"Slow down.\",\"code\":\"rate_limit_exceeded\"}}\n\n";
    let begun = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"begun\"}}]}\n\n";
    let app = TestApp::spawn().await;
    app.provider().always(Reply::raw_stream([begun, events, "data: [DONE]\n\n"]).cut_after(2));
    let text = call(&app, true).send().await.expect("headers").text().await.expect("a good end");
    assert_eq!(text, format!("{begun}{events}"), "and it is told once");
    check(&app, Expected { status: "failed", outcome: Some("http_429"), error: Some("upstream_error") })
        .await;
}

/// Self-hosted servers write OpenAI's errors into streams of any format: an SDK of that format would read over them.
#[tokio::test]
async fn an_error_of_another_format() {
    let app = TestApp::builder().targets(vec![("alpha", ProviderKind::Anthropic, None)]).spawn().await;
    let begun = "event: ping\ndata: {\"type\":\"ping\"}\n\n";
    let error =
        "data: {\"error\":{\"message\":\"Slow down, upstream-secret.\",\"type\":\"rate_limit_error\"}}\n\n";
    app.provider().always(Reply::raw_stream([begun, error, "data: [DONE]\n\n"]));
    let answer = app.ask(ApiFormat::Anthropic, MODEL).streamed().send().await;
    let retold = concat!(
        "event: error\n",
        r#"data: {"type":"error","error":{"type":"rate_limit_error","message":"Slow down, ***."}}"#,
        "\n\n"
    );
    let masked = error.replace("upstream-secret", "***");
    assert_eq!(answer.text().await.expect("a good end"), format!("{begun}{masked}{retold}"));
    check(&app, Expected { status: "failed", outcome: Some("http_429"), error: Some("upstream_error") })
        .await;
}

/// A client that disconnects before the end of its own format's stream has not received all of it, whatever the
/// provider has sent.
#[tokio::test]
async fn client_gone_between_the_last_word_and_the_converted_end() {
    for drain in ["0s", "100ms"] {
        let app = TestApp::builder().setting("DRAIN_ON_DISCONNECT", drain).spawn().await;
        let never = Gate::new();
        let chunk = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"all\"},\"finish_reason\":\"stop\"}]}\n\n";
        app.provider().always(Reply::raw_stream([chunk, "data: [DONE]\n\n"]).stalled_after(1, &never));
        let asked = app.ask(ApiFormat::Anthropic, MODEL).streamed().header("x-nexusgate-reqid", "one");
        let mut chunks = asked.send().await.bytes_stream();
        chunks.next().await.expect("a chunk").expect("bytes");
        drop(chunks);
        check(&app, Expected { status: "aborted", outcome: None, error: None }).await;
        never.open();
        let again = app.ask(ApiFormat::Anthropic, MODEL).streamed().header("x-nexusgate-reqid", "one");
        let again = again.send().await.text().await.expect("an answer");
        assert!(again.contains("message_stop"), "half an answer is not kept: {again}");
    }
}

#[tokio::test]
async fn client_gone_and_no_drain() {
    let app = TestApp::builder().setting("DRAIN_ON_DISCONNECT", "0s").spawn().await;
    let gate = Gate::new();
    app.provider().always(Reply::text("one two three four").stalled_after(2, &gate));
    let mut chunks = call(&app, true).send().await.expect("headers").bytes_stream();
    chunks.next().await.expect("a chunk").expect("bytes");
    drop(chunks);
    check(&app, Expected { status: "aborted", outcome: Some("cancelled"), error: None }).await;
}

#[tokio::test]
async fn client_gone_and_the_drain_takes_too_long() {
    let app = TestApp::builder().setting("DRAIN_ON_DISCONNECT", "100ms").spawn().await;
    let gate = Gate::new();
    app.provider().always(Reply::text("one two three four").stalled_after(2, &gate));
    let mut chunks = call(&app, true).send().await.expect("headers").bytes_stream();
    chunks.next().await.expect("a chunk").expect("bytes");
    drop(chunks);
    check(&app, Expected { status: "aborted", outcome: Some("cancelled"), error: None }).await;
}

/// The time it is waited for begins when the client leaves, and not anew with the answer's head.
#[tokio::test]
async fn client_gone_and_the_answer_begins_late() {
    const DRAIN: Duration = Duration::from_secs(4);
    let app = TestApp::builder().setting("DRAIN_ON_DISCONNECT", "4s").spawn().await;
    let (head, rest) = (Gate::new(), Gate::new());
    app.provider().always(Reply::text("one two three four").held_by(&head).stalled_after(2, &rest));
    let waiting = tokio::spawn(call(&app, true).send());
    head.reached(1).await;
    let left = Instant::now();
    waiting.abort();
    tokio::time::sleep_until((left + DRAIN * 3 / 4).into()).await;
    head.open();
    check(&app, Expected { status: "aborted", outcome: Some("cancelled"), error: None }).await;
    let took = left.elapsed();
    assert!(took < DRAIN * 7 / 4, "it was drained for {took:?}");
}

#[tokio::test]
async fn a_handler_panics() {
    for stream in [false, true] {
        let app = panicking(TestApp::builder()).spawn().await;
        assert_eq!(send(&app, stream).await, Some(StatusCode::INTERNAL_SERVER_ERROR));
        check(&app, Expected { status: "failed", outcome: None, error: Some("panic") }).await;
    }
}

#[expect(clippy::panic, reason = "the handler has to panic")]
fn panicking(builder: Builder) -> Builder {
    builder.hooks(Hooks {
        before_attempt: Some(Box::new(|_| panic!("injected by the test"))),
        ..Hooks::default()
    })
}

/// Whether or not the request takes the way through the router.
#[tokio::test]
async fn a_handler_panics_before_the_request_is_accepted() {
    for origins in ["", "https://app.example"] {
        let hooks =
            Hooks { before_admission: Some(Box::new(|| panic!("injected by the test"))), ..Hooks::default() };
        let app = TestApp::builder().setting("ALLOWED_ORIGINS", origins).hooks(hooks).spawn().await;
        assert_eq!(send(&app, false).await, Some(StatusCode::INTERNAL_SERVER_ERROR));
        let scrape = app.settled().await;
        let rejected = || scrape.metric("nexusgate_requests_rejected_total");
        assert!(rejected().label("reason", "internal_error").is(1.0), "{}", scrape.text);
        assert!(rejected().is(1.0), "and nothing else: {}", scrape.text);
        assert!(
            scrape.metric("nexusgate_http_requests_total").label("code", "500").is(1.0),
            "{}",
            scrape.text
        );
        assert!(app.log_rows().await.is_empty());
    }
}

#[tokio::test]
async fn embeddings_end_once_too() {
    let app = TestApp::spawn().await;
    assert_eq!(app.embeddings(EMBEDDING_MODEL).send().await.status(), 200);
    app.provider().always(Reply::status(StatusCode::BAD_REQUEST));
    assert_eq!(app.embeddings(EMBEDDING_MODEL).send().await.status(), 400);
    let scrape = app.settled().await;
    for status in ["completed", "failed"] {
        assert!(scrape.metric("nexusgate_embeddings_total").label("status", status).is(1.0), "{status}");
    }
    assert!(scrape.metric("nexusgate_tokens_embedding_total").value() > 0.0);
    assert_eq!(app.embedding_rows().await.len(), 2);
}

/// Refused requests are counted as such, and nowhere else.
#[tokio::test]
async fn refusals() {
    let app = TestApp::builder()
        .setting("MAX_BODY_SIZE", "1000")
        .setting("RATE_LIMIT_BURST", "1")
        .key("sk-small-limit-0123456789", "small", Some(1), None)
        .spawn()
        .await;
    let chat = || app.chat(MODEL);
    let url = app.url("/v1/chat/completions");
    let none = app.http.post(&url).json(&chat().body).send().await.expect("an answer");
    assert_eq!(none.status(), 401);
    assert_eq!(chat().key("sk-wrong").send().await.status(), 401);
    assert_eq!(app.chat("no-such-model").send().await.status(), 404);
    assert_eq!(app.chat(EMBEDDING_MODEL).send().await.status(), 400);
    let big = chat().with("padding", "x".repeat(2000).into());
    assert_eq!(big.send().await.status(), 413);
    let broken =
        app.http.post(&url).bearer_auth(&app.key).body("{\"model\":").send().await.expect("an answer");
    assert_eq!(broken.status(), 400);
    assert_eq!(chat().key("sk-small-limit-0123456789").send().await.status(), 200);
    let before = app.settled().await;
    let limited = before.metric("nexusgate_rate_limit_rejections_total");
    assert!(limited.exists() && limited.is(0.0), "a limited key's series begin at 0, before it is refused");
    let limited = chat().key("sk-small-limit-0123456789").send().await;
    assert_eq!(limited.status(), 429);
    assert!(limited.headers().contains_key("retry-after"));
    let body: serde_json::Value = limited.json().await.expect("JSON");
    assert_eq!(body["error"]["code"], "rate_limit_exceeded");

    let scrape = app.settled().await;
    for (reason, count) in [
        ("missing_api_key", 1.0),
        ("invalid_api_key", 1.0),
        ("model_not_found", 1.0),
        ("invalid_request", 2.0),
        ("body_too_large", 1.0),
        ("rate_limited", 1.0),
    ] {
        let counted = scrape.metric("nexusgate_requests_rejected_total").label("reason", reason);
        assert!(counted.is(count), "{reason}: {}", counted.value());
    }
    let limited = scrape.metric("nexusgate_rate_limit_rejections_total").label("api_key_comment", "small");
    assert!(limited.label("limit_type", "rpm").is(1.0));
    assert!(scrape.metric("nexusgate_completions_total").is(1.0));
    assert_eq!(app.provider().calls().len(), 1);
}

#[tokio::test]
async fn too_many_in_flight() {
    let app = TestApp::builder().setting("MAX_IN_FLIGHT", "1").spawn().await;
    let gate = Gate::new();
    app.provider().always(Reply::text("slow").held_by(&gate));
    let first = tokio::spawn(call(&app, false).send());
    gate.reached(1).await;
    let second = app.chat(MODEL).send().await;
    assert_eq!(second.status(), 503);
    assert_eq!(second.headers()["retry-after"], "1");
    gate.open();
    assert_eq!(first.await.expect("joined").expect("an answer").status(), 200);
    let scrape = app.settled().await;
    assert!(scrape.metric("nexusgate_requests_rejected_total").label("reason", "overloaded").is(1.0));
}

/// As at SIGTERM: running streams finish, records are written.
#[tokio::test]
async fn shutdown_lets_streams_finish() {
    let app = TestApp::spawn().await;
    let gate = Gate::new();
    app.provider().always(Reply::text("one two three four").stalled_after(2, &gate));
    let mut chunks = call(&app, true).send().await.expect("headers").bytes_stream();
    chunks.next().await.expect("a chunk").expect("bytes");
    let reading = tokio::spawn(async move {
        let mut text = Vec::new();
        while let Some(chunk) = chunks.next().await {
            text.extend_from_slice(&chunk.expect("bytes"));
        }
        String::from_utf8(text).expect("UTF-8")
    });
    let opener = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(50)).await;
        gate.open();
    });
    assert!(app.shutdown().await, "everything was finished and written");
    opener.await.expect("joined");
    assert!(reading.await.expect("joined").contains("[DONE]"));
}

/// At the end of the grace period, running requests end as failed, with their provider's output so far, and are in the
/// log.
#[tokio::test]
async fn what_outlasts_the_grace_is_accounted_for() {
    let folder = tempfile::tempdir().expect("a folder");
    let url = format!("sqlite://{}", folder.path().join("kept.db").display());
    let app = TestApp::builder()
        .setting("SHUTDOWN_GRACE", "300ms")
        .adjust({
            let url = url.clone();
            move |settings| settings.database_url = Secret::new(url)
        })
        .spawn()
        .await;
    let gate = Gate::new();
    let opening = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"begun\"}}],\"usage\":{\"prompt_tokens\":5000,\"completion_tokens\":1}}\n\n";
    app.provider().always(Reply::raw_stream([opening, opening]).stalled_after(1, &gate));
    let mut streamed = call(&app, true).send().await.expect("headers").bytes_stream();
    streamed.next().await.expect("a chunk").expect("bytes");
    app.provider().always(Reply::text("never").held_by(&gate));
    let waiting = tokio::spawn(call(&app, false).send());
    gate.reached(2).await;
    let telemetry = app.running().telemetry().clone();
    assert!(!app.shutdown().await, "requests were still running");
    let scrape = Scrape::new(String::from_utf8(telemetry.render(false)).expect("UTF-8"));
    assert!(
        scrape.metric("nexusgate_completions_total").label("status", "failed").is(2.0),
        "{}",
        scrape.text
    );
    assert!(scrape.metric("nexusgate_requests_in_flight").is(0.0));
    assert!(scrape.metric("nexusgate_tokens_prompt_total").is(5000.0));
    let database = sea_orm::Database::connect(&url).await.expect("the database");
    let rows = completions::Entity::find().all(&database).await.expect("rows");
    assert_eq!(rows.len(), 2);
    assert!(rows.iter().all(|row| row.status == "failed" && row.error.as_deref() == Some("shutdown")));
    assert_eq!(rows.iter().filter_map(|row| row.prompt_tokens).sum::<i64>(), 5000);
    assert!(streamed.next().await.expect("an end").is_err(), "the client sees that it is cut");
    assert!(waiting.await.expect("joined").is_err());
}

/// Half a request head is no request, and delays nothing.
#[tokio::test]
async fn half_a_head_does_not_hold_up_a_shutdown() {
    let app = TestApp::builder()
        .setting("SHUTDOWN_GRACE", "60s")
        .setting("METRICS_ADDR", "127.0.0.1:0")
        .spawn()
        .await;
    let mut half = Vec::new();
    for address in [app.running().address(), app.running().metrics_address().expect("a listener")] {
        let mut connection = tokio::net::TcpStream::connect(address).await.expect("connected");
        connection.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\nx-slow: ").await.expect("written");
        half.push(connection);
    }
    let ended = tokio::time::timeout(Duration::from_secs(30), app.shutdown()).await;
    assert!(ended.expect("it ends before the grace does"), "nothing was running");
}

/// A client that has received `[DONE]` has its answer, however long its provider takes to close; the gateway waits for
/// the close only briefly.
#[tokio::test]
async fn what_comes_after_the_answer_is_not_the_clients_time() {
    let events = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"all\"},\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n";
    let gate = Gate::new();
    for leaves in [true, false] {
        let app = TestApp::builder().setting("DRAIN_ON_DISCONNECT", "10m").spawn().await;
        app.provider().always(Reply::raw_stream([events, ": the end\n\n"]).stalled_after(1, &gate));
        let mut body = call(&app, true).send().await.expect("headers").bytes_stream();
        let chunk = body.next().await.expect("a chunk").expect("bytes");
        assert!(chunk.ends_with(b"data: [DONE]\n\n"));
        if !leaves {
            assert!(body.next().await.is_none(), "it ends, and nothing follows");
        }
        drop(body);
        check(&app, Expected { status: "completed", outcome: Some("ok"), error: None }).await;
        let scrape = app.scrape().await;
        let took = scrape.metric("nexusgate_completion_duration_seconds_sum").value();
        let upstream = scrape.metric("nexusgate_upstream_duration_seconds_sum").value();
        assert!(
            upstream > 0.9 && upstream - took > 0.1,
            "{took} s of {upstream} s, the rest is the provider's"
        );
    }

    // Nor is that wait a stall of the client's stream.
    let app = TestApp::spawn().await;
    let late = Reply::raw_stream([events, ": the end\n\n"]).paused_after(1, Duration::from_millis(800));
    app.provider().always(late);
    let mut body = call(&app, true).send().await.expect("headers").bytes_stream();
    body.next().await.expect("a chunk").expect("bytes");
    drop(body);
    let scrape = app.settled().await;
    assert!(scrape.metric("nexusgate_upstream_attempts_total").label("outcome", "ok").is(1.0));
    assert!(scrape.metric("nexusgate_upstream_duration_seconds_sum").value() > 0.7);
    let stall = scrape.metric("nexusgate_stream_stall_seconds_sum").value();
    assert!(stall < 0.7, "{stall} s");
}
