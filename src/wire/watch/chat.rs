//! Chunks of a chat completion stream.

use super::{Kind, Seen, is_error, names_error};
use crate::domain::label::FinishReason;
use crate::domain::usage::Usage;
use crate::wire::lenient::{Array, Count, Fold, Raw, json_object};
use crate::wire::usage::ChatUsage;

json_object! {
    struct Chunk<'de> {
        choices: Array<Choices> = "choices",
        usage: Raw<'de> = "usage",
        /// Groq writes the usage here, and beside it only when asked.
        x_groq: Raw<'de> = "x_groq",
        error: Raw<'de> = "error",
        object: Raw<'de> = "object",
        /// Other formats' name for an event.
        kind: Raw<'de> = "type",
    }
}

json_object! {
    struct XGroq<'de> {
        usage: Raw<'de> = "usage",
        error: Raw<'de> = "error",
    }
}

json_object! {
    /// One choice of a chunk or of a whole answer.
    pub(crate) struct Choice<'de> {
        index: Count = "index",
        delta: Delta<'de> = "delta",
        finish_reason: Raw<'de> = "finish_reason",
        /// OpenRouter, when its upstream failed in the middle.
        error: Raw<'de> = "error",
        /// Moonshot writes the usage of a stream here.
        usage: Raw<'de> = "usage",
    }
}

json_object! {
    /// Content of a chunk, under the names that providers use.
    pub(crate) struct Delta<'de> {
        content: Raw<'de> = "content",
        refusal: Raw<'de> = "refusal",
        /// DeepSeek, xAI, vLLM and others.
        reasoning_content: Raw<'de> = "reasoning_content",
        /// OpenRouter, Groq, Ollama.
        reasoning: Raw<'de> = "reasoning",
        /// OpenRouter.
        reasoning_details: Raw<'de> = "reasoning_details",
        tool_calls: Raw<'de> = "tool_calls",
        /// The former name of `tool_calls`.
        function_call: Raw<'de> = "function_call",
        audio: Raw<'de> = "audio",
        /// OpenRouter.
        images: Raw<'de> = "images",
    }
}

json_object! {
    /// The first audio delta may hold nothing but an id.
    struct Audio<'de> {
        data: Raw<'de> = "data",
        transcript: Raw<'de> = "transcript",
    }
}

impl Delta<'_> {
    fn says_something(&self) -> bool {
        [
            self.content,
            self.reasoning_content,
            self.reasoning,
            self.tool_calls,
            self.refusal,
            self.function_call,
            self.reasoning_details,
            self.images,
        ]
        .into_iter()
        .any(Raw::is_filled)
            || self
                .audio
                .object::<Audio<'_>>()
                .is_some_and(|audio| audio.data.is_filled() || audio.transcript.is_filled())
    }
}

/// All choices of a chunk or of a whole answer, taken together.
#[derive(Debug, Default)]
pub(crate) struct Choices {
    count: usize,
    says_something: bool,
    progress: Progress,
    /// Whether a choice ended with an error.
    failed: bool,
    usage: Option<Usage>,
}

/// Choices that have content, and choices that have finished: a bit for each.
#[derive(Debug, Default)]
pub(super) struct Progress {
    begun: u64,
    finished: u64,
    /// A choice went on after it had finished: this provider sends a reason in every chunk.
    goes_on: bool,
    /// The reason of the lowest choice that has one, with its index. A client that gets one choice gets the first.
    finish_reason: Option<(u64, FinishReason)>,
}

impl Progress {
    fn add(&mut self, index: Option<u64>, spoke: bool, reason: Option<FinishReason>) {
        let index = index.unwrap_or(0);
        let bit = 1 << index.min(63);
        self.begun |= if spoke { bit } else { 0 };
        self.finished |= if reason.is_some() { bit } else { 0 };
        // Of several choices with the same index, or without any, the first one counts.
        if let Some(reason) = reason
            && self.finish_reason.is_none_or(|(lowest, _)| index < lowest)
        {
            self.finish_reason = Some((index, reason));
        }
    }

