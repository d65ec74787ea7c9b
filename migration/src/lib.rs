//! Schema migrations: one set that SQLite and PostgreSQL both run.
//!
//! * Times are `timestamp with time zone` in UTC; SQLite keeps them as RFC 3339 text with a `+00:00` offset, which
//!   sorts as the times do.
//! * Durations are double-precision **milliseconds**: a time to first token below one millisecond (a local model, a
//!   test double) must not become 0. Money is double-precision US dollars.
//! * Row ids of what an administrator configures are 64-bit integers, ids of logged requests are UUIDv7.

use sea_orm_migration::prelude::*;

mod m20261122_000001_accounts;
mod m20261122_000002_request_log;
mod m20261126_000003_sqlite_log_index;
mod m20261127_000004_cache_prices;

/// Every migration, oldest first.
#[derive(Debug)]
pub struct Migrator;

#[async_trait::async_trait]
impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![
            Box::new(m20261122_000001_accounts::Migration),
            Box::new(m20261122_000002_request_log::Migration),
            Box::new(m20261126_000003_sqlite_log_index::Migration),
            Box::new(m20261127_000004_cache_prices::Migration),
        ]
    }
}
