//! Requests.

mod decode;
mod encode;
mod thinking;

pub(crate) use decode::decode;
pub(crate) use encode::{encode, input};
