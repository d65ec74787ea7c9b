use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, SubsecRound as _, Utc};
use uuid::Uuid;

use super::{TestDb, on_each};
use crate::domain::key::{ApiKey, Limits};
use crate::domain::label::{ApiFormat, FinishReason, LabelValue, LogTable, ModelType, Status};
use crate::domain::model::{Slo, Target};
use crate::domain::provider::{Provider, ProviderKind};
use crate::domain::record::{Call, RequestRecord};
use crate::domain::usage::{Cost, Price, Usage};
use crate::store::StoreError;
use crate::store::request_log::{self as log, Cursor, LogFilter, LogRow, Page, StatsRange, UsageFilter};

/// A time with no fraction that either database could lose.
fn noon() -> DateTime<Utc> {
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
        context_length: None,
        slo: Slo::default(),
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

fn row() -> LogRow {
    LogRow { id: Uuid::now_v7(), ..LogRow::from(&record()) }
}

fn embedding() -> LogRow {
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

async fn rows(t: &TestDb, table: LogTable) -> i64 {
    t.number(&format!("SELECT count(*) FROM {}", table.as_str())).await
}

#[test]
fn a_row_survives_the_journal_to_the_last_bit() {
    let mut awkward = row();
    awkward.prompt_cost = f64::from_bits(0.1_f64.to_bits() + 1);
    awkward.duration_ms = 1.0 / 3.0;
    awkward.ttft_ms = Some(5e-324);
    awkward.error = Some("a\u{2028}\"\n\\".to_owned());
    for row in [row(), embedding(), awkward, row().without_bodies()] {
        let json = serde_json::to_string(&row).unwrap();
        assert!(!json.contains('\n'), "one line of a journal");
        assert_eq!(serde_json::from_str::<LogRow>(&json).unwrap(), row);
        assert_eq!(serde_json::from_slice::<LogRow>(json.as_bytes()).unwrap(), row);
        assert_eq!(serde_json::from_value::<LogRow>(serde_json::to_value(&row).unwrap()).unwrap(), row);
    }
    // A newer version's row has more fields; a smaller one fewer.
    let later = serde_json::to_string(&row()).unwrap().replacen('{', r#"{"tomorrow":[1],"#, 1);
    serde_json::from_str::<LogRow>(&later).unwrap();
}

#[tokio::test]
async fn a_row_reads_back_as_it_was_written_and_a_second_time_is_harmless() {
    on_each(async |t| {
        let batch = [row(), embedding(), row()];
        assert_eq!(log::insert_batch(&t.db, &batch).await.unwrap(), 3);
        assert_eq!(log::insert_batch(&t.db, &batch).await.unwrap(), 0);
        let more = [batch[0].clone(), row(), embedding()];
        assert_eq!(log::insert_batch(&t.db, &more).await.unwrap(), 2, "only what is new counts");
        let twice = row();
        assert_eq!(log::insert_batch(&t.db, &[twice.clone(), twice]).await.unwrap(), 1);
        assert_eq!(log::insert_batch(&t.db, &[]).await.unwrap(), 0);
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
            error: Some("bro\0ken".to_owned()),
            request_id: Some("id\0".to_owned()),
            request_body: Some(Bytes::from_static(b"{\"a\":\"\0\"}")),
            response_body: Some(Bytes::from_static(b"\xff\xfe half a \xf0\x9f character")),
            cost: Cost { prompt: f64::NAN, completion: f64::INFINITY },
            usage: Usage { prompt: Some(u64::MAX), ..Usage::default() },
            ..record()
        };
        let row = LogRow::from(&record);
        assert_eq!(log::insert_batch(&t.db, std::slice::from_ref(&row)).await.unwrap(), 1);
        let read = log::get(&t.db, LogTable::Completions, row.id).await.unwrap();
        assert_eq!(read, row);
        assert_eq!(read.error.as_deref(), Some("bro\u{fffd}ken"));
        assert_eq!(read.response_body.as_deref(), Some("\u{fffd}\u{fffd} half a \u{fffd} character"));
        assert_eq!((read.prompt_cost, read.completion_cost, read.prompt_tokens), (0.0, 0.0, Some(i64::MAX)));
        assert!(log::find_by_request_id(&t.db, LogTable::Completions, 3, "id\0").await.unwrap().is_none());
        let filter = LogFilter {
            model: Some("\0".to_owned()),
            error: Some("o\0k".to_owned()),
            ..LogFilter::default()
        };
        assert_eq!(log::count(&t.db, LogTable::Completions, &filter).await.unwrap(), 0);
    })
    .await;
}

#[tokio::test]
async fn a_batch_may_be_larger_than_any_statement() {
    on_each(async |t| {
        // 5,000 rows of 27 columns are 135,000 variables.
        let mut batch: Vec<LogRow> = (0..5_000).map(|_| row().without_bodies()).collect();
        batch.extend((0..3_000).map(|_| embedding().without_bodies()));
        assert_eq!(log::insert_batch(&t.db, &batch).await.unwrap(), 8_000);
        assert_eq!(
            (rows(t, LogTable::Completions).await, rows(t, LogTable::Embeddings).await),
            (5_000, 3_000)
        );
        // And 60 MB of bodies.
        let body = Some("x".repeat(5 << 20));
        let batch: Vec<LogRow> = (0..12).map(|_| LogRow { response_body: body.clone(), ..row() }).collect();
        assert_eq!(log::insert_batch(&t.db, &batch).await.unwrap(), 12);
        assert_eq!(log::get(&t.db, LogTable::Completions, batch[11].id).await.unwrap(), batch[11]);
    })
    .await;
}

#[tokio::test]
async fn a_refused_row_does_not_keep_the_others_out() {
    on_each(async |t| {
        let mut batch: Vec<LogRow> = (0..9).map(|_| row()).collect();
        // Nothing that a record becomes looks like this; a journal damaged in a clever way might.
        if t.is_postgres() {
            batch[4].model = "a\0b".to_owned();
        } else {
            t.sql("CREATE TRIGGER refuse BEFORE INSERT ON completions WHEN NEW.model = 'bad' BEGIN SELECT RAISE(ABORT, 'bad row'); END").await;
            batch[4].model = "bad".to_owned();
        }
        let error = log::insert_batch(&t.db, &batch).await.unwrap_err();
        assert!(!error.is_transient(), "{error}");
        assert_eq!(rows(t, LogTable::Completions).await, 0, "all or nothing");
        let done = log::insert_what_fits(&t.db, &batch).await.unwrap();
        assert_eq!(done.inserted, 8);
        assert_eq!(done.refused.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [batch[4].id]);

        t.sql("ALTER TABLE completions RENAME TO away").await;
        let error = log::insert_batch(&t.db, &batch).await.unwrap_err();
        assert!(error.is_transient(), "a schema can be repaired: {error}");
        t.sql("ALTER TABLE away RENAME TO completions").await;
        t.db.clone().close().await.unwrap();
        assert!(log::insert_what_fits(&t.db, &batch).await.unwrap_err().is_transient(), "no database");
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
            LogRow { status: "failed".to_owned(), ..asked("a", 9) },
            LogRow { status: "cache_hit".to_owned(), source: Some(latest.id), ..asked("a", 8) },
            LogRow { api_key_id: 4, ..asked("a", 7) },
            asked("b", 6),
            LogRow { request_id: None, ..asked("", 5) },
            LogRow { request_id: Some("a".to_owned()), created_at: at(20), ..embedding() },
        ];
        log::insert_batch(&t.db, &[first, latest.clone()]).await.unwrap();
        log::insert_batch(&t.db, &others).await.unwrap();
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
                model: format!("model-{}", n % 3),
                provider_id: if n % 4 == 0 { None } else { Some(7) },
                api_format: Some(ApiFormat::ALL[n as usize % 3].as_str().to_owned()),
                status: Status::ALL[n as usize % 4].as_str().to_owned(),
                error: (n % 4 == 1).then(|| format!("Upstream said 50%_{n} \\ no")),
                // Groups of three at one instant: the id decides.
                created_at: noon() + Duration::from_secs(u64::from(n / 3)),
                ..row()
            })
            .collect();
        log::insert_batch(&t.db, &made).await.unwrap();
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
                log::count(&t.db, LogTable::Completions, &filter).await.unwrap(),
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
        check(all(), &|_| true).await;
        check(LogFilter { api_key_id: Some(2), ..all() }, &|row| row.api_key_id == 2).await;
        check(LogFilter { model: Some("model-1".to_owned()), ..all() }, &|row| row.model == "model-1").await;
        check(LogFilter { provider_id: Some(7), ..all() }, &|row| row.provider_id == Some(7)).await;
        check(LogFilter { provider: Some("main".to_owned()), ..all() }, &|row| row.provider_id == Some(7))
            .await;
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
            LogFilter { provider: Some("unheard of".to_owned()), ..all() },
        ] {
            assert_eq!(log::count(&t.db, LogTable::Completions, &nothing).await.unwrap(), 0);
        }
        let page = Page { bodies: false, ..Page::default() };
        let lean = log::list(&t.db, LogTable::Completions, &all(), &page).await.unwrap();
        assert_eq!(lean[0], made[0].clone().without_bodies());
        let page = Page { bodies: true, ..page };
        assert_eq!(log::list(&t.db, LogTable::Completions, &all(), &page).await.unwrap()[0], made[0]);
        log::insert_batch(&t.db, &[embedding()]).await.unwrap();
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
        log::insert_batch(&t.db, &batch).await.unwrap();
        log::insert_batch(&t.db, &[embedding()]).await.unwrap();
        let before = log::usage(&t.db, &UsageFilter::default()).await.unwrap();
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
        assert_eq!(log::usage(&t.db, &UsageFilter::default()).await.unwrap(), before);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sums_by_day_equal_the_rows_whoever_writes() {
    on_each(async |t| {
        let row_of = |n: u32| LogRow {
            api_key_id: i64::from(n % 3),
            model: format!("model-{}", n % 2),
            provider: (n % 5 != 0).then(|| "main".to_owned()),
            status: Status::ALL[n as usize % 4].as_str().to_owned(),
            prompt_cost: 0.25,
            completion_cost: 0.5,
            created_at: noon() + Duration::from_secs(u64::from(n) * 3_600),
            ..if n % 7 == 0 { embedding() } else { row() }
        };
        // Eight writers, each row written by two of them, in opposite orders.
        let rows: Vec<LogRow> = (0..400).map(row_of).collect();
        let writers: Vec<_> = (0..8_usize)
            .map(|writer| {
                let db = t.db.clone();
                let mut mine: Vec<LogRow> = rows.iter().skip(writer / 2).step_by(4).cloned().collect();
                if writer % 2 == 0 {
                    mine.reverse();
                }
                tokio::spawn(async move {
                    let mut new = 0;
                    for batch in mine.chunks(9) {
                        new += log::insert_batch(&db, batch).await.unwrap();
                    }
                    new
                })
            })
            .collect();
        let mut new = 0;
        for writer in writers {
            new += writer.await.unwrap();
        }
        assert_eq!(new, 400, "each is new exactly once");
        let usage = log::usage(&t.db, &UsageFilter::default()).await.unwrap();
        assert_eq!(usage.iter().map(log::Usage::requests).sum::<u64>(), 400);
        let mut sorted = usage.clone();
        sorted.sort_by_key(|sum| std::cmp::Reverse(sum.day));
        assert_eq!(usage, sorted, "the latest day first");
        for sum in &usage {
            let mine: Vec<_> = rows
                .iter()
                .filter(|row| {
                    (row.created_at.date_naive(), row.api_key_id, &row.model, &row.provider, row.table)
                        == (sum.day, sum.api_key_id, &sum.model, &sum.provider, sum.table)
                })
                .collect();
            let number =
                |status: &str| u64::try_from(mine.iter().filter(|row| row.status == status).count()).unwrap();
            assert_eq!(sum.completed, number("completed"));
            assert_eq!(sum.failed, number("failed"));
            assert_eq!(sum.aborted, number("aborted"));
            assert_eq!(sum.cache_hit, number("cache_hit"));
            let tokens: i64 = mine.iter().filter_map(|row| row.prompt_tokens).sum();
            assert_eq!(i64::try_from(sum.prompt_tokens).unwrap(), tokens);
            assert_eq!(sum.cost(), mine.iter().map(|row| row.prompt_cost + row.completion_cost).sum::<f64>());
        }
        let day = noon().date_naive().succ_opt();
        let filter = UsageFilter {
            from: day,
            to: day,
            api_key_id: Some(1),
            model: Some("model-1".to_owned()),
            ..UsageFilter::default()
        };
        let filtered = log::usage(&t.db, &filter).await.unwrap();
        assert!(!filtered.is_empty());
        assert!(
            filtered.iter().all(|sum| Some(sum.day) == day && sum.api_key_id == 1 && sum.model == "model-1")
        );
        let paged = UsageFilter { offset: 1, limit: Some(2), ..UsageFilter::default() };
        assert_eq!(log::usage(&t.db, &paged).await.unwrap(), usage[1..3]);
    })
    .await;
}

#[tokio::test]
async fn an_overview_sums_up_every_range() {
    on_each(async |t| {
        let now: DateTime<Utc> = "2026-03-04T12:00:59.9996Z".parse().unwrap();
        assert_eq!(StatsRange::parse("2h"), None);
        for range in StatsRange::ALL.iter().copied() {
            t.sql("DELETE FROM completions").await;
            t.sql("DELETE FROM embeddings").await;
            let (range_ms, step) = (range.seconds() * 1_000, range.bucket_seconds());
            let at = |ms: i64| (now - Duration::from_millis(u64::try_from(ms).unwrap())).trunc_subsecs(6);
            let mut batch = vec![
                LogRow { created_at: at(0), ..row() },
                LogRow { created_at: at(0), status: "failed".to_owned(), ttft_ms: Some(1e6), ..row() },
                LogRow { created_at: at(range_ms / 2), duration_ms: 100.0, ttft_ms: None, ..row() },
                LogRow {
                    created_at: at(range_ms / 2),
                    status: "aborted".to_owned(),
                    model: "n".to_owned(),
                    ..row()
                },
                LogRow { created_at: at(range_ms - 1), status: "cache_hit".to_owned(), ..row() },
                LogRow { created_at: at(range_ms / 2), ..embedding() },
            ];
            let inside = batch.len();
            batch.push(LogRow { created_at: at(range_ms + step * 1_000), ..row() });
            batch.push(LogRow { created_at: now + Duration::from_secs(86_400), ..row() });
            log::insert_batch(&t.db, &batch).await.unwrap();

            let overview = log::overview(&t.db, range, now).await.unwrap();
            assert_eq!(
                range.as_str().parse::<humantime::Duration>().unwrap().as_secs(),
                range.seconds().unsigned_abs()
            );
            assert_eq!(range.seconds() % step, 0);
            let (all, embeddings) = (overview.completions, overview.embeddings);
            assert_eq!((all.completed, all.failed, all.aborted, all.cache_hit), (2, 1, 1, 1), "{range:?}");
            assert_eq!(all.requests() + embeddings.requests(), u64::try_from(inside).unwrap());
            assert_eq!((all.prompt_tokens, all.completion_tokens), (500, 100));
            assert_eq!((embeddings.prompt_tokens, embeddings.cost, embeddings.mean_ttft()), (8, 0.5, None));
            assert_eq!(all.mean_ttft(), Some(Duration::from_micros(345)), "of completed streams only");
            let mean = (1_234.567_891 * 4.0 + 100.0) / 5.0;
            assert!((all.mean_duration().unwrap().as_secs_f64() * 1e3 - mean).abs() < 1e-3);
            assert_eq!(all.success_rate(), Some(0.75));
            let models: Vec<_> =
                overview.models.iter().map(|m| (m.model.as_str(), m.table, m.requests)).collect();
            let (c, e) = (LogTable::Completions, LogTable::Embeddings);
            assert_eq!(models, [("m", c, 4), ("m", e, 1), ("n", c, 1)]);

            let series = &overview.series;
            assert_eq!(i64::try_from(series.len()).unwrap(), range.seconds() / step + 1);
            assert!(series.iter().all(|bucket| bucket.start.timestamp() % step == 0));
            let last = series.last().unwrap();
            assert!(last.start <= now && now < last.start + Duration::from_secs(step.unsigned_abs()));
            assert_eq!(last.completions.requests(), 2, "the last moment of a second belongs to that second");
            assert!(series[0].start <= at(range_ms));
            assert_eq!(
                series.iter().map(|bucket| bucket.completions.requests()).sum::<u64>(),
                all.requests()
            );
        }
        t.sql("DELETE FROM completions").await;
        t.sql("DELETE FROM embeddings").await;
        let nothing = log::overview(&t.db, StatsRange::OneHour, now).await.unwrap();
        assert_eq!((nothing.completions.success_rate(), nothing.completions.mean_duration()), (None, None));
        assert_eq!(nothing.series.len(), 31);
    })
    .await;
}
