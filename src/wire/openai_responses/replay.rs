//! A whole answer as the events that would have brought it, and back. Unknown fields and items are kept.

use bytes::BytesMut;
use serde_json::{Value, json};

use super::stream::send;
use crate::wire::convert::error::ConvertError;
use crate::wire::convert::failure;
use crate::wire::convert::fields::{Object, take_object, take_string};
use crate::wire::convert::surrogates::read_lossy;

/// Appends the events of `answer`.
pub(crate) fn to_stream(answer: Object, out: &mut BytesMut) -> Result<(), ConvertError> {
    let last = match answer.get("status").and_then(Value::as_str) {
        Some("completed") | None => "response.completed",
        Some("incomplete") => "response.incomplete",
        Some("failed") => "response.failed",
        Some(status) => return Err(ConvertError::new(format!("A response that is {status:?} is not whole"))),
    };
    let Some(items) = answer.get("output").and_then(Value::as_array).cloned() else {
        return Err(ConvertError::new("The answer has no `output`"));
    };
    let mut writer = Writer { sequence: 0, out };
    let mut young = answer.clone();
    young.insert("status".into(), "in_progress".into());
    young.insert("output".into(), json!([]));
    for key in ["usage", "error", "incomplete_details", "completed_at"] {
        if let Some(value) = young.get_mut(key) {
            *value = Value::Null;
        }
    }
    for kind in ["response.created", "response.in_progress"] {
        writer.send(kind, json!({"response": young}));
    }
    for (index, item) in items.into_iter().enumerate() {
        writer.item(index, item);
    }
    writer.send(last, json!({"response": answer}));
    Ok(())
}

/// Appends numbered events.
struct Writer<'a> {
    sequence: u64,
    out: &'a mut BytesMut,
}

impl Writer<'_> {
    fn send(&mut self, kind: &str, fields: Value) {
        let mut event = json!({"type": kind, "sequence_number": self.sequence});
        self.sequence += 1;
        if let (Value::Object(event), Value::Object(fields)) = (&mut event, fields) {
            event.extend(fields);
        }
        send(event, self.out);
    }

    fn item(&mut self, index: usize, item: Value) {
        let mut young = item.clone();
        for (field, empty) in [("content", json!([])), ("summary", json!([]))] {
            replace(&mut young, field, empty);
        }
        let text_field = match item["type"].as_str() {
            Some("function_call") => Some("arguments"),
            Some("custom_tool_call") => Some("input"),
            _ => None,
        };
        if let Some(field) = text_field {
            replace(&mut young, field, "".into());
        }
        replace(&mut young, "status", "in_progress".into());
        self.send("response.output_item.added", json!({"output_index": index, "item": young}));
        let place = json!({"item_id": item["id"], "output_index": index});
        for (part, summary) in list(&item, "summary").iter().enumerate() {
            self.summary(&place, part, summary);
        }
        for (part, content) in list(&item, "content").iter().enumerate() {
            self.content(&place, part, content);
        }
        match text_field {
            Some("arguments") => {
                self.at(
                    &place,
                    "response.function_call_arguments.delta",
                    json!({"delta": item["arguments"]}),
                );
                let done = json!({"arguments": item["arguments"], "name": item["name"]});
                self.at(&place, "response.function_call_arguments.done", done);
            }
            Some(_) => {
                self.at(&place, "response.custom_tool_call_input.delta", json!({"delta": item["input"]}));
                self.at(&place, "response.custom_tool_call_input.done", json!({"input": item["input"]}));
            }
            None => {}
        }
        self.send("response.output_item.done", json!({"output_index": index, "item": item}));
    }

    /// Appends an event about the item or part at `place`.
    fn at(&mut self, place: &Value, kind: &str, fields: Value) {
        let mut all = place.clone();
        if let (Value::Object(all), Value::Object(fields)) = (&mut all, fields) {
            all.extend(fields);
        }
        self.send(kind, all);
    }

    fn summary(&mut self, place: &Value, index: usize, part: &Value) {
        let mut place = place.clone();
        place["summary_index"] = index.into();
        let mut young = part.clone();
        replace(&mut young, "text", "".into());
        self.at(&place, "response.reasoning_summary_part.added", json!({"part": young}));
        self.at(&place, "response.reasoning_summary_text.delta", json!({"delta": part["text"]}));
        self.at(&place, "response.reasoning_summary_text.done", json!({"text": part["text"]}));
        self.at(&place, "response.reasoning_summary_part.done", json!({"part": part}));
    }

    fn content(&mut self, place: &Value, index: usize, part: &Value) {
        let mut place = place.clone();
        place["content_index"] = index.into();
        let mut young = part.clone();
        for (field, empty) in [
            ("text", Value::from("")),
            ("refusal", "".into()),
            ("annotations", json!([])),
            ("logprobs", json!([])),
        ] {
            replace(&mut young, field, empty);
        }
        self.at(&place, "response.content_part.added", json!({"part": young}));
        match part["type"].as_str() {
            Some("output_text") => {
                let logprobs = json!(list(part, "logprobs"));
                let delta = json!({"delta": part["text"], "logprobs": logprobs});
                self.at(&place, "response.output_text.delta", delta);
                for (index, annotation) in list(part, "annotations").iter().enumerate() {
                    let added = json!({"annotation_index": index, "annotation": annotation});
                    self.at(&place, "response.output_text.annotation.added", added);
                }
                let done = json!({"text": part["text"], "logprobs": logprobs});
                self.at(&place, "response.output_text.done", done);
            }
            Some("refusal") => {
                self.at(&place, "response.refusal.delta", json!({"delta": part["refusal"]}));
                self.at(&place, "response.refusal.done", json!({"refusal": part["refusal"]}));
            }
            Some("reasoning_text") => {
                self.at(&place, "response.reasoning_text.delta", json!({"delta": part["text"]}));
                self.at(&place, "response.reasoning_text.done", json!({"text": part["text"]}));
            }
            _ => {}
        }
        self.at(&place, "response.content_part.done", json!({"part": part}));
    }
}

