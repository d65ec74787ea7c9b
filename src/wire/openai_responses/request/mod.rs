//! Requests.

mod decode;
mod encode;
mod input;

pub(crate) use decode::decode;
pub(crate) use encode::encode;
pub(crate) use input::reasoning_item;
