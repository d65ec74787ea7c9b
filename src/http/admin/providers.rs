//! Providers.

use axum::Json;
use axum::extract::State;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use url::Url;
use utoipa::ToSchema;

use super::Admin;
use super::error::{AdminError, AdminResult, ErrorBody};
use super::extract::{Body, Id};
use super::fields::{Deleted, ProviderType, given, not_empty};
use super::models::ModelView;
use crate::domain::key::Secret;
use crate::store::models::{self, ModelFilter};
use crate::store::providers::{self, NewProvider, ProviderChange, StoredProvider};
use crate::store::{Cipher, Source};

pub(super) const NOUN: &str = "provider";

/// Placeholder for the hidden parts of a secret.
const HIDDEN: &str = "…";
/// Placeholder for the password in a URL.
const HIDDEN_PASSWORD: &str = "***";
/// A key shorter than this is not shown in part: too little of it would be left.
const SHOWN_MIN_CHARS: usize = 16;

/// A provider: an upstream account.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Provider)]
pub(super) struct ProviderView {
    pub(super) id: i64,
    name: String,
    #[serde(rename = "type")]
    #[schema(value_type = ProviderType)]
    kind: String,
    base_url: String,
    /// The first and the last characters; null: there is none.
    api_key: Option<String>,
    /// `api-version` of Azure, `anthropic-version` of Anthropic.
    api_version: Option<String>,
    comment: Option<String>,
    /// Without its password.
    proxy_url: Option<String>,
    proxy_enabled: bool,
    /// Whether to request the usage of streams when the client did not.
    ask_stream_usage: bool,
    /// Maximum number of concurrent calls; null: unlimited.
    max_concurrency: Option<u32>,
    /// Its origin: `manual` or `config`.
    source: String,
    created_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
}

impl ProviderView {
    pub(super) fn new(stored: StoredProvider, cipher: &Cipher) -> Self {
        let api_key = shown_key(&stored, cipher);
        let proxy_url = shown_proxy(&stored, cipher);
        let proxy_enabled = stored.proxy_enabled && proxy_url.is_some();
        Self {
            id: stored.id,
            name: stored.name,
            kind: stored.kind,
            base_url: stored.base_url,
            api_key,
            api_version: stored.api_version,
            comment: stored.comment,
            proxy_url,
            proxy_enabled,
            ask_stream_usage: stored.ask_stream_usage,
            max_concurrency: stored.max_concurrency,
            source: stored.source,
            created_at: stored.created_at,
            updated_at: stored.updated_at,
        }
    }
}

/// A secret under another `ENCRYPTION_KEY` cannot be read, but a list must not fail for it.
fn shown_key(stored: &StoredProvider, cipher: &Cipher) -> Option<String> {
    stored.api_key(cipher).map_or_else(|_| Some(HIDDEN.to_owned()), |key| key.as_ref().map(mask_key))
}

fn shown_proxy(stored: &StoredProvider, cipher: &Cipher) -> Option<String> {
    stored.proxy_url(cipher).map_or_else(|_| Some(HIDDEN.to_owned()), |url| url.as_ref().map(mask_url))
}

fn mask_key(key: &Secret) -> String {
    let characters: Vec<char> = key.expose().chars().collect();
    match characters.as_slice() {
        [first @ .., a, b, c, d] if characters.len() >= SHOWN_MIN_CHARS => {
            let first: String = first.iter().take(3).collect();
            format!("{first}{HIDDEN}{a}{b}{c}{d}")
        }
        _ => HIDDEN.to_owned(),
    }
}

fn mask_url(url: &Secret) -> String {
    match Url::parse(url.expose()) {
        Ok(mut url) if url.password().is_some() => match url.set_password(Some(HIDDEN_PASSWORD)) {
            Ok(()) => url.into(),
            Err(()) => HIDDEN.to_owned(),
        },
        Ok(url) => url.into(),
        Err(_) => HIDDEN.to_owned(),
    }
}

/// A proxy's URL with its password: a masked password stands for the stored one.
fn unmasked(given: String, stored: Option<&Secret>) -> AdminResult<String> {
    let mut url = match Url::parse(&given) {
        Ok(url) if url.password() == Some(HIDDEN_PASSWORD) => url,
        _ => return Ok(given),
    };
    let unknown = || AdminError::invalid("proxyUrl", "must have its password: the one shown is not it");
    let stored = stored.and_then(|stored| Url::parse(stored.expose()).ok());
    // On another host, a typing error would send the password to a stranger.
    let same = |stored: &Url| {
        let who = |url: &Url| {
            (url.scheme().to_owned(), url.host_str().map(str::to_owned), url.username().to_owned())
        };
        who(stored) == who(&url)
    };
    let stored = stored.filter(same).ok_or_else(unknown)?;
    url.set_password(stored.password()).map_err(|()| unknown())?;
    Ok(url.into())
}

/// A proxy that is asked for must exist: otherwise calls would go past it.
fn check_proxy(enabled: Option<bool>, has_url: bool) -> AdminResult<()> {
    if enabled == Some(true) && !has_url {
        return Err(AdminError::invalid("proxyEnabled", "cannot be true without a `proxyUrl`"));
    }
    Ok(())
}

