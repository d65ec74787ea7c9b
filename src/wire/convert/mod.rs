//! Converting between the three formats, for calls whose client and provider do not speak the same one.
//!
//! A request is read in the client's format and written in the provider's; the answer goes the other way, whole or
//! event by event; so does an error. In the middle stands [`crate::domain::chat`]. Fields that the target cannot
//! express are left out and named ([`Rendered::dropped`]); a field that cannot be left out without changing the meaning
//! is an error.
//!
//! [`answer_to_stream`] and [`stream_to_answer`] stay within one format and lose nothing.

pub(crate) mod calls;
mod context;
pub(crate) mod dropped;
pub(crate) mod error;
pub(crate) mod failure;
pub(crate) mod fields;
mod fit;
pub(crate) mod ids;
pub(crate) mod media;
pub(crate) mod names;
pub(crate) mod schema;
pub(crate) mod seal;
mod sequence;
pub(crate) mod signed;
pub(crate) mod sse;
mod stream;
pub(crate) mod surrogates;
#[cfg(test)]
mod tests;
mod traces;

use bytes::BytesMut;

pub use context::AnswerContext;
pub use error::ConvertError;
pub use failure::convert_error;
pub use stream::StreamConverter;
pub use traces::without_traces;

use self::dropped::Dropped;
use self::surrogates::read_lossy;
use super::{anthropic, openai_chat, openai_responses};
use crate::domain::label::ApiFormat;
use crate::domain::usage::Usage;

/// The gateway's side of a request: everything its writer needs besides the client's request.
#[derive(Debug, Clone, Copy)]
pub struct RequestOptions<'a> {
    /// The name the provider uses for the model.
    pub model: &'a str,
    /// The name that tells which model it is, and so which fields it takes: `model`, unless that is a name of somebody's
    /// choosing, as those of Azure's deployments are.
    pub known_as: &'a str,
    /// Whether the provider is OpenAI or Azure. Others that offer OpenAI's models may get around limits of theirs.
    pub openai_or_azure: bool,
    /// Whether the provider shall stream.
    pub stream: bool,
    /// Whether to ask for the usage on a stream (chat only; the other formats always report it).
    pub ask_usage: bool,
    /// For Anthropic, which requires a limit, when the client gave none.
    pub default_max_tokens: u32,
}

/// A request in the provider's format.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    pub body: Vec<u8>,
    /// Fields that were left out because the provider's format cannot express them: in the client's words, safe for a
    /// header, each once, at most a few dozen.
    pub dropped: Vec<String>,
}

/// Fields that both OpenAI formats have under one name and with one meaning, and that are passed between them as they are.
pub(crate) const OPENAI_SHARED: &[&str] = &[
    "metadata",
    "moderation",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "safety_identifier",
    "store",
];

/// Writes the request `body`, which a client sent in the format `from`, in the format `to`.
///
/// # Errors
///
/// A sentence for the client if the body violates `from`, or if `to` cannot express something essential.
pub fn convert_request(
    from: ApiFormat,
    to: ApiFormat,
    body: &[u8],
    options: &RequestOptions<'_>,
) -> Result<Rendered, ConvertError> {
    let mut dropped = Dropped::default();
    let mut request = match from {
        ApiFormat::OpenAiChat => openai_chat::request::decode(body, &mut dropped)?,
        ApiFormat::OpenAiResponses => openai_responses::request::decode(body, &mut dropped)?,
        ApiFormat::Anthropic => anthropic::request::decode(body, &mut dropped)?,
    };
    let mut unsayable = Dropped::default();
    fit::fit(&mut request, from, to, options, &mut unsayable);
    let body = match to {
        ApiFormat::OpenAiChat => openai_chat::request::encode(&request, options, &mut unsayable)?,
        ApiFormat::OpenAiResponses => openai_responses::request::encode(&request, options, &mut unsayable)?,
        ApiFormat::Anthropic => anthropic::request::encode(&request, options, &mut unsayable)?,
    };
    for name in unsayable.into_names() {
        dropped.add(client_word(from, &name));
    }
    Ok(Rendered { body, dropped: dropped.into_names() })
}

