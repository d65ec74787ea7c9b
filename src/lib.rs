//! nexusgate: an LLM gateway whose metrics are live and right.

pub mod config;
pub mod domain;
pub mod gateway;
pub mod limit;
pub mod provider;
pub mod store;
pub mod telemetry;
pub mod wire;
