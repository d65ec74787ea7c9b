//! API keys.

use axum::Json;
use axum::extract::State;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::Admin;
use super::error::{AdminError, AdminResult, ErrorBody};
use super::extract::{Body, Name, Params};
use super::fields::{When, given, in_range};
use crate::domain::key::{ApiKey, Limits, Secret};
use crate::domain::label::LabelValue;
use crate::limit;
use crate::store::keys::{self, ApiKeyChange, KeyFilter, NewApiKey, StoredKey};
use crate::store::{Source, StoreResult};

/// Default limits of a new key: the reference system's.
pub(super) const DEFAULT_RPM: u32 = 50;
pub(super) const DEFAULT_TPM: u32 = 50_000;

const NOUN: &str = "API key";

/// An API key, with its limits and models.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = ApiKey)]
pub(super) struct KeyView {
    id: i64,
    /// The whole key when it is created or shown alone; elsewhere its first characters and `…`.
    key: String,
    comment: Option<String>,
    /// Requests per minute; null: unlimited.
    rpm_limit: Option<u32>,
    /// Tokens per minute, prompt and completion together; null: unlimited.
    tpm_limit: Option<u32>,
    /// System names it may call; null: all.
    allowed_models: Option<Vec<String>>,
    expires_at: Option<DateTime<Utc>>,
    revoked: bool,
    /// Its name in another system.
    external_id: Option<String>,
    /// Its origin: `manual`, `operator` or `config`.
    source: String,
    /// When it was last used, to the minute.
    last_seen: Option<DateTime<Utc>>,
    created_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
}

impl KeyView {
    pub(super) fn new(stored: StoredKey, shown: Shown<'_>) -> Self {
        let key = match shown {
            Shown::Whole(secret) => secret.expose().to_owned(),
            // A caller that addresses a key by its text knows it already.
            Shown::AsNamed(name) if !name.parse().is_ok_and(|id: i64| id == stored.id) => name.to_owned(),
            Shown::AsNamed(_) | Shown::Masked => format!("{}…", stored.prefix),
        };
        Self {
            id: stored.id,
            key,
            comment: stored.comment,
            rpm_limit: stored.limits.rpm,
            tpm_limit: stored.limits.tpm,
            allowed_models: stored.allowed_models,
            expires_at: stored.expires_at,
            revoked: stored.revoked,
            external_id: stored.external_id,
            source: stored.source,
            last_seen: stored.last_seen_at,
            created_at: stored.created_at,
            updated_at: stored.updated_at,
        }
    }
}

/// How much of a key an answer shows.
pub(super) enum Shown<'a> {
    Whole(&'a Secret),
    /// The name in the path, if it is the key.
    AsNamed(&'a str),
    Masked,
}

/// Filters of the list of keys.
#[derive(Deserialize, IntoParams)]
#[serde(rename_all = "camelCase")]
#[into_params(parameter_in = Query)]
pub(super) struct KeyParams {
    /// Include revoked keys.
    #[serde(default)]
    #[param(required = false)]
    include_revoked: bool,
    /// Number of keys to skip.
    #[serde(default)]
    #[param(required = false, maximum = 1_000_000_000)]
    offset: u64,
    /// Maximum number of keys; all when left out.
    #[param(minimum = 1, maximum = 100_000)]
    limit: Option<u64>,
}

impl KeyParams {
    pub(super) async fn find(self, admin: &Admin, source: Option<Source>) -> AdminResult<Json<Vec<KeyView>>> {
        in_range("offset", Some(self.offset), 0..=1_000_000_000)?;
        in_range("limit", self.limit, 1..=100_000)?;
        let filter = KeyFilter {
            include_revoked: self.include_revoked,
            source,
            offset: self.offset,
            limit: self.limit,
        };
        let found = keys::list(admin.db(), &filter).await.map_err(AdminError::about(NOUN))?;
        Ok(Json(found.into_iter().map(|key| KeyView::new(key, Shown::Masked)).collect()))
    }
}

/// List the keys, masked, in order of creation.
#[utoipa::path(
    get, path = "/api/admin/apiKey", tag = "Keys", params(KeyParams),
    responses(
        (status = 200, description = "The keys", body = Vec<KeyView>),
        (status = 400, description = "A parameter is wrong", body = ErrorBody),
    ),
)]
pub(super) async fn list(
    State(admin): State<Admin>,
    Params(params): Params<KeyParams>,
) -> AdminResult<Json<Vec<KeyView>>> {
    params.find(&admin, None).await
}

