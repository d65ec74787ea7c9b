//! Providers that bend the rules: understood where possible, else ended cleanly.

use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use nexusgate::demo::provider::{Gate, Reply};
use nexusgate::domain::label::ApiFormat;
use nexusgate::domain::provider::ProviderKind;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;

use crate::support::TestApp;
use crate::support::app::MODEL;
use crate::support::raw;

const KINDS: [ProviderKind; 3] =
    [ProviderKind::OpenAi, ProviderKind::OpenAiResponses, ProviderKind::Anthropic];

async fn behind(kind: ProviderKind) -> TestApp {
    TestApp::builder().targets(vec![("alpha", kind, None)]).spawn().await
}

/// The text of a whole answer in any format.
fn text_of(format: ApiFormat, answer: &Value) -> &str {
    let at = match format {
        ApiFormat::OpenAiChat => "/choices/0/message/content",
        ApiFormat::OpenAiResponses => "/output/0/content/0/text",
        ApiFormat::Anthropic => "/content/0/text",
    };
    answer.pointer(at).and_then(Value::as_str).unwrap_or_default()
}

/// The last event of a well-ended stream.
fn ends_well(format: ApiFormat, stream: &str) -> bool {
    match format {
        ApiFormat::OpenAiChat => stream.ends_with("data: [DONE]\n\n"),
        ApiFormat::OpenAiResponses => stream.contains("event: response.completed\n"),
        ApiFormat::Anthropic => stream.ends_with("data: {\"type\":\"message_stop\"}\n\n"),
    }
}

/// The scripted answer of a provider of `kind` to a client of its own format, whole or as a stream.
async fn recorded(kind: ProviderKind, stream: bool) -> Bytes {
    let app = behind(kind).await;
    app.provider().always(Reply::text("as it is"));
    let mut call = app.ask(kind.chat_format(), MODEL);
    if stream {
        call = call.streamed().with("stream_options", json!({ "include_usage": true }));
    }
    call.send().await.bytes().await.expect("an answer")
}

/// A stream though a whole answer was requested, and vice versa: the client gets the form it requested.
#[tokio::test]
async fn the_other_way_than_asked() {
    for kind in KINDS {
        let (whole, stream) = (recorded(kind, false).await, recorded(kind, true).await);
        let app = behind(kind).await;
        for format in ApiFormat::ALL.iter().copied() {
            app.provider().always(Reply::raw_stream(stream.chunks(50).map(Bytes::copy_from_slice)));
            let response = app.ask(format, MODEL).send().await;
            let case = format!("{} from {kind:?}", format.as_str());
            assert_eq!(response.headers()["content-type"], "application/json", "{case}");
            let answer: Value = response.json().await.expect("JSON");
            assert_eq!(text_of(format, &answer), "as it is", "{case}: {answer}");

            app.provider().always(Reply::raw_json(whole.clone()));
            let response = app.ask(format, MODEL).streamed().send().await;
            let content_type = response.headers()["content-type"].to_str().expect("text").to_owned();
            assert!(
                content_type.starts_with("text/event-stream"),
                "{case}: {content_type}: {:?}",
                response.text().await
            );
            let text = response.text().await.expect("text");
            assert!(text.contains("as it is") && ends_well(format, &text), "{case}: {text}");
        }
        let scrape = app.settled().await;
        assert!(
            scrape.metric("nexusgate_completions_total").label("status", "completed").is(6.0),
            "{kind:?}"
        );
        assert!(scrape.metric("nexusgate_usage_missing_total").is(0.0), "{kind:?}: the usage was read");
    }
}

/// A stream that nobody asked for, and that fails, is no answer, however well it ends afterwards.
#[tokio::test]
async fn an_error_in_a_stream_that_was_not_asked_for() {
    let error = "data: {\"error\":{\"message\":\"Slow down\",\"code\":429}}\n\n";
    for kind in KINDS {
        let stream = recorded(kind, true).await;
        let begun = stream.len() / 2;
        let end = begun + memchr::memmem::find(&stream[begun..], b"\n\n").expect("an event ends") + 2;
        let app = behind(kind).await;
        let pieces = [&stream[..end], error.as_bytes(), &stream[end..]].map(Bytes::copy_from_slice);
        app.provider().always(Reply::raw_stream(pieces));
        for format in ApiFormat::ALL.iter().copied() {
            let response = app.ask(format, MODEL).send().await;
            assert_eq!(response.status(), 429, "{format:?} from {kind:?}");
            assert!(response.text().await.expect("text").contains("Slow down"));
        }
        let scrape = app.settled().await;
        assert!(scrape.metric("nexusgate_completions_total").label("status", "failed").is(3.0), "{kind:?}");
    }
}

