//! The content of `/metrics`, and how it is served.

use std::io::Read as _;
use std::time::Duration;

use nexusgate::demo::provider::Reply;
use nexusgate::domain::label::Status;
use nexusgate::store::keys;
use nexusgate::telemetry::{catalog, docs};
use sea_orm::EntityTrait as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::support::TestApp;
use crate::support::app::{EMBEDDING_MODEL, MODEL};
use crate::support::scrape::Scrape;

#[tokio::test]
async fn counters_equal_what_the_provider_reported() {
    let app = TestApp::spawn().await;
    for stream in [false, true, true] {
        let call = if stream { app.chat(MODEL).streamed() } else { app.chat(MODEL) };
        call.send().await.bytes().await.expect("an answer");
    }
    app.embeddings(EMBEDDING_MODEL).send().await.bytes().await.expect("an answer");
    let scrape = app.settled().await;
    let rows = app.log_rows().await;
    let prompt: i64 = rows.iter().filter_map(|row| row.prompt_tokens).sum();
    let completion: i64 = rows.iter().filter_map(|row| row.completion_tokens).sum();
    assert!(prompt > 0 && completion > 0);
    assert_eq!(scrape.metric("nexusgate_tokens_prompt_total").label("model", MODEL).value(), prompt as f64);
    assert_eq!(
        scrape.metric("nexusgate_tokens_completion_total").label("model", MODEL).value(),
        completion as f64
    );
    let cost = prompt as f64 * 2.0 / 1e6 + completion as f64 * 8.0 / 1e6;
    let embedded = app.embedding_rows().await[0].prompt_tokens.expect("tokens") as f64 * 2.0 / 1e6;
    let total = scrape.metric("nexusgate_cost_total_usd_total").label("provider", "alpha").value();
    assert!((total - cost - embedded).abs() < 1e-12, "{total}");
    assert!(scrape.text.contains("# TYPE nexusgate_cost_total_usd_total counter"));
    assert!(scrape.metric("nexusgate_completion_duration_seconds_count").is(3.0));
    assert!(scrape.metric("nexusgate_completion_ttft_seconds_count").is(2.0), "of streams only");
    assert!(scrape.metric("nexusgate_gateway_overhead_seconds_count").is(4.0));
    assert!(scrape.metric("nexusgate_upstream_attempts_total").label("outcome", "ok").is(4.0));
}

#[tokio::test]
async fn what_is_configured_is_visible_before_the_first_request() {
    let app = TestApp::spawn().await;
    let scrape = app.scrape().await;
    for name in ["nexusgate_tokens_prompt_total", "nexusgate_completion_duration_seconds_count"] {
        assert!(scrape.text.contains(&format!("{name}{{model=\"{MODEL}\"}} 0\n")), "{name}");
    }
    assert!(scrape.metric("nexusgate_active_api_keys").is(1.0));
    assert!(scrape.metric("nexusgate_active_providers").is(1.0));
    assert!(scrape.metric("nexusgate_active_models").label("type", "embedding").is(1.0));
    assert!(scrape.metric("nexusgate_provider_up").label("provider", "alpha").is(1.0));
    assert!(scrape.metric("nexusgate_gauge_refresh_timestamp_seconds").value() > 1.7e9);
    assert!(scrape.metric("process_resident_memory_bytes").value() > 0.0);
    assert!(!scrape.metric("nexusgate_completions_total").exists());

    app.chat(MODEL).send().await.bytes().await.expect("an answer");
    let scrape = app.settled().await;
    for status in Status::VALUES {
        let series = format!("status=\"{status}\",api_format=\"openai-chat\",api_key_comment=\"tests\"");
        assert!(scrape.text.contains(&series), "every status exists once the key has called: {status}");
    }
}

