//! A whole answer as the chunks that would have brought it, and back. Unknown fields, several choices and log probabilities
//! are kept.

use bytes::BytesMut;
use serde::de::IgnoredAny;
use serde_json::{Value, json};

use crate::wire::convert::error::ConvertError;
use crate::wire::convert::fields::{Object, take_array, take_object, take_objects, take_string};
use crate::wire::convert::sse;
use crate::wire::convert::surrogates::read_lossy;
use crate::wire::openai_chat;

/// Appends the chunks of `answer`.
pub(crate) fn to_stream(mut answer: Object, usage: bool, out: &mut BytesMut) -> Result<(), ConvertError> {
    let choices = take_array(&mut answer, "choices");
    if choices.is_empty() {
        return Err(ConvertError::new("The answer has no `choices`"));
    }
    answer.shift_remove("choices");
    let reported = answer.shift_remove("usage").filter(Value::is_object);
    answer.insert("object".into(), "chat.completion.chunk".into());
    let chunk = |choices: Value, reported: Option<&Value>, out: &mut BytesMut| {
        let mut chunk = answer.clone();
        chunk.insert("choices".into(), choices);
        if usage {
            chunk.insert("usage".into(), reported.cloned().unwrap_or_default());
        }
        sse::event(None, &chunk, out);
    };
    for (position, choice) in choices.into_iter().enumerate() {
        let Value::Object(mut choice) = choice else { continue };
        let message = take_object(&mut choice, "message").unwrap_or_default();
        let index = choice.get("index").cloned().unwrap_or_else(|| position.into());
        let logprobs = choice.insert("logprobs".into(), Value::Null).unwrap_or_default();
        for delta in deltas(message) {
            let logprobs = if delta["content"].as_str().is_some_and(|text| !text.is_empty()) {
                &logprobs
            } else {
                &Value::Null
            };
            let choice = json!({"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": null});
            chunk(json!([choice]), None, out);
        }
        // The choice's other fields (content filter results) come with its end.
        choice.shift_remove("message");
        let mut last = json!({"index": index, "delta": {}});
        if let Value::Object(last) = &mut last {
            last.extend(choice);
        }
        chunk(json!([last]), None, out);
    }
    if let Some(reported) = reported.as_ref().filter(|_| usage) {
        chunk(json!([]), Some(reported), out);
    }
    sse::done(out);
    Ok(())
}

/// A message in pieces: the role first, then each field, the calls last.
fn deltas(mut message: Object) -> Vec<Value> {
    let role = take_string(&mut message, "role").unwrap_or_else(|| "assistant".into());
    let content = message.get("content").filter(|content| content.is_string()).map(|_| "");
    let mut deltas = vec![json!({"role": role, "content": content, "refusal": null})];
    let calls = take_objects(&mut message, "tool_calls");
    // Reasoning comes before text.
    for key in ["reasoning_content", "reasoning"] {
        deltas.extend(message.shift_remove(key).map(|value| json!({key: value})));
    }
    for (key, value) in message {
        let says_nothing = match &value {
            Value::Null => true,
            Value::String(text) => text.is_empty(),
            Value::Array(items) => items.is_empty(),
            _ => false,
        };
        if !says_nothing {
            deltas.push(json!({key: value}));
        }
    }
    for (index, mut call) in calls.enumerate() {
        call.shift_insert(0, "index".into(), index.into());
        let (kind, input) =
            if call.contains_key("custom") { ("custom", "input") } else { ("function", "arguments") };
        let text = call.get_mut(kind).and_then(|inner| inner.get_mut(input)).map(Value::take);
        if let Some(inner) = call.get_mut(kind).and_then(Value::as_object_mut) {
            inner.insert(input.into(), "".into());
        }
        deltas.push(json!({"tool_calls": [call]}));
        if let Some(text) = text {
            deltas.push(json!({"tool_calls": [{"index": index, kind: {input: text}}]}));
        }
    }
    deltas
        .retain(|delta| delta.as_object().is_some_and(|delta| delta.values().any(|value| !value.is_null())));
    deltas
}

/// Folds the `data:` of events into the answer.
pub(crate) fn to_answer<'a>(events: impl Iterator<Item = &'a str>) -> Result<Value, ConvertError> {
    let mut answer = Object::new();
    let mut choices: Vec<Object> = Vec::new();
    let mut done = false;
    for data in events {
        let data = data.trim_ascii();
        if data == "[DONE]" {
            done = true;
            break;
        }
        if data.is_empty() {
            continue;
        }
        let mut chunk: Object = read_lossy(data.as_bytes()).map_err(|error| {
            ConvertError::new(format!("The stream holds what is not a JSON object: {error}"))
        })?;
        if let Some(error) = openai_chat::answer::error(&chunk) {
            return Err(ConvertError::new(error.message));
        }
        // Moonshot's place for it.
        let mut chunk_usage = None;
        for mut choice in take_objects(&mut chunk, "choices") {
            if let Some(usage) = choice.shift_remove("usage").filter(Value::is_object) {
                chunk_usage = Some(usage);
            }
            add_choice(choice, &mut choices);
        }
        if let Some(usage) = chunk_usage.filter(|_| !chunk.get("usage").is_some_and(Value::is_object)) {
            chunk.insert("usage".into(), usage);
        }
        chunk.shift_remove("choices");
        chunk.shift_remove("obfuscation");
        for (key, value) in chunk {
            let known = answer.get(&key).is_some_and(|known| !is_blank(known));
            if !value.is_null() && (key == "usage" || !known) {
                answer.insert(key, value);
            }
        }
    }
    let finished = |choice: &Object| choice.get("finish_reason").is_some_and(Value::is_string);
    if choices.is_empty() || !(done || choices.iter().all(finished)) {
        return Err(ConvertError::new("The stream ended before the answer was complete"));
    }
    answer.insert("object".into(), "chat.completion".into());
    choices.sort_by_key(|choice| choice.get("index").and_then(Value::as_u64));
    answer.insert("choices".into(), choices.into_iter().map(finish_choice).collect());
    Ok(answer.into())
}

