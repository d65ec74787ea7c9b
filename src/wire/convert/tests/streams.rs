//! Streams carry the same content as whole answers.

use bytes::BytesMut;
use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::strategy::answer;
use super::{answer_of, context, encode_answer, events, grammar, stream_of};
use crate::domain::chat::{ChatAnswer, Part, StopReason, ToolCall, ToolKind};
use crate::domain::label::ApiFormat;
use crate::domain::usage::Usage;
use crate::wire::convert::{StreamConverter, add_usage, answer_to_stream, convert_answer};
use crate::wire::openai_chat;
use crate::wire::watch::StreamWatcher;

/// Converts a stream event by event.
pub(super) fn convert(from: ApiFormat, to: ApiFormat, stream: &str) -> String {
    let mut context = context(to);
    context.include_usage = true;
    let mut converter = StreamConverter::new(from, to, context);
    let mut out = BytesMut::new();
    for (name, data) in events(stream) {
        converter.feed(name, data, &mut out);
    }
    converter.finish(&mut out);
    assert!(converter.is_done());
    let stream = String::from_utf8(out.to_vec()).unwrap();
    grammar::check(to, &stream).unwrap_or_else(|error| panic!("{error} in {stream}"));
    stream
}

/// A whole answer, converted, is the converted stream, folded.
fn same_streamed_or_not(from: ApiFormat, to: ApiFormat, answer: &ChatAnswer) {
    let body = encode_answer(from, answer);
    let whole: Value =
        serde_json::from_slice(&convert_answer(from, to, &body, &context(to)).unwrap()).unwrap();
    let stream = convert(from, to, &stream_of(from, &body).unwrap());
    let folded = answer_of(to, &stream).unwrap_or_else(|error| panic!("{error} in {stream}"));
    assert_eq!(sorted(folded), sorted(whole), "{stream}");
}

/// Whatever the watcher takes for an error is told the client, even if the provider then ends its stream well.
#[test]
fn what_is_an_error_to_the_watcher_is_one_to_the_client() {
    for error in [
        r#"data: {"object":"error","message":"No.","type":"BadRequestError","code":400}"#,
        r#"data: {"error":{"message":"No.","type":"invalid_request_error"}}"#,
        r#"data: {"error":"No."}"#,
        r#"data: {"type":"error","code":"server_error","message":"No."}"#,
        r#"data: {"type":"error","error":{"type":"overloaded_error","message":"No."}}"#,
        r#"data: {"choices":[],"x_groq":{"error":"No."}}"#,
        "event: error\ndata: {\"type\":\"overloaded_error\",\"message\":\"No.\"}",
        "event: error\ndata: {\"error\":{\"message\":\"No.\"}}",
        "event: error\ndata: {\"code\":\"over_capacity\",\"message\":\"No.\"}",
        "event: error\ndata: No.",
        "event: error\ndata: [{\"error\":{\"message\":\"No.\"}}]",
        "event: error\ndata: ",
        "event: message\ndata: {\"error\":{\"message\":\"No.\"}}",
        r#"data: {"type":"ping","error":{"message":"No."}}"#,
        r#"data: {"choices":[],"error":{}}"#,
    ] {
        for from in ApiFormat::ALL.iter().copied() {
            let end = match from {
                ApiFormat::OpenAiChat => "data: [DONE]\n\n",
                ApiFormat::OpenAiResponses => {
                    "data: {\"type\":\"response.completed\",\"response\":{\"status\":\"completed\",\"output\":[]}}\n\n"
                }
                ApiFormat::Anthropic => "data: {\"type\":\"message_stop\"}\n\n",
            };
            let mut watcher = StreamWatcher::new(from, false);
            watcher.feed(format!("{error}\n\n").into());
            let failed = watcher.seen().failed;
            for to in ApiFormat::ALL.iter().copied().filter(|to| *to != from) {
                let stream = convert(from, to, &format!("{error}\n\n{end}"));
                assert_eq!(stream.contains("No."), failed, "{error}, {from} to {to}: {stream}");
            }
        }
    }
}

/// Without the fields that only one of the two forms has.
fn sorted(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let mut fields: Vec<_> = fields.into_iter().filter(|(_, value)| !value.is_null()).collect();
            fields.sort_by(|a, b| a.0.cmp(&b.0));
            Value::Object(fields.into_iter().map(|(key, value)| (key, sorted(value))).collect())
        }
        Value::Array(items) => items.into_iter().map(sorted).collect(),
        other => other,
    }
}

fn replayed(format: ApiFormat, answer: &ChatAnswer) {
    let body = encode_answer(format, answer);
    let whole: Value = serde_json::from_slice(&body).unwrap();
    let folded = answer_of(format, &stream_of(format, &body).unwrap()).unwrap();
    assert_eq!(sorted(folded), sorted(whole));
}