/// Awkward comments are one well-formed series each, and keys that share one are summed.
#[tokio::test]
async fn comments_become_labels_safely() {
    let awkward = "team:\"a\\b\"\n,{}=é";
    let app = TestApp::builder()
        .key("sk-awkward-1-0123456789", awkward, Some(100), None)
        .key("sk-shared-1-0123456789", "shared", Some(10), Some(1000))
        .key("sk-shared-2-0123456789", "shared", Some(20), None)
        .key("sk-nameless-0123456789", "", None, None)
        .setting("GAUGE_REFRESH_INTERVAL", "50ms")
        .spawn()
        .await;
    for key in [
        "sk-awkward-1-0123456789",
        "sk-shared-1-0123456789",
        "sk-shared-2-0123456789",
        "sk-nameless-0123456789",
    ] {
        assert_eq!(app.chat(MODEL).key(key).send().await.status(), 200);
    }
    let scrape = app
        .eventually("both limits are shown", |scrape| {
            scrape.metric("nexusgate_api_key_rpm_limit").label("api_key_comment", "shared").is(30.0)
        })
        .await;
    let total =
        |comment| scrape.metric("nexusgate_completions_total").label("api_key_comment", comment).value();
    assert_eq!(total("shared"), 2.0);
    assert_eq!(total("unknown"), 1.0);
    assert_eq!(total("team:\"a/b\" ,{}=é"), 1.0);
    let line = r#"api_key_comment="team:\"a/b\" ,{}=é"} 1"#;
    assert_eq!(
        scrape
            .text
            .lines()
            .filter(|text| text.starts_with("nexusgate_completions_total") && text.ends_with(line))
            .count(),
        1
    );
}

/// They show the limits that an administrator set last, of all keys with a comment, used or not.
#[tokio::test]
async fn the_gauges_of_limits_are_the_limits() {
    let app = TestApp::builder()
        .key("sk-used-0123456789", "shared", Some(10), Some(1000))
        .key("sk-unused-0123456789", "shared", Some(20), None)
        .setting("GAUGE_REFRESH_INTERVAL", "50ms")
        .setting("SNAPSHOT_REFRESH_INTERVAL", "50ms")
        .spawn()
        .await;
    assert_eq!(app.chat(MODEL).key("sk-used-0123456789").send().await.status(), 200);
    let shows = |scrape: &Scrape, rpm: f64| {
        scrape.metric("nexusgate_api_key_rpm_limit").label("api_key_comment", "shared").is(rpm)
    };
    app.eventually("the sum of both is shown", |scrape| shows(scrape, 30.0)).await;
    let database = app.running().database();
    let used = keys::find_by_key(database, "sk-used-0123456789").await.expect("declared");
    let change = keys::ApiKeyChange { rpm: Some(Some(7)), tpm: Some(None), ..Default::default() };
    keys::update(database, used.id, change).await.expect("changed");
    let scrape = app.eventually("the new limit is shown", |scrape| shows(scrape, 27.0)).await;
    assert!(
        !scrape.text.contains("nexusgate_api_key_tpm_limit{api_key_comment=\"shared\"}"),
        "it has none now"
    );
}

#[tokio::test]
async fn a_revoked_keys_gauges_disappear() {
    const KEYS: [&str; 2] = ["sk-leaving-0123456789", "sk-staying-0123456789"];
    let app = TestApp::builder()
        // One request takes all they may use in a minute: nothing but the revocation ends that.
        .key(KEYS[0], "leaving", Some(1), Some(10))
        .key(KEYS[1], "staying", Some(1), None)
        .setting("GAUGE_REFRESH_INTERVAL", "50ms")
        .setting("SNAPSHOT_REFRESH_INTERVAL", "50ms")
        .spawn()
        .await;
    for key in KEYS {
        assert_eq!(app.chat(MODEL).key(key).send().await.status(), 200);
    }
    let has = |scrape: &Scrape, metric: &str, comment: &str| {
        scrape.text.contains(&format!("nexusgate_api_key_{metric}{{api_key_comment=\"{comment}\"}}"))
    };
    let all = ["rpm_usage", "rpm_limit", "tpm_usage", "tpm_limit"];
    app.eventually("both are shown", |scrape| {
        all.iter().all(|metric| has(scrape, metric, "leaving")) && has(scrape, "rpm_limit", "staying")
    })
    .await;
    let database = app.running().database();
    let leaving = keys::find_by_key(database, KEYS[0]).await.expect("declared");
    keys::revoke(database, leaving.id).await.expect("revoked");
    let scrape = app
        .eventually("they are gone", |scrape| all.iter().all(|metric| !has(scrape, metric, "leaving")))
        .await;
    assert!(
        scrape.metric("nexusgate_completions_total").label("api_key_comment", "leaving").is(1.0),
        "counted"
    );
    assert!(scrape.metric("nexusgate_active_api_keys").is(2.0));
    assert!(has(&scrape, "rpm_limit", "staying"));
}

