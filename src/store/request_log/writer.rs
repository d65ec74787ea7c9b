//! The writer of the request log.

use std::path::PathBuf;

use sea_orm::DatabaseConnection;

use super::sqlite::LogFile;

/// The database, and the log's own connection to it.
#[derive(Debug)]
pub struct LogWriter {
    database: DatabaseConnection,
    /// The own connection to a SQLite file.
    file: Option<LogFile>,
}

impl LogWriter {
    /// Writes over the shared pool.
    pub fn shared(database: DatabaseConnection) -> Self {
        Self { database, file: None }
    }

    /// Writes to the SQLite file that `database` has opened, over a connection of its own on which `pragmas` are executed.
    pub(in crate::store) fn to_file(database: DatabaseConnection, path: PathBuf, pragmas: String) -> Self {
        Self { database, file: Some(LogFile::new(path, pragmas)) }
    }

    /// The database.
    pub fn database(&self) -> &DatabaseConnection {
        &self.database
    }

    pub(in crate::store) fn file(&self) -> Option<&LogFile> {
        self.file.as_ref()
    }

    /// Whether writing holds the thread until the database has answered.
    pub fn holds_thread(&self) -> bool {
        self.file.is_some()
    }

    /// Closes the log's own connection.
    pub fn close(&self) {
        if let Some(file) = &self.file {
            file.close();
        }
    }
}
