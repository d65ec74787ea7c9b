//! Writing events for a client.

use bytes::BytesMut;
use serde_json::{Value, json};

use crate::domain::chat::{
    Block, ErrorKind, ProviderError, Reasoning, Seal, StopReason, StreamEvent, ToolCall, ToolKind,
};
use crate::domain::usage::Usage;
use crate::wire::convert::{AnswerContext, failure, ids, seal, sse};
use crate::wire::error::words::{INVALID_PROMPT, RATE_LIMIT, TOO_LONG};
use crate::wire::openai_responses::answer::{self, Ending};

/// State between events: the last one repeats the whole answer. Blocks come one after another, so one is open at most;
/// a message item stays open while texts follow each other.
#[derive(Debug, Default)]
pub(crate) struct Encoder {
    id: String,
    /// Number of the next event.
    sequence: u64,
    /// Items that are complete.
    output: Vec<Value>,
    message: Option<Message>,
    open: Option<Open>,
    stop: Option<StopReason>,
    usage: Usage,
}

/// A message item that is being written: its id and its complete parts.
#[derive(Debug)]
struct Message {
    id: String,
    parts: Vec<Value>,
}

/// The open block with its text so far.
#[derive(Debug)]
enum Open {
    /// Part of the open message.
    Text(String),
    /// Part of the open message.
    Refusal(String),
    Reasoning {
        id: String,
        text: String,
        seal: Option<Seal>,
    },
    Call {
        item_id: String,
        call: ToolCall,
    },
}

impl Encoder {
    /// Appends `event` in this format.
    pub(crate) fn write(&mut self, event: StreamEvent, context: &AnswerContext, out: &mut BytesMut) {
        match event {
            StreamEvent::Start { id } => {
                self.id = ids::answer("resp_", &id, context);
                for kind in ["response.created", "response.in_progress"] {
                    let response = self.response(&Ending::IN_PROGRESS, context);
                    self.send(json!({"type": kind, "response": response}), out);
                }
            }
            StreamEvent::Open { block, .. } => self.begin(block, context, out),
            StreamEvent::Delta { text, .. } => self.more(&text, out),
            StreamEvent::Seal { seal: new, .. } => {
                if let Some(Open::Reasoning { seal, .. }) = &mut self.open {
                    *seal = Some(new);
                }
            }
            StreamEvent::Close { .. } => self.end(context, out),
            StreamEvent::Usage(later) => self.usage.merge(&later),
            StreamEvent::Stop(stop) => {
                self.end_message(Ending::of(&stop).status, context, out);
                self.stop = Some(stop);
            }
            StreamEvent::End => {
                let ending = Ending::of(&self.stop.take().unwrap_or(StopReason::EndTurn));
                self.end_message(ending.status, context, out);
                let response = self.response(&ending, context);
                self.send(json!({"type": format!("response.{}", ending.status), "response": response}), out);
            }
            StreamEvent::Failed(error) => self.fail(&error, context, out),
        }
    }

    fn response(&self, ending: &Ending, context: &AnswerContext) -> Value {
        answer::response(&self.id, ending, self.output.clone(), &self.usage, context)
    }

    /// Appends an event with its number.
    fn send(&mut self, mut event: Value, out: &mut BytesMut) {
        event["sequence_number"] = self.sequence.into();
        self.sequence += 1;
        send(event, out);
    }

    /// Appends an event about the item that is being written.
    fn send_item(&mut self, kind: &str, item_id: &str, mut event: Value, out: &mut BytesMut) {
        event["type"] = kind.into();
        event["item_id"] = item_id.into();
        event["output_index"] = self.output.len().into();
        self.send(event, out);
    }

    fn item_added(&mut self, item: Value, out: &mut BytesMut) {
        let event =
            json!({"type": "response.output_item.added", "output_index": self.output.len(), "item": item});
        self.send(event, out);
    }

    fn item_done(&mut self, item: Value, out: &mut BytesMut) {
        let event = json!({"type": "response.output_item.done", "output_index": self.output.len(), "item": item.clone()});
        self.send(event, out);
        self.output.push(item);
    }

    fn begin(&mut self, block: Block, context: &AnswerContext, out: &mut BytesMut) {
        match block {
            Block::Text => self.begin_part(Open::Text(String::new()), answer::text_part(""), context, out),
            Block::Refusal => {
                self.begin_part(Open::Refusal(String::new()), answer::refusal_part(""), context, out);
            }
            Block::Reasoning => {
                self.end_message("completed", context, out);
                let id = ids::item(seal::OWN_ID, self.output.len(), context);
                self.item_added(json!({"id": id, "type": "reasoning", "summary": []}), out);
                self.open = Some(Open::Reasoning { id, text: String::new(), seal: None });
            }
            Block::ToolCall { id, name, kind } => {
                self.end_message("completed", context, out);
                let call = ToolCall { id, name, arguments: String::new(), kind };
                let mut item = answer::call_item(&call, self.output.len(), context);
                item["status"] = "in_progress".into();
                item[input_field(kind)] = "".into();
                let item_id = item["id"].as_str().unwrap_or_default().to_owned();
                self.item_added(item, out);
                self.open = Some(Open::Call { item_id, call });
            }
        }
    }

    /// Begins a part of a message; first the message, if none is open.
    fn begin_part(&mut self, open: Open, part: Value, context: &AnswerContext, out: &mut BytesMut) {
        if self.message.is_none() {
            let item = answer::message_item(Vec::new(), "in_progress", self.output.len(), context);
            let id = item["id"].as_str().unwrap_or_default().to_owned();
            self.item_added(item, out);
            self.message = Some(Message { id, parts: Vec::new() });
        }
        self.send_part("response.content_part.added", json!({"part": part}), out);
        self.open = Some(open);
    }