/// Names that clients make up never become a series, however many there are.
#[tokio::test(flavor = "multi_thread")]
async fn made_up_names_and_keys_add_no_series() {
    let app = TestApp::spawn().await;
    app.chat("made-up").send().await;
    app.chat(MODEL).key("sk-made-up").send().await;
    let before = app.settled().await.lines();
    let address = app.running().address();
    let (connections, rounds, batch) = (4_u32, 250_u32, 100_u32);
    let senders = (0..connections).map(|connection| {
        let key = app.key.clone();
        tokio::spawn(async move {
            let mut stream = tokio::net::TcpStream::connect(address).await.expect("connected");
            let mut seen = vec![0; 256 * 1024];
            for round in 0..rounds {
                let mut requests = String::new();
                for n in 0..batch {
                    let name = format!("m{connection}-{round}-{n}");
                    let (key, body) = if n % 2 == 0 {
                        (key.clone(), format!("{{\"model\":\"{name}\"}}"))
                    } else {
                        (format!("sk-{name}"), format!("{{\"model\":\"{MODEL}\"}}"))
                    };
                    requests += &format!(
                        "POST /v1/chat/completions HTTP/1.1\r\nhost: t\r\nauthorization: Bearer {key}\r\ncontent-length: {}\r\n\r\n{body}",
                        body.len()
                    );
                }
                stream.write_all(requests.as_bytes()).await.expect("sent");
                let mut answers = 0;
                let mut text = String::new();
                while answers < batch {
                    let read = stream.read(&mut seen).await.expect("read");
                    assert!(read > 0, "the connection stays open");
                    text.push_str(&String::from_utf8_lossy(&seen[..read]));
                    answers = u32::try_from(text.matches("HTTP/1.1 40").count()).expect("few");
                }
            }
        })
    });
    for sender in futures_util::future::join_all(senders).await {
        sender.expect("every request was answered");
    }
    let scrape = app.settled().await;
    let sent = f64::from(connections * rounds * batch);
    assert_eq!(sent, 100_000.0);
    let rejected =
        |reason| scrape.metric("nexusgate_requests_rejected_total").label("reason", reason).value();
    assert_eq!(rejected("model_not_found") + rejected("invalid_api_key"), sent + 2.0);
    assert_eq!(scrape.lines(), before, "no series was added");
}

#[tokio::test]
async fn the_endpoint() {
    let app = TestApp::builder().setting("METRICS_BEARER_TOKEN", "let-me-see").spawn().await;
    for path in ["/metrics", "/metrics/"] {
        let refused = app.http.get(app.url(path)).send().await.expect("an answer");
        assert_eq!(refused.status(), 401);
        let wrong = app.http.get(app.url(path)).bearer_auth("let-me-sea").send().await.expect("an answer");
        assert_eq!(wrong.status(), 401);
        let plain = app.http.get(app.url(path)).bearer_auth("let-me-see").send().await.expect("an answer");
        assert_eq!(plain.status(), 200);
        assert_eq!(plain.headers()["content-type"], "text/plain; version=0.0.4; charset=utf-8");
        assert!(plain.text().await.expect("text").contains("nexusgate_info{version="));
    }
    let packed = app
        .http
        .get(app.url("/metrics"))
        .bearer_auth("let-me-see")
        .header("accept-encoding", "gzip")
        .send()
        .await
        .expect("an answer");
    assert_eq!(packed.headers()["content-encoding"], "gzip");
    let mut text = String::new();
    flate2::read::GzDecoder::new(&packed.bytes().await.expect("bytes")[..])
        .read_to_string(&mut text)
        .expect("gzip");
    assert!(text.contains("nexusgate_metrics_error 0"));
}

