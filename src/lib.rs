//! nexusgate: an LLM gateway whose metrics are live and right.
//!
//! The rooms, in the order a request meets them:
//!
//! * [`http`] is the surface: paths, layers, handlers.
//! * [`gateway`] is the request path: authentication, limits, routing, failover, and the final record.
//! * [`limit`] holds the budgets of keys, in memory or in Redis.
//! * [`provider`] knows where a call goes and how it is sent.
//! * [`wire`] reads the formats: heads of requests, usage and endings of answers, conversions.
//! * [`telemetry`] counts what happened, in memory, as it happens.
//! * [`store`] keeps keys, providers, models and the request log.
//! * [`domain`] is the vocabulary of all of them.
//!
//! Around them: [`config`] (every setting), [`app`] (builds, serves, drains), [`cli`] (the command line) and [`demo`]
//! (scripted providers and traffic). Imports point down only; ARCHITECTURE.md has the table, a test keeps it.

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