#[test]
fn the_first_choice_is_the_one_that_is_told() {
    let choice = |index: u64, text: &str, reason: &str| {
        let said = json!({"role": "assistant", "content": text});
        json!({"index": index, "message": said, "delta": said, "finish_reason": reason})
    };
    let body = json!({"choices": [choice(1, "b", "length"), choice(0, "a", "stop")]}).to_string();
    let whole = convert_answer(
        ApiFormat::OpenAiChat,
        ApiFormat::Anthropic,
        body.as_bytes(),
        &context(ApiFormat::Anthropic),
    );
    let whole: Value = serde_json::from_slice(&whole.unwrap()).unwrap();
    let stream = format!("data: {body}\n\ndata: [DONE]\n\n");
    let folded =
        answer_of(ApiFormat::Anthropic, &convert(ApiFormat::OpenAiChat, ApiFormat::Anthropic, &stream));
    for answer in [whole, folded.unwrap()] {
        assert_eq!(
            (&answer["content"][0]["text"], &answer["stop_reason"]),
            (&json!("a"), &json!("end_turn"))
        );
    }
}

/// Halves a text of the `delta`: the first half goes into the result, the second stays.
fn first_half(delta: &mut Value) -> Option<Value> {
    for place in ["/content", "/refusal", "/tool_calls/0/function/arguments", "/tool_calls/0/custom/input"] {
        let Some(Value::String(text)) = delta.pointer(place) else { continue };
        let middle = text.char_indices().nth(text.chars().count() / 2).map_or(0, |(at, _)| at);
        let (first, second) = (json!(text[..middle]), json!(text[middle..]));
        let mut other = delta.clone();
        *other.pointer_mut(place)? = first;
        *delta.pointer_mut(place)? = second;
        return Some(other);
    }
    None
}

/// The chat stream with its texts halved, and with one of `reasons` as the finish reason in every chunk, as some front
/// ends send them: the first chunk has the first reason, and so on, cyclically.
fn always_stopping(stream: &str, reasons: &[Option<&str>], done: bool) -> String {
    let mut reasons = reasons.iter().cycle();
    let mut written = String::new();
    for (_, data) in events(stream) {
        let Ok(mut chunk) = serde_json::from_str::<Value>(data) else {
            written.push_str(if done { "data: [DONE]\n\n" } else { "" });
            continue;
        };
        let half = chunk.pointer_mut("/choices/0/delta").filter(|delta| delta["role"].is_null());
        if let Some(first) = half.and_then(first_half) {
            let mut before = chunk.clone();
            before["choices"][0]["delta"] = first;
            before["choices"][0]["finish_reason"] = json!(reasons.next());
            written += &format!("data: {before}\n\n");
        }
        if let Some(choice) = chunk.pointer_mut("/choices/0") {
            choice["finish_reason"] = json!(reasons.next());
        }
        written += &format!("data: {chunk}\n\n");
    }
    written
}

/// As written by servers that cut texts between UTF-16 units.
#[test]
fn half_a_character_breaks_no_answer() {
    let call = ToolCall {
        id: "call_1".into(),
        name: "f".into(),
        arguments: json!({"x": "HALF."}).to_string(),
        kind: ToolKind::Function,
    };
    let parts = vec![Part::Text("HALF!".into()), Part::ToolCall(call)];
    let answer = ChatAnswer { id: "1".into(), parts, stop: StopReason::ToolUse, usage: Usage::default() };
    for from in ApiFormat::ALL.iter().copied() {
        let body = String::from_utf8(encode_answer(from, &answer)).unwrap();
        let stream = stream_of(from, body.as_bytes()).unwrap();
        let [body, stream] = [body, stream].map(|text| text.replace("HALF", "\\ud83d"));
        for to in ApiFormat::ALL.iter().copied().filter(|to| *to != from) {
            let whole = convert_answer(from, to, body.as_bytes(), &context(to)).unwrap();
            let whole: Value = serde_json::from_slice(&whole).unwrap();
            let folded = answer_of(to, &convert(from, to, &stream)).unwrap();
            assert_eq!(sorted(folded), sorted(whole.clone()));
            let whole = whole.to_string();
            assert!(whole.contains("\u{fffd}!") && whole.contains("\u{fffd}."), "{whole}");
        }
        assert!(answer_of(from, &stream).unwrap().to_string().contains("\u{fffd}!"));
    }
}

