//! Anthropic Messages (docs.anthropic.com/en/api/messages and …/messages-streaming).

use bytes::Bytes;
use serde_json::{Value, json};

use crate::domain::label::FinishReason;
use crate::domain::usage::Usage;

use super::super::answer::{Answer, DEFAULT_PROMPT_TOKENS, fragments};
use super::super::ask::Ask;
use super::{Pieces, model, named_event};

const ID: &str = "msg_scripted";
/// Stands for the real API's signature of its thinking; clients must send it back unchanged.
const SIGNATURE: &str = "c2NyaXB0ZWQ=";
/// Characters of a tool's input in one event.
const INPUT_FRAGMENT: usize = 8;

pub(super) fn body(answer: &Answer, ask: &Ask) -> Pieces {
    let reported = answer.completion_usage();
    let content: Vec<Value> = blocks(answer).iter().map(Block::whole).collect();
    let mut body = json!({
        "model": model(answer, ask), "id": ID, "type": "message", "role": "assistant", "content": content,
        "stop_reason": stop_reason(answer), "stop_sequence": null,
    });
    if let Some(reported) = &reported {
        body["usage"] = usage(reported, reported.completion.unwrap_or(0));
    }
    Pieces::json(Bytes::from(body.to_string()), reported.unwrap_or_default())
}

pub(super) fn stream(answer: &Answer, ask: &Ask) -> Pieces {
    let reported = answer.completion_usage();
    let mut message = json!({
        "model": model(answer, ask), "id": ID, "type": "message", "role": "assistant", "content": [],
        "stop_reason": null, "stop_sequence": null,
    });
    if let Some(reported) = &reported {
        // The first event knows the input and one token of output; the last one corrects it.
        message["usage"] = usage(reported, 1);
    }
    let mut events = vec![named_event(&json!({"type": "message_start", "message": message}))];
    for (index, block) in blocks(answer).iter().enumerate() {
        let start = json!({"type": "content_block_start", "index": index, "content_block": block.start()});
        events.push(named_event(&start));
        if index == 0 {
            events.push(named_event(&json!({"type": "ping"})));
        }
        for delta in block.deltas() {
            events.push(named_event(&json!({"type": "content_block_delta", "index": index, "delta": delta})));
        }
        events.push(named_event(&json!({"type": "content_block_stop", "index": index})));
    }
    let mut last = json!({
        "type": "message_delta", "delta": {"stop_reason": stop_reason(answer), "stop_sequence": null},
    });
    if let Some(reported) = &reported {
        last["usage"] = usage(reported, reported.completion.unwrap_or(0));
    }
    events.push(named_event(&last));
    events.push(named_event(&json!({"type": "message_stop"})));
    Pieces::stream(events, 1, reported.unwrap_or_default())
}

/// The answer of `count_tokens`: the prompt's tokens. Nothing is consumed, so nothing is reported.
pub(super) fn count(answer: &Answer) -> Pieces {
    let tokens = answer.completion_usage().and_then(|usage| usage.prompt).unwrap_or(DEFAULT_PROMPT_TOKENS);
    Pieces::json(Bytes::from(json!({"input_tokens": tokens}).to_string()), Usage::default())
}

enum Block<'a> {
    Thinking(&'a [String]),
    Text(Vec<&'a str>),
    ToolUse(&'a super::super::answer::ToolCall),
}

fn blocks(answer: &Answer) -> Vec<Block<'_>> {
    let mut blocks = Vec::new();
    if !answer.reasoning.is_empty() {
        blocks.push(Block::Thinking(&answer.reasoning));
    }
    let text: Vec<&str> = answer.text.iter().chain(&answer.refusal).map(String::as_str).collect();
    if !text.is_empty() {
        blocks.push(Block::Text(text));
    }
    blocks.extend(answer.tool_calls.iter().map(Block::ToolUse));
    blocks
}

impl Block<'_> {
    fn whole(&self) -> Value {
        match self {
            Self::Thinking(pieces) => {
                json!({"type": "thinking", "thinking": pieces.concat(), "signature": SIGNATURE})
            }
            Self::Text(pieces) => json!({"type": "text", "text": pieces.concat()}),
            Self::ToolUse(call) => {
                json!({"type": "tool_use", "id": call.id, "name": call.name, "input": call.arguments_object()})
            }
        }
    }

    fn start(&self) -> Value {
        match self {
            Self::Thinking(_) => json!({"type": "thinking", "thinking": "", "signature": ""}),
            Self::Text(_) => json!({"type": "text", "text": ""}),
            Self::ToolUse(call) => json!({"type": "tool_use", "id": call.id, "name": call.name, "input": {}}),
        }
    }

    fn deltas(&self) -> Vec<Value> {
        match self {
            Self::Thinking(pieces) => {
                let thoughts =
                    pieces.iter().map(|piece| json!({"type": "thinking_delta", "thinking": piece}));
                thoughts.chain([json!({"type": "signature_delta", "signature": SIGNATURE})]).collect()
            }
            Self::Text(pieces) => {
                pieces.iter().map(|piece| json!({"type": "text_delta", "text": piece})).collect()
            }
            Self::ToolUse(call) => {
                let parts = fragments(&call.arguments, INPUT_FRAGMENT);
                let parts =
                    parts.iter().map(|part| json!({"type": "input_json_delta", "partial_json": part}));
                [json!({"type": "input_json_delta", "partial_json": ""})].into_iter().chain(parts).collect()
            }
        }
    }
}

fn stop_reason(answer: &Answer) -> &'static str {
    if answer.refusal.is_some() {
        return "refusal";
    }
    match answer.finish_reason() {
        FinishReason::Stop | FinishReason::Other => "end_turn",
        FinishReason::Length => "max_tokens",
        FinishReason::ToolCalls => "tool_use",
        FinishReason::ContentFilter => "refusal",
    }
}

/// Anthropic's `input_tokens` excludes tokens read from or written to the cache.
fn usage(usage: &Usage, output: u64) -> Value {
    let (read, written) = (usage.cached.unwrap_or(0), usage.cache_write.unwrap_or(0));
    json!({
        "input_tokens": usage.prompt.unwrap_or(0).saturating_sub(read + written),
        "cache_creation_input_tokens": written,
        "cache_read_input_tokens": read,
        "output_tokens": output,
        "service_tier": "standard",
    })
}
