//! OpenAI Responses (platform.openai.com/docs/api-reference/responses and …/responses-streaming).

use bytes::Bytes;
use serde_json::{Value, json};

use crate::domain::label::FinishReason;
use crate::domain::usage::Usage;

use super::super::answer::{Answer, ToolCall, fragments};
use super::super::ask::Ask;
use super::{CREATED, Pieces, model, named_event};

/// Characters of a tool's arguments in one event.
const ARGUMENT_FRAGMENT: usize = 8;

pub(super) fn body(answer: &Answer, ask: &Ask) -> Pieces {
    let reported = answer.completion_usage();
    let output: Vec<Value> =
        items(answer).iter().enumerate().map(|(index, item)| item.whole(index)).collect();
    let response = finished(answer, ask, output, reported.as_ref());
    Pieces::json(Bytes::from(response.to_string()), reported.unwrap_or_default())
}

pub(super) fn stream(answer: &Answer, ask: &Ask) -> Pieces {
    let reported = answer.completion_usage();
    let mut events = Events::default();
    let started = response(answer, ask, "in_progress", &[], None);
    events.push("response.created", json!({"response": started}));
    events.push("response.in_progress", json!({"response": started}));
    let items = items(answer);
    for (index, item) in items.iter().enumerate() {
        let added = json!({"output_index": index, "item": item.start(index)});
        events.push("response.output_item.added", added);
        item.stream(index, &mut events);
        events.push("response.output_item.done", json!({"output_index": index, "item": item.whole(index)}));
    }
    let output = items.iter().enumerate().map(|(index, item)| item.whole(index)).collect();
    let response = finished(answer, ask, output, reported.as_ref());
    let last = if response["status"] == "completed" { "response.completed" } else { "response.incomplete" };
    events.push(last, json!({"response": response}));
    Pieces::stream(events.0, 1, reported.unwrap_or_default())
}

/// Events in order; each gets its type and the next sequence number in front.
#[derive(Default)]
struct Events(Vec<Bytes>);

impl Events {
    fn push(&mut self, kind: &str, payload: Value) {
        let mut event = json!({"type": kind, "sequence_number": self.0.len()});
        if let (Some(event), Value::Object(fields)) = (event.as_object_mut(), payload) {
            event.extend(fields);
        }
        self.0.push(named_event(&event));
    }
}

fn finished(answer: &Answer, ask: &Ask, output: Vec<Value>, reported: Option<&Usage>) -> Value {
    let incomplete = match answer.finish_reason() {
        FinishReason::Length => Some("max_output_tokens"),
        FinishReason::ContentFilter => Some("content_filter"),
        _ => None,
    };
    let status = if incomplete.is_some() { "incomplete" } else { "completed" };
    let mut response = response(answer, ask, status, &output, reported.map(usage));
    if let Some(reason) = incomplete {
        response["incomplete_details"] = json!({"reason": reason});
    }
    response
}

fn response(answer: &Answer, ask: &Ask, status: &str, output: &[Value], usage: Option<Value>) -> Value {
    json!({
        "id": "resp_scripted", "object": "response", "created_at": CREATED, "status": status, "background": false,
        "error": null, "incomplete_details": null, "instructions": null, "max_output_tokens": null,
        "model": model(answer, ask), "output": output, "parallel_tool_calls": true, "previous_response_id": null,
        "reasoning": {"effort": null, "summary": null}, "store": true, "temperature": 1.0,
        "text": {"format": {"type": "text"}}, "tool_choice": "auto", "tools": [], "top_p": 1.0,
        "truncation": "disabled", "usage": usage, "user": null, "metadata": {},
    })
}

enum Item<'a> {
    Reasoning(&'a [String]),
    Message { text: &'a [String], refusal: Option<&'a str> },
    Call(&'a ToolCall),
}

fn items(answer: &Answer) -> Vec<Item<'_>> {
    let mut items = Vec::new();
    if !answer.reasoning.is_empty() {
        items.push(Item::Reasoning(&answer.reasoning));
    }
    if !answer.text.is_empty() || answer.refusal.is_some() {
        items.push(Item::Message { text: &answer.text, refusal: answer.refusal.as_deref() });
    }
    items.extend(answer.tool_calls.iter().map(Item::Call));
    items
}