/// The name in `format` of the field that a writer calls `name`.
fn client_word(format: ApiFormat, name: &str) -> &str {
    use ApiFormat::{Anthropic, OpenAiChat, OpenAiResponses};
    match (format, name) {
        (OpenAiChat, "reasoning") => "reasoning_effort",
        (Anthropic, "reasoning") => "thinking",
        (OpenAiChat, "messages.reasoning") => "messages.reasoning_content",
        (OpenAiResponses, "messages.reasoning") => "input.reasoning",
        (Anthropic, "messages.reasoning") => "messages.thinking",
        (OpenAiChat, "cache_control") => "messages.content.cache_control",
        (Anthropic, "stop") => "stop_sequences",
        (Anthropic, "user") => "metadata.user_id",
        (Anthropic, "response_format") => "output_config.format",
        (OpenAiResponses, "response_format") => "text.format",
        (OpenAiResponses, "verbosity") => "text.verbosity",
        (OpenAiChat, "image.detail") => "messages.content.image_url.detail",
        (OpenAiResponses, "image.detail") => "input.content.detail",
        (Anthropic, "tool_result.is_error") => "messages.content.is_error",
        (OpenAiChat, "tools.strict") => "tools.function.strict",
        (OpenAiChat, "tools.format") => "tools.custom.format",
        _ => name,
    }
}

/// Writes the answer `body`, which a provider gave in the format `from`, in the client's format `to`.
///
/// # Errors
///
/// If the body is not an answer of `from`, or says that the answer failed.
pub fn convert_answer(
    from: ApiFormat,
    to: ApiFormat,
    body: &[u8],
    context: &AnswerContext,
) -> Result<Vec<u8>, ConvertError> {
    let mut answer = match from {
        ApiFormat::OpenAiChat => openai_chat::answer::decode(body)?,
        ApiFormat::OpenAiResponses => openai_responses::answer::decode(body)?,
        ApiFormat::Anthropic => anthropic::answer::decode(body)?,
    };
    calls::restore_all(&mut answer.parts, context);
    match to {
        ApiFormat::OpenAiChat => openai_chat::answer::encode(&answer, context),
        ApiFormat::OpenAiResponses => openai_responses::answer::encode(&answer, context),
        ApiFormat::Anthropic => anthropic::answer::encode(&answer, context),
    }
}

/// Writes the whole answer `answer` of `format` as the event stream that would have carried it, with all its fields.
/// For a stored answer that is now requested as a stream. `include_usage`: whether the client asked for the usage (chat
/// only).
///
/// # Errors
///
/// If `answer` is not an answer of `format`; nothing is written then.
pub fn answer_to_stream(
    format: ApiFormat,
    answer: &[u8],
    include_usage: bool,
    out: &mut BytesMut,
) -> Result<(), ConvertError> {
    let answer = read_lossy(answer)
        .map_err(|error| ConvertError::new(format!("The answer is not a JSON object: {error}")))?;
    match format {
        ApiFormat::OpenAiChat => openai_chat::replay::to_stream(answer, include_usage, out),
        ApiFormat::OpenAiResponses => openai_responses::replay::to_stream(answer, out),
        ApiFormat::Anthropic => anthropic::replay::to_stream(answer, out),
    }
}

/// Folds the `events` of a stream of `format` (each with its `event:` name, if any, and its `data:`) into the
/// equivalent whole answer, with all their fields.
///
/// # Errors
///
/// If the stream is not complete, reports an error, or is not one of `format`.
pub fn stream_to_answer<'a>(
    format: ApiFormat,
    events: impl Iterator<Item = (Option<&'a str>, &'a str)>,
) -> Result<Vec<u8>, ConvertError> {
    let answer = match format {
        ApiFormat::OpenAiChat => openai_chat::replay::to_answer(events.map(|(_, data)| data))?,
        ApiFormat::OpenAiResponses => openai_responses::replay::to_answer(events)?,
        ApiFormat::Anthropic => anthropic::replay::to_answer(events)?,
    };
    serde_json::to_vec(&answer).map_err(|error| ConvertError::new(error.to_string()))
}

/// Puts `usage` into the whole answer `answer` of `format`, if it is known and the answer has none. For an answer that
/// was folded from a stream whose client had not asked for the usage (chat only; the other formats always report it).
///
/// # Errors
///
/// If `answer` is not a JSON object.
pub fn add_usage(format: ApiFormat, answer: &[u8], usage: &Usage) -> Result<Vec<u8>, ConvertError> {
    if format != ApiFormat::OpenAiChat || !usage.is_known() {
        return Ok(answer.to_vec());
    }
    let mut answer: fields::Object = read_lossy(answer)
        .map_err(|error| ConvertError::new(format!("The answer is not a JSON object: {error}")))?;
    if !answer.get("usage").is_some_and(serde_json::Value::is_object) {
        answer.insert("usage".into(), openai_chat::usage::encode(usage));
    }
    serde_json::to_vec(&answer).map_err(|error| ConvertError::new(error.to_string()))
}