/// A stream not labelled as one reaches a client that requested a stream; other bodies are read as before.
#[tokio::test]
async fn streams_under_another_name() {
    let untold = |name: Option<&'static str>, body: Bytes, size: usize| {
        let name = name.map(|name| (header::CONTENT_TYPE, HeaderValue::from_static(name)));
        let pieces: Vec<Bytes> = body.chunks(size).map(Bytes::copy_from_slice).collect();
        Reply::raw(StatusCode::OK, HeaderMap::from_iter(name), pieces)
    };
    for kind in KINDS {
        let (whole, stream) = (recorded(kind, false).await, recorded(kind, true).await);
        let app = behind(kind).await;
        for name in [None, Some("text/plain; charset=utf-8"), Some("application/octet-stream")] {
            for format in ApiFormat::ALL.iter().copied() {
                let odd = Bytes::from([b"\xEF\xBB\xBF\n\n", &stream[..]].concat());
                for (body, size) in [(&stream, stream.len()), (&odd, 1), (&whole, whole.len()), (&whole, 1)] {
                    app.provider().always(untold(name, body.clone(), size));
                    let call = app.ask(format, MODEL).streamed();
                    let call = call.with("stream_options", json!({ "include_usage": true }));
                    let response = call.send().await;
                    let case = format!("{} from {kind:?} as {name:?} in pieces of {size}", format.as_str());
                    assert_eq!(response.status(), 200, "{case}");
                    let told = response.headers()["content-type"].to_str().expect("text").to_owned();
                    assert!(told.starts_with("text/event-stream"), "{case}: {told}");
                    let answer = response.bytes().await.expect("a stream");
                    let text = String::from_utf8_lossy(&answer);
                    assert!(text.contains("as "), "{case}: {text}");
                    assert!(ends_well(format, &text), "{case}: {text}");
                    if format == kind.chat_format() && body != &whole {
                        assert_eq!(&answer, body, "{case}: as it came");
                    }
                }
            }
            app.provider().always(untold(name, Bytes::from_static(b"<html>data: x</html>"), 5));
            assert_eq!(app.chat(MODEL).streamed().send().await.status(), 502);
        }
        let scrape = app.settled().await;
        assert!(scrape.metric("nexusgate_completions_total").label("status", "completed").is(36.0));
        assert!(scrape.metric("nexusgate_usage_missing_total").is(0.0), "{kind:?}: the usage was read");
    }
}

/// Everything that the event stream standard allows and providers are known to send: byte for byte to a client of the
/// same format, converted for other formats, wherever it is cut.
#[tokio::test]
async fn a_stream_with_every_whim() {
    let stream = concat!(
        "\u{feff}: hello\r\n\r\n",
        "retry: 3000\r\n\r\n",
        "event: ping\r\n\r\n",
        "data:\r\n\r\n",
        "id: 1\ndata: {\"id\":\"c\",\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":null,\"tool_calls\":null},\"finish_reason\":null}],\"usage\":null,\"error\":null}\n\n",
        "data: {\"id\":\"c\",\"choices\":[],\"x\":{\"usage\":{\"prompt_tokens\":99}}}\n\n",
        "data:{\"id\":\"c\",\"choices\":[{\"index\":0,\ndata: \"delta\":{\"content\":\"odd \"}}]}\r\n\r\n",
        ":\n\n",
        "data: {\"id\":\"c\",\"object\":\"brand.new\",\"choices\":[{\"delta\":{\"content\":\"but \",\"vendor\":[1]}}]}\n\n",
        "data: {\"id\":\"c\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"whole\"},\"finish_reason\":\"stop\"}],",
        "\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":3,\"total_tokens\":8,\"prompt_tokens_details\":null}}\n\n",
        "data: [DONE]\n",
    );
    let app = TestApp::spawn().await;
    for size in [1, 3, 64, stream.len()] {
        let pieces = || stream.as_bytes().chunks(size).map(Bytes::copy_from_slice);
        app.provider().always(Reply::raw_stream(pieces()));
        let same = app.chat(MODEL).streamed().send().await.bytes().await.expect("a stream");
        assert_eq!(same, stream.as_bytes(), "in pieces of {size}");
        for format in [ApiFormat::OpenAiResponses, ApiFormat::Anthropic] {
            let text = app.ask(format, MODEL).streamed().send().await.text().await.expect("a stream");
            assert!(["odd ", "but ", "whole"].iter().all(|piece| text.contains(piece)), "{text}");
            assert!(ends_well(format, &text), "{text}");
        }
    }
    let scrape = app.settled().await;
    assert!(scrape.metric("nexusgate_completions_total").label("status", "completed").is(12.0));
    assert!(scrape.metric("nexusgate_tokens_prompt_total").is(60.0), "only the real usage counts");
    assert!(scrape.metric("nexusgate_tokens_completion_total").is(36.0));
}

/// The blank line behind the last event is missing, or its line's end too, and HTTP ends in order: the answer is whole, and
/// the client gets the blank line that its SDK waits for, if it has not had its answer before.
#[tokio::test]
async fn a_last_event_without_its_blank_line() {
    for kind in KINDS {
        let stream = recorded(kind, true).await;
        let app = behind(kind).await;
        for format in ApiFormat::ALL.iter().copied() {
            for missing in [1, 2] {
                let short = stream.slice(..stream.len() - missing);
                app.provider().always(Reply::raw_stream([short]));
                let text =
                    app.ask(format, MODEL).streamed().send().await.text().await.expect("a whole stream");
                let case = format!("{} from {kind:?}, {missing} missing: {text}", format.as_str());
                let ends_a_line = text.ends_with("\n\n") || format == ApiFormat::OpenAiChat;
                assert!(ends_a_line, "{case}");
                let tidy = text.trim_end().to_owned() + "\n\n";
                assert!(text.contains("as ") && ends_well(format, &tidy), "{case}");
                assert!(!text.contains("broke off"), "{case}");
            }
        }
        let scrape = app.settled().await;
        assert!(
            scrape.metric("nexusgate_completions_total").label("status", "completed").is(6.0),
            "{kind:?}"
        );
        let attempts = || scrape.metric("nexusgate_upstream_attempts_total");
        assert!(attempts().label("outcome", "ok").is(6.0) && attempts().is(6.0), "{kind:?}: {}", scrape.text);
    }
}

