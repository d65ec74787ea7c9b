//! Errors, written and read back.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::wire::watch::StreamWatcher;

fn refused() -> ApiError {
    ApiError::new(400, "`model` is \"missing\".\n").with_code("missing_model").with_param("model")
}

fn rendered(format: ErrorFormat, error: &ApiError) -> Value {
    serde_json::from_slice(&render_error(format, error)).unwrap()
}

#[test]
fn bodies_have_the_shape_of_their_format() {
    assert_eq!(
        rendered(ErrorFormat::OpenAi, &refused()),
        json!({"error": {
            "message": "`model` is \"missing\".\n", "type": "invalid_request_error", "code": "missing_model",
            "param": "model",
        }})
    );
    assert_eq!(
        rendered(ErrorFormat::OpenAi, &ApiError::new(502, "m")),
        json!({"error": {"message": "m", "type": "server_error", "code": null, "param": null}})
    );
    assert_eq!(
        rendered(ErrorFormat::Anthropic, &refused()),
        json!({"type": "error", "error": {"type": "invalid_request_error", "message": "`model` is \"missing\".\n"}})
    );
}

#[test]
fn anthropic_names_the_status() {
    let types = [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (403, "permission_error"),
        (404, "not_found_error"),
        (409, "invalid_request_error"),
        (413, "request_too_large"),
        (422, "invalid_request_error"),
        (429, "rate_limit_error"),
        (500, "api_error"),
        (502, "api_error"),
        (503, "overloaded_error"),
        (504, "timeout_error"),
        (529, "overloaded_error"),
    ];
    for (status, kind) in types {
        assert_eq!(
            rendered(ErrorFormat::Anthropic, &ApiError::new(status, "m"))["error"]["type"],
            kind,
            "{status}"
        );
    }
}

#[test]
fn events_end_a_stream_in_its_format() {
    let error = ApiError::new(502, "gone").with_code("stream_cut");
    let event = |format| String::from_utf8(error_event(format, &error, Some(7)).to_vec()).unwrap();
    assert_eq!(
        event(ApiFormat::OpenAiChat),
        "data: {\"error\":{\"message\":\"gone\",\"type\":\"server_error\",\"code\":\"stream_cut\",\"param\":null}}\n\n"
    );
    assert_eq!(
        event(ApiFormat::Anthropic),
        "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"api_error\",\"message\":\"gone\"}}\n\n"
    );
    let responses = event(ApiFormat::OpenAiResponses);
    let data = responses.strip_prefix("event: error\ndata: ").unwrap().strip_suffix("\n\n").unwrap();
    assert_eq!(
        serde_json::from_str::<Value>(data).unwrap(),
        json!({
            "type": "error", "sequence_number": 7, "code": "stream_cut", "message": "gone", "param": null,
            "error": {"message": "gone", "type": "server_error", "code": "stream_cut", "param": null},
        })
    );
    assert!(
        !String::from_utf8_lossy(&error_event(ApiFormat::OpenAiResponses, &error, None)).contains("sequence")
    );
    for format in ApiFormat::ALL.iter().copied() {
        let mut watcher = StreamWatcher::new(format, false);
        watcher.feed(error_event(format, &error, None));
        assert!(watcher.seen().failed, "{format}");
        let read = watcher.failure().unwrap();
        let code = (format != ApiFormat::Anthropic).then_some("stream_cut");
        assert_eq!((read.code.as_deref(), &*read.message), (code, "gone"));
    }
}

#[test]
fn what_is_rendered_is_parsed_again() {
    for status in [400, 401, 403, 404, 413, 429, 500, 502, 504] {
        let error = ApiError { kind: "some_type".into(), ..ApiError::new(status, "m") }
            .with_code("c")
            .with_param("p");
        assert_eq!(parse_error(status, &render_error(ErrorFormat::OpenAi, &error)), error);
    }
    let parsed = parse_error(529, &render_error(ErrorFormat::Anthropic, &ApiError::new(529, "Overloaded")));
    assert_eq!((parsed.status, &*parsed.kind, &*parsed.message), (529, "overloaded_error", "Overloaded"));
}

