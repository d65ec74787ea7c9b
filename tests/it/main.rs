//! The integration tests: the whole gateway on a free port, with a real database, a scripted provider and real scrapes.
//!
//! With `NEXUSGATE_TEST_POSTGRES` (a superuser's URL) every app gets a database of its own on that server; without, SQLite
//! files in a temporary folder.

mod architecture;
mod endings;
mod metrics;
mod settings;
mod streams;
mod support;
