//! Persistent data: keys, providers, models and the request log, in SQLite or PostgreSQL.
//!
//! The request path reads none of this: it reads a [`Snapshot`], an immutable copy in memory that is swapped after an
//! administrator's change and on a timer. Everything here speaks SQL through sea-orm (batches of the request log bypass
//! it and use the driver) and knows nothing of HTTP.
//!
//! * [`connect`](mod@connect): open a database, bring its schema up to date ([`migrate`]).
//! * [`crypt`]: secrets at rest. Every credential column holds ciphertext.
//! * [`keys`], [`providers`], [`models`]: an administrator's configuration; [`declared`]: the same from a file.
//! * [`snapshot`]: the copy in memory.
//! * [`request_log`]: finished requests, row by row.

pub mod connect;
pub mod crypt;
pub mod declared;
pub mod error;
pub mod keys;
pub mod migrate;
pub mod models;
pub mod providers;
pub mod request_log;
pub mod snapshot;

mod check;
mod key_file;
#[cfg(test)]
mod tests;

use chrono::{DateTime, SubsecRound, Utc};
use sea_orm::{
    DatabaseConnection, DatabaseTransaction, SqliteTransactionMode, TransactionOptions, TransactionTrait,
};

pub use connect::{Settings, connect, log_writer};
pub use crypt::Cipher;
pub use error::{StoreError, StoreResult};
pub use snapshot::{ActiveCounts, Snapshot, SnapshotStore, counts};

/// The origin of a row; stored in its `source` column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// An administrator, through the API or the command line.
    Manual,
    /// The Kubernetes operator, by external id.
    Operator,
    /// The settings file.
    Config,
}

impl Source {
    /// The stored text; `manual` and `operator` are the reference system's words.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Manual => "manual",
            Self::Operator => "operator",
            Self::Config => "config",
        }
    }
}

/// The time, at the precision both databases keep (PostgreSQL: microseconds), so that it is read back as it was
/// written.
fn now() -> DateTime<Utc> {
    Utc::now().trunc_subsecs(6)
}

/// Begins a transaction that is going to write. On SQLite it takes the write lock at once: a transaction that reads
/// first and upgrades later fails with `SQLITE_BUSY` however long the busy timeout is.
async fn begin_write(db: &DatabaseConnection) -> Result<DatabaseTransaction, sea_orm::DbErr> {
    db.begin_with_options(TransactionOptions {
        sqlite_transaction_mode: Some(SqliteTransactionMode::Immediate),
        ..TransactionOptions::default()
    })
    .await
}
