//! A whole answer as the events that would have brought it, and back. Unknown fields and blocks are kept.

use bytes::BytesMut;
use serde_json::{Value, json};

use super::stream::send;
use crate::wire::convert::error::ConvertError;
use crate::wire::convert::failure;
use crate::wire::convert::fields::{Object, take_array, take_object, take_string};
use crate::wire::convert::surrogates::read_lossy;

/// Fields that are known only at the end, and come with `message_delta`.
const LATE: [&str; 3] = ["stop_reason", "stop_sequence", "stop_details"];

/// Appends the events of `answer`.
pub(crate) fn to_stream(mut answer: Object, out: &mut BytesMut) -> Result<(), ConvertError> {
    if !answer.get("content").is_some_and(Value::is_array) {
        return Err(ConvertError::new("The answer has no `content`"));
    }
    let blocks = take_array(&mut answer, "content");
    answer.insert("content".into(), json!([]));
    let mut end = Object::new();
    for key in LATE {
        if let Some(value) = answer.get_mut(key) {
            end.insert(key.into(), value.take());
        }
    }
    let context = answer.shift_remove("context_management");
    let usage = answer.get("usage").cloned().unwrap_or_default();
    send(json!({"type": "message_start", "message": answer}), out);
    for (index, block) in blocks.into_iter().enumerate() {
        let Value::Object(block) = block else { continue };
        let (start, deltas) = pieces(block);
        send(json!({"type": "content_block_start", "index": index, "content_block": start}), out);
        for delta in deltas {
            send(json!({"type": "content_block_delta", "index": index, "delta": delta}), out);
        }
        send(json!({"type": "content_block_stop", "index": index}), out);
    }
    let mut delta = json!({"type": "message_delta", "delta": end, "usage": usage});
    if let Some(context) = context {
        delta["context_management"] = context;
    }
    send(delta, out);
    send(json!({"type": "message_stop"}), out);
    Ok(())
}

/// A block as it begins, and the deltas that make it whole.
fn pieces(mut block: Object) -> (Object, Vec<Value>) {
    let mut deltas = Vec::new();
    match block.get("type").and_then(Value::as_str) {
        Some("text") => {
            if block.get("citations").is_some_and(Value::is_array) {
                for citation in take_array(&mut block, "citations") {
                    deltas.push(json!({"type": "citations_delta", "citation": citation}));
                }
                block.insert("citations".into(), json!([]));
            }
            let text = take_string(&mut block, "text").unwrap_or_default();
            block.insert("text".into(), "".into());
            deltas.push(json!({"type": "text_delta", "text": text}));
        }
        Some("thinking") => {
            let text = take_string(&mut block, "thinking").unwrap_or_default();
            let signature = take_string(&mut block, "signature").unwrap_or_default();
            block.insert("thinking".into(), "".into());
            block.insert("signature".into(), "".into());
            if !text.is_empty() {
                deltas.push(json!({"type": "thinking_delta", "thinking": text}));
            }
            deltas.push(json!({"type": "signature_delta", "signature": signature}));
        }
        _ => {
            if let Some(input) = take_object(&mut block, "input") {
                block.insert("input".into(), json!({}));
                let text = if input.is_empty() { String::new() } else { Value::Object(input).to_string() };
                deltas.push(json!({"type": "input_json_delta", "partial_json": text}));
            }
        }
    }
    (block, deltas)
}

