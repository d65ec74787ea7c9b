//! Looking at a whole (not streamed) answer that is forwarded as it came.

use super::lenient::{Array, Items, Raw, json_object};
use super::usage::{AnthropicUsage, ChatUsage};
use super::watch::{Choices, Response, anthropic_finish_reason};
use crate::domain::label::{ApiFormat, FinishReason};
use crate::domain::record::Call;
use crate::domain::usage::Usage;

/// What a whole answer says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    pub usage: Usage,
    pub finish_reason: Option<FinishReason>,
    /// The short code of the error in an answer that failed although its HTTP status is a success (Responses only).
    pub error: Option<String>,
}

/// The body is not JSON, or not an answer of the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the provider's answer is not what its format promises")]
pub struct NotAnAnswer;

json_object! {
    struct ChatAnswer<'de> {
        choices: Array<Choices> = "choices",
        usage: Raw<'de> = "usage",
    }
}

json_object! {
    struct AnthropicAnswer<'de> {
        content: Array<Items> = "content",
        stop_reason: Raw<'de> = "stop_reason",
        usage: AnthropicUsage = "usage",
    }
}

/// Reads usage and finish reason of a successful answer to `call`.
///
/// # Errors
/// [`NotAnAnswer`] when `body` is not a JSON object or lacks what every answer of the format has: `choices` of chat,
/// `content` of Anthropic, `output` or `status` of Responses, `data` of embeddings.
pub fn observe_answer(call: Call, body: &[u8]) -> Result<Observed, NotAnAnswer> {
    match call {
        Call::Completion(ApiFormat::OpenAiChat) => observe_chat(body),
        Call::Completion(ApiFormat::OpenAiResponses) => observe_responses(body),
        Call::Completion(ApiFormat::Anthropic) => observe_anthropic(body),
        Call::Embedding => super::embeddings::observe(body),
    }
}

fn observe_chat(body: &[u8]) -> Result<Observed, NotAnAnswer> {
    let answer: ChatAnswer<'_> = serde_json::from_slice(body).map_err(|_| NotAnAnswer)?;
    let choices = answer.choices.0.ok_or(NotAnAnswer)?;
    let usage = answer.usage.object::<ChatUsage<'_>>().map(|usage| usage.usage()).unwrap_or_default();
    Ok(Observed { usage, finish_reason: choices.finish_reason, error: None })
}

fn observe_anthropic(body: &[u8]) -> Result<Observed, NotAnAnswer> {
    let answer: AnthropicAnswer<'_> = serde_json::from_slice(body).map_err(|_| NotAnAnswer)?;
    answer.content.0.ok_or(NotAnAnswer)?;
    let finish_reason = answer.stop_reason.text().as_deref().map(anthropic_finish_reason);
    Ok(Observed { usage: answer.usage.usage(), finish_reason, error: None })
}

fn observe_responses(body: &[u8]) -> Result<Observed, NotAnAnswer> {
    let answer: Response<'_> = serde_json::from_slice(body).map_err(|_| NotAnAnswer)?;
    if !answer.is_response() {
        return Err(NotAnAnswer);
    }
    Ok(Observed { usage: answer.usage(), finish_reason: answer.finish_reason(), error: answer.error() })
}