    /// Appends an event about the part that is being written.
    fn send_part(&mut self, kind: &str, mut event: Value, out: &mut BytesMut) {
        let Some(message) = &self.message else { return };
        let id = message.id.clone();
        event["content_index"] = message.parts.len().into();
        self.send_item(kind, &id, event, out);
    }

    fn more(&mut self, text: &str, out: &mut BytesMut) {
        let Some(mut open) = self.open.take() else { return };
        match &mut open {
            Open::Text(all) => {
                all.push_str(text);
                self.send_part("response.output_text.delta", json!({"delta": text, "logprobs": []}), out);
            }
            Open::Refusal(all) => {
                all.push_str(text);
                self.send_part("response.refusal.delta", json!({"delta": text}), out);
            }
            Open::Reasoning { id, text: all, .. } => {
                if all.is_empty() {
                    let part = json!({"summary_index": 0, "part": {"type": "summary_text", "text": ""}});
                    self.send_item("response.reasoning_summary_part.added", id, part, out);
                }
                all.push_str(text);
                let delta = json!({"summary_index": 0, "delta": text});
                self.send_item("response.reasoning_summary_text.delta", id, delta, out);
            }
            Open::Call { item_id, call } => {
                call.arguments.push_str(text);
                self.send_item(delta_event(call.kind), item_id, json!({"delta": text}), out);
            }
        }
        self.open = Some(open);
    }

    fn end(&mut self, context: &AnswerContext, out: &mut BytesMut) {
        match self.open.take() {
            None => {}
            Some(Open::Text(text)) => {
                self.send_part("response.output_text.done", json!({"text": text, "logprobs": []}), out);
                self.end_part(answer::text_part(&text), out);
            }
            Some(Open::Refusal(text)) => {
                self.send_part("response.refusal.done", json!({"refusal": text}), out);
                self.end_part(answer::refusal_part(&text), out);
            }
            Some(Open::Reasoning { id, text, seal }) => self.end_reasoning(&id, text, seal, context, out),
            Some(Open::Call { item_id, mut call }) => {
                if call.kind == ToolKind::Function && call.arguments.is_empty() {
                    // Clients parse the arguments, and an empty text is not JSON.
                    call.arguments = "{}".into();
                    self.send_item(delta_event(call.kind), &item_id, json!({"delta": "{}"}), out);
                }
                let done = match call.kind {
                    ToolKind::Function => "response.function_call_arguments.done",
                    ToolKind::Custom => "response.custom_tool_call_input.done",
                };
                self.send_item(done, &item_id, json!({input_field(call.kind): call.arguments}), out);
                self.item_done(answer::call_item(&call, self.output.len(), context), out);
            }
        }
    }

    fn end_part(&mut self, part: Value, out: &mut BytesMut) {
        self.send_part("response.content_part.done", json!({"part": part}), out);
        if let Some(message) = &mut self.message {
            message.parts.push(part);
        }
    }

    fn end_reasoning(
        &mut self,
        id: &str,
        text: String,
        seal: Option<Seal>,
        context: &AnswerContext,
        out: &mut BytesMut,
    ) {
        if !text.is_empty() {
            let done = json!({"summary_index": 0, "text": text});
            self.send_item("response.reasoning_summary_text.done", id, done, out);
            let part = json!({"summary_index": 0, "part": {"type": "summary_text", "text": text}});
            self.send_item("response.reasoning_summary_part.done", id, part, out);
        }
        let mut item = answer::reasoning_item(&Reasoning { text, seal }, self.output.len(), context)
            .unwrap_or_else(|| json!({"type": "reasoning", "summary": []}));
        // The id under which it was announced.
        item["id"] = id.into();
        self.item_done(item, out);
    }

    /// Ends the open message, if any.
    fn end_message(&mut self, status: &str, context: &AnswerContext, out: &mut BytesMut) {
        if let Some(Message { parts, .. }) = self.message.take() {
            let item = answer::message_item(parts, status, self.output.len(), context);
            self.item_done(item, out);
        }
    }

    /// Sends the error, and the failed response.
    fn fail(&mut self, error: &ProviderError, context: &AnswerContext, out: &mut BytesMut) {
        let written = failure::openai(error);
        // The reference says flat, OpenAI's servers say nested, SDKs look for the latter.
        let event = json!({
            "type": "error", "code": written["code"], "message": error.message, "param": error.param, "error": written,
        });
        self.send(event, out);
        if self.id.is_empty() {
            return;
        }
        let code = match error.kind {
            ErrorKind::InvalidRequest if error.code.as_deref() == Some(TOO_LONG) => TOO_LONG,
            ErrorKind::RateLimit | ErrorKind::Billing => RATE_LIMIT,
            ErrorKind::InvalidRequest => INVALID_PROMPT,
            _ => "server_error",
        };
        let error = Some(json!({"code": code, "message": error.message}));
        let response = self.response(&Ending { status: "failed", reason: None, error }, context);
        self.send(json!({"type": "response.failed", "response": response}), out);
    }
}

/// The field of a call item that holds the tool's input.
fn input_field(kind: ToolKind) -> &'static str {
    match kind {
        ToolKind::Function => "arguments",
        ToolKind::Custom => "input",
    }
}

fn delta_event(kind: ToolKind) -> &'static str {
    match kind {
        ToolKind::Function => "response.function_call_arguments.delta",
        ToolKind::Custom => "response.custom_tool_call_input.delta",
    }
}

/// Appends an event, named by its type.
pub(crate) fn send(event: Value, out: &mut BytesMut) {
    sse::event(event["type"].as_str(), &event, out);
}