/// A last event that is cut off is no end.
#[tokio::test]
async fn half_a_last_event() {
    let app = TestApp::spawn().await;
    let stream = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"half\"}}]}\n\n\
                  data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_rea";
    app.provider().always(Reply::raw_stream([stream]));
    let with_usage = json!({ "include_usage": true });
    let cut = app.chat(MODEL).streamed().with("stream_options", with_usage).send().await.bytes().await;
    assert!(cut.is_err(), "forwarded at once, and no event can follow half of one: {cut:?}");
    for format in ApiFormat::ALL.iter().copied() {
        let text = app.ask(format, MODEL).streamed().send().await.text().await.expect("a stream");
        assert!(text.contains("half") && !text.contains("finish_rea"), "{text}");
        assert!(text.contains("\"The provider's answer broke off.\""), "{text}");
        assert_eq!(text.contains("\"code\":\"stream_cut\""), format != ApiFormat::Anthropic, "{text}");
    }
    let scrape = app.settled().await;
    assert!(scrape.metric("nexusgate_completions_total").label("status", "failed").is(4.0));
    assert!(scrape.metric("nexusgate_upstream_attempts_total").label("outcome", "stream_cut").is(4.0));
}

#[tokio::test]
async fn bytes_that_are_not_utf8() {
    let app = TestApp::spawn().await;
    let stream: &[u8] = b"data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"a\xff\xc3b\"}}]}\n\ndata: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n";
    app.provider().always(Reply::raw_stream([Bytes::from_static(stream)]));
    let same = app.chat(MODEL).streamed().send().await.bytes().await.expect("a stream");
    assert_eq!(&same[..], stream, "passed through as it is");
    let text = app.ask(ApiFormat::Anthropic, MODEL).streamed().send().await.text().await.expect("UTF-8");
    assert!(text.contains("a\u{fffd}\u{fffd}b") && ends_well(ApiFormat::Anthropic, &text), "{text}");
}

/// An endless line is passed through to a client of the same format and ends with an error for other formats; it is
/// never buffered (the scanner keeps 16 MiB at most, see its own tests).
#[tokio::test]
async fn an_endless_line() {
    let app = TestApp::spawn().await;
    let piece = Bytes::from(vec![b'x'; 1 << 20]);
    let pieces = || {
        std::iter::once(Bytes::from_static(
            b"data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"begun\"}}]}\n\ndata: ",
        ))
        .chain(std::iter::repeat_n(piece.clone(), 24))
    };
    app.provider().always(Reply::raw_stream(pieces()));
    let response = app.chat(MODEL).streamed().send().await;
    let length = response.bytes().await.map_or(0, |bytes| bytes.len());
    assert!(length == 0 || length > 24 << 20, "passed through, or broken off");
    let text = app.ask(ApiFormat::Anthropic, MODEL).streamed().send().await.text().await.expect("a stream");
    assert!(text.contains("begun") && text.contains("event: error\n"), "{}", &text[..text.len().min(2000)]);
    assert!(text.len() < 10_000);
    let scrape = app.settled().await;
    assert!(scrape.metric("nexusgate_completions_total").label("status", "failed").is(2.0));
    assert!(scrape.metric("nexusgate_upstream_attempts_total").label("outcome", "protocol").value() >= 1.0);
}

/// Slow bytes time out a whole answer, but are fine in a stream.
#[tokio::test]
async fn drop_by_drop() {
    let app = TestApp::builder().setting("UPSTREAM_TIMEOUT", "300ms").spawn().await;
    app.provider().always(Reply::text("slowly but surely").split(40).every(Duration::from_millis(20)));
    let stream = app.chat(MODEL).streamed().send().await.text().await.expect("a stream");
    assert!(
        stream.contains("surely") && stream.ends_with("data: [DONE]\n\n"),
        "longer than the timeout, but never silent"
    );
    app.provider().always(Reply::text("slowly").split(1).every(Duration::from_millis(20)));
    assert_eq!(app.chat(MODEL).send().await.status(), 504);
    // Only headers.
    let gate = Gate::new();
    app.provider().always(Reply::text("never").stalled_after(0, &gate));
    for stream in [false, true] {
        let call = app.chat(MODEL);
        assert_eq!(if stream { call.streamed() } else { call }.send().await.status(), 504);
    }
    let scrape = app.settled().await;
    assert!(scrape.metric("nexusgate_upstream_attempts_total").label("outcome", "timeout").is(3.0));
}

