//! Reading the log.

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Datelike as _, Utc};
use entity::{completions, embeddings, providers};
use sea_orm::sea_query::{Expr, ExprTrait, Func, LikeExpr, Order, Query, SelectStatement};
use sea_orm::{ConnectionTrait, EntityTrait, FromQueryResult, Iden, Iterable};
use uuid::Uuid;

use super::row::LogRow;
use crate::domain::label::{ApiFormat, LogTable, Status};
use crate::store::error::{StoreError, StoreResult};

/// Selects the rows of a list; `None`: all.
#[derive(Debug, Clone, Default)]
pub struct LogFilter {
    pub api_key_id: Option<i64>,
    /// System name.
    pub model: Option<String>,
    pub provider_id: Option<i64>,
    /// Name of a provider, living or deleted.
    pub provider: Option<String>,
    pub status: Option<Status>,
    /// Completions only; ignored for embeddings, which have one format.
    pub api_format: Option<ApiFormat>,
    /// Arrived at this time or later.
    pub from: Option<DateTime<Utc>>,
    /// Arrived before this time.
    pub to: Option<DateTime<Utc>>,
    /// Part of the error, upper or lower case (ASCII letters on SQLite).
    pub error: Option<String>,
}

/// A part of a list; the latest arrival comes first.
#[derive(Debug, Clone)]
pub struct Page {
    pub limit: u64,
    /// Rows to skip; slow when large. See `after`.
    pub offset: u64,
    /// Continue after this row: nothing before it is read again, and no row is skipped or shown twice when new ones arrive
    /// meanwhile.
    pub after: Option<Cursor>,
    /// Whether the rows come with their bodies.
    pub bodies: bool,
}

impl Default for Page {
    fn default() -> Self {
        Self { limit: 100, offset: 0, after: None, bodies: false }
    }
}

/// A place in a list: just after one row. Its text (`1700000000000000_<uuid>`) is safe in a URL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor {
    created_at: DateTime<Utc>,
    id: Uuid,
}

impl From<&LogRow> for Cursor {
    fn from(row: &LogRow) -> Self {
        Self { created_at: row.created_at, id: row.id }
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}_{}", self.created_at.timestamp_micros(), self.id)
    }
}

impl FromStr for Cursor {
    type Err = StoreError;

    fn from_str(text: &str) -> StoreResult<Self> {
        let read = || {
            let (micros, id) = text.split_once('_')?;
            let created_at = DateTime::from_timestamp_micros(micros.parse().ok()?)?;
            // Others are compared differently by the two databases.
            if !(1970..=9999).contains(&created_at.year()) {
                return None;
            }
            Some(Self { created_at, id: id.parse().ok()? })
        };
        read().ok_or_else(|| StoreError::invalid("after", "is not a cursor that a list gave"))
    }
}

/// A page of rows, the latest arrival first.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn list(
    db: &impl ConnectionTrait,
    table: LogTable,
    filter: &LogFilter,
    page: &Page,
) -> StoreResult<Vec<LogRow>> {
    rows(db, table, &listing(db, table, filter, page).await?).await
}

/// The query of [`list`].
pub(in crate::store) async fn listing(
    db: &impl ConnectionTrait,
    table: LogTable,
    filter: &LogFilter,
    page: &Page,
) -> StoreResult<SelectStatement> {
    // First the ids, for which the indexes are enough; then the rows, which are wide.
    let mut which = Query::select().column("id").from(table.as_str()).to_owned();
    if let Some(after) = page.after {
        // Before the filter's own bounds: of several upper ones SQLite goes by the first.
        which.and_where(
            Expr::tuple([Expr::col("created_at"), Expr::col("id")])
                .lt(Expr::tuple([Expr::val(after.created_at), Expr::val(after.id)])),
        );
    }
    apply(db, &mut which, table, filter).await?;
    latest_first(&mut which).limit(page.limit).offset(page.offset);
    let mut query = columns(table, page.bodies);
    latest_first(query.and_where(Expr::col("id").in_subquery(which)));
    Ok(query)
}

fn latest_first(query: &mut SelectStatement) -> &mut SelectStatement {
    query.order_by("created_at", Order::Desc).order_by("id", Order::Desc)
}

/// The number of rows that pass the filter, but never more than `at_most`: counting stops there, because a count over a
/// whole log of millions takes seconds, and nobody pages that far.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn count(
    db: &impl ConnectionTrait,
    table: LogTable,
    filter: &LogFilter,
    at_most: u64,
) -> StoreResult<u64> {
    let query = counting(db, table, filter, at_most).await?;
    let row = db.query_one(&query).await?.ok_or(StoreError::NotFound)?;
    Ok(u64::try_from(row.try_get_by_index::<i64>(0)?).unwrap_or(0))
}

/// The query of [`count`].
pub(in crate::store) async fn counting(
    db: &impl ConnectionTrait,
    table: LogTable,
    filter: &LogFilter,
    at_most: u64,
) -> StoreResult<SelectStatement> {
    let mut rows = Query::select().expr(Expr::cust("1")).from(table.as_str()).limit(at_most).to_owned();
    apply(db, &mut rows, table, filter).await?;
    Ok(Query::select().expr(Expr::cust("count(*)")).from_subquery(rows, "counted").to_owned())
}

