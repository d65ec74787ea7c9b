//! Bytes ↔ meaning: reading and editing the JSON and event streams that pass through the gateway.
//!
//! Where client and provider speak the same format nothing is rebuilt: a request is edited by splicing ([`head`]), a
//! stream is forwarded unchanged and watched ([`watch`]), an answer is only observed ([`answer`]). Reading is lenient
//! ([`lenient`]): providers add and bend fields every month, so only broken JSON is an error.
//!
//! Where they differ, everything goes through [`crate::domain::chat`] ([`convert`]): one reader and one writer for each
//! format ([`openai_chat`], [`openai_responses`], [`anthropic`]).

pub mod answer;
pub(crate) mod anthropic;
pub mod convert;
pub mod embeddings;
pub mod error;
pub mod guess;
pub mod head;
pub(crate) mod lenient;
pub(crate) mod openai_chat;
pub(crate) mod openai_models;
pub(crate) mod openai_responses;
pub mod sse;
pub mod usage;
pub mod watch;
