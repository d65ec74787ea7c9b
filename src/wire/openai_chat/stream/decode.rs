//! Reading a provider's chunks.

use serde_json::Value;

use crate::domain::chat::{Block, StreamEvent, ToolKind};
use crate::wire::convert::fields::{Object, take_object, take_objects, take_string};
use crate::wire::convert::surrogates::read_lossy;
use crate::wire::convert::{failure, signed};
use crate::wire::openai_chat::{answer, usage};

/// State between chunks.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    started: bool,
    /// The index of the choice that is read, because only one was requested: 0, but some providers are careless about
    /// it.
    followed: Option<u64>,
    /// The latest finish reason. Some providers send one in every chunk, so it does not end the answer: the end of the
    /// stream does.
    reason: Option<String>,
    next_key: u32,
    /// The text that is being generated: its kind and key.
    speaking: Option<(Block, u32)>,
    calls: Vec<Call>,
    has_refusal: bool,
}

/// A call that is being generated.
#[derive(Debug)]
struct Call {
    /// The provider's number for it.
    index: u64,
    id: String,
    signature: Option<String>,
    /// `None` until its name came.
    key: Option<u32>,
    kind: ToolKind,
    /// Arguments that came before the name.
    early: String,
    json: Json,
    closed: bool,
}

impl Decoder {
    /// Reads the `data:` of one event.
    pub(crate) fn read(&mut self, data: &str, events: &mut Vec<StreamEvent>) {
        let data = data.trim_ascii();
        if data.is_empty() {
            return;
        }
        if data == "[DONE]" {
            self.stop(events);
            events.push(StreamEvent::End);
            return;
        }
        match read_lossy::<Value>(data.as_bytes()) {
            Ok(Value::Object(chunk)) => self.chunk(chunk, events),
            // Not part of the format; a proxy's heartbeat.
            Ok(_) => {}
            Err(_) => events.push(StreamEvent::Failed(failure::garbage())),
        }
    }

    /// The stream has ended without `[DONE]`, as some providers' streams do. It is complete if a finish reason came.
    pub(crate) fn finish(&mut self, events: &mut Vec<StreamEvent>) {
        if self.reason.is_some() {
            self.stop(events);
        }
    }

    fn chunk(&mut self, mut chunk: Object, events: &mut Vec<StreamEvent>) {
        if let Some(error) = answer::error(&chunk) {
            events.push(StreamEvent::Failed(error));
            return;
        }
        self.followed = self.followed.or_else(|| lowest_index(&chunk));
        let followed = |choice: &Object| index_of(choice).is_none_or(|index| self.followed == Some(index));
        let mut of_choice = None;
        if let Some(mut choice) = take_objects(&mut chunk, "choices").find(followed) {
            if !self.started {
                self.started = true;
                events.push(StreamEvent::Start { id: take_string(&mut chunk, "id").unwrap_or_default() });
            }
            if let Some(delta) = take_object(&mut choice, "delta") {
                self.delta(delta, events);
            }
            let reason = take_string(&mut choice, "finish_reason").filter(|reason| !reason.is_empty());
            self.reason = reason.or(self.reason.take());
            of_choice = choice.shift_remove("usage").filter(Value::is_object);
        }
        let groq = || chunk.get("x_groq").and_then(|groq| groq.get("usage"));
        let reported =
            chunk.get("usage").filter(|usage| usage.is_object()).or_else(groq).or(of_choice.as_ref());
        if let Some(reported) = reported {
            events.push(StreamEvent::Usage(usage::decode(reported)));
        }
    }

    fn delta(&mut self, mut delta: Object, events: &mut Vec<StreamEvent>) {
        for key in ["reasoning_content", "reasoning"] {
            if let Some(text) = take_string(&mut delta, key).filter(|text| !text.is_empty()) {
                self.speak(Block::Reasoning, text, events);
                break;
            }
        }
        match delta.get_mut("content").map(Value::take) {
            Some(Value::String(text)) => self.speak(Block::Text, text, events),
            Some(Value::Array(chunks)) => self.chunks(&chunks, events),
            _ => {}
        }
        if let Some(text) = take_string(&mut delta, "refusal") {
            self.has_refusal |= !text.is_empty();
            self.speak(Block::Refusal, text, events);
        }
        for call in take_objects(&mut delta, "tool_calls") {
            self.call(call, events);
        }
    }

