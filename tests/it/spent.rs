//! What is paid for beside answers: failed attempts, which providers charge for all the same, and tokens that nobody
//! counted.

use http::StatusCode;
use nexusgate::demo::provider::{Answer, Gate, Reply};
use nexusgate::domain::label::ApiFormat;
use nexusgate::domain::provider::ProviderKind;
use nexusgate::domain::usage::Usage;
use serde_json::json;

use crate::admin::Administrator;
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

/// A request, how it goes, and the tokens that its key's limit is charged with.
struct Charge {
    case: &'static str,
    kind: ProviderKind,
    reply: Reply,
    stream: bool,
    /// Words of the prompt, of five bytes each.
    prompt: usize,
    /// The client leaves when it has all that will come of a stream, or when the provider has been called.
    leaves: bool,
    tokens: u64,
}

/// Reported tokens are charged as they are, others by a guess; metrics and the log do not guess.
#[tokio::test]
async fn a_key_pays_for_what_nobody_counted() {
    use ProviderKind::{Anthropic, OpenAi, OpenAiResponses};
    let long = "word ".repeat(1000);
    let usage = Usage { prompt: Some(50), completion: Some(7), ..Usage::default() };
    let counted = || Reply::answer(Answer::text(&long).usage(usage));
    let uncounted = || Reply::answer(Answer::text(&long).without_usage());
    let never = Gate::new();
    let first = Charge {
        case: "reported",
        kind: OpenAi,
        reply: counted(),
        stream: false,
        prompt: 1000,
        leaves: false,
        tokens: 57,
    };
    let charges = [
        Charge { case: "reported at the end of a stream", reply: counted(), stream: true, ..first },
        Charge { case: "reported twice", kind: Anthropic, reply: counted(), stream: true, ..first },
        Charge { case: "reported in another format", kind: OpenAiResponses, reply: counted(), ..first },
        Charge { case: "the answer is not counted", reply: uncounted(), prompt: 1, tokens: 1250, ..first },
        Charge {
            case: "nor this stream",
            reply: uncounted(),
            stream: true,
            prompt: 1,
            tokens: 1000,
            ..first
        },
        Charge { case: "the prompt is not counted", reply: uncounted(), tokens: 1250 + 1250, ..first },
        Charge {
            case: "the stream breaks off",
            reply: counted().cut_after(400),
            stream: true,
            prompt: 1,
            tokens: 399,
            ..first
        },
        Charge {
            case: "the stream breaks off, and its prompt was reported",
            kind: Anthropic,
            reply: counted().cut_after(400),
            stream: true,
            tokens: 50 + 396,
            ..first
        },
        Charge {
            case: "the client leaves a stream",
            reply: counted().stalled_after(400, &never),
            stream: true,
            leaves: true,
            tokens: 1250 + 399,
            ..first
        },
        Charge {
            case: "the client leaves before anything came",
            reply: counted().held_by(&never),
            leaves: true,
            tokens: 1250,
            ..first
        },
    ];
    for charge in std::iter::once(first).chain(charges) {
        let Charge { case, kind, reply, stream, prompt, leaves, tokens } = charge;
        // One token a second comes back, which is next to nothing.
        let app = TestApp::builder()
            .targets(vec![("alpha", kind, None)])
            .setting("DRAIN_ON_DISCONNECT", "0s")
            .key("sk-limited-0123456789", "limited", None, Some(60))
            .spawn()
            .await;
        app.provider().always(reply);
        let format = if kind == Anthropic { ApiFormat::Anthropic } else { ApiFormat::OpenAiChat };
        let messages = json!([{ "role": "user", "content": "word ".repeat(prompt) }]);
        let call = app.ask(format, MODEL).with("messages", messages).key("sk-limited-0123456789");
        let request = if stream { call.streamed() } else { call }.build().send();
        if leaves && !stream {
            tokio::select! {
                answer = request => panic!("nobody has answered: {answer:?}"),
                () = app.provider().until_called(1) => {}
            }
        } else {
            let mut answer = request.await.expect("an answer");
            assert_eq!(answer.status(), 200, "{case}");
            let mut heard = Vec::new();
            while let Ok(Some(chunk)) = answer.chunk().await {
                heard.extend_from_slice(&chunk);
                // All that will come.
                if leaves && heard.windows(4).filter(|window| window == b"word").count() >= 399 {
                    break;
                }
            }
        }
        let scrape = app.settled().await;
        let usage = Administrator(&app).get("/apiKey/sk-limited-0123456789/usage").await.ok();
        let charged = usage["usage"]["tpm"]["current"].as_u64().expect("a number");
        // Field names and envelopes of a guess are a few tokens; of what is reported nothing is guessed.
        let guess = if tokens == 57 { 0 } else { 90 };
        assert!((tokens - 5..=tokens + guess).contains(&charged), "{case}: {charged} for {tokens}");
        let reported = scrape.metric("nexusgate_tokens_prompt_total").value();
        let row = &app.log_rows().await[0];
        assert!(reported == 0.0 || reported == 50.0, "{case}: {reported}");
        assert!(row.prompt_tokens.is_none_or(|tokens| tokens == 50), "{case}");
        assert!(row.completion_tokens.is_none_or(|tokens| tokens == 7 || kind == Anthropic), "{case}");
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
