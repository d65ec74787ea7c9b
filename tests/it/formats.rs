//! Every client format through every provider format: the counts, and their labels.

use std::time::Duration;

use http::StatusCode;
use nexusgate::demo::provider::{Answer, Reply, ToolCall};
use nexusgate::domain::label::{ApiFormat, FinishReason};
use nexusgate::domain::provider::ProviderKind;
use nexusgate::domain::usage::Usage;
use serde_json::{Value, json};

use crate::failover::provider;
use crate::support::TestApp;
use crate::support::app::MODEL;

/// A model that has no price.
const UNPRICED: &str = "gratis";

/// The client's format is the label, the provider's usage is the count, the answering provider's price is the cost.
#[tokio::test]
async fn what_is_counted_does_not_depend_on_the_formats() {
    for kind in [ProviderKind::OpenAi, ProviderKind::OpenAiResponses, ProviderKind::Anthropic] {
        let app = TestApp::builder()
            .targets(vec![("alpha", kind, None)])
            .adjust(|settings| {
                let mut model = settings.declared.models[0].clone();
                model.name = UNPRICED.to_owned();
                (model.input_price, model.output_price) = (None, None);
                settings.declared.models.push(model);
            })
            .spawn()
            .await;
        let usage = Usage {
            prompt: Some(100),
            completion: Some(40),
            cached: Some(60),
            cache_write: Some(30).filter(|_| kind == ProviderKind::Anthropic),
            reasoning: Some(25).filter(|_| kind != ProviderKind::Anthropic),
        };
        let call = ToolCall { id: "call_1".into(), name: "look".into(), arguments: "{\"at\":\"it\"}".into() };
        app.provider()
            .always(Reply::answer(Answer::text("Let me look.").thinking("So. ").calling(call).usage(usage)));
        for format in ApiFormat::ALL.iter().copied() {
            for stream in [false, true] {
                let call = app.ask(format, MODEL);
                let response = if stream { call.streamed() } else { call }.send().await;
                assert_eq!(response.status(), 200, "{kind:?} {format:?}");
                response.bytes().await.expect("the whole of it");
            }
        }
        app.provider().always(Reply::answer(Answer::text("Cut").finish(FinishReason::Length)));
        app.ask(ApiFormat::Anthropic, UNPRICED).send().await.bytes().await.expect("an answer");

        let scrape = app.settled().await;
        let of = |name| scrape.metric(name).label("model", MODEL).value();
        for (name, expected) in [
            ("nexusgate_tokens_prompt_total", 600.0),
            ("nexusgate_tokens_completion_total", 240.0),
            ("nexusgate_tokens_cached_total", 360.0),
            ("nexusgate_tokens_cache_write_total", if usage.cache_write.is_some() { 180.0 } else { 0.0 }),
            ("nexusgate_tokens_reasoning_total", if usage.reasoning.is_some() { 150.0 } else { 0.0 }),
            ("nexusgate_completion_duration_seconds_count", 6.0),
            ("nexusgate_completion_ttft_seconds_count", 3.0),
            ("nexusgate_completion_tpot_seconds_count", 3.0),
            ("nexusgate_stream_stall_seconds_count", 3.0),
            ("nexusgate_completion_output_tokens_sum", 240.0),
            ("nexusgate_usage_missing_total", 0.0),
            ("nexusgate_unpriced_requests_total", 0.0),
        ] {
            assert!((of(name) - expected).abs() < 1e-9, "{kind:?}: {name} is {}", of(name));
        }
        let cost = scrape.metric("nexusgate_cost_total_usd_total").label("provider", "alpha").value();
        assert!((cost - (600.0 * 2.0 + 240.0 * 8.0) / 1e6).abs() < 1e-12, "{kind:?}: {cost}");
        for format in ApiFormat::ALL {
            let of_format = |name| scrape.metric(name).label("api_format", format.as_str());
            let unpriced = f64::from(u8::from(*format == ApiFormat::Anthropic));
            let completed = of_format("nexusgate_completions_total").label("status", "completed");
            assert!(completed.is(2.0 + unpriced), "{kind:?}: {format:?} is the client's");
            assert!(of_format("nexusgate_gateway_overhead_seconds_count").is(2.0 + unpriced), "{kind:?}");
        }
        let finished = |model: &str, reason: &str| {
            let all = scrape.metric("nexusgate_completion_finish_reasons_total");
            all.label("model", model).label("finish_reason", reason).value()
        };
        assert_eq!((finished(MODEL, "tool_calls"), finished(UNPRICED, "length")), (6.0, 1.0), "{kind:?}");
        assert!(scrape.metric("nexusgate_unpriced_requests_total").label("model", UNPRICED).is(1.0));
        let upstream = scrape.metric("nexusgate_upstream_duration_seconds_count").label("provider", "alpha");
        assert!(upstream.is(7.0), "{kind:?}");
        for row in app.log_rows().await.iter().filter(|row| row.model == MODEL) {
            assert_eq!(
                (row.prompt_tokens, row.completion_tokens, row.cached_tokens),
                (Some(100), Some(40), Some(60))
            );
            assert_eq!(row.finish_reason.as_deref(), Some("tool_calls"));
            assert_eq!(row.ttft_ms.is_some(), row.stream, "{kind:?}");
        }
    }
}