/// List the providers, without their secrets.
#[utoipa::path(
    get, path = "/api/admin/providers", tag = "Providers",
    responses((status = 200, description = "The providers", body = Vec<ProviderView>)),
)]
pub(super) async fn list(State(admin): State<Admin>) -> AdminResult<Json<Vec<ProviderView>>> {
    let found = providers::list(admin.db()).await.map_err(AdminError::about(NOUN))?;
    Ok(Json(found.into_iter().map(|stored| ProviderView::new(stored, admin.cipher())).collect()))
}

/// Show one provider, without its secrets.
#[utoipa::path(
    get, path = "/api/admin/providers/{id}", tag = "Providers",
    params(("id" = i64, Path, description = "Its id")),
    responses(
        (status = 200, description = "The provider", body = ProviderView),
        (status = 404, description = "There is no such provider", body = ErrorBody),
    ),
)]
pub(super) async fn show(State(admin): State<Admin>, Id(id): Id) -> AdminResult<Json<ProviderView>> {
    let stored = providers::get(admin.db(), id).await.map_err(AdminError::about(NOUN))?;
    Ok(Json(ProviderView::new(stored, admin.cipher())))
}

/// A new provider.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = NewProvider)]
pub(super) struct ProviderBody {
    /// Unique; becomes a label of metrics.
    #[schema(min_length = 1, max_length = 128)]
    name: String,
    /// `openai` when left out.
    #[serde(rename = "type")]
    #[schema(default = "openai")]
    kind: Option<ProviderType>,
    /// The base URL as the provider's SDK takes it, without user and password.
    #[schema(min_length = 1, max_length = 2000, example = "https://api.openai.com/v1")]
    base_url: String,
    #[schema(max_length = 4000)]
    api_key: Option<String>,
    /// `api-version` of Azure, `anthropic-version` of Anthropic.
    #[schema(max_length = 128)]
    api_version: Option<String>,
    #[schema(max_length = 1000)]
    comment: Option<String>,
    /// An HTTP proxy for this provider alone; the URL may have user and password.
    #[schema(max_length = 2000, example = "http://user:password@proxy:3128")]
    proxy_url: Option<String>,
    /// Whether to use the proxy; true when left out.
    proxy_enabled: Option<bool>,
    /// Whether to request the usage of streams when the client did not; true when left out.
    #[schema(default = true)]
    ask_stream_usage: Option<bool>,
    /// Maximum number of concurrent calls; unlimited when left out.
    #[schema(minimum = 1)]
    max_concurrency: Option<u32>,
}

/// Add a provider.
#[utoipa::path(
    post, path = "/api/admin/providers", tag = "Providers", request_body = ProviderBody,
    responses(
        (status = 200, description = "The provider, without its secrets", body = ProviderView),
        (status = 400, description = "A field is wrong", body = ErrorBody),
        (status = 409, description = "Another provider has this name", body = ErrorBody),
        (status = 413, description = "The body is too large", body = ErrorBody),
        (status = 415, description = "The body is not JSON", body = ErrorBody),
    ),
)]
pub(super) async fn create(
    State(admin): State<Admin>,
    Body(body): Body<ProviderBody>,
) -> AdminResult<Json<ProviderView>> {
    let proxy_url = not_empty(body.proxy_url).map(|url| unmasked(url, None)).transpose()?.map(Secret::new);
    check_proxy(body.proxy_enabled, proxy_url.is_some())?;
    let kind = body.kind.unwrap_or(ProviderType::OpenAi).into();
    let new = NewProvider {
        api_key: not_empty(body.api_key).map(Secret::new),
        api_version: not_empty(body.api_version),
        comment: body.comment,
        proxy_enabled: body.proxy_enabled.unwrap_or(proxy_url.is_some()),
        proxy_url,
        ask_stream_usage: body.ask_stream_usage.unwrap_or(true),
        max_concurrency: body.max_concurrency,
        ..NewProvider::new(body.name, kind, body.base_url, Source::Manual)
    };
    let stored =
        providers::create(admin.db(), admin.cipher(), &new).await.map_err(AdminError::about(NOUN))?;
    admin.changed().await;
    Ok(Json(ProviderView::new(stored, admin.cipher())))
}

/// Changes of a provider; fields left out stay, null or an empty text clears.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = ProviderChange)]
pub(super) struct ChangeBody {
    #[schema(min_length = 1, max_length = 128)]
    name: Option<String>,
    #[serde(rename = "type")]
    kind: Option<ProviderType>,
    #[schema(min_length = 1, max_length = 2000)]
    base_url: Option<String>,
    /// The masked key of an answer keeps the stored key.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<String>, max_length = 4000)]
    api_key: Option<Option<String>>,
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<String>, max_length = 128)]
    api_version: Option<Option<String>>,
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<String>, max_length = 1000)]
    comment: Option<Option<String>>,
    /// The masked URL of an answer keeps the stored URL. A changed URL with the masked password keeps the stored
    /// password, if scheme, host and user are the same.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<String>, max_length = 2000)]
    proxy_url: Option<Option<String>>,
    /// Left out: true with the provider's first `proxyUrl`, else unchanged.
    proxy_enabled: Option<bool>,
    ask_stream_usage: Option<bool>,
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<u32>, minimum = 1)]
    max_concurrency: Option<Option<u32>>,
}