    /// Takes in a later chunk, whose finish reason of a choice replaces an earlier one.
    fn merge(&mut self, later: &Self) {
        self.goes_on |= self.finished & later.begun != 0;
        self.begun |= later.begun;
        self.finished |= later.finished;
        if let Some((index, _)) = later.finish_reason
            && self.finish_reason.is_none_or(|(lowest, _)| index <= lowest)
        {
            self.finish_reason = later.finish_reason;
        }
    }

    /// Whether any choice has finished.
    pub(super) fn has_finished(&self) -> bool {
        self.finished != 0
    }

    fn finish_reason(&self) -> Option<FinishReason> {
        self.finish_reason.map(|(_, reason)| reason)
    }

    fn is_complete(&self) -> bool {
        // With a single choice the index does not matter: some providers are careless about it.
        self.finished != 0 && (self.begun.count_ones() <= 1 || self.begun & !self.finished == 0)
    }
}

impl<'de> Fold<'de> for Choices {
    type Item = Choice<'de>;

    fn add(&mut self, choice: Choice<'de>) {
        self.count += 1;
        let spoke = choice.delta.says_something();
        self.says_something |= spoke;
        let reason = choice.finish_reason.text();
        self.failed |= reason.as_deref() == Some(FAILED) || is_error(choice.error);
        self.usage = choice.usage.object::<ChatUsage>().map(|usage| usage.usage()).or(self.usage);
        self.progress.add(choice.index.0, spoke, reason.as_deref().map(finish_reason));
    }
}

impl Choices {
    /// The reason of the first choice that has one.
    pub(crate) fn finish_reason(&self) -> Option<FinishReason> {
        self.progress.finish_reason()
    }

    /// Whether a choice ended with an error.
    pub(crate) fn has_failed(&self) -> bool {
        self.failed
    }
}

/// The `finish_reason` of a choice that was not finished (OpenRouter, Mistral).
const FAILED: &str = "error";

/// Folds `finish_reason`.
fn finish_reason(text: &str) -> FinishReason {
    match text {
        "stop" | "eos" | "end_turn" => FinishReason::Stop,
        "length" | "max_tokens" | "model_length" => FinishReason::Length,
        "tool_calls" | "tool_use" | "function_call" => FinishReason::ToolCalls,
        "content_filter" => FinishReason::ContentFilter,
        _ => FinishReason::Other,
    }
}

/// Reads one event; `None`: it is not JSON.
pub(super) fn read(data: &str, progress: &mut Progress, seen: &mut Seen) -> Option<Kind> {
    let chunk: Chunk<'_> = serde_json::from_str(data).ok()?;
    let mut oddly = names_error(chunk.object) || names_error(chunk.kind);
    let mut usage = chunk.usage;
    if let Some(groq) = chunk.x_groq.object::<XGroq<'_>>() {
        usage = if usage.is_object() { usage } else { groq.usage };
        oddly |= is_error(groq.error);
    }
    let mut usage = usage.object::<ChatUsage>().map(|usage| usage.usage());
    let mut kind = Kind::Idle;
    let mut usage_only = false;
    let mut failed = is_error(chunk.error);
    if let Some(choices) = chunk.choices.0 {
        if choices.says_something {
            seen.first_token = true;
            kind = Kind::Content;
        }
        if choices.finish_reason().is_some() {
            kind = Kind::Telling;
        }
        progress.merge(&choices.progress);
        seen.finish_reason = progress.finish_reason();
        seen.terminal = seen.done || progress.is_complete();
        seen.goes_on = progress.goes_on;
        usage_only = choices.count == 0 && chunk.usage.is_object() && !failed && !oddly;
        failed |= choices.failed;
        usage = usage.or(choices.usage);
    }
    if let Some(usage) = usage {
        seen.usage.merge(&usage);
        kind = if usage_only { Kind::UsageOnly } else { Kind::Telling };
    }
    if failed || oddly {
        kind = Kind::Telling;
    }
    seen.failed |= failed;
    if oddly {
        seen.fail_oddly();
    }
    Some(kind)
}
