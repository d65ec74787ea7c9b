//! Writing the log through each driver, and refused rows.

use bytestring::ByteString;
use sea_orm::ConnectionTrait as _;
use uuid::Uuid;

use super::logs::{embedding, row, rows};
use super::on_each;
use crate::domain::label::LogTable;
use crate::store::request_log::{self as log, LogRow};
use crate::store::{Settings, connect, migrate};

#[tokio::test]
async fn both_drivers_of_sqlite_write_the_same() {
    on_each(async |t| {
        if t.is_postgres() {
            return;
        }
        for row in [
            row(),
            embedding(),
            LogRow { error: Some(String::new()), provider: None, ..row().without_bodies() },
        ] {
            let other = LogRow { id: Uuid::now_v7(), ..row.clone() };
            log::insert_batch(&t.log, std::slice::from_ref(&row)).await.unwrap();
            let shared = log::LogWriter::shared(t.db.clone());
            log::insert_batch(&shared, std::slice::from_ref(&other)).await.unwrap();
            let quoted: Vec<String> =
                log_columns(row.table).map(|column| format!("quote({column})")).collect();
            let quoted = quoted.join(" || '|' || ");
            let distinct = format!("SELECT count(DISTINCT {quoted}) FROM {}", row.table.as_str());
            assert_eq!(t.number(&distinct).await, 1, "{row:?}");
            for row in [&row, &other] {
                log::delete(&t.db, row.table, row.id).await.unwrap();
            }
        }
    })
    .await;
}

/// All columns but the id.
fn log_columns(table: LogTable) -> impl Iterator<Item = &'static str> {
    log::columns(table).iter().copied().filter(|column| *column != "id")
}

#[tokio::test]
async fn the_log_goes_on_after_the_disk_was_full() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", folder.path().join("gate.db").display());
    // One connection, so that the bound applies to the next batch.
    let db = connect::connect(&Settings { max_connections: Some(1), ..Settings::new(&url) }).await.unwrap();
    migrate::up(&db).await.unwrap();
    let body = Some(ByteString::from("x".repeat(1 << 20)));
    for writer in
        [connect::log_writer(&Settings::new(&url), &db).unwrap(), log::LogWriter::shared(db.clone())]
    {
        let bound = async |pages: u32| {
            let pragma = format!("PRAGMA max_page_count = {pages}");
            match writer.file() {
                Some(file) => file.execute(&pragma),
                None => drop(db.execute_unprepared(&pragma).await.unwrap()),
            }
        };
        log::insert_batch(&writer, &[row()]).await.unwrap();
        let batch: Vec<LogRow> = (0..8).map(|_| LogRow { response_body: body.clone(), ..row() }).collect();
        for _ in 0..3 {
            // A bound belongs to a connection, and the next batch may get a new one.
            bound(1).await;
            let error = log::insert_batch(&writer, &batch).await.unwrap_err();
            assert!(error.is_transient() && error.to_string().contains("full"), "{error}");
        }
        bound(1_000_000).await;
        assert_eq!(log::insert_batch(&writer, &batch).await.unwrap(), 8, "nothing of it was there");
        assert_eq!(log::get(&db, LogTable::Completions, batch[7].id).await.unwrap(), batch[7]);
        writer.close();
    }
    db.close().await.unwrap();
}

