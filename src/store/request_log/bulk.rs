//! The insert that every request pays for: a batch of rows, all of which are new.
//!
//! It goes to the driver directly. Building an insert of 256 rows takes a query builder longer than SQLite takes to
//! execute it, and sea-orm copies every value twice before the driver has it. So the texts of the statements are made
//! once (their lengths are powers of two, see `write`, a dozen for each table), and the values are given to
//! the driver as they are.

use std::fmt::Write as _;
use std::sync::OnceLock;

use entity::{completions, embeddings};
use sea_orm::sea_query::{PostgresQueryBuilder, QueryBuilder, SqliteQueryBuilder};
use sea_orm::sqlx::error::BoxDynError;
use sea_orm::sqlx::postgres::PgArguments;
use sea_orm::sqlx::sqlite::SqliteArguments;
use sea_orm::sqlx::{
    self, Arguments, AssertSqlSafe, Database, Executor, IntoArguments, Postgres, Sqlite, Transaction,
};
use sea_orm::{
    DatabaseConnection, DbBackend, DbErr, EntityTrait, IdenStatic as _, Iterable as _, RuntimeErr,
};
use sea_query_sqlx::{SqlxBinder as _, SqlxValues};

use super::row::LogRow;
use super::{usage, write};
use crate::domain::label::LogTable;
use crate::store::error::StoreResult;

/// Writes these rows and their sums if all of them are new; `false`, and nothing is written, when one is not.
pub(super) async fn insert_all_new(db: &DatabaseConnection, rows: &[LogRow]) -> StoreResult<bool> {
    let done = match db.get_database_backend() {
        DbBackend::Postgres => {
            let begun = db.get_postgres_connection_pool().begin().await;
            insert_in(begun, rows).await
        }
        _ => {
            // Takes the lock at once: a transaction that began by reading could not wait for it.
            let begun = db.get_sqlite_connection_pool().begin_with("BEGIN IMMEDIATE").await;
            insert_in(begun, rows).await
        }
    };
    Ok(done.map_err(|error| DbErr::Exec(RuntimeErr::SqlxError(error.into())))?)
}

