//! Answers that are not streamed.

use serde_json::{Value, json};

use super::usage;
use crate::domain::chat::{ChatAnswer, Part, Reasoning, Seal, StopReason, ToolCall, ToolKind};
use crate::domain::usage::Usage;
use crate::wire::convert::AnswerContext;
use crate::wire::convert::error::ConvertError;
use crate::wire::convert::fields::{Object, take_object, take_objects, take_string};
use crate::wire::convert::names::Renamed;
use crate::wire::convert::surrogates::read_lossy;
use crate::wire::convert::{ids, seal};

/// Reads a provider's answer. One with the status `failed` is an error with the provider's message.
pub(crate) fn decode(body: &[u8]) -> Result<ChatAnswer, ConvertError> {
    let mut answer: Object = read_lossy(body)
        .map_err(|error| ConvertError::new(format!("The answer is not a JSON object: {error}")))?;
    if let Some(mut error) = take_object(&mut answer, "error") {
        let message = take_string(&mut error, "message").unwrap_or_else(|| "The response failed".into());
        return Err(ConvertError::new(message));
    }
    if !answer.get("output").is_some_and(Value::is_array) {
        return Err(ConvertError::new("The answer has no `output`"));
    }
    let parts: Vec<Part> = take_objects(&mut answer, "output").flat_map(item).collect();
    let has_calls = parts.iter().any(|part| matches!(part, Part::ToolCall(_)));
    let has_refusal = parts.iter().any(|part| matches!(part, Part::Refusal(_)));
    Ok(ChatAnswer {
        stop: stop_reason(&answer, has_calls, has_refusal),
        usage: answer.get("usage").map(usage::decode).unwrap_or_default(),
        id: take_string(&mut answer, "id").unwrap_or_default(),
        parts,
    })
}

/// The stop reason from a response's `status` and `incomplete_details`, given what was generated.
pub(super) fn stop_reason(answer: &Object, has_calls: bool, has_refusal: bool) -> StopReason {
    let reason = answer.get("incomplete_details").and_then(|details| details["reason"].as_str());
    match (answer.get("status").and_then(Value::as_str), reason) {
        (Some("incomplete"), Some("content_filter")) => StopReason::ContentFilter,
        (Some("incomplete"), None | Some("max_output_tokens")) => StopReason::Length,
        (Some("incomplete"), Some(other)) => StopReason::Other(other.to_owned()),
        (Some("cancelled"), _) => StopReason::Other("cancelled".into()),
        _ => StopReason::of_stop(has_calls, has_refusal),
    }
}

/// The parts of an item; none for the work of OpenAI's own servers.
fn item(mut item: Object) -> Vec<Part> {
    match take_string(&mut item, "type").as_deref() {
        Some("message") => take_objects(&mut item, "content").filter_map(content).collect(),
        Some("function_call") => call(item, "arguments", ToolKind::Function).into_iter().collect(),
        Some("custom_tool_call") => call(item, "input", ToolKind::Custom).into_iter().collect(),
        Some("reasoning") => {
            let text = reasoning_text(&item);
            let id = take_string(&mut item, "id").unwrap_or_default();
            let seal = sealed(id, take_string(&mut item, "encrypted_content"));
            vec![Part::Reasoning(Reasoning { text, seal })]
        }
        _ => Vec::new(),
    }
}

/// The seal of a provider's reasoning item: always the provider's own, even if it looks like a carried one.
pub(super) fn sealed(id: String, encrypted: Option<String>) -> Option<Seal> {
    let encrypted = encrypted.filter(|text| !text.is_empty());
    (encrypted.is_some() || !id.is_empty()).then_some(Seal::OpenAi { id, encrypted })
}

/// The summaries, or the reasoning itself where a provider shows it.
fn reasoning_text(item: &Object) -> String {
    let texts = |key: &str| {
        let items = item.get(key).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        items.iter().filter_map(|item| item["text"].as_str()).collect::<Vec<_>>().join("\n\n")
    };
    let summary = texts("summary");
    if summary.is_empty() { texts("content") } else { summary }
}

fn content(mut part: Object) -> Option<Part> {
    match take_string(&mut part, "type")?.as_str() {
        "output_text" => take_string(&mut part, "text").filter(|text| !text.is_empty()).map(Part::Text),
        "refusal" => take_string(&mut part, "refusal").map(Part::Refusal),
        _ => None,
    }
}

fn call(mut item: Object, input: &str, kind: ToolKind) -> Option<Part> {
    Some(Part::ToolCall(ToolCall {
        id: take_string(&mut item, "call_id")?,
        name: take_string(&mut item, "name")?,
        arguments: take_string(&mut item, input).unwrap_or_default(),
        kind,
    }))
}

