//! Properties of every format.

mod fit;
mod garbage;
mod golden;
mod grammar;
mod known;
mod openai;
mod requests;
mod strategy;
mod streams;

use serde_json::{Value, json};

use super::AnswerContext;
use crate::domain::chat::{ChatAnswer, ChatRequest};
use crate::domain::label::ApiFormat::{self, OpenAiChat};
use crate::wire::convert::dropped::Dropped;
use crate::wire::convert::error::ConvertError;
use crate::wire::convert::{
    RequestOptions, StreamConverter, answer_to_stream, convert_answer, convert_request, stream_to_answer,
};
use crate::wire::{anthropic, openai_chat, openai_responses};

/// For a whole answer of the model called `model`.
fn options(model: &str) -> RequestOptions<'_> {
    RequestOptions {
        model,
        known_as: model,
        openai_or_azure: true,
        stream: false,
        ask_usage: false,
        default_max_tokens: 8192,
    }
}

fn context(format: ApiFormat) -> AnswerContext {
    AnswerContext::new(format, b"{}", "m", "0a1b", 1_700_000_000)
}

fn decode_request(format: ApiFormat, body: &[u8]) -> Result<(ChatRequest, Vec<String>), ConvertError> {
    let mut dropped = Dropped::default();
    let request = match format {
        ApiFormat::OpenAiChat => openai_chat::request::decode(body, &mut dropped),
        ApiFormat::OpenAiResponses => openai_responses::request::decode(body, &mut dropped),
        ApiFormat::Anthropic => anthropic::request::decode(body, &mut dropped),
    };
    request.map(|request| (request, dropped.into_names()))
}

fn encode_request(
    format: ApiFormat,
    request: &ChatRequest,
    model: &str,
) -> Result<(Vec<u8>, Vec<String>), ConvertError> {
    let options =
        RequestOptions { stream: true, ask_usage: true, default_max_tokens: 4096, ..options(model) };
    let mut dropped = Dropped::default();
    let body = match format {
        ApiFormat::OpenAiChat => openai_chat::request::encode(request, &options, &mut dropped),
        ApiFormat::OpenAiResponses => openai_responses::request::encode(request, &options, &mut dropped),
        ApiFormat::Anthropic => anthropic::request::encode(request, &options, &mut dropped),
    };
    body.map(|body| (body, dropped.into_names()))
}

fn decode_answer(format: ApiFormat, body: &[u8]) -> Result<ChatAnswer, ConvertError> {
    match format {
        ApiFormat::OpenAiChat => openai_chat::answer::decode(body),
        ApiFormat::OpenAiResponses => openai_responses::answer::decode(body),
        ApiFormat::Anthropic => anthropic::answer::decode(body),
    }
}

fn encode_answer(format: ApiFormat, answer: &ChatAnswer) -> Vec<u8> {
    let context = context(format);
    match format {
        ApiFormat::OpenAiChat => openai_chat::answer::encode(answer, &context),
        ApiFormat::OpenAiResponses => openai_responses::answer::encode(answer, &context),
        ApiFormat::Anthropic => anthropic::answer::encode(answer, &context),
    }
    .unwrap()
}

/// The events of a stream: names and data.
fn events(stream: &str) -> Vec<(Option<&str>, &str)> {
    let mut events = Vec::new();
    for event in stream.split("\n\n").filter(|event| !event.is_empty()) {
        let name = event.lines().find_map(|line| line.strip_prefix("event: "));
        // The scanner takes the default name for none.
        let name = name.filter(|name| *name != "message");
        let data = event.lines().find_map(|line| line.strip_prefix("data: "));
        events.push((name, data.unwrap_or_default()));
    }
    events
}

fn stream_of(format: ApiFormat, answer: &[u8]) -> Result<String, ConvertError> {
    let mut out = bytes::BytesMut::new();
    answer_to_stream(format, answer, true, &mut out)?;
    Ok(String::from_utf8(out.to_vec()).unwrap())
}

fn answer_of(format: ApiFormat, stream: &str) -> Result<Value, ConvertError> {
    let body = stream_to_answer(format, events(stream).into_iter())?;
    Ok(serde_json::from_slice(&body).unwrap())
}

/// The request as the model called `model` gets it, and the dropped fields.
fn sent(from: ApiFormat, to: ApiFormat, model: &str, request: &Value) -> (Value, Vec<String>) {
    sent_by(from, to, &options(model), request)
}

fn sent_by(
    from: ApiFormat,
    to: ApiFormat,
    options: &RequestOptions<'_>,
    request: &Value,
) -> (Value, Vec<String>) {
    let rendered = convert_request(from, to, request.to_string().as_bytes(), options).unwrap();
    (serde_json::from_slice(&rendered.body).unwrap(), rendered.dropped)
}

/// An answer of a chat provider to `request`, as its client of the format `client` gets it, whole and streamed.
fn answered(client: ApiFormat, request: &Value, message: &Value) -> (Value, String) {
    let context = || AnswerContext::new(client, request.to_string().as_bytes(), "m", "0a1b", 0);
    let whole = json!({"id": "1", "choices": [{"message": message, "finish_reason": "tool_calls"}]});
    let whole = convert_answer(OpenAiChat, client, whole.to_string().as_bytes(), &context()).unwrap();
    let mut converter = StreamConverter::new(OpenAiChat, client, context());
    let mut out = bytes::BytesMut::new();
    let chunk =
        json!({"id": "1", "choices": [{"index": 0, "delta": message, "finish_reason": "tool_calls"}]});
    converter.feed(None, &chunk.to_string(), &mut out);
    converter.feed(None, "[DONE]", &mut out);
    (serde_json::from_slice(&whole).unwrap(), String::from_utf8(out.to_vec()).unwrap())
}

fn call(id: &str, name: &str) -> Value {
    json!({"tool_calls": [{"index": 0, "id": id, "type": "function", "function": {"name": name, "arguments": "{}"}}]})
}