#[tokio::test]
async fn what_the_database_refuses_is_told_from_what_it_cannot_do_now() {
    on_each(async |t| {
        let mut batch: Vec<LogRow> = (0..9).map(|_| row()).collect();
        // No record is written like this; a journal with peculiar damage might hold it.
        if t.is_postgres() {
            batch[4].model = "a\0b".into();
        } else {
            t.sql("CREATE TRIGGER refuse BEFORE INSERT ON completions WHEN NEW.model = 'bad' BEGIN SELECT RAISE(ABORT, 'bad row'); END").await;
            batch[4].model = "bad".into();
        }
        let error = log::insert_batch(&t.log, &batch).await.unwrap_err();
        assert!(!error.is_transient(), "{error}");
        assert_eq!(rows(t, LogTable::Completions).await, 0, "all or nothing");
        for (part, new) in [(&batch[..4], 4), (&batch[5..], 4)] {
            assert_eq!(log::insert_batch(&t.log, part).await.unwrap(), new, "the others go in");
        }

        // Good rows: with the bad one among them, PostgreSQL may name either fault first (it reads the values before
        // it looks for the table when the statement is already prepared).
        let good = [row(), row()];
        t.sql("ALTER TABLE completions RENAME TO away").await;
        let error = log::insert_batch(&t.log, &good).await.unwrap_err();
        assert!(error.is_transient(), "a schema can be repaired: {error}");
        t.sql("ALTER TABLE away RENAME TO completions").await;
        let away = if t.is_postgres() {
            t.db.clone().close().await.unwrap();
            log::LogWriter::shared(t.db.clone())
        } else {
            log::LogWriter::to_file(t.db.clone(), t.folder.path().join("away.db"), String::new())
        };
        assert!(log::insert_batch(&away, &good).await.unwrap_err().is_transient(), "no database");
    })
    .await;
}

/// SQLite itself would go on writing to the file that is gone.
#[tokio::test]
async fn rows_are_not_written_to_a_file_that_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    let (path, away) = (folder.path().join("gate.db"), folder.path().join("away.db"));
    let settings = Settings::new(format!("sqlite://{}", path.display()));
    let db = connect::connect(&settings).await.unwrap();
    migrate::up(&db).await.unwrap();
    let log = connect::log_writer(&settings, &db).unwrap();
    assert_eq!(log::insert_batch(&log, &[row()]).await.unwrap(), 1);
    std::fs::rename(&path, &away).unwrap();
    assert!(log::insert_batch(&log, &[row()]).await.unwrap_err().is_transient());
    // Nor to another one in its place.
    std::fs::copy(&away, &path).unwrap();
    let error = log::insert_batch(&log, &[row()]).await.unwrap_err();
    assert!(error.is_transient() && error.to_string().contains("replaced"), "{error}");
    std::fs::rename(&away, &path).unwrap();
    assert_eq!(log::insert_batch(&log, &[row()]).await.unwrap(), 1);
    db.close().await.unwrap();
}

#[tokio::test]
async fn only_a_plain_sqlite_file_has_a_connection_of_its_own() {
    let db = connect::connect(&Settings::new("sqlite::memory:")).await.unwrap();
    for (url, own) in [
        ("sqlite://a.db", true),
        ("sqlite://a.db?mode=rwc", true),
        ("sqlite://a.db?mode=ro", false),
        ("sqlite://a.db?vfs=unix-none", false),
        ("sqlite::memory:", false),
        ("postgres://h/db", false),
    ] {
        assert_eq!(connect::log_writer(&Settings::new(url), &db).unwrap().holds_thread(), own, "{url}");
    }
    db.close().await.unwrap();
}

/// A batch is on the disk before the journal drops it (2 is FULL, 1 NORMAL), whichever connection writes it.
#[tokio::test]
async fn connections_that_the_request_log_shares_sync_what_they_write() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", folder.path().join("gate.db").display());
    for (parameters, synchronous) in [("", 1), ("?vfs=unix", 2), ("?mode=rwc&vfs=unix", 2)] {
        let db = connect::connect(&Settings::new(format!("{url}{parameters}"))).await.unwrap();
        let pragma = sea_orm::Statement::from_string(db.get_database_backend(), "PRAGMA synchronous");
        let row = db.query_one_raw(pragma).await.unwrap().unwrap();
        assert_eq!(row.try_get_by_index::<i64>(0).unwrap(), synchronous, "{parameters}");
        db.close().await.unwrap();
    }
}
