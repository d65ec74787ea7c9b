//! The cost of failed attempts: providers charge for them all the same.

use http::StatusCode;
use nexusgate::demo::provider::{Answer, Gate, Reply};
use nexusgate::domain::label::ApiFormat;
use nexusgate::domain::provider::ProviderKind;
use serde_json::json;

use crate::failover::provider;
use crate::support::TestApp;
use crate::support::app::MODEL;

/// A useless answer that cost 5,003 tokens; another provider may do better.
const FAILED: &str = r#"{"id":"r","object":"response","status":"failed","output":[],"error":{"code":"server_error","message":"No"},"usage":{"input_tokens":5000,"output_tokens":3,"total_tokens":5003}}"#;

async fn behind(kind: ProviderKind) -> TestApp {
    TestApp::builder().targets(vec![("alpha", kind, None)]).spawn().await
}

/// Two providers; the second charges half the price.
async fn two_prices(drain: &str) -> TestApp {
    TestApp::builder()
        .targets(vec![("first", ProviderKind::OpenAiResponses, None), ("second", ProviderKind::OpenAi, None)])
        .setting("DRAIN_ON_DISCONNECT", drain)
        .key("sk-limited-0123456789", "limited", None, Some(1000))
        .adjust(|settings| {
            for model in settings.declared.models.iter_mut().filter(|model| model.provider == "second") {
                (model.input_price, model.output_price) = (Some(1.0), Some(4.0));
            }
        })
        .spawn()
        .await
}

/// Whether both are the same amount of USD, to a hundredth of a token.
fn same(a: f64, b: f64) -> bool {
    (a - b).abs() < 1e-8
}

