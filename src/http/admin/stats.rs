//! The overview of the last minutes and hours.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::Admin;
use super::error::{AdminError, AdminResult, ErrorBody};
use super::extract::Params;
use super::fields::ModelUse;
use crate::domain::label::LogTable;
use crate::store::request_log::{self, Bucket, ModelCount, Overview, StatsRange, Totals};

/// How far back.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
enum Range {
    #[serde(rename = "1m")]
    OneMinute,
    #[serde(rename = "5m")]
    FiveMinutes,
    #[serde(rename = "10m")]
    TenMinutes,
    #[serde(rename = "30m")]
    HalfAnHour,
    #[serde(rename = "1h")]
    OneHour,
    #[serde(rename = "4h")]
    FourHours,
    #[serde(rename = "12h")]
    TwelveHours,
}

impl From<Range> for StatsRange {
    fn from(range: Range) -> Self {
        match range {
            Range::OneMinute => Self::OneMinute,
            Range::FiveMinutes => Self::FiveMinutes,
            Range::TenMinutes => Self::TenMinutes,
            Range::HalfAnHour => Self::HalfAnHour,
            Range::OneHour => Self::OneHour,
            Range::FourHours => Self::FourHours,
            Range::TwelveHours => Self::TwelveHours,
        }
    }
}

/// How far back.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct OverviewParams {
    /// `1h` when left out.
    #[param(inline)]
    range: Option<Range>,
}

/// Recent activity. Times are in milliseconds, costs in USD.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Overview)]
pub(super) struct OverviewView {
    range: &'static str,
    /// The length of a step of the series, in seconds.
    bucket_seconds: i64,
    summary: Summary,
    token_usage: TokenUsage,
    /// The most requested model first.
    model_distribution: Vec<ModelShare>,
    /// All steps, empty ones included, oldest first.
    time_series: Vec<Step>,
}

/// All requests of the range.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct Summary {
    total_requests: u64,
    completions_count: u64,
    embeddings_count: u64,
    /// Percent of those that the gateway had to answer; 100 when there were none.
    completions_success_rate: f64,
    /// Percent of those that the gateway had to answer; 100 when there were none.
    embeddings_success_rate: f64,
    /// Mean over completions; 0 when there were none.
    avg_duration: f64,
    /// Mean over completed streams; 0 when there were none.
    #[serde(rename = "avgTTFT")]
    avg_ttft: f64,
    failed: u64,
    /// Requests whose client disconnected.
    aborted: u64,
    cache_hits: u64,
    cost: f64,
}

/// Tokens as reported by the providers.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct TokenUsage {
    prompt_tokens: u64,
    completion_tokens: u64,
    embedding_tokens: u64,
    total_tokens: u64,
}

/// The number of requests for a model.
#[derive(Serialize, ToSchema)]
struct ModelShare {
    model: String,
    count: u64,
    r#type: ModelUse,
}

/// One step of the series.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct Step {
    /// Its start.
    timestamp: DateTime<Utc>,
    completions_count: u64,
    embeddings_count: u64,
    completions_failed: u64,
    embeddings_failed: u64,
    /// Mean over all requests.
    avg_duration: f64,
    /// Mean over completed streams.
    #[serde(rename = "avgTTFT")]
    avg_ttft: f64,
    tokens: u64,
    cost: f64,
}

/// Summarize the last minutes or hours.
#[utoipa::path(
    get, path = "/api/admin/stats/overview", tag = "Request log", params(OverviewParams),
    responses(
        (status = 200, description = "The overview", body = OverviewView),
        (status = 400, description = "The range is not one of the listed values", body = ErrorBody),
    ),
)]
pub(super) async fn overview(
    State(admin): State<Admin>,
    Params(params): Params<OverviewParams>,
) -> AdminResult<Json<OverviewView>> {
    let range = params.range.map_or(StatsRange::OneHour, Into::into);
    let overview = request_log::overview(admin.db(), range, Utc::now()).await;
    overview.map(|overview| Json(overview.into())).map_err(AdminError::about("range"))
}

impl From<Overview> for OverviewView {
    fn from(overview: Overview) -> Self {
        let Overview { range, completions, embeddings, models, series } = overview;
        Self {
            range: range.as_str(),
            bucket_seconds: range.bucket_seconds(),
            summary: Summary {
                total_requests: completions.requests() + embeddings.requests(),
                completions_count: completions.requests(),
                embeddings_count: embeddings.requests(),
                completions_success_rate: percent(&completions),
                embeddings_success_rate: percent(&embeddings),
                avg_duration: ms(completions.mean_duration()),
                avg_ttft: ms(completions.mean_ttft()),
                failed: completions.failed + embeddings.failed,
                aborted: completions.aborted + embeddings.aborted,
                cache_hits: completions.cache_hit + embeddings.cache_hit,
                cost: completions.cost + embeddings.cost,
            },
            token_usage: TokenUsage {
                prompt_tokens: completions.prompt_tokens,
                completion_tokens: completions.completion_tokens,
                embedding_tokens: embeddings.prompt_tokens,
                total_tokens: completions.prompt_tokens
                    + completions.completion_tokens
                    + embeddings.prompt_tokens,
            },
            model_distribution: models.into_iter().map(ModelShare::from).collect(),
            time_series: series.iter().map(Step::from).collect(),
        }
    }
}

impl From<ModelCount> for ModelShare {
    fn from(count: ModelCount) -> Self {
        let r#type = match count.table {
            LogTable::Completions => ModelUse::Chat,
            LogTable::Embeddings => ModelUse::Embedding,
        };
        Self { model: count.model, count: count.requests, r#type }
    }
}

impl From<&Bucket> for Step {
    fn from(bucket: &Bucket) -> Self {
        let Bucket { start, completions, embeddings } = bucket;
        Self {
            timestamp: *start,
            completions_count: completions.requests(),
            embeddings_count: embeddings.requests(),
            completions_failed: completions.failed,
            embeddings_failed: embeddings.failed,
            avg_duration: mean_of_both(completions, embeddings),
            avg_ttft: ms(completions.mean_ttft()),
            tokens: completions.prompt_tokens + completions.completion_tokens + embeddings.prompt_tokens,
            cost: completions.cost + embeddings.cost,
        }
    }
}

fn percent(totals: &Totals) -> f64 {
    // Two decimals, as in the reference system.
    (totals.success_rate().unwrap_or(1.0) * 10_000.0).round() / 100.0
}

fn ms(time: Option<Duration>) -> f64 {
    time.unwrap_or_default().as_secs_f64() * 1e3
}

#[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
fn mean_of_both(completions: &Totals, embeddings: &Totals) -> f64 {
    let requests = completions.requests() + embeddings.requests();
    let sum = |totals: &Totals| ms(totals.mean_duration()) * totals.requests() as f64;
    if requests == 0 { 0.0 } else { (sum(completions) + sum(embeddings)) / requests as f64 }
}
