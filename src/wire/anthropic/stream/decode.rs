//! Reading a provider's events.

use serde_json::Value;

use crate::domain::chat::{Block, Seal, StopReason, StreamEvent, ToolKind};
use crate::wire::anthropic::answer;
use crate::wire::convert::failure;
use crate::wire::convert::fields::{Object, take_object, take_string};
use crate::wire::convert::surrogates::read_lossy;
use crate::wire::usage::{AnthropicUsage, read};

/// State between events.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    usage: AnthropicUsage,
    stopped: bool,
    next_key: u32,
    /// Blocks that are being generated; those that mean something only to Anthropic are not among them.
    blocks: Vec<Open>,
}

#[derive(Debug)]
struct Open {
    /// The provider's number for it.
    index: u64,
    key: u32,
    /// The block to announce before its first delta; one that stays empty is never announced.
    unannounced: Option<Block>,
    seal: Option<Seal>,
    /// Input that came complete with the block's start; it counts only if no deltas follow.
    whole_input: Option<String>,
}

impl Decoder {
    /// Reads one event.
    pub(crate) fn read(&mut self, name: Option<&str>, data: &str, events: &mut Vec<StreamEvent>) {
        let data = data.trim_ascii();
        if data.is_empty() {
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
        let index = event.get("index").and_then(Value::as_u64).unwrap_or(0);
        match kind.as_str() {
            "message_start" => {
                let mut message = take_object(&mut event, "message").unwrap_or_default();
                events.push(StreamEvent::Start { id: take_string(&mut message, "id").unwrap_or_default() });
                self.report(message.get("usage"), events);
            }
            "content_block_start" => {
                if let Some(block) = take_object(&mut event, "content_block") {
                    self.begin(index, block, events);
                }
            }
            "content_block_delta" => {
                if let Some(delta) = take_object(&mut event, "delta") {
                    self.delta(index, delta, events);
                }
            }
            "content_block_stop" => self.end(index, events),
            "message_delta" => {
                self.report(event.get("usage"), events);
                if let Some(delta) = take_object(&mut event, "delta") {
                    self.stop_if_said(delta, events);
                }
            }
            "message_stop" => {
                if !self.stopped {
                    events.push(StreamEvent::Stop(StopReason::EndTurn));
                }
                events.push(StreamEvent::End);
            }
            "error" => events.push(StreamEvent::Failed(failure::decode(&Value::Object(event), None))),
            _ => events.extend(failure::in_other_shape(&kind, event).map(StreamEvent::Failed)),
        }
    }

    fn report(&mut self, usage: Option<&Value>, events: &mut Vec<StreamEvent>) {
        if let Some(usage) = usage.filter(|usage| usage.is_object()) {
            self.usage.merge(&read(usage));
            events.push(StreamEvent::Usage(self.usage.usage()));
        }
    }

    fn new_key(&mut self) -> u32 {
        self.next_key += 1;
        self.next_key
    }

    fn begin(&mut self, index: u64, mut block: Object, events: &mut Vec<StreamEvent>) {
        let mut open = Open { index, key: self.new_key(), unannounced: None, seal: None, whole_input: None };
        let mut text = None;
        match take_string(&mut block, "type").as_deref() {
            Some("text") => {
                open.unannounced = Some(Block::Text);
                text = take_string(&mut block, "text");
            }
            Some("thinking") => {
                open.unannounced = Some(Block::Reasoning);
                open.seal = sealed(take_string(&mut block, "signature"));
                text = take_string(&mut block, "thinking");
            }
            Some("redacted_thinking") => {
                open.unannounced = Some(Block::Reasoning);
                open.seal = take_string(&mut block, "data").map(|data| Seal::AnthropicRedacted { data });
            }
            Some("tool_use") => {
                let id = take_string(&mut block, "id").unwrap_or_default();
                let name = take_string(&mut block, "name").unwrap_or_default();
                let kind = ToolKind::Function;
                events.push(StreamEvent::Open { key: open.key, block: Block::ToolCall { id, name, kind } });
                let input =
                    block.get("input").filter(|input| input.as_object().is_some_and(|o| !o.is_empty()));
                open.whole_input = input.map(Value::to_string);
            }
            // Work of Anthropic's own servers, and kinds not yet invented.
            _ => return,
        }
        say(&mut open, text.unwrap_or_default(), events);
        self.blocks.push(open);
    }

    fn delta(&mut self, index: u64, mut delta: Object, events: &mut Vec<StreamEvent>) {
        let Some(open) = self.blocks.iter_mut().find(|open| open.index == index) else { return };
        let text = match take_string(&mut delta, "type").as_deref() {
            Some("text_delta") => take_string(&mut delta, "text"),
            Some("thinking_delta") => take_string(&mut delta, "thinking"),
            Some("input_json_delta") => take_string(&mut delta, "partial_json"),
            Some("signature_delta") => {
                open.seal = sealed(take_string(&mut delta, "signature")).or(open.seal.take());
                None
            }
            _ => None,
        };
        let text = text.unwrap_or_default();
        if !text.is_empty() {
            open.whole_input = None;
        }
        say(open, text, events);
    }

    fn end(&mut self, index: u64, events: &mut Vec<StreamEvent>) {
        let Some(position) = self.blocks.iter().position(|open| open.index == index) else { return };
        let mut open = self.blocks.remove(position);
        if let Some(input) = open.whole_input.take() {
            say(&mut open, input, events);
        }
        if let Some(seal) = open.seal.take() {
            announce(&mut open, events);
            events.push(StreamEvent::Seal { key: open.key, seal });
        }
        if open.unannounced.is_none() {
            events.push(StreamEvent::Close { key: open.key });
        }
    }

    fn stop_if_said(&mut self, mut delta: Object, events: &mut Vec<StreamEvent>) {
        let Some(word) = take_string(&mut delta, "stop_reason").filter(|_| !self.stopped) else { return };
        self.stopped = true;
        let stop = answer::stop_reason(Some(&word), take_string(&mut delta, "stop_sequence"));
        if stop == StopReason::ContentFilter
            && let Some(text) = answer::explanation(take_object(&mut delta, "stop_details"))
        {
            let key = self.new_key();
            events.push(StreamEvent::Open { key, block: Block::Refusal });
            events.push(StreamEvent::Delta { key, text });
            events.push(StreamEvent::Close { key });
        }
        events.push(StreamEvent::Stop(stop));
    }
}

fn sealed(signature: Option<String>) -> Option<Seal> {
    signature.filter(|signature| !signature.is_empty()).map(|signature| Seal::Anthropic { signature })
}

fn announce(open: &mut Open, events: &mut Vec<StreamEvent>) {
    if let Some(block) = open.unannounced.take() {
        events.push(StreamEvent::Open { key: open.key, block });
    }
}

fn say(open: &mut Open, text: String, events: &mut Vec<StreamEvent>) {
    if !text.is_empty() {
        announce(open, events);
        events.push(StreamEvent::Delta { key: open.key, text });
    }
}