/// The charge for an answer that cannot be given to the client is counted all the same.
#[tokio::test]
async fn the_usage_of_a_last_answer_that_is_of_no_use_counts() {
    let failed = r#"{"id":"r","object":"response","status":"failed","output":[],"error":{"code":"server_error","message":"No"},"usage":{"input_tokens":5000,"output_tokens":3,"total_tokens":5003}}"#;
    let wrong = failed.replace("server_error", "invalid_prompt");
    let at_once = format!("data: {{\"type\":\"response.failed\",\"response\":{failed}}}\n\n");
    let garbage = "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":5000,\"completion_tokens\":3}}\n\ndata: {\"cho\n\n";
    // An answer that may be better the next time is requested twice.
    for (kind, reply, stream, status, attempts) in [
        (ProviderKind::OpenAiResponses, Reply::raw_json(failed), false, 500, 2),
        (ProviderKind::OpenAiResponses, Reply::raw_json(wrong), false, 400, 1),
        (
            ProviderKind::OpenAi,
            Reply::raw_json(r#"{"choices":[],"usage":{"prompt_tokens":5000,"completion_tokens":3}}"#),
            false,
            502,
            1,
        ),
        (ProviderKind::OpenAiResponses, Reply::raw_stream([at_once]), true, 500, 2),
        (ProviderKind::OpenAi, Reply::raw_stream([garbage]), true, 502, 1),
    ] {
        let app = behind(kind).await;
        app.provider().always(reply);
        let call = app.ask(ApiFormat::Anthropic, MODEL);
        assert_eq!(if stream { call.streamed() } else { call }.send().await.status(), status);
        let scrape = app.settled().await;
        assert_eq!(app.provider().calls().len(), attempts, "{kind:?}");
        let tokens = 5000 * i64::try_from(attempts).expect("a few");
        let counted = scrape.metric("nexusgate_tokens_prompt_total").is(tokens as f64);
        assert!(counted, "{kind:?}:\n{}", scrape.text);
        let rows = app.log_rows().await;
        assert_eq!((rows[0].status.as_str(), rows[0].prompt_tokens), ("failed", Some(tokens)));
    }
}

/// The last provider is called twice, and the second answer's usage adds to the first's.
#[tokio::test]
async fn the_usage_of_an_answer_before_the_last_try_counts() {
    for (again, tokens) in [
        (Reply::status(StatusCode::SERVICE_UNAVAILABLE), 5000.0),
        (Reply::raw_json("{}"), 5000.0),
        (Reply::raw_json(FAILED), 10000.0),
    ] {
        let app = behind(ProviderKind::OpenAiResponses).await;
        app.provider().next(Reply::raw_json(FAILED));
        app.provider().always(again);
        assert!(app.ask(ApiFormat::Anthropic, MODEL).send().await.status().is_server_error());
        let scrape = app.settled().await;
        assert_eq!(app.provider().calls().len(), 2);
        assert!(scrape.metric("nexusgate_tokens_prompt_total").is(tokens), "{}", scrape.text);
        assert!(scrape.metric("nexusgate_usage_missing_total").is(0.0));
    }
}

/// The usage is in the counters, the row and the key's limit, at the price of the provider that failed; a completion's
/// size and speed are the answer's.
#[tokio::test]
async fn an_attempt_before_the_answer_of_another_provider_counts() {
    let app = two_prices("0s").await;
    let answer = r#"{"id":"c","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,"message":{"role":"assistant","content":"Yes"},"finish_reason":"stop"}],"usage":{"prompt_tokens":4000,"completion_tokens":5,"total_tokens":4005}}"#;
    let at_once = format!("data: {{\"type\":\"response.failed\",\"response\":{FAILED}}}\n\n");
    let chunk = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"Yes\"},\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":4000,\"completion_tokens\":5}}\n\ndata: [DONE]\n\n";
    for (times, stream) in [(1.0, false), (2.0, true)] {
        let (failed, good) = if stream {
            (Reply::raw_stream([at_once.clone()]), Reply::raw_stream([chunk]))
        } else {
            (Reply::raw_json(FAILED), Reply::raw_json(answer))
        };
        provider(&app, "first").always(failed);
        provider(&app, "second").always(good);
        let call = app.ask(ApiFormat::Anthropic, MODEL);
        let response = if stream { call.streamed() } else { call }.send().await;
        assert_eq!(response.headers()["x-nexusgate-provider"], "second");
        assert!(response.text().await.expect("an answer").contains("Yes"));

        let scrape = app.settled().await;
        let is = |name, value: f64| same(scrape.metric(name).value(), times * value);
        assert!(is("nexusgate_tokens_prompt_total", 9000.0), "{}", scrape.text);
        assert!(is("nexusgate_tokens_completion_total", 8.0));
        assert!(is("nexusgate_cost_prompt_usd_total", (5000.0 * 2.0 + 4000.0 * 1.0) / 1e6));
        assert!(is("nexusgate_cost_completion_usd_total", (3.0 * 8.0 + 5.0 * 4.0) / 1e6));
        assert!(is("nexusgate_tokens_wasted_total", 5003.0));
        assert!(is("nexusgate_cost_wasted_usd_total", (5000.0 * 2.0 + 3.0 * 8.0) / 1e6));
        assert!(is("nexusgate_completion_prompt_tokens_sum", 4000.0));
        assert!(is("nexusgate_completion_output_tokens_sum", 5.0));
        assert!(is("nexusgate_usage_missing_total", 0.0));
    }
    for row in app.log_rows().await {
        assert_eq!((row.status.as_str(), row.provider.as_deref()), ("completed", Some("second")));
        assert_eq!((row.prompt_tokens, row.completion_tokens), (Some(9000), Some(8)));
        assert!(same(row.prompt_cost, 0.014) && same(row.completion_cost, 0.000_044), "{row:?}");
    }
}

/// A key's tokens per minute are charged with all tokens that the key made the gateway spend.
#[tokio::test]
async fn a_key_pays_for_the_attempts_that_its_requests_took() {
    let app = two_prices("0s").await;
    provider(&app, "first").always(Reply::raw_json(FAILED));
    let ask = || app.ask(ApiFormat::Anthropic, MODEL).key("sk-limited-0123456789").send();
    assert_eq!(ask().await.status(), 200);
    app.settled().await;
    assert_eq!(ask().await.status(), 429, "three minutes' worth are gone");
}

/// Tokens that no provider reported are charged by a guess; metrics and the log do not guess.
#[tokio::test]
async fn a_key_pays_for_what_nobody_counted() {
    let words = "word ".repeat(3000);
    let uncounted = || Reply::answer(Answer::text("one two three").without_usage());
    // The client leaves a stream that has begun; its provider breaks it off; the provider never counts.
    for (reply, stream, status) in [
        (Reply::text("one two three").stalled_after(2, &Gate::new()), true, "aborted"),
        (Reply::text("one two three").cut_after(2), true, "failed"),
        (uncounted(), true, "completed"),
        (uncounted(), false, "completed"),
    ] {
        let case = format!("{status}, stream: {stream}");
        let app = TestApp::builder()
            .setting("DRAIN_ON_DISCONNECT", "0s")
            .key("sk-limited-0123456789", "limited", None, Some(1000))
            .spawn()
            .await;
        app.provider().always(reply);
        let ask = || {
            let messages = json!([{ "role": "user", "content": words }]);
            let call = app.chat(MODEL).with("messages", messages).key("sk-limited-0123456789");
            if stream { call.streamed() } else { call }.send()
        };
        let mut answer = ask().await;
        assert_eq!(answer.status(), 200, "{case}");
        let mut heard = Vec::new();
        while let Ok(Some(chunk)) = answer.chunk().await {
            heard.extend_from_slice(&chunk);
            if status == "aborted" && heard.windows(3).any(|window| window == b"one") {
                break;
            }
        }
        drop(answer);
        let scrape = app.settled().await;
        assert!(scrape.metric("nexusgate_completions_total").label("status", status).is(1.0), "{case}");
        assert!(scrape.metric("nexusgate_usage_missing_total").is(1.0), "{case}");
        assert!(scrape.metric("nexusgate_tokens_prompt_total").is(0.0), "{case}");
        assert_eq!(app.log_rows().await[0].prompt_tokens, None, "{case}");
        assert_eq!(ask().await.status(), 429, "{case}: three minutes' worth are gone");
    }
}

/// The client disconnects while the second provider works, before its first output.
#[tokio::test]
async fn an_attempt_before_the_client_left_counts() {
    for drain in ["0s", "100ms"] {
        let app = two_prices(drain).await;
        provider(&app, "first").always(Reply::raw_json(FAILED));
        provider(&app, "second").always(Reply::text("late").held_by(&Gate::new()));
        let request = app.ask(ApiFormat::Anthropic, MODEL).build().send();
        tokio::select! {
            answer = request => panic!("nobody has answered: {answer:?}"),
            () = provider(&app, "second").until_called(1) => {}
        }
        let scrape = app.settled().await;
        assert!(scrape.metric("nexusgate_completions_total").label("status", "aborted").is(1.0), "{drain}");
        assert!(scrape.metric("nexusgate_tokens_prompt_total").is(5000.0), "{}", scrape.text);
        assert!(scrape.metric("nexusgate_tokens_wasted_total").label("reason", "failed").is(5003.0));
        assert!(scrape.metric("nexusgate_tokens_wasted_total").label("reason", "aborted").is(0.0));
        let rows = app.log_rows().await;
        assert_eq!((rows[0].prompt_tokens, rows[0].provider.as_deref()), (Some(5000), Some("second")));
        assert!(same(rows[0].prompt_cost, 0.01), "{rows:?}");
    }
}
