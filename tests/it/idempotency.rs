//! One answer for each `X-NexusGate-ReqId`.

use nexusgate::demo::provider::{Answer, Gate, Reply, ToolCall};
use nexusgate::domain::label::ApiFormat;
use nexusgate::domain::usage::Usage;
use serde_json::{Value, json};

use crate::failover::{provider, two_providers};
use crate::support::TestApp;
use crate::support::app::{EMBEDDING_MODEL, MODEL};

#[tokio::test]
async fn a_hundred_at_once_make_one_call() {
    let app = TestApp::spawn().await;
    let gate = Gate::new();
    app.provider().always(Reply::text("once").held_by(&gate));
    let calls: Vec<_> = (0..100)
        .map(|_| tokio::spawn(app.chat(MODEL).header("x-nexusgate-reqid", "job-1").build().send()))
        .collect();
    gate.reached(1).await;
    app.eventually("the others were told to wait", |scrape| {
        scrape.metric("nexusgate_requests_rejected_total").label("reason", "in_flight_duplicate").is(99.0)
    })
    .await;
    gate.open();
    let mut answered = 0;
    for call in calls {
        let response = call.await.expect("joined").expect("an answer");
        match response.status().as_u16() {
            200 => answered += 1,
            409 => assert_eq!(response.headers()["retry-after"], "1"),
            other => panic!("{other}"),
        }
    }
    assert_eq!(answered, 1);
    assert_eq!(app.provider().calls().len(), 1, "exactly one upstream call");
}

#[tokio::test]
async fn the_second_is_answered_in_the_way_it_asks() {
    let app = TestApp::spawn().await;
    app.provider().always(Reply::text("kept for later"));
    let first = app.chat(MODEL).streamed().header("x-nexusgate-reqid", "a:b/c").send().await;
    assert!(first.headers().get("x-cache").is_none());
    assert!(first.text().await.expect("text").contains("[DONE]"));

    let whole = app.chat(MODEL).header("x-nexusgate-reqid", "a:b/c").send().await;
    assert_eq!(whole.headers()["x-cache"], "HIT");
    let whole: Value = whole.json().await.expect("JSON");
    assert_eq!(whole["choices"][0]["message"]["content"], "kept for later");

    let again = app.chat(MODEL).streamed().header("x-nexusgate-reqid", "a:b/c").send().await;
    assert!(again.headers()["content-type"].to_str().expect("text").starts_with("text/event-stream"));
    let again = again.text().await.expect("text");
    assert!(again.contains("chat.completion.chunk") && again.ends_with("data: [DONE]\n\n"), "{again}");

    // And in another format.
    let body =
        json!({ "model": MODEL, "max_tokens": 100, "messages": [{ "role": "user", "content": "hi" }] });
    let message = app
        .http
        .post(app.url("/v1/messages"))
        .bearer_auth(&app.key)
        .header("x-nexusgate-reqid", "a:b/c")
        .json(&body)
        .send()
        .await
        .expect("an answer");
    let message: Value = message.json().await.expect("JSON");
    assert_eq!(message["content"][0]["text"], "kept for later", "{message}");

    assert_eq!(app.provider().calls().len(), 1);
    let scrape = app.settled().await;
    assert!(scrape.metric("nexusgate_completions_total").label("status", "cache_hit").is(3.0));
    let rows = app.log_rows().await;
    let original = rows.iter().find(|row| row.status == "completed").expect("the first");
    for hit in rows.iter().filter(|row| row.status == "cache_hit") {
        assert_eq!(hit.source_completion, Some(original.id));
        assert_eq!(hit.prompt_cost + hit.completion_cost, 0.0);
    }
    let tokens = scrape.metric("nexusgate_tokens_completion_total").value();
    assert_eq!(tokens, original.completion_tokens.expect("tokens") as f64, "counted once");
}

