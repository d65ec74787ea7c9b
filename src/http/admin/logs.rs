//! The request log, row by row: the common part of its two tables.

use std::borrow::Cow;

use axum::Json;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::Admin;
use super::error::{AdminError, AdminResult};
use super::fields::{Deleted, When, in_range};
use crate::domain::label::{self, LogTable};
use crate::store::keys;
use crate::store::request_log::{self, Cursor, LogFilter, LogRow, Page};

const NOUN: &str = "record";

/// Counting stops here: over millions of rows it would take seconds, and nobody pages that far.
const COUNTED: u64 = 100_000;

/// How a request ended.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Status {
    Completed,
    Failed,
    Aborted,
    CacheHit,
}

impl From<Status> for label::Status {
    fn from(status: Status) -> Self {
        match status {
            Status::Completed => Self::Completed,
            Status::Failed => Self::Failed,
            Status::Aborted => Self::Aborted,
            Status::CacheHit => Self::CacheHit,
        }
    }
}

/// The client's API format.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub(super) enum ApiFormat {
    #[serde(rename = "openai-chat")]
    OpenAiChat,
    #[serde(rename = "openai-responses")]
    OpenAiResponses,
    Anthropic,
}

impl From<ApiFormat> for label::ApiFormat {
    fn from(format: ApiFormat) -> Self {
        match format {
            ApiFormat::OpenAiChat => Self::OpenAiChat,
            ApiFormat::OpenAiResponses => Self::OpenAiResponses,
            ApiFormat::Anthropic => Self::Anthropic,
        }
    }
}

/// Filters of the log.
#[derive(Deserialize, IntoParams)]
#[serde(rename_all = "camelCase")]
#[into_params(parameter_in = Query)]
pub(super) struct LogParams {
    /// Only requests of the key with this id.
    api_key_id: Option<i64>,
    /// Only requests of this key: the key itself, or its id.
    api_key: Option<String>,
    /// Only requests of the model with this system name.
    model: Option<String>,
    /// Only requests that the provider with this name answered or tried last; it may have been deleted. One that was
    /// renamed is found by its new name, also where rows show the old one.
    provider: Option<String>,
    /// The same, by the provider's id.
    provider_id: Option<i64>,
    #[param(inline)]
    status: Option<Status>,
    /// Completions only.
    #[serde(alias = "api_format")]
    #[param(inline)]
    api_format: Option<ApiFormat>,
    /// Only requests that arrived at this time or later.
    #[param(value_type = Option<DateTime<Utc>>)]
    from: Option<When>,
    /// Only requests that arrived before this time.
    #[param(value_type = Option<DateTime<Utc>>)]
    to: Option<When>,
    /// Text that the error contains, in upper or lower case.
    error: Option<String>,
    /// Number of records to skip; slow when large, then use `after`.
    #[param(maximum = 1_000_000_000)]
    offset: Option<u64>,
    /// Maximum number of records.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<u64>,
    /// `next` of an earlier page: continues behind that page without re-reading it, and skips nothing when new requests
    /// arrive meanwhile.
    after: Option<String>,
}

/// A page of the log, the latest arrival first.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = LogPage)]
pub(super) struct PageView {
    data: Vec<LogEntry>,
    /// Number of records on all pages. Counting stops at 100,000.
    total: u64,
    /// Whether there may be more records than `total`.
    total_is_capped: bool,
    /// Number of records skipped.
    from: u64,
    /// Value for `after` to get the next page; null on the last page.
    next: Option<String>,
}

/// A logged request. Times are in milliseconds, costs in USD.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct LogEntry {
    id: Uuid,
    api_key_id: i64,
    /// System name.
    model: String,
    model_id: Option<i64>,
    /// The provider that answered, or was tried last; null: none was called.
    provider: Option<String>,
    provider_id: Option<i64>,
    /// Completions only.
    api_format: Option<String>,
    /// `completed`, `failed`, `aborted` or `cache_hit`.
    status: String,
    stream: bool,
    /// As reported by the providers, failed attempts included; null: none reported it.
    prompt_tokens: Option<i64>,
    completion_tokens: Option<i64>,
    /// Prompt tokens read from the provider's cache.
    cached_tokens: Option<i64>,
    cache_write_tokens: Option<i64>,
    reasoning_tokens: Option<i64>,
    prompt_cost: f64,
    completion_cost: f64,
    cost: f64,
    /// From arrival to the last byte.
    duration: f64,
    /// From arrival to the first content token; streams only.
    ttft: Option<f64>,
    /// The longest wait for the provider between two chunks of a stream.
    longest_stall: Option<f64>,
    /// Time spent in the gateway itself.
    overhead: f64,
    finish_reason: Option<String>,
    /// A short code: `timeout`, `http_500`, …
    error: Option<String>,
    /// `X-NexusGate-ReqId`.
    req_id: Option<String>,
    /// The record that a cache hit was answered from.
    source_id: Option<Uuid>,
    /// When the request arrived.
    created_at: DateTime<Utc>,
}