#[test]
fn errors_of_many_providers_are_understood() {
    // (status, body) → (status, type, code, message)
    type Told = (u16, &'static str, Option<&'static str>, &'static str);
    let cases: [(u16, &str, Told); 19] = [
        (
            404,
            r#"{"error":"model 'x' not found"}"#,
            (404, "invalid_request_error", None, "model 'x' not found"),
        ),
        (401, r#"{"message":"Unauthorized"}"#, (401, "authentication_error", None, "Unauthorized")),
        (422, r#"{"detail":"Field required"}"#, (422, "invalid_request_error", None, "Field required")),
        (
            400,
            r#"{"object":"error","message":"too long","type":"BadRequestError","param":null,"code":400}"#,
            (400, "BadRequestError", Some("400"), "too long"),
        ),
        (
            429,
            r#"[{"error":{"code":429,"message":"Quota","status":"RESOURCE_EXHAUSTED"}}]"#,
            (429, "rate_limit_error", Some("429"), "Quota"),
        ),
        (
            502,
            "<html><h1>Bad Gateway</h1></html>",
            (502, "server_error", None, "The provider answered with HTTP status 502."),
        ),
        (503, "", (503, "server_error", None, "The provider answered with HTTP status 503.")),
        (500, "upstream connect error\n", (500, "server_error", None, "upstream connect error")),
        (
            400,
            "{\"error\":",
            (400, "invalid_request_error", None, "The provider answered with HTTP status 400."),
        ),
        (400, "[]", (400, "invalid_request_error", None, "The provider answered with HTTP status 400.")),
        (
            400,
            r#"{"error":{"message":7,"type":[],"code":null}}"#,
            (400, "invalid_request_error", None, "The provider answered with HTTP status 400."),
        ),
        // Events of streams: the status is the stream's.
        (
            200,
            r#"{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}"#,
            (529, "overloaded_error", None, "Overloaded"),
        ),
        (
            200,
            r#"{"type":"response.failed","response":{"error":{"code":"rate_limit_exceeded","message":"slow down"}}}"#,
            (429, "rate_limit_error", Some("rate_limit_exceeded"), "slow down"),
        ),
        (
            200,
            r#"{"type":"error","code":"server_error","message":"oops","param":null}"#,
            (500, "server_error", Some("server_error"), "oops"),
        ),
        // OpenRouter, with a success status: the error's code is the status.
        (200, r#"{"error":{"message":"slow","code":429}}"#, (429, "rate_limit_error", Some("429"), "slow")),
        (
            200,
            r#"{"error":{"message":"broke","code":"402","status":429}}"#,
            (402, "invalid_request_error", Some("402"), "broke"),
        ),
        (
            200,
            r#"{"error":{"message":"odd","code":7},"status":404}"#,
            (404, "invalid_request_error", Some("7"), "odd"),
        ),
        // A status is more specific than a type.
        (
            200,
            r#"{"error":{"message":"busy","type":"server_error","code":503}}"#,
            (503, "server_error", Some("503"), "busy"),
        ),
        (
            200,
            r#"{"error":{"message":"odd","type":"server_error","code":200}}"#,
            (500, "server_error", Some("200"), "odd"),
        ),
    ];
    for (status, body, expected) in cases {
        let error = parse_error(status, body.as_bytes());
        assert_eq!((error.status, &*error.kind, error.code.as_deref(), &*error.message), expected, "{body}");
    }
    assert_eq!(parse_error(400, "é".repeat(9000).as_bytes()).message.chars().count(), MESSAGE_MAX_CHARS);
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(status: u16, body in prop::collection::vec(any::<u8>(), 0..100), text in "[\\[\\]{}\":,a-z\\\\]{0,60}") {
        for body in [&body[..], text.as_bytes()] {
            let error = parse_error(status, body);
            prop_assert!(error.status >= 400 && !error.message.is_empty());
        }
    }
}