/// Whole or streamed, from any format to any: the second is answered in its own form, also by a gateway restarted
/// since.
#[tokio::test]
async fn every_format_is_answered_in_its_own_way() {
    let ids = || {
        ApiFormat::ALL
            .iter()
            .flat_map(|format| [(*format, false), (*format, true)])
            .map(|(format, stream)| (format, stream, format!("{}-{stream}", format.as_str())))
    };
    let ask = |app: &TestApp, format: ApiFormat, stream: bool, id: &str| {
        let call = app.ask(format, MODEL).header("x-nexusgate-reqid", id);
        if stream { call.streamed().build() } else { call.build() }
    };
    let mut app = TestApp::spawn().await;
    let reply = || {
        Answer::text("unmistakable").calling(ToolCall {
            id: "call_1".into(),
            name: "look".into(),
            arguments: "{\"at\":\"it\"}".into(),
        })
    };
    app.provider().always(Reply::answer(reply()));
    for (format, stream, id) in ids() {
        let first = ask(&app, format, stream, &id).send().await.expect("an answer");
        assert!(first.headers().get("x-cache").is_none());
        first.bytes().await.expect("the whole of it");
    }
    for restarted in [false, true] {
        if restarted {
            app.restart().await;
        }
        for (_, _, id) in ids() {
            for (format, stream, _) in ids() {
                let case = format!("{id} as {} stream: {stream}, restarted: {restarted}", format.as_str());
                let response = ask(&app, format, stream, &id).send().await.expect("an answer");
                assert_eq!(
                    (response.status().as_u16(), response.headers()["x-cache"].as_bytes()),
                    (200, &b"HIT"[..]),
                    "{case}"
                );
                let expected = if stream { "text/event-stream" } else { "application/json" };
                assert!(
                    response.headers()["content-type"].to_str().expect("text").starts_with(expected),
                    "{case}"
                );
                let text = response.text().await.expect("text");
                assert!(text.contains("unmistakable") && text.contains("look"), "{case}: {text}");
                let end = match (format, stream) {
                    (ApiFormat::OpenAiChat, false) => "\"finish_reason\":\"tool_calls\"",
                    (ApiFormat::OpenAiChat, true) => "data: [DONE]\n\n",
                    (ApiFormat::OpenAiResponses, false) => "\"status\":\"completed\"",
                    (ApiFormat::OpenAiResponses, true) => "event: response.completed\n",
                    (ApiFormat::Anthropic, false) => "\"stop_reason\":\"tool_use\"",
                    (ApiFormat::Anthropic, true) => "event: message_stop\n",
                };
                assert!(text.contains(end), "{case}: {text}");
            }
        }
        let scrape = app.settled().await;
        assert!(scrape.metric("nexusgate_completions_total").label("status", "cache_hit").is(36.0));
        let tokens = scrape.metric("nexusgate_tokens_completion_total");
        assert_eq!(tokens.is(0.0), restarted, "a hit costs nothing");
    }
    assert_eq!(app.provider().calls().len(), 6);
}

