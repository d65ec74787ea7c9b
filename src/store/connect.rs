//! Opening the database.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sea_orm::sqlx::postgres::{PgConnectOptions, PgConnection, PgPoolOptions};
use sea_orm::sqlx::sqlite::{
    SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous,
};
use sea_orm::sqlx::{self, ConnectOptions, Connection};
use sea_orm::{ConnectionTrait, DatabaseConnection, SqlxPostgresConnector, SqlxSqliteConnector};
use url::Url;

use super::error::{StoreError, StoreResult};
use super::request_log::LogWriter;

/// How long a SQLite writer waits for another writer. Batches of the request log take milliseconds; retention and a
/// backup may take longer.
const SQLITE_BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// The size of a SQLite page, in bytes; a file keeps the one it was made with. A row of the request log takes about two
/// kilobytes with its bodies: on pages of four, half of each is often left empty, and every page costs a system call
/// when it is written to the write-ahead log and two when it is moved from there.
const SQLITE_PAGE_SIZE: u32 = 16 << 10;

/// Pages in the write-ahead log before they are moved into the file: 16 MiB. Each time, the file is synced, and pages that
/// were written often meanwhile (of indexes, mostly) are moved once.
const SQLITE_CHECKPOINT_PAGES: u32 = 1024;

/// The page cache of the request log's connection, in KiB: enough for the pages that one batch changes (8 MiB of bodies
/// at most, their rows and index entries, and the sums by day of many keys), so that no page is written to the
/// write-ahead log before the batch is complete and then again.
const SQLITE_WRITER_CACHE_KIB: u32 = 12 << 10;

/// Settings of the database and its connection pool.
#[derive(Clone)]
pub struct Settings {
    /// `sqlite://path`, `sqlite::memory:` or `postgres://user:password@host/database?sslmode=…`.
    pub database_url: String,
    /// At most this many connections. `None`: 5 on SQLite (one writes at a time, the others read), 10 on PostgreSQL.
    pub max_connections: Option<u32>,
    /// Connections kept open when idle.
    pub min_connections: u32,
    /// How long start-up waits for the server, and later a query for a free connection.
    pub acquire_timeout: Duration,
    /// A connection idle for longer is closed. PostgreSQL only.
    pub idle_timeout: Option<Duration>,
    /// A connection older than this is replaced, so that a failover or a new certificate is noticed. PostgreSQL only.
    pub max_lifetime: Option<Duration>,
    /// PostgreSQL cancels a statement that takes longer. Migrations are exempt.
    pub statement_timeout: Option<Duration>,
    /// Whether a SQLite file that is missing is created.
    pub create: bool,
}

impl Settings {
    /// The default pool for this URL.
    pub fn new(database_url: impl Into<String>) -> Self {
        Self {
            database_url: database_url.into(),
            max_connections: None,
            min_connections: 1,
            acquire_timeout: Duration::from_secs(10),
            idle_timeout: Some(Duration::from_secs(10 * 60)),
            max_lifetime: Some(Duration::from_secs(30 * 60)),
            statement_timeout: Some(Duration::from_secs(60)),
            create: true,
        }
    }

    /// For work on a database that must be there: one that is made by mistake would be empty, and the work done at once.
    pub fn existing(database_url: impl Into<String>) -> Self {
        Self { create: false, ..Self::new(database_url) }
    }
}

impl std::fmt::Debug for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Settings")
            .field("database_url", &redact_url(&self.database_url))
            .field("max_connections", &self.max_connections)
            .finish_non_exhaustive()
    }
}

/// The kind and place of a database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// A file, which may be missing.
    SqliteFile(PathBuf),
    /// Gone with the process; for tests and trials.
    SqliteMemory,
    Postgres,
}

impl Location {
    /// Reads a database URL.
    ///
    /// # Errors
    /// [`StoreError::Open`] when the URL is neither SQLite nor PostgreSQL; the text holds no password.
    pub fn of(database_url: &str) -> StoreResult<Self> {
        if database_url.starts_with("postgres://") || database_url.starts_with("postgresql://") {
            return Ok(Self::Postgres);
        }
        if !database_url.starts_with("sqlite:") {
            let url = redact_url(database_url);
            return Err(StoreError::Open(format!(
                "DATABASE_URL: {url} must begin with sqlite:// or postgres://"
            )));
        }
        let options = sqlite_options(database_url)?;
        // sqlx does not expose whether the URL means memory, so the two spellings it knows are checked again here.
        let (path, parameters) = database_url.split_once('?').unwrap_or((database_url, ""));
        let in_memory = path.ends_with(":memory:") || parameters.split('&').any(|part| part == "mode=memory");
        Ok(if in_memory {
            Self::SqliteMemory
        } else {
            Self::SqliteFile(options.get_filename().to_path_buf())
        })
    }
}

