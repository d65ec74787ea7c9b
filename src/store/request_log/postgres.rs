//! The insert that every request pays for: a batch of rows, all of which are new, into PostgreSQL. [SQLite
//! files](super::sqlite) have their own.
//!
//! It uses the driver directly. A query builder takes longer to build an insert of 256 rows than a database to execute
//! it, and sea-orm copies every value twice before the driver has it. So the texts of the statements are made once
//! (their lengths are powers of two, see `write`, a dozen for each table), and the driver takes the values as they are.

use std::fmt::Write as _;
use std::sync::OnceLock;

use sea_orm::sea_query::PostgresQueryBuilder;
use sea_orm::sqlx::error::BoxDynError;
use sea_orm::sqlx::postgres::{PgArguments, PgPool};
use sea_orm::sqlx::{self, Arguments as _, AssertSqlSafe, Executor as _};
use sea_orm::{DbErr, RuntimeErr};
use sea_query_sqlx::SqlxBinder as _;

use super::row::{Cell, LogRow};
use super::{usage, write};
use crate::domain::label::LogTable;
use crate::store::error::StoreResult;

/// Writes these rows and their sums if all of them are new; `false`, and nothing is written, when one is not.
pub(super) async fn insert_all_new(pool: &PgPool, rows: &[LogRow]) -> StoreResult<bool> {
    Ok(insert(pool, rows).await.map_err(|error| DbErr::Exec(RuntimeErr::SqlxError(error.into())))?)
}

async fn insert(pool: &PgPool, rows: &[LogRow]) -> sqlx::Result<bool> {
    let mut transaction = pool.begin().await?;
    for table in LogTable::ALL {
        for rows in write::cut(*table, &write::in_order(*table, rows)) {
            let mut arguments = PgArguments::default();
            arguments.reserve(rows.len() * write::columns(*table).len(), 0);
            for row in rows {
                row.cells(|cell| add(&mut arguments, cell)).map_err(sqlx::Error::Encode)?;
            }
            debug_assert_eq!(arguments.len(), rows.len() * write::columns(*table).len());
            let statement = sqlx::query_with(text(*table, rows.len()), arguments);
            if transaction.execute(statement).await?.rows_affected() != write::to_u64(rows.len()) {
                transaction.rollback().await?;
                return Ok(false);
            }
        }
    }
    for statement in usage::statements(&usage::additions(rows.iter())) {
        let (sql, values) = statement.build_sqlx(PostgresQueryBuilder);
        transaction.execute(sqlx::query_with(AssertSqlSafe(sql), values)).await?;
    }
    transaction.commit().await?;
    Ok(true)
}

/// Adds the value of one column.
fn add(arguments: &mut PgArguments, cell: Cell<'_>) -> Result<(), BoxDynError> {
    match cell {
        Cell::Id(id) => arguments.add(id),
        Cell::Integer(number) => arguments.add(number),
        Cell::Number(number) => arguments.add(number),
        Cell::Flag(flag) => arguments.add(flag),
        Cell::Text(text) => arguments.add(text),
        Cell::Time(time) => arguments.add(time),
    }
}

/// The longest statement has 2^15 rows: more rows than a statement may have variables.
const LENGTHS: usize = 16;

type Texts = [OnceLock<String>; LENGTHS];

static TEXTS: [Texts; LogTable::ALL.len()] =
    [const { [const { OnceLock::new() }; LENGTHS] }; LogTable::ALL.len()];

/// Inserts `rows` rows, a power of two, into `table`, skipping ids that are there.
fn text(table: LogTable, rows: usize) -> &'static str {
    let length = usize::try_from(rows.ilog2()).unwrap_or(0);
    debug_assert_eq!(1 << length, rows);
    TEXTS[table as usize][length].get_or_init(|| {
        let columns = write::columns(table);
        let mut sql = format!("INSERT INTO \"{table}\" (\"{}\") VALUES ", columns.join("\", \""));
        let mut variable = 0;
        for row in 0..rows {
            sql.push_str(if row == 0 { "(" } else { ", (" });
            for column in 0..columns.len() {
                let comma = if column == 0 { "" } else { ", " };
                variable += 1;
                // Writing to a String cannot fail.
                let _ = write!(sql, "{comma}${variable}");
            }
            sql.push(')');
        }
        sql.push_str(" ON CONFLICT (\"id\") DO NOTHING");
        sql
    })
}
