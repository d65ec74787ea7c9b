//! When a provider fails, the next one answers, and every attempt is counted.

use std::time::Duration;

use http::StatusCode;
use nexusgate::demo::provider::{Gate, RefusedPort, Reply, ScriptedProvider};
use nexusgate::domain::label::ApiFormat;
use nexusgate::domain::provider::ProviderKind;
use serde_json::Value;

use crate::support::TestApp;
use crate::support::app::MODEL;
use crate::support::scrape::Scrape;

/// A way for a provider to fail.
struct Fault {
    name: &'static str,
    /// `None`: nobody listens at its port.
    reply: Option<fn(&Gate) -> Reply>,
    /// The outcome that the attempt is counted as.
    outcome: &'static str,
    /// The client's answer when every provider fails like this.
    status: u16,
    /// Attempts at the second provider when it fails too: a last retry of the same one, where that may help.
    last_tries: f64,
    /// The failure comes only after the client has received a part of the stream.
    too_late: bool,
}

const FAULTS: &[Fault] = &[
    Fault {
        name: "refuses the connection",
        reply: None,
        outcome: "connect",
        status: 502,
        last_tries: 2.0,
        too_late: false,
    },
    Fault {
        name: "drops the connection",
        reply: Some(|_| Reply::dropped()),
        outcome: "stream_cut",
        status: 502,
        last_tries: 2.0,
        too_late: false,
    },
    Fault {
        name: "times out",
        reply: Some(|gate| Reply::text("late").held_by(gate)),
        outcome: "timeout",
        status: 504,
        last_tries: 1.0,
        too_late: false,
    },
    Fault {
        name: "429 with Retry-After",
        reply: Some(|_| Reply::rate_limited(Duration::from_secs(30))),
        outcome: "http_429",
        status: 429,
        last_tries: 1.0,
        too_late: false,
    },
    Fault {
        name: "500",
        reply: Some(|_| Reply::status(StatusCode::INTERNAL_SERVER_ERROR)),
        outcome: "http_5xx",
        status: 500,
        last_tries: 2.0,
        too_late: false,
    },
    Fault {
        name: "503",
        reply: Some(|_| Reply::status(StatusCode::SERVICE_UNAVAILABLE)),
        outcome: "http_5xx",
        status: 503,
        last_tries: 2.0,
        too_late: false,
    },
    Fault {
        name: "garbage",
        reply: Some(|_| Reply::raw_json("{\"choices\": [oops")),
        outcome: "protocol",
        status: 502,
        last_tries: 1.0,
        too_late: false,
    },
    Fault {
        name: "garbage of its format",
        reply: Some(|_| Reply::garbage()),
        outcome: "protocol",
        status: 502,
        last_tries: 1.0,
        too_late: false,
    },
    Fault {
        name: "cut before the first byte",
        reply: Some(|_| Reply::text("one two three").cut_after(0)),
        outcome: "stream_cut",
        status: 502,
        last_tries: 2.0,
        too_late: false,
    },
    Fault {
        name: "cut after the first byte",
        reply: Some(|_| Reply::text("one two three four").cut_after(1)),
        outcome: "stream_cut",
        status: 200,
        last_tries: 2.0,
        too_late: true,
    },
];

/// Two providers; the first is always preferred.
pub async fn two_providers() -> TestApp {
    providers_at(None, None).await
}

async fn providers_at(first: Option<String>, second: Option<String>) -> TestApp {
    let kind = ProviderKind::OpenAi;
    TestApp::builder()
        .targets(vec![("first", kind, first), ("second", kind, second)])
        .setting("UPSTREAM_TIMEOUT", "300ms")
        .spawn()
        .await
}

