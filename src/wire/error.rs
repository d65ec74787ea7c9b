//! Errors in the shapes that clients know, whole or as the last event of a stream, and read back from providers.

use std::borrow::Cow;

use bytes::{Bytes, BytesMut};
use serde::Serialize;

use self::words::{
    QUOTA, anthropic_message, anthropic_word, kind_of_status, openai_word_for_status, status_of_word,
};
use super::lenient::{Array, Fold, Raw, json_object};
use super::sse::write_event;
use crate::domain::chat::ErrorKind;
use crate::domain::label::ApiFormat;

pub(crate) mod words;

/// The shape of an error body. Chat, Responses and embeddings share OpenAI's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorFormat {
    /// `{"error": {message, type, code, param}}`
    OpenAi,
    /// `{"type": "error", "error": {type, message}}`
    Anthropic,
}

impl From<ApiFormat> for ErrorFormat {
    fn from(format: ApiFormat) -> Self {
        match format {
            ApiFormat::OpenAiChat | ApiFormat::OpenAiResponses => Self::OpenAi,
            ApiFormat::Anthropic => Self::Anthropic,
        }
    }
}

/// An error as a client gets it. Its fields are OpenAI's; Anthropic's type follows from the status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    /// HTTP status; in a stream, the one it would have had before the headers were sent.
    pub status: u16,
    /// OpenAI's `type`.
    pub kind: Cow<'static, str>,
    pub code: Option<Cow<'static, str>>,
    /// A sentence for the person who reads the client's log.
    pub message: Cow<'static, str>,
    /// The request field that is at fault.
    pub param: Option<Cow<'static, str>>,
}

impl ApiError {
    /// An error with the `type` that belongs to its status, and neither code nor param.
    pub fn new(status: u16, message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            status,
            kind: openai_word_for_status(status).into(),
            code: None,
            message: message.into(),
            param: None,
        }
    }

    pub fn with_code(mut self, code: impl Into<Cow<'static, str>>) -> Self {
        self.code = Some(code.into());
        self
    }

    fn anthropic_type(&self) -> &'static str {
        // OpenAI's 429 has two meanings, and only one of them passes with time.
        let billing = self.kind == QUOTA || self.code.as_deref() == Some(QUOTA);
        anthropic_word(if billing { ErrorKind::Billing } else { kind_of_status(self.status) })
    }

    pub fn with_param(mut self, param: impl Into<Cow<'static, str>>) -> Self {
        self.param = Some(param.into());
        self
    }
}

/// Codes of Anthropic's API: the provider cannot store a conversation, or does not have it.
pub(crate) const THREAD_UNSUPPORTED: &str = "thread_unsupported_request";
pub(crate) const THREAD_NOT_FOUND: &str = "thread_not_found";
const THREAD_CODES: [&str; 2] = [THREAD_UNSUPPORTED, THREAD_NOT_FOUND];

#[derive(Serialize)]
struct OpenAiError<'a> {
    message: &'a str,
    #[serde(rename = "type")]
    kind: &'a str,
    code: Option<&'a str>,
    param: Option<&'a str>,
}

impl<'a> From<&'a ApiError> for OpenAiError<'a> {
    fn from(error: &'a ApiError) -> Self {
        Self {
            message: &error.message,
            kind: &error.kind,
            code: error.code.as_deref(),
            param: error.param.as_deref(),
        }
    }
}

#[derive(Serialize)]
struct OpenAiBody<'a> {
    error: OpenAiError<'a>,
}

#[derive(Serialize)]
struct AnthropicBody<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    error: AnthropicError<'a>,
}

#[derive(Serialize)]
struct AnthropicError<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    details: Option<ThreadDetails<'a>>,
}

/// Anthropic's SDKs act on these to resend a conversation without a thread.
#[derive(Serialize)]
struct ThreadDetails<'a> {
    error_code: &'a str,
    unsupported: [&'static str; 1],
}

impl<'a> ThreadDetails<'a> {
    fn of(error_code: &'a str) -> Self {
        Self { error_code, unsupported: ["provider"] }
    }
}

/// The `error` event of the Responses format. The reference documents the flat fields; OpenAI's server sends them
/// within `error`, which its SDKs raise as an exception. So both are there.
#[derive(Serialize)]
struct ResponsesErrorEvent<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    sequence_number: Option<u64>,
    code: Option<&'a str>,
    message: &'a str,
    param: Option<&'a str>,
    error: OpenAiError<'a>,
}

/// The body of an error answer.
pub fn render_error(format: ErrorFormat, error: &ApiError) -> Vec<u8> {
    match format {
        ErrorFormat::OpenAi => json(&OpenAiBody { error: error.into() }),
        ErrorFormat::Anthropic => json(&AnthropicBody {
            kind: "error",
            error: AnthropicError {
                kind: error.anthropic_type(),
                message: &anthropic_message(error.code.as_deref(), &error.message),
                details: error
                    .code
                    .as_deref()
                    .filter(|code| THREAD_CODES.contains(code))
                    .map(ThreadDetails::of),
            },
        }),
    }
}

/// The event that ends a stream with an error. `sequence_number` is that of the event, for Responses, when known.
pub fn error_event(format: ApiFormat, error: &ApiError, sequence_number: Option<u64>) -> Bytes {
    let (name, body) = match format {
        ApiFormat::OpenAiChat => (None, render_error(ErrorFormat::OpenAi, error)),
        ApiFormat::Anthropic => (Some("error"), render_error(ErrorFormat::Anthropic, error)),
        ApiFormat::OpenAiResponses => {
            let event = ResponsesErrorEvent {
                kind: "error",
                sequence_number,
                code: error.code.as_deref(),
                message: &error.message,
                param: error.param.as_deref(),
                error: error.into(),
            };
            (Some("error"), json(&event))
        }
    };
    let mut out = BytesMut::new();
    write_event(&mut out, name, &String::from_utf8_lossy(&body));
    out.freeze()
}

