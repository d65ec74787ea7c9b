//! Answers that are not streamed.

use serde_json::{Value, json};

use super::{request, usage};
use crate::domain::chat::{ChatAnswer, Part, Reasoning, Seal, StopReason, ToolCall, ToolKind};
use crate::wire::convert::AnswerContext;
use crate::wire::convert::error::ConvertError;
use crate::wire::convert::fields::{Object, take_object, take_objects, take_string};
use crate::wire::convert::surrogates::read_lossy;
use crate::wire::convert::{ids, seal};

/// Reads a provider's answer.
pub(crate) fn decode(body: &[u8]) -> Result<ChatAnswer, ConvertError> {
    let mut answer: Object = read_lossy(body)
        .map_err(|error| ConvertError::new(format!("The answer is not a JSON object: {error}")))?;
    if !answer.get("content").is_some_and(Value::is_array) {
        return Err(ConvertError::new("The answer has no `content`"));
    }
    let usage = answer.get("usage").map(usage::decode).unwrap_or_default();
    let mut parts: Vec<Part> = take_objects(&mut answer, "content").filter_map(block).collect();
    let word = take_string(&mut answer, "stop_reason");
    let stop = stop_reason(word.as_deref(), take_string(&mut answer, "stop_sequence"));
    if stop == StopReason::ContentFilter {
        parts.extend(explanation(take_object(&mut answer, "stop_details")).map(Part::Refusal));
    }
    let id = take_string(&mut answer, "id").unwrap_or_default();
    Ok(ChatAnswer { id, parts, stop, usage })
}

/// A block in the domain's terms; `None` for the work of Anthropic's own servers.
fn block(mut block: Object) -> Option<Part> {
    match take_string(&mut block, "type")?.as_str() {
        "text" => take_string(&mut block, "text").filter(|text| !text.is_empty()).map(Part::Text),
        "thinking" => {
            let text = take_string(&mut block, "thinking").unwrap_or_default();
            let signature = take_string(&mut block, "signature").filter(|signature| !signature.is_empty());
            let seal = signature.map(|signature| Seal::Anthropic { signature });
            Some(Part::Reasoning(Reasoning { text, seal }))
        }
        "redacted_thinking" => {
            let seal = Some(Seal::AnthropicRedacted { data: take_string(&mut block, "data")? });
            Some(Part::Reasoning(Reasoning { text: String::new(), seal }))
        }
        "tool_use" => Some(Part::ToolCall(ToolCall {
            id: take_string(&mut block, "id")?,
            name: take_string(&mut block, "name")?,
            arguments: block.get("input").map_or_else(|| "{}".into(), Value::to_string),
            kind: ToolKind::Function,
        })),
        _ => None,
    }
}

/// Reads `stop_reason`.
pub(crate) fn stop_reason(word: Option<&str>, sequence: Option<String>) -> StopReason {
    match word {
        None | Some("end_turn") => StopReason::EndTurn,
        Some("stop_sequence") => StopReason::StopSequence(sequence),
        Some("max_tokens") => StopReason::Length,
        Some("model_context_window_exceeded") => StopReason::ContextWindow,
        Some("tool_use") => StopReason::ToolUse,
        // Given when a classifier intervened; the text until then stands.
        Some("refusal") => StopReason::ContentFilter,
        Some("pause_turn") => StopReason::Pause,
        Some(other) => StopReason::Other(other.to_owned()),
    }
}

/// Why a classifier intervened, if `stop_details` says so.
pub(crate) fn explanation(details: Option<Object>) -> Option<String> {
    take_string(&mut details?, "explanation").filter(|text| !text.is_empty())
}

/// `stop_reason`.
pub(crate) fn stop_word(stop: &StopReason) -> &'static str {
    match stop {
        StopReason::EndTurn | StopReason::Other(_) => "end_turn",
        StopReason::StopSequence(_) => "stop_sequence",
        StopReason::Length => "max_tokens",
        StopReason::ContextWindow => "model_context_window_exceeded",
        StopReason::ToolUse => "tool_use",
        StopReason::Refusal | StopReason::ContentFilter => "refusal",
        StopReason::Pause => "pause_turn",
    }
}

/// `stop_sequence`, `null` unless one was met.
pub(crate) fn stop_sequence(stop: &StopReason) -> Value {
    match stop {
        StopReason::StopSequence(Some(sequence)) => sequence.as_str().into(),
        _ => Value::Null,
    }
}

/// `stop_details` of a refusal, with its explanation; `null` otherwise.
pub(crate) fn stop_details(stop: &StopReason, refusal: &str) -> Value {
    match stop {
        StopReason::Refusal | StopReason::ContentFilter => {
            let explanation = if refusal.is_empty() { Value::Null } else { refusal.into() };
            json!({"type": "refusal", "category": null, "explanation": explanation})
        }
        _ => Value::Null,
    }
}

/// Writes an answer for a client.
pub(crate) fn encode(answer: &ChatAnswer, context: &AnswerContext) -> Result<Vec<u8>, ConvertError> {
    let mut refusal = String::new();
    let mut content = Vec::with_capacity(answer.parts.len());
    for part in &answer.parts {
        match part {
            Part::Text(text) => content.push(json!({"type": "text", "text": text})),
            Part::Refusal(text) => {
                refusal.push_str(text);
                content.push(json!({"type": "text", "text": text}));
            }
            Part::Reasoning(reasoning) => content.extend(thinking(reasoning)),
            Part::ToolCall(call) => content.push(json!({
                "type": "tool_use", "id": call.id, "name": call.name, "input": request::input(call),
            })),
            Part::Image(_)
            | Part::File(_)
            | Part::Audio { .. }
            | Part::ToolResult(_)
            | Part::CachePoint(_) => {}
        }
    }
    let mut written = json!({
        "id": ids::answer("msg_", &answer.id, context),
        "type": "message",
        "role": "assistant",
        "model": context.model,
        "content": content,
        "stop_reason": stop_word(&answer.stop),
        "stop_sequence": stop_sequence(&answer.stop),
        "usage": usage::encode(&answer.usage),
    });
    let details = stop_details(&answer.stop, &refusal);
    if !details.is_null() {
        written["stop_details"] = details;
    }
    serde_json::to_vec(&written).map_err(|error| ConvertError::new(error.to_string()))
}

/// A block for `reasoning`; `None` if there is nothing to read and nothing to send back.
fn thinking(reasoning: &Reasoning) -> Option<Value> {
    let signature = match &reasoning.seal {
        Some(Seal::AnthropicRedacted { data }) => {
            return Some(json!({"type": "redacted_thinking", "data": data}));
        }
        Some(Seal::OpenAi { encrypted: None, .. }) | None if reasoning.text.is_empty() => return None,
        Some(seal) => seal::to_signature(seal),
        None => String::new(),
    };
    Some(json!({"type": "thinking", "thinking": reasoning.text, "signature": signature}))
}
