//! Inserts whose texts are made once.
//!
//! Building an insert of 256 rows takes a query builder longer than SQLite takes to execute it. The lengths of statements
//! are powers of two (see [`write`](super::write)), so there are a dozen texts for each table, and only the values change.

use std::fmt::Write as _;
use std::sync::OnceLock;

use entity::{completions, embeddings};
use sea_orm::{
    ActiveModelTrait, ActiveValue, DbBackend, EntityTrait, IdenStatic, Iterable, Statement, Value, Values,
};

use super::row::LogRow;
use crate::domain::label::LogTable;

/// The longest statement has 2^15 rows: more than there may be variables.
const LENGTHS: usize = 16;

type Texts = [OnceLock<String>; LENGTHS];

static TEXTS: [[Texts; 2]; LogTable::ALL.len()] =
    [const { [const { [const { OnceLock::new() }; LENGTHS] }; 2] }; LogTable::ALL.len()];

/// Inserts `rows`, whose number is a power of two and which are all of `table`, passing over ids that are there.
pub(super) fn insert(backend: DbBackend, table: LogTable, rows: &[&LogRow]) -> Statement {
    let numbered = backend == DbBackend::Postgres;
    let text = |columns: Vec<&'static str>| {
        let length = usize::try_from(rows.len().ilog2()).unwrap_or(0);
        debug_assert_eq!(1 << length, rows.len());
        TEXTS[table as usize][usize::from(numbered)][length]
            .get_or_init(|| write(table.as_str(), &columns, rows.len(), numbered))
            .clone()
    };
    let (sql, values) = match table {
        LogTable::Completions => {
            (text(names::<completions::Entity>()), values::<completions::ActiveModel>(rows))
        }
        LogTable::Embeddings => {
            (text(names::<embeddings::Entity>()), values::<embeddings::ActiveModel>(rows))
        }
    };
    Statement { sql, values: Some(Values(values)), db_backend: backend }
}

fn names<E: EntityTrait>() -> Vec<&'static str> {
    E::Column::iter().map(|column| column.as_str()).collect()
}

/// The values of every row, in the order of the columns.
fn values<A>(rows: &[&LogRow]) -> Vec<Value>
where
    A: ActiveModelTrait + for<'a> From<&'a LogRow>,
{
    let mut values = Vec::with_capacity(rows.len() * <A::Entity as EntityTrait>::Column::iter().count());
    for row in rows {
        let mut model = A::from(row);
        values.extend(<A::Entity as EntityTrait>::Column::iter().map(|column| match model.take(column) {
            ActiveValue::Set(value) | ActiveValue::Unchanged(value) => value,
            // Every column is set from a row; a NULL here would be refused by the database, not stored.
            ActiveValue::NotSet => Value::BigInt(None),
        }));
    }
    values
}

fn write(table: &str, columns: &[&str], rows: usize, numbered: bool) -> String {
    let mut sql = format!("INSERT INTO \"{table}\" (");
    for (index, column) in columns.iter().enumerate() {
        let comma = if index == 0 { "" } else { ", " };
        let _ = write!(sql, "{comma}\"{column}\"");
    }
    sql.push_str(") VALUES ");
    let mut variable = 0;
    for row in 0..rows {
        sql.push_str(if row == 0 { "(" } else { ", (" });
        for column in 0..columns.len() {
            let comma = if column == 0 { "" } else { ", " };
            variable += 1;
            // Writing to a String cannot fail.
            let _ = if numbered { write!(sql, "{comma}${variable}") } else { write!(sql, "{comma}?") };
        }
        sql.push(')');
    }
    sql.push_str(" ON CONFLICT (\"id\") DO NOTHING");
    sql
}
