//! Anthropic Messages (`POST /v1/messages`).
//!
//! Source: <https://platform.claude.com/docs/en/api/messages>, streams:
//! <https://platform.claude.com/docs/en/build-with-claude/streaming>, and the types of the official SDK.

pub(crate) mod answer;
mod models;
pub(crate) mod replay;
pub(crate) mod request;
pub(crate) mod stream;
pub(crate) mod usage;