#[tokio::test]
async fn redirections_are_not_followed() {
    let app = TestApp::spawn().await;
    let elsewhere = format!("{}/elsewhere", app.provider().base_url());
    let headers =
        HeaderMap::from_iter([(header::LOCATION, HeaderValue::from_str(&elsewhere).expect("a header"))]);
    app.provider().always(Reply::raw(StatusCode::TEMPORARY_REDIRECT, headers, [Bytes::new()]));
    let response = app.chat(MODEL).send().await;
    assert_eq!(response.status(), 502);
    assert!(response.headers().get("location").is_none());
    let told: Value = response.json().await.expect("JSON");
    assert_eq!(told["error"]["code"], "all_providers_failed");
    let scrape = app.settled().await;
    assert!(scrape.metric("nexusgate_upstream_attempts_total").label("outcome", "protocol").is(1.0));
    assert_eq!(app.provider().calls().len(), 1);
}

#[tokio::test]
async fn interim_answers_are_passed_over() {
    let body =
        r#"{"choices":[{"index":0,"message":{"role":"assistant","content":"late"},"finish_reason":"stop"}]}"#;
    let answer = format!(
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\nHTTP/1.1 200 OK\r\ncontent-type: \
         application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let app = TestApp::builder().upstream(raw::answering(answer.into_bytes()).await).spawn().await;
    let response = app.chat(MODEL).send().await;
    assert_eq!(response.status(), 200);
    assert_eq!(response.text().await.expect("text"), body);
    let scrape = app.settled().await;
    assert!(scrape.metric("nexusgate_usage_missing_total").is(1.0));
}

/// The gateway requests plain bytes; a provider that sends encoded ones is not understood, or only in part.
#[tokio::test]
async fn compressed_answers() {
    let app = behind(ProviderKind::Anthropic).await;
    let gzip = (header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    let json = (header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let headers = HeaderMap::from_iter([gzip, json]);
    let squeezed = Bytes::from_static(b"\x1f\x8b\x08\x00garbage");
    app.provider().always(Reply::raw(StatusCode::OK, headers.clone(), [squeezed.clone()]));
    assert_eq!(app.chat(MODEL).send().await.status(), 502);
    assert_eq!(app.provider().last_call().expect("a call").header("accept-encoding"), Some("identity"));
    app.provider().always(Reply::raw(StatusCode::BAD_REQUEST, headers, [squeezed]));
    let response = app.chat(MODEL).send().await;
    assert_eq!(response.status(), 400);
    assert!(response.headers().get("content-encoding").is_none(), "what is written anew is not compressed");
    let told: Value = response.json().await.expect("JSON");
    assert_eq!(told["error"]["message"], "The provider answered with status 400");
}

/// An error that is too long to be passed on, or breaks off, still counts by its status.
#[tokio::test]
async fn errors_that_cannot_be_read() {
    let app = TestApp::spawn().await;
    let headers: HeaderMap = [(header::RETRY_AFTER, HeaderValue::from_static("7"))].into_iter().collect();
    let long = format!(r#"{{"error":{{"message":"{}"}}}}"#, "x".repeat(2 << 20));
    for (status, kind, reply) in [
        (
            StatusCode::BAD_REQUEST,
            "invalid_request_error",
            Reply::raw(StatusCode::BAD_REQUEST, headers.clone(), [long.clone()]),
        ),
        (
            StatusCode::TOO_MANY_REQUESTS,
            "rate_limit_error",
            Reply::raw(StatusCode::TOO_MANY_REQUESTS, headers, [long, String::new()]).cut_after(1),
        ),
    ] {
        app.provider().always(reply);
        let response = app.chat(MODEL).send().await;
        assert_eq!(response.status(), status);
        assert_eq!(response.headers()["retry-after"], "7");
        assert_eq!(response.json::<Value>().await.expect("JSON")["error"]["type"], kind);
    }
}

/// Errors with a success status.
#[tokio::test]
async fn errors_in_disguise() {
    let app = TestApp::spawn().await;
    app.provider()
        .always(Reply::raw_json(r#"{"error":{"message":"Slow down","code":"rate_limit_exceeded"}}"#));
    let response = app.chat(MODEL).send().await;
    assert_eq!(response.status(), 429);
    assert_eq!(response.json::<Value>().await.expect("JSON")["error"]["message"], "Slow down");

    app.provider().always(Reply::raw_json(
        r#"{"object":"error","message":"Too long.","type":"BadRequestError","param":null,"code":400}"#,
    ));
    for stream in [false, true] {
        let call = app.chat(MODEL);
        let response = if stream { call.streamed() } else { call }.send().await;
        assert_eq!(response.status(), 400);
        assert_eq!(response.json::<Value>().await.expect("JSON")["error"]["message"], "Too long.");
    }

    let app = behind(ProviderKind::OpenAiResponses).await;
    let failed = r#"{"id":"r","object":"response","status":"failed","output":[],"error":{"code":"server_error","message":"Out of order"}}"#;
    app.provider().always(Reply::raw_json(failed));
    let response = app.ask(ApiFormat::Anthropic, MODEL).send().await;
    assert_eq!(response.status(), 500);
    let told: Value = response.json().await.expect("JSON");
    assert_eq!(told, json!({ "type": "error", "error": { "type": "api_error", "message": "Out of order" } }));
    let same = app.ask(ApiFormat::OpenAiResponses, MODEL).send().await;
    assert_eq!((same.status().as_u16(), same.text().await.expect("text").as_str()), (200, failed));
    let scrape = app.settled().await;
    assert!(scrape.metric("nexusgate_completions_total").label("status", "failed").is(2.0));
    let attempts = scrape.metric("nexusgate_upstream_attempts_total").label("outcome", "http_5xx");
    assert!(attempts.is(4.0), "each is tried once more:\n{}", scrape.text);
}

/// OpenRouter reports an upstream failure in mid-stream within the choice, Mistral by the finish reason alone.
#[tokio::test]
async fn choices_that_failed() {
    let whole = r#"{"id":"c","object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":"Half"},"finish_reason":"error","error":{"code":429,"message":"Slow down"}}],"usage":{"prompt_tokens":7,"completion_tokens":2}}"#;
    let app = TestApp::spawn().await;
    app.provider().always(Reply::raw_json(whole));
    let response = app.chat(MODEL).send().await;
    assert_eq!((response.status().as_u16(), response.text().await.expect("text").as_str()), (200, whole));
    let response = app.ask(ApiFormat::Anthropic, MODEL).send().await;
    assert_eq!(response.status(), 429);
    assert_eq!(response.json::<Value>().await.expect("JSON")["error"]["message"], "Slow down");
    let scrape = app.settled().await;
    assert!(scrape.metric("nexusgate_completions_total").label("status", "failed").is(2.0));
    assert!(scrape.metric("nexusgate_upstream_attempts_total").label("outcome", "http_429").is(4.0));
    assert!(scrape.metric("nexusgate_tokens_prompt_total").is(28.0), "each of four attempts cost 7");

    let begun = "data: {\"id\":\"c\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"Half\"}}]}\n\n";
    let broken = "data: {\"id\":\"c\",\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"error\"}]}\n\ndata: [DONE]\n\n";
    for format in ApiFormat::ALL.iter().copied() {
        let app = TestApp::spawn().await;
        app.provider().always(Reply::raw_stream([begun, broken]));
        let text = app.ask(format, MODEL).streamed().send().await.text().await.expect("text");
        assert!(text.contains("Half") && text.contains("error"), "{format:?}: {text}");
        let scrape = app.settled().await;
        assert!(scrape.metric("nexusgate_completions_total").label("status", "failed").is(1.0), "{format:?}");
        assert!(scrape.metric("nexusgate_upstream_attempts_total").label("outcome", "http_5xx").is(1.0));
    }
}

/// Events of a Responses stream are numbered, including the gateway's own error event at the end.
#[tokio::test]
async fn the_last_word_on_a_responses_stream_has_a_number() {
    let app = behind(ProviderKind::OpenAiResponses).await;
    app.provider().always(Reply::text("one two three four").cut_after(3));
    let text = app.ask(ApiFormat::OpenAiResponses, MODEL).streamed().send().await.text().await.expect("text");
    let numbers: Vec<u64> = text
        .lines()
        .filter_map(|line| line.strip_prefix("data: "))
        .map(|data| {
            serde_json::from_str::<Value>(data).expect("JSON")["sequence_number"].as_u64().expect("a number")
        })
        .collect();
    assert!(text.contains("stream_cut") && numbers.len() > 2, "{text}");
    assert!(numbers.iter().zip(0..).all(|(number, index)| *number == index), "{numbers:?}");
}

/// Only one choice was requested, whatever index the provider gives it.
#[tokio::test]
async fn a_choice_with_another_number() {
    let events = "data: {\"id\":\"c\",\"choices\":[{\"index\":1,\"delta\":{\"content\":\"Hello\"}}]}\n\ndata: {\"id\":\"c\",\"choices\":[{\"index\":1,\"delta\":{},\"finish_reason\":\"length\"}]}\n\ndata: [DONE]\n\n";
    let app = TestApp::spawn().await;
    app.provider().always(Reply::raw_stream([events]));
    let text = app.ask(ApiFormat::Anthropic, MODEL).streamed().send().await.text().await.expect("text");
    assert!(text.contains("Hello") && text.contains("max_tokens"), "{text}");
}

/// The same in a stream that was not requested.
#[tokio::test]
async fn errors_in_a_stream_instead_of_a_whole_answer() {
    let response = "event: response.failed\ndata: {\"type\":\"response.failed\",\"response\":{\"id\":\"r\",\"status\":\"failed\",\"error\":{\"code\":\"rate_limit_exceeded\",\"message\":\"Slow down\"},\"usage\":{\"input_tokens\":5000,\"output_tokens\":3}}}\n\n";
    let chat = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"begun\"}}],\"usage\":{\"prompt_tokens\":5000,\"completion_tokens\":3}}\n\ndata: {\"error\":{\"message\":\"Slow down\",\"type\":\"rate_limit_error\"}}\n\ndata: [DONE]\n\n";
    let message = "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"id\":\"m\",\"usage\":{\"input_tokens\":5000,\"output_tokens\":3}}}\n\nevent: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"rate_limit_error\",\"message\":\"Slow down\"}}\n\n";
    for (kind, events) in KINDS.into_iter().zip([chat, response, message]) {
        let app = behind(kind).await;
        app.provider().always(Reply::raw_stream([events]));
        for format in ApiFormat::ALL.iter().copied() {
            let response = app.ask(format, MODEL).send().await;
            assert_eq!(response.status(), 429, "{kind:?} {format:?}");
            let told: Value = response.json().await.expect("JSON");
            assert_eq!(told["error"]["message"], "Slow down", "{kind:?} {format:?}");
        }
        let scrape = app.settled().await;
        let attempts = scrape.metric("nexusgate_upstream_attempts_total");
        assert!(attempts.value() > 0.0, "{kind:?}");
        let limited = scrape.metric("nexusgate_upstream_attempts_total").label("outcome", "http_429");
        assert!(limited.is(attempts.value()), "{kind:?}:\n{}", scrape.text);
        // Each of three calls is retried once.
        assert!(attempts.is(6.0), "{kind:?}:\n{}", scrape.text);
        let each = scrape.metric("nexusgate_tokens_prompt_total").is(30000.0);
        assert!(each, "{kind:?}:\n{}", scrape.text);
    }
}

/// Each piece of a converted stream is sent on at once.
#[tokio::test]
async fn converted_streams_are_not_held_back() {
    for kind in KINDS {
        for format in ApiFormat::ALL.iter().copied() {
            let app = behind(kind).await;
            let gate = Gate::new();
            // Past the beginning of any format, before its end.
            let begins = if kind == ProviderKind::OpenAi { 3 } else { 6 };
            app.provider().always(Reply::text("first second third fourth").stalled_after(begins, &gate));
            let mut chunks = app.ask(format, MODEL).streamed().send().await.bytes_stream();
            let mut seen = String::new();
            while !seen.contains("first ") {
                let chunk = chunks.next().await.expect("more").expect("bytes");
                seen.push_str(std::str::from_utf8(&chunk).expect("UTF-8"));
            }
            assert!(!seen.contains("fourth"), "{kind:?} {format:?}");
            gate.open();
            while let Some(chunk) = chunks.next().await {
                seen.push_str(std::str::from_utf8(&chunk.expect("bytes")).expect("UTF-8"));
            }
            assert!(seen.contains("fourth") && ends_well(format, &seen), "{kind:?} {format:?}: {seen}");
            let scrape = app.settled().await;
            assert!(scrape.metric("nexusgate_completion_ttft_seconds_count").is(1.0), "{kind:?} {format:?}");
        }
    }
}

/// -1 as an unsigned number is no token count: the count is unknown, and later data is unaffected.
#[tokio::test]
async fn an_absurd_usage_is_unknown() {
    let app = TestApp::builder().key("sk-limited-0123456789", "limited", None, Some(1000)).spawn().await;
    let answer = |prompt: &str| {
        Reply::raw_json(format!(
            r#"{{"id":"1","object":"chat.completion","created":1,"model":"m","choices":[{{"index":0,"message":{{"role":"assistant","content":"x"}},"finish_reason":"stop"}}],"usage":{{"prompt_tokens":{prompt},"completion_tokens":2,"total_tokens":12}}}}"#
        ))
    };
    for prompt in ["10", "18446744073709551615", "9223372036854775807", "10.0", "10"] {
        app.provider().always(answer(prompt));
        assert_eq!(app.chat(MODEL).key("sk-limited-0123456789").send().await.status(), 200, "{prompt}");
    }
    let scrape = app.settled().await;
    assert!(scrape.metric("nexusgate_tokens_prompt_total").is(30.0), "{}", scrape.text);
    assert!(scrape.metric("nexusgate_tokens_completion_total").is(10.0));
    assert!(scrape.metric("nexusgate_request_log_rows_dropped_total").is(0.0));
    let rows = app.log_rows().await;
    assert_eq!(rows.iter().filter_map(|row| row.prompt_tokens).sum::<i64>(), 30);
    assert_eq!(rows.len(), 5);
}

/// A server that closes without HTTP's last chunk, after a complete answer.
#[tokio::test]
async fn a_whole_answer_is_whole_however_its_connection_ends() {
    let chat = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"all\"},\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n";
    let messages = "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"id\":\"m\",\"usage\":{\"input_tokens\":3,\"output_tokens\":1}}}\n\nevent: content_block_start\ndata: {\"type\":\"content_block_start\",\"index\":0,\"content_block\":{\"type\":\"text\",\"text\":\"\"}}\n\nevent: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":\"text_delta\",\"text\":\"all\"}}\n\nevent: content_block_stop\ndata: {\"type\":\"content_block_stop\",\"index\":0}\n\nevent: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\"},\"usage\":{\"output_tokens\":2}}\n\nevent: message_stop\ndata: {\"type\":\"message_stop\"}\n\n";
    for (kind, events) in [(ProviderKind::OpenAi, chat), (ProviderKind::Anthropic, messages)] {
        let bytes = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n{events}\r\n",
            events.len()
        );
        let url = raw::answering(bytes.into_bytes()).await;
        let app = TestApp::builder().targets(vec![("alpha", kind, Some(url))]).spawn().await;
        for format in [ApiFormat::OpenAiChat, ApiFormat::Anthropic] {
            let stream = app.ask(format, MODEL).streamed().send().await.text().await.expect("a whole answer");
            assert!(ends_well(format, &stream) && !stream.contains("error"), "{stream}");
        }
        let scrape = app.settled().await;
        assert!(scrape.metric("nexusgate_completions_total").label("status", "completed").is(2.0));
        assert!(scrape.metric("nexusgate_upstream_attempts_total").label("outcome", "ok").is(2.0));
    }
}

/// A server that neither sends HTTP's last chunk nor closes after the last event: the answer still ends, and ends well,
/// however often that happens.
#[tokio::test]
async fn an_answer_ends_with_its_last_event_though_its_connection_does_not() {
    for kind in KINDS {
        let events = recorded(kind, true).await;
        let never = Gate::new();
        let app = behind(kind).await;
        let never_ended = Reply::raw_stream([events, Bytes::from_static(b": never\n\n")]);
        app.provider().always(never_ended.stalled_after(1, &never));
        // Twice each, because a breaker opens after five failures.
        let formats = ApiFormat::ALL.iter().chain(ApiFormat::ALL).copied();
        let answers = futures_util::future::join_all(formats.map(|format| {
            let answer = app.ask(format, MODEL).streamed();
            async move { (format, answer.send().await.text().await.expect("a whole answer")) }
        }));
        for (format, stream) in answers.await {
            assert!(ends_well(format, &stream) && !stream.contains("\"error\":{"), "{kind:?}: {stream}");
        }
        let scrape = app.settled().await;
        assert!(scrape.metric("nexusgate_completions_total").label("status", "completed").is(6.0));
        assert!(scrape.metric("nexusgate_upstream_attempts_total").label("outcome", "ok").is(6.0));
        assert!(scrape.metric("nexusgate_provider_up").is(1.0));
        assert!(scrape.metric("nexusgate_tokens_wasted_total").is(0.0));
        assert!(scrape.metric("nexusgate_usage_missing_total").is(0.0));
    }
}

/// The URL of a server that answers the first request of each connection, and closes the connection just as the second
/// one arrives.
async fn closing_too_soon(answer: &'static str) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}/v1", listener.local_addr().expect("an address"));
    tokio::spawn(async move {
        let answer = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{answer}",
            answer.len()
        );
        while let Ok((mut connection, _)) = listener.accept().await {
            let _ = raw::read_request(&mut connection).await;
            let _ = connection.write_all(answer.as_bytes()).await;
            let _ = raw::read_request(&mut connection).await;
        }
    });
    url
}

/// What meets a connection that is being closed is answered over a new one, and the provider's health does not suffer.
#[tokio::test]
async fn kept_connections_that_are_closed_too_soon() {
    let url = closing_too_soon(
        r#"{"choices":[{"index":0,"message":{"role":"assistant","content":"x"},"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":1}}"#,
    )
    .await;
    let app = TestApp::builder().upstream(url).spawn().await;
    for turn in 0..10 {
        assert_eq!(app.chat(MODEL).send().await.status(), 200, "{turn}");
    }
    let scrape = app.settled().await;
    let attempts =
        |outcome| scrape.metric("nexusgate_upstream_attempts_total").label("outcome", outcome).value();
    // The first one opens a connection, every other one meets a closing one.
    assert_eq!((attempts("ok"), attempts("stream_cut")), (10.0, 9.0), "each call is counted");
    assert!(scrape.metric("nexusgate_provider_up").is(1.0));
    assert!(scrape.metric("nexusgate_failovers_total").is(0.0));
}

/// The same of token counts.
#[tokio::test]
async fn token_counts_over_connections_that_are_closed_too_soon() {
    let url = closing_too_soon(r#"{"input_tokens":3}"#).await;
    let app = TestApp::builder().targets(vec![("alpha", ProviderKind::Anthropic, Some(url))]).spawn().await;
    let body = json!({ "model": MODEL, "messages": [{ "role": "user", "content": "How many?" }] });
    for turn in 0..6 {
        let call = app.http.post(app.url("/v1/messages/count_tokens")).header("x-api-key", &app.key);
        let answer = call.json(&body).send().await.expect("an answer");
        assert_eq!(answer.status(), 200, "{turn}");
        assert_eq!(answer.json::<Value>().await.expect("JSON")["input_tokens"], 3);
    }
}

/// An event stream in one chunk, and the bytes after it.
fn streamed(events: &str, then: &str) -> Vec<u8> {
    format!(
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n{events}\r\n{then}",
        events.len()
    )
    .into_bytes()
}

/// In the middle of an event no error can be reported, but everything before it is sent.
#[tokio::test]
async fn what_was_forwarded_before_a_cut_arrives() {
    let event = |text: &str| {
        format!("data: {{\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"{text}\"}}}}]}}\n\n")
    };
    let (one, two) = (event("one"), event("two"));
    let events = format!("{one}{two}data: {{\"choi");
    let app = TestApp::builder().upstream(raw::answering(streamed(&events, "")).await).spawn().await;
    for turn in 0..20 {
        // Usage is requested, so that everything is forwarded as it comes.
        let call = app.chat(MODEL).streamed().with("stream_options", json!({ "include_usage": true }));
        let answer = call.send().await;
        assert_eq!(answer.status(), 200);
        let mut chunks = answer.bytes_stream();
        let mut seen = Vec::new();
        let mut broke = false;
        while let Some(chunk) = chunks.next().await {
            match chunk {
                Ok(bytes) => seen.extend_from_slice(&bytes),
                Err(_) => broke = true,
            }
        }
        assert!(
            broke && seen.starts_with(format!("{one}{two}").as_bytes()),
            "{turn}: {}",
            String::from_utf8_lossy(&seen)
        );
    }
    let scrape = app.settled().await;
    assert!(scrape.metric("nexusgate_completions_total").label("status", "failed").is(20.0));
}

/// Until one event is complete, another provider can answer.
#[tokio::test]
async fn a_stream_that_breaks_in_its_first_event_moves_on() {
    let events = "data: {\"choices\":[{\"index\":0,\"de";
    let first = raw::answering(streamed(events, "")).await;
    let kind = ProviderKind::OpenAi;
    let app =
        TestApp::builder().targets(vec![("first", kind, Some(first)), ("second", kind, None)]).spawn().await;
    let answer = app.chat(MODEL).streamed().send().await;
    assert_eq!(answer.headers()["x-nexusgate-provider"], "second");
    assert!(ends_well(ApiFormat::OpenAiChat, &answer.text().await.expect("a whole answer")));
    assert!(app.settled().await.metric("nexusgate_failovers_total").is(1.0));
}

/// Invalid HTTP in the middle of a body is reported as such, and not retried.
#[tokio::test]
async fn nonsense_in_a_body() {
    let bytes =
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n{}"
            .to_vec();
    let app = TestApp::builder().upstream(raw::answering(bytes).await).spawn().await;
    assert_eq!(app.chat(MODEL).send().await.status(), 502);
    let scrape = app.settled().await;
    assert!(scrape.metric("nexusgate_upstream_attempts_total").is(1.0), "{}", scrape.text);
    assert!(scrape.metric("nexusgate_upstream_attempts_total").label("outcome", "protocol").is(1.0));
}

/// An error whose body does not come is still reported by its status.
#[tokio::test]
async fn an_error_that_stalls() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}/v1", listener.local_addr().expect("an address"));
    tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((mut connection, _)) = listener.accept().await {
            let _ = raw::read_request(&mut connection).await;
            let _ =
                connection.write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 1000\r\n\r\n{\"err").await;
            held.push(connection);
        }
    });
    let app = TestApp::builder().upstream(url).spawn().await;
    let answer = app.chat(MODEL).send().await;
    assert_eq!(answer.status(), 400);
    let error: Value = answer.json().await.expect("JSON");
    assert!(error["error"]["message"].as_str().is_some_and(|message| message.contains("could not be read")));
    let scrape = app.settled().await;
    assert!(scrape.metric("nexusgate_upstream_attempts_total").label("outcome", "http_4xx").is(1.0));
}

/// Pings after the last event keep the provider's connection alive, not the client waiting.
#[tokio::test]
async fn pings_after_the_end() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}/v1", listener.local_addr().expect("an address"));
    tokio::spawn(async move {
        while let Ok((mut connection, _)) = listener.accept().await {
            let _ = raw::read_request(&mut connection).await;
            let events = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"all\"},\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n";
            let mut next = streamed(events, "");
            // Until the gateway closes the connection.
            while connection.write_all(&next).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(50)).await;
                next = b"8\r\n: ping\n\n\r\n".to_vec();
            }
        }
    });
    let app = TestApp::builder().upstream(url).spawn().await;
    let answer = async { app.chat(MODEL).streamed().send().await.text().await.expect("a whole answer") };
    let text = tokio::time::timeout(Duration::from_secs(30), answer).await.expect("an answer that ends");
    assert!(text.contains("all") && text.contains("[DONE]"), "{text}");
    let scrape = app.settled().await;
    assert!(scrape.metric("nexusgate_completions_total").label("status", "completed").is(1.0));
}

