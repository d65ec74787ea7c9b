//! A model's answer, independent of the wire format.

use serde_json::{Map, Value};

use crate::domain::label::FinishReason;
use crate::domain::usage::Usage;

/// An answer of the model; the requested endpoint puts it into its format.
#[derive(Debug, Clone, Default)]
pub struct Answer {
    /// The text, in the pieces it is streamed in.
    pub(super) text: Vec<String>,
    /// The model's reasoning, in the pieces it is streamed in. Chat calls it `reasoning_content` (as DeepSeek does),
    /// Anthropic a `thinking` block, Responses a `reasoning` item with a summary.
    pub(super) reasoning: Vec<String>,
    pub(super) refusal: Option<String>,
    pub(super) tool_calls: Vec<ToolCall>,
    pub(super) finish: Option<FinishReason>,
    pub(super) usage: Reported,
    pub(super) model: Option<String>,
}

/// A call of a tool the client offered.
#[derive(Debug, Clone)]
pub struct ToolCall {
    pub id: String,
    pub name: String,
    /// JSON, as the model wrote it.
    pub arguments: String,
}

/// The usage that an answer reports.
#[derive(Debug, Clone, Copy, Default)]
pub(super) enum Reported {
    /// Prompt: [`DEFAULT_PROMPT_TOKENS`] (embeddings: [`TOKENS_PER_INPUT`] for each input); completion: one token for each
    /// streamed piece.
    #[default]
    Derived,
    Fixed(Usage),
    Absent,
}

/// Prompt tokens of an answer for which the script sets no usage.
pub const DEFAULT_PROMPT_TOKENS: u64 = 12;
/// Tokens of one embedding input when the script sets no usage.
pub const TOKENS_PER_INPUT: u64 = 8;

impl Answer {
    /// A text, streamed word by word.
    pub fn text(text: impl AsRef<str>) -> Self {
        Self { text: words(text.as_ref()), ..Self::default() }
    }

    /// A text of `pieces` pieces of `size` characters each.
    pub fn of_size(pieces: usize, size: usize) -> Self {
        let piece = |index: usize| {
            let mut piece = format!(" {index}");
            piece.extend(std::iter::repeat_n('x', size.saturating_sub(piece.len())));
            piece.truncate(size.max(1));
            piece
        };
        Self { text: (0..pieces).map(piece).collect(), ..Self::default() }
    }

    /// Calls of tools, with ids `call_0`, `call_1`, ….
    pub fn tools<'a>(calls: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let tool_calls = calls
            .into_iter()
            .enumerate()
            .map(|(index, (name, arguments))| ToolCall {
                id: format!("call_{index}"),
                name: name.to_owned(),
                arguments: arguments.to_owned(),
            })
            .collect();
        Self { tool_calls, ..Self::default() }
    }

    /// A refusal in the model's own words.
    pub fn refusal(text: impl Into<String>) -> Self {
        Self { refusal: Some(text.into()), ..Self::default() }
    }

    /// Streams the text in exactly these pieces.
    pub fn in_pieces(mut self, pieces: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.text = pieces.into_iter().map(Into::into).collect();
        self
    }

    /// Thinks before it speaks, word by word.
    pub fn thinking(mut self, text: impl AsRef<str>) -> Self {
        self.reasoning = words(text.as_ref());
        self
    }

    /// Calls this tool after the text.
    pub fn calling(mut self, call: ToolCall) -> Self {
        self.tool_calls.push(call);
        self
    }

    /// Sets the finish reason; by default `tool_calls` when there are any, `content_filter` for a refusal in the
    /// formats that have it, else `stop`.
    pub fn finish(mut self, reason: FinishReason) -> Self {
        self.finish = Some(reason);
        self
    }

    /// Reports this usage. A field that is `None` is reported as 0, or left out where the format allows.
    pub fn usage(mut self, usage: Usage) -> Self {
        self.usage = Reported::Fixed(usage);
        self
    }

    /// Reports these tokens.
    pub fn tokens(self, prompt: u64, completion: u64) -> Self {
        self.usage(Usage { prompt: Some(prompt), completion: Some(completion), ..Usage::default() })
    }

    /// Never reports usage, whether asked or not.
    pub fn without_usage(mut self) -> Self {
        self.usage = Reported::Absent;
        self
    }

    /// Names this model; by default the requested one.
    pub fn model(mut self, model: impl Into<String>) -> Self {
        self.model = Some(model.into());
        self
    }

    pub(super) fn whole_text(&self) -> String {
        self.text.concat()
    }

    pub(super) fn whole_reasoning(&self) -> String {
        self.reasoning.concat()
    }

    pub(super) fn finish_reason(&self) -> FinishReason {
        self.finish.unwrap_or(if self.tool_calls.is_empty() {
            FinishReason::Stop
        } else {
            FinishReason::ToolCalls
        })
    }

    /// The usage a chat-like answer reports.
    pub(super) fn completion_usage(&self) -> Option<Usage> {
        match self.usage {
            Reported::Absent => None,
            Reported::Fixed(usage) => Some(usage),
            Reported::Derived => {
                let pieces = self.text.len() + self.reasoning.len() + self.tool_calls.len();
                let pieces = pieces + usize::from(self.refusal.is_some());
                Some(Usage {
                    prompt: Some(DEFAULT_PROMPT_TOKENS),
                    completion: u64::try_from(pieces).ok(),
                    reasoning: u64::try_from(self.reasoning.len()).ok().filter(|n| *n > 0),
                    ..Usage::default()
                })
            }
        }
    }

    /// The usage an embedding of `inputs` inputs reports.
    pub(super) fn embedding_usage(&self, inputs: usize) -> Option<Usage> {
        let prompt = match self.usage {
            Reported::Absent => return None,
            Reported::Fixed(usage) => usage.prompt,
            Reported::Derived => u64::try_from(inputs).ok().map(|inputs| inputs * TOKENS_PER_INPUT),
        };
        Some(Usage { prompt, ..Usage::default() })
    }
}

impl ToolCall {
    /// The arguments as an object, for the formats that do not carry them as text.
    pub(super) fn arguments_object(&self) -> Value {
        serde_json::from_str(&self.arguments).unwrap_or_else(|_| Value::Object(Map::new()))
    }
}

/// Splits after each space, so that the pieces joined are the text again.
fn words(text: &str) -> Vec<String> {
    text.split_inclusive(' ').map(str::to_owned).collect()
}

/// Cuts a text into pieces of at most `size` characters, as streams of tool arguments come.
pub(super) fn fragments(text: &str, size: usize) -> Vec<String> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.char_indices().nth(size).map_or(rest.len(), |(index, _)| index);
        let (piece, tail) = rest.split_at(end);
        pieces.push(piece.to_owned());
        rest = tail;
    }
    pieces
}
