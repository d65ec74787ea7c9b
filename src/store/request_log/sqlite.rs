//! The insert into a SQLite file, over a connection of the log's own.
//!
//! sqlx hands each statement of SQLite to a thread and copies every value on the way, and a pool takes turns among its
//! connections, each of which drops its page cache when another one has written (docs/PERFORMANCE.md has the cost).
//! Here one statement is prepared and executed again and again, with values bound from where they are, on the calling
//! thread.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use chrono::SecondsFormat;
use entity::usage_daily;
use parking_lot::Mutex;
use rusqlite::types::ToSqlOutput;
use rusqlite::{Connection, OpenFlags, Statement, ToSql, Transaction, TransactionBehavior, ffi};
use sea_orm::Iterable as _;
use sea_orm::sea_query::SqliteQueryBuilder;

use super::row::{Cell, LogRow};
use super::{usage, write};
use crate::domain::label::LogTable;
use crate::store::error::StoreResult;

/// Rows of one statement, or sums: its cursors keep their places from row to row, and the next entry in an index is
/// found without a search from its root.
const ROWS: usize = 32;

/// How long closing waits for a batch.
const PATIENCE: Duration = Duration::from_secs(2);

/// The connection, opened when it is first needed, and again after an error.
#[derive(Debug)]
pub(in crate::store) struct LogFile {
    path: PathBuf,
    pragmas: String,
    /// The file's device and inode, as of the first connection.
    file: OnceLock<(u64, u64)>,
    connection: Mutex<Option<Connection>>,
}

impl LogFile {
    /// `pragmas` are executed on each new connection.
    pub(super) fn new(path: PathBuf, pragmas: String) -> Self {
        Self { path, pragmas, file: OnceLock::new(), connection: Mutex::new(None) }
    }

    /// Writes the new ones of these rows, and their sums; returns how many. Blocks the thread until SQLite has written
    /// and synced.
    pub(super) fn insert(&self, rows: &[LogRow]) -> StoreResult<u64> {
        let mut place = self.connection.lock();
        let result = self.open(&mut place).and_then(|connection| {
            // Except in a replay all are new.
            let all_new = insert_all_new(connection, rows)?;
            if all_new { Ok(write::to_u64(rows.len())) } else { insert_some_new(connection, rows) }
        });
        if result.is_err() {
            // A full disk ends a transaction in SQLite itself: whatever the cause, the next batch gets a new connection.
            *place = None;
        }
        Ok(result?)
    }

    /// The connection, opened if it is not.
    fn open<'a>(&self, place: &'a mut Option<Connection>) -> rusqlite::Result<&'a mut Connection> {
        self.check_file()?;
        match place {
            Some(connection) => Ok(connection),
            None => Ok(place.insert(self.connect()?)),
        }
    }

    /// SQLite would go on writing to a file that has been deleted, without an error. Nor may a file in its place be opened:
    /// other connections of this process still use the old one, under the same names of its write-ahead log.
    fn check_file(&self) -> rusqlite::Result<()> {
        let Some(first) = self.file.get() else { return Ok(()) };
        if identity(&self.path).as_ref() == Some(first) {
            return Ok(());
        }
        let text = "the database file was deleted or replaced: put it back, or restart the gateway";
        Err(rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_CANTOPEN), Some(text.to_owned())))
    }

    fn connect(&self) -> rusqlite::Result<Connection> {
        // The file exists: opening the database has created it. No mutex: the connection is behind one.
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(&self.path, flags)?;
        connection.execute_batch(&self.pragmas)?;
        if let Some(file) = identity(&self.path) {
            self.file.get_or_init(|| file);
        }
        Ok(connection)
    }

    /// Executes something on the connection that the next batch will use.
    #[cfg(test)]
    pub(in crate::store) fn execute(&self, sql: &str) {
        self.open(&mut self.connection.lock()).unwrap().execute_batch(sql).unwrap();
    }

    /// Closes the connection, unless it hangs on a disk.
    pub(super) fn close(&self) {
        if let Some(mut place) = self.connection.try_lock_for(PATIENCE) {
            *place = None;
        }
    }
}

/// The device and inode of a file; `None`: it is not there.
fn identity(path: &Path) -> Option<(u64, u64)> {
    let file = std::fs::metadata(path).ok()?;
    Some((file.dev(), file.ino()))
}

/// Writes these rows and their sums if all of them are new; `false`, and nothing is written, when one is not.
fn insert_all_new(connection: &mut Connection, rows: &[LogRow]) -> rusqlite::Result<bool> {
    // Takes the lock at once: a transaction that began by reading could not wait for it.
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    for table in LogTable::ALL {
        let rows = write::in_order(*table, rows);
        for rows in statements(&rows) {
            if insert(&transaction, *table, rows)? != rows.len() {
                // Dropping the transaction rolls it back.
                return Ok(false);
            }
        }
    }
    add_up(&transaction, rows.iter())?;
    transaction.commit()?;
    Ok(true)
}

/// Writes the rows one by one, for when some are already there.
fn insert_some_new(connection: &mut Connection, rows: &[LogRow]) -> rusqlite::Result<u64> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let mut new = Vec::new();
    for row in rows {
        if insert(&transaction, row.table, &[row])? > 0 {
            new.push(row);
        }
    }
    add_up(&transaction, new.iter().copied())?;
    transaction.commit()?;
    Ok(write::to_u64(new.len()))
}

