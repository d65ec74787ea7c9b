use std::time::Duration;

use migration::Migrator;
use sea_orm_migration::MigratorTrait as _;

use super::{logs, on_each_empty, settings};
use crate::domain::label::LogTable;
use crate::store::request_log::{self as log, LogFilter, Page};
use crate::store::{StoreError, connect, keys, migrate};

#[tokio::test]
async fn migrations_go_up_down_and_up_again() {
    on_each_empty(async |t| {
        assert!(migrate::status(&t.db).await.unwrap().iter().all(|migration| !migration.applied));
        for _ in 0..2 {
            migrate::up(&t.db).await.unwrap();
            migrate::up(&t.db).await.unwrap();
            assert!(migrate::status(&t.db).await.unwrap().iter().all(|migration| migration.applied));
            for table in ["api_keys", "providers", "models", "completions", "embeddings", "usage_daily"] {
                assert_eq!(t.number(&format!("SELECT count(*) FROM {table}")).await, 0);
            }
            migrate::down(&t.db, Some(1)).await.unwrap();
            let status = migrate::status(&t.db).await.unwrap();
            assert_eq!(status.iter().filter(|migration| !migration.applied).count(), 1);
            migrate::down(&t.db, None).await.unwrap();
            let error = keys::list(&t.db, &keys::KeyFilter::default()).await.unwrap_err();
            assert!(matches!(error, StoreError::Database(_)), "the tables are gone");
        }
    })
    .await;
}

#[tokio::test]
async fn rows_stay_when_their_indexes_change_and_the_old_ones_come_back() {
    on_each_empty(async |t| {
        let listed = async || {
            let (filter, page) = (LogFilter::default(), Page { bodies: true, ..Page::default() });
            log::list(&t.db, LogTable::Completions, &filter, &page).await.unwrap()
        };
        let indexes = async || {
            let (all, from) = if t.is_postgres() {
                ("string_agg(indexdef, ';' ORDER BY indexdef)", "pg_indexes WHERE schemaname = 'public'")
            } else {
                ("group_concat(sql, ';' ORDER BY sql)", "sqlite_master WHERE type = 'index'")
            };
            t.text(&format!("SELECT {all} FROM {from}")).await
        };
        let first = [logs::row()];
        Migrator::up(&t.db, Some(2)).await.unwrap();
        let old = indexes().await;
        log::insert_batch(&t.log, &first).await.unwrap();
        migrate::up(&t.db).await.unwrap();
        assert_eq!(indexes().await == old, t.is_postgres(), "PostgreSQL keeps an index for each filter");
        assert_eq!(listed().await, first);
        let second = logs::row();
        log::insert_batch(&t.log, std::slice::from_ref(&second)).await.unwrap();
        // And the columns of prices.
        migrate::down(&t.db, Some(2)).await.unwrap();
        assert_eq!(indexes().await, old);
        let [first] = first;
        assert_eq!(listed().await, [second, first]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_that_start_at_once_do_not_race() {
    on_each_empty(async |t| {
        let starts: Vec<_> = (0..8)
            .map(|_| {
                let settings = settings(&t.url);
                tokio::spawn(async move {
                    let db = connect(&settings).await?;
                    migrate::up(&db).await
                })
            })
            .collect();
        for start in starts {
            start.await.unwrap().unwrap();
        }
        assert!(migrate::status(&t.db).await.unwrap().iter().all(|migration| migration.applied));
    })
    .await;
}

/// The first process to open a new SQLite file makes it a WAL database, and SQLite lets nobody wait for that.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn opening_a_new_sqlite_file_at_once_does_not_race() {
    for _ in 0..20 {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", folder.path().join("new.db").display());
        let settings = settings(&url);
        let opening = (0..4).map(|_| {
            let settings = settings.clone();
            tokio::spawn(async move { connect(&settings).await })
        });
        for opened in futures_util::future::join_all(opening).await {
            opened.unwrap().unwrap().close().await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_database_of_a_newer_version_is_refused() {
    on_each_empty(async |t| {
        migrate::up(&t.db).await.unwrap();
        t.sql("INSERT INTO seaql_migrations (version, applied_at) VALUES ('m29991231_000001_future', 0)")
            .await;
        let error = migrate::up(&t.db).await.unwrap_err().to_string();
        assert_eq!(error, "the database was migrated by a newer version of nexusgate; use that version");
    })
    .await;
}

#[tokio::test]
async fn a_database_that_cannot_be_opened_is_named_on_one_line_without_its_password() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("not-a-database.db");
    std::fs::write(&file, "certainly not a SQLite database, but long enough to look at").unwrap();
    let missing = folder.path().join("no/such/folder/gate.db");
    for (url, part) in [
        (format!("sqlite://{}", missing.display()), "no/such/folder does not exist"),
        (format!("sqlite://{}", folder.path().display()), "unable to open"),
        (format!("sqlite://{}", file.display()), "not a database"),
        ("postgres://me:hunter2@127.0.0.1:1/gate".to_owned(), "127.0.0.1:1/gate: Connection refused"),
        ("postgres://me:hunter2@no-such-host.invalid/gate".to_owned(), "no-such-host.invalid/gate"),
        ("postgres://me:hunter2@127.0.0.1:1/gate?sslmode=odd".to_owned(), "sslmode"),
        ("mysql://me:hunter2@127.0.0.1/gate".to_owned(), "must begin with sqlite:// or postgres://"),
    ] {
        let settings = crate::store::Settings { acquire_timeout: Duration::from_secs(5), ..settings(&url) };
        let error = connect(&settings).await.unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
        assert!(!error.contains('\n') && !error.contains("hunter2"), "{error}");
    }
}

#[tokio::test]
async fn sqlite_is_opened_for_a_server() {
    on_each_empty(async |t| {
        if t.is_postgres() {
            return;
        }
        for (pragma, value) in [("foreign_keys", 1), ("busy_timeout", 10_000), ("synchronous", 1)] {
            assert_eq!(t.number(&format!("PRAGMA {pragma}")).await, value, "{pragma}");
        }
        let statement = sea_orm::Statement::from_string(sea_orm::DbBackend::Sqlite, "PRAGMA journal_mode");
        let row = sea_orm::ConnectionTrait::query_one_raw(&t.db, statement).await.unwrap().unwrap();
        assert_eq!(row.try_get_by_index::<String>(0).unwrap(), "wal");
    })
    .await;
}