/// Fields that cannot be expressed at all are refused in the caller's format, by name.
#[tokio::test]
async fn unsupported_requests_are_refused_in_the_callers_format() {
    for (kind, format, field, value) in [
        (ProviderKind::Anthropic, ApiFormat::OpenAiChat, "n", serde_json::json!(2)),
        (ProviderKind::OpenAi, ApiFormat::OpenAiResponses, "previous_response_id", "resp_1".into()),
        (
            ProviderKind::OpenAi,
            ApiFormat::Anthropic,
            "messages",
            serde_json::json!([{ "role": "user", "content": [{ "type": "novel" }] }]),
        ),
    ] {
        let app = TestApp::builder().targets(vec![("alpha", kind, None)]).spawn().await;
        let response = app.ask(format, MODEL).with(field, value).send().await;
        assert_eq!(response.status(), 400);
        let told: serde_json::Value = response.json().await.expect("JSON");
        assert_eq!(told["error"]["type"], "invalid_request_error");
        assert_eq!(told["type"] == "error", format == ApiFormat::Anthropic);
        assert!(told["error"]["message"].as_str().is_some_and(|message| message.contains(field)), "{told}");
        assert!(app.provider().calls().is_empty());
        let scrape = app.settled().await;
        assert!(scrape.metric("nexusgate_completions_total").label("status", "failed").is(1.0));
        assert!(scrape.metric("nexusgate_upstream_attempts_total").is(0.0), "nobody was called");
        assert_eq!(app.log_rows().await[0].error.as_deref(), Some("unsupported_request"));
    }
}

/// That stays so while the provider's breaker is open: no time makes the request possible.
#[tokio::test]
async fn an_open_breaker_does_not_make_a_request_possible() {
    let app = TestApp::builder().targets(vec![("alpha", ProviderKind::Anthropic, None)]).spawn().await;
    app.provider().always(Reply::status(StatusCode::INTERNAL_SERVER_ERROR));
    for _ in 0..5 {
        app.chat(MODEL).send().await;
    }
    app.eventually("the breaker is open", |scrape| scrape.metric("nexusgate_provider_up").is(0.0)).await;
    let refused = app.chat(MODEL).with("n", serde_json::json!(2)).send().await;
    assert_eq!(refused.status(), 400);
    let told: serde_json::Value = refused.json().await.expect("JSON");
    assert_eq!(told["error"]["param"], "n", "{told}");
}

/// An answer that a client of another format receives as an error counts as no answer, and is not kept for replay. The
/// first stream has a number outside every range, the second the end of a choice that had not begun.
#[tokio::test]
async fn what_cannot_be_converted_has_failed() {
    let vast = concat!(
        "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"whole\"}}]}\n\n",
        "data: {\"created\":1e999,\"choices\":[{\"index\":0,\"delta\":{\"content\":\"half\"},\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":3}}\n\n",
        "data: [DONE]\n\n",
    );
    let second = "data: {\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\"}}]}\n\ndata: {\"choices\":[{\"index\":1,\"delta\":{\"content\":\"other\"},\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":3}}\n\n";
    for stream in [vast, second] {
        let app = TestApp::spawn().await;
        app.provider().always(Reply::raw_stream([stream]));
        let same = app.chat(MODEL).streamed().with("stream_options", json!({ "include_usage": true }));
        assert_eq!(same.send().await.text().await.expect("a stream"), stream);
        for format in [ApiFormat::OpenAiResponses, ApiFormat::Anthropic] {
            for _ in 0..2 {
                let call = app.ask(format, MODEL).streamed().header("x-nexusgate-reqid", format.as_str());
                let response = call.send().await;
                assert!(response.headers().get("x-cache").is_none(), "an error is not answered again");
                let text = response.text().await.expect("a stream");
                assert!(text.contains("event: error\n") || text.contains("response.failed"), "{text}");
            }
        }
        let scrape = app.settled().await;
        let counted = |status| scrape.metric("nexusgate_completions_total").label("status", status).value();
        assert_eq!((counted("completed"), counted("failed")), (1.0, 4.0), "{stream}");
        let attempts = scrape.metric("nexusgate_upstream_attempts_total");
        assert!(attempts.label("outcome", "protocol").is(4.0), "{}", scrape.text);
        assert!(scrape.metric("nexusgate_tokens_prompt_total").is(25.0), "it is paid for all the same");
        let failed = app.log_rows().await.into_iter().filter(|row| row.status == "failed");
        assert!(failed.into_iter().all(|row| row.error.as_deref() == Some("conversion_failed")));
    }
}