impl Item<'_> {
    fn id(&self, index: usize) -> String {
        let kind = match self {
            Self::Reasoning(_) => "rs",
            Self::Message { .. } => "msg",
            Self::Call(_) => "fc",
        };
        format!("{kind}_scripted_{index}")
    }

    fn start(&self, index: usize) -> Value {
        let id = self.id(index);
        match self {
            Self::Reasoning(_) => json!({"id": id, "type": "reasoning", "summary": []}),
            Self::Message { .. } => {
                json!({"id": id, "type": "message", "status": "in_progress", "content": [], "role": "assistant"})
            }
            Self::Call(call) => json!({
                "id": id, "type": "function_call", "status": "in_progress", "arguments": "", "call_id": call.id,
                "name": call.name,
            }),
        }
    }

    fn whole(&self, index: usize) -> Value {
        let id = self.id(index);
        match self {
            Self::Reasoning(pieces) => json!({
                "id": id, "type": "reasoning", "summary": [{"type": "summary_text", "text": pieces.concat()}],
            }),
            Self::Message { .. } => json!({
                "id": id, "type": "message", "status": "completed", "content": self.parts(), "role": "assistant",
            }),
            Self::Call(call) => json!({
                "id": id, "type": "function_call", "status": "completed", "arguments": call.arguments,
                "call_id": call.id, "name": call.name,
            }),
        }
    }

    /// The content parts of a message.
    fn parts(&self) -> Vec<Value> {
        let Self::Message { text, refusal } = self else { return Vec::new() };
        let mut parts = Vec::new();
        if !text.is_empty() {
            parts.push(
                json!({"type": "output_text", "annotations": [], "logprobs": [], "text": text.concat()}),
            );
        }
        parts.extend(refusal.map(|refusal| json!({"type": "refusal", "refusal": refusal})));
        parts
    }

    /// Everything between `output_item.added` and `output_item.done`.
    fn stream(&self, index: usize, events: &mut Events) {
        let id = self.id(index);
        match self {
            Self::Reasoning(pieces) => {
                let at = |name: &str, value: Value| json!({"item_id": id, "output_index": index, "summary_index": 0, name: value});
                let part = |text: &str| json!({"type": "summary_text", "text": text});
                events.push("response.reasoning_summary_part.added", at("part", part("")));
                for piece in *pieces {
                    events.push("response.reasoning_summary_text.delta", at("delta", piece.as_str().into()));
                }
                let whole = pieces.concat();
                events.push("response.reasoning_summary_text.done", at("text", whole.as_str().into()));
                events.push("response.reasoning_summary_part.done", at("part", part(&whole)));
            }
            Self::Message { text, refusal } => {
                for (content, part) in self.parts().into_iter().enumerate() {
                    let at = |name: &str, value: Value| json!({"item_id": id, "output_index": index, "content_index": content, name: value});
                    let is_text = part["type"] == "output_text";
                    let mut empty = part.clone();
                    empty[if is_text { "text" } else { "refusal" }] = "".into();
                    events.push("response.content_part.added", at("part", empty));
                    if is_text {
                        for piece in *text {
                            events.push("response.output_text.delta", at("delta", piece.as_str().into()));
                        }
                        events.push("response.output_text.done", at("text", part["text"].clone()));
                    } else if let Some(refusal) = refusal {
                        events.push("response.refusal.delta", at("delta", (*refusal).into()));
                        events.push("response.refusal.done", at("refusal", (*refusal).into()));
                    }
                    events.push("response.content_part.done", at("part", part));
                }
            }
            Self::Call(call) => {
                let at =
                    |name: &str, value: Value| json!({"item_id": id, "output_index": index, name: value});
                for piece in fragments(&call.arguments, ARGUMENT_FRAGMENT) {
                    events.push("response.function_call_arguments.delta", at("delta", piece.into()));
                }
                let arguments = call.arguments.as_str();
                events.push("response.function_call_arguments.done", at("arguments", arguments.into()));
            }
        }
    }
}

fn usage(usage: &Usage) -> Value {
    json!({
        "input_tokens": usage.prompt.unwrap_or(0),
        "input_tokens_details": {"cached_tokens": usage.cached.unwrap_or(0)},
        "output_tokens": usage.completion.unwrap_or(0),
        "output_tokens_details": {"reasoning_tokens": usage.reasoning.unwrap_or(0)},
        "total_tokens": usage.total(),
    })
}
