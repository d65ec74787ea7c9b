//! The common part of the load generator and the fake provider: just enough HTTP/1.1.
//!
//! Both share one core, while the gateway has the other: their own cost limits the load that they can offer. So they
//! write prepared bytes, and read answers with bare `httparse`.

pub mod awake;
pub mod events;
pub mod http;
pub mod stats;
