//! OpenAI Chat Completions (`POST /v1/chat/completions`), with the additions of OpenAI-compatible providers.
//!
//! Source: <https://platform.openai.com/docs/api-reference/chat>; `reasoning_content`:
//! <https://api-docs.deepseek.com/guides/thinking_mode>; `reasoning_details`:
//! <https://openrouter.ai/docs/use-cases/reasoning-tokens>.

pub(crate) mod answer;
pub(crate) mod reasoning;
pub(crate) mod replay;
pub(crate) mod request;
pub(crate) mod stream;
pub(crate) mod usage;
