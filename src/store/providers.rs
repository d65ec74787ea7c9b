//! Providers: upstream accounts.

use chrono::{DateTime, Utc};
use entity::models;
use entity::providers::{ActiveModel, Column as Field, Entity, Model};
use sea_orm::ActiveValue::{NotSet, Set};
use sea_orm::{
    ActiveModelTrait, ColumnTrait, ConnectionTrait, EntityTrait, QueryFilter, QueryOrder, TransactionTrait,
};

use super::crypt::{Cipher, Column};
use super::error::{StoreError, StoreResult};
use super::{Source, check, now};
use crate::domain::key::Secret;
use crate::domain::label::{LabelValue, ModelType};
use crate::domain::provider::{Provider, ProviderKind, ProxyUrl};

/// The longest URL, key and API version, in characters.
const URL_MAX: usize = 2000;
const CREDENTIAL_MAX: usize = 4000;
const VERSION_MAX: usize = 128;

/// A provider to be made.
#[derive(Debug, Clone)]
pub struct NewProvider {
    /// Unique among the living; becomes a label.
    pub name: String,
    pub kind: ProviderKind,
    /// The base URL that the provider's SDK would take.
    pub base_url: String,
    pub api_key: Option<Secret>,
    pub api_version: Option<String>,
    pub comment: Option<String>,
    /// `http://`; may carry user and password.
    pub proxy_url: Option<Secret>,
    /// Whether `proxy_url` is used.
    pub proxy_enabled: bool,
    /// Ask for usage on streams when the client did not.
    pub ask_stream_usage: bool,
    /// Calls at one time; `None`: unlimited.
    pub max_concurrency: Option<u32>,
    pub source: Source,
}

impl NewProvider {
    /// A provider with the defaults.
    pub fn new(
        name: impl Into<String>,
        kind: ProviderKind,
        base_url: impl Into<String>,
        source: Source,
    ) -> Self {
        Self {
            name: name.into(),
            kind,
            base_url: base_url.into(),
            api_key: None,
            api_version: None,
            comment: None,
            proxy_url: None,
            proxy_enabled: false,
            ask_stream_usage: true,
            max_concurrency: None,
            source,
        }
    }
}

/// Changes to a provider; `None` leaves a value as it is, the inner `None` clears it.
#[derive(Debug, Clone, Default)]
pub struct ProviderChange {
    pub name: Option<String>,
    pub kind: Option<ProviderKind>,
    pub base_url: Option<String>,
    pub api_key: Option<Option<Secret>>,
    pub api_version: Option<Option<String>>,
    pub comment: Option<Option<String>>,
    pub proxy_url: Option<Option<Secret>>,
    pub proxy_enabled: Option<bool>,
    pub ask_stream_usage: Option<bool>,
    pub max_concurrency: Option<Option<u32>>,
}

/// A provider as it is stored.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredProvider {
    pub id: i64,
    pub name: String,
    /// A [`ProviderKind`]; text, because a newer version may know more.
    pub kind: String,
    pub base_url: String,
    pub api_version: Option<String>,
    pub comment: Option<String>,
    pub proxy_enabled: bool,
    pub ask_stream_usage: bool,
    pub max_concurrency: Option<u32>,
    /// A [`Source`] as text.
    pub source: String,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
    api_key_encrypted: Option<String>,
    proxy_url_encrypted: Option<String>,
}

impl StoredProvider {
    /// The account's key.
    ///
    /// # Errors
    /// [`StoreError::Secret`] when the cipher is not the one it was encrypted by.
    pub fn api_key(&self, cipher: &Cipher) -> StoreResult<Option<Secret>> {
        open(cipher, Column::ProviderKey, self.api_key_encrypted.as_deref())
    }

    /// The proxy's URL, whether or not it is enabled.
    ///
    /// # Errors
    /// As [`api_key`](Self::api_key).
    pub fn proxy_url(&self, cipher: &Cipher) -> StoreResult<Option<Secret>> {
        open(cipher, Column::ProviderProxy, self.proxy_url_encrypted.as_deref())
    }

    /// The provider as the request path has it.
    ///
    /// # Errors
    /// [`StoreError::Secret`]; [`StoreError::Invalid`] for values that only a manual edit of the database or a newer
    /// version writes.
    pub fn to_domain(&self, cipher: &Cipher) -> StoreResult<Provider> {
        let kind = ProviderKind::parse(&self.kind)
            .ok_or_else(|| StoreError::invalid("type", format!("unknown: {}", self.kind)))?;
        let proxy = match self.proxy_url(cipher)?.filter(|_| self.proxy_enabled) {
            Some(url) => Some(ProxyUrl(check::proxy_url("proxy_url", url.expose())?)),
            None => None,
        };
        Ok(Provider {
            id: self.id,
            name: LabelValue::new(&self.name),
            kind,
            base_url: check::http_url("base_url", &self.base_url)?,
            api_key: self.api_key(cipher)?,
            api_version: self.api_version.clone(),
            proxy,
            ask_stream_usage: self.ask_stream_usage,
            max_concurrency: self.max_concurrency,
        })
    }
}

