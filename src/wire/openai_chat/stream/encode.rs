//! Writing chunks for a client.

use bytes::BytesMut;
use serde_json::{Value, json};

use crate::domain::chat::{Block, Seal, StreamEvent, ToolKind};
use crate::domain::usage::Usage;
use crate::wire::convert::{AnswerContext, failure, ids, sse};
use crate::wire::openai_chat::{answer, reasoning, usage};

/// State between events. Blocks come one after another, so one is open at most.
#[derive(Debug, Default)]
pub(crate) struct Encoder {
    id: String,
    open: Option<Open>,
    calls: usize,
    details: usize,
    usage: Usage,
    /// Whether there was text, or a call in its place.
    has_spoken: bool,
}

#[derive(Debug)]
enum Open {
    Text,
    Refusal,
    /// Its text so far, which is sent along with the seal.
    Reasoning {
        text: String,
        seal: Option<Seal>,
    },
    Call {
        index: usize,
        kind: ToolKind,
        /// Whether it has arguments.
        begun: bool,
    },
}

impl Encoder {
    /// Appends `event` in this format.
    pub(crate) fn write(&mut self, event: StreamEvent, context: &AnswerContext, out: &mut BytesMut) {
        match event {
            StreamEvent::Start { id } => {
                self.id = ids::answer("chatcmpl-", &id, context);
                // `null` until there is text: some clients turn an empty one into a text before calls.
                self.delta(json!({"role": "assistant", "content": null, "refusal": null}), context, out);
            }
            StreamEvent::Open { block, .. } => self.begin(block, context, out),
            StreamEvent::Delta { text, .. } => self.more(text, context, out),
            StreamEvent::Seal { seal: new, .. } => {
                if let Some(Open::Reasoning { seal, .. }) = &mut self.open {
                    *seal = Some(new);
                }
            }
            StreamEvent::Close { .. } => self.end(context, out),
            StreamEvent::Usage(later) => self.usage.merge(&later),
            StreamEvent::Stop(stop) => {
                if !self.has_spoken {
                    self.delta(json!({"content": ""}), context, out);
                }
                self.chunk(json!({}), answer::finish_reason(&stop).into(), context, out);
            }
            StreamEvent::End => {
                if context.include_usage && self.usage.is_known() {
                    let mut chunk = self.envelope(context, json!([]));
                    chunk["usage"] = usage::encode(&self.usage);
                    sse::event(None, &chunk, out);
                }
                sse::done(out);
            }
            StreamEvent::Failed(error) => sse::event(None, &json!({"error": failure::openai(&error)}), out),
        }
    }

    fn begin(&mut self, block: Block, context: &AnswerContext, out: &mut BytesMut) {
        self.open = Some(match block {
            Block::Text => Open::Text,
            Block::Refusal => Open::Refusal,
            Block::Reasoning => Open::Reasoning { text: String::new(), seal: None },
            Block::ToolCall { id, name, kind } => {
                let index = self.calls;
                self.calls += 1;
                self.has_spoken = true;
                let call = match kind {
                    ToolKind::Function => json!({
                        "index": index, "id": id, "type": "function", "function": {"name": name, "arguments": ""},
                    }),
                    ToolKind::Custom => json!({
                        "index": index, "id": id, "type": "custom", "custom": {"name": name, "input": ""},
                    }),
                };
                self.delta(json!({"tool_calls": [call]}), context, out);
                Open::Call { index, kind, begun: false }
            }
        });
    }

    fn more(&mut self, text: String, context: &AnswerContext, out: &mut BytesMut) {
        self.has_spoken |= matches!(self.open, Some(Open::Text | Open::Refusal));
        let delta = match &mut self.open {
            None => return,
            Some(Open::Text) => json!({"content": text}),
            Some(Open::Refusal) => json!({"refusal": text}),
            Some(Open::Reasoning { text: all, .. }) => {
                all.push_str(&text);
                json!({"reasoning_content": text})
            }
            Some(Open::Call { index, kind, begun }) => {
                *begun |= !text.is_empty();
                arguments(*index, *kind, &text)
            }
        };
        self.delta(delta, context, out);
    }

    fn end(&mut self, context: &AnswerContext, out: &mut BytesMut) {
        match self.open.take() {
            Some(Open::Reasoning { text, seal }) => {
                let details = reasoning::details(&text, seal.as_ref(), self.details);
                if !details.is_empty() {
                    self.details += details.len();
                    self.delta(json!({"reasoning_details": details}), context, out);
                }
            }
            // Clients parse the arguments, and an empty text is not JSON.
            Some(Open::Call { index, kind: ToolKind::Function, begun: false }) => {
                self.delta(arguments(index, ToolKind::Function, "{}"), context, out);
            }
            _ => {}
        }
    }

    fn delta(&self, delta: Value, context: &AnswerContext, out: &mut BytesMut) {
        self.chunk(delta, Value::Null, context, out);
    }

    fn chunk(&self, delta: Value, finish_reason: Value, context: &AnswerContext, out: &mut BytesMut) {
        let choice = json!({"index": 0, "delta": delta, "logprobs": null, "finish_reason": finish_reason});
        let mut chunk = self.envelope(context, json!([choice]));
        if context.include_usage {
            chunk["usage"] = Value::Null;
        }
        sse::event(None, &chunk, out);
    }

    fn envelope(&self, context: &AnswerContext, choices: Value) -> Value {
        json!({
            "id": self.id, "object": "chat.completion.chunk", "created": context.created, "model": context.model,
            "choices": choices,
        })
    }
}

fn arguments(index: usize, kind: ToolKind, text: &str) -> Value {
    let inner = match kind {
        ToolKind::Function => json!({"index": index, "function": {"arguments": text}}),
        ToolKind::Custom => json!({"index": index, "custom": {"input": text}}),
    };
    json!({"tool_calls": [inner]})
}
