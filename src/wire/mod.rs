//! Bytes ↔ meaning: what the gateway reads from, and changes in, the JSON and event streams that pass through it.
//!
//! This half serves calls whose client and provider speak the same format. It never rebuilds a body: a request is
//! edited by splicing ([`head`]), a stream is forwarded as it came and only watched ([`watch`]), an answer is only
//! looked at ([`answer`]). Reading is lenient ([`lenient`]): providers add and bend fields every month, so only broken
//! JSON is an error.

pub mod answer;
pub mod embeddings;
pub mod error;
pub mod head;
pub(crate) mod lenient;
pub mod sse;
pub mod usage;
pub mod watch;