/// The app whose first provider fails like this, and perhaps the second; and the guards that keep the failure in place.
async fn failing(fault: &Fault, second_works: bool) -> (TestApp, Gate, Vec<RefusedPort>) {
    let gate = Gate::new();
    let Some(reply) = fault.reply else {
        let nobody: Vec<RefusedPort> = (0..2)
            .map(|_| RefusedPort::reserve().expect("a port"))
            .take(2 - usize::from(second_works))
            .collect();
        let url = |index: usize| nobody.get(index).map(RefusedPort::base_url);
        return (providers_at(url(0), url(1)).await, gate, nobody);
    };
    let app = two_providers().await;
    provider(&app, "first").always(reply(&gate));
    if !second_works {
        provider(&app, "second").always(reply(&gate));
    }
    (app, gate, Vec::new())
}

pub fn provider<'a>(app: &'a TestApp, name: &str) -> &'a ScriptedProvider {
    &app.providers[usize::from(name == "second")]
}

#[tokio::test]
async fn matrix() {
    for fault in FAULTS {
        for stream in [false, true] {
            for second_works in [true, false] {
                let (app, _gate, _nobody) = failing(fault, second_works).await;
                check(&app, fault, stream, second_works).await;
            }
        }
    }
}

async fn check(app: &TestApp, fault: &Fault, stream: bool, second_works: bool) {
    let case = format!("{}, stream: {stream}, second works: {second_works}", fault.name);
    let call = if stream { app.chat(MODEL).streamed() } else { app.chat(MODEL) };
    let response = call.send().await;
    let status = response.status().as_u16();
    let retry_after = response.headers().get("retry-after").cloned();
    let by =
        response.headers().get("x-nexusgate-provider").map(|name| name.to_str().expect("text").to_owned());
    let body = response.bytes().await;
    let scrape = app.settled().await;
    let attempts = |provider: &str, outcome: &str| {
        scrape
            .metric("nexusgate_upstream_attempts_total")
            .label("provider", provider)
            .label("outcome", outcome)
            .value()
    };
    let failovers = scrape
        .metric("nexusgate_failovers_total")
        .label("provider", "first")
        .label("outcome", fault.outcome)
        .value();
    let counted = |status: &str| scrape.metric("nexusgate_completions_total").label("status", status).value();
    assert_eq!(attempts("first", fault.outcome), 1.0, "{case}");
    let rows = app.log_rows().await;
    assert_eq!(rows.len(), 1, "{case}");
    let all = scrape.metric("nexusgate_upstream_attempts_total").value();
    for name in ["first", "second"] {
        let up = scrape.metric("nexusgate_provider_up").label("provider", name);
        assert!(up.is(1.0), "{case}: one failure, or two, open no breaker");
    }

    if fault.too_late && stream {
        // The client has received the beginning: no other provider can continue, so it gets an error event.
        assert_eq!((status, failovers), (200, 0.0), "{case}");
        assert!(String::from_utf8_lossy(&body.expect("a body")).contains("\"error\""), "{case}");
        assert_eq!(counted("failed"), 1.0, "{case}");
        assert_eq!(all, 1.0, "{case}");
        assert_eq!(rows[0].provider.as_deref(), Some("first"), "{case}");
        assert_eq!(rows[0].error.as_deref(), Some(fault.outcome), "{case}");
    } else if second_works {
        assert_eq!((status, failovers), (200, 1.0), "{case}");
        assert_eq!(by.as_deref(), Some("second"), "{case}");
        assert_eq!(attempts("second", "ok"), 1.0, "{case}");
        assert_eq!(counted("completed"), 1.0, "{case}");
        assert_eq!(all, 2.0, "{case}");
        assert_eq!(rows[0].provider.as_deref(), Some("second"), "{case}");
        assert_eq!((rows[0].status.as_str(), rows[0].error.as_deref()), ("completed", None), "{case}");
        let cost =
            |provider| scrape.metric("nexusgate_cost_total_usd_total").label("provider", provider).value();
        assert!(cost("second") > 0.0 && cost("first") == 0.0, "{case}: who answered is who is paid");
    } else {
        let expected = if fault.too_late { 502 } else { fault.status };
        assert_eq!((status, failovers), (expected, 1.0), "{case}");
        assert_eq!(attempts("second", fault.outcome), fault.last_tries, "{case}");
        assert_eq!(counted("failed"), 1.0, "{case}");
        assert_eq!(all, 1.0 + fault.last_tries, "{case}");
        let told = if fault.outcome.starts_with("http") {
            format!("http_{expected}")
        } else {
            fault.outcome.to_owned()
        };
        assert_eq!(
            (rows[0].status.as_str(), rows[0].error.as_deref()),
            ("failed", Some(told.as_str())),
            "{case}"
        );
        if expected == 429 {
            assert_eq!(retry_after.expect("Retry-After"), "30", "{case}: as the provider said");
        }
        let told: Value = serde_json::from_slice(&body.expect("a body")).expect("JSON");
        assert!(told["error"]["message"].is_string(), "{case}: {told}");
        if matches!(expected, 502 | 504) {
            assert_eq!(told["error"]["code"], "all_providers_failed", "{case}");
        }
    }
}

