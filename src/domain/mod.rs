//! Pure types: the gateway's vocabulary, without I/O.
//!
//! Everything here can be built in a test with a literal; nothing here knows HTTP, SQL or Redis.

pub mod chat;
pub mod failure;
pub mod key;
pub mod label;
pub mod model;
pub mod provider;
pub mod record;
pub mod usage;
