//! OpenAI Responses (`POST /v1/responses`).
//!
//! Source: <https://platform.openai.com/docs/api-reference/responses> and
//! <https://platform.openai.com/docs/api-reference/responses-streaming>, and the types of the official SDK.

pub(crate) mod answer;
pub(crate) mod replay;
pub(crate) mod request;
pub(crate) mod stream;
pub(crate) mod usage;
