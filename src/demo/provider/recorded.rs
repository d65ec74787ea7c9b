//! Recorded answers, replayed unchanged.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde_json::Value;

use crate::domain::usage::Usage;

use super::render::{self, Pieces};

const BODY: &str = ".json";
const CHUNKS: &str = ".chunks.txt";

/// A recording that could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum RecordingError {
    #[error("no recording at {}", .0.display())]
    Missing(PathBuf),
    #[error("cannot read {}: {source}", .path.display())]
    Unreadable { path: PathBuf, source: std::io::Error },
}

/// A provider's recorded answer, as a body, as a stream, or both.
#[derive(Debug)]
pub(super) struct Recording {
    body: Option<(Bytes, Usage)>,
    /// Events, how many of them end the stream, and the usage they report.
    stream: Option<(Vec<Bytes>, usize, Usage)>,
}

impl Recording {
    pub(super) fn load(path: &Path) -> Result<Self, RecordingError> {
        let name = path.as_os_str().to_string_lossy();
        let stem = name.strip_suffix(BODY).or_else(|| name.strip_suffix(CHUNKS)).unwrap_or(&name);
        let is_chat = path.parent().and_then(Path::file_name) == Some(OsStr::new("openai-chat"));
        let body = read(&format!("{stem}{BODY}"))?.map(|text| {
            let usage = serde_json::from_str(&text).map(|value| reported(&value)).unwrap_or_default();
            (Bytes::from(text), usage)
        });
        let stream = read(&format!("{stem}{CHUNKS}"))?.map(|text| events(&text, is_chat));
        if body.is_none() && stream.is_none() {
            return Err(RecordingError::Missing(path.to_owned()));
        }
        Ok(Self { body, stream })
    }

    pub(super) fn pieces(&self, stream: bool) -> Pieces {
        let as_body = || self.body.as_ref().map(|(body, usage)| Pieces::json(body.clone(), *usage));
        let as_stream =
            || self.stream.as_ref().map(|(events, end, usage)| Pieces::stream(events.clone(), *end, *usage));
        let pieces = if stream { as_stream().or_else(as_body) } else { as_body().or_else(as_stream) };
        pieces.unwrap_or_else(|| Pieces::json(Bytes::new(), Usage::default()))
    }
}

/// The file's text; `None` when there is no such file.
fn read(path: &str) -> Result<Option<String>, RecordingError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(RecordingError::Unreadable { path: path.into(), source }),
    }
}

/// One event for each line: Chat's are unnamed and end with `[DONE]`; those of Responses and Anthropic are named after the
/// payload's `type`.
fn events(text: &str, is_chat: bool) -> (Vec<Bytes>, usize, Usage) {
    let mut usage = Usage::default();
    let mut events = Vec::new();
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        let payload: Value = serde_json::from_str(line).unwrap_or_default();
        usage.merge(&reported(&payload));
        events.push(match payload.get("type").and_then(Value::as_str) {
            Some(kind) if !is_chat => Bytes::from(format!("event: {kind}\ndata: {line}\n\n")),
            _ => Bytes::from(format!("data: {line}\n\n")),
        });
    }
    if is_chat {
        events.push(render::DONE);
    }
    (events, 1, usage)
}

/// The usage that a body or an event reports, wherever its format puts it.
fn reported(payload: &Value) -> Usage {
    let place = ["/usage", "/message/usage", "/response/usage"];
    let Some(usage) = place.iter().find_map(|at| payload.pointer(at)).filter(|usage| usage.is_object())
    else {
        return Usage::default();
    };
    let number = |at: &str| usage.pointer(at).and_then(Value::as_u64);
    let (read, written) = (number("/cache_read_input_tokens"), number("/cache_creation_input_tokens"));
    Usage {
        prompt: number("/prompt_tokens")
            .or_else(|| Some(number("/input_tokens")? + read.unwrap_or(0) + written.unwrap_or(0))),
        completion: number("/completion_tokens").or_else(|| number("/output_tokens")),
        cached: number("/prompt_tokens_details/cached_tokens")
            .or_else(|| number("/input_tokens_details/cached_tokens"))
            .or(read),
        cache_write: written,
        reasoning: number("/completion_tokens_details/reasoning_tokens")
            .or_else(|| number("/output_tokens_details/reasoning_tokens")),
    }
}
