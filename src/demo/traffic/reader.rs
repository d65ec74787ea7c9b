//! Reading an answer as a client: whether it is complete, and the usage it reports.

use serde_json::Value;

use crate::demo::provider::Tokens;

/// Reads an event stream of Chat Completions as it comes, cut anywhere.
#[derive(Debug, Default)]
pub(super) struct StreamReader {
    line: Vec<u8>,
    /// Text, reasoning or a tool call has come.
    pub(super) has_content: bool,
    /// `[DONE]` has come.
    pub(super) is_done: bool,
    /// An event reported that the provider failed.
    pub(super) has_failed: bool,
    pub(super) tokens: Option<Tokens>,
}

impl StreamReader {
    pub(super) fn push(&mut self, bytes: &[u8]) {
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.line.extend_from_slice(part);
            if part.ends_with(b"\n") {
                let line = std::mem::take(&mut self.line);
                self.take_line(&line);
            }
        }
    }

    /// Whether the answer came to its proper end.
    pub(super) fn is_whole(&self) -> bool {
        self.is_done && !self.has_failed
    }

    fn take_line(&mut self, line: &[u8]) {
        let Some(data) = line.trim_ascii_end().strip_prefix(b"data:").map(<[u8]>::trim_ascii_start) else {
            return;
        };
        if data == b"[DONE]" {
            self.is_done = true;
            return;
        }
        let Ok(event) = serde_json::from_slice::<Value>(data) else {
            self.has_failed = true;
            return;
        };
        self.has_failed |= event.get("error").is_some_and(|error| !error.is_null());
        self.tokens = tokens(&event).or(self.tokens);
        if let Some(delta) = event.pointer("/choices/0/delta").and_then(Value::as_object) {
            let says =
                |name: &str| delta.get(name).and_then(Value::as_str).is_some_and(|text| !text.is_empty());
            self.has_content |=
                says("content") || says("reasoning_content") || delta.contains_key("tool_calls");
        }
    }
}

/// The usage of a body or an event, in OpenAI's words.
pub(super) fn tokens(body: &Value) -> Option<Tokens> {
    let usage = body.get("usage").filter(|usage| usage.is_object())?;
    let number = |at: &str| usage.pointer(at).and_then(Value::as_u64).unwrap_or(0);
    Some(Tokens {
        prompt: number("/prompt_tokens"),
        completion: number("/completion_tokens"),
        cached: number("/prompt_tokens_details/cached_tokens"),
        cache_write: 0,
        reasoning: number("/completion_tokens_details/reasoning_tokens"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &str = concat!(
        "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\r\n\r\n",
        ": a comment\n\n",
        "data: {\"choices\":[{\"delta\":{\"content\":\"Grüezi\"}}],\"usage\":null}\n\n",
        "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":2}}\n\n",
        "data: [DONE]\n\n",
    );

    #[test]
    fn a_stream_is_read_the_same_however_it_is_cut() {
        for size in 1..STREAM.len() {
            let mut reader = StreamReader::default();
            for chunk in STREAM.as_bytes().chunks(size) {
                reader.push(chunk);
            }
            assert!(reader.is_whole() && reader.has_content);
            assert_eq!(reader.tokens, Some(Tokens { prompt: 7, completion: 2, ..Tokens::default() }));
        }
    }

    #[test]
    fn a_role_is_no_content_and_a_missing_end_no_answer() {
        let mut reader = StreamReader::default();
        reader.push(STREAM.lines().next().unwrap().as_bytes());
        reader.push(b"\n\n");
        assert!(!reader.has_content && !reader.is_whole());
    }

    #[test]
    fn an_error_in_the_stream_is_a_failure_even_before_a_proper_end() {
        let mut reader = StreamReader::default();
        reader.push(b"data: {\"error\":{\"message\":\"no\"}}\n\ndata: [DONE]\n\n");
        assert!(reader.is_done && !reader.is_whole());
    }
}