    /// Content in parts, as Mistral sends it: text and thoughts.
    fn chunks(&mut self, chunks: &[Value], events: &mut Vec<StreamEvent>) {
        for chunk in chunks {
            if let Some(text) = chunk["text"].as_str() {
                self.speak(Block::Text, text.to_owned(), events);
            }
            for thought in chunk["thinking"].as_array().map(Vec::as_slice).unwrap_or_default() {
                if let Some(text) = thought["text"].as_str() {
                    self.speak(Block::Reasoning, text.to_owned(), events);
                }
            }
        }
    }

    fn new_key(&mut self) -> u32 {
        self.next_key += 1;
        self.next_key
    }

    /// Continues or begins a text of the kind `block`.
    fn speak(&mut self, block: Block, text: String, events: &mut Vec<StreamEvent>) {
        if text.is_empty() {
            return;
        }
        let key = match &self.speaking {
            Some((current, key)) if *current == block => *key,
            _ => {
                self.close_text(events);
                self.close_complete_calls(events);
                let key = self.new_key();
                self.speaking = Some((block.clone(), key));
                events.push(StreamEvent::Open { key, block });
                key
            }
        };
        events.push(StreamEvent::Delta { key, text });
    }

    fn close_text(&mut self, events: &mut Vec<StreamEvent>) {
        if let Some((_, key)) = self.speaking.take() {
            events.push(StreamEvent::Close { key });
        }
    }

    /// Ends the calls whose arguments are complete. The format does not say when a call ends, and some providers let
    /// calls overlap, so that the next one's beginning proves nothing.
    fn close_complete_calls(&mut self, events: &mut Vec<StreamEvent>) {
        for call in self.calls.iter_mut().filter(|call| !call.closed && call.is_complete()) {
            if let Some(key) = call.key {
                call.closed = true;
                events.push(StreamEvent::Close { key });
            }
        }
    }

    /// A piece of a call: the first has id and name, the others arguments.
    fn call(&mut self, mut delta: Object, events: &mut Vec<StreamEvent>) {
        let id = take_string(&mut delta, "id").unwrap_or_default();
        let (mut inner, input, kind) = match take_object(&mut delta, "custom") {
            Some(custom) => (custom, "input", ToolKind::Custom),
            None => {
                (take_object(&mut delta, "function").unwrap_or_default(), "arguments", ToolKind::Function)
            }
        };
        let name = take_string(&mut inner, "name").unwrap_or_default();
        let arguments = match inner.get_mut(input).map(Value::take) {
            Some(Value::String(text)) => text,
            Some(object @ Value::Object(_)) => object.to_string(),
            _ => String::new(),
        };
        let index = delta.get("index").and_then(Value::as_u64);
        let position = self.find_or_begin(index, &id, &name, &arguments, kind);
        let Some(call) = self.calls.get_mut(position) else { return };
        if call.id.is_empty() {
            call.id = id;
        }
        if let Some(signature) = signed::signature(&delta) {
            call.signature = Some(signature.to_owned());
        }
        call.json.feed(&arguments);
        match call.key {
            Some(key) if !arguments.is_empty() => events.push(StreamEvent::Delta { key, text: arguments }),
            Some(_) => {}
            None if name.is_empty() => call.early.push_str(&arguments),
            None => self.open_call(position, name, arguments, events),
        }
        // Others wait for this one, so it must not stay open needlessly.
        if position + 1 < self.calls.len() {
            self.close_complete_calls(events);
        }
    }

    fn open_call(&mut self, position: usize, name: String, arguments: String, events: &mut Vec<StreamEvent>) {
        self.close_text(events);
        self.close_complete_calls(events);
        let key = self.new_key();
        let Some(call) = self.calls.get_mut(position) else { return };
        call.key = Some(key);
        let id = signed::sign(&call.id, call.signature.as_deref());
        events.push(StreamEvent::Open { key, block: Block::ToolCall { id, name, kind: call.kind } });
        let text = std::mem::take(&mut call.early) + &arguments;
        if !text.is_empty() {
            events.push(StreamEvent::Delta { key, text });
        }
    }

