//! Requests.

mod decode;
mod encode;
mod thinking;

pub(crate) use decode::decode;
pub(crate) use encode::{FREE_INPUT, encode, free_input_schema, input};