/// A chat stream whose client had not requested the usage: a repeated request gets it all the same, also after a
/// restart.
#[tokio::test]
async fn a_repeated_stream_tells_the_usage() {
    let mut app = TestApp::spawn().await;
    let usage = Usage {
        prompt: Some(50),
        completion: Some(7),
        cached: Some(20),
        cache_write: None,
        reasoning: Some(4),
    };
    app.provider().always(Reply::answer(Answer::text("counted").usage(usage)));
    let first = app.chat(MODEL).streamed().header("x-nexusgate-reqid", "counted").send().await;
    assert!(!first.text().await.expect("text").contains("prompt_tokens"), "it was not asked for");
    for restarted in [false, true] {
        if restarted {
            app.restart().await;
        }
        let again = |format| app.ask(format, MODEL).header("x-nexusgate-reqid", "counted");
        let answer = async |format| again(format).send().await.json::<Value>().await.expect("JSON");
        let chat = answer(ApiFormat::OpenAiChat).await["usage"].take();
        assert_eq!((&chat["prompt_tokens"], &chat["completion_tokens"]), (&json!(50), &json!(7)), "{chat}");
        assert_eq!(chat["prompt_tokens_details"]["cached_tokens"], 20);
        assert_eq!(chat["completion_tokens_details"]["reasoning_tokens"], 4);
        let anthropic = answer(ApiFormat::Anthropic).await["usage"].take();
        assert_eq!(
            (&anthropic["input_tokens"], &anthropic["cache_read_input_tokens"], &anthropic["output_tokens"]),
            (&json!(30), &json!(20), &json!(7)),
            "{anthropic}"
        );
        let responses = answer(ApiFormat::OpenAiResponses).await["usage"].take();
        assert_eq!((&responses["input_tokens"], &responses["output_tokens"]), (&json!(50), &json!(7)));

        let stream = async |asked: bool| {
            let call = again(ApiFormat::OpenAiChat).streamed();
            let call = call.with("stream_options", json!({ "include_usage": asked }));
            call.send().await.text().await.expect("text")
        };
        assert!(stream(true).await.contains(r#""prompt_tokens":50"#));
        assert!(!stream(false).await.contains("prompt_tokens"));
    }
    assert_eq!(app.provider().calls().len(), 1);
}

/// A failed attempt that used tokens is paid for, and is no part of the answer.
#[tokio::test]
async fn a_replay_tells_the_usage_of_the_answer_alone() {
    let app = two_providers().await;
    let failed = json!({
        "choices": [],
        "error": { "message": "Overloaded", "type": "server_error" },
        "usage": { "prompt_tokens": 1000, "completion_tokens": 200, "total_tokens": 1200 },
    });
    provider(&app, "first").always(Reply::raw_json(failed.to_string()));
    let usage = Usage { prompt: Some(50), completion: Some(7), ..Usage::default() };
    provider(&app, "second").always(Reply::answer(Answer::text("counted").usage(usage)));
    let call = || app.chat(MODEL).header("x-nexusgate-reqid", "twice");
    // A stream whose client does not ask for the usage: the kept body has none.
    let first = call().streamed().send().await;
    assert_eq!(first.headers()["x-nexusgate-provider"], "second");
    assert!(!first.text().await.expect("text").contains("prompt_tokens"));
    let again = call().send().await;
    assert_eq!(again.headers()["x-cache"], "HIT");
    let told: Value = again.json().await.expect("JSON");
    assert_eq!(
        (&told["usage"]["prompt_tokens"], &told["usage"]["completion_tokens"]),
        (&json!(50), &json!(7))
    );
    assert!(app.settled().await.metric("nexusgate_tokens_prompt_total").is(1050.0));
}

/// Unknown is not 0: a usage that the format does not require is left out.
#[tokio::test]
async fn a_usage_that_nobody_knows_is_not_told() {
    let app = TestApp::spawn().await;
    app.provider().always(Reply::answer(Answer::text("uncounted").without_usage()));
    let call = || app.chat(MODEL).header("x-nexusgate-reqid", "uncounted");
    call().streamed().send().await.text().await.expect("text");
    let whole: Value = call().send().await.json().await.expect("JSON");
    assert!(whole["usage"].is_null(), "{whole}");
    let stream = call().streamed().with("stream_options", json!({ "include_usage": true })).send().await;
    assert!(!stream.text().await.expect("text").contains("prompt_tokens"));
}

/// A client that disconnected before its answer came may retry.
#[tokio::test]
async fn what_was_aborted_may_be_tried_again() {
    let app = TestApp::builder().setting("DRAIN_ON_DISCONNECT", "0s").spawn().await;
    let gate = Gate::new();
    app.provider().next(Reply::text("too late").held_by(&gate));
    let call = || app.chat(MODEL).header("x-nexusgate-reqid", "left");
    let waiting = tokio::spawn(call().build().send());
    gate.reached(1).await;
    waiting.abort();
    app.eventually("the first is aborted", |scrape| {
        scrape.metric("nexusgate_completions_total").label("status", "aborted").is(1.0)
    })
    .await;
    let second = call().send().await;
    assert_eq!(second.status(), 200);
    assert!(second.headers().get("x-cache").is_none());
    assert_eq!(call().send().await.headers()["x-cache"], "HIT");
    assert_eq!(app.provider().calls().len(), 2);
}

#[tokio::test]
async fn embeddings_too() {
    let app = TestApp::spawn().await;
    let call = || app.embeddings(EMBEDDING_MODEL).header("x-nexusgate-reqid", "e-1").send();
    let first = call().await.bytes().await.expect("bytes");
    let second = call().await;
    assert_eq!(second.headers()["x-cache"], "HIT");
    assert_eq!(second.bytes().await.expect("bytes"), first);
    assert_eq!(app.provider().calls().len(), 1);
}

#[tokio::test]
async fn what_failed_may_be_tried_again() {
    let app = TestApp::spawn().await;
    app.provider().next(Reply::status(http::StatusCode::BAD_REQUEST));
    let call = || app.chat(MODEL).header("x-nexusgate-reqid", "retry-me").send();
    assert_eq!(call().await.status(), 400);
    let second = call().await;
    assert_eq!(second.status(), 200);
    assert!(second.headers().get("x-cache").is_none());
}

#[tokio::test]
async fn keys_do_not_share_ids_and_odd_ids_are_refused() {
    let app = TestApp::builder().key("sk-another-0123456789", "another", None, None).spawn().await;
    for key in [app.key.clone(), "sk-another-0123456789".to_owned()] {
        let response = app.chat(MODEL).key(&key).header("x-nexusgate-reqid", "same").send().await;
        assert!(response.headers().get("x-cache").is_none());
    }
    for odd in ["with space", "ä", &"x".repeat(128)] {
        assert_eq!(app.chat(MODEL).header("x-nexusgate-reqid", odd).send().await.status(), 400, "{odd}");
    }
}
