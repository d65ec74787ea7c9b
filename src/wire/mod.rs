//! Bytes ↔ meaning.

mod anthropic;
pub mod convert;
mod openai_chat;
mod openai_responses;
