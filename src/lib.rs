//! nexusgate: an LLM gateway whose metrics are live and right.

pub mod demo;
pub mod domain;
