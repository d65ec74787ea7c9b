use std::time::Duration;

use chrono::{DateTime, SubsecRound as _, Utc};

use super::logs::{embedding, noon, row};
use super::{TestDb, on_each, settings};
use crate::domain::label::{LogTable, Status};
use crate::store::log_writer;
use crate::store::request_log::{self as log, LogRow, StatsRange, Sums, UsageFilter, UsageGroup, UsageSum};

/// The sums as they are stored: each group apart.
pub(super) async fn usage_of(t: &TestDb, filter: &UsageFilter) -> Vec<UsageSum> {
    use UsageGroup::{ApiKey, Day, Model, Provider, Table};
    log::usage_by(&t.db, filter, &[Day, ApiKey, Model, Provider, Table]).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sums_by_day_equal_the_rows_whoever_writes() {
    on_each(async |t| {
        let row_of = |n: u32| LogRow {
            api_key_id: i64::from(n % 3),
            model: format!("model-{}", n % 2).into(),
            provider: (!n.is_multiple_of(5)).then(|| "main".into()),
            status: Status::ALL[n as usize % 4].as_str().into(),
            prompt_cost: 0.25,
            completion_cost: 0.5,
            created_at: noon() + Duration::from_secs(u64::from(n) * 3_600),
            ..if n.is_multiple_of(7) { embedding() } else { row() }
        };
        // Eight writers, each row written by two of them, in opposite orders.
        let rows: Vec<LogRow> = (0..400).map(row_of).collect();
        let writers: Vec<_> = (0..8_usize)
            .map(|writer| {
                let log_writer = log_writer(&settings(&t.url), &t.db).unwrap();
                let mut mine: Vec<LogRow> = rows.iter().skip(writer / 2).step_by(4).cloned().collect();
                if writer % 2 == 0 {
                    mine.reverse();
                }
                tokio::spawn(async move {
                    let mut new = 0;
                    for batch in mine.chunks(9) {
                        new += log::insert_batch(&log_writer, batch).await.unwrap();
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
        let usage = usage_of(t, &UsageFilter::default()).await;
        assert_eq!(usage.iter().map(|sum| sum.sums.requests()).sum::<u64>(), 400);
        let mut sorted = usage.clone();
        sorted.sort_by_key(|sum| std::cmp::Reverse(sum.day));
        assert_eq!(usage, sorted, "the latest day first");
        for sum in &usage {
            let place = (sum.day, sum.api_key_id, sum.model.as_deref(), sum.provider.as_deref(), sum.table);
            let mine: Vec<_> = rows
                .iter()
                .filter(|row| {
                    let day = Some(row.created_at.date_naive());
                    let provider = Some(row.provider.as_deref().unwrap_or_default());
                    (day, Some(row.api_key_id), Some(&*row.model), provider, Some(row.table)) == place
                })
                .collect();
            let sum = &sum.sums;
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
        let filtered = usage_of(t, &filter).await;
        assert!(!filtered.is_empty());
        for sum in &filtered {
            assert_eq!((sum.day, sum.api_key_id, sum.model.as_deref()), (day, Some(1), Some("model-1")));
        }
        let paged = UsageFilter { offset: 1, limit: Some(2), ..UsageFilter::default() };
        assert_eq!(usage_of(t, &paged).await, usage[1..3]);
    })
    .await;
}

#[tokio::test]
async fn each_part_of_a_sum_is_its_own() {
    on_each(async |t| {
        let day = noon().date_naive();
        let filter = UsageFilter { from: Some(day), to: Some(day), ..UsageFilter::default() };
        for writer in [&t.log, &log::LogWriter::shared(t.db.clone())] {
            t.sql("DELETE FROM usage_daily").await;
            for times in 1..=2_u32 {
                // More sums than fit one statement.
                let batch: Vec<LogRow> = (1..=40_u32)
                    .map(|key| LogRow {
                        api_key_id: key.into(),
                        prompt_tokens: Some(10_000),
                        completion_tokens: Some(2_000),
                        cached_tokens: Some(300),
                        cache_write_tokens: Some(40),
                        reasoning_tokens: Some(5),
                        prompt_cost: key.into(),
                        completion_cost: 0.25,
                        ..row()
                    })
                    .collect();
                log::insert_batch(writer, &batch).await.unwrap();
                let count = u64::from(times);
                let expected: Vec<_> = (1..=40_u32)
                    .map(|key| UsageSum {
                        day: Some(day),
                        api_key_id: Some(key.into()),
                        model: Some(batch[0].model.to_string()),
                        provider: batch[0].provider.as_deref().map(str::to_owned),
                        table: Some(LogTable::Completions),
                        sums: Sums {
                            completed: count,
                            failed: 0,
                            aborted: 0,
                            cache_hit: 0,
                            prompt_tokens: count * 10_000,
                            completion_tokens: count * 2_000,
                            cached_tokens: count * 300,
                            cache_write_tokens: count * 40,
                            reasoning_tokens: count * 5,
                            prompt_cost: f64::from(times) * f64::from(key),
                            completion_cost: f64::from(times) * 0.25,
                        },
                    })
                    .collect();
                assert_eq!(usage_of(t, &filter).await, expected);
            }
        }
    })
    .await;
}

#[tokio::test]
async fn an_overview_sums_up_every_range() {
    on_each(async |t| {
        let now: DateTime<Utc> = "2026-03-04T12:00:59.9996Z".parse().unwrap();
        for range in StatsRange::ALL.iter().copied() {
            t.sql("DELETE FROM completions").await;
            t.sql("DELETE FROM embeddings").await;
            let (range_ms, step) = (range.seconds() * 1_000, range.bucket_seconds());
            let at = |ms: i64| (now - Duration::from_millis(u64::try_from(ms).unwrap())).trunc_subsecs(6);
            let mut batch = vec![
                LogRow { created_at: at(0), ..row() },
                LogRow { created_at: at(0), status: "failed".into(), ttft_ms: Some(1e6), ..row() },
                LogRow { created_at: at(range_ms / 2), duration_ms: 100.0, ttft_ms: None, ..row() },
                LogRow { created_at: at(range_ms / 2), status: "aborted".into(), model: "n".into(), ..row() },
                LogRow { created_at: at(range_ms - 1), status: "cache_hit".into(), ..row() },
                LogRow { created_at: at(range_ms / 2), ..embedding() },
            ];
            let inside = batch.len();
            // Before the range, though within its first bucket.
            batch.push(LogRow { created_at: at(range_ms + 1), ..row() });
            batch.push(LogRow { created_at: now + Duration::from_secs(86_400), ..row() });
            log::insert_batch(&t.log, &batch).await.unwrap();

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
