//! The store on real databases: SQLite in a temporary folder, and PostgreSQL when `NEXUSGATE_TEST_POSTGRES` holds a
//! superuser's URL (`scripts/with-postgres.sh cargo test store`). Every test has a database of its own.

mod accounts;
mod drivers;
mod logs;
mod migrations;
mod plans;
mod secrets;
mod snapshots;
mod sums;

use std::sync::Arc;

use sea_orm::{ConnectionTrait, DatabaseConnection, DbBackend, TryGetable};
use tempfile::TempDir;
use url::Url;

use super::crypt::{Cipher, EncryptionKey};
use super::request_log::{LogRow, LogWriter};
use super::{Settings, connect, log_writer, migrate};

/// A migrated database, gone after the test.
struct TestDb {
    db: DatabaseConnection,
    log: LogWriter,
    url: String,
    cipher: Arc<Cipher>,
    folder: TempDir,
}

impl TestDb {
    fn is_postgres(&self) -> bool {
        self.db.get_database_backend() == DbBackend::Postgres
    }

    async fn sql(&self, sql: &str) {
        self.db.execute_unprepared(sql).await.unwrap();
    }

    /// The first column of the first row, as a number.
    async fn number(&self, sql: &str) -> i64 {
        self.value(sql).await
    }

    /// The same as text.
    async fn text(&self, sql: &str) -> String {
        self.value(sql).await
    }

    async fn value<T: TryGetable>(&self, sql: &str) -> T {
        let statement = sea_orm::Statement::from_string(self.db.get_database_backend(), sql);
        self.db.query_one_raw(statement).await.unwrap().unwrap().try_get_by_index(0).unwrap()
    }
}

impl LogRow {
    fn without_bodies(self) -> Self {
        Self { request_body: None, response_body: None, ..self }
    }
}

fn settings(url: &str) -> Settings {
    Settings { max_connections: Some(8), ..Settings::new(url) }
}

/// Runs a test on every available database, each empty and migrated.
async fn on_each(test: impl AsyncFn(&TestDb)) {
    on_each_empty(async |t: &TestDb| {
        migrate::up(&t.db).await.unwrap();
        test(t).await;
    })
    .await;
}

/// The same without the schema.
async fn on_each_empty(test: impl AsyncFn(&TestDb)) {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", folder.path().join("gate.db").display());
    run(&url, folder, &test).await;

    let Ok(admin_url) = std::env::var("NEXUSGATE_TEST_POSTGRES") else { return };
    let admin = connect(&settings(&admin_url)).await.unwrap();
    let name = format!("test_{:016x}", rand::random::<u64>());
    admin.execute_unprepared(&format!("CREATE DATABASE {name}")).await.unwrap();
    let mut url = Url::parse(&admin_url).unwrap();
    url.set_path(&name);
    run(url.as_str(), tempfile::tempdir().unwrap(), &test).await;
    admin.execute_unprepared(&format!("DROP DATABASE {name} WITH (FORCE)")).await.unwrap();
    admin.close().await.unwrap();
}

async fn run(url: &str, folder: TempDir, test: &impl AsyncFn(&TestDb)) {
    let db = connect(&settings(url)).await.unwrap();
    let t = TestDb {
        log: log_writer(&settings(url), &db).unwrap(),
        db,
        url: url.to_owned(),
        cipher: Arc::new(Cipher::new(&EncryptionKey::random())),
        folder,
    };
    test(&t).await;
    t.db.close().await.unwrap();
}