/// Errors in a shape that the client's SDK cannot read are rewritten into one that it can.
#[tokio::test]
async fn errors_in_shapes_of_their_own() {
    for (body, kind, message) in [
        ("<html><h1>502</h1></html>", "text/html", "status"),
        ("slow down", "text/plain", "slow down"),
        ("", "application/json", "status"),
        (r#"{"error":"model not loaded"}"#, "application/json", "model not loaded"),
        (r#"{"detail":"Field required"}"#, "application/json", "Field required"),
        (
            r#"{"detail":[{"loc":["body","model"],"msg":"field required"}]}"#,
            "application/json",
            "field required",
        ),
        (r#"[{"error":{"code":400,"message":"gemini says"}}]"#, "application/json", "gemini says"),
    ] {
        let bytes = format!(
            "HTTP/1.1 400 Bad Request\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        let app = TestApp::builder().upstream(raw::answering(bytes.into_bytes()).await).spawn().await;
        for answer in
            [app.chat(MODEL).send().await, app.embeddings(crate::support::app::EMBEDDING_MODEL).send().await]
        {
            assert_eq!(answer.status(), 400);
            assert_eq!(answer.headers()["content-type"], "application/json");
            let error: Value = answer.json().await.expect("JSON");
            let told = error["error"]["message"].as_str().expect("a message");
            assert!(told.contains(message), "{body}: {error}");
            assert_eq!(error["error"]["type"], "invalid_request_error");
        }
    }
}
