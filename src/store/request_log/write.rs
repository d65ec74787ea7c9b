//! Writing the log, and deleting from it.

use std::collections::HashSet;
use std::convert::Infallible;
use std::sync::OnceLock;

use chrono::{DateTime, Utc};
use entity::{completions, embeddings};
use sea_orm::sea_query::{Expr, ExprTrait, OnConflict, Query};
use sea_orm::{
    ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbBackend, EntityTrait, IdenStatic as _,
    Iterable as _, Order, Value,
};
use uuid::Uuid;

use super::row::{Cell, LogRow};
use super::writer::LogWriter;
use super::{postgres, usage};
use crate::domain::label::LogTable;
use crate::store::begin_write;
use crate::store::error::{StoreError, StoreResult};

/// Variables in one statement: below SQLite's 32,766 and PostgreSQL's 65,535.
const MAX_VARIABLES: usize = 30_000;
/// Bytes of texts in one statement. Far below the databases' limits (about 1 GB), so that one batch of long
/// conversations does not take that much memory here and in the database.
const MAX_STATEMENT_BYTES: usize = 16 << 20;

/// Writes these rows in one transaction and returns how many were new: a row whose id the table has is left as it is.
/// The sums by day grow by exactly the new ones.
///
/// # Errors
/// [`StoreError::Database`], [`StoreError::Sqlite`]: nothing was written. When it [is
/// transient](StoreError::is_transient), retry; otherwise the database refuses one of the rows, and halving the batch
/// finds out which.
pub async fn insert_batch(writer: &LogWriter, rows: &[LogRow]) -> StoreResult<u64> {
    if rows.is_empty() {
        return Ok(0);
    }
    if let Some(file) = writer.file() {
        return file.insert(rows);
    }
    let db = writer.database();
    // The usual case, except in a replay: the database reports only how many rows it took, not which.
    if db.get_database_backend() == DbBackend::Postgres
        && postgres::insert_all_new(db.get_postgres_connection_pool(), rows).await?
    {
        return Ok(to_u64(rows.len()));
    }
    insert_some_new(db, rows).await
}

/// As [`insert_batch`], for when the database has some of the rows: it is asked which were new. (Always asking would
/// make the SQLite worker hand the ids over one by one, with two thread switches for each.)
async fn insert_some_new(db: &DatabaseConnection, rows: &[LogRow]) -> StoreResult<u64> {
    let transaction = begin_write(db).await?;
    let mut new = HashSet::new();
    for table in LogTable::ALL {
        for rows in cut(*table, &in_order(*table, rows)) {
            new.extend(insert(&transaction, *table, rows).await?);
        }
    }
    let inserted = to_u64(new.len());
    // A row that is in the batch twice is new only once.
    let sums = usage::additions(rows.iter().filter(|row| new.remove(&row.id)));
    for statement in usage::statements(&sums) {
        transaction.execute(&statement).await?;
    }
    transaction.commit().await?;
    Ok(inserted)
}

/// Deletes one row for good. The sums by day stay.
///
/// # Errors
/// [`StoreError::NotFound`].
pub async fn delete(db: &impl ConnectionTrait, table: LogTable, id: Uuid) -> StoreResult<()> {
    let delete = Query::delete().from_table(table.as_str()).and_where(Expr::col("id").eq(id)).to_owned();
    match db.execute(&delete).await?.rows_affected() {
        0 => Err(StoreError::NotFound),
        _ => Ok(()),
    }
}

/// Deletes at most `batch` of the rows that arrived before `older_than`, oldest first, and returns how many. Fewer than
/// `batch` means that none are left; small batches (a thousand) keep locks and the write-ahead log short.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn prune(
    db: &impl ConnectionTrait,
    table: LogTable,
    older_than: DateTime<Utc>,
    batch: u64,
) -> StoreResult<u64> {
    let oldest = Query::select()
        .column("id")
        .from(table.as_str())
        .and_where(Expr::col("created_at").lt(older_than))
        .order_by("created_at", Order::Asc)
        .limit(batch)
        .to_owned();
    let delete =
        Query::delete().from_table(table.as_str()).and_where(Expr::col("id").in_subquery(oldest)).to_owned();
    Ok(db.execute(&delete).await?.rows_affected())
}

/// Inserts rows of one table; returns the ids of the new ones.
async fn insert(db: &DatabaseTransaction, table: LogTable, rows: &[&LogRow]) -> StoreResult<Vec<Uuid>> {
    let mut insert = Query::insert();
    insert
        .into_table(table.as_str())
        .columns(columns(table).iter().copied())
        .on_conflict(OnConflict::column("id").do_nothing().to_owned())
        .returning_col("id");
    for row in rows {
        let mut values = Vec::with_capacity(columns(table).len());
        let Ok(()) = row.cells(|cell| {
            values.push(Expr::value(cell));
            Ok::<_, Infallible>(())
        });
        insert.values_panic(values);
    }
    let rows = db.query_all(&insert).await?;
    Ok(rows.iter().map(|row| row.try_get_by_index(0)).collect::<Result<_, _>>()?)
}

impl From<Cell<'_>> for Value {
    fn from(cell: Cell<'_>) -> Self {
        match cell {
            Cell::Id(id) => id.copied().into(),
            Cell::Integer(number) => number.into(),
            Cell::Number(number) => number.into(),
            Cell::Flag(flag) => flag.into(),
            Cell::Text(text) => text.into(),
            Cell::Time(time) => time.into(),
        }
    }
}

pub(super) fn to_u64(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

/// The columns of a table, in the order in which values are given.
pub(in crate::store) fn columns(table: LogTable) -> &'static [&'static str] {
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

/// The rows of one table by id, so that two writers of the same rows wait for each other without a deadlock.
pub(super) fn in_order(table: LogTable, rows: &[LogRow]) -> Vec<&LogRow> {
    let mut rows: Vec<&LogRow> = rows.iter().filter(|row| row.table == table).collect();
    // They come nearly sorted: ids are made in the order of arrival, and rows end up here in the order of completion.
    rows.sort_by_key(|row| row.id);
    rows
}

/// The rows of one table, statement by statement.
pub(super) fn cut<'a, 'b>(table: LogTable, rows: &'a [&'b LogRow]) -> impl Iterator<Item = &'a [&'b LogRow]> {
    statements(rows, MAX_VARIABLES / columns(table).len())
}

/// Cuts rows into statements of at most `max_rows` rows and [`MAX_STATEMENT_BYTES`].
fn statements<'a, 'b>(rows: &'a [&'b LogRow], max_rows: usize) -> impl Iterator<Item = &'a [&'b LogRow]> {
    by_powers_of_two(rows, move |rest| {
        let mut bytes = 0usize;
        let fits = |row: &&&LogRow| {
            bytes = bytes.saturating_add(row.weight());
            bytes <= MAX_STATEMENT_BYTES
        };
        rest.iter().take(max_rows).take_while(fits).count()
    })
}

/// Cuts `all` into pieces; `fitting` says how many of the rest one statement takes. Their lengths are powers of two, so
/// that the prepared statements the databases keep are a dozen, not one for every length of a batch.
pub(super) fn by_powers_of_two<T>(all: &[T], fitting: impl Fn(&[T]) -> usize) -> impl Iterator<Item = &[T]> {
    let mut rest = all;
    std::iter::from_fn(move || {
        let most = fitting(rest).max(1);
        let (piece, after) = rest.split_at_checked(1 << most.ilog2())?;
        rest = after;
        Some(piece)
    })
}
