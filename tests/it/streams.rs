//! A stream arrives unchanged from the provider.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use nexusgate::demo::provider::Reply;
use proptest::prelude::*;
use serde_json::json;

use crate::support::TestApp;
use crate::support::app::MODEL;

async fn body_of(app: &TestApp, include_usage: bool) -> Bytes {
    let mut call = app.chat(MODEL).streamed();
    if include_usage {
        call = call.with("stream_options", json!({ "include_usage": true }));
    }
    let response = call.send().await;
    assert!(response.headers()["content-type"].to_str().expect("text").starts_with("text/event-stream"));
    response.bytes().await.expect("the whole stream")
}

/// Cuts `text` at the positions `cuts`, even within characters.
fn chunks(text: &[u8], cuts: &[prop::sample::Index]) -> Vec<Bytes> {
    let mut places: Vec<usize> = cuts.iter().map(|cut| cut.index(text.len())).collect();
    places.extend([0, text.len()]);
    places.sort_unstable();
    places.dedup();
    places.windows(2).map(|pair| Bytes::copy_from_slice(&text[pair[0]..pair[1]])).collect()
}

/// Events with text in many scripts, any line ends, comments, and sometimes the usage.
fn event_stream() -> impl Strategy<Value = (String, bool)> {
    let piece = prop_oneof![Just("plain ".to_owned()), "[a-zé→🦀\u{0}-\u{1f}\"\\\\]{1,12}", "\\PC{1,20}"];
    let line_end = prop_oneof![Just("\n"), Just("\r\n")];
    (prop::collection::vec(piece, 1..12), line_end, any::<bool>(), any::<bool>()).prop_map(
        |(pieces, end, comments, usage)| {
            let mut text = String::new();
            for piece in &pieces {
                if comments {
                    text += &format!(": keep-alive{end}{end}");
                }
                let chunk = json!({ "id": "c", "object": "chat.completion.chunk", "choices": [
                    { "index": 0, "delta": { "content": piece }, "finish_reason": null }
                ], "vendor": { "kept": [1, 2.50, null] } });
                text += &format!("data: {chunk}{end}{end}");
            }
            text += &format!(
                "data: {}{end}{end}",
                json!({ "choices": [{ "index": 0, "delta": {}, "finish_reason": "stop" }] })
            );
            if usage {
                let chunk =
                    json!({ "choices": [], "usage": { "prompt_tokens": 11, "completion_tokens": 7 } });
                text += &format!("data: {chunk}{end}{end}");
            }
            text += &format!("data: [DONE]{end}{end}");
            (text, usage)
        },
    )
}

#[test]
fn streams_are_forwarded_byte_for_byte() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let app = runtime.block_on(TestApp::spawn());
    let cases = (event_stream(), prop::collection::vec(any::<prop::sample::Index>(), 0..20));
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 96,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    runner
        .run(&cases, |((text, usage), cuts)| {
            runtime.block_on(async {
                app.provider().always(Reply::raw_stream(chunks(text.as_bytes(), &cuts)));
                // The client requested the usage: nothing may be missing.
                prop_assert_eq!(&body_of(&app, true).await[..], text.as_bytes());
                // It did not: only the usage chunk, which the gateway requested, is missing.
                let seen = body_of(&app, false).await;
                let expected: String = text
                    .split_inclusive("\n\n")
                    .flat_map(|part| part.split_inclusive("\r\n\r\n"))
                    .filter(|event| !event.contains("\"usage\""))
                    .collect();
                prop_assert_eq!(&seen[..], expected.as_bytes());
                let _ = usage;
                Ok(())
            })
        })
        .expect("byte for byte");
    runtime.block_on(async {
        let scrape = app.settled().await;
        let completed = scrape.metric("nexusgate_completions_total").label("status", "completed").value();
        assert_eq!(
            completed,
            scrape.metric("nexusgate_completions_total").value(),
            "every stream was completed"
        );
    });
}

pub fn recorded() -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let here = std::env::var_os("NEXUSGATE_FIXTURES").map(PathBuf::from);
    here.into_iter()
        .chain([root.join("../shared/fixtures/recorded"), root.join("../../shared/fixtures/recorded")])
        .find(|folder| folder.is_dir())
}

