//! Errors of the store, by the kinds that callers have to tell apart.

use sea_orm::{DbErr, RuntimeErr, SqlErr, sqlx};

/// Short for a result with a [`StoreError`].
pub type StoreResult<T> = Result<T, StoreError>;

/// An error of the store. Its text is one line and holds no secret.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Something else has this value already. HTTP: 409.
    #[error("{field} is already in use")]
    Duplicate { field: &'static str },
    /// No such row, or it is deleted. HTTP: 404.
    #[error("not found")]
    NotFound,
    /// A value that cannot be stored. HTTP: 400.
    #[error("{field}: {message}")]
    Invalid { field: &'static str, message: String },
    /// A secret cannot be encrypted or decrypted, or its key is not available.
    #[error("{0}")]
    Secret(String),
    /// The database cannot be opened or brought up to date; the text names it without its password.
    #[error("{0}")]
    Open(String),
    /// The database refused or did not answer.
    #[error("database: {0}")]
    Database(DbErr),
    /// The same, from the request log's own connection to a SQLite file.
    #[error("database: {0}")]
    Sqlite(#[from] rusqlite::Error),
}

impl StoreError {
    pub(super) fn invalid(field: &'static str, message: impl Into<String>) -> Self {
        Self::Invalid { field, message: message.into() }
    }

    /// Whether the same call may succeed later without anything in it changing: the database is unavailable, busy or
    /// full. `false`: the database understood the statement and refuses the *data*, and will refuse it again.
    ///
    /// PostgreSQL: SQLSTATE classes 22 (data exception), 23 (integrity), 54 (program limit).
    /// SQLite: primary result codes 18 `TOOBIG`, 19 `CONSTRAINT`, 20 `MISMATCH`, 25 `RANGE`.
    pub fn is_transient(&self) -> bool {
        let error = match self {
            Self::Database(error) => error,
            Self::Sqlite(error) => {
                let code = error.sqlite_error().map(|error| error.extended_code.unsigned_abs());
                return code.is_some_and(|code| !is_refusal(code));
            }
            _ => return false,
        };
        let (DbErr::Conn(RuntimeErr::SqlxError(error))
        | DbErr::Exec(RuntimeErr::SqlxError(error))
        | DbErr::Query(RuntimeErr::SqlxError(error))) = error
        else {
            return matches!(error, DbErr::ConnectionAcquire(_) | DbErr::Conn(_));
        };
        match error.as_ref() {
            sqlx::Error::Database(error) => {
                let code = error.code().unwrap_or_default();
                match code.parse::<u32>() {
                    Ok(number) if error.try_downcast_ref::<sqlx::sqlite::SqliteError>().is_some() => {
                        !is_refusal(number)
                    }
                    _ => !["22", "23", "54"].iter().any(|class| code.starts_with(class)),
                }
            }
            sqlx::Error::Encode(_) | sqlx::Error::Decode(_) | sqlx::Error::ColumnDecode { .. } => false,
            _ => true,
        }
    }
}

/// Whether a result code of SQLite means that the data is refused for good.
fn is_refusal(code: u32) -> bool {
    matches!(code & 0xff, 18 | 19 | 20 | 25)
}

impl From<DbErr> for StoreError {
    fn from(error: DbErr) -> Self {
        match error.sql_err() {
            Some(SqlErr::UniqueConstraintViolation(message)) => match duplicate_field(&message) {
                Some(field) => Self::Duplicate { field },
                None => Self::Database(error),
            },
            Some(SqlErr::ForeignKeyConstraintViolation(_)) => {
                // The only foreign key of the schema.
                Self::invalid("provider_id", "no such provider")
            }
            _ => Self::Database(error),
        }
    }
}

/// The field that a unique index guards, from the message: PostgreSQL names the index
/// (`… unique constraint "providers_name_key"`), SQLite the columns (`UNIQUE constraint failed: providers.name`).
fn duplicate_field(message: &str) -> Option<&'static str> {
    [
        ("external_id", "external_id"),
        ("key_hash", "key"),
        ("system_name", "system_name"),
        ("providers_name_key", "name"),
        ("providers.name", "name"),
    ]
    .into_iter()
    .find_map(|(part, field)| message.contains(part).then_some(field))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_sqlite_will_never_take_is_told_from_what_may_pass() {
        let code =
            |code| StoreError::from(rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(code), None));
        // BUSY, IOERR, FULL, CANTOPEN, READONLY_DBMOVED.
        for passing in [5, 10, 13, 14, 1032] {
            assert!(code(passing).is_transient(), "{passing}");
        }
        // TOOBIG, CONSTRAINT_NOTNULL, MISMATCH, RANGE.
        for lasting in [18, 1299, 20, 25] {
            assert!(!code(lasting).is_transient(), "{lasting}");
        }
        assert!(!StoreError::from(rusqlite::Error::InvalidQuery).is_transient());
    }
}
