//! How SQLite executes the queries of the request log's lists.

use chrono::Utc;
use sea_orm::sea_query::{SelectStatement, SqliteQueryBuilder};
use sea_orm::{ConnectionTrait as _, DbBackend, Statement};

use super::logs::{noon, row};
use super::{TestDb, on_each};
use crate::domain::label::{ApiFormat, LogTable, Status};
use crate::store::request_log::{self as log, Cursor, LogFilter, Page};

#[tokio::test]
async fn one_index_tells_which_rows_a_list_has() {
    on_each(async |t| {
        if t.is_postgres() {
            return;
        }
        for id in [7, 8] {
            t.sql(&format!(
                "INSERT INTO providers (id, name, kind, base_url, source, created_at, updated_at, deleted_at)
                 VALUES ({id}, 'twice', 'openai', '', '', '', '', '2026-01-0{id}T00:00:00+00:00')"
            ))
            .await;
        }
        let all = LogFilter::default;
        let (from, to) = (Some(noon()), Some(Utc::now()));
        let after = Some(Cursor::from(&row()));
        // The filter, the position to continue from, and the searched range of the index.
        for (filter, after, bounds) in [
            (all(), None, ""),
            (all(), after, " ((created_at,id)<(?,?))"),
            (LogFilter { api_key_id: Some(1), ..all() }, None, ""),
            (LogFilter { model: Some("m".to_owned()), ..all() }, after, " ((created_at,id)<(?,?))"),
            (LogFilter { provider_id: Some(1), ..all() }, None, ""),
            (LogFilter { provider: Some("twice".to_owned()), ..all() }, None, ""),
            (LogFilter { status: Some(Status::Failed), ..all() }, None, ""),
            (LogFilter { api_format: Some(ApiFormat::Anthropic), ..all() }, None, ""),
            (LogFilter { api_key_id: Some(1), from, to, ..all() }, None, " (created_at>? AND created_at<?)"),
            (LogFilter { api_key_id: Some(1), to, ..all() }, after, " ((created_at,id)<(?,?))"),
            (LogFilter { from, to, ..all() }, after, " (created_at>? AND (created_at,id)<(?,?))"),
        ] {
            for table in LogTable::ALL.iter().copied() {
                let page = Page { after, ..Page::default() };
                let steps = plan(t, &log::listing(&t.db, table, &filter, &page).await.unwrap()).await;
                let by_id = format!("SEARCH {table} USING INDEX sqlite_autoindex_{table}_1 (id=?)");
                let index = format!("{table} USING COVERING INDEX {table}_list_idx{bounds}");
                let [outer, _, inner, ..] = steps.as_slice() else { panic!("{steps:?}") };
                assert_eq!(*outer, by_id);
                assert!(inner.ends_with(&index), "{filter:?}: {inner}");

                let steps = plan(t, &log::counting(&t.db, table, &filter, 10).await.unwrap()).await;
                assert!(steps[1].contains(&format!("{table} USING COVERING INDEX")), "{filter:?}: {steps:?}");
            }
        }
    })
    .await;
}

/// SQLite's query plan, step by step.
async fn plan(t: &TestDb, query: &SelectStatement) -> Vec<String> {
    let sql = format!("EXPLAIN QUERY PLAN {}", query.to_string(SqliteQueryBuilder));
    let steps = t.db.query_all_raw(Statement::from_string(DbBackend::Sqlite, sql)).await.unwrap();
    steps.iter().map(|step| step.try_get("", "detail").unwrap()).collect()
}