/// The details tell Anthropic's SDKs that they must send the whole conversation.
#[tokio::test]
async fn threads_are_refused_in_anthropics_words() {
    let app = TestApp::spawn().await;
    let call = app.ask(ApiFormat::Anthropic, MODEL).with("thread", json!({ "type": "create" }));
    let response = call.send().await;
    assert_eq!(response.status(), 400);
    let told: serde_json::Value = response.json().await.expect("JSON");
    let details = json!({ "error_code": "thread_unsupported_request", "unsupported": ["provider"] });
    assert_eq!(
        (&told["error"]["type"], &told["error"]["details"]),
        (&json!("invalid_request_error"), &details)
    );
    let app = TestApp::builder().targets(vec![("alpha", ProviderKind::Anthropic, None)]).spawn().await;
    let call = app.ask(ApiFormat::Anthropic, MODEL).with("thread", json!({ "type": "create" }));
    assert_eq!(call.send().await.status(), 200, "Anthropic itself may be asked");
    assert_eq!(app.provider().last_call().expect("a call").json()["thread"]["type"], "create");
}

/// The next provider may speak another format than the first one and the client.
#[tokio::test]
async fn a_failover_crosses_formats() {
    use ProviderKind::{Anthropic, OpenAi, OpenAiResponses};
    for (first, second) in [(OpenAi, Anthropic), (Anthropic, OpenAiResponses), (OpenAiResponses, OpenAi)] {
        let app =
            TestApp::builder().targets(vec![("first", first, None), ("second", second, None)]).spawn().await;
        provider(&app, "first").always(Reply::status(StatusCode::SERVICE_UNAVAILABLE));
        provider(&app, "second").always(Reply::text("from the second"));
        for format in ApiFormat::ALL.iter().copied() {
            for stream in [false, true] {
                let case = format!("{} from {first:?} to {second:?}, stream: {stream}", format.as_str());
                let call = app.ask(format, MODEL).with("vendor_field", 7.into());
                let response = if stream { call.streamed() } else { call }.send().await;
                assert_eq!(response.status(), 200, "{case}");
                assert_eq!(response.headers()["x-nexusgate-provider"], "second", "{case}");
                let dropped = response.headers().get("x-nexusgate-dropped").cloned();
                let same = second.chat_format() == format;
                assert_eq!(dropped.is_some(), !same, "{case}: {dropped:?}");
                let text = response.text().await.expect("text");
                assert!(text.contains("second") && !text.contains("overloaded"), "{case}: {text}");
            }
        }
        let scrape = app.settled().await;
        assert!(scrape.metric("nexusgate_completions_total").label("status", "completed").is(6.0));
        // The breaker opens after the fifth.
        assert!(scrape.metric("nexusgate_failovers_total").label("outcome", "http_5xx").is(5.0));
    }
}

/// When all fail, the client gets the last answer in its own format.
#[tokio::test]
async fn an_error_has_the_shape_of_the_clients_format() {
    for (kind, format) in [
        (ProviderKind::OpenAi, ApiFormat::Anthropic),
        (ProviderKind::Anthropic, ApiFormat::OpenAiChat),
        (ProviderKind::Anthropic, ApiFormat::OpenAiResponses),
    ] {
        let app = TestApp::builder().targets(vec![("first", kind, None)]).spawn().await;
        provider(&app, "first").always(Reply::rate_limited(Duration::from_secs(30)));
        for stream in [false, true] {
            let call = app.ask(format, MODEL);
            let response = if stream { call.streamed() } else { call }.send().await;
            assert_eq!(response.status(), 429);
            assert_eq!(response.headers()["retry-after"], "30");
            let told: Value = response.json().await.expect("JSON");
            assert_eq!(told["error"]["type"], "rate_limit_error");
            assert_eq!(told["type"] == "error", format == ApiFormat::Anthropic);
        }
    }
}
