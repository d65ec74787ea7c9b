//! nexusgate: an LLM gateway whose metrics are live and right.

pub mod config;
pub mod demo;
pub mod domain;
pub mod limit;
pub mod provider;
pub mod telemetry;
pub mod wire;