/// The threads for blocking work also look up hosts and build snapshots, and anybody may scrape.
#[test]
fn scrapes_at_once_take_turns() {
    const NAME: &str = "scraped";
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().thread_name(NAME).build();
    runtime.expect("a runtime").block_on(async {
        let app = TestApp::spawn().await;
        app.scrape().await;
        let threads = || {
            let tasks = std::fs::read_dir("/proc/self/task").expect("tasks").flatten();
            tasks.filter(|task| name_of(task) == NAME).count()
        };
        let before = threads();
        let scrapes = (0..200).map(|_| app.get("/metrics"));
        let answers = futures_util::future::join_all(scrapes).await;
        assert!(answers.iter().all(|answer| answer.status() == 200));
        // A thread without work stays for ten seconds. The next rendering may begin before the last one's thread is free.
        let threads = threads();
        assert!(threads < before + 20, "{threads} threads instead of {before}");
    });
}

fn name_of(task: &std::fs::DirEntry) -> String {
    std::fs::read_to_string(task.path().join("comm")).unwrap_or_default().trim().to_owned()
}

#[tokio::test]
async fn a_listener_of_its_own() {
    let app = TestApp::builder().setting("METRICS_ADDR", "127.0.0.1:0").spawn().await;
    assert_eq!(app.get("/metrics").await.status(), 404, "not on the main listener");
    let address = app.running().metrics_address().expect("an address");
    let scrape = app.http.get(format!("http://{address}/metrics")).send().await.expect("an answer");
    assert_eq!(scrape.status(), 200);
    let inference =
        app.http.post(format!("http://{address}/v1/chat/completions")).send().await.expect("an answer");
    assert_eq!(inference.status(), 404, "and nothing else there");
}

#[tokio::test]
async fn past_the_cap_series_overflow() {
    let app = TestApp::builder().setting("METRICS_MAX_SERIES", "1").spawn().await;
    app.chat(MODEL).send().await.bytes().await.expect("an answer");
    let scrape = app.settled().await;
    let folded = scrape.metric("nexusgate_completions_total").label("model", "_overflow");
    assert!(folded.label("status", "completed").is(1.0), "counted all the same");
    assert!(scrape.metric("nexusgate_metrics_overflow_total").value() > 0.0);
    assert!(
        scrape.metric("nexusgate_provider_up").label("provider", "alpha").is(1.0),
        "there is an alert on it"
    );
}

#[test]
fn the_docs_are_current() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/METRICS.md");
    let written = std::fs::read_to_string(path).expect("docs/METRICS.md");
    assert!(written == docs::markdown(), "run: cargo run -- metrics-catalog > docs/METRICS.md");
    for metric in catalog::ALL {
        assert!(written.contains(metric.name));
    }
}

/// Tokens that come from a provider's cache, or go into it, cost what the model's prices say.
#[tokio::test]
async fn cached_tokens_have_prices_of_their_own() {
    let app = TestApp::builder()
        .adjust(|settings| {
            for model in &mut settings.declared.models {
                (model.input_price, model.output_price) = (Some(2.0), Some(8.0));
                model.cached_input_price = Some(0.5);
            }
        })
        .spawn()
        .await;
    app.provider().always(Reply::raw_json(
        r#"{"choices":[{"index":0,"message":{"role":"assistant","content":"x"},"finish_reason":"stop"}],
            "usage":{"prompt_tokens":1000,"completion_tokens":10,"prompt_tokens_details":{"cached_tokens":800}}}"#,
    ));
    assert_eq!(app.chat(MODEL).send().await.status(), 200);
    let scrape = app.settled().await;
    let prompt = (200.0 * 2.0 + 800.0 * 0.5) / 1e6;
    let cost = |name: &str| scrape.metric(name).label("model", MODEL).value();
    assert!((cost("nexusgate_cost_prompt_usd_total") - prompt).abs() < 1e-12, "{}", scrape.text);
    assert!((cost("nexusgate_cost_total_usd_total") - prompt - 80.0 / 1e6).abs() < 1e-12);
    assert!((app.log_rows().await[0].prompt_cost - prompt).abs() < 1e-12);
}

