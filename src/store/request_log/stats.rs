//! Sums of the last minutes and hours, for the overview of the admin API.

use std::collections::HashMap;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::sea_query::{Expr, ExprTrait, Query, SelectStatement};
use sea_orm::{ConnectionTrait, DbBackend};

use crate::domain::label::{LogTable, Status};
use crate::store::error::{StoreError, StoreResult};

/// The time range and steps of an overview. The reference system's ranges.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StatsRange {
    OneMinute,
    FiveMinutes,
    TenMinutes,
    HalfAnHour,
    OneHour,
    FourHours,
    TwelveHours,
}

impl StatsRange {
    pub const ALL: &'static [Self] = &[
        Self::OneMinute,
        Self::FiveMinutes,
        Self::TenMinutes,
        Self::HalfAnHour,
        Self::OneHour,
        Self::FourHours,
        Self::TwelveHours,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::OneMinute => "1m",
            Self::FiveMinutes => "5m",
            Self::TenMinutes => "10m",
            Self::HalfAnHour => "30m",
            Self::OneHour => "1h",
            Self::FourHours => "4h",
            Self::TwelveHours => "12h",
        }
    }

    /// In seconds.
    pub const fn seconds(self) -> i64 {
        match self {
            Self::OneMinute => 60,
            Self::FiveMinutes => 300,
            Self::TenMinutes => 600,
            Self::HalfAnHour => 1_800,
            Self::OneHour => 3_600,
            Self::FourHours => 14_400,
            Self::TwelveHours => 43_200,
        }
    }

    /// Seconds in one bucket of the series; divides [`seconds`](Self::seconds).
    pub const fn bucket_seconds(self) -> i64 {
        match self {
            Self::OneMinute => 5,
            Self::FiveMinutes => 15,
            Self::TenMinutes => 30,
            Self::HalfAnHour => 60,
            Self::OneHour => 120,
            Self::FourHours => 480,
            Self::TwelveHours => 1_440,
        }
    }
}

/// Requests of one kind, summed.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Totals {
    pub completed: u64,
    pub failed: u64,
    pub aborted: u64,
    pub cache_hit: u64,
    pub prompt_tokens: u64,
    pub completion_tokens: u64,
    /// USD.
    pub cost: f64,
    duration_ms: f64,
    ttft_ms: f64,
    ttft_count: u64,
}

impl Totals {
    /// Requests, however they ended.
    pub fn requests(&self) -> u64 {
        self.completed + self.failed + self.aborted + self.cache_hit
    }

    /// The mean duration of all requests. `None`: there were none.
    pub fn mean_duration(&self) -> Option<Duration> {
        mean(self.duration_ms, self.requests())
    }

    /// The mean time to first token of completed streams. `None`: there were none.
    pub fn mean_ttft(&self) -> Option<Duration> {
        mean(self.ttft_ms, self.ttft_count)
    }

    /// Completed requests and cache hits among those that the gateway had to answer (a client that left does not count
    /// as a failure), from 0 to 1. `None`: there were none.
    pub fn success_rate(&self) -> Option<f64> {
        let (good, bad) = (self.completed + self.cache_hit, self.failed);
        #[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
        (good + bad > 0).then(|| good as f64 / (good + bad) as f64)
    }

    fn add(&mut self, other: &Self) {
        self.completed += other.completed;
        self.failed += other.failed;
        self.aborted += other.aborted;
        self.cache_hit += other.cache_hit;
        self.prompt_tokens += other.prompt_tokens;
        self.completion_tokens += other.completion_tokens;
        self.cost += other.cost;
        self.duration_ms += other.duration_ms;
        self.ttft_ms += other.ttft_ms;
        self.ttft_count += other.ttft_count;
    }
}

fn mean(sum_ms: f64, count: u64) -> Option<Duration> {
    #[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
    let mean = (count > 0).then(|| sum_ms / count as f64)?;
    Duration::try_from_secs_f64(mean / 1e3).ok()
}

/// One step of the series.
#[derive(Debug, Clone, PartialEq)]
pub struct Bucket {
    /// Its beginning; a multiple of the bucket's length since the epoch.
    pub start: DateTime<Utc>,
    pub completions: Totals,
    pub embeddings: Totals,
}

/// How often a model was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelCount {
    /// System name.
    pub model: String,
    pub table: LogTable,
    pub requests: u64,
}

/// The overview.
#[derive(Debug, Clone, PartialEq)]
pub struct Overview {
    pub range: StatsRange,
    pub completions: Totals,
    pub embeddings: Totals,
    /// The most asked first.
    pub models: Vec<ModelCount>,
    /// Every bucket, also the empty ones, oldest first. The range begins within the first one, of which only the rest
    /// counts, and `now` is in the last one.
    pub series: Vec<Bucket>,
}