/// Five failures in a row open the breaker, however the provider fails; a rate-limited provider is healthy.
#[tokio::test]
async fn the_breaker_knows_every_fault() {
    for fault in FAULTS {
        let (app, _gate, _nobody) = failing(fault, true).await;
        for _ in 0..5 {
            // Whole answers: no other provider can continue a stream that has begun.
            assert_eq!(app.chat(MODEL).send().await.status(), 200, "{}", fault.name);
        }
        let up = if fault.outcome == "http_429" { 1.0 } else { 0.0 };
        let attempts = |scrape: &Scrape, provider: &str| {
            scrape.metric("nexusgate_upstream_attempts_total").label("provider", provider).value()
        };
        let scrape = app
            .eventually(fault.name, |scrape| {
                scrape.metric("nexusgate_provider_up").label("provider", "first").is(up)
                    && scrape.metric("nexusgate_failovers_total").is(5.0)
            })
            .await;
        assert_eq!((attempts(&scrape, "first"), attempts(&scrape, "second")), (5.0, 5.0), "{}", fault.name);
        assert_eq!(app.chat(MODEL).send().await.status(), 200, "{}", fault.name);
        let asked = attempts(&app.settled().await, "first");
        assert_eq!(asked, 5.0 + up, "{}: an open breaker spares the provider", fault.name);
    }
}

/// A breaker that opens while a request is under way does not take its retry away: with one provider there is no other way
/// to an answer.
#[tokio::test]
async fn a_retry_goes_through_a_breaker_that_has_just_opened() {
    const CALLS: usize = 6;
    let app = TestApp::spawn().await;
    let gate = Gate::new();
    for _ in 0..CALLS {
        app.provider().next(Reply::status(StatusCode::INTERNAL_SERVER_ERROR).held_by(&gate));
    }
    let asking: Vec<_> = (0..CALLS).map(|_| tokio::spawn(app.chat(MODEL).build().send())).collect();
    gate.reached(CALLS).await;
    gate.open();
    for answer in asking {
        assert_eq!(answer.await.expect("joined").expect("an answer").status(), 200);
    }
    let scrape = app.settled().await;
    let attempts =
        |outcome| scrape.metric("nexusgate_upstream_attempts_total").label("outcome", outcome).value();
    assert_eq!((attempts("http_5xx"), attempts("ok")), (6.0, 6.0));
}

