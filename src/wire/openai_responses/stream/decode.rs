//! Reading a provider's events.

use serde_json::Value;

use crate::domain::chat::{Block, StreamEvent, ToolKind};
use crate::wire::convert::failure;
use crate::wire::convert::fields::{Object, take_array, take_object, take_objects, take_string};
use crate::wire::convert::surrogates::read_lossy;
use crate::wire::openai_responses::{answer, usage};

/// State between events.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    next_key: u32,
    /// Pieces of the answer that have been seen, open or closed.
    pieces: Vec<Piece>,
    /// Items that are complete, by `output_index`.
    done_items: Vec<u64>,
    has_calls: bool,
    has_refusal: bool,
}

/// The source of a block: an item, or a part of a message item.
#[derive(Debug)]
struct Piece {
    item: u64,
    /// `content_index` in a message; 0 for other items.
    part: u64,
    key: u32,
    /// Whether it has text.
    begun: bool,
    closed: bool,
    /// For reasoning: the kind (summary, or the reasoning itself) and index of the text being read.
    reading: Option<(Shown, u64)>,
}

/// The two ways in which reasoning is shown. A provider that does both says the same twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shown {
    Summary,
    Thoughts,
}

impl Decoder {
    /// Reads one event.
    pub(crate) fn read(&mut self, name: Option<&str>, data: &str, events: &mut Vec<StreamEvent>) {
        let data = data.trim_ascii();
        if data.is_empty() || data == "[DONE]" {
            return;
        }
        let mut event = match read_lossy::<Value>(data.as_bytes()) {
            Ok(Value::Object(event)) => event,
            Ok(_) => return,
            Err(_) => {
                events.push(StreamEvent::Failed(failure::garbage()));
                return;
            }
        };
        let kind = take_string(&mut event, "type").or_else(|| name.map(str::to_owned)).unwrap_or_default();
        let number = |key: &str| event.get(key).and_then(Value::as_u64).unwrap_or(0);
        let (item, part, summary) =
            (number("output_index"), number("content_index"), number("summary_index"));
        let mut text = |key: &str| take_string(&mut event, key).unwrap_or_default();
        match kind.strip_prefix("response.").unwrap_or(&kind) {
            "created" | "in_progress" | "queued" => {
                let mut response = take_object(&mut event, "response").unwrap_or_default();
                events.push(StreamEvent::Start { id: take_string(&mut response, "id").unwrap_or_default() });
            }
            "output_item.added" => {
                if let Some(object) = take_object(&mut event, "item") {
                    self.item_begins(item, object, events);
                }
            }
            "output_text.delta" => self.say(item, part, Block::Text, text("delta"), events),
            "output_text.done" => self.said(item, part, Block::Text, text("text"), events),
            "refusal.delta" => self.say(item, part, Block::Refusal, text("delta"), events),
            "refusal.done" => self.said(item, part, Block::Refusal, text("refusal"), events),
            "function_call_arguments.delta" | "custom_tool_call_input.delta" => {
                self.more(item, text("delta"), events);
            }
            "reasoning_summary_text.delta" => {
                self.think(item, Shown::Summary, summary, text("delta"), events);
            }
            "reasoning_text.delta" => self.think(item, Shown::Thoughts, part, text("delta"), events),
            "output_item.done" => {
                if let Some(object) = take_object(&mut event, "item") {
                    self.item_ends(item, object, events);
                }
            }
            "completed" | "incomplete" => {
                let response = take_object(&mut event, "response").unwrap_or_default();
                self.end(response, events);
            }
            "failed" => {
                let mut response = take_object(&mut event, "response").unwrap_or_default();
                let error = response.get_mut("error").map(Value::take).unwrap_or_default();
                events.push(StreamEvent::Failed(failure::decode(&error, None)));
            }
            "error" => events.push(StreamEvent::Failed(failure::decode(&Value::Object(event), None))),
            _ => events.extend(failure::in_other_shape(&kind, event).map(StreamEvent::Failed)),
        }
    }

    fn piece(&mut self, item: u64, part: u64) -> Option<&mut Piece> {
        self.pieces.iter_mut().find(|piece| piece.item == item && piece.part == part)
    }

    /// The block for a piece, which is announced if it is new; `None` if it is closed.
    fn open(&mut self, item: u64, part: u64, block: Block, events: &mut Vec<StreamEvent>) -> Option<u32> {
        if let Some(piece) = self.piece(item, part) {
            return (!piece.closed).then_some(piece.key);
        }
        self.next_key += 1;
        let key = self.next_key;
        self.has_calls |= matches!(block, Block::ToolCall { .. });
        self.has_refusal |= block == Block::Refusal;
        self.pieces.push(Piece { item, part, key, begun: false, closed: false, reading: None });
        events.push(StreamEvent::Open { key, block });
        Some(key)
    }

    fn close(&mut self, item: u64, part: u64, events: &mut Vec<StreamEvent>) {
        if let Some(piece) = self.piece(item, part).filter(|piece| !piece.closed) {
            piece.closed = true;
            events.push(StreamEvent::Close { key: piece.key });
        }
    }

    /// More text of a message's part.
    fn say(&mut self, item: u64, part: u64, block: Block, text: String, events: &mut Vec<StreamEvent>) {
        if text.is_empty() || self.open(item, part, block, events).is_none() {
            return;
        }
        self.push(item, part, text, events);
    }

