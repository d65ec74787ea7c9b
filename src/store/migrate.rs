//! Bringing the schema up to date.

use migration::Migrator;
use sea_orm::sea_query::Expr;
use sea_orm::{ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbBackend, DbErr};
use sea_orm_migration::MigratorTrait as _;

use super::begin_write;
use super::error::{StoreError, StoreResult};

/// PostgreSQL advisory locks are numbers that all programs in one database share: "nexu" and a small number of ours.
const LOCK_SPACE: i32 = 0x6e65_7875;
const LOCK_MIGRATE: i32 = 1;
pub(super) const LOCK_DECLARE: i32 = 2;

/// How long a starting replica waits for another replica that is migrating.
const LOCK_TIMEOUT: &str = "120s";

/// One migration and whether the database has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MigrationState {
    pub name: String,
    pub applied: bool,
}

/// Applies every pending migration, in one transaction and one replica at a time: a second replica waits and then
/// finds nothing to do.
///
/// # Errors
/// [`StoreError::Open`] when a migration fails, or the database was migrated by a newer version.
pub async fn up(db: &DatabaseConnection) -> StoreResult<()> {
    let transaction = locked(db).await?;
    Migrator::up(&transaction, None).await.map_err(explain)?;
    transaction.commit().await.map_err(explain)
}

/// Reverts the last `steps` migrations (`None`: all of them). **Tables that they created are dropped with their rows.**
///
/// # Errors
/// As [`up`].
pub async fn down(db: &DatabaseConnection, steps: Option<u32>) -> StoreResult<()> {
    let transaction = locked(db).await?;
    Migrator::down(&transaction, steps).await.map_err(explain)?;
    transaction.commit().await.map_err(explain)
}

/// Every migration this version knows, oldest first. Writes nothing.
///
/// # Errors
/// As [`up`].
pub async fn status(db: &DatabaseConnection) -> StoreResult<Vec<MigrationState>> {
    let migrations = Migrator::get_migration_with_status_read_only(db).await.map_err(explain)?;
    Ok(migrations
        .iter()
        .map(|migration| MigrationState {
            name: migration.name().to_owned(),
            applied: migration.status() == sea_orm_migration::MigrationStatus::Applied,
        })
        .collect())
}

async fn locked(db: &DatabaseConnection) -> StoreResult<DatabaseTransaction> {
    let transaction = begin_write(db).await.map_err(explain)?;
    if transaction.get_database_backend() == DbBackend::Postgres {
        let wait = format!("SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'; SET LOCAL statement_timeout = 0");
        transaction.execute_unprepared(&wait).await.map_err(explain)?;
        advisory_lock(&transaction, LOCK_MIGRATE).await.map_err(explain)?;
    }
    Ok(transaction)
}

/// Waits until no other transaction holds this lock, and keeps it until the end of this one. PostgreSQL only: on
/// SQLite a write transaction is alone anyway.
pub(super) async fn advisory_lock(transaction: &DatabaseTransaction, lock: i32) -> Result<(), DbErr> {
    if transaction.get_database_backend() == DbBackend::Postgres {
        let lock = Expr::cust_with_values("pg_advisory_xact_lock($1, $2)", [LOCK_SPACE, lock]);
        transaction.query_one(sea_orm::sea_query::Query::select().expr(lock)).await?;
    }
    Ok(())
}

fn explain(error: DbErr) -> StoreError {
    let text = error.to_string();
    if text.contains("its file is missing") {
        return StoreError::Open(
            "the database was migrated by a newer version of nexusgate; use that version".to_owned(),
        );
    }
    StoreError::Open(format!(
        "cannot migrate the database: {}",
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    ))
}
