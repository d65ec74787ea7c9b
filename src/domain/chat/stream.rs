//! Streamed answers.

use super::answer::{ProviderError, StopReason};
use super::message::{Seal, ToolKind};
use crate::domain::usage::Usage;

/// The kind of a piece of a streamed answer; its text follows as deltas.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Block {
    Text,
    Refusal,
    Reasoning,
    /// The deltas are the arguments.
    ToolCall {
        id: String,
        name: String,
        kind: ToolKind,
    },
}

/// One step of a streamed answer.
///
/// A well-formed stream is `Start`, blocks (`Open`, any number of `Delta` and `Seal`, `Close`), `Stop`, `End`, with `Usage`
/// anywhere after `Start`; or it breaks off with `Failed`.
#[derive(Debug, Clone, PartialEq)]
pub enum StreamEvent {
    /// The provider began to answer, under this id (empty: it gave none).
    Start {
        id: String,
    },
    /// `key` names the block until it is closed.
    Open {
        key: u32,
        block: Block,
    },
    Delta {
        key: u32,
        text: String,
    },
    /// Of a reasoning block.
    Seal {
        key: u32,
        seal: Seal,
    },
    Close {
        key: u32,
    },
    /// The last value of each field wins.
    Usage(Usage),
    Stop(StopReason),
    /// The stream is complete.
    End,
    Failed(ProviderError),
}
