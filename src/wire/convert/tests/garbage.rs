//! No input makes a reader panic.

use bytes::BytesMut;
use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::Value;

use super::strategy::{answer, model_for, request};
use super::{
    context, decode_answer, decode_request, encode_answer, encode_request, events, options, stream_of,
};
use crate::domain::label::ApiFormat;
use crate::wire::convert::{
    RequestOptions, StreamConverter, answer_to_stream, convert_answer, convert_error, convert_request,
    stream_to_answer,
};
use crate::wire::error::ApiError;

/// Field names and words of all the formats.
const WORDS: &[&str] = &[
    "role",
    "content",
    "type",
    "text",
    "messages",
    "input",
    "output",
    "message",
    "user",
    "assistant",
    "system",
    "tool",
    "tool_calls",
    "function",
    "arguments",
    "name",
    "id",
    "choices",
    "delta",
    "index",
    "finish_reason",
    "usage",
    "stop",
    "image_url",
    "url",
    "source",
    "base64",
    "data",
    "media_type",
    "tool_use",
    "tool_result",
    "tool_use_id",
    "thinking",
    "signature",
    "summary",
    "encrypted_content",
    "reasoning",
    "reasoning_details",
    "function_call",
    "call_id",
    "content_block",
    "content_block_start",
    "content_block_delta",
    "content_block_stop",
    "message_start",
    "message_delta",
    "message_stop",
    "stop_reason",
    "refusal",
    "stop_details",
    "explanation",
    "response",
    "response.created",
    "response.output_item.added",
    "response.output_item.done",
    "response.output_text.delta",
    "response.output_text.done",
    "response.function_call_arguments.delta",
    "response.reasoning_summary_text.delta",
    "response.completed",
    "response.failed",
    "error",
    "item",
    "output_index",
    "content_index",
    "summary_index",
    "part",
    "output_text",
    "annotations",
    "logprobs",
    "citations",
    "custom",
    "custom_tool_call",
    "partial_json",
    "input_json_delta",
    "text_delta",
    "thinking_delta",
    "signature_delta",
    "citations_delta",
    "status",
    "completed",
    "tools",
    "tool_choice",
    "parameters",
    "input_schema",
    "format",
    "schema",
    "json_schema",
    "response_format",
    "reasoning_content",
    "instructions",
    "object",
    "created",
    "model",
    "stream",
    "grammar",
];

/// JSON made of the formats' own words, in any combination.
fn plausible() -> impl Strategy<Value = Value> {
    let word = || prop::sample::select(WORDS);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-2_i64..5).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        word().prop_map(Value::from),
        Just(Value::from("data:image/png;base64,")),
        Just(Value::from("")),
    ];
    leaf.prop_recursive(6, 48, 6, move |inner| {
        prop_oneof![
            1 => vec(inner.clone(), 0..4).prop_map(Value::from),
            3 => vec((word(), inner), 0..6).prop_map(|fields| {
                Value::Object(fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
            }),
        ]
    })
}

/// Replaces the value at `path` in `json` by `other`.
fn damaged(mut json: Value, path: &[usize], other: Value) -> Value {
    damage(&mut json, path, other);
    json
}

fn damage(here: &mut Value, path: &[usize], other: Value) {
    let Some((step, rest)) = path.split_first() else {
        *here = other;
        return;
    };
    let count = match here {
        Value::Object(fields) => fields.len(),
        Value::Array(items) => items.len(),
        _ => 0,
    };
    if count == 0 {
        *here = other;
        return;
    }
    let child = match here {
        Value::Object(fields) => fields.values_mut().nth(step % count),
        Value::Array(items) => items.get_mut(step % count),
        _ => None,
    };
    damage(child.unwrap(), rest, other);
}

/// Feeds `body` to every reader.
fn read_everything(body: &[u8]) {
    let options = RequestOptions { stream: true, ask_usage: true, ..options("claude-opus-4-8") };
    for from in ApiFormat::ALL.iter().copied() {
        for to in ApiFormat::ALL.iter().copied() {
            let _ = convert_request(from, to, body, &options);
            let _ = convert_answer(from, to, body, &context(to));
            let _ = convert_error(to.into(), 500, body);
        }
        let mut out = BytesMut::new();
        if answer_to_stream(from, body, true, &mut out).is_err() {
            assert!(out.is_empty());
        }
        let _ = crate::wire::convert::AnswerContext::new(from, body, "m", "i", 0);
    }
}

fn feed_everything(datas: &[String]) {
    for from in ApiFormat::ALL.iter().copied() {
        let _ = stream_to_answer(from, datas.iter().map(|data| (None, data.as_str())));
        for to in ApiFormat::ALL.iter().copied() {
            let mut converter = StreamConverter::new(from, to, context(to));
            let mut out = BytesMut::new();
            for data in datas {
                converter.feed(None, data, &mut out);
            }
            converter.finish(&mut out);
            assert!(converter.is_done());
            let ended = out.len();
            converter.feed(None, "{}", &mut out);
            converter.fail(&ApiError::new(502, "late"), &mut out);
            assert_eq!(out.len(), ended, "nothing comes after the end");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes(body in vec(any::<u8>(), 0..200)) {
        read_everything(&body);
    }

    #[test]
    fn plausible_bodies(body in plausible()) {
        read_everything(body.to_string().as_bytes());
    }

    #[test]
    fn plausible_streams(datas in vec(plausible(), 0..12), garbage in "\\PC{0,20}") {
        let mut datas: Vec<String> = datas.iter().map(Value::to_string).collect();
        feed_everything(&datas);
        datas.push(garbage);
        feed_everything(&datas);
    }

    #[test]
    fn damaged_requests(
        request in prop::sample::select(ApiFormat::ALL).prop_flat_map(|format| request(format).prop_map(move |r| (format, r))),
        path in vec(any::<usize>(), 1..8),
        other in plausible(),
    ) {
        let (format, request) = request;
        let (body, _) = encode_request(format, &request, model_for(format)).unwrap();
        let body = damaged(serde_json::from_slice(&body).unwrap(), &path, other).to_string();
        let _ = decode_request(format, body.as_bytes());
        read_everything(body.as_bytes());
    }

    #[test]
    fn damaged_answers_and_streams(
        answer in prop::sample::select(ApiFormat::ALL).prop_flat_map(|format| answer(format).prop_map(move |a| (format, a))),
        path in vec(any::<usize>(), 1..8),
        which in any::<prop::sample::Index>(),
        other in plausible(),
    ) {
        let (format, answer) = answer;
        let body = encode_answer(format, &answer);
        let stream = stream_of(format, &body).unwrap();
        let mut datas: Vec<String> = events(&stream).into_iter().map(|(_, data)| data.to_owned()).collect();
        let position = which.index(datas.len());
        if let Ok(event) = serde_json::from_str::<Value>(&datas[position]) {
            datas[position] = damaged(event, &path, other.clone()).to_string();
        }
        feed_everything(&datas);
        let body = damaged(serde_json::from_slice(&body).unwrap(), &path, other).to_string();
        let _ = decode_answer(format, body.as_bytes());
        read_everything(body.as_bytes());
    }
}