/// Goodput: what a stream meets or misses. An answer that was not streamed has no first token, so it is neither; nor is
/// one whose tokens nobody counted, unless its first one was late already.
#[tokio::test]
async fn only_streams_of_models_with_targets_meet_or_miss_them() {
    for (ttft, tpot, counted, within, missed) in [
        (None, None, true, 0.0, 0.0),
        (Some(60_000), None, true, 1.0, 0.0),
        (Some(1), None, true, 0.0, 1.0),
        (None, Some(60_000), true, 1.0, 0.0),
        (None, Some(1), true, 0.0, 1.0),
        (None, Some(60_000), false, 0.0, 0.0),
        (Some(1), Some(60_000), false, 0.0, 1.0),
    ] {
        let app = TestApp::builder()
            .adjust(move |settings| {
                settings.declared.providers[0].ask_stream_usage = counted;
                for model in &mut settings.declared.models {
                    (model.slo_ttft_ms, model.slo_tpot_ms) = (ttft, tpot);
                }
            })
            .spawn()
            .await;
        // Slower than the shortest targets, faster than the longest.
        let slow = Duration::from_millis(20);
        app.provider().always(Reply::text("one two three").after(slow).every(slow));
        app.chat(MODEL).send().await.bytes().await.expect("an answer");
        app.chat(MODEL).streamed().send().await.bytes().await.expect("an answer");
        let scrape = app.settled().await;
        let count = |name: &str| scrape.metric(name).label("model", MODEL).value();
        let counts = (
            count("nexusgate_completions_within_slo_total"),
            count("nexusgate_completions_missed_slo_total"),
        );
        assert_eq!(counts, (within, missed), "{ttft:?} {tpot:?} {counted}");
    }
}

#[tokio::test]
async fn models_are_listed() {
    let app = TestApp::builder()
        .adjust(|settings| {
            let mut few =
                crate::support::app::declared_key("sk-one-model-0123456789", Some("few"), None, None);
            few.allowed_models = Some(vec![MODEL.to_owned()]);
            settings.declared.api_keys.push(few);
        })
        .spawn()
        .await;
    let list: serde_json::Value = app.get("/v1/models").await.json().await.expect("JSON");
    let ids: Vec<&str> =
        list["data"].as_array().expect("a list").iter().filter_map(|model| model["id"].as_str()).collect();
    assert_eq!(ids, [EMBEDDING_MODEL, MODEL]);
    // The time since when it is offered, at every request, not the time of the last refresh.
    let models = entity::models::Entity::find().all(app.running().database()).await.expect("rows");
    for model in list["data"].as_array().expect("a list") {
        let row = models.iter().find(|row| model["id"] == *row.system_name).expect("its row");
        assert_eq!(model["created"], row.created_at.timestamp());
    }
    assert_eq!(app.get("/v1/models/gpt-4o").await.status(), 200);
    assert_eq!(app.get("/v1/models/no-such").await.status(), 404);
    let few = app
        .http
        .get(app.url("/v1/models"))
        .bearer_auth("sk-one-model-0123456789")
        .send()
        .await
        .expect("an answer");
    let few: serde_json::Value = few.json().await.expect("JSON");
    assert_eq!(few["data"].as_array().expect("a list").len(), 1);
    assert_eq!(app.embeddings(EMBEDDING_MODEL).key("sk-one-model-0123456789").send().await.status(), 404);
    let none = app.http.get(app.url("/v1/models")).send().await.expect("an answer");
    assert_eq!(none.status(), 401);
}
