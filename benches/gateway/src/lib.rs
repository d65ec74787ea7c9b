//! What the load generator and the fake provider share: just enough HTTP/1.1.
//!
//! Both run on one core, beside each other, while the gateway has the other: what they cost is taken from what they
//! can ask. So they write bytes that were made before, and read answers with `httparse` and nothing around it.

pub mod awake;
pub mod events;
pub mod http;
pub mod stats;