/// For a stream without the usage, which is known from elsewhere.
#[test]
fn an_answer_gets_its_usage_back() {
    let told = json!({
        "prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8,
        "prompt_tokens_details": {"cached_tokens": 2}, "completion_tokens_details": {"reasoning_tokens": 1},
    });
    let choice =
        json!({"index": 0, "message": {"role": "assistant", "content": "a"}, "finish_reason": "stop"});
    let whole = json!({"id": "x", "object": "chat.completion", "choices": [choice], "usage": told});
    let mut stream = BytesMut::new();
    answer_to_stream(ApiFormat::OpenAiChat, whole.to_string().as_bytes(), false, &mut stream).unwrap();
    let folded = answer_of(ApiFormat::OpenAiChat, std::str::from_utf8(&stream).unwrap()).unwrap();
    let folded = folded.to_string();
    let added = |usage: &Usage, answer: &str| -> Value {
        let answer = add_usage(ApiFormat::OpenAiChat, answer.as_bytes(), usage).unwrap();
        serde_json::from_slice(&answer).unwrap()
    };
    let usage = openai_chat::usage::decode(&told);
    assert_eq!(sorted(added(&usage, &folded)), sorted(whole.clone()));
    assert!(added(&Usage::default(), &folded)["usage"].is_null(), "unknown is not 0");
    let other = Usage { prompt: Some(900), ..usage };
    assert_eq!(added(&other, &whole.to_string())["usage"], told, "what the answer tells stays");
}

proptest! {
    #[test]
    fn a_kept_answer_comes_back_from_its_own_stream(
        chat in answer(ApiFormat::OpenAiChat),
        responses in answer(ApiFormat::OpenAiResponses),
        anthropic in answer(ApiFormat::Anthropic),
    ) {
        replayed(ApiFormat::OpenAiChat, &chat);
        replayed(ApiFormat::OpenAiResponses, &responses);
        replayed(ApiFormat::Anthropic, &anthropic);
    }

    #[test]
    fn chat_streams_say_what_answers_say(answer in answer(ApiFormat::OpenAiChat)) {
        for to in [ApiFormat::OpenAiResponses, ApiFormat::Anthropic] {
            same_streamed_or_not(ApiFormat::OpenAiChat, to, &answer);
        }
    }

    #[test]
    fn a_reason_to_stop_ends_no_chat_stream(
        answer in answer(ApiFormat::OpenAiChat),
        first in prop::sample::select(&["stop", "length", "tool_calls", "content_filter", "odd"][..]),
        others in vec(prop::sample::select(&[None, Some(""), Some("stop"), Some("tool_calls")][..]), 0..4),
        done: bool,
    ) {
        let reasons = [&[Some(first)], &others[..]].concat();
        let body = encode_answer(ApiFormat::OpenAiChat, &answer);
        let stream = stream_of(ApiFormat::OpenAiChat, &body).unwrap();
        let stream = always_stopping(&stream, &reasons, done);
        let mut told = answer_of(ApiFormat::OpenAiChat, &stream).unwrap();
        for to in [ApiFormat::OpenAiResponses, ApiFormat::Anthropic] {
            let whole = convert_answer(ApiFormat::OpenAiChat, to, told.to_string().as_bytes(), &context(to));
            let whole: Value = serde_json::from_slice(&whole.unwrap()).unwrap();
            let folded = answer_of(to, &convert(ApiFormat::OpenAiChat, to, &stream)).unwrap();
            prop_assert_eq!(sorted(folded), sorted(whole), "{}", &stream);
        }
        // Apart from the reason, this is what the provider had sent.
        let mut said: Value = serde_json::from_slice(&body).unwrap();
        for answer in [&mut said, &mut told] {
            answer["choices"][0]["finish_reason"] = Value::Null;
        }
        prop_assert_eq!(sorted(told), sorted(said));
    }

    #[test]
    fn responses_streams_say_what_answers_say(answer in answer(ApiFormat::OpenAiResponses)) {
        for to in [ApiFormat::OpenAiChat, ApiFormat::Anthropic] {
            same_streamed_or_not(ApiFormat::OpenAiResponses, to, &answer);
        }
    }

    #[test]
    fn anthropic_streams_say_what_answers_say(answer in answer(ApiFormat::Anthropic)) {
        for to in [ApiFormat::OpenAiChat, ApiFormat::OpenAiResponses] {
            same_streamed_or_not(ApiFormat::Anthropic, to, &answer);
        }
    }
}