/// One row with its bodies.
///
/// # Errors
/// [`StoreError::NotFound`].
pub async fn get(db: &impl ConnectionTrait, table: LogTable, id: Uuid) -> StoreResult<LogRow> {
    let query = columns(table, true).and_where(Expr::col("id").eq(id)).to_owned();
    rows(db, table, &query).await?.pop().ok_or(StoreError::NotFound)
}

/// The latest completed request of this key that carried this request id, with its bodies.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn find_by_request_id(
    db: &impl ConnectionTrait,
    table: LogTable,
    api_key_id: i64,
    request_id: &str,
) -> StoreResult<Option<LogRow>> {
    let query = columns(table, true)
        .and_where(Expr::col("request_id").eq(request_id))
        .and_where(Expr::col("api_key_id").eq(api_key_id))
        .and_where(Expr::col("status").eq(Status::Completed.as_str()))
        .order_by("created_at", Order::Desc)
        .limit(1)
        .to_owned();
    Ok(rows(db, table, &query).await?.pop())
}

/// `SELECT` of every column of the table; without bodies, nulls stand in their place.
fn columns(table: LogTable, bodies: bool) -> SelectStatement {
    let names: Vec<String> = match table {
        LogTable::Completions => completions::Column::iter().map(|column| column.to_string()).collect(),
        LogTable::Embeddings => embeddings::Column::iter().map(|column| column.to_string()).collect(),
    };
    let mut query = Query::select().from(table.as_str()).to_owned();
    for name in names {
        if !bodies && (name == "request_body" || name == "response_body") {
            query.expr_as(Expr::cust("NULL"), name);
        } else {
            query.column(name);
        }
    }
    query
}

async fn rows(
    db: &impl ConnectionTrait,
    table: LogTable,
    query: &SelectStatement,
) -> StoreResult<Vec<LogRow>> {
    let found = db.query_all(query).await?;
    let rows: Result<_, sea_orm::DbErr> = match table {
        LogTable::Completions => {
            found.iter().map(|row| completions::Model::from_query_result(row, "").map(LogRow::from)).collect()
        }
        LogTable::Embeddings => {
            found.iter().map(|row| embeddings::Model::from_query_result(row, "").map(LogRow::from)).collect()
        }
    };
    Ok(rows?)
}

async fn apply(
    db: &impl ConnectionTrait,
    query: &mut SelectStatement,
    table: LogTable,
    filter: &LogFilter,
) -> StoreResult<()> {
    if let Some(id) = filter.api_key_id {
        query.and_where(Expr::col("api_key_id").eq(id));
    }
    if let Some(model) = &filter.model {
        query.and_where(Expr::col("model").eq(storable(model)));
    }
    if let Some(id) = filter.provider_id {
        query.and_where(Expr::col("provider_id").eq(id));
    }
    if let Some(name) = &filter.provider {
        // The ids first, because the indexes are by id.
        let ids = provider_ids(db, name).await?;
        match ids.as_slice() {
            [id] => query.and_where(Expr::col("provider_id").eq(*id)),
            ids => query.and_where(Expr::col("provider_id").is_in(ids.iter().copied())),
        };
    }
    if let Some(status) = filter.status {
        query.and_where(Expr::col("status").eq(status.as_str()));
    }
    if let Some(format) = filter.api_format.filter(|_| table == LogTable::Completions) {
        query.and_where(Expr::col("api_format").eq(format.as_str()));
    }
    if let Some(from) = filter.from {
        query.and_where(Expr::col("created_at").gte(from));
    }
    if let Some(to) = filter.to {
        query.and_where(Expr::col("created_at").lt(to));
    }
    if let Some(part) = &filter.error {
        let pattern =
            storable(part).to_lowercase().replace('\\', "\\\\").replace('%', "\\%").replace('_', "\\_");
        // The first condition lets both databases use the index of rows with an error.
        query.and_where(Expr::col("error").is_not_null()).and_where(
            Expr::expr(Func::lower(Expr::col("error")))
                .like(LikeExpr::new(format!("%{pattern}%")).escape('\\')),
        );
    }
    Ok(())
}

/// A search text in the form in which it would have been stored.
fn storable(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

async fn provider_ids(db: &impl ConnectionTrait, name: &str) -> StoreResult<Vec<i64>> {
    use sea_orm::{ColumnTrait as _, QueryFilter as _, QuerySelect as _};
    let ids = providers::Entity::find()
        .select_only()
        .column(providers::Column::Id)
        .filter(providers::Column::Name.eq(storable(name)))
        .into_tuple()
        .all(db)
        .await?;
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_survive_a_url() {
        let cursor =
            Cursor { created_at: "2026-01-02T03:04:05.678901Z".parse().unwrap(), id: Uuid::now_v7() };
        assert_eq!(cursor.to_string().parse::<Cursor>().unwrap(), cursor);
        for wrong in ["", "_", "1", "1_x", "x_00000000-0000-0000-0000-000000000000", "9999999999999999999_"] {
            assert!(wrong.parse::<Cursor>().is_err(), "{wrong}");
        }
    }
}