async fn insert_in<DB>(begun: sqlx::Result<Transaction<'static, DB>>, rows: &[LogRow]) -> sqlx::Result<bool>
where
    DB: Bulk,
    for<'c> &'c mut DB::Connection: Executor<'c, Database = DB>,
    DB::Arguments: IntoArguments<DB>,
    SqlxValues: IntoArguments<DB>,
{
    let mut transaction = begun?;
    for table in LogTable::ALL {
        for rows in write::cut(*table, &write::in_order(*table, rows)) {
            let mut arguments = DB::Arguments::default();
            arguments.reserve(rows.len() * columns(*table).len(), 0);
            for row in rows {
                match table {
                    LogTable::Completions => DB::add_completion(&mut arguments, row),
                    LogTable::Embeddings => DB::add_embedding(&mut arguments, row),
                }
                .map_err(sqlx::Error::Encode)?;
            }
            debug_assert_eq!(arguments.len(), rows.len() * columns(*table).len());
            let statement = sqlx::query_with(text::<DB>(*table, rows.len()), arguments);
            if DB::affected(&transaction.execute(statement).await?) != write::to_u64(rows.len()) {
                transaction.rollback().await?;
                return Ok(false);
            }
        }
    }
    for statement in usage::additions(rows.iter()) {
        let (sql, values) = statement.build_sqlx(DB::Builder::default());
        transaction.execute(sqlx::query_with(AssertSqlSafe(sql), values)).await?;
    }
    transaction.commit().await?;
    Ok(true)
}

/// What differs between the drivers.
trait Bulk: Database {
    /// SQLite: whoever inserts rolls the transaction back when a row is refused. To be able to take back one statement
    /// alone, SQLite would first copy every page that it changes. The price: when the disk is full, SQLite ends the whole
    /// transaction itself (see [`connect`](mod@crate::store::connect) for what the pool does then).
    const INSERT: &'static str;
    /// Variables are numbered.
    const NUMBERED: bool;
    /// Writes the statements that are not made by hand.
    type Builder: QueryBuilder + Default;

    /// Adds the values of a row, in the order of the entity's columns.
    fn add_completion(arguments: &mut Self::Arguments, row: &LogRow) -> Result<(), BoxDynError>;
    fn add_embedding(arguments: &mut Self::Arguments, row: &LogRow) -> Result<(), BoxDynError>;

    fn affected(result: &Self::QueryResult) -> u64;
}

macro_rules! bulk {
    ($database:ty, $arguments:ty, $builder:ty, $insert:literal, $numbered:literal) => {
        impl Bulk for $database {
            const INSERT: &'static str = $insert;
            const NUMBERED: bool = $numbered;
            type Builder = $builder;

            fn add_completion(arguments: &mut $arguments, row: &LogRow) -> Result<(), BoxDynError> {
                arguments.add(row.id)?;
                arguments.add(row.api_key_id)?;
                arguments.add(row.model.as_str())?;
                arguments.add(row.model_id)?;
                arguments.add(row.provider.as_deref())?;
                arguments.add(row.provider_id)?;
                arguments.add(row.api_format.as_deref().unwrap_or_default())?;
                arguments.add(row.status.as_str())?;
                arguments.add(row.stream)?;
                arguments.add(row.prompt_tokens)?;
                arguments.add(row.completion_tokens)?;
                arguments.add(row.cached_tokens)?;
                arguments.add(row.cache_write_tokens)?;
                arguments.add(row.reasoning_tokens)?;
                arguments.add(row.prompt_cost)?;
                arguments.add(row.completion_cost)?;
                arguments.add(row.duration_ms)?;
                arguments.add(row.ttft_ms)?;
                arguments.add(row.longest_stall_ms)?;
                arguments.add(row.overhead_ms)?;
                arguments.add(row.finish_reason.as_deref())?;
                arguments.add(row.error.as_deref())?;
                arguments.add(row.request_id.as_deref())?;
                arguments.add(row.source)?;
                arguments.add(row.request_body.as_deref())?;
                arguments.add(row.response_body.as_deref())?;
                arguments.add(row.created_at)
            }

            fn add_embedding(arguments: &mut $arguments, row: &LogRow) -> Result<(), BoxDynError> {
                arguments.add(row.id)?;
                arguments.add(row.api_key_id)?;
                arguments.add(row.model.as_str())?;
                arguments.add(row.model_id)?;
                arguments.add(row.provider.as_deref())?;
                arguments.add(row.provider_id)?;
                arguments.add(row.status.as_str())?;
                arguments.add(row.prompt_tokens)?;
                arguments.add(row.prompt_cost)?;
                arguments.add(row.duration_ms)?;
                arguments.add(row.overhead_ms)?;
                arguments.add(row.error.as_deref())?;
                arguments.add(row.request_id.as_deref())?;
                arguments.add(row.source)?;
                arguments.add(row.request_body.as_deref())?;
                arguments.add(row.response_body.as_deref())?;
                arguments.add(row.created_at)
            }

            fn affected(result: &Self::QueryResult) -> u64 {
                result.rows_affected()
            }
        }
    };
}

bulk!(Sqlite, SqliteArguments, SqliteQueryBuilder, "INSERT OR FAIL", false);
bulk!(Postgres, PgArguments, PostgresQueryBuilder, "INSERT", true);

/// The longest statement has 2^15 rows: more than there may be variables.
const LENGTHS: usize = 16;

type Texts = [OnceLock<String>; LENGTHS];

static TEXTS: [[Texts; 2]; LogTable::ALL.len()] =
    [const { [const { [const { OnceLock::new() }; LENGTHS] }; 2] }; LogTable::ALL.len()];

/// Inserts so many rows, a power of two, into `table`, passing over ids that are there.
fn text<DB: Bulk>(table: LogTable, rows: usize) -> &'static str {
    let length = usize::try_from(rows.ilog2()).unwrap_or(0);
    debug_assert_eq!(1 << length, rows);
    TEXTS[table as usize][usize::from(DB::NUMBERED)][length].get_or_init(|| {
        let columns = columns(table);
        let mut sql = format!("{} INTO \"{table}\" (\"{}\") VALUES ", DB::INSERT, columns.join("\", \""));
        let mut variable = 0;
        for row in 0..rows {
            sql.push_str(if row == 0 { "(" } else { ", (" });
            for column in 0..columns.len() {
                let comma = if column == 0 { "" } else { ", " };
                variable += 1;
                // Writing to a String cannot fail.
                let _ =
                    if DB::NUMBERED { write!(sql, "{comma}${variable}") } else { write!(sql, "{comma}?") };
            }
            sql.push(')');
        }
        sql.push_str(" ON CONFLICT (\"id\") DO NOTHING");
        sql
    })
}

/// The columns of a table, in the order in which values are added.
pub(super) fn columns(table: LogTable) -> &'static [&'static str] {
    static COLUMNS: [OnceLock<Vec<&'static str>>; LogTable::ALL.len()] =
        [const { OnceLock::new() }; LogTable::ALL.len()];
    fn names<E: EntityTrait>() -> Vec<&'static str> {
        E::Column::iter().map(|column| column.as_str()).collect()
    }
    COLUMNS[table as usize].get_or_init(|| match table {
        LogTable::Completions => names::<completions::Entity>(),
        LogTable::Embeddings => names::<embeddings::Entity>(),
    })
}
