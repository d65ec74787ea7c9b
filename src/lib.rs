//! nexusgate: an LLM gateway whose metrics are live and right.

pub mod domain;
pub mod wire;
