use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use bytestring::ByteString;
use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::sums::usage_of;
use super::{TestDb, on_each};
use crate::domain::key::{ApiKey, Limits};
use crate::domain::label::{ApiFormat, FinishReason, LabelValue, LogTable, ModelType, Status};
use crate::domain::model::{Slo, Target};
use crate::domain::provider::{Provider, ProviderKind};
use crate::domain::record::{Call, REQUEST_ID_MAX_BYTES, RequestRecord};
use crate::domain::usage::{Cost, Price, Usage};
use crate::store::StoreError;
use crate::store::request_log::{self as log, Cursor, LogFilter, LogRow, Page, UsageFilter};

/// A time without a fraction that either database could lose.
pub(super) fn noon() -> DateTime<Utc> {
    "2026-03-04T12:00:00.123456Z".parse().unwrap()
}

fn record() -> RequestRecord {
    let provider = Provider {
        id: 7,
        name: LabelValue::new("main"),
        kind: ProviderKind::OpenAi,
        base_url: "http://localhost/v1".parse().unwrap(),
        api_key: None,
        api_version: None,
        proxy: None,
        ask_stream_usage: true,
        max_concurrency: None,
    };
    let target = Target {
        id: 11,
        system_name: LabelValue::new("m"),
        remote_id: "m-1".to_owned(),
        model_type: ModelType::Chat,
        price: Price::default(),
        weight: 1,
        slo: Slo::default(),
        created_at: chrono::DateTime::UNIX_EPOCH,
        provider: Arc::new(provider),
    };
    let key = ApiKey {
        id: 3,
        comment: LabelValue::new("team"),
        limits: Limits::default(),
        expires_at: None,
        revoked: false,
        allowed_models: None,
    };
    RequestRecord {
        id: Uuid::now_v7(),
        call: Call::Completion(ApiFormat::OpenAiChat),
        key: Arc::new(key),
        model: LabelValue::new("m"),
        target: Some(Arc::new(target)),
        status: Status::Completed,
        stream: true,
        usage: Usage {
            prompt: Some(100),
            completion: Some(20),
            cached: Some(5),
            cache_write: None,
            reasoning: Some(0),
        },
        cost: Cost { prompt: 0.1 + 0.2, completion: 1e-9 },
        spent: None,
        finish_reason: Some(FinishReason::Stop),
        error: None,
        started_at: noon(),
        duration: Duration::from_nanos(1_234_567_891),
        ttft: Some(Duration::from_micros(345)),
        longest_stall: Some(Duration::from_millis(20)),
        overhead: Duration::from_nanos(1),
        request_id: Some("req-1".to_owned()),
        source: None,
        request_body: Some(Bytes::from_static(br#"{"model":"m","text":"\u0000 and \ud83d\ude00"}"#)),
        response_body: Some(Bytes::from_static(b"data: {}\n\ndata: [DONE]\n\n")),
    }
}

pub(super) fn row() -> LogRow {
    LogRow { id: Uuid::now_v7(), ..LogRow::from(&record()) }
}

pub(super) fn embedding() -> LogRow {
    let usage = Usage { prompt: Some(8), ..Usage::default() };
    let cost = Cost { prompt: 0.5, completion: 0.0 };
    let record = RequestRecord {
        call: Call::Embedding,
        stream: false,
        usage,
        cost,
        finish_reason: None,
        ttft: None,
        longest_stall: None,
        ..record()
    };
    LogRow::from(&record)
}

pub(super) async fn rows(t: &TestDb, table: LogTable) -> i64 {
    t.number(&format!("SELECT count(*) FROM {}", table.as_str())).await
}

#[test]
fn a_row_survives_the_journal_to_the_last_bit() {
    let mut awkward = row();
    awkward.prompt_cost = f64::from_bits(0.1_f64.to_bits() + 1);
    awkward.duration_ms = 1.0 / 3.0;
    awkward.ttft_ms = Some(5e-324);
    awkward.error = Some("a\u{2028}\"\n\\\u{1}\u{7f}".to_owned());
    awkward.request_id = Some(String::new());
    awkward.created_at = "2016-12-31T23:59:60.5Z".parse().unwrap();
    let sparse = LogRow {
        model_id: None,
        provider: None,
        provider_id: None,
        api_format: None,
        prompt_tokens: None,
        completion_tokens: None,
        ttft_ms: None,
        longest_stall_ms: None,
        finish_reason: None,
        error: None,
        request_id: None,
        source: None,
        created_at: "0001-02-03T04:05:06.000007Z".parse().unwrap(),
        ..row().without_bodies()
    };
    for row in [row(), embedding(), awkward, row().without_bodies(), sparse] {
        let json = serde_json::to_string(&row).unwrap();
        assert!(!json.contains('\n'), "one line of a journal");
        assert_eq!(serde_json::from_str::<LogRow>(&json).unwrap(), row);
        assert_eq!(serde_json::from_slice::<LogRow>(json.as_bytes()).unwrap(), row);
        assert_eq!(serde_json::from_value::<LogRow>(serde_json::to_value(&row).unwrap()).unwrap(), row);
        let row = row.without_bodies();
        let json = serde_json::to_string(&row).unwrap();
        let mut written = Vec::new();
        row.write_json(&mut written);
        assert_eq!(serde_json::from_slice::<LogRow>(&written).unwrap(), row, "by hand");
        let [by_hand, by_serde] = [&written, json.as_bytes()].map(|json| {
            let mut row: serde_json::Value = serde_json::from_slice(json).unwrap();
            let created_at: DateTime<Utc> = serde_json::from_value(row["created_at"].take()).unwrap();
            (row, created_at)
        });
        assert_eq!(by_hand, by_serde);
    }
    // A newer version's row has more fields; a smaller one fewer.
    let later = serde_json::to_string(&row()).unwrap().replacen('{', r#"{"tomorrow":[1],"#, 1);
    serde_json::from_str::<LogRow>(&later).unwrap();
}

#[tokio::test]
async fn a_row_reads_back_as_it_was_written_and_a_second_time_is_harmless() {
    on_each(async |t| {
        // All values differ, so that none can pass for another.
        let full = LogRow {
            model_id: Some(101),
            provider_id: Some(102),
            prompt_tokens: Some(103),
            completion_tokens: Some(104),
            cached_tokens: Some(105),
            cache_write_tokens: Some(106),
            reasoning_tokens: Some(107),
            prompt_cost: 0.108,
            completion_cost: 0.109,
            duration_ms: 110.5,
            ttft_ms: Some(111.5),
            longest_stall_ms: Some(112.5),
            overhead_ms: 113.5,
            finish_reason: Some("finish_reason".into()),
            error: Some("error".to_owned()),
            request_id: Some("request_id".to_owned()),
            source: Some(Uuid::now_v7()),
            request_body: Some("request_body".into()),
            response_body: Some("response_body".into()),
            ..row()
        };
        let other = LogRow {
            model_id: Some(101),
            provider_id: Some(102),
            prompt_tokens: Some(103),
            prompt_cost: 0.108,
            duration_ms: 110.5,
            overhead_ms: 113.5,
            error: Some("error".to_owned()),
            request_id: Some("request_id".to_owned()),
            source: Some(Uuid::now_v7()),
            request_body: Some("request_body".into()),
            response_body: Some("response_body".into()),
            ..embedding()
        };
        for row in [full, other] {
            assert_eq!(log::insert_batch(&t.log, std::slice::from_ref(&row)).await.unwrap(), 1);
            assert_eq!(log::get(&t.db, row.table, row.id).await.unwrap(), row);
            log::delete(&t.db, row.table, row.id).await.unwrap();
        }
        let batch = [row(), embedding(), row()];
        assert_eq!(log::insert_batch(&t.log, &batch).await.unwrap(), 3);
        assert_eq!(log::insert_batch(&t.log, &batch).await.unwrap(), 0);
        let more = [batch[0].clone(), row(), embedding()];
        assert_eq!(log::insert_batch(&t.log, &more).await.unwrap(), 2, "only what is new counts");
        let twice = row();
        assert_eq!(log::insert_batch(&t.log, &[twice.clone(), twice]).await.unwrap(), 1);
        assert_eq!(log::insert_batch(&t.log, &[]).await.unwrap(), 0);
        for row in &batch {
            assert_eq!(log::get(&t.db, row.table, row.id).await.unwrap(), *row);
        }
        assert_eq!((rows(t, LogTable::Completions).await, rows(t, LogTable::Embeddings).await), (4, 2));

        log::delete(&t.db, LogTable::Completions, batch[0].id).await.unwrap();
        let again = log::delete(&t.db, LogTable::Completions, batch[0].id).await;
        assert!(matches!(again, Err(StoreError::NotFound)));
        assert!(matches!(
            log::get(&t.db, LogTable::Completions, batch[0].id).await,
            Err(StoreError::NotFound)
        ));
    })
    .await;
}

#[tokio::test]
async fn what_postgresql_cannot_store_is_replaced() {
    on_each(async |t| {
        let record = RequestRecord {
            request_body: Some(Bytes::from_static(b"{\"a\":\"\0\"}")),
            response_body: Some(Bytes::from_static(b"\xff\xfe half a \xf0\x9f character")),
            cost: Cost { prompt: f64::NAN, completion: f64::INFINITY },
            usage: Usage { prompt: Some(u64::MAX), ..Usage::default() },
            ..record()
        };
        let row = LogRow::from(&record);
        assert_eq!(log::insert_batch(&t.log, std::slice::from_ref(&row)).await.unwrap(), 1);
        let read = log::get(&t.db, LogTable::Completions, row.id).await.unwrap();
        assert_eq!(read, row);
        assert_eq!(read.response_body.as_deref(), Some("\u{fffd}\u{fffd} half a \u{fffd} character"));
        assert_eq!((read.prompt_cost, read.completion_cost, read.prompt_tokens), (0.0, 0.0, Some(i64::MAX)));
        let filter = LogFilter {
            model: Some("\0".to_owned()),
            error: Some("o\0k".to_owned()),
            ..LogFilter::default()
        };
        assert_eq!(log::count(&t.db, LogTable::Completions, &filter, 10).await.unwrap(), 0);
    })
    .await;
}

#[tokio::test]
async fn what_an_index_cannot_hold_is_not_kept() {
    on_each(async |t| {
        // Random text: repeated text would be compressed until it fits.
        let random = |bytes: usize| -> String {
            let mut text: String =
                (0..bytes.div_ceil(16)).map(|_| format!("{:016x}", rand::random::<u64>())).collect();
            text.truncate(bytes);
            text
        };
        let longest = random(REQUEST_ID_MAX_BYTES);
        let mut rows = Vec::new();
        for request_id in [longest.clone(), longest.clone() + "x", random(8_192)] {
            let id = Uuid::now_v7();
            rows.push(LogRow::from(&RequestRecord { id, request_id: Some(request_id), ..record() }));
        }
        assert_eq!(rows[1].request_id, None, "not cut off: two ids must not become one");
        assert_eq!(log::insert_batch(&t.log, &rows).await.unwrap(), 3);
        let found = log::find_by_request_id(&t.db, LogTable::Completions, 3, &longest).await.unwrap();
        assert_eq!(found.as_ref(), Some(&rows[0]));
    })
    .await;
}

#[tokio::test]
async fn a_batch_may_be_larger_than_any_statement() {
    on_each(async |t| {
        // 5,000 rows of 27 columns are 135,000 variables.
        let mut batch: Vec<LogRow> = (0..5_000).map(|_| row().without_bodies()).collect();
        batch.extend((0..3_000).map(|_| embedding().without_bodies()));
        assert_eq!(log::insert_batch(&t.log, &batch).await.unwrap(), 8_000);
        assert_eq!(
            (rows(t, LogTable::Completions).await, rows(t, LogTable::Embeddings).await),
            (5_000, 3_000)
        );
        // And 60 MB of bodies.
        let body = Some(ByteString::from("x".repeat(5 << 20)));
        let batch: Vec<LogRow> = (0..12).map(|_| LogRow { response_body: body.clone(), ..row() }).collect();
        assert_eq!(log::insert_batch(&t.log, &batch).await.unwrap(), 12);
        assert_eq!(log::get(&t.db, LogTable::Completions, batch[11].id).await.unwrap(), batch[11]);
    })
    .await;
}

#[tokio::test]
async fn a_request_id_finds_the_latest_answer_of_its_key() {
    on_each(async |t| {
        let at = |seconds| noon() + Duration::from_secs(seconds);
        let asked =
            |id: &str, seconds| LogRow { request_id: Some(id.to_owned()), created_at: at(seconds), ..row() };
        let (first, latest) = (asked("a", 1), asked("a", 3));
        let others = [
            LogRow { status: "failed".into(), ..asked("a", 9) },
            LogRow { status: "cache_hit".into(), source: Some(latest.id), ..asked("a", 8) },
            LogRow { api_key_id: 4, ..asked("a", 7) },
            asked("b", 6),
            LogRow { request_id: None, ..asked("", 5) },
            LogRow { request_id: Some("a".to_owned()), created_at: at(20), ..embedding() },
        ];
        log::insert_batch(&t.log, &[first, latest.clone()]).await.unwrap();
        log::insert_batch(&t.log, &others).await.unwrap();
        let find = async |table, key, id: &str| log::find_by_request_id(&t.db, table, key, id).await.unwrap();
        assert_eq!(find(LogTable::Completions, 3, "a").await, Some(latest), "with its bodies");
        assert_eq!(find(LogTable::Completions, 4, "b").await, None);
        assert_eq!(find(LogTable::Embeddings, 3, "a").await.unwrap().id, others[5].id);
    })
    .await;
}

#[tokio::test]
async fn a_list_is_filtered_and_paged_without_gaps() {
    on_each(async |t| {
        t.sql(
            "INSERT INTO providers (id, name, kind, base_url, source, created_at, updated_at)
             VALUES (7, 'main', 'openai', '', '', '2026-01-01T00:00:00+00:00', '2026-01-01T00:00:00+00:00')",
        )
        .await;
        let mut made: Vec<LogRow> = (0..100_u32)
            .map(|n| LogRow {
                api_key_id: i64::from(n % 5),
                model: format!("model-{}", n % 3).into(),
                provider_id: if n % 4 == 0 { None } else { Some(7) },
                api_format: Some(ApiFormat::ALL[n as usize % 3].as_str().into()),
                status: Status::ALL[n as usize % 4].as_str().into(),
                error: (n % 4 == 1).then(|| format!("Upstream said 50%_{n} \\ no")),
                // Groups of three at one instant: the id decides.
                created_at: noon() + Duration::from_secs(u64::from(n / 3)),
                ..row()
            })
            .collect();
        log::insert_batch(&t.log, &made).await.unwrap();
        made.sort_by_key(|row| std::cmp::Reverse((row.created_at, row.id)));
        let check = async |filter: LogFilter, keep: &dyn Fn(&LogRow) -> bool| {
            let expected: Vec<Uuid> = made.iter().filter(|row| keep(row)).map(|row| row.id).collect();
            assert!(!expected.is_empty());
            let ids = |rows: &[LogRow]| rows.iter().map(|row| row.id).collect::<Vec<_>>();
            let page = Page { limit: 1_000, ..Page::default() };
            assert_eq!(
                ids(&log::list(&t.db, LogTable::Completions, &filter, &page).await.unwrap()),
                expected
            );
            assert_eq!(
                log::count(&t.db, LogTable::Completions, &filter, 1_000).await.unwrap(),
                u64::try_from(expected.len()).unwrap()
            );
            let (mut walked, mut after, mut offset) = (Vec::new(), None, 0);
            loop {
                let page = Page { limit: 7, after, ..Page::default() };
                let rows = log::list(&t.db, LogTable::Completions, &filter, &page).await.unwrap();
                let page = Page { limit: 7, offset, ..Page::default() };
                assert_eq!(rows, log::list(&t.db, LogTable::Completions, &filter, &page).await.unwrap());
                let Some(last) = rows.last() else { break };
                after = Some(Cursor::from(last).to_string().parse().unwrap());
                offset += 7;
                walked.extend(ids(&rows));
            }
            assert_eq!(walked, expected);
        };
        let all = LogFilter::default;
        assert_eq!(log::count(&t.db, LogTable::Completions, &all(), 99).await.unwrap(), 99, "counting stops");
        check(all(), &|_| true).await;
        check(LogFilter { api_key_id: Some(2), ..all() }, &|row| row.api_key_id == 2).await;
        check(LogFilter { model: Some("model-1".to_owned()), ..all() }, &|row| &*row.model == "model-1")
            .await;
        check(LogFilter { provider_id: Some(7), ..all() }, &|row| row.provider_id == Some(7)).await;
        check(LogFilter { provider: Some("main".into()), ..all() }, &|row| row.provider_id == Some(7)).await;
        check(LogFilter { status: Some(Status::Failed), ..all() }, &|row| row.status == "failed").await;
        check(LogFilter { api_format: Some(ApiFormat::Anthropic), ..all() }, &|row| {
            row.api_format.as_deref() == Some("anthropic")
        })
        .await;
        check(LogFilter { error: Some("UPSTREAM".to_owned()), ..all() }, &|row| row.error.is_some()).await;
        check(LogFilter { error: Some("50%_1".to_owned()), ..all() }, &|row| {
            row.error.as_ref().is_some_and(|error| error.contains("50%_1"))
        })
        .await;
        check(LogFilter { error: Some(" \\ NO".to_owned()), ..all() }, &|row| row.error.is_some()).await;
        let (from, to) = (noon() + Duration::from_secs(5), noon() + Duration::from_secs(10));
        check(LogFilter { from: Some(from), to: Some(to), ..all() }, &|row| {
            (from..to).contains(&row.created_at)
        })
        .await;
        check(
            LogFilter { api_key_id: Some(1), status: Some(Status::Failed), from: Some(from), ..all() },
            &|row| row.api_key_id == 1 && row.status == "failed" && row.created_at >= from,
        )
        .await;
        for nothing in [
            LogFilter { error: Some("%".repeat(3)), ..all() },
            LogFilter { provider: Some("unheard of".into()), ..all() },
        ] {
            assert_eq!(log::count(&t.db, LogTable::Completions, &nothing, 10).await.unwrap(), 0);
        }
        let page = Page { bodies: false, ..Page::default() };
        let lean = log::list(&t.db, LogTable::Completions, &all(), &page).await.unwrap();
        assert_eq!(lean[0], made[0].clone().without_bodies());
        let page = Page { bodies: true, ..page };
        assert_eq!(log::list(&t.db, LogTable::Completions, &all(), &page).await.unwrap()[0], made[0]);
        log::insert_batch(&t.log, &[embedding()]).await.unwrap();
        let filter = LogFilter { api_format: Some(ApiFormat::Anthropic), ..all() };
        assert_eq!(log::list(&t.db, LogTable::Embeddings, &filter, &Page::default()).await.unwrap().len(), 1);
    })
    .await;
}

#[tokio::test]
async fn retention_deletes_the_oldest_in_small_batches_and_leaves_the_sums() {
    on_each(async |t| {
        let batch: Vec<LogRow> =
            (0..25).map(|n| LogRow { created_at: noon() + Duration::from_secs(n), ..row() }).collect();
        log::insert_batch(&t.log, &batch).await.unwrap();
        log::insert_batch(&t.log, &[embedding()]).await.unwrap();
        let before = usage_of(t, &UsageFilter::default()).await;
        let older_than = noon() + Duration::from_secs(20);
        let mut deleted = Vec::new();
        loop {
            deleted.push(log::prune(&t.db, LogTable::Completions, older_than, 8).await.unwrap());
            if deleted.last() < Some(&8) {
                break;
            }
        }
        assert_eq!(deleted, [8, 8, 4]);
        let left =
            log::list(&t.db, LogTable::Completions, &LogFilter::default(), &Page::default()).await.unwrap();
        assert_eq!(left.last().unwrap().created_at, older_than, "exactly what is older is gone");
        assert_eq!((left.len(), rows(t, LogTable::Embeddings).await), (5, 1));
        assert_eq!(usage_of(t, &UsageFilter::default()).await, before);
    })
    .await;
}
