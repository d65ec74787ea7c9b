//! Events of an Anthropic Messages stream.

use super::{ERROR, Kind, Seen, is_error, names_error};
use crate::domain::label::FinishReason;
use crate::wire::lenient::{Raw, json_object};
use crate::wire::usage::AnthropicUsage;

json_object! {
    struct Event<'de> {
        kind: Raw<'de> = "type",
        /// Of `message_start`.
        message: Raw<'de> = "message",
        /// Of `content_block_delta` and `message_delta`.
        delta: Raw<'de> = "delta",
        /// Of `content_block_start`.
        content_block: Raw<'de> = "content_block",
        /// Of `message_delta`.
        usage: Raw<'de> = "usage",
        /// Of an error in OpenAI's shape, which has no type of this format.
        error: Raw<'de> = "error",
        object: Raw<'de> = "object",
    }
}

json_object! {
    struct Message<'de> {
        usage: Raw<'de> = "usage",
    }
}

json_object! {
    struct MessageDelta<'de> {
        stop_reason: Raw<'de> = "stop_reason",
    }
}

json_object! {
    /// A content block as it begins, or a piece of one.
    struct Content<'de> {
        kind: Raw<'de> = "type",
        text: Raw<'de> = "text",
        thinking: Raw<'de> = "thinking",
        partial_json: Raw<'de> = "partial_json",
        /// Of a block of redacted thinking, which comes whole.
        data: Raw<'de> = "data",
    }
}

impl Content<'_> {
    fn says_something(&self) -> bool {
        [self.text, self.thinking, self.partial_json, self.data].into_iter().any(Raw::is_filled)
            // The name of a tool is the first content of its call; a call without arguments has no more.
            || self.kind.text().is_some_and(|kind| kind.ends_with("tool_use"))
    }
}

/// Folds `stop_reason`.
pub(crate) fn finish_reason(text: &str) -> FinishReason {
    match text {
        "end_turn" | "stop_sequence" => FinishReason::Stop,
        "max_tokens" | "model_context_window_exceeded" => FinishReason::Length,
        "tool_use" => FinishReason::ToolCalls,
        "refusal" => FinishReason::ContentFilter,
        _ => FinishReason::Other,
    }
}

/// Reads one event; `None`: it is not JSON. Its type is `name` where the data has none. `written` is the usage as the
/// stream wrote it, of which `message_delta` may repeat only a part.
pub(super) fn read(
    name: Option<&str>,
    data: &str,
    written: &mut AnthropicUsage,
    seen: &mut Seen,
) -> Option<Kind> {
    let event: Event<'_> = serde_json::from_str(data).ok()?;
    let mut take_usage = |usage: Raw<'_>| {
        if let Some(usage) = usage.object::<AnthropicUsage>() {
            written.merge(&usage);
            seen.usage = written.usage();
        }
    };
    match event.kind.text().as_deref().or(name) {
        Some("content_block_delta") => {
            let content = says_something(event.delta);
            seen.first_token |= content;
            return Some(if content { Kind::Content } else { Kind::Idle });
        }
        Some("content_block_start") => {
            seen.first_token = seen.first_token || says_something(event.content_block);
            return Some(Kind::Idle);
        }
        Some("message_start") => {
            let message: Message<'_> = event.message.object().unwrap_or_default();
            take_usage(message.usage);
        }
        Some("message_delta") => {
            take_usage(event.usage);
            let delta: MessageDelta<'_> = event.delta.object().unwrap_or_default();
            seen.finish_reason =
                delta.stop_reason.text().as_deref().map(finish_reason).or(seen.finish_reason);
        }
        Some("message_stop") => seen.terminal = true,
        // Clients of this format go by the name, which an error has otherwise.
        Some(ERROR) => seen.fail_oddly(),
        None if is_error(event.error) => seen.fail_oddly(),
        _ if names_error(event.object) => seen.fail_oddly(),
        _ => return Some(Kind::Idle),
    }
    Some(Kind::Telling)
}

fn says_something(content: Raw<'_>) -> bool {
    content.object::<Content<'_>>().is_some_and(|content| content.says_something())
}
