//! Resilience: real nexusgate processes are killed, and real databases, Redis, haproxy and Prometheus are disturbed.
//!
//! Each test has the machine to itself ([`support::machine`]). `scripts/test.sh` runs all of them once, with SQLite
//! where the kind of the database does not matter, and the tests for which it does (`crash::`, `replicas::`) again with
//! `NEXUSGATE_TEST_POSTGRES`. The outage tests start a PostgreSQL of their own either way.

#![expect(unreachable_pub, reason = "nobody outside a test binary reaches anything in it")]
#![expect(clippy::expect_used, reason = "a helper that cannot do its part fails the test")]
#![expect(clippy::panic, reason = "a helper that cannot do its part fails the test")]
#![expect(clippy::cast_precision_loss, reason = "samples are floats, and the counts of a test are small")]
#![expect(clippy::print_stdout, reason = "what a test measured stands in its output")]

mod chaos;
mod crash;
mod disk;
mod outage;
mod redis_traffic;
mod replicas;
mod restarts;
mod support;