    /// The place of the call that a piece belongs to. Some providers number all calls 0 and distinguish them by id, or
    /// not at all; some do not number them.
    fn find_or_begin(
        &mut self,
        index: Option<u64>,
        id: &str,
        name: &str,
        arguments: &str,
        kind: ToolKind,
    ) -> usize {
        let last = self.calls.len().checked_sub(1);
        let found = match index {
            Some(index) => self.calls.iter().rposition(|call| call.index == index),
            None if !id.is_empty() => self.calls.iter().rposition(|call| call.id == id),
            None => last.filter(|_| name.is_empty()),
        };
        let begins_another = |position: &usize| {
            let call = &self.calls[*position];
            let differs = if id.is_empty() || call.id.is_empty() {
                // Complete arguments cannot continue, so a name with more of them begins another call.
                let more = kind == ToolKind::Function && !arguments.trim_ascii().is_empty();
                id == call.id && call.json.is_complete() && more
            } else {
                id != call.id
            };
            !name.is_empty() && call.key.is_some() && differs
        };
        if let Some(position) = found.filter(|position| !begins_another(position)) {
            return position;
        }
        self.calls.push(Call {
            index: index.unwrap_or(u64::MAX),
            id: id.to_owned(),
            signature: None,
            key: None,
            kind,
            early: String::new(),
            json: Json::default(),
            closed: false,
        });
        self.calls.len() - 1
    }

    /// The model has stopped: closes open blocks and sends the reason.
    fn stop(&mut self, events: &mut Vec<StreamEvent>) {
        self.close_text(events);
        for call in self.calls.iter_mut().filter(|call| !call.closed) {
            if let Some(key) = call.key {
                call.closed = true;
                events.push(StreamEvent::Close { key });
            }
        }
        let has_calls = self.calls.iter().any(|call| call.key.is_some());
        let reason = answer::stop_reason(self.reason.as_deref(), has_calls, self.has_refusal);
        events.push(StreamEvent::Stop(reason));
    }
}

fn index_of(choice: &Object) -> Option<u64> {
    choice.get("index")?.as_u64()
}

fn lowest_index(chunk: &Object) -> Option<u64> {
    chunk.get("choices")?.as_array()?.iter().filter_map(Value::as_object).filter_map(index_of).min()
}

impl Call {
    fn is_complete(&self) -> bool {
        // Free text ends when something else begins.
        self.kind == ToolKind::Custom || self.json.is_complete()
    }
}

/// Follows JSON text as it comes, to see when its object or array is complete.
#[derive(Debug, Default)]
struct Json {
    depth: u32,
    begun: bool,
    in_string: bool,
    escaped: bool,
}

impl Json {
    fn feed(&mut self, text: &str) {
        for byte in text.bytes() {
            if self.in_string {
                match byte {
                    _ if self.escaped => self.escaped = false,
                    b'\\' => self.escaped = true,
                    b'"' => self.in_string = false,
                    _ => {}
                }
                continue;
            }
            match byte {
                b'"' => self.in_string = true,
                b'{' | b'[' => {
                    self.begun = true;
                    self.depth = self.depth.saturating_add(1);
                }
                b'}' | b']' => self.depth = self.depth.saturating_sub(1),
                _ => {}
            }
        }
    }