/// Replaces the value of `field` by `value`, if there is such a field.
fn replace(object: &mut Value, field: &str, value: Value) {
    if let Some(slot) = object.get_mut(field) {
        *slot = value;
    }
}

fn list<'a>(value: &'a Value, field: &str) -> &'a [Value] {
    value[field].as_array().map(Vec::as_slice).unwrap_or_default()
}

/// Folds events, each with its name and its `data:`, into the answer: the last event holds it completely.
pub(crate) fn to_answer<'a>(
    events: impl Iterator<Item = (Option<&'a str>, &'a str)>,
) -> Result<Value, ConvertError> {
    let mut items: Vec<(u64, Value)> = Vec::new();
    for (name, data) in events {
        let data = data.trim_ascii();
        if data.is_empty() || data == "[DONE]" {
            continue;
        }
        let mut event: Object = read_lossy(data.as_bytes()).map_err(|error| {
            ConvertError::new(format!("The stream holds what is not a JSON object: {error}"))
        })?;
        match take_string(&mut event, "type").as_deref().or(name) {
            Some("response.output_item.done") => {
                let index = event.get("output_index").and_then(Value::as_u64).unwrap_or(0);
                items.push((index, event.get_mut("item").map(Value::take).unwrap_or_default()));
            }
            Some("response.completed" | "response.incomplete") => {
                let mut response = take_object(&mut event, "response")
                    .ok_or_else(|| ConvertError::new("The last event has no `response`"))?;
                // Some servers leave the output out of the last event.
                let output = response.get("output").and_then(Value::as_array);
                if output.is_none_or(Vec::is_empty) {
                    items.sort_by_key(|(index, _)| *index);
                    let items: Vec<Value> = items.into_iter().map(|(_, item)| item).collect();
                    response.insert("output".into(), items.into());
                }
                return Ok(response.into());
            }
            Some("response.failed") => {
                let error =
                    event.get("response").map(|response| response["error"].clone()).unwrap_or_default();
                return Err(ConvertError::new(failure::decode(&error, None).message));
            }
            Some("error") => {
                return Err(ConvertError::new(failure::decode(&Value::Object(event), None).message));
            }
            _ => {}
        }
    }
    Err(ConvertError::new("The stream ended before the answer was complete"))
}