fn open(cipher: &Cipher, column: Column, stored: Option<&str>) -> StoreResult<Option<Secret>> {
    stored.map(|stored| cipher.decrypt(column, stored)).transpose()
}

impl From<Model> for StoredProvider {
    fn from(row: Model) -> Self {
        Self {
            id: row.id,
            name: row.name,
            kind: row.kind,
            base_url: row.base_url,
            api_version: row.api_version,
            comment: row.comment,
            proxy_enabled: row.proxy_enabled,
            ask_stream_usage: row.ask_stream_usage,
            max_concurrency: row.max_concurrency.map(check::count),
            source: row.source,
            created_at: row.created_at,
            updated_at: row.updated_at,
            api_key_encrypted: row.api_key_encrypted,
            proxy_url_encrypted: row.proxy_url_encrypted,
        }
    }
}

/// Makes a provider.
///
/// # Errors
/// [`StoreError::Duplicate`] of `name`, [`StoreError::Invalid`].
pub async fn create(
    db: &impl ConnectionTrait,
    cipher: &Cipher,
    new: &NewProvider,
) -> StoreResult<StoredProvider> {
    Ok(row_of(cipher, new)?.insert(db).await?.into())
}

/// The living providers in the order of their ids.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn list(db: &impl ConnectionTrait) -> StoreResult<Vec<StoredProvider>> {
    let rows = Entity::find().filter(Field::DeletedAt.is_null()).order_by_asc(Field::Id).all(db).await?;
    Ok(rows.into_iter().map(StoredProvider::from).collect())
}

/// The provider with this id.
///
/// # Errors
/// [`StoreError::NotFound`].
pub async fn get(db: &impl ConnectionTrait, id: i64) -> StoreResult<StoredProvider> {
    let row = Entity::find_by_id(id).filter(Field::DeletedAt.is_null()).one(db).await?;
    row.map(StoredProvider::from).ok_or(StoreError::NotFound)
}

/// The living provider with this name.
///
/// # Errors
/// [`StoreError::NotFound`].
pub async fn find_by_name(db: &impl ConnectionTrait, name: &str) -> StoreResult<StoredProvider> {
    let row = Entity::find().filter(Field::Name.eq(name)).filter(Field::DeletedAt.is_null()).one(db).await?;
    row.map(StoredProvider::from).ok_or(StoreError::NotFound)
}

/// Changes a provider.
///
/// # Errors
/// [`StoreError::NotFound`], [`StoreError::Duplicate`] of `name`, [`StoreError::Invalid`].
pub async fn update(
    db: &impl ConnectionTrait,
    cipher: &Cipher,
    id: i64,
    change: ProviderChange,
) -> StoreResult<StoredProvider> {
    let ProviderChange {
        name,
        kind,
        base_url,
        api_key,
        api_version,
        comment,
        proxy_url,
        proxy_enabled,
        ask_stream_usage,
        max_concurrency,
    } = change;
    if let Some(name) = &name {
        check::name("name", name)?;
    }
    if let Some(base_url) = &base_url {
        check_base_url(base_url)?;
    }
    check_credential(api_key.as_ref().and_then(Option::as_ref))?;
    check_version(api_version.as_ref().and_then(Option::as_deref))?;
    check::comment(comment.as_ref().and_then(Option::as_deref))?;
    check::lets_something_through("max_concurrency", max_concurrency.flatten())?;
    if let Some(kind) = kind {
        check_kind(db, id, kind).await?;
    }
    let row = ActiveModel {
        name: name.map_or(NotSet, Set),
        kind: kind.map_or(NotSet, |kind| Set(kind.as_str().to_owned())),
        base_url: base_url.map_or(NotSet, Set),
        api_key_encrypted: match api_key {
            Some(key) => Set(seal(cipher, Column::ProviderKey, key.as_ref())?),
            None => NotSet,
        },
        api_version: api_version.map_or(NotSet, Set),
        comment: comment.map_or(NotSet, Set),
        proxy_url_encrypted: match proxy_url {
            Some(url) => Set(seal_proxy(cipher, url.as_ref())?),
            None => NotSet,
        },
        proxy_enabled: proxy_enabled.map_or(NotSet, Set),
        ask_stream_usage: ask_stream_usage.map_or(NotSet, Set),
        max_concurrency: max_concurrency.map_or(NotSet, |limit| Set(limit.map(i64::from))),
        updated_at: Set(now()),
        ..Default::default()
    };
    let updated = Entity::update_many()
        .set(row)
        .filter(Field::Id.eq(id))
        .filter(Field::DeletedAt.is_null())
        .exec(db)
        .await?;
    if updated.rows_affected == 0 {
        return Err(StoreError::NotFound);
    }
    get(db, id).await
}

