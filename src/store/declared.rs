//! The settings file's `[[providers]]`, `[[models]]` and `[[api_keys]]`, brought into the database at start-up.
//!
//! Applying the same file twice changes nothing; a changed value is updated in place. Entries that the file no longer
//! names are left alone: an administrator may have taken them over. A key that an administrator revoked or deleted
//! stays so, whatever the file says: a leaked key must not come back with the next restart.

use std::collections::HashSet;

use entity::{api_keys, models, providers};
use sea_orm::ActiveValue::Set;
use sea_orm::{
    ActiveModelTrait, ActiveValue, ColumnTrait, ConnectionTrait, DatabaseConnection, EntityTrait, Iterable,
    ModelTrait, QueryFilter,
};

use super::crypt::{Cipher, Column};
use super::error::{StoreError, StoreResult};
use super::keys::NewApiKey;
use super::models::NewModel;
use super::providers::NewProvider;
use super::{Source, begin_write, migrate, now};
use crate::domain::key::{Secret, hash_key};

/// The declarations of a settings file. The `source` of each entry is set to `config`.
#[derive(Debug, Clone, Default)]
pub struct Declared {
    /// Identified by name.
    pub providers: Vec<NewProvider>,
    /// Identified by provider and system name.
    pub models: Vec<DeclaredModel>,
    /// Identified by the key itself, which every entry must have.
    pub api_keys: Vec<NewApiKey>,
}

/// A model and the name of its provider, which is declared in the file or already in the database.
#[derive(Debug, Clone)]
pub struct DeclaredModel {
    pub provider: String,
    pub model: NewModel,
}

/// The changes that [`apply`] made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Applied {
    pub created: u32,
    pub updated: u32,
    pub unchanged: u32,
    /// Prefixes of declared keys that an administrator revoked or deleted, and that stay so.
    pub revoked_keys: Vec<String>,
}

/// Brings the file's declarations into the database, all or nothing. Two replicas starting at once wait for each other.
///
/// # Errors
/// [`StoreError::Invalid`] whose message names the entry; [`StoreError::Duplicate`] when an external id belongs to
/// another key.
pub async fn apply(db: &DatabaseConnection, cipher: &Cipher, declared: &Declared) -> StoreResult<Applied> {
    check_unique(declared)?;
    let mut done = Applied::default();
    let transaction = begin_write(db).await?;
    migrate::advisory_lock(&transaction, migrate::LOCK_DECLARE).await?;
    for new in &declared.providers {
        let entry = || format!("provider {:?}", new.name);
        apply_provider(&transaction, cipher, new, &mut done).await.map_err(|error| named(error, entry))?;
    }
    for new in &declared.models {
        let entry = || format!("model {:?} of provider {:?}", new.model.system_name, new.provider);
        apply_model(&transaction, new, &mut done).await.map_err(|error| named(error, entry))?;
    }
    for (index, new) in declared.api_keys.iter().enumerate() {
        let entry = || match &new.comment {
            Some(comment) => format!("api key {comment:?}"),
            None => format!("api key number {}", index + 1),
        };
        apply_key(&transaction, cipher, new, &mut done).await.map_err(|error| named(error, entry))?;
    }
    transaction.commit().await?;
    Ok(done)
}

/// Two entries with one identity would overwrite each other at every start.
fn check_unique(declared: &Declared) -> StoreResult<()> {
    let twice = |field, what: &str| Err(StoreError::invalid(field, format!("{what} is declared twice")));
    let mut names = HashSet::new();
    if let Some(provider) = declared.providers.iter().find(|provider| !names.insert(&provider.name)) {
        return twice("name", &format!("provider {:?}", provider.name));
    }
    let mut names = HashSet::new();
    if let Some(entry) =
        declared.models.iter().find(|entry| !names.insert((&entry.provider, &entry.model.system_name)))
    {
        return twice(
            "system_name",
            &format!("model {:?} of provider {:?}", entry.model.system_name, entry.provider),
        );
    }
    let mut keys = HashSet::new();
    let mut given = declared.api_keys.iter().filter_map(|entry| entry.key.as_ref());
    if given.any(|key| !keys.insert(key.expose())) {
        return twice("key", "one api key");
    }
    Ok(())
}

