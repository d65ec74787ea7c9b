//! Usage and its cost.

use std::collections::HashMap;

use axum::Json;
use axum::extract::State;
use chrono::NaiveDate;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::Admin;
use super::error::{AdminError, AdminResult, ErrorBody};
use super::extract::Params;
use super::fields::{When, in_range};
use crate::store::keys;
use crate::store::request_log::{self, Sums, UsageFilter, UsageGroup, UsageSum};

/// The default number of groups in an answer.
const USUAL_LIMIT: u64 = 1000;
const USUAL_GROUPS: &str = "day,apiKey,model";

/// Filters and grouping of usage.
#[derive(Deserialize, IntoParams)]
#[serde(rename_all = "camelCase")]
#[into_params(parameter_in = Query)]
pub(super) struct UsageParams {
    /// Only usage of this key: the key itself, or its id.
    api_key: Option<String>,
    /// Only usage of the model with this system name.
    model: Option<String>,
    /// The first day, UTC.
    #[param(value_type = Option<NaiveDate>)]
    from: Option<When>,
    /// The last day, UTC; included.
    #[param(value_type = Option<NaiveDate>)]
    to: Option<When>,
    /// Any of `day`, `apiKey`, `model`, `provider` and `kind` (completions or embeddings), separated by commas.
    #[param(example = "day,apiKey,model")]
    group_by: Option<String>,
    /// Number of groups to skip.
    #[param(maximum = 1_000_000_000)]
    offset: Option<u64>,
    /// Maximum number of groups; 1,000 when left out.
    #[param(minimum = 1, maximum = 10_000)]
    limit: Option<u64>,
}

/// Usage, summed. It is as exact as the metrics, and outlives the request log's rows.
#[derive(Serialize, ToSchema)]
#[schema(as = Usage)]
pub(super) struct UsageView {
    /// As the reference system has it.
    total_prompt_tokens: u64,
    /// As the reference system has it.
    total_completion_tokens: u64,
    /// The sums over all pages.
    totals: SumsView,
    /// The latest day first.
    data: Vec<GroupView>,
    /// Number of groups skipped.
    from: u64,
}

/// Usage of one group; fields that were not grouped by are left out.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct GroupView {
    /// UTC; the day of arrival.
    #[serde(skip_serializing_if = "Option::is_none")]
    day: Option<NaiveDate>,
    #[serde(skip_serializing_if = "Option::is_none")]
    api_key_id: Option<i64>,
    /// As in the metrics: at most 128 characters, `unknown` without a comment. Left out for a deleted key.
    #[serde(skip_serializing_if = "Option::is_none")]
    api_key_comment: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<String>,
    /// Empty: no provider was reached.
    #[serde(skip_serializing_if = "Option::is_none")]
    provider: Option<String>,
    /// `completions` or `embeddings`.
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<&'static str>,
    #[serde(flatten)]
    sums: SumsView,
}

/// Requests, tokens and costs in USD.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct SumsView {
    requests: u64,
    completed: u64,
    failed: u64,
    aborted: u64,
    cache_hits: u64,
    prompt_tokens: u64,
    completion_tokens: u64,
    cached_tokens: u64,
    cache_write_tokens: u64,
    reasoning_tokens: u64,
    prompt_cost: f64,
    completion_cost: f64,
    cost: f64,
}

impl From<Sums> for SumsView {
    fn from(sums: Sums) -> Self {
        Self {
            requests: sums.requests(),
            completed: sums.completed,
            failed: sums.failed,
            aborted: sums.aborted,
            cache_hits: sums.cache_hit,
            prompt_tokens: sums.prompt_tokens,
            completion_tokens: sums.completion_tokens,
            cached_tokens: sums.cached_tokens,
            cache_write_tokens: sums.cache_write_tokens,
            reasoning_tokens: sums.reasoning_tokens,
            prompt_cost: sums.prompt_cost,
            completion_cost: sums.completion_cost,
            cost: sums.cost(),
        }
    }
}

/// Sum up usage, by day, key and model unless `groupBy` says otherwise.
#[utoipa::path(
    get, path = "/api/admin/usage", tag = "Request log", params(UsageParams),
    responses(
        (status = 200, description = "The sums", body = UsageView),
        (status = 400, description = "A parameter is wrong", body = ErrorBody),
        (status = 404, description = "There is no such key", body = ErrorBody),
    ),
)]
pub(super) async fn usage(
    State(admin): State<Admin>,
    Params(params): Params<UsageParams>,
) -> AdminResult<Json<UsageView>> {
    in_range("offset", params.offset, 0..=1_000_000_000)?;
    in_range("limit", params.limit, 1..=10_000)?;
    let groups = groups(params.group_by.as_deref().unwrap_or(USUAL_GROUPS))?;
    let api_key_id = match &params.api_key {
        Some(name) => Some(keys::find(admin.db(), name).await.map_err(AdminError::about("API key"))?.id),
        None => None,
    };
    let all = UsageFilter {
        from: params.from.map(|When(at)| at.date_naive()),
        to: params.to.map(|When(at)| at.date_naive()),
        api_key_id,
        model: params.model,
        ..UsageFilter::default()
    };
    let from = params.offset.unwrap_or(0);
    let page = UsageFilter { offset: from, limit: Some(params.limit.unwrap_or(USUAL_LIMIT)), ..all.clone() };
    let sums = async |filter: &UsageFilter, groups: &[UsageGroup]| {
        request_log::usage_by(admin.db(), filter, groups).await.map_err(AdminError::about("usage"))
    };
    let totals = sums(&all, &[]).await?.pop().unwrap_or_default().sums;
    let found = sums(&page, &groups).await?;
    let comments = if groups.contains(&UsageGroup::ApiKey) { comments(&admin) } else { HashMap::new() };
    Ok(Json(UsageView {
        total_prompt_tokens: totals.prompt_tokens,
        total_completion_tokens: totals.completion_tokens,
        totals: totals.into(),
        data: found.into_iter().map(|sum| group(sum, &comments)).collect(),
        from,
    }))
}

fn groups(text: &str) -> AdminResult<Vec<UsageGroup>> {
    let mut groups = Vec::new();
    for name in text.split(',').map(str::trim).filter(|name| !name.is_empty()) {
        let group = match name {
            "day" => UsageGroup::Day,
            "apiKey" => UsageGroup::ApiKey,
            "model" => UsageGroup::Model,
            "provider" => UsageGroup::Provider,
            "kind" => UsageGroup::Table,
            _ => return Err(AdminError::invalid("groupBy", "takes day, apiKey, model, provider and kind")),
        };
        if !groups.contains(&group) {
            groups.push(group);
        }
    }
    Ok(groups)
}

fn comments(admin: &Admin) -> HashMap<i64, String> {
    let snapshot = admin.0.snapshots.load_full();
    snapshot.keys().map(|key| (key.id, key.comment.as_str().to_owned())).collect()
}

fn group(sum: UsageSum, comments: &HashMap<i64, String>) -> GroupView {
    GroupView {
        day: sum.day,
        api_key_id: sum.api_key_id,
        api_key_comment: sum.api_key_id.and_then(|id| comments.get(&id).cloned()),
        model: sum.model,
        provider: sum.provider,
        kind: sum.table.map(|table| table.as_str()),
        sums: sum.sums.into(),
    }
}