/// Sums up the requests that arrived within `range` before `now`, in one query a table.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn overview(
    db: &impl ConnectionTrait,
    range: StatsRange,
    now: DateTime<Utc>,
) -> StoreResult<Overview> {
    let step = range.bucket_seconds();
    let start = now - TimeDelta::seconds(range.seconds());
    let first = start.timestamp().div_euclid(step);
    let last = now.timestamp().div_euclid(step);
    let time = |bucket: i64| {
        DateTime::from_timestamp(bucket * step, 0)
            .ok_or_else(|| StoreError::invalid("now", "is out of range"))
    };
    let empty = |bucket| {
        Ok(Bucket { start: time(bucket)?, completions: Totals::default(), embeddings: Totals::default() })
    };
    let mut series = (first..=last).map(empty).collect::<StoreResult<Vec<_>>>()?;
    let mut models: HashMap<(String, LogTable), u64> = HashMap::new();
    for table in LogTable::ALL.iter().copied() {
        let query = sums(db.get_database_backend(), table, step, start, time(last + 1)?);
        for row in db.query_all(&query).await? {
            let (bucket, model, status, requests): (i64, String, String, i64) = (
                row.try_get_by_index(0)?,
                row.try_get_by_index(1)?,
                row.try_get_by_index(2)?,
                row.try_get_by_index(3)?,
            );
            let count = |stored: i64| u64::try_from(stored).unwrap_or(0);
            let mut totals = Totals {
                prompt_tokens: count(row.try_get_by_index(4)?),
                completion_tokens: count(row.try_get_by_index(5)?),
                cost: row.try_get_by_index(6)?,
                duration_ms: row.try_get_by_index(7)?,
                ..Totals::default()
            };
            match Status::parse(&status) {
                Some(Status::Completed) => {
                    totals.completed = count(requests);
                    totals.ttft_ms = row.try_get_by_index(8)?;
                    totals.ttft_count = count(row.try_get_by_index(9)?);
                }
                Some(Status::Aborted) => totals.aborted = count(requests),
                Some(Status::CacheHit) => totals.cache_hit = count(requests),
                Some(Status::Failed) | None => totals.failed = count(requests),
            }
            *models.entry((model, table)).or_default() += totals.requests();
            let place = usize::try_from(bucket - first).ok().and_then(|index| series.get_mut(index));
            if let Some(bucket) = place {
                match table {
                    LogTable::Completions => bucket.completions.add(&totals),
                    LogTable::Embeddings => bucket.embeddings.add(&totals),
                }
            }
        }
    }
    let (mut completions, mut embeddings) = (Totals::default(), Totals::default());
    for bucket in &series {
        completions.add(&bucket.completions);
        embeddings.add(&bucket.embeddings);
    }
    let mut models: Vec<ModelCount> =
        models.into_iter().map(|((model, table), requests)| ModelCount { model, table, requests }).collect();
    models.sort_by(|a, b| b.requests.cmp(&a.requests).then_with(|| a.model.cmp(&b.model)));
    Ok(Overview { range, completions, embeddings, models, series })
}

fn sums(
    backend: DbBackend,
    table: LogTable,
    step: i64,
    from: DateTime<Utc>,
    to: DateTime<Utc>,
) -> SelectStatement {
    // Sums of integers are `numeric` on PostgreSQL, and null over nothing.
    let integer = |column: &str| Expr::cust(format!("CAST(coalesce(sum({column}), 0) AS bigint)"));
    let double = |what: &str| Expr::cust(format!("CAST(coalesce(sum({what}), 0) AS double precision)"));
    let zero = || Expr::cust("CAST(0 AS bigint)");
    let nothing = || Expr::cust("CAST(0 AS double precision)");
    // Whole seconds since the epoch, rounded down. SQLite's own reading of a fraction rounds to milliseconds, so the
    // fraction is cut off first.
    let seconds = match backend {
        DbBackend::Sqlite => "CAST(strftime('%s', substr(created_at, 1, 19)) AS integer)",
        _ => "CAST(floor(extract(epoch FROM created_at)) AS bigint)",
    };
    let mut query = Query::select()
        .expr_as(Expr::cust(format!("{seconds} / {step}")), "bucket")
        .column("model")
        .column("status")
        .expr(Expr::cust("count(*)"))
        .expr(integer("prompt_tokens"))
        .from(table.as_str())
        .and_where(Expr::col("created_at").gte(from))
        .and_where(Expr::col("created_at").lt(to))
        .to_owned();
    match table {
        LogTable::Completions => query
            .expr(integer("completion_tokens"))
            .expr(double("prompt_cost + completion_cost"))
            .expr(double("duration_ms"))
            .expr(double("ttft_ms"))
            .expr(Expr::cust("count(ttft_ms)")),
        LogTable::Embeddings => query
            .expr(zero())
            .expr(double("prompt_cost"))
            .expr(double("duration_ms"))
            .expr(nothing())
            .expr(zero()),
    };
    query.group_by_columns(["bucket", "model", "status"]).to_owned()
}