/// Deletes a provider and its models; only the rows stay, hidden, because the request log refers to them.
///
/// # Errors
/// [`StoreError::NotFound`].
pub async fn delete(db: &(impl ConnectionTrait + TransactionTrait), id: i64) -> StoreResult<()> {
    use sea_orm::TransactionSession as _;
    let now = now();
    let transaction = db.begin().await?;
    let deleted = Entity::update_many()
        .set(ActiveModel { deleted_at: Set(Some(now)), updated_at: Set(now), ..Default::default() })
        .filter(Field::Id.eq(id))
        .filter(Field::DeletedAt.is_null())
        .exec(&transaction)
        .await?;
    if deleted.rows_affected == 0 {
        return Err(StoreError::NotFound);
    }
    models::Entity::update_many()
        .set(models::ActiveModel { deleted_at: Set(Some(now)), updated_at: Set(now), ..Default::default() })
        .filter(models::Column::ProviderId.eq(id))
        .filter(models::Column::DeletedAt.is_null())
        .exec(&transaction)
        .await?;
    transaction.commit().await?;
    Ok(())
}

/// The row of a new provider, complete.
pub(super) fn row_of(cipher: &Cipher, new: &NewProvider) -> StoreResult<ActiveModel> {
    let now = now();
    Ok(ActiveModel {
        api_key_encrypted: Set(seal(cipher, Column::ProviderKey, new.api_key.as_ref())?),
        proxy_url_encrypted: Set(seal_proxy(cipher, new.proxy_url.as_ref())?),
        created_at: Set(now),
        updated_at: Set(now),
        ..settings(new)?
    })
}

/// The columns that an administrator sets, except the secrets.
pub(super) fn settings(new: &NewProvider) -> StoreResult<ActiveModel> {
    check::name("name", &new.name)?;
    check_base_url(&new.base_url)?;
    check_credential(new.api_key.as_ref())?;
    check_version(new.api_version.as_deref())?;
    check::comment(new.comment.as_deref())?;
    check::lets_something_through("max_concurrency", new.max_concurrency)?;
    Ok(ActiveModel {
        name: Set(new.name.clone()),
        kind: Set(new.kind.as_str().to_owned()),
        base_url: Set(new.base_url.clone()),
        api_version: Set(new.api_version.clone()),
        comment: Set(new.comment.clone()),
        proxy_enabled: Set(new.proxy_enabled),
        ask_stream_usage: Set(new.ask_stream_usage),
        max_concurrency: Set(new.max_concurrency.map(i64::from)),
        source: Set(new.source.as_str().to_owned()),
        ..Default::default()
    })
}

/// A provider that becomes Anthropic's must not have models that make embeddings.
pub(super) async fn check_kind(db: &impl ConnectionTrait, id: i64, kind: ProviderKind) -> StoreResult<()> {
    if kind != ProviderKind::Anthropic {
        return Ok(());
    }
    let embeddings = models::Entity::find()
        .filter(models::Column::ProviderId.eq(id))
        .filter(models::Column::ModelType.eq(ModelType::Embedding.as_str()))
        .filter(models::Column::DeletedAt.is_null())
        .one(db)
        .await?;
    match embeddings {
        Some(model) => {
            let message =
                format!("Anthropic offers no embeddings, but there is the model {:?}", model.system_name);
            Err(StoreError::invalid("type", message))
        }
        None => Ok(()),
    }
}

fn check_base_url(base_url: &str) -> StoreResult<()> {
    check::length("base_url", Some(base_url), URL_MAX)?;
    check::http_url("base_url", base_url).map(drop)
}

/// A provider's key must fit into a header.
fn check_credential(api_key: Option<&Secret>) -> StoreResult<()> {
    let api_key = api_key.map(Secret::expose);
    check::length("api_key", api_key, CREDENTIAL_MAX)?;
    check::header_text("api_key", api_key)
}

fn check_version(api_version: Option<&str>) -> StoreResult<()> {
    check::length("api_version", api_version, VERSION_MAX)?;
    check::header_text("api_version", api_version)
}

pub(super) fn seal(cipher: &Cipher, column: Column, secret: Option<&Secret>) -> StoreResult<Option<String>> {
    secret.map(|secret| cipher.encrypt(column, secret)).transpose()
}

pub(super) fn seal_proxy(cipher: &Cipher, url: Option<&Secret>) -> StoreResult<Option<String>> {
    if let Some(url) = url {
        check::length("proxy_url", Some(url.expose()), URL_MAX)?;
        check::proxy_url("proxy_url", url.expose())?;
    }
    seal(cipher, Column::ProviderProxy, url)
}