/// Whether a database URL can be read; nothing is opened.
///
/// # Errors
/// [`StoreError::Open`], without the password.
pub fn check_url(database_url: &str) -> StoreResult<()> {
    if Location::of(database_url)? == Location::Postgres {
        postgres_options(database_url)?;
    }
    Ok(())
}

/// Opens the database and a pool of connections to it. The schema is not touched: see [`super::migrate::up`].
///
/// # Errors
/// [`StoreError::Open`], one line that names the database without its password and says what is wrong.
pub async fn connect(settings: &Settings) -> StoreResult<DatabaseConnection> {
    match Location::of(&settings.database_url)? {
        Location::SqliteFile(path) => connect_sqlite(settings, Some(&path)).await,
        Location::SqliteMemory => connect_sqlite(settings, None).await,
        Location::Postgres => connect_postgres(settings).await,
    }
}

/// The request log's writer. A SQLite file gets a dedicated connection, unless its URL has parameters that only sqlx
/// understands; otherwise the pool is used.
///
/// # Errors
/// [`StoreError::Open`]: the URL is wrong.
pub fn log_writer(settings: &Settings, shared: &DatabaseConnection) -> StoreResult<LogWriter> {
    let location = Location::of(&settings.database_url)?;
    Ok(match location {
        Location::SqliteFile(path) if is_plain(&settings.database_url) => {
            // FULL: once a batch is committed, the journal forgets it, so it must be on the disk. That is one sync for
            // each batch, and no request waits for it.
            let pragmas = format!(
                "PRAGMA busy_timeout = {}; PRAGMA synchronous = FULL; PRAGMA wal_autocheckpoint = {}; \
                 PRAGMA cache_size = -{SQLITE_WRITER_CACHE_KIB};",
                SQLITE_BUSY_TIMEOUT.as_millis(),
                SQLITE_CHECKPOINT_PAGES,
            );
            LogWriter::to_file(shared.clone(), path, pragmas)
        }
        _ => LogWriter::shared(shared.clone()),
    })
}

/// Whether the URL of a SQLite file has no parameters that only sqlx understands (read-only, another file system layer).
fn is_plain(database_url: &str) -> bool {
    !database_url.contains('?') || database_url.ends_with("?mode=rwc")
}

/// Whether the URL lets a missing file be created: `mode=ro` and `mode=rw` mean one that exists.
fn may_create(database_url: &str) -> bool {
    let (_, parameters) = database_url.split_once('?').unwrap_or_default();
    !parameters.split('&').any(|part| matches!(part, "mode=ro" | "mode=rw"))
}

/// Checks with a trivial query that the database answers.
///
/// # Errors
/// [`StoreError::Database`] when it is not, or no connection is free in time.
pub async fn ping(db: &DatabaseConnection) -> StoreResult<()> {
    db.execute_unprepared("SELECT 1").await?;
    Ok(())
}