/// A new key.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct NewKey {
    /// The key itself, at least 16 printable ASCII characters; random when left out.
    #[schema(min_length = 16)]
    key: Option<String>,
    /// Its name in lists, logs and metrics.
    #[schema(max_length = 1000)]
    comment: Option<String>,
    #[schema(value_type = Option<DateTime<Utc>>)]
    expires_at: Option<When>,
    /// Requests per minute: 50 when left out, unlimited when null.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<u32>, minimum = 1, default = 50)]
    rpm_limit: Option<Option<u32>>,
    /// Tokens per minute: 50,000 when left out, unlimited when null.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<u32>, minimum = 1, default = 50_000)]
    tpm_limit: Option<Option<u32>>,
    /// System names it may call; all when left out or null.
    allowed_models: Option<Vec<String>>,
    /// Its name in another system; unique.
    #[schema(min_length = 1, max_length = 255)]
    external_id: Option<String>,
}

/// Create a key. The answer shows it whole.
#[utoipa::path(
    post, path = "/api/admin/apiKey", tag = "Keys", request_body = NewKey,
    responses(
        (status = 200, description = "The key", body = KeyView),
        (status = 400, description = "A field is wrong", body = ErrorBody),
        (status = 409, description = "The key or the external id exists already", body = ErrorBody),
        (status = 413, description = "The body is too large", body = ErrorBody),
        (status = 415, description = "The body is not JSON", body = ErrorBody),
    ),
)]
pub(super) async fn create(
    State(admin): State<Admin>,
    Body(body): Body<NewKey>,
) -> AdminResult<Json<KeyView>> {
    let new = NewApiKey {
        key: body.key.map(Secret::new),
        comment: body.comment,
        limits: Limits {
            rpm: body.rpm_limit.unwrap_or(Some(DEFAULT_RPM)),
            tpm: body.tpm_limit.unwrap_or(Some(DEFAULT_TPM)),
        },
        expires_at: body.expires_at.map(|When(at)| at),
        allowed_models: body.allowed_models,
        external_id: body.external_id,
        source: Source::Manual,
    };
    let (key, secret) =
        keys::create(admin.db(), admin.cipher(), &new).await.map_err(AdminError::about(NOUN))?;
    admin.changed().await;
    Ok(Json(KeyView::new(key, Shown::Whole(&secret))))
}

async fn find(admin: &Admin, name: &str) -> AdminResult<StoredKey> {
    keys::find(admin.db(), name).await.map_err(AdminError::about(NOUN))
}

/// Show one key whole.
#[utoipa::path(
    get, path = "/api/admin/apiKey/{key}", tag = "Keys",
    params(("key" = String, Path, description = "The key itself, or its id")),
    responses(
        (status = 200, description = "The key", body = KeyView),
        (status = 404, description = "There is no such key", body = ErrorBody),
    ),
)]
pub(super) async fn show(State(admin): State<Admin>, Name(name): Name) -> AdminResult<Json<KeyView>> {
    let key = find(&admin, &name).await?;
    let secret = key.reveal(admin.cipher()).map_err(AdminError::about(NOUN))?;
    Ok(Json(KeyView::new(key, Shown::Whole(&secret))))
}

/// Changes of a key; fields left out stay, null clears.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct KeyChange {
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<String>, max_length = 1000)]
    comment: Option<Option<String>>,
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<DateTime<Utc>>)]
    expires_at: Option<Option<When>>,
    /// Requests per minute; null: unlimited.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<u32>, minimum = 1)]
    rpm_limit: Option<Option<u32>>,
    /// Tokens per minute; null: unlimited.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<u32>, minimum = 1)]
    tpm_limit: Option<Option<u32>>,
    /// System names it may call; null: all.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<Vec<String>>)]
    allowed_models: Option<Option<Vec<String>>>,
    /// Null frees the external id: the next `PUT` by it creates another key. To be done with a leaked one, which would
    /// otherwise come back into use.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<String>, max_length = 255)]
    external_id: Option<Option<String>>,
    /// `false` puts it back into use.
    revoked: Option<bool>,
}

/// Change a key. Takes effect with the next request.
#[utoipa::path(
    put, path = "/api/admin/apiKey/{key}", tag = "Keys", request_body = KeyChange,
    params(("key" = String, Path, description = "The key itself, or its id")),
    responses(
        (status = 200, description = "The key, masked", body = KeyView),
        (status = 400, description = "A field is wrong", body = ErrorBody),
        (status = 404, description = "There is no such key", body = ErrorBody),
        (status = 409, description = "Another key has this external id", body = ErrorBody),
        (status = 413, description = "The body is too large", body = ErrorBody),
        (status = 415, description = "The body is not JSON", body = ErrorBody),
    ),
)]
pub(super) async fn change(
    State(admin): State<Admin>,
    Name(name): Name,
    Body(body): Body<KeyChange>,
) -> AdminResult<Json<KeyView>> {
    let change = ApiKeyChange {
        comment: body.comment,
        rpm: body.rpm_limit,
        tpm: body.tpm_limit,
        expires_at: body.expires_at.map(|at| at.map(|When(at)| at)),
        allowed_models: body.allowed_models,
        external_id: body.external_id,
        revoked: body.revoked,
    };
    apply(&admin, &name, change).await
}

