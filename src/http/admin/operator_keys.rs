//! Keys that another system manages by its own names: the part of the API for the Kubernetes operator.

use axum::Json;
use axum::extract::State;
use chrono::Utc;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Admin;
use super::error::{AdminError, AdminResult, ErrorBody};
use super::extract::{Body, Name, Params};
use super::fields::{When, given};
use super::keys::{DEFAULT_RPM, DEFAULT_TPM, KeyParams, KeyView, Shown};
use crate::domain::key::{Limits, Secret, hash_key};
use crate::store::Source;
use crate::store::keys::{self, ApiKeyChange, NewApiKey, Upserted};

const NOUN: &str = "API key";

/// List the keys created by the operator, masked.
#[utoipa::path(
    get, path = "/api/admin/apiKey/managed", tag = "Keys", params(KeyParams),
    responses(
        (status = 200, description = "The keys", body = Vec<KeyView>),
        (status = 400, description = "A parameter is wrong", body = ErrorBody),
    ),
)]
pub(super) async fn list(
    State(admin): State<Admin>,
    Params(params): Params<KeyParams>,
) -> AdminResult<Json<Vec<KeyView>>> {
    params.find(&admin, Some(Source::Operator)).await
}

/// Show the key with this external id whole, revoked or not.
#[utoipa::path(
    get, path = "/api/admin/apiKey/by-external-id/{externalId}", tag = "Keys",
    params(("externalId" = String, Path, description = "Such as `k8s/cluster/namespace/app`, percent-encoded")),
    responses(
        (status = 200, description = "The key", body = KeyView),
        (status = 404, description = "There is no such key", body = ErrorBody),
    ),
)]
pub(super) async fn show(State(admin): State<Admin>, Name(name): Name) -> AdminResult<Json<KeyView>> {
    let key = keys::find_by_external_id(admin.db(), &name).await.map_err(AdminError::about(NOUN))?;
    let secret = key.reveal(admin.cipher()).map_err(AdminError::about(NOUN))?;
    Ok(Json(KeyView::new(key, Shown::Whole(&secret))))
}

/// The key's settings, used when it is created or reactivated.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct EnsuredKey {
    #[schema(max_length = 1000)]
    comment: Option<String>,
    #[schema(value_type = Option<DateTime<Utc>>)]
    expires_at: Option<When>,
    /// Requests per minute. Left out: 50 for a new key, unchanged for a reactivated one; null: unlimited.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<u32>, minimum = 1)]
    rpm_limit: Option<Option<u32>>,
    /// Tokens per minute. Left out: 50,000 for a new key, unchanged for a reactivated one; null: unlimited.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<u32>, minimum = 1)]
    tpm_limit: Option<Option<u32>>,
    /// System names it may call. Left out: all for a new key, unchanged for a reactivated one.
    allowed_models: Option<Vec<String>>,
}

/// The ensured key.
#[derive(Serialize, ToSchema)]
pub(super) struct Ensured {
    #[serde(flatten)]
    key: KeyView,
    /// Whether this request created it.
    created: bool,
}

/// Ensure that a live key with this external id exists: it is created, reactivated if it was revoked or has expired, or
/// left unchanged. Concurrent callers all get the same key. A key that comes back has its former text; to replace a
/// leaked one, set its `externalId` to null when it is revoked.
#[utoipa::path(
    put, path = "/api/admin/apiKey/by-external-id/{externalId}", tag = "Keys", request_body = EnsuredKey,
    params(("externalId" = String, Path, description = "Such as `k8s/cluster/namespace/app`, percent-encoded")),
    responses(
        (status = 200, description = "The key, whole", body = Ensured),
        (status = 400, description = "A field is wrong", body = ErrorBody),
        (status = 404, description = "The external id is not UTF-8", body = ErrorBody),
        (status = 413, description = "The body is too large", body = ErrorBody),
        (status = 415, description = "The body is not JSON", body = ErrorBody),
    ),
)]
pub(super) async fn ensure(
    State(admin): State<Admin>,
    Name(name): Name,
    Body(body): Body<EnsuredKey>,
) -> AdminResult<Json<Ensured>> {
    let expires_at = body.expires_at.map(|When(at)| at);
    let new = NewApiKey {
        comment: body.comment.clone(),
        limits: Limits {
            rpm: body.rpm_limit.unwrap_or(Some(DEFAULT_RPM)),
            tpm: body.tpm_limit.unwrap_or(Some(DEFAULT_TPM)),
        },
        expires_at,
        allowed_models: body.allowed_models.clone(),
        ..NewApiKey::new(Source::Operator)
    };
    let change = ApiKeyChange {
        comment: body.comment.map(Some),
        rpm: body.rpm_limit,
        tpm: body.tpm_limit,
        expires_at: expires_at.map(Some),
        allowed_models: body.allowed_models.map(Some),
        ..ApiKeyChange::default()
    };
    let (key, secret, upserted) =
        keys::upsert_by_external_id(admin.db(), admin.cipher(), &name, &new, &change)
            .await
            .map_err(AdminError::about(NOUN))?;
    // A key that another request has just created may not be in use yet.
    if upserted != Upserted::Existing || !is_in_use(&admin, &secret) {
        admin.changed().await;
    }
    let created = upserted == Upserted::Created;
    Ok(Json(Ensured { key: KeyView::new(key, Shown::Whole(&secret)), created }))
}

fn is_in_use(admin: &Admin, secret: &Secret) -> bool {
    let snapshot = admin.0.snapshots.load();
    snapshot
        .find_key(&hash_key(secret.expose()))
        .is_some_and(|key| !key.revoked && !key.is_expired(Utc::now()))
}