impl From<LogRow> for LogEntry {
    fn from(row: LogRow) -> Self {
        Self {
            id: row.id,
            api_key_id: row.api_key_id,
            model: row.model.to_string(),
            model_id: row.model_id,
            provider: row.provider.as_deref().map(str::to_owned),
            provider_id: row.provider_id,
            api_format: row.api_format.map(Cow::into_owned),
            status: row.status.into_owned(),
            stream: row.stream,
            prompt_tokens: row.prompt_tokens,
            completion_tokens: row.completion_tokens,
            cached_tokens: row.cached_tokens,
            cache_write_tokens: row.cache_write_tokens,
            reasoning_tokens: row.reasoning_tokens,
            prompt_cost: row.prompt_cost,
            completion_cost: row.completion_cost,
            cost: row.prompt_cost + row.completion_cost,
            duration: row.duration_ms,
            ttft: row.ttft_ms,
            longest_stall: row.longest_stall_ms,
            overhead: row.overhead_ms,
            finish_reason: row.finish_reason.map(Cow::into_owned),
            error: row.error,
            req_id: row.request_id,
            source_id: row.source,
            created_at: row.created_at,
        }
    }
}

/// A request with its bodies.
#[derive(Serialize, ToSchema)]
pub(super) struct LogRecord {
    #[serde(flatten)]
    entry: LogEntry,
    /// The client's request body, as JSON; null under `LOG_PAYLOADS=metadata`.
    #[schema(value_type = Option<serde_json::Value>)]
    request: Option<Box<RawValue>>,
    /// The answer's body, as JSON, or an event stream as text; null under `LOG_PAYLOADS=metadata`, and beyond 4 MiB.
    #[schema(value_type = Option<serde_json::Value>)]
    response: Option<Box<RawValue>>,
}

/// JSON as it is, anything else as a JSON string.
fn body(text: Option<&str>) -> Option<Box<RawValue>> {
    let text = text?;
    RawValue::from_string(text.to_owned())
        .or_else(|_| serde_json::to_string(text).and_then(RawValue::from_string))
        .ok()
}

pub(super) async fn list(
    admin: &Admin,
    table: LogTable,
    params: LogParams,
    usual_limit: u64,
) -> AdminResult<Json<PageView>> {
    in_range("offset", params.offset, 0..=1_000_000_000)?;
    in_range("limit", params.limit, 1..=1000)?;
    let api_key_id = match &params.api_key {
        Some(name) => Some(keys::find(admin.db(), name).await.map_err(AdminError::about("API key"))?.id),
        None => None,
    };
    let filter = LogFilter {
        api_key_id: api_key_id.or(params.api_key_id),
        model: params.model,
        provider_id: params.provider_id,
        provider: params.provider,
        status: params.status.map(Into::into),
        api_format: params.api_format.map(Into::into),
        from: params.from.map(|When(at)| at),
        to: params.to.map(|When(at)| at),
        error: params.error,
    };
    let limit = params.limit.unwrap_or(usual_limit);
    let from = params.offset.unwrap_or(0);
    let after =
        params.after.as_deref().map(str::parse::<Cursor>).transpose().map_err(AdminError::about(NOUN))?;
    // One more than is shown, to see whether there is a next page.
    let page = Page { limit: limit + 1, offset: from, after, bodies: false };
    let mut rows =
        request_log::list(admin.db(), table, &filter, &page).await.map_err(AdminError::about(NOUN))?;
    let total =
        request_log::count(admin.db(), table, &filter, COUNTED).await.map_err(AdminError::about(NOUN))?;
    let shown = usize::try_from(limit).unwrap_or(usize::MAX);
    let next = (rows.len() > shown)
        .then(|| rows.get(shown.saturating_sub(1)).map(|last| Cursor::from(last).to_string()))
        .flatten();
    rows.truncate(shown);
    Ok(Json(PageView {
        data: rows.into_iter().map(LogEntry::from).collect(),
        total,
        total_is_capped: total >= COUNTED,
        from,
        next,
    }))
}

pub(super) async fn show(admin: &Admin, table: LogTable, id: Uuid) -> AdminResult<Json<LogRecord>> {
    let row = request_log::get(admin.db(), table, id).await.map_err(AdminError::about(NOUN))?;
    let (request, response) = (body(row.request_body.as_deref()), body(row.response_body.as_deref()));
    Ok(Json(LogRecord { entry: row.into(), request, response }))
}

pub(super) async fn delete(admin: &Admin, table: LogTable, id: Uuid) -> AdminResult<Json<Deleted>> {
    request_log::delete(admin.db(), table, id).await.map_err(AdminError::about(NOUN))?;
    Ok(Json(Deleted::new()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_are_json_whatever_they_were() {
        let shown = |text: &str| body(Some(text)).map(|body| body.get().to_owned());
        assert_eq!(shown(r#"{"a": 1.10}"#).as_deref(), Some(r#"{"a": 1.10}"#), "to the last digit");
        assert_eq!(shown("data: [DONE]\n").as_deref(), Some(r#""data: [DONE]\n""#));
        assert_eq!(shown("").as_deref(), Some(r#""""#));
        assert!(body(None).is_none());
    }

    #[test]
    fn labels_are_called_as_everywhere() {
        for text in label::Status::VALUES {
            let status: Status = serde_json::from_value((*text).into()).expect("a status");
            assert_eq!(label::Status::from(status).as_str(), *text);
        }
        for text in label::ApiFormat::VALUES {
            let format: ApiFormat = serde_json::from_value((*text).into()).expect("a format");
            assert_eq!(label::ApiFormat::from(format).as_str(), *text);
        }
    }
}