async fn connect_sqlite(settings: &Settings, file: Option<&Path>) -> StoreResult<DatabaseConnection> {
    let mut pool = SqlitePoolOptions::new().acquire_timeout(settings.acquire_timeout);
    let mut options = sqlite_options(&settings.database_url)?
        .foreign_keys(true)
        .busy_timeout(SQLITE_BUSY_TIMEOUT)
        .disable_statement_logging();
    match file {
        Some(path) => {
            if let Some(folder) =
                path.parent().filter(|folder| !folder.as_os_str().is_empty() && !folder.is_dir())
            {
                return Err(StoreError::Open(format!(
                    "DATABASE_URL: cannot open the SQLite database {}: the folder {} does not exist",
                    path.display(),
                    folder.display()
                )));
            }
            let create = settings.create && may_create(&settings.database_url);
            if !create && !path.exists() {
                return Err(StoreError::Open(format!(
                    "DATABASE_URL: the SQLite database {} does not exist",
                    path.display()
                )));
            }
            // WAL: readers and the one writer do not wait for each other. NORMAL: a power cut may lose an administrator's last
            // changes but never corrupts. Where the request log writes over these connections too, its batches must be on
            // the disk, as on a connection of its own.
            let synchronous = if is_plain(&settings.database_url) {
                SqliteSynchronous::Normal
            } else {
                SqliteSynchronous::Full
            };
            options = options
                .create_if_missing(create)
                .page_size(SQLITE_PAGE_SIZE)
                .journal_mode(SqliteJournalMode::Wal)
                .pragma("wal_autocheckpoint", SQLITE_CHECKPOINT_PAGES.to_string())
                .synchronous(synchronous);
            // A full disk may make SQLite end a transaction by itself. The driver still believes that it is in one, and
            // would never begin another.
            pool = pool
                .max_connections(settings.max_connections.unwrap_or(5).max(1))
                .before_acquire(|connection, _| Box::pin(async { Ok(!connection.is_in_transaction()) }));
        }
        // The database lives as long as its one connection: never close it.
        None => pool = pool.max_connections(1).min_connections(1).idle_timeout(None).max_lifetime(None),
    }
    let fail = |error: &sqlx::Error| {
        let name = file.map_or_else(|| "in memory".to_owned(), |path| path.display().to_string());
        StoreError::Open(format!("DATABASE_URL: cannot open the SQLite database {name}: {}", reason(error)))
    };
    if file.is_some() {
        // The pool would hide the cause behind a timeout; a connection of our own reports it.
        let connection = first_sqlite_connection(&options).await.map_err(|error| fail(&error))?;
        connection.close().await.map_err(|error| fail(&error))?;
    }
    let pool = pool.connect_with(options).await.map_err(|error| fail(&error))?;
    Ok(SqlxSqliteConnector::from_sqlx_sqlite_pool(pool))
}

/// Opens the file, which makes it a WAL database if it was none. SQLite has no waiting for the lock that this takes, so
/// a process that starts beside another one on a new file has to retry.
async fn first_sqlite_connection(options: &SqliteConnectOptions) -> Result<SqliteConnection, sqlx::Error> {
    let start = Instant::now();
    loop {
        match SqliteConnection::connect_with(options).await {
            Err(error) if is_busy(&error) && start.elapsed() < SQLITE_BUSY_TIMEOUT => {
                tokio::time::sleep(Duration::from_millis(rand::random_range(5..25))).await;
            }
            result => return result,
        }
    }
}

/// Primary result codes 5 `BUSY` and 6 `LOCKED`.
fn is_busy(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    code.and_then(|code| code.parse::<u32>().ok()).is_some_and(|code| matches!(code & 0xff, 5 | 6))
}

fn sqlite_options(database_url: &str) -> StoreResult<SqliteConnectOptions> {
    let options: SqliteConnectOptions = database_url.parse().map_err(|error| {
        StoreError::Open(format!("DATABASE_URL: {database_url} is wrong: {}", reason(&error)))
    })?;
    if options.get_filename().as_os_str().is_empty() {
        return Err(StoreError::Open(format!("DATABASE_URL: {database_url} names no file")));
    }
    Ok(options)
}

fn postgres_options(database_url: &str) -> StoreResult<PgConnectOptions> {
    database_url.parse().map_err(|error| no_postgres(database_url, &reason(&error)))
}

fn no_postgres(database_url: &str, why: &str) -> StoreError {
    StoreError::Open(format!(
        "DATABASE_URL: cannot connect to the database {}: {why}",
        redact_url(database_url)
    ))
}