/// Inserts one row or [`ROWS`] of a table; returns how many were new.
fn insert(transaction: &Transaction<'_>, table: LogTable, rows: &[&LogRow]) -> rusqlite::Result<usize> {
    let mut statement = transaction.prepare_cached(text(table, rows.len()))?;
    for (index, row) in rows.iter().enumerate() {
        bind(&mut statement, index * write::columns(table).len(), row)?;
    }
    statement.raw_execute()
}

/// Cuts into statements of [`ROWS`], and the rest into single ones: two texts for all.
fn statements<T>(all: &[T]) -> impl Iterator<Item = &[T]> {
    let (many, rest) = all.as_chunks::<ROWS>();
    many.iter().map(<[T; ROWS]>::as_slice).chain(rest.chunks(1))
}

/// Adds rows to the sums by day.
fn add_up<'a>(transaction: &Transaction<'_>, rows: impl Iterator<Item = &'a LogRow>) -> rusqlite::Result<()> {
    let sums = usage::additions(rows);
    for sums in statements(&sums) {
        let mut statement = transaction.prepare_cached(sums_text(sums))?;
        for (index, sum) in sums.iter().enumerate() {
            bind_sum(&mut statement, index * usage_daily::Column::iter().len(), sum)?;
        }
        statement.raw_execute()?;
    }
    Ok(())
}

/// Adds one sum or [`ROWS`]. The text depends only on their number; the values are bound.
fn sums_text(sums: &[usage_daily::Model]) -> &'static str {
    static TEXTS: [OnceLock<String>; 2] = [const { OnceLock::new() }; 2];
    debug_assert!(sums.len() == 1 || sums.len() == ROWS);
    TEXTS[usize::from(sums.len() > 1)].get_or_init(|| usage::statement(sums).build(SqliteQueryBuilder).0)
}

/// Inserts one row or [`ROWS`] into `table`, skipping ids that are there.
///
/// `OR FAIL`: when a row is refused the whole transaction is rolled back. To be able to roll back one statement alone,
/// SQLite would first copy every page that it changes.
fn text(table: LogTable, rows: usize) -> &'static str {
    static TEXTS: [[OnceLock<String>; 2]; LogTable::ALL.len()] =
        [const { [const { OnceLock::new() }; 2] }; LogTable::ALL.len()];
    debug_assert!(rows == 1 || rows == ROWS);
    TEXTS[table as usize][usize::from(rows > 1)].get_or_init(|| {
        let columns = write::columns(table);
        let row = format!("({})", vec!["?"; columns.len()].join(", "));
        let (columns, values) = (columns.join("\", \""), vec![row; rows].join(", "));
        format!(
            "INSERT OR FAIL INTO \"{table}\" (\"{columns}\") VALUES {values} ON CONFLICT (\"id\") DO NOTHING"
        )
    })
}

/// Binds the values of a row to the variables after the first `before`.
fn bind(statement: &mut Statement<'_>, before: usize, row: &LogRow) -> rusqlite::Result<()> {
    let mut variable = before;
    row.cells(|cell| {
        variable += 1;
        statement.raw_bind_parameter(variable, cell)
    })
}

impl ToSql for Cell<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(match self {
            Self::Id(id) => ToSqlOutput::Borrowed(id.map(|id| id.as_bytes().as_slice()).into()),
            Self::Integer(number) => ToSqlOutput::Owned((*number).into()),
            Self::Number(number) => ToSqlOutput::Owned((*number).into()),
            Self::Flag(flag) => (*flag).into(),
            Self::Text(text) => ToSqlOutput::Borrowed((*text).into()),
            // As sqlx writes times: lists compare these texts.
            Self::Time(time) => time.to_rfc3339_opts(SecondsFormat::AutoSi, false).into(),
        })
    }
}

fn bind_all<const N: usize>(
    statement: &mut Statement<'_>,
    before: usize,
    values: [&dyn ToSql; N],
) -> rusqlite::Result<()> {
    debug_assert_eq!(statement.parameter_count() % N, 0);
    for (index, value) in values.into_iter().enumerate() {
        statement.raw_bind_parameter(before + index + 1, value)?;
    }
    Ok(())
}

/// Binds the additions to a sum, in the order of the entity's columns, to the variables after the first `before`.
fn bind_sum(statement: &mut Statement<'_>, before: usize, sum: &usage_daily::Model) -> rusqlite::Result<()> {
    bind_all(
        statement,
        before,
        [
            // As sqlx writes dates.
            &sum.day.to_string() as &dyn ToSql,
            &sum.api_key_id,
            &sum.model,
            &sum.provider,
            &sum.kind,
            &sum.completed,
            &sum.failed,
            &sum.aborted,
            &sum.cache_hit,
            &sum.prompt_tokens,
            &sum.completion_tokens,
            &sum.cached_tokens,
            &sum.cache_write_tokens,
            &sum.reasoning_tokens,
            &sum.prompt_cost,
            &sum.completion_cost,
        ],
    )
}
