//! Writing events for a client.

use bytes::BytesMut;
use serde_json::{Value, json};

use crate::domain::chat::{Block, Seal, StopReason, StreamEvent, ToolKind};
use crate::domain::usage::Usage;
use crate::wire::anthropic::{answer, usage};
use crate::wire::convert::calls::FREE_INPUT;
use crate::wire::convert::{AnswerContext, failure, ids, seal, sse};

/// State between events. Blocks come one after another, so one is open at most.
#[derive(Debug, Default)]
pub(crate) struct Encoder {
    /// Blocks begun so far; the open one is the last.
    blocks: usize,
    open: Option<Open>,
    /// The text of the refusal.
    refusal: String,
    /// Why the model stopped. It is sent with the usage, which may come later.
    stop: Option<StopReason>,
    usage: Usage,
}

#[derive(Debug)]
enum Open {
    Text,
    Refusal,
    Reasoning {
        seal: Option<Seal>,
    },
    Call,
    /// Free text, sent as an object with one text.
    FreeCall,
}

impl Encoder {
    /// Appends `event` in this format.
    pub(crate) fn write(&mut self, event: StreamEvent, context: &AnswerContext, out: &mut BytesMut) {
        match event {
            StreamEvent::Start { id } => {
                let message = json!({
                    "id": ids::answer("msg_", &id, context), "type": "message", "role": "assistant",
                    "model": context.model, "content": [], "stop_reason": null, "stop_sequence": null,
                    "usage": usage::encode(&Usage::default()),
                });
                send(json!({"type": "message_start", "message": message}), out);
            }
            StreamEvent::Open { block, .. } => self.begin(block, out),
            StreamEvent::Delta { text, .. } => self.more(text, out),
            StreamEvent::Seal { seal: new, .. } => {
                if let Some(Open::Reasoning { seal }) = &mut self.open {
                    *seal = Some(new);
                }
            }
            StreamEvent::Close { .. } => self.end(out),
            StreamEvent::Usage(later) => self.usage.merge(&later),
            StreamEvent::Stop(stop) => self.stop = Some(stop),
            StreamEvent::End => {
                let stop = self.stop.take().unwrap_or(StopReason::EndTurn);
                let mut delta = json!({
                    "stop_reason": answer::stop_word(&stop), "stop_sequence": answer::stop_sequence(&stop),
                });
                let details = answer::stop_details(&stop, &self.refusal);
                if !details.is_null() {
                    delta["stop_details"] = details;
                }
                send(
                    json!({"type": "message_delta", "delta": delta, "usage": usage::encode(&self.usage)}),
                    out,
                );
                send(json!({"type": "message_stop"}), out);
            }
            StreamEvent::Failed(error) => send(failure::anthropic(&error), out),
        }
    }

    /// The index of the open block.
    fn index(&self) -> usize {
        self.blocks.saturating_sub(1)
    }

    fn begin(&mut self, block: Block, out: &mut BytesMut) {
        self.blocks += 1;
        let (open, written) = match block {
            Block::Text => (Open::Text, json!({"type": "text", "text": ""})),
            Block::Refusal => (Open::Refusal, json!({"type": "text", "text": ""})),
            Block::Reasoning => {
                (Open::Reasoning { seal: None }, json!({"type": "thinking", "thinking": "", "signature": ""}))
            }
            Block::ToolCall { id, name, kind } => {
                let open = if kind == ToolKind::Custom { Open::FreeCall } else { Open::Call };
                (open, json!({"type": "tool_use", "id": id, "name": name, "input": {}}))
            }
        };
        let begins_free_text = matches!(open, Open::FreeCall);
        self.open = Some(open);
        send(json!({"type": "content_block_start", "index": self.index(), "content_block": written}), out);
        if begins_free_text {
            self.delta(input(&format!("{{\"{FREE_INPUT}\":\"")), out);
        }
    }

    fn more(&mut self, text: String, out: &mut BytesMut) {
        let delta = match &self.open {
            None => return,
            Some(Open::Text) => json!({"type": "text_delta", "text": text}),
            Some(Open::Refusal) => {
                self.refusal.push_str(&text);
                json!({"type": "text_delta", "text": text})
            }
            Some(Open::Reasoning { .. }) => json!({"type": "thinking_delta", "thinking": text}),
            Some(Open::Call) => input(&text),
            Some(Open::FreeCall) => {
                // The text as the inside of a JSON string; escaping works character by character.
                let escaped = Value::String(text).to_string();
                input(&escaped[1..escaped.len() - 1])
            }
        };
        self.delta(delta, out);
    }

    fn end(&mut self, out: &mut BytesMut) {
        match self.open.take() {
            Some(Open::Reasoning { seal: Some(seal) }) => {
                let signature = seal::to_signature(&seal);
                self.delta(json!({"type": "signature_delta", "signature": signature}), out);
            }
            Some(Open::FreeCall) => self.delta(input("\"}"), out),
            _ => {}
        }
        send(json!({"type": "content_block_stop", "index": self.index()}), out);
    }

    fn delta(&self, delta: Value, out: &mut BytesMut) {
        send(json!({"type": "content_block_delta", "index": self.index(), "delta": delta}), out);
    }
}

fn input(text: &str) -> Value {
    json!({"type": "input_json_delta", "partial_json": text})
}

/// Appends an event, named by its type.
pub(crate) fn send(event: Value, out: &mut BytesMut) {
    sse::event(event["type"].as_str(), &event, out);
}
