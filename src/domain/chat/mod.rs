//! The format-neutral conversation that requests and answers are converted through.
//!
//! N wire formats need N readers and N writers, not N × N converters: every reader turns its format into these types,
//! every writer writes them in its own format and names the fields that it cannot express. The types hold everything
//! that at least two of the formats have, plus the few leftovers (signatures, encrypted reasoning, cache-related OpenAI
//! fields) that a later turn or the sibling format needs back.

mod answer;
mod message;
mod request;
mod stream;

pub use answer::{ChatAnswer, ErrorKind, ProviderError, StopReason};
pub use message::{
    Image, Media, Message, Part, Reasoning, Role, Seal, ToolCall, ToolKind, ToolResult, Upload,
};
pub use request::{ChatRequest, Effort, OutputFormat, ReasoningConfig, ToolChoice, ToolDef};
pub use stream::{Block, StreamEvent};