/// Folds events, each with its name and its `data:`, into the answer.
pub(crate) fn to_answer<'a>(
    events: impl Iterator<Item = (Option<&'a str>, &'a str)>,
) -> Result<Value, ConvertError> {
    let mut answer: Option<Object> = None;
    let mut blocks: Vec<Block> = Vec::new();
    for (name, data) in events {
        let data = data.trim_ascii();
        if data.is_empty() {
            continue;
        }
        let mut event: Object = read_lossy(data.as_bytes()).map_err(|error| {
            ConvertError::new(format!("The stream holds what is not a JSON object: {error}"))
        })?;
        let kind = take_string(&mut event, "type").or_else(|| name.map(str::to_owned)).unwrap_or_default();
        let index = event.get("index").and_then(Value::as_u64).unwrap_or(0);
        match kind.as_str() {
            "message_start" => answer = take_object(&mut event, "message"),
            "content_block_start" => {
                let block = take_object(&mut event, "content_block").unwrap_or_default();
                blocks.push(Block { index, block, input: String::new() });
            }
            "content_block_delta" => {
                let delta = take_object(&mut event, "delta").unwrap_or_default();
                if let Some(block) = blocks.iter_mut().find(|block| block.index == index) {
                    block.add(delta);
                }
            }
            "message_delta" => {
                if let Some(answer) = &mut answer {
                    end(answer, event);
                }
            }
            "error" => {
                return Err(ConvertError::new(failure::decode(&Value::Object(event), None).message));
            }
            "message_stop" => {
                let mut answer =
                    answer.ok_or_else(|| ConvertError::new("The stream has no `message_start`"))?;
                let content = blocks.into_iter().map(Block::finish).collect::<Result<Vec<_>, _>>()?;
                answer.insert("content".into(), content.into());
                return Ok(answer.into());
            }
            _ => {}
        }
    }
    Err(ConvertError::new("The stream ended before the answer was complete"))
}

/// A block that is being put together.
struct Block {
    index: u64,
    block: Object,
    /// JSON text of its input so far.
    input: String,
}

impl Block {
    fn add(&mut self, mut delta: Object) {
        let (field, text) = match take_string(&mut delta, "type").as_deref() {
            Some("text_delta") => ("text", take_string(&mut delta, "text")),
            Some("thinking_delta") => ("thinking", take_string(&mut delta, "thinking")),
            Some("signature_delta") => {
                // Comes once, whole.
                let signature = take_string(&mut delta, "signature").unwrap_or_default();
                self.block.insert("signature".into(), signature.into());
                return;
            }
            Some("input_json_delta") => {
                self.input.push_str(&take_string(&mut delta, "partial_json").unwrap_or_default());
                return;
            }
            Some("citations_delta") => {
                let citation = delta.get_mut("citation").map(Value::take).unwrap_or_default();
                match self.block.get_mut("citations") {
                    Some(Value::Array(citations)) => citations.push(citation),
                    _ => drop(self.block.insert("citations".into(), json!([citation]))),
                }
                return;
            }
            // A kind that came later, such as `compaction_delta`: each field is a part of the block's of that name.
            _ => {
                delta.shift_remove("type");
                for (key, value) in delta {
                    match (self.block.get_mut(&key), value) {
                        (Some(Value::String(known)), Value::String(more)) => known.push_str(&more),
                        (_, value) => drop(self.block.insert(key, value)),
                    }
                }
                return;
            }
        };
        match (self.block.get_mut(field), text) {
            (Some(Value::String(known)), Some(text)) => known.push_str(&text),
            (_, Some(text)) => drop(self.block.insert(field.into(), text.into())),
            (_, None) => {}
        }
    }

    fn finish(mut self) -> Result<Value, ConvertError> {
        if !self.input.is_empty() {
            let input: Value = read_lossy(self.input.as_bytes())
                .map_err(|error| ConvertError::new(format!("A tool's input is not valid JSON: {error}")))?;
            self.block.insert("input".into(), input);
        }
        Ok(self.block.into())
    }
}

/// Takes in `message_delta`: why the model stopped, and the counts that it reports.
fn end(answer: &mut Object, mut event: Object) {
    for (key, value) in take_object(&mut event, "delta").unwrap_or_default() {
        answer.insert(key, value);
    }
    let usage = take_object(&mut event, "usage").unwrap_or_default();
    if let Value::Object(known) = answer.entry("usage").or_insert_with(|| json!({})) {
        for (key, value) in usage.into_iter().filter(|(_, value)| !value.is_null()) {
            known.insert(key, value);
        }
    }
    event.shift_remove("delta");
    event.shift_remove("usage");
    event.shift_remove("type");
    answer.extend(event.into_iter().filter(|(_, value)| !value.is_null()));
}