/// Writes an answer for a client.
pub(crate) fn encode(answer: &ChatAnswer, context: &AnswerContext) -> Result<Vec<u8>, ConvertError> {
    let ending = Ending::of(&answer.stop);
    let mut output = Vec::new();
    let is_said = |part: &Part| matches!(part, Part::Text(_) | Part::Refusal(_));
    for group in answer.parts.chunk_by(|a, b| is_said(a) && is_said(b)) {
        let index = output.len();
        output.extend(match group {
            [Part::Reasoning(reasoning)] => reasoning_item(reasoning, index, context),
            [Part::ToolCall(call)] => Some(call_item(call, index, context)),
            said if is_said(&said[0]) => {
                let content = said.iter().filter_map(content_part).collect();
                Some(message_item(content, "completed", index, context))
            }
            _ => None,
        });
    }
    if ending.status == "incomplete"
        && let Some(last) = output.last_mut().filter(|item| item["type"] == "message")
    {
        last["status"] = "incomplete".into();
    }
    let id = ids::answer("resp_", &answer.id, context);
    let response = response(&id, &ending, output, &answer.usage, context);
    serde_json::to_vec(&response).map_err(|error| ConvertError::new(error.to_string()))
}

/// The state of a response.
pub(super) struct Ending {
    pub(super) status: &'static str,
    /// Why it is incomplete.
    pub(super) reason: Option<&'static str>,
    /// Why it failed.
    pub(super) error: Option<Value>,
}

impl Ending {
    pub(super) const IN_PROGRESS: Self = Self { status: "in_progress", reason: None, error: None };

    pub(super) fn of(stop: &StopReason) -> Self {
        let reason = match stop {
            StopReason::Length | StopReason::ContextWindow => Some("max_output_tokens"),
            StopReason::ContentFilter => Some("content_filter"),
            _ => None,
        };
        let status = if reason.is_some() { "incomplete" } else { "completed" };
        Self { status, reason, error: None }
    }
}

/// Fields of the request that a response repeats, with their defaults.
fn echoed() -> [(&'static str, Value); 14] {
    [
        ("instructions", Value::Null),
        ("max_output_tokens", Value::Null),
        ("metadata", json!({})),
        ("parallel_tool_calls", true.into()),
        ("previous_response_id", Value::Null),
        ("reasoning", json!({"effort": null, "summary": null})),
        ("safety_identifier", Value::Null),
        ("temperature", Value::Null),
        ("text", json!({"format": {"type": "text"}})),
        ("tool_choice", "auto".into()),
        ("tools", json!([])),
        ("top_p", Value::Null),
        ("truncation", "disabled".into()),
        ("user", Value::Null),
    ]
}

/// The response object, as answers hold it and events repeat it.
pub(super) fn response(
    id: &str,
    ending: &Ending,
    output: Vec<Value>,
    usage: &Usage,
    context: &AnswerContext,
) -> Value {
    let mut response = json!({
        "id": id,
        "object": "response",
        "created_at": context.created,
        "status": ending.status,
        "background": false,
        "error": ending.error,
        "incomplete_details": ending.reason.map(|reason| json!({"reason": reason})),
        "model": context.model,
        "output": output,
        // The gateway stores no responses for later reference.
        "store": false,
        "usage": usage::encode(usage),
    });
    for (key, default) in echoed() {
        let said = context.request.get(key).filter(|value| !value.is_null());
        response[key] = said.cloned().unwrap_or(default);
    }
    response
}

/// A message item.
pub(super) fn message_item(
    content: Vec<Value>,
    status: &str,
    index: usize,
    context: &AnswerContext,
) -> Value {
    json!({
        "id": ids::item("msg_", index, context), "type": "message", "status": status, "role": "assistant",
        "content": content,
    })
}

/// Part of a message item: a text or a refusal.
fn content_part(part: &Part) -> Option<Value> {
    match part {
        Part::Text(text) => Some(text_part(text)),
        Part::Refusal(text) => Some(refusal_part(text)),
        _ => None,
    }
}

pub(super) fn text_part(text: &str) -> Value {
    json!({"type": "output_text", "annotations": [], "logprobs": [], "text": text})
}

pub(super) fn refusal_part(text: &str) -> Value {
    json!({"type": "refusal", "refusal": text})
}

/// A reasoning item; `None` if there is nothing to read and nothing to send back.
pub(super) fn reasoning_item(reasoning: &Reasoning, index: usize, context: &AnswerContext) -> Option<Value> {
    if reasoning.text.is_empty() && reasoning.seal.is_none() {
        return None;
    }
    let (id, encrypted) = reasoning.seal.as_ref().map(seal::to_item).unwrap_or_default();
    let id = id.map_or_else(|| ids::item(seal::OWN_ID, index, context), str::to_owned);
    Some(super::request::reasoning_item(&id, &reasoning.text, encrypted.as_deref()))
}

/// A call item.
pub(super) fn call_item(call: &ToolCall, index: usize, context: &AnswerContext) -> Value {
    let (prefix, kind, input) = match call.kind {
        ToolKind::Function => ("fc_", "function_call", "arguments"),
        ToolKind::Custom => ("ctc_", "custom_tool_call", "input"),
    };
    let text = match call.kind {
        ToolKind::Function if call.arguments.is_empty() => "{}",
        _ => &call.arguments,
    };
    let mut item = json!({
        "id": ids::item(prefix, index, context), "type": kind, "status": "completed", input: text,
        "call_id": call.id, "name": call.name,
    });
    if let Some(Renamed { name, namespace: Some(namespace), .. }) = context.renamed(&call.name) {
        item["name"] = name.as_str().into();
        item["namespace"] = namespace.as_str().into();
    }
    item
}