/// Change a provider. Takes effect with the next request.
#[utoipa::path(
    put, path = "/api/admin/providers/{id}", tag = "Providers", request_body = ChangeBody,
    params(("id" = i64, Path, description = "Its id")),
    responses(
        (status = 200, description = "The provider, without its secrets", body = ProviderView),
        (status = 400, description = "A field is wrong", body = ErrorBody),
        (status = 404, description = "There is no such provider", body = ErrorBody),
        (status = 409, description = "Another provider has this name", body = ErrorBody),
        (status = 413, description = "The body is too large", body = ErrorBody),
        (status = 415, description = "The body is not JSON", body = ErrorBody),
    ),
)]
pub(super) async fn change(
    State(admin): State<Admin>,
    Id(id): Id,
    Body(body): Body<ChangeBody>,
) -> AdminResult<Json<ProviderView>> {
    let stored = providers::get(admin.db(), id).await.map_err(AdminError::about(NOUN))?;
    let shown = (shown_key(&stored, admin.cipher()), shown_proxy(&stored, admin.cipher()));
    let proxy_url = match body.proxy_url {
        Some(Some(url)) if Some(&url) != shown.1.as_ref() => {
            Some(Some(unmasked(url, stored.proxy_url(admin.cipher()).ok().flatten().as_ref())?))
        }
        given => given,
    };
    let is_first_proxy = shown.1.is_none() && matches!(&proxy_url, Some(Some(url)) if !url.is_empty());
    let secret = |given: Option<Option<String>>, shown: Option<String>| {
        given.filter(|given| given.is_none() || *given != shown).map(|text| not_empty(text).map(Secret::new))
    };
    let proxy_url = secret(proxy_url, shown.1.clone());
    check_proxy(body.proxy_enabled, proxy_url.as_ref().map_or(shown.1.is_some(), Option::is_some))?;
    let change = ProviderChange {
        name: body.name,
        kind: body.kind.map(Into::into),
        base_url: body.base_url,
        api_key: secret(body.api_key, shown.0),
        api_version: body.api_version.map(not_empty),
        comment: body.comment,
        proxy_url,
        proxy_enabled: body.proxy_enabled.or(is_first_proxy.then_some(true)),
        ask_stream_usage: body.ask_stream_usage,
        max_concurrency: body.max_concurrency,
    };
    let stored =
        providers::update(admin.db(), admin.cipher(), id, change).await.map_err(AdminError::about(NOUN))?;
    admin.changed().await;
    Ok(Json(ProviderView::new(stored, admin.cipher())))
}

/// Delete a provider and its models. The request log keeps their names.
#[utoipa::path(
    delete, path = "/api/admin/providers/{id}", tag = "Providers",
    params(("id" = i64, Path, description = "Its id")),
    responses(
        (status = 200, description = "Deleted", body = Deleted),
        (status = 404, description = "There is no such provider", body = ErrorBody),
    ),
)]
pub(super) async fn delete(State(admin): State<Admin>, Id(id): Id) -> AdminResult<Json<Deleted>> {
    providers::delete(admin.db(), id).await.map_err(AdminError::about(NOUN))?;
    admin.changed().await;
    Ok(Json(Deleted::new()))
}

/// List the models offered through a provider.
#[utoipa::path(
    get, path = "/api/admin/providers/{id}/models", tag = "Providers",
    params(("id" = i64, Path, description = "Its id")),
    responses(
        (status = 200, description = "The models", body = Vec<ModelView>),
        (status = 404, description = "There is no such provider", body = ErrorBody),
    ),
)]
pub(super) async fn models(State(admin): State<Admin>, Id(id): Id) -> AdminResult<Json<Vec<ModelView>>> {
    providers::get(admin.db(), id).await.map_err(AdminError::about(NOUN))?;
    let filter = ModelFilter { provider_id: Some(id), ..ModelFilter::default() };
    let found = models::list(admin.db(), &filter).await.map_err(AdminError::about(NOUN))?;
    Ok(Json(found.into_iter().map(ModelView::from).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn little_of_a_secret_is_shown() {
        let key = |text: &str| mask_key(&Secret::new(text));
        assert_eq!(key("sk-0123456789abcdef"), "sk-…cdef");
        assert_eq!(key("short-key"), "…");
        assert_eq!(key("ключ-ключ-ключ-ключ"), "клю…ключ");
        let url = |text: &str| mask_url(&Secret::new(text));
        assert_eq!(url("http://user:hush@proxy:3128"), "http://user:***@proxy:3128/");
        assert_eq!(url("http://proxy:3128/"), "http://proxy:3128/");
        assert_eq!(url("nonsense hush"), "…");
    }
}