/// Some servers name an event's type only outside its data.
#[test]
fn events_may_be_typed_by_their_name_alone() {
    let answer = json!({"id": "1", "content": [{"type": "text", "text": "Hi"}], "stop_reason": "end_turn",
        "usage": {"input_tokens": 3, "output_tokens": 2}});
    for (format, body) in [
        (ApiFormat::Anthropic, answer.to_string()),
        (
            ApiFormat::OpenAiResponses,
            json!({"id": "resp_1", "status": "completed", "output": [{"type": "message", "role": "assistant",
                "content": [{"type": "output_text", "text": "Hi"}]}],
                "usage": {"input_tokens": 3, "output_tokens": 2}})
            .to_string(),
        ),
    ] {
        let typed = stream_of(format, body.as_bytes()).unwrap();
        let mut bare = String::new();
        for (name, data) in events(&typed) {
            let mut data: Value = serde_json::from_str(data).unwrap();
            data.as_object_mut().unwrap().remove("type");
            bare += &format!("event: {}\ndata: {data}\n\n", name.unwrap());
        }
        assert_eq!(
            sorted(answer_of(format, &bare).unwrap()),
            sorted(answer_of(format, &typed).unwrap()),
            "{format:?}"
        );
        let chat = convert(format, ApiFormat::OpenAiChat, &bare);
        assert_eq!(
            answer_of(ApiFormat::OpenAiChat, &chat).unwrap()["choices"][0]["message"]["content"],
            "Hi"
        );
        let mut watcher = StreamWatcher::new(format, false);
        watcher.feed(bare.into());
        let seen = watcher.seen();
        assert!(seen.terminal && seen.first_token && !seen.failed, "{seen:?}");
        assert_eq!((seen.usage.prompt, seen.usage.completion), (Some(3), Some(2)));
    }
}

/// Where Moonshot writes it.
#[test]
fn a_usage_within_a_choice_is_read() {
    let path =
        concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/streams/openai-chat/usage-under-choice.sse");
    let stream = std::fs::read_to_string(path).unwrap();
    let whole = answer_of(ApiFormat::OpenAiChat, &stream).unwrap();
    assert_eq!(whole["usage"]["total_tokens"], 32, "{whole}");
    let converted =
        answer_of(ApiFormat::Anthropic, &convert(ApiFormat::OpenAiChat, ApiFormat::Anthropic, &stream));
    let usage = &converted.unwrap()["usage"];
    assert_eq!((&usage["input_tokens"], &usage["output_tokens"]), (&19.into(), &13.into()));
}

/// Anthropic's compaction came after this was written; what comes next is kept in the same way.
#[test]
fn unknown_deltas_are_kept() {
    let event = |data: Value| format!("event: {}\ndata: {data}\n\n", data["type"].as_str().unwrap());
    let delta = |delta: Value| event(json!({"type": "content_block_delta", "index": 0, "delta": delta}));
    let stream = [
        event(json!({"type": "message_start", "message": {"id": "1", "type": "message", "content": []}})),
        event(json!({
            "type": "content_block_start", "index": 0, "content_block": {"type": "compaction", "content": null},
        })),
        delta(json!({"type": "compaction_delta", "content": "In "})),
        delta(json!({"type": "compaction_delta", "content": "short", "further": [1]})),
        event(json!({"type": "content_block_stop", "index": 0})),
        event(json!({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {}})),
        event(json!({"type": "message_stop"})),
    ];
    let whole = answer_of(ApiFormat::Anthropic, &stream.concat()).unwrap();
    assert_eq!(whole["content"], json!([{"type": "compaction", "content": "In short", "further": [1]}]));
}

/// Folding a chat stream tells calls apart as converting it does.
#[test]
fn calls_that_are_all_numbered_0_stay_apart() {
    let piece = |call: Value| json!({"choices": [{"index": 0, "delta": {"tool_calls": [call]}}]});
    let call = |id: &str, name: &str, arguments: &str| {
        let function = json!({"name": name, "arguments": arguments});
        piece(json!({"index": 0, "id": id, "type": "function", "function": function}))
    };
    let custom = |id: &str, name: &str, input: &str| {
        let custom = json!({"name": name, "input": input});
        piece(json!({"index": 0, "id": id, "type": "custom", "custom": custom}))
    };
    let rest = r#"{"x":1}"#;
    for pieces in [
        vec![call("a", "f", "{}"), call("b", "g", rest)],
        vec![call("a", "f", ""), call("", "", "{}"), call("b", "g", r#"{"x""#), call("", "", ":1}")],
        // An id of its own for each piece, as the piece has no name.
        vec![call("a", "f", "{"), call("c", "", "}"), call("b", "g", rest)],
        vec![call("", "f", "{}"), call("", "g", rest)],
        vec![call("", "f", "{"), call("", "f", "}"), call("", "g", rest)],
        vec![custom("a", "f", "{}"), custom("b", "g", rest)],
    ] {
        let pieces: Vec<String> = pieces.iter().map(|piece| format!("data: {piece}\n\n")).collect();
        let stream = pieces.concat() + "data: [DONE]\n\n";
        let folded = answer_of(ApiFormat::OpenAiChat, &stream).unwrap();
        let calls = folded["choices"][0]["message"]["tool_calls"].as_array().unwrap().iter();
        let told = calls.map(|call| {
            let arguments = call.pointer("/function/arguments").or(call.pointer("/custom/input"));
            arguments.and_then(Value::as_str).unwrap()
        });
        assert_eq!(told.collect::<Vec<_>>(), ["{}", rest], "{stream}");
    }
}
