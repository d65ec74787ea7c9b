//! Answers that are not streamed.

use serde_json::{Value, json};

use super::{reasoning, request, usage};
use crate::domain::chat::{ChatAnswer, Part, ProviderError, Reasoning, StopReason, ToolCall, ToolKind};
use crate::wire::convert::AnswerContext;
use crate::wire::convert::error::ConvertError;
use crate::wire::convert::fields::{Object, take_array, take_object, take_objects, take_string};
use crate::wire::convert::surrogates::read_lossy;
use crate::wire::convert::{failure, ids, signed};

/// Reads a provider's answer.
pub(crate) fn decode(body: &[u8]) -> Result<ChatAnswer, ConvertError> {
    let mut answer: Object = read_lossy(body)
        .map_err(|error| ConvertError::new(format!("The answer is not a JSON object: {error}")))?;
    let usage = answer.get("usage").map(usage::decode).unwrap_or_default();
    let id = take_string(&mut answer, "id").unwrap_or_default();
    let mut choice = first_choice(take_objects(&mut answer, "choices"))
        .ok_or_else(|| ConvertError::new("The answer has no `choices`"))?;
    let mut message = take_object(&mut choice, "message").unwrap_or_default();
    let parts = parts(&mut message);
    let has_calls = parts.iter().any(|part| matches!(part, Part::ToolCall(_)));
    let has_refusal = parts.iter().any(|part| matches!(part, Part::Refusal(_)));
    let reason = take_string(&mut choice, "finish_reason").filter(|reason| !reason.is_empty());
    let stop = stop_reason(reason.as_deref(), has_calls, has_refusal);
    Ok(ChatAnswer { id, parts, stop, usage })
}

/// The error in an answer or a chunk, if any: its own, or the error of an unfinished choice.
pub(crate) fn error(answer: &Object) -> Option<ProviderError> {
    // Groq has a place of its own for the errors of its streams.
    let of_groq = answer.get("x_groq").and_then(|groq| groq.get("error"));
    let mut reported = [answer.get("error"), of_groq].into_iter().flatten();
    if let Some(error) = reported.find(|error| failure::says_something(error)) {
        return Some(failure::decode(error, None));
    }
    if failure::is_named_error(answer) {
        return Some(failure::decode(&Value::Object(answer.clone()), None));
    }
    let failed =
        |choice: &&Value| choice["finish_reason"] == "error" || failure::says_something(&choice["error"]);
    let choice = answer.get("choices")?.as_array()?.iter().find(failed)?;
    Some(failure::decode(&choice["error"], None))
}

/// The choice that a client gets: the one with the lowest number, wherever it stands.
fn first_choice(choices: impl Iterator<Item = Object>) -> Option<Object> {
    choices.min_by_key(|choice| choice.get("index").and_then(Value::as_u64).unwrap_or(0))
}

fn parts(message: &mut Object) -> Vec<Part> {
    let mut parts = Vec::new();
    let thought = ["reasoning_content", "reasoning"].into_iter().find_map(|key| take_string(message, key));
    if let Some(text) = thought.filter(|text| !text.is_empty()) {
        parts.push(Part::Reasoning(Reasoning { text, seal: None }));
    }
    match message.get_mut("content").map(Value::take) {
        Some(Value::String(text)) if !text.is_empty() => parts.push(Part::Text(text)),
        Some(Value::Array(chunks)) => parts.extend(chunks.into_iter().filter_map(chunk)),
        _ => {}
    }
    if let Some(text) = take_string(message, "refusal").filter(|text| !text.is_empty()) {
        parts.push(Part::Refusal(text));
    }
    for call in take_objects(message, "tool_calls") {
        parts.extend(tool_call(call).map(Part::ToolCall));
    }
    parts
}

/// Content in parts, as Mistral sends it: text and thoughts.
fn chunk(chunk: Value) -> Option<Part> {
    let Value::Object(mut chunk) = chunk else { return None };
    match take_string(&mut chunk, "type")?.as_str() {
        "text" => take_string(&mut chunk, "text").map(Part::Text),
        "thinking" => {
            let pieces = take_array(&mut chunk, "thinking");
            let text: String = pieces.iter().filter_map(|piece| piece["text"].as_str()).collect();
            Some(Part::Reasoning(Reasoning { text, seal: None }))
        }
        _ => None,
    }
}

