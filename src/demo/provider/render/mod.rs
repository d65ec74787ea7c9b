//! Answers in the wire formats of the real providers.
//!
//! This is written apart from `crate::wire` on purpose: a provider that shared the gateway's own encoder would hide its
//! mistakes from the tests.

mod anthropic;
mod chat;
mod embeddings;
mod models;
mod responses;

use bytes::Bytes;
use http::HeaderValue;
use serde_json::Value;

use crate::domain::usage::Usage;

use super::Endpoint;
use super::answer::Answer;
use super::ask::Ask;

pub(super) use models::models;

pub(super) const JSON: HeaderValue = HeaderValue::from_static("application/json");
pub(super) const EVENT_STREAM: HeaderValue = HeaderValue::from_static("text/event-stream; charset=utf-8");
pub(super) const DONE: Bytes = Bytes::from_static(b"data: [DONE]\n\n");
/// When every scripted answer was made: a constant, so that answers are the same in every run.
pub(super) const CREATED: u64 = 1_770_000_000;

/// An answer in its format, undisturbed.
#[derive(Debug)]
pub(super) struct Pieces {
    pub(super) is_stream: bool,
    /// Whether the length is announced.
    pub(super) fixed_length: bool,
    pub(super) parts: Vec<Bytes>,
    /// How many of the last parts only mark the end of the stream.
    pub(super) terminator: usize,
    /// The usage that the answer reports.
    pub(super) usage: Usage,
}

impl Pieces {
    pub(super) fn json(body: Bytes, usage: Usage) -> Self {
        Self { is_stream: false, fixed_length: true, parts: vec![body], terminator: 0, usage }
    }

    pub(super) fn stream(parts: Vec<Bytes>, terminator: usize, usage: Usage) -> Self {
        Self { is_stream: true, fixed_length: false, parts, terminator, usage }
    }

    pub(super) fn content_type(&self) -> HeaderValue {
        if self.is_stream { EVENT_STREAM } else { JSON }
    }
}

/// Puts an answer into the format of the requested endpoint.
pub(super) fn answer(answer: &Answer, ask: &Ask) -> Pieces {
    match (ask.endpoint, ask.stream) {
        (Endpoint::Chat, false) => chat::body(answer, ask),
        (Endpoint::Chat, true) => chat::stream(answer, ask),
        (Endpoint::Responses, false) => responses::body(answer, ask),
        (Endpoint::Responses, true) => responses::stream(answer, ask),
        (Endpoint::Messages, false) => anthropic::body(answer, ask),
        (Endpoint::Messages, true) => anthropic::stream(answer, ask),
        (Endpoint::CountTokens, _) => anthropic::count(answer),
        (Endpoint::Embeddings, _) => embeddings::body(answer, ask),
        (Endpoint::Models | Endpoint::Unknown, _) => models(&[], ask),
    }
}

/// An event without a name, as Chat streams have.
pub(super) fn data_event(payload: &Value) -> Bytes {
    Bytes::from(format!("data: {payload}\n\n"))
}

/// An event named after its `type`, as Anthropic and Responses streams have.
pub(super) fn named_event(payload: &Value) -> Bytes {
    let kind = payload.get("type").and_then(Value::as_str).unwrap_or("message");
    Bytes::from(format!("event: {kind}\ndata: {payload}\n\n"))
}

/// The model an answer names.
fn model<'a>(answer: &'a Answer, ask: &'a Ask) -> &'a str {
    answer.model.as_deref().unwrap_or(&ask.model)
}