/// Recorded streams of real providers, in their original pieces and in small ones.
#[tokio::test]
async fn recorded_chat_streams_arrive_unchanged() {
    let Some(folder) = recorded() else {
        eprintln!("skipped: ../shared/fixtures/recorded is not there");
        return;
    };
    let app = TestApp::spawn().await;
    let mut files = 0;
    for entry in std::fs::read_dir(folder.join("openai-chat")).expect("a folder") {
        let path = entry.expect("an entry").path();
        if !path.display().to_string().ends_with(".chunks.txt") {
            continue;
        }
        files += 1;
        let lines = std::fs::read_to_string(&path).expect("readable");
        let text: String = lines
            .lines()
            .filter(|line| !line.is_empty())
            .map(|line| format!("data: {line}\n\n"))
            .chain(["data: [DONE]\n\n".to_owned()])
            .collect();
        for size in [text.len(), 1000, 7] {
            let pieces: Vec<Bytes> = text.as_bytes().chunks(size).map(Bytes::copy_from_slice).collect();
            app.provider().always(Reply::raw_stream(pieces));
            assert_eq!(&body_of(&app, true).await[..], text.as_bytes(), "{}", path.display());
        }
        app.settled().await;
        let usage = app.log_rows().await.into_iter().last().expect("a row");
        assert!(
            usage.completion_tokens.is_some_and(|tokens| tokens > 0),
            "{}: usage was read",
            path.display()
        );
        assert!(usage.ttft_ms.is_some(), "{}: the first token was seen", path.display());
        assert!(usage.finish_reason.is_some(), "{}: the finish reason was read", path.display());
    }
    assert!(files >= 6, "{files} recordings were replayed");
}

/// The client's body reaches the provider unchanged, apart from the model's name and the usage option.
#[tokio::test]
async fn requests_are_passed_through() {
    let app = TestApp::spawn().await;
    let odd = json!({ "nested": { "model": "kept" }, "n": 1.50, "unicode": "é🦀" });
    let response = app
        .chat(MODEL)
        .with("vendor_field", odd.clone())
        .header("x-custom", "kept")
        .header("x-nexusgate-provider", "alpha")
        .header("cookie", "secret")
        .send()
        .await;
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["x-nexusgate-provider"], "alpha");
    let call = app.provider().last_call().expect("a call");
    let body = call.json();
    assert_eq!(body["vendor_field"], odd);
    assert_eq!(body["model"], "remote-gpt-4o");
    assert_eq!(call.header("authorization"), Some("Bearer upstream-secret"));
    assert_eq!(call.header("x-custom"), Some("kept"));
    assert_eq!(call.header("cookie"), None);
    assert_eq!(call.header("x-nexusgate-provider"), None);
    assert!(body.get("stream_options").is_none(), "only streams are asked for their usage");

    app.chat(MODEL).streamed().send().await.bytes().await.expect("a stream");
    assert_eq!(app.provider().last_call().expect("a call").json()["stream_options"]["include_usage"], true);

    app.chat(MODEL).header("accept", "text/event-stream").send().await.bytes().await.expect("a stream");
    assert_eq!(app.provider().last_call().expect("a call").json()["stream"], true);

    let named = app.chat("gpt-4o@alpha").send().await;
    assert_eq!(named.status(), 200);
    assert_eq!(app.chat("gpt-4o@beta").send().await.status(), 404);
    app.settled().await;
}

/// Fifty streams of two hundred chunks at once: none lost, none mixed up.
#[tokio::test]
async fn many_streams_at_once() {
    let app = TestApp::spawn().await;
    app.provider().rule(|_, ask| {
        let who = ask.model.clone();
        let events: String = (0..200)
            .map(|n| format!("data: {{\"choices\":[{{\"delta\":{{\"content\":\"{who}/{n} \"}}}}]}}\n\n"))
            .chain(["data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n"
                .to_owned()])
            .collect();
        let pieces: Vec<Bytes> = events.as_bytes().chunks(97).map(Bytes::copy_from_slice).collect();
        Some(Reply::raw_stream(pieces))
    });
    let calls = (0..50).map(|_| async {
        let body = app.chat(MODEL).streamed().send().await.bytes().await.expect("a stream");
        let text = String::from_utf8(body.to_vec()).expect("UTF-8");
        let mut after = 0;
        for n in 0..200 {
            let piece = format!("remote-gpt-4o/{n} ");
            let at = text[after..].find(&piece).expect("every chunk, in order");
            after += at + piece.len();
        }
        assert!(text.ends_with("data: [DONE]\n\n"));
    });
    futures_util::future::join_all(calls).await;
    let scrape = app.settled().await;
    assert!(scrape.metric("nexusgate_completions_total").label("status", "completed").is(50.0));
    assert!(scrape.metric("nexusgate_completion_ttft_seconds_count").is(50.0));
}