async fn apply(admin: &Admin, name: &str, change: ApiKeyChange) -> AdminResult<Json<KeyView>> {
    let found = find(admin, name).await?;
    changed(admin, name, keys::update(admin.db(), found.id, change).await).await
}

async fn changed(admin: &Admin, name: &str, key: StoreResult<StoredKey>) -> AdminResult<Json<KeyView>> {
    let key = key.map_err(AdminError::about(NOUN))?;
    admin.changed().await;
    Ok(Json(KeyView::new(key, Shown::AsNamed(name))))
}

/// Revoke a key. Lists that include revoked keys still show it.
#[utoipa::path(
    delete, path = "/api/admin/apiKey/{key}", tag = "Keys",
    params(("key" = String, Path, description = "The key itself, or its id")),
    responses(
        (status = 200, description = "The key, masked and revoked", body = KeyView),
        (status = 404, description = "There is no such key", body = ErrorBody),
    ),
)]
pub(super) async fn revoke(State(admin): State<Admin>, Name(name): Name) -> AdminResult<Json<KeyView>> {
    let found = find(&admin, &name).await?;
    changed(&admin, &name, keys::revoke(admin.db(), found.id).await).await
}

/// New limits; a limit left out stays, null is unlimited.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct LimitChange {
    /// Requests per minute.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<u32>, minimum = 1)]
    rpm_limit: Option<Option<u32>>,
    /// Tokens per minute.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<u32>, minimum = 1)]
    tpm_limit: Option<Option<u32>>,
}

/// Change a key's limits. Takes effect with the next request; a bucket stays as full as it was, and a debt as large.
#[utoipa::path(
    put, path = "/api/admin/apiKey/{key}/ratelimit", tag = "Keys", request_body = LimitChange,
    params(("key" = String, Path, description = "The key itself, or its id")),
    responses(
        (status = 200, description = "The key, masked", body = KeyView),
        (status = 400, description = "A field is wrong", body = ErrorBody),
        (status = 404, description = "There is no such key", body = ErrorBody),
        (status = 413, description = "The body is too large", body = ErrorBody),
        (status = 415, description = "The body is not JSON", body = ErrorBody),
    ),
)]
pub(super) async fn change_limits(
    State(admin): State<Admin>,
    Name(name): Name,
    Body(body): Body<LimitChange>,
) -> AdminResult<Json<KeyView>> {
    let change = ApiKeyChange { rpm: body.rpm_limit, tpm: body.tpm_limit, ..ApiKeyChange::default() };
    apply(&admin, &name, change).await
}

/// A key's limits and its usage of them.
#[derive(Serialize, ToSchema)]
pub(super) struct KeyUsage {
    key: String,
    limits: UsageLimits,
    usage: UsageNow,
}

/// Limits per minute; null: unlimited.
#[derive(Serialize, ToSchema)]
struct UsageLimits {
    rpm: Option<u32>,
    tpm: Option<u32>,
}

/// Current usage; null: unlimited, so nothing is counted.
#[derive(Serialize, ToSchema)]
struct UsageNow {
    rpm: Option<BucketUsage>,
    tpm: Option<BucketUsage>,
}

/// The state of one budget.
#[derive(Serialize, ToSchema)]
struct BucketUsage {
    /// Taken and not yet refilled. May exceed the limit: a burst may take several minutes' worth, and a large answer
    /// goes into debt.
    current: u64,
    /// Per minute.
    limit: u32,
    /// Available at once, at most the limit: what a burst may take beyond it is not shown.
    remaining: u64,
}

impl From<limit::Usage> for BucketUsage {
    fn from(usage: limit::Usage) -> Self {
        Self { current: usage.current, limit: usage.limit, remaining: usage.remaining }
    }
}

/// Show how much of its limits a key has used.
#[utoipa::path(
    get, path = "/api/admin/apiKey/{key}/usage", tag = "Keys",
    params(("key" = String, Path, description = "The key itself, or its id")),
    responses(
        (status = 200, description = "The limits and their usage", body = KeyUsage),
        (status = 404, description = "There is no such key", body = ErrorBody),
    ),
)]
pub(super) async fn usage(State(admin): State<Admin>, Name(name): Name) -> AdminResult<Json<KeyUsage>> {
    let stored = find(&admin, &name).await?;
    let key = ApiKey {
        id: stored.id,
        comment: LabelValue::new(stored.comment.as_deref().unwrap_or_default()),
        limits: stored.limits,
        expires_at: stored.expires_at,
        revoked: stored.revoked,
        allowed_models: None,
    };
    let used = admin.0.limits.limiter.usage(&key).await;
    let view = KeyView::new(stored, Shown::AsNamed(&name));
    Ok(Json(KeyUsage {
        key: view.key,
        limits: UsageLimits { rpm: key.limits.rpm, tpm: key.limits.tpm },
        usage: UsageNow { rpm: used.rpm.map(BucketUsage::from), tpm: used.tpm.map(BucketUsage::from) },
    }))
}