/// A stream that consists of an error alone has failed before the client received anything.
#[tokio::test]
async fn a_stream_that_begins_with_an_error() {
    for (kind, error) in [
        (
            ProviderKind::Anthropic,
            r#"{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}"#,
        ),
        (ProviderKind::OpenAi, r#"{"error":{"message":"Overloaded","type":"server_error","code":503}}"#),
        (
            ProviderKind::OpenAi,
            r#"{"object":"error","message":"Overloaded","type":"ServerError","code":503}"#,
        ),
        (ProviderKind::OpenAiResponses, r#"{"error":{"message":"Overloaded","code":503}}"#),
    ] {
        let app =
            TestApp::builder().targets(vec![("first", kind, None), ("second", kind, None)]).spawn().await;
        let name = if kind == ProviderKind::Anthropic { "event: error\n" } else { "" };
        let whole = format!("{name}data: {error}\n\n");
        // The blank line is missing when the provider ends its body with the error.
        let reply = |missing: usize| Reply::raw_stream([whole[..whole.len() - missing].to_owned()]);
        for missing in [0, 1, 2] {
            provider(&app, "first").always(reply(missing));
            for format in ApiFormat::ALL.iter().copied() {
                let response = app.ask(format, MODEL).streamed().send().await;
                assert_eq!(response.headers()["x-nexusgate-provider"], "second", "{kind:?} {format:?}");
                assert!(response.text().await.expect("text").contains("scripted"));
            }
        }
        provider(&app, "second").always(reply(0));
        let scrape = app.settled().await;
        let attempts = || scrape.metric("nexusgate_upstream_attempts_total").label("provider", "first");
        assert!(attempts().label("outcome", "http_5xx").is(attempts().value()), "{error}");
        let response = app.ask(ApiFormat::OpenAiChat, MODEL).streamed().send().await;
        assert_eq!(response.status(), if kind == ProviderKind::Anthropic { 529 } else { 503 });
        let told: Value = response.json().await.expect("JSON");
        assert_eq!(told["error"]["message"], "Overloaded");
        app.settled().await;
    }
}

/// Servers that speak OpenAI's format often end a stream with `[DONE]` even when it failed.
#[tokio::test]
async fn an_error_is_read_whatever_follows_it() {
    for (error, outcome, answered) in [
        (
            r#"data: {"error":{"message":"Too long.","type":"invalid_request_error","code":"context_length_exceeded"}}"#,
            "http_4xx",
            "first",
        ),
        // llama.cpp
        (r#"error: {"code":400,"message":"Too long.","type":"invalid_request_error"}"#, "http_4xx", "first"),
        (r#"data: {"error":{"message":"Slow down.","type":"rate_limit_error"}}"#, "http_429", "second"),
        (r#"error: {"code":503,"message":"Loading.","type":"unavailable_error"}"#, "http_5xx", "second"),
    ] {
        let app = two_providers().await;
        provider(&app, "first").always(Reply::raw_stream([format!("{error}\n\ndata: [DONE]\n\n")]));
        let response = app.chat(MODEL).streamed().send().await;
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["x-nexusgate-provider"], answered, "{error}");
        let text = response.text().await.expect("text");
        assert_eq!(text.contains("Too long."), answered == "first", "{text}");
        let scrape = app.settled().await;
        let attempts = scrape.metric("nexusgate_upstream_attempts_total").label("provider", "first");
        assert!(attempts.label("outcome", outcome).is(1.0), "{}", scrape.text);
        assert_eq!(provider(&app, "first").calls().len(), 1, "it is not asked the same again");
    }
}

/// A provider that reports a limit, or a client error, works: it stays in use, however it reports it.
#[tokio::test]
async fn what_is_told_within_a_stream_counts_as_what_it_is() {
    let opening = "event: response.created\ndata: {\"type\":\"response.created\",\"response\":{\"id\":\"resp_1\",\"status\":\"in_progress\"}}\n\n";
    for (code, outcome, up) in [
        ("rate_limit_exceeded", "http_429", 1.0),
        ("invalid_request_error", "http_4xx", 1.0),
        ("server_error", "http_5xx", 0.0),
    ] {
        let app =
            TestApp::builder().targets(vec![("first", ProviderKind::OpenAiResponses, None)]).spawn().await;
        let failed = format!(
            "event: response.failed\ndata: {{\"type\":\"response.failed\",\"response\":{{\"id\":\"resp_1\",\"status\":\"failed\",\"error\":{{\"code\":\"{code}\",\"message\":\"No.\"}}}}}}\n\n"
        );
        provider(&app, "first").always(Reply::raw_stream([opening.to_owned(), failed]));
        for _ in 0..5 {
            let response = app.ask(ApiFormat::OpenAiResponses, MODEL).streamed().send().await;
            response.text().await.expect("text");
        }
        let scrape = app.settled().await;
        let attempts = scrape.metric("nexusgate_upstream_attempts_total").label("provider", "first");
        assert!(attempts.label("outcome", outcome).is(5.0), "{code}:\n{}", scrape.text);
        assert!(scrape.metric("nexusgate_completions_total").label("status", "failed").is(5.0));
        assert!(scrape.metric("nexusgate_provider_up").label("provider", "first").is(up), "{code}");
    }
}

/// The provider whose answer the client gets when all fail.
#[tokio::test]
async fn an_answer_names_its_provider() {
    let nobody = RefusedPort::reserve().expect("a port");
    let app = providers_at(None, Some(nobody.base_url())).await;
    provider(&app, "first").always(Reply::status(StatusCode::SERVICE_UNAVAILABLE));
    let response = app.chat(MODEL).send().await;
    assert_eq!(response.status(), 503);
    assert_eq!(response.headers()["x-nexusgate-provider"], "first");
    let id = response.headers()["x-nexusgate-id"].to_str().expect("text").to_owned();
    app.settled().await;
    assert_eq!(app.log_rows().await[0].id.to_string(), id);
    // No provider answered, so none is named.
    let app = providers_at(Some(nobody.base_url()), Some(nobody.base_url())).await;
    let response = app.chat(MODEL).send().await;
    assert_eq!(response.status(), 502);
    assert!(response.headers().contains_key("x-nexusgate-id"));
    assert!(!response.headers().contains_key("x-nexusgate-provider"));
}

/// With a provider picked, no other is called, whatever its name.
#[tokio::test]
async fn a_picked_provider_may_have_any_name() {
    let app = TestApp::builder().providers(&["first", "Zürich"]).spawn().await;
    for (picked, status) in [("Zürich", 200), (" Zürich ", 200), ("Zurich", 404), ("Genève", 404)] {
        let picked = reqwest::header::HeaderValue::from_bytes(picked.as_bytes()).expect("a value");
        let request = app.chat(MODEL).build().header("x-nexusgate-provider", picked.clone());
        assert_eq!(request.send().await.expect("an answer").status(), status, "{picked:?}");
    }
    assert_eq!(provider(&app, "first").calls().len(), 0);
    let latin_1 = reqwest::header::HeaderValue::from_bytes(b"Z\xfcrich").expect("a value");
    let request = app.chat(MODEL).build().header("x-nexusgate-provider", latin_1);
    assert_eq!(request.send().await.expect("an answer").status(), 404);
}

/// A provider that could not be called has not answered, and does not count as a failover.
#[tokio::test]
async fn a_provider_that_cannot_be_asked_hides_no_answer() {
    let app = TestApp::builder()
        .targets(vec![("first", ProviderKind::OpenAi, None), ("second", ProviderKind::Anthropic, None)])
        .spawn()
        .await;
    provider(&app, "first").always(Reply::rate_limited(Duration::from_secs(30)));
    let file =
        serde_json::json!([{"role": "user", "content": [{"type": "file", "file": {"file_id": "file-1"}}]}]);
    let response = app.chat(MODEL).with("messages", file).send().await;
    assert_eq!(response.status(), 429);
    assert_eq!(response.headers()["retry-after"], "30");
    assert!(provider(&app, "second").calls().is_empty());
    let scrape = app.settled().await;
    assert!(scrape.metric("nexusgate_failovers_total").is(0.0), "{}", scrape.text);
    let rows = app.log_rows().await;
    assert_eq!((rows[0].provider.as_deref(), rows[0].error.as_deref()), (Some("first"), Some("http_429")));
}

/// A provider without a free slot does not count as a failover.
#[tokio::test]
async fn a_failover_is_counted_when_the_next_provider_is_asked() {
    let app = TestApp::builder()
        .targets(vec![("first", ProviderKind::OpenAi, None), ("second", ProviderKind::OpenAi, None)])
        .adjust(|settings| settings.declared.providers[1].max_concurrency = Some(1))
        .spawn()
        .await;
    let gate = Gate::new();
    provider(&app, "first").always(Reply::status(StatusCode::SERVICE_UNAVAILABLE));
    provider(&app, "second").always(Reply::text("slow").held_by(&gate));
    let waiting = tokio::spawn(app.chat(MODEL).build().send());
    gate.reached(1).await;
    let failovers = |scrape: &Scrape| scrape.metric("nexusgate_failovers_total").value();
    let meanwhile = app.scrape().await;
    assert_eq!(failovers(&meanwhile), 1.0);
    // What it will cost there is to be seen as an increase from 0.
    let cost = |scrape: &Scrape| {
        let mut lines = scrape.text.lines();
        let line =
            lines.find(|line| line.starts_with("nexusgate_cost_total_usd_total{") && line.contains("second"));
        line.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
    };
    assert_eq!(cost(&meanwhile), Some(0.0));
    assert_eq!(app.chat(MODEL).send().await.status(), 503);
    gate.open();
    assert_eq!(waiting.await.expect("joined").expect("an answer").status(), 200);
    let settled = app.settled().await;
    assert_eq!(failovers(&settled), 1.0);
    assert!(cost(&settled) > Some(0.0));
}

/// An error that would recur is passed on at once, unchanged.
#[tokio::test]
async fn what_is_not_retriable_is_passed_on() {
    let app = two_providers().await;
    provider(&app, "first").always(Reply::status(StatusCode::UNPROCESSABLE_ENTITY));
    let response = app.chat(MODEL).send().await;
    assert_eq!(response.status(), 422);
    assert!(provider(&app, "second").calls().is_empty());
}

#[tokio::test]
async fn a_provider_at_its_concurrency_limit_is_passed_over() {
    let app = TestApp::builder()
        .providers(&["first", "second"])
        .adjust(|settings| {
            settings.declared.providers[0].max_concurrency = Some(1);
            settings
                .declared
                .models
                .iter_mut()
                .filter(|model| model.provider == "second")
                .for_each(|model| model.weight = 0);
        })
        .spawn()
        .await;
    let gate = Gate::new();
    provider(&app, "first").always(Reply::text("slow").held_by(&gate));
    let waiting = tokio::spawn(app.chat(MODEL).build().send());
    gate.reached(1).await;
    let other = app.chat(MODEL).send().await;
    assert_eq!(other.headers()["x-nexusgate-provider"], "second");
    gate.open();
    assert_eq!(waiting.await.expect("joined").expect("an answer").status(), 200);
}

/// Nobody is blamed for a request that no provider has seen.
#[tokio::test]
async fn a_request_that_reached_no_provider_names_none() {
    let app = TestApp::builder()
        .adjust(|settings| settings.declared.providers[0].max_concurrency = Some(1))
        .spawn()
        .await;
    let gate = Gate::new();
    app.provider().always(Reply::text("slow").held_by(&gate));
    let waiting = tokio::spawn(app.chat(MODEL).build().send());
    gate.reached(1).await;
    let refused = app.chat(MODEL).send().await;
    assert_eq!((refused.status().as_u16(), refused.headers()["retry-after"].as_bytes()), (503, &b"1"[..]));
    assert!(!refused.headers().contains_key("x-nexusgate-provider"));
    let told: Value = refused.json().await.expect("JSON");
    assert_eq!(told["error"]["code"], "all_providers_failed");
    let message = told["error"]["message"].as_str().expect("a message");
    assert!(message.contains("limit of concurrent requests"), "{message}");
    gate.open();
    assert_eq!(waiting.await.expect("joined").expect("an answer").status(), 200);
    app.settled().await;
    let mut rows: Vec<_> = app
        .log_rows()
        .await
        .into_iter()
        .map(|row| (row.status, row.provider, row.model_id.is_some()))
        .collect();
    rows.sort();
    let called = ("completed".to_owned(), Some("alpha".to_owned()), true);
    assert_eq!(rows, [called, ("failed".to_owned(), None, false)]);
}

/// Nor is a request called impossible that a provider could take at another time.
#[tokio::test]
async fn a_provider_without_room_may_take_what_another_never_can() {
    let app = TestApp::builder()
        .targets(vec![("first", ProviderKind::Anthropic, None), ("second", ProviderKind::OpenAi, None)])
        .adjust(|settings| settings.declared.providers[1].max_concurrency = Some(1))
        .spawn()
        .await;
    let gate = Gate::new();
    provider(&app, "second").always(Reply::text("slow").held_by(&gate));
    let file =
        serde_json::json!([{"role": "user", "content": [{"type": "file", "file": {"file_id": "file-1"}}]}]);
    let call = || app.chat(MODEL).with("messages", file.clone());
    let waiting = tokio::spawn(call().build().send());
    gate.reached(1).await;
    let refused = call().send().await;
    assert_eq!((refused.status().as_u16(), refused.headers()["retry-after"].as_bytes()), (503, &b"1"[..]));
    gate.open();
    assert_eq!(waiting.await.expect("joined").expect("an answer").status(), 200);
}

/// A provider that cannot be asked takes no place of those that can.
#[tokio::test]
async fn providers_that_cannot_be_asked_hide_none_that_can() {
    let app = TestApp::builder()
        .targets(vec![
            ("a", ProviderKind::Anthropic, None),
            ("b", ProviderKind::Anthropic, None),
            ("c", ProviderKind::Anthropic, None),
            ("d", ProviderKind::OpenAi, None),
        ])
        .adjust(|settings| {
            for model in settings.declared.models.iter_mut().filter(|model| model.provider == "d") {
                model.weight = 0;
            }
        })
        .spawn()
        .await;
    let file =
        serde_json::json!([{"role": "user", "content": [{"type": "file", "file": {"file_id": "file-1"}}]}]);
    let response = app.chat(MODEL).with("messages", file).send().await;
    assert_eq!(
        (response.status(), &response.headers()["x-nexusgate-provider"]),
        (StatusCode::OK, &"d".parse().expect("ASCII"))
    );
}

/// Three providers are called, however many there are.
#[tokio::test]
async fn three_of_many_providers_are_called() {
    let app = TestApp::builder().providers(&["a", "b", "c", "d", "e"]).spawn().await;
    for provider in &app.providers {
        provider.always(Reply::status(StatusCode::SERVICE_UNAVAILABLE));
    }
    assert_eq!(app.chat(MODEL).send().await.status(), 503);
    let scrape = app.settled().await;
    // The third gets a retry.
    assert_eq!(scrape.metric("nexusgate_upstream_attempts_total").value(), 4.0);
    assert_eq!(app.providers.iter().filter(|provider| !provider.calls().is_empty()).count(), 3);
}

#[tokio::test]
async fn weights_are_kept() {
    let app = TestApp::builder()
        .providers(&["first", "second"])
        .adjust(|settings| {
            settings
                .declared
                .models
                .iter_mut()
                .filter(|model| model.provider == "second")
                .for_each(|model| model.weight = 3);
        })
        .spawn()
        .await;
    for _ in 0..200 {
        assert_eq!(app.chat(MODEL).send().await.status(), 200);
    }
    let second = provider(&app, "second").calls().len();
    // Three in four, of 200: 150; five standard deviations are 31.
    assert!((119..=181).contains(&second), "{second} of 200 went to the heavier provider");
}