fn tool_call(mut call: Object) -> Option<ToolCall> {
    let id = take_string(&mut call, "id").unwrap_or_default();
    let id = signed::sign(&id, signed::signature(&call));
    let (mut inner, input, kind) = match take_object(&mut call, "custom") {
        Some(custom) => (custom, "input", ToolKind::Custom),
        None => (take_object(&mut call, "function")?, "arguments", ToolKind::Function),
    };
    let name = take_string(&mut inner, "name")?;
    let arguments = match inner.get_mut(input).map(Value::take) {
        Some(Value::String(text)) => text,
        Some(object @ Value::Object(_)) => object.to_string(),
        _ => String::new(),
    };
    Some(ToolCall { id, name, arguments, kind })
}

/// Reads `finish_reason`, given what was generated.
pub(crate) fn stop_reason(word: Option<&str>, has_calls: bool, has_refusal: bool) -> StopReason {
    match word {
        // Some providers say `stop` even when they call tools.
        None | Some("stop" | "eos" | "end_turn" | "tool_calls" | "tool_use" | "function_call") => {
            StopReason::of_stop(has_calls, has_refusal)
        }
        Some("length" | "max_tokens" | "model_length") => StopReason::Length,
        Some("content_filter") => StopReason::ContentFilter,
        Some(other) => StopReason::Other(other.to_owned()),
    }
}

/// `finish_reason`.
pub(crate) fn finish_reason(stop: &StopReason) -> &'static str {
    match stop {
        StopReason::EndTurn
        | StopReason::StopSequence(_)
        | StopReason::Refusal
        | StopReason::Pause
        | StopReason::Other(_) => "stop",
        StopReason::Length | StopReason::ContextWindow => "length",
        StopReason::ToolUse => "tool_calls",
        StopReason::ContentFilter => "content_filter",
    }
}

/// Writes an answer for a client.
pub(crate) fn encode(answer: &ChatAnswer, context: &AnswerContext) -> Result<Vec<u8>, ConvertError> {
    let (mut text, mut thought, mut refusal) = (String::new(), String::new(), String::new());
    let (mut details, mut calls) = (Vec::new(), Vec::new());
    for part in &answer.parts {
        match part {
            Part::Text(piece) => text.push_str(piece),
            Part::Refusal(piece) => refusal.push_str(piece),
            Part::Reasoning(piece) => {
                thought.push_str(&piece.text);
                details.extend(reasoning::details(&piece.text, piece.seal.as_ref(), details.len()));
            }
            Part::ToolCall(call) => calls.push(request::tool_call(call)),
            Part::Image(_)
            | Part::File(_)
            | Part::Audio { .. }
            | Part::ToolResult(_)
            | Part::CachePoint(_) => {}
        }
    }
    // `null` means that calls or a refusal replace the text; an empty answer is an empty text.
    let instead = !calls.is_empty() || !refusal.is_empty();
    let content = if text.is_empty() && instead { Value::Null } else { text.into() };
    let refusal = if refusal.is_empty() { Value::Null } else { refusal.into() };
    let mut message = json!({"role": "assistant", "content": content, "refusal": refusal});
    if !thought.is_empty() {
        message["reasoning_content"] = thought.into();
    }
    if !details.is_empty() {
        message["reasoning_details"] = details.into();
    }
    if !calls.is_empty() {
        message["tool_calls"] = calls.into();
    }
    let mut written = json!({
        "id": ids::answer("chatcmpl-", &answer.id, context),
        "object": "chat.completion",
        "created": context.created,
        "model": context.model,
        "choices": [{
            "index": 0, "message": message, "logprobs": null, "finish_reason": finish_reason(&answer.stop),
        }],
    });
    if answer.usage.is_known() {
        written["usage"] = usage::encode(&answer.usage);
    }
    serde_json::to_vec(&written).map_err(|error| ConvertError::new(error.to_string()))
}
