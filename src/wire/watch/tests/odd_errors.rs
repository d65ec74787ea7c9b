//! Errors that are not where clients of the stream's format look for one.

use bytes::Bytes;
use serde_json::Value;

use super::{watch, watch_in_pieces};
use crate::domain::label::ApiFormat;
use crate::wire::sse::SseScanner;
use crate::wire::watch::{Seen, StreamWatcher};

/// Events that are errors, though not where clients of the format look for one. The last part is the status they stand for.
const ODD_ERRORS: &[(ApiFormat, &str, u16)] = &[
    (
        ApiFormat::OpenAiChat,
        r#"data: {"object":"error","message":"Too long.","type":"BadRequestError","param":null,"code":400}"#,
        400,
    ),
    (ApiFormat::OpenAiChat, r#"data: {"type":"error","code":"rate_limit_exceeded","message":"Slow."}"#, 429),
    (ApiFormat::OpenAiChat, "event: error\ndata: {\"code\":\"429\",\"message\":\"Slow.\"}", 429),
    (ApiFormat::OpenAiChat, r#"data: {"choices":[],"x_groq":{"error":"over_capacity"}}"#, 500),
    (
        ApiFormat::OpenAiChat,
        r#"error: {"code":400,"message":"Too long.","type":"invalid_request_error"}"#,
        400,
    ),
    (ApiFormat::OpenAiChat, r#"error: {"error":{"message":"Slow.","type":"rate_limit_error"}}"#, 429),
    (ApiFormat::OpenAiChat, "error: Out of memory.", 500),
    (
        ApiFormat::Anthropic,
        r#"data: {"type":"error","error":{"type":"rate_limit_error","message":"Slow."}}"#,
        429,
    ),
    (ApiFormat::Anthropic, r#"error: {"code":400,"message":"Too long.","type":"x"}"#, 400),
    (ApiFormat::OpenAiResponses, "event: error\ndata: {\"code\":\"429\",\"message\":\"Slow.\"}", 429),
    (ApiFormat::OpenAiResponses, r#"error: {"code":400,"message":"Too long.","type":"x"}"#, 400),
    (ApiFormat::Anthropic, r#"data: {"object":"error","message":"Too long.","type":"x","code":400}"#, 400),
    (ApiFormat::Anthropic, r#"data: {"error":{"message":"Slow.","type":"rate_limit_error"}}"#, 429),
    (ApiFormat::Anthropic, "event: message\ndata: {\"error\":\"No.\"}", 500),
    (ApiFormat::OpenAiResponses, r#"data: {"object":"error","message":"Too long.","code":400}"#, 400),
    (ApiFormat::OpenAiResponses, r#"data: {"error":{"message":"Out of order.","code":503}}"#, 503),
];

/// The `data:` of every event.
fn data_of(stream: &[u8]) -> Vec<String> {
    let mut found = Vec::new();
    SseScanner::new().feed(stream, |event| found.push(event.data.to_owned())).unwrap();
    found
}

/// An error where clients may not look for it is told again where they do, and before a `[DONE]` that would end their
/// reading. Nothing that follows it counts.
#[test]
fn an_odd_error_is_told_again_and_ends_the_stream() {
    let usage = r#"data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":1}}"#;
    for (format, error, status) in ODD_ERRORS.iter().copied() {
        let begun = match format {
            ApiFormat::OpenAiChat => r#"data: {"choices":[{"index":0,"delta":{"role":"assistant"}}]}"#,
            ApiFormat::OpenAiResponses => r#"data: {"type":"response.created","sequence_number":0}"#,
            ApiFormat::Anthropic => r#"data: {"type":"ping"}"#,
        };
        let said = r#"data: {"choices":[{"index":0,"delta":{"content":"more"}}]}"#;
        let stream = [begun, usage, error, "data: no JSON", said, "data: [DONE]", "data: cut"].join("\n\n");
        for strip in [false, true] {
            let is_cut = strip && format == ApiFormat::OpenAiChat;
            let kept = if is_cut { vec![begun, error] } else { vec![begun, usage, error] };
            let expected = data_of(format!("{}\n\n", kept.join("\n\n")).as_bytes());
            for stream in [stream.clone(), stream.replace('\n', "\r\n"), stream.replace('\n', "\r")] {
                for size in [1, 2, 7, 90, 10_000] {
                    let mut watcher = StreamWatcher::new(format, strip);
                    let mut out = Vec::new();
                    for chunk in stream.as_bytes().chunks(size) {
                        out.extend_from_slice(&watcher.feed(Bytes::copy_from_slice(chunk)));
                    }
                    assert!(watcher.is_between_events());
                    out.extend_from_slice(&watcher.finish());
                    let mut told = data_of(&out);
                    let retold = told.pop().unwrap();
                    assert_eq!(told, expected, "{error} in chunks of {size}");
                    check_retold(&watcher, &retold, status, 2);
                    assert!(!watcher.seen().malformed && !watcher.seen().first_token, "{error}");
                }
            }
            // The end of the stream, without a blank line.
            let mut watcher = StreamWatcher::new(format, strip);
            let mut out = watcher.feed(Bytes::from(format!("{begun}\n\n{error}"))).to_vec();
            out.extend_from_slice(&watcher.finish());
            let told = data_of(&out);
            assert_eq!(told.len(), 3, "{told:?}");
            assert_eq!(told[1], data_of(format!("{error}\n\n").as_bytes())[0]);
            check_retold(&watcher, &told[2], status, 1);
        }
    }
}

/// The error, `retold`, is the one that `watcher` has read, in a shape of its format; `number` is its place in a stream.
fn check_retold(watcher: &StreamWatcher, retold: &str, status: u16, number: u64) {
    let format = watcher.reader.format;
    let name = if format == ApiFormat::OpenAiChat { "" } else { "event: error\n" };
    let (_, seen) = watch(format, false, &[format!("{name}data: {retold}\n\n").as_bytes()]);
    assert!(seen.failed && !seen.odd_failure, "{retold}");
    let error = watcher.failure().unwrap();
    assert_eq!(error.status, status, "{retold}");
    let retold: Value = serde_json::from_str(retold).unwrap();
    assert_eq!(retold["error"]["message"], *error.message);
    if format == ApiFormat::OpenAiResponses {
        assert_eq!(retold["sequence_number"], number);
    }
}

/// The rest of the event may say what error it is.
#[test]
fn a_named_error_that_is_cut_off_is_none_yet() {
    for (data, failed) in
        [("{\"type\":\"err", false), ("{\"type\":\"error\"}", true), ("Out of order.", true)]
    {
        let (_, seen) =
            watch(ApiFormat::Anthropic, false, &[format!("event: error\ndata: {data}").as_bytes()]);
        assert_eq!((seen.failed, seen.terminal), (failed, false), "{data}");
    }
}

#[test]
fn an_odd_error_behind_another_is_not_told_again() {
    let error = r#"data: {"error":{"message":"Slow.","type":"rate_limit_error"}}"#;
    let named = r#"data: {"object":"error","message":"Slow.","code":429}"#;
    let stream = format!("{error}\n\n{named}\n\n");
    let (forwarded, seen) = watch_in_pieces(ApiFormat::OpenAiChat, false, stream.as_bytes());
    assert_eq!(String::from_utf8(forwarded).unwrap(), stream);
    assert!(seen.failed && !seen.odd_failure);
}

/// What a format has an `object` or an `error` for elsewhere is no error.
#[test]
fn other_events_are_no_errors() {
    for (format, event) in [
        (ApiFormat::OpenAiChat, r#"{"object":"chat.completion.chunk","error":null,"choices":[]}"#),
        (ApiFormat::Anthropic, r#"{"type":"ping","error":{"message":"no"}}"#),
        (ApiFormat::Anthropic, r#"{"object":"message","error":{}}"#),
        (ApiFormat::OpenAiResponses, r#"{"type":"response.in_progress","error":{"message":"no"}}"#),
        (ApiFormat::OpenAiResponses, r#"{"object":"response","error":null}"#),
    ] {
        let (_, seen) = watch(format, false, &[format!("data: {event}\n\n").as_bytes()]);
        assert_eq!(seen, Seen::default(), "{event}");
    }
}
