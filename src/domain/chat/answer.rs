//! A model's answer, or the reason why there is none.

use super::message::Part;
use crate::domain::usage::Usage;

/// A whole answer.
#[derive(Debug, Clone, PartialEq)]
pub struct ChatAnswer {
    /// The provider's id; empty when it gave none.
    pub id: String,
    /// Texts, refusals, reasoning and tool calls, in the order in which they were generated.
    pub parts: Vec<Part>,
    pub stop: StopReason,
    pub usage: Usage,
}

/// Why the model stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StopReason {
    /// It finished its turn.
    EndTurn,
    /// It generated this stop sequence (`None`: its format does not say which).
    StopSequence(Option<String>),
    /// It reached the limit of tokens.
    Length,
    /// It reached the end of its context window.
    ContextWindow,
    /// It is waiting for the results of its tool calls.
    ToolUse,
    /// It refused in its own words ([`Part::Refusal`]).
    Refusal,
    /// A filter stopped it.
    ContentFilter,
    /// The provider paused a long turn; sent back as it is, the answer goes on.
    Pause,
    /// A reason that no other format has a word for.
    Other(String),
}

impl StopReason {
    /// The reason behind "stop" in a format that has no finer ones, derived from the generated parts.
    pub fn of_stop(has_calls: bool, has_refusal: bool) -> Self {
        if has_calls {
            Self::ToolUse
        } else if has_refusal {
            Self::Refusal
        } else {
            Self::EndTurn
        }
    }
}

/// Kinds of provider errors, as far as SDKs tell them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    InvalidRequest,
    Authentication,
    Permission,
    NotFound,
    TooLarge,
    RateLimit,
    /// No credit left.
    Billing,
    Overloaded,
    Timeout,
    /// The provider's own fault, or unknown.
    Api,
}

/// An error that a provider reported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProviderError {
    pub kind: ErrorKind,
    pub message: String,
    /// OpenAI's `code`.
    pub code: Option<String>,
    /// OpenAI's `param`.
    pub param: Option<String>,
}
