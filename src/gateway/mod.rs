//! The request path: what happens to a call between the router and the provider, and after it.

pub mod journal;
pub mod request_log;