async fn connect_postgres(settings: &Settings) -> StoreResult<DatabaseConnection> {
    let fail = |why: &str| no_postgres(&settings.database_url, why);
    let mut options = postgres_options(&settings.database_url)?;
    if options.get_application_name().is_none() {
        options = options.application_name("nexusgate");
    }
    if let Some(timeout) = settings.statement_timeout {
        options = options.options([("statement_timeout", timeout.as_millis().to_string())]);
    }
    let options = options.disable_statement_logging();

    // The pool retries a refused connection until its timeout and then says only "timed out".
    let first = tokio::time::timeout(settings.acquire_timeout, PgConnection::connect_with(&options)).await;
    match first {
        Ok(Ok(connection)) => drop(connection.close().await),
        Ok(Err(error)) => return Err(fail(&reason(&error))),
        Err(_) => return Err(fail(&format!("no answer within {:?}", settings.acquire_timeout))),
    }
    let pool = PgPoolOptions::new()
        .max_connections(settings.max_connections.unwrap_or(10).max(1))
        .min_connections(settings.min_connections)
        .acquire_timeout(settings.acquire_timeout)
        .idle_timeout(settings.idle_timeout)
        .max_lifetime(settings.max_lifetime)
        .connect_with(options)
        .await
        .map_err(|error| fail(&reason(&error)))?;
    Ok(SqlxPostgresConnector::from_sqlx_postgres_pool(pool))
}

/// An sqlx error on one line, without its layers of prefixes.
fn reason(error: &sqlx::Error) -> String {
    let text = match error {
        sqlx::Error::Configuration(cause) => cause.to_string(),
        sqlx::Error::Io(cause) => cause.to_string(),
        sqlx::Error::Tls(cause) => format!("TLS: {cause}"),
        sqlx::Error::Database(cause) => cause.message().to_owned(),
        other => other.to_string(),
    };
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A database URL without its password, for messages. Anything that does not parse keeps only its scheme.
fn redact_url(database_url: &str) -> String {
    let Ok(mut url) = Url::parse(database_url) else {
        return match database_url.split_once(':') {
            Some((scheme, _)) if scheme.chars().all(|c| c.is_ascii_alphanumeric()) => {
                format!("{scheme}://***")
            }
            _ => "***".to_owned(),
        };
    };
    // An unescaped `/`, `?` or `#` in a password ends the host, and the rest of the password is elsewhere.
    let behind = &url[url::Position::AfterPort..];
    if behind.contains('@') || (url.password().is_some() && url.set_password(Some("***")).is_err()) {
        return format!("{}://***", url.scheme());
    }
    // libpq also takes the password as a parameter.
    if url.query_pairs().any(|(key, _)| key.eq_ignore_ascii_case("password")) {
        let pairs: Vec<(String, String)> = url
            .query_pairs()
            .map(|(key, value)| {
                let hidden = key.eq_ignore_ascii_case("password");
                (key.into_owned(), if hidden { "***".to_owned() } else { value.into_owned() })
            })
            .collect();
        url.query_pairs_mut().clear().extend_pairs(pairs);
    }
    url.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redacted_urls_hold_no_password() {
        assert_eq!(redact_url("postgres://me:secret@db:5432/x"), "postgres://me:***@db:5432/x");
        assert_eq!(redact_url("postgres://me@db/x?sslmode=require"), "postgres://me@db/x?sslmode=require");
        for url in [
            "postgres://me:secret@db/x?password=secret",
            "postgres:///x?user=a&Password=secret",
            "postgres://me:secret@[bad/x",
            "postgres://me:sec/secret@db:99999/x",
            "postgres://me:12/secret@db/x",
            "postgres://me:/secret@db/x",
            "postgres://me:5?secret@db/x",
            "postgres://me:#secret@db/x",
            "secret",
        ] {
            assert!(!redact_url(url).contains("secret"), "{}", redact_url(url));
        }
    }

    #[test]
    fn urls_lead_somewhere() {
        assert_eq!(Location::of("sqlite://a/b.db").unwrap(), Location::SqliteFile("a/b.db".into()));
        assert_eq!(
            Location::of("sqlite:///a/b.db?mode=rwc").unwrap(),
            Location::SqliteFile("/a/b.db".into())
        );
        assert_eq!(Location::of("sqlite::memory:").unwrap(), Location::SqliteMemory);
        assert_eq!(Location::of("sqlite://x?mode=memory").unwrap(), Location::SqliteMemory);
        assert_eq!(Location::of("postgresql://h/db").unwrap(), Location::Postgres);
        let error = Location::of("mysql://me:secret@h/db").unwrap_err().to_string();
        assert_eq!(error, "DATABASE_URL: mysql://me:***@h/db must begin with sqlite:// or postgres://");
        assert!(Location::of("sqlite://").unwrap_err().to_string().contains("names no file"));
        assert!(Location::of("sqlite://a.db?mode=odd").unwrap_err().to_string().contains("unknown value"));
    }
}