    fn is_complete(&self) -> bool {
        self.begun && self.depth == 0 && !self.in_string
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_whole_when_its_object_is_closed() {
        let mut json = Json::default();
        for (piece, whole) in
            [("", false), ("{\"a", false), ("}\\\"", false), ("\":[1,{}]", false), ("}", true)]
        {
            json.feed(piece);
            assert_eq!(json.is_complete(), whole, "{piece}");
        }
    }

    fn read(chunks: &[&str]) -> Vec<StreamEvent> {
        let mut decoder = Decoder::default();
        let mut events = Vec::new();
        for chunk in chunks {
            decoder.read(chunk, &mut events);
        }
        events
    }

    fn calls(chunks: &[&str]) -> Vec<(String, String)> {
        let mut calls: Vec<(u32, String, String)> = Vec::new();
        for event in read(chunks) {
            match event {
                StreamEvent::Open { key, block: Block::ToolCall { id, .. } } => {
                    calls.push((key, id, String::new()))
                }
                StreamEvent::Delta { key, text } => {
                    calls.iter_mut().find(|call| call.0 == key).unwrap().2.push_str(&text);
                }
                _ => {}
            }
        }
        calls.into_iter().map(|(_, id, arguments)| (id, arguments)).collect()
    }

    #[test]
    fn calls_are_told_apart_however_they_are_numbered() {
        let expected = vec![("a".to_owned(), "{}".to_owned()), ("b".to_owned(), "{\"x\":1}".to_owned())];
        let all_zero = [
            r#"{"choices":[{"delta":{"tool_calls":[{"index":0,"id":"a","function":{"name":"f","arguments":"{}"}}]}}]}"#,
            r#"{"choices":[{"delta":{"tool_calls":[{"index":0,"id":"b","function":{"name":"f","arguments":"{\"x\":1}"}}]}}]}"#,
        ];
        assert_eq!(calls(&all_zero), expected);
        let unnumbered = [
            r#"{"choices":[{"delta":{"tool_calls":[{"id":"a","function":{"name":"f","arguments":{}}}]}}]}"#,
            r#"{"choices":[{"delta":{"tool_calls":[{"id":"b","function":{"name":"f","arguments":"{\"x\":"}},{"function":{"arguments":"1}"}}]}}]}"#,
        ];
        assert_eq!(calls(&unnumbered), expected);
        let repeated_id = [
            r#"{"choices":[{"delta":{"tool_calls":[{"id":"a","function":{"name":"f","arguments":"{}"}},{"id":"b","function":{"name":"f","arguments":"{\"x\":"}}]}}]}"#,
            r#"{"choices":[{"delta":{"tool_calls":[{"id":"b","function":{"arguments":"1}"}}]}}]}"#,
        ];
        assert_eq!(calls(&repeated_id), expected);
        let overlapping = [
            r#"{"choices":[{"delta":{"tool_calls":[{"index":0,"id":"a","function":{"name":"f","arguments":""}},{"index":1,"id":"b","function":{"name":"f","arguments":"{"}}]}}]}"#,
            r#"{"choices":[{"delta":{"tool_calls":[{"index":0,"function":{"arguments":"{}"}},{"index":1,"function":{"arguments":"\"x\":1}"}}]}}]}"#,
        ];
        assert_eq!(calls(&overlapping), expected);
        let late_name = [
            r#"{"choices":[{"delta":{"tool_calls":[{"index":0,"id":"a","function":{"arguments":"{"}}]}}]}"#,
            r#"{"choices":[{"delta":{"tool_calls":[{"index":0,"function":{"name":"f","arguments":"}"}}]}}]}"#,
        ];
        assert_eq!(calls(&late_name), expected[..1]);
        let no_ids = [
            r#"{"choices":[{"delta":{"tool_calls":[{"index":0,"function":{"name":"f","arguments":"{}"}}]}}]}"#,
        ];
        assert_eq!(calls(&no_ids), [(String::new(), "{}".to_owned())]);
        let all_zero_without_ids = [
            r#"{"choices":[{"delta":{"tool_calls":[{"index":0,"function":{"name":"f","arguments":"{}"}}]}}]}"#,
            r#"{"choices":[{"delta":{"tool_calls":[{"index":0,"function":{"name":"f","arguments":""}}]}}]}"#,
            r#"{"choices":[{"delta":{"tool_calls":[{"index":0,"function":{"name":"f","arguments":"{\"x\":1}"}}]}}]}"#,
        ];
        let expected: Vec<_> =
            expected.into_iter().map(|(_, arguments)| (String::new(), arguments)).collect();
        assert_eq!(calls(&all_zero_without_ids), expected);
    }

    #[test]
    fn garbage_is_an_error_and_heartbeats_are_not() {
        assert!(matches!(read(&["{\"choices\":"])[..], [StreamEvent::Failed(_)]));
        assert_eq!(read(&["", "  ", "null", "1"]), []);
        assert!(matches!(read(&[r#"{"error":{"message":"m"}}"#])[..], [StreamEvent::Failed(_)]));
    }
}