async fn apply_provider(
    db: &impl ConnectionTrait,
    cipher: &Cipher,
    new: &NewProvider,
    done: &mut Applied,
) -> StoreResult<()> {
    let new = NewProvider { source: Source::Config, ..new.clone() };
    let existing = providers::Entity::find()
        .filter(providers::Column::Name.eq(&new.name))
        .filter(providers::Column::DeletedAt.is_null())
        .one(db)
        .await?;
    let Some(existing) = existing else {
        super::providers::row_of(cipher, &new)?.insert(db).await?;
        done.created += 1;
        return Ok(());
    };
    super::providers::check_kind(db, existing.id, new.kind).await?;
    let mut row = super::providers::settings(&new)?;
    // A ciphertext differs each time, so the secrets themselves are compared.
    if secret_differs(
        cipher,
        Column::ProviderKey,
        existing.api_key_encrypted.as_deref(),
        new.api_key.as_ref(),
    )? {
        let sealed = super::providers::seal(cipher, Column::ProviderKey, new.api_key.as_ref())?;
        row.api_key_encrypted = Set(sealed);
    }
    if secret_differs(
        cipher,
        Column::ProviderProxy,
        existing.proxy_url_encrypted.as_deref(),
        new.proxy_url.as_ref(),
    )? {
        row.proxy_url_encrypted = Set(super::providers::seal_proxy(cipher, new.proxy_url.as_ref())?);
    }
    if !differs(&row, &existing) {
        done.unchanged += 1;
        return Ok(());
    }
    row.updated_at = Set(now());
    providers::Entity::update_many().set(row).filter(providers::Column::Id.eq(existing.id)).exec(db).await?;
    done.updated += 1;
    Ok(())
}

async fn apply_model(db: &impl ConnectionTrait, new: &DeclaredModel, done: &mut Applied) -> StoreResult<()> {
    let provider = match super::providers::find_by_name(db, &new.provider).await {
        Err(StoreError::NotFound) => return Err(StoreError::invalid("provider", "no such provider")),
        found => found?,
    };
    super::models::check_type(&provider.kind, new.model.model_type.as_str())?;
    let provider = provider.id;
    let new = NewModel { source: Source::Config, ..new.model.clone() };
    let existing = models::Entity::find()
        .filter(models::Column::ProviderId.eq(provider))
        .filter(models::Column::SystemName.eq(&new.system_name))
        .filter(models::Column::DeletedAt.is_null())
        .one(db)
        .await?;
    let Some(existing) = existing else {
        super::models::row_of(provider, &new)?.insert(db).await?;
        done.created += 1;
        return Ok(());
    };
    let mut row = super::models::settings(provider, &new)?;
    if !differs(&row, &existing) {
        done.unchanged += 1;
        return Ok(());
    }
    row.updated_at = Set(now());
    models::Entity::update_many().set(row).filter(models::Column::Id.eq(existing.id)).exec(db).await?;
    done.updated += 1;
    Ok(())
}

async fn apply_key(
    db: &impl ConnectionTrait,
    cipher: &Cipher,
    new: &NewApiKey,
    done: &mut Applied,
) -> StoreResult<()> {
    let new = NewApiKey { source: Source::Config, ..new.clone() };
    let Some(key) = &new.key else {
        return Err(StoreError::invalid("key", "must be given"));
    };
    let existing = api_keys::Entity::find()
        .filter(api_keys::Column::KeyHash.eq(hash_key(key.expose()).to_vec()))
        .one(db)
        .await?;
    let Some(existing) = existing else {
        super::keys::row_of(cipher, &new)?.0.insert(db).await?;
        done.created += 1;
        return Ok(());
    };
    if existing.revoked || existing.deleted_at.is_some() {
        done.revoked_keys.push(existing.key_prefix);
        return Ok(());
    }
    let mut row = super::keys::settings(&new)?;
    // The file has no field for it, and the system that made the key by this id looks it up by it.
    row.external_id = ActiveValue::NotSet;
    if existing.external_id.is_some() {
        row.source = ActiveValue::NotSet;
    }
    if !differs(&row, &existing) {
        done.unchanged += 1;
        return Ok(());
    }
    row.updated_at = Set(now());
    api_keys::Entity::update_many().set(row).filter(api_keys::Column::Id.eq(existing.id)).exec(db).await?;
    done.updated += 1;
    Ok(())
}

/// Whether any column that `row` sets has another value in `existing`.
fn differs<A>(row: &A, existing: &<A::Entity as EntityTrait>::Model) -> bool
where
    A: ActiveModelTrait,
{
    <A::Entity as EntityTrait>::Column::iter().any(|column| match row.get(column) {
        ActiveValue::Set(value) => value != existing.get(column),
        _ => false,
    })
}

fn secret_differs(
    cipher: &Cipher,
    column: Column,
    stored: Option<&str>,
    declared: Option<&Secret>,
) -> StoreResult<bool> {
    let stored = stored.map(|stored| cipher.decrypt(column, stored)).transpose()?;
    Ok(stored.as_ref() != declared)
}

/// Adds to an error which entry of the file is wrong.
fn named(error: StoreError, entry: impl FnOnce() -> String) -> StoreError {
    match error {
        StoreError::Invalid { field, message } => {
            StoreError::Invalid { field, message: format!("{message} (in {})", entry()) }
        }
        other => other,
    }
}