/// Zero, null or empty, as Azure sends before it knows the value.
fn is_blank(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Number(number) => number.as_u64() == Some(0),
        _ => false,
    }
}

fn add_choice(mut new: Object, choices: &mut Vec<Object>) {
    let index = new.get("index").and_then(Value::as_u64).unwrap_or(0);
    let position =
        choices.iter().position(|choice| choice.get("index").and_then(Value::as_u64) == Some(index));
    let position = position.unwrap_or_else(|| {
        let mut choice = Object::new();
        choice.insert("index".into(), index.into());
        choice.insert("message".into(), json!({}));
        choice.insert("logprobs".into(), Value::Null);
        choice.insert("finish_reason".into(), Value::Null);
        choices.push(choice);
        choices.len() - 1
    });
    let choice = &mut choices[position];
    let delta = take_object(&mut new, "delta").unwrap_or_default();
    if let Some(Value::Object(message)) = choice.get_mut("message") {
        merge(message, delta);
    }
    if let Some(logprobs) = take_object(&mut new, "logprobs") {
        let known = choice.entry("logprobs").or_insert(Value::Null);
        match known {
            Value::Object(known) => merge(known, logprobs),
            _ => *known = logprobs.into(),
        }
    }
    for (key, value) in new {
        // Some providers send an empty reason until there is one, or after it.
        let says_nothing = value.is_null() || (key == "finish_reason" && is_blank(&value));
        if !matches!(key.as_str(), "delta" | "logprobs" | "index") && !says_nothing {
            choice.insert(key, value);
        }
    }
}

/// Merges `delta` into `known`: texts are continued, except names, ids and the like; entries with an `index` go to
/// their own; other lists grow.
fn merge(known: &mut Object, delta: Object) {
    for (key, value) in delta {
        match (known.get_mut(&key), value) {
            (_, Value::Null) => drop(known.entry(key).or_insert(Value::Null)),
            (None | Some(Value::Null), Value::Array(items))
                if items.iter().any(|item| item["index"].is_u64()) =>
            {
                let mut list = Vec::new();
                merge_list(&mut list, items);
                known.insert(key, list.into());
            }
            (None | Some(Value::Null), value) => drop(known.insert(key, value)),
            (Some(Value::String(text)), Value::String(more)) => {
                let names = matches!(key.as_str(), "role" | "id" | "type" | "name" | "format");
                if !names || text.is_empty() {
                    text.push_str(&more);
                }
            }
            (Some(Value::Object(inner)), Value::Object(more)) => merge(inner, more),
            (Some(Value::Array(list)), Value::Array(more)) => merge_list(list, more),
            (Some(slot), value) => *slot = value,
        }
    }
}

fn merge_list(list: &mut Vec<Value>, more: Vec<Value>) {
    for item in more {
        let same = |known: &&mut Value| item["index"].is_u64() && known["index"] == item["index"];
        let last = list.iter_mut().rev().find(same).filter(|last| !begins_another(last, &item));
        match (last, item) {
            (Some(Value::Object(known)), Value::Object(item)) => merge(known, item),
            (_, item) => list.push(item),
        }
    }
}

/// Whether `item` is another call than `last`, which has the same number: some providers number all calls 0 and distinguish
/// them by id, or not at all. Complete arguments of a function cannot continue, so a name with more of them begins another
/// call.
fn begins_another(last: &Value, item: &Value) -> bool {
    fn text(value: &Value) -> &str {
        value.as_str().unwrap_or_default()
    }
    let is_named =
        |call: &Value| ["function", "custom"].iter().any(|kind| !text(&call[kind]["name"]).is_empty());
    if !is_named(item) || !is_named(last) {
        return false;
    }
    match [text(&last["id"]), text(&item["id"])] {
        ["", ""] => {
            let [known, more] = [last, item].map(|call| text(&call["function"]["arguments"]).trim_ascii());
            // Arguments are parsed only where they end as an object or a list does.
            known.ends_with(['}', ']'])
                && serde_json::from_str::<IgnoredAny>(known).is_ok()
                && !more.is_empty()
        }
        ["", _] | [_, ""] => false,
        [known, new] => known != new,
    }
}

/// A choice as a whole answer writes it.
fn finish_choice(mut choice: Object) -> Value {
    if let Some(Value::Object(message)) = choice.get_mut("message") {
        message.entry("role").or_insert_with(|| "assistant".into());
        // Streams begin with an empty text; whole answers say `null` where a call or a refusal replaces it.
        let has_calls =
            message.get("tool_calls").is_some_and(|calls| calls.as_array().is_some_and(|c| !c.is_empty()));
        let has_refusal =
            message.get("refusal").is_some_and(|text| text.as_str().is_some_and(|text| !text.is_empty()));
        let content = message.entry("content").or_insert(Value::Null);
        if (has_calls || has_refusal) && content == "" {
            *content = Value::Null;
        }
        if let Some(Value::Array(calls)) = message.get_mut("tool_calls") {
            for call in calls.iter_mut().filter_map(Value::as_object_mut) {
                call.shift_remove("index");
            }
        }
    }
    choice.into()
}
