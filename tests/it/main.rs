//! The integration tests: the whole gateway on a free port, with a real database, a scripted provider and real scrapes.
//!
//! With `NEXUSGATE_TEST_POSTGRES` (a superuser's URL) every app gets a database of its own on that server; without, SQLite
//! files in a temporary folder.

#![expect(unreachable_pub, reason = "nobody outside a test binary reaches anything in it")]
#![expect(clippy::expect_used, reason = "a helper that cannot do its part fails the test")]
#![expect(clippy::cast_precision_loss, reason = "samples are floats, and the counts of a test are small")]
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "what a test measured or left out stands in its output"
)]

mod admin;
mod architecture;
mod breaker;
mod commands;
mod demo;
mod endings;
mod failover;
mod formats;
mod idempotency;
mod metrics;
mod odd_upstreams;
mod outage;
mod passthrough;
mod proxy;
mod secrets;
mod settings;
mod slow_clients;
mod soak;
mod spent;
mod streams;
mod support;
mod tls;