    /// The whole text of a message's part; ignored if a piece of it came before.
    fn said(&mut self, item: u64, part: u64, block: Block, text: String, events: &mut Vec<StreamEvent>) {
        if self.piece(item, part).is_none() {
            self.say(item, part, block, text, events);
        }
        self.close(item, part, events);
    }

    /// More of a call's arguments.
    fn more(&mut self, item: u64, text: String, events: &mut Vec<StreamEvent>) {
        if !text.is_empty() {
            self.push(item, 0, text, events);
        }
    }

    fn push(&mut self, item: u64, part: u64, text: String, events: &mut Vec<StreamEvent>) {
        if let Some(piece) = self.piece(item, part).filter(|piece| !piece.closed) {
            piece.begun = true;
            events.push(StreamEvent::Delta { key: piece.key, text });
        }
    }

    /// More of a reasoning item, which may consist of several texts.
    fn think(&mut self, item: u64, shown: Shown, index: u64, text: String, events: &mut Vec<StreamEvent>) {
        if text.is_empty() || self.open(item, 0, Block::Reasoning, events).is_none() {
            return;
        }
        let Some(piece) = self.piece(item, 0) else { return };
        let separator = match piece.reading.replace((shown, index)) {
            Some((before, _)) if before != shown => {
                piece.reading = Some((before, index));
                return;
            }
            Some((_, before)) => before != index,
            None => false,
        };
        let text = if separator { format!("\n\n{text}") } else { text };
        self.push(item, 0, text, events);
    }

    fn item_begins(&mut self, index: u64, mut item: Object, events: &mut Vec<StreamEvent>) {
        let (kind, input) = match take_string(&mut item, "type").as_deref() {
            Some("function_call") => (ToolKind::Function, "arguments"),
            Some("custom_tool_call") => (ToolKind::Custom, "input"),
            // Messages and reasoning begin with their first text; other items are the work of OpenAI's own servers.
            _ => return,
        };
        let id = take_string(&mut item, "call_id").unwrap_or_default();
        let name = take_string(&mut item, "name").unwrap_or_default();
        self.open(index, 0, Block::ToolCall { id, name, kind }, events);
        self.more(index, take_string(&mut item, input).unwrap_or_default(), events);
    }

    /// A whole item: sends the parts that had not come before, and closes it.
    fn item_ends(&mut self, index: u64, mut item: Object, events: &mut Vec<StreamEvent>) {
        if self.done_items.contains(&index) {
            return;
        }
        self.done_items.push(index);
        match item.get("type").and_then(Value::as_str) {
            Some("message") => {
                for (part, mut content) in (0..).zip(take_objects(&mut item, "content")) {
                    match take_string(&mut content, "type").as_deref() {
                        Some("output_text") => {
                            let text = take_string(&mut content, "text").unwrap_or_default();
                            self.said(index, part, Block::Text, text, events);
                        }
                        Some("refusal") => {
                            let text = take_string(&mut content, "refusal").unwrap_or_default();
                            self.said(index, part, Block::Refusal, text, events);
                        }
                        _ => {}
                    }
                }
                let keys = |piece: &&mut Piece| piece.item == index && !piece.closed;
                for piece in self.pieces.iter_mut().filter(keys) {
                    piece.closed = true;
                    events.push(StreamEvent::Close { key: piece.key });
                }
            }
            Some("function_call" | "custom_tool_call") => {
                if self.piece(index, 0).is_none_or(|piece| !piece.begun) {
                    self.item_begins(index, item, events);
                }
                self.close(index, 0, events);
            }
            Some("reasoning") => self.thought(index, item, events),
            _ => {}
        }
    }

    fn thought(&mut self, index: u64, mut item: Object, events: &mut Vec<StreamEvent>) {
        if self.piece(index, 0).is_none() {
            for (field, shown) in [("summary", Shown::Summary), ("content", Shown::Thoughts)] {
                for (part, text) in (0..).zip(take_array(&mut item, field)) {
                    let text = text["text"].as_str().unwrap_or_default();
                    self.think(index, shown, part, text.to_owned(), events);
                }
            }
        }
        let id = take_string(&mut item, "id").unwrap_or_default();
        let encrypted = take_string(&mut item, "encrypted_content").filter(|text| !text.is_empty());
        // Nothing to read and nothing to send back: no block.
        if self.piece(index, 0).is_none() && encrypted.is_none() {
            return;
        }
        let seal = answer::sealed(id, encrypted);
        if let Some((key, seal)) = self.open(index, 0, Block::Reasoning, events).zip(seal) {
            events.push(StreamEvent::Seal { key, seal });
        }
        self.close(index, 0, events);
    }

    /// The whole response: sends the parts that had not come before, the stop reason and the usage.
    fn end(&mut self, mut response: Object, events: &mut Vec<StreamEvent>) {
        for (index, item) in (0..).zip(take_array(&mut response, "output")) {
            if let Value::Object(item) = item {
                self.item_ends(index, item, events);
            }
        }
        if let Some(reported) = response.get("usage").filter(|usage| usage.is_object()) {
            events.push(StreamEvent::Usage(usage::decode(reported)));
        }
        let stop = answer::stop_reason(&response, self.has_calls, self.has_refusal);
        events.push(StreamEvent::Stop(stop));
        events.push(StreamEvent::End);
    }
}
