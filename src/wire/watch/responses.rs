//! Events of a Responses stream.

use super::{ERROR, Kind, Seen, is_error, names_error};
use crate::domain::label::FinishReason;
use crate::domain::usage::Usage;
use crate::wire::lenient::{Array, Fold, Raw, json_object};
use crate::wire::usage::ResponsesUsage;

json_object! {
    struct Event<'de> {
        kind: Raw<'de> = "type",
        delta: Raw<'de> = "delta",
        item: Raw<'de> = "item",
        response: Raw<'de> = "response",
        /// Of an error in the shape of a chat's, which has no type of this format.
        error: Raw<'de> = "error",
        object: Raw<'de> = "object",
    }
}

json_object! {
    /// An output item, of which only the type matters here.
    pub(crate) struct Item<'de> {
        kind: Raw<'de> = "type",
    }
}

json_object! {
    struct IncompleteDetails<'de> {
        reason: Raw<'de> = "reason",
    }
}

json_object! {
    /// A response: a whole answer, or the `response` of the events that begin and end a stream.
    pub(crate) struct Response<'de> {
        status: Raw<'de> = "status",
        output: Array<Output> = "output",
        incomplete_details: Raw<'de> = "incomplete_details",
        usage: ResponsesUsage = "usage",
        error: Raw<'de> = "error",
    }
}

/// The output items, taken together.
#[derive(Debug, Default)]
pub(crate) struct Output {
    /// Whether the caller is asked to run a tool.
    calls_tool: bool,
}

impl<'de> Fold<'de> for Output {
    type Item = Item<'de>;

    fn add(&mut self, item: Item<'de>) {
        self.calls_tool |= matches!(
            item.kind.text().as_deref(),
            Some(
                "function_call"
                    | "custom_tool_call"
                    | "computer_call"
                    | "local_shell_call"
                    | "shell_call"
                    | "apply_patch_call"
            )
        );
    }
}

impl Response<'_> {
    /// Whether this looks like a response at all.
    pub(crate) fn is_response(&self) -> bool {
        self.output.0.is_some() || self.status.text().is_some()
    }

    /// Folds status, `incomplete_details` and output; `None` while the response is not complete, and when it failed.
    pub(crate) fn finish_reason(&self) -> Option<FinishReason> {
        match self.status.text().as_deref() {
            Some("completed") => Some(match &self.output.0 {
                Some(output) if output.calls_tool => FinishReason::ToolCalls,
                _ => FinishReason::Stop,
            }),
            Some("incomplete") => {
                let details: IncompleteDetails<'_> = self.incomplete_details.object().unwrap_or_default();
                Some(match details.reason.text().as_deref() {
                    Some("max_output_tokens") => FinishReason::Length,
                    Some("content_filter") => FinishReason::ContentFilter,
                    _ => FinishReason::Other,
                })
            }
            _ => None,
        }
    }

    pub(crate) fn usage(&self) -> Usage {
        self.usage.usage()
    }

    /// Whether it ended with an error.
    pub(crate) fn has_failed(&self) -> bool {
        is_error(self.error)
    }
}

/// Reads one event; `None`: it is not JSON. Its type is `name` where the data has none.
pub(super) fn read(name: Option<&str>, data: &str, seen: &mut Seen) -> Option<Kind> {
    let event: Event<'_> = serde_json::from_str(data).ok()?;
    let kind = event.kind.text();
    match kind.as_deref().or(name) {
        Some(kind @ ("response.completed" | "response.incomplete" | "response.failed")) => {
            seen.terminal = true;
            let response: Response<'_> = event.response.object().unwrap_or_default();
            seen.usage.merge(&response.usage());
            seen.finish_reason = response.finish_reason().or(seen.finish_reason);
            seen.failed |= kind == "response.failed";
        }
        Some(ERROR) => seen.failed = true,
        Some(kind) if kind.ends_with(".delta") => {
            let content = event.delta.is_filled();
            seen.first_token |= content;
            return Some(if content { Kind::Content } else { Kind::Idle });
        }
        // An item that is a call names its tool, which is the call's first content.
        Some("response.output_item.added" | "response.output_item.done") => {
            let item: Item<'_> = event.item.object().unwrap_or_default();
            seen.first_token |= item.kind.text().is_some_and(|kind| kind.ends_with("_call"));
            return Some(Kind::Idle);
        }
        Some("response.image_generation_call.partial_image") => {
            seen.first_token = true;
            return Some(Kind::Idle);
        }
        None if is_error(event.error) => seen.fail_oddly(),
        _ if names_error(event.object) => seen.fail_oddly(),
        _ => return Some(Kind::Idle),
    }
    Some(Kind::Telling)
}
