//! Observing a whole (not streamed) answer that is forwarded unchanged.

use super::lenient::{Array, Items, Raw, json_object, read_json};
use super::usage::{AnthropicUsage, ChatUsage};
use super::watch::{Choices, Response, anthropic_finish_reason, is_error};
use crate::domain::label::{ApiFormat, FinishReason};
use crate::domain::record::Call;
use crate::domain::usage::Usage;

/// The facts read from a whole answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    pub usage: Usage,
    pub finish_reason: Option<FinishReason>,
    /// Whether it reports an error, although its HTTP status is a success.
    pub failed: bool,
}

/// The body is not JSON, or not an answer of the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the provider's answer is not what its format promises")]
pub struct NotAnAnswer;

json_object! {
    struct ChatAnswer<'de> {
        choices: Array<Choices> = "choices",
        usage: ChatUsage = "usage",
        error: Raw<'de> = "error",
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
/// [`NotAnAnswer`] when `body` is not a JSON object or lacks a field that every answer of the format has: `choices` of
/// chat, `content` of Anthropic, `output` or `status` of Responses, `data` of embeddings.
pub fn observe_answer(call: Call, body: &[u8]) -> Result<Observed, NotAnAnswer> {
    match call {
        Call::Completion(ApiFormat::OpenAiChat) => observe_chat(body),
        Call::Completion(ApiFormat::OpenAiResponses) => observe_responses(body),
        Call::Completion(ApiFormat::Anthropic) => observe_anthropic(body),
        Call::Embedding => super::embeddings::observe(body),
    }
}

fn observe_chat(body: &[u8]) -> Result<Observed, NotAnAnswer> {
    let answer: ChatAnswer<'_> = read_json(body).map_err(|_| NotAnAnswer)?;
    let choices = answer.choices.0.ok_or(NotAnAnswer)?;
    let failed = is_error(answer.error) || choices.has_failed();
    Ok(Observed { usage: answer.usage.usage(), finish_reason: choices.finish_reason(), failed })
}

fn observe_anthropic(body: &[u8]) -> Result<Observed, NotAnAnswer> {
    let answer: AnthropicAnswer<'_> = read_json(body).map_err(|_| NotAnAnswer)?;
    answer.content.0.ok_or(NotAnAnswer)?;
    let finish_reason = answer.stop_reason.text().as_deref().map(anthropic_finish_reason);
    Ok(Observed { usage: answer.usage.usage(), finish_reason, failed: false })
}

fn observe_responses(body: &[u8]) -> Result<Observed, NotAnAnswer> {
    let answer: Response<'_> = read_json(body).map_err(|_| NotAnAnswer)?;
    if !answer.is_response() {
        return Err(NotAnAnswer);
    }
    Ok(Observed { usage: answer.usage(), finish_reason: answer.finish_reason(), failed: answer.has_failed() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn observe(format: ApiFormat, body: &str) -> Result<Observed, NotAnAnswer> {
        observe_answer(Call::Completion(format), body.as_bytes())
    }

    fn finish(format: ApiFormat, body: &str) -> Option<FinishReason> {
        observe(format, body).unwrap().finish_reason
    }

    #[test]
    fn chat_answers_say_usage_and_finish_reason() {
        let observed = observe(
            ApiFormat::OpenAiChat,
            r#"{"choices":[{"index":0,"message":{"content":"a"},"finish_reason":"length"}],
                "usage":{"prompt_tokens":5,"completion_tokens":6,"total_tokens":11,"prompt_cache_hit_tokens":2,
                "prompt_tokens_details":{"cache_write_tokens":1},"completion_tokens_details":{"reasoning_tokens":3}}}"#,
        );
        let usage = Usage {
            prompt: Some(5),
            completion: Some(6),
            cached: Some(2),
            cache_write: Some(1),
            reasoning: Some(3),
        };
        let expected = Observed { usage, finish_reason: Some(FinishReason::Length), failed: false };
        assert_eq!(observed, Ok(expected));
        for (reason, folded) in [
            ("stop", FinishReason::Stop),
            ("tool_calls", FinishReason::ToolCalls),
            ("function_call", FinishReason::ToolCalls),
            ("content_filter", FinishReason::ContentFilter),
            ("insufficient_system_resource", FinishReason::Other),
        ] {
            let body = format!(r#"{{"choices":[{{"finish_reason":"{reason}"}}]}}"#);
            assert_eq!(finish(ApiFormat::OpenAiChat, &body), Some(folded));
        }
        for (body, failed) in [
            (r#"{"choices":[{"finish_reason":"error"}]}"#, true),
            (r#"{"choices":[{"finish_reason":null,"error":{"code":502,"message":"m"}}]}"#, true),
            (r#"{"choices":[{"finish_reason":"stop"},{"finish_reason":"error","error":"m m"}]}"#, true),
            (r#"{"choices":[],"error":{"code":"overloaded"}}"#, true),
            (r#"{"choices":[],"error":"m m"}"#, true),
            (r#"{"choices":[{"finish_reason":"stop","error":null}],"error":null}"#, false),
            (r#"{"choices":[{"finish_reason":"stop","error":""}],"error":{}}"#, false),
            (r#"{"choices":[{"finish_reason":"stop","error":[1]}],"error":false}"#, false),
        ] {
            assert_eq!(observe(ApiFormat::OpenAiChat, body).unwrap().failed, failed, "{body}");
        }
        assert_eq!(observe(ApiFormat::OpenAiChat, r#"{"choices":[],"usage":"?"}"#), Ok(Observed::default()));
        let odd = r#"{"choices":[],"usage":{"prompt_tokens":1e400,"completion_tokens":3}}"#;
        let usage = Usage { completion: Some(3), ..Usage::default() };
        assert_eq!(observe(ApiFormat::OpenAiChat, odd), Ok(Observed { usage, ..Observed::default() }));
    }

    #[test]
    fn anthropic_answers_count_cached_tokens_as_prompt() {
        let observed = observe(
            ApiFormat::Anthropic,
            r#"{"content":[],"stop_reason":"tool_use","usage":{"input_tokens":1,"cache_read_input_tokens":20,
                "cache_creation_input_tokens":300,"output_tokens":4}}"#,
        )
        .unwrap();
        assert_eq!(
            observed.usage,
            Usage {
                prompt: Some(321),
                completion: Some(4),
                cached: Some(20),
                cache_write: Some(300),
                reasoning: None
            }
        );
        for (reason, folded) in [
            ("end_turn", FinishReason::Stop),
            ("stop_sequence", FinishReason::Stop),
            ("max_tokens", FinishReason::Length),
            ("tool_use", FinishReason::ToolCalls),
            ("refusal", FinishReason::ContentFilter),
            ("pause_turn", FinishReason::Other),
        ] {
            let body = format!(r#"{{"content":[],"stop_reason":"{reason}"}}"#);
            assert_eq!(finish(ApiFormat::Anthropic, &body), Some(folded));
        }
        // Without its main part the sum would be a guess.
        let observed =
            observe(ApiFormat::Anthropic, r#"{"content":[],"usage":{"cache_read_input_tokens":20}}"#)
                .unwrap();
        assert_eq!((observed.usage.prompt, observed.usage.cached), (None, Some(20)));
    }

    #[test]
    fn responses_fold_status_details_and_output() {
        let format = ApiFormat::OpenAiResponses;
        for (body, folded) in [
            (r#"{"status":"completed","output":[{"type":"message"}]}"#, Some(FinishReason::Stop)),
            (r#"{"status":"completed","output":[{"type":"web_search_call"}]}"#, Some(FinishReason::Stop)),
            (
                r#"{"status":"completed","output":[{"type":"function_call"},{"type":"message"}]}"#,
                Some(FinishReason::ToolCalls),
            ),
            (
                r#"{"status":"incomplete","incomplete_details":{"reason":"max_output_tokens"}}"#,
                Some(FinishReason::Length),
            ),
            (
                r#"{"status":"incomplete","incomplete_details":{"reason":"content_filter"}}"#,
                Some(FinishReason::ContentFilter),
            ),
            (r#"{"status":"incomplete","incomplete_details":null}"#, Some(FinishReason::Other)),
            (r#"{"status":"queued","output":[]}"#, None),
        ] {
            assert_eq!(finish(format, body), folded, "{body}");
        }
        let failed =
            observe(format, r#"{"status":"failed","output":[],"error":{"code":"server_error"}}"#).unwrap();
        assert_eq!((failed.finish_reason, failed.failed), (None, true));
    }

    #[test]
    fn embeddings_fall_back_to_the_total() {
        let prompt =
            |body: &str| observe_answer(Call::Embedding, body.as_bytes()).map(|seen| seen.usage.prompt);
        assert_eq!(
            prompt(r#"{"data":[{"embedding":[0.5,-1e-3]}],"usage":{"prompt_tokens":3,"total_tokens":4}}"#),
            Ok(Some(3))
        );
        assert_eq!(prompt(r#"{"data":[{"embedding":"AAAA"}],"usage":{"total_tokens":4}}"#), Ok(Some(4)));
        assert_eq!(prompt(r#"{"data":[]}"#), Ok(None));
    }

    #[test]
    fn what_is_not_an_answer_is_an_error() {
        let calls = [
            Call::Completion(ApiFormat::OpenAiChat),
            Call::Completion(ApiFormat::OpenAiResponses),
            Call::Completion(ApiFormat::Anthropic),
            Call::Embedding,
        ];
        for body in [
            "",
            "<html>",
            "null",
            "[]",
            "7",
            r#""x""#,
            "{}",
            r#"{"error":{"message":"no"}}"#,
            r#"{"choices":{},"content":"x","data":null,"status":1,"output":{}}"#,
            r#"{"choices":[],"content":[],"data":[],"status":"completed""#,
            r#"{"choices":[],"content":[],"data":[],"status":"completed"} x"#,
        ] {
            for call in calls {
                assert_eq!(observe_answer(call, body.as_bytes()), Err(NotAnAnswer), "{call:?} {body}");
            }
        }
    }
}
