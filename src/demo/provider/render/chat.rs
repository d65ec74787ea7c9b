//! OpenAI Chat Completions (platform.openai.com/docs/api-reference/chat).

use bytes::Bytes;
use serde_json::{Map, Value, json};

use crate::domain::label::FinishReason;
use crate::domain::usage::Usage;

use super::super::answer::{Answer, fragments};
use super::super::ask::Ask;
use super::{CREATED, DONE, Pieces, data_event, model};

const ID: &str = "chatcmpl-scripted";
/// Characters of a tool's arguments in one chunk.
const ARGUMENT_FRAGMENT: usize = 8;

pub(super) fn body(answer: &Answer, ask: &Ask) -> Pieces {
    let mut message = Map::new();
    message.insert("role".into(), "assistant".into());
    let text = answer.whole_text();
    message.insert("content".into(), if text.is_empty() { Value::Null } else { text.into() });
    message.insert("refusal".into(), answer.refusal.clone().into());
    if !answer.reasoning.is_empty() {
        message.insert("reasoning_content".into(), answer.whole_reasoning().into());
    }
    if !answer.tool_calls.is_empty() {
        let calls = answer.tool_calls.iter().map(|call| {
            json!({"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}})
        });
        message.insert("tool_calls".into(), calls.collect());
    }
    let mut body = json!({
        "id": ID, "object": "chat.completion", "created": CREATED, "model": model(answer, ask),
        "choices": [{"index": 0, "message": message, "logprobs": null, "finish_reason": finish(answer)}],
    });
    let reported = answer.completion_usage();
    if let Some(reported) = &reported {
        body["usage"] = usage(reported);
    }
    body["system_fingerprint"] = "fp_scripted".into();
    Pieces::json(Bytes::from(body.to_string()), reported.unwrap_or_default())
}

pub(super) fn stream(answer: &Answer, ask: &Ask) -> Pieces {
    let reported = answer.completion_usage().filter(|_| ask.include_usage);
    let chunk = |choices: Value, usage: Option<Value>| {
        let mut chunk = json!({
            "id": ID, "object": "chat.completion.chunk", "created": CREATED, "model": model(answer, ask),
            "system_fingerprint": "fp_scripted", "choices": choices,
        });
        // Every chunk has the field if it was requested; only the last one fills it.
        if ask.include_usage {
            chunk["usage"] = usage.into();
        }
        data_event(&chunk)
    };
    let delta = |delta: Value, finish: Option<&str>| {
        chunk(json!([{"index": 0, "delta": delta, "logprobs": null, "finish_reason": finish}]), None)
    };

    let mut events = vec![delta(json!({"role": "assistant", "content": "", "refusal": null}), None)];
    events.extend(answer.reasoning.iter().map(|piece| delta(json!({"reasoning_content": piece}), None)));
    events.extend(answer.text.iter().map(|piece| delta(json!({"content": piece}), None)));
    events.extend(answer.refusal.iter().map(|text| delta(json!({"refusal": text}), None)));
    for (index, call) in answer.tool_calls.iter().enumerate() {
        let head = json!({
            "index": index, "id": call.id, "type": "function", "function": {"name": call.name, "arguments": ""},
        });
        events.push(delta(json!({"tool_calls": [head]}), None));
        for piece in fragments(&call.arguments, ARGUMENT_FRAGMENT) {
            let part = json!({"index": index, "function": {"arguments": piece}});
            events.push(delta(json!({"tool_calls": [part]}), None));
        }
    }
    events.push(delta(json!({}), Some(finish(answer))));
    if let Some(reported) = &reported {
        events.push(chunk(json!([]), Some(usage(reported))));
    }
    events.push(DONE);
    Pieces::stream(events, 1, reported.unwrap_or_default())
}

fn finish(answer: &Answer) -> &'static str {
    match answer.finish_reason() {
        FinishReason::Stop | FinishReason::Other => "stop",
        FinishReason::Length => "length",
        FinishReason::ToolCalls => "tool_calls",
        FinishReason::ContentFilter => "content_filter",
    }
}

fn usage(usage: &Usage) -> Value {
    json!({
        "prompt_tokens": usage.prompt.unwrap_or(0),
        "completion_tokens": usage.completion.unwrap_or(0),
        "total_tokens": usage.total(),
        "prompt_tokens_details": {"cached_tokens": usage.cached.unwrap_or(0), "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": usage.reasoning.unwrap_or(0), "audio_tokens": 0,
            "accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0,
        },
    })
}
