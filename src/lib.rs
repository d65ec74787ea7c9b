//! nexusgate: an LLM gateway whose metrics are live and right.

pub mod app;
pub mod cli;
pub mod config;
pub mod demo;
pub mod domain;
pub mod gateway;
pub mod http;
pub mod limit;
pub mod provider;
pub mod store;
pub mod telemetry;
pub mod wire;