fn json(body: &impl Serialize) -> Vec<u8> {
    // Serialising to memory fails only for maps whose keys are not strings; there are none.
    serde_json::to_vec(body).unwrap_or_default()
}

json_object! {
    /// All fields that providers are known to put into an error body or event, at any depth.
    struct Loose<'de> {
        error: Raw<'de> = "error",
        message: Raw<'de> = "message",
        /// FastAPI, and with it many self-hosted servers.
        detail: Raw<'de> = "detail",
        kind: Raw<'de> = "type",
        code: Raw<'de> = "code",
        /// The HTTP status, as some repeat it.
        status: Raw<'de> = "status",
        param: Raw<'de> = "param",
        /// Of `response.failed`.
        response: Raw<'de> = "response",
        /// Groq's own place for the errors of a stream.
        x_groq: Raw<'de> = "x_groq",
        /// Of a chat, whose first one may have an error of its own.
        choices: Array<First<'de>> = "choices",
    }
}

/// The first item of an array: Gemini's OpenAI endpoint wraps its errors in one.
#[derive(Default)]
struct First<'de>(Option<Raw<'de>>);

impl<'de> Fold<'de> for First<'de> {
    type Item = Raw<'de>;

    fn add(&mut self, item: Raw<'de>) {
        self.0.get_or_insert(item);
    }
}

/// The longest message taken from a provider, in characters; more is a web page, not a message.
const MESSAGE_MAX_CHARS: usize = 2000;

/// Reads an error that a provider sent, as the body of an answer with `status` or as an event of a stream (then
/// `status` is a success, and a status in the error decides, or else its type), so that it can be rendered in another
/// shape. Never fails: unreadable bytes get a general message.
pub fn parse_error(status: u16, body: &[u8]) -> ApiError {
    let text = String::from_utf8_lossy(body);
    let text = text.trim();
    let mut object: Option<Loose<'_>> = Raw::of(text).object();
    if object.is_none() {
        let first: Option<Array<First<'_>>> = serde_json::from_str(text).ok();
        object = first.and_then(|Array(items)| items?.0?.object());
    }
    let Some(outer) = object else { return plain_error(status, text) };
    let response: Loose<'_> = outer.response.object().unwrap_or_default();
    let choice: Loose<'_> = outer.choices.0.and_then(|First(choice)| choice?.object()).unwrap_or_default();
    let groq: Loose<'_> = outer.x_groq.object().unwrap_or_default();
    let reported = [outer.error, response.error, groq.error, choice.error];
    let error = reported.into_iter().find(|error| error.is_filled()).unwrap_or(outer.error);
    let inner: Loose<'_> = error.object().unwrap_or_default();

    let kind =
        inner.kind.text().or_else(|| outer.kind.text().filter(|kind| kind != "error" && !error.is_filled()));
    let code = inner.code.scalar().or_else(|| outer.code.scalar());
    let message =
        [inner.message, error, outer.message, outer.detail, inner.detail].into_iter().find_map(Raw::text);
    let status = if status >= 400 {
        status
    } else {
        let known = |text: &Option<Cow<'_, str>>| text.as_deref().and_then(status_of_word);
        // OpenRouter's code is the status. It is more precise than a type: every 5xx is a `server_error`.
        let numbers = [inner.code, inner.status, outer.code, outer.status];
        let number = numbers.into_iter().find_map(error_status);
        number.or_else(|| known(&kind)).or_else(|| known(&code)).unwrap_or(500)
    };
    ApiError {
        status,
        kind: kind.map_or_else(|| openai_word_for_status(status).into(), |kind| kind.into_owned().into()),
        code: code.map(|code| code.into_owned().into()),
        message: message.map_or_else(|| general_message(status), |message| shortened(&message)),
        param: inner.param.text().or_else(|| outer.param.text()).map(|param| param.into_owned().into()),
    }
}

/// Whether an SDK of this format finds the message in an error's `body`.
pub fn has_shape(format: ErrorFormat, body: &[u8]) -> bool {
    let text = String::from_utf8_lossy(body);
    let Some(outer) = Raw::of(text.trim()).object::<Loose<'_>>() else { return false };
    let named = format == ErrorFormat::OpenAi || outer.kind.text().as_deref() == Some("error");
    named && outer.error.object::<Loose<'_>>().is_some_and(|error| error.message.text().is_some())
}

/// A number that is the HTTP status of an error.
fn error_status(number: Raw<'_>) -> Option<u16> {
    number.scalar()?.parse().ok().filter(|status| (400..600).contains(status))
}

fn plain_error(status: u16, text: &str) -> ApiError {
    let status = if status >= 400 { status } else { 500 };
    ApiError::new(status, plain_message(text).unwrap_or_else(|| general_message(status)))
}

/// The message of an error that is not JSON; `None` if it is not text, a web page, or truncated JSON.
pub(crate) fn plain_message(text: &str) -> Option<Cow<'static, str>> {
    let text = text.trim();
    let is_text = |c: char| c != char::REPLACEMENT_CHARACTER && (!c.is_control() || c.is_whitespace());
    let readable = !text.is_empty() && !text.starts_with(['<', '{', '[']) && text.chars().all(is_text);
    readable.then(|| shortened(text))
}

fn general_message(status: u16) -> Cow<'static, str> {
    format!("The provider answered with HTTP status {status}.").into()
}

pub(crate) fn shortened(text: &str) -> Cow<'static, str> {
    text.chars().take(MESSAGE_MAX_CHARS).collect::<String>().into()
}

#[cfg(test)]
mod tests;
