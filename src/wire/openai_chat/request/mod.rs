//! Requests.

mod decode;
mod encode;

pub(crate) use decode::decode;
pub(crate) use encode::{SCHEMA_NAME, effort, encode, shared, tool_call};
