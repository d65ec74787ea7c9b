//! API keys.

use chrono::{DateTime, SubsecRound, Utc};
use entity::api_keys::{ActiveModel, Column as Field, Entity, Model};
use sea_orm::ActiveValue::{NotSet, Set};
use sea_orm::sea_query::{Expr, ExprTrait, Keyword, OnConflict};
use sea_orm::{
    ActiveModelTrait, ColumnTrait, Condition, ConnectionTrait, EntityTrait, QueryFilter, QueryOrder,
    QuerySelect, QueryTrait,
};

use super::crypt::{Cipher, Column};
use super::error::{StoreError, StoreResult};
use super::{Source, check, now};
use crate::domain::key::{Limits, Secret, hash_key};

/// Random bytes in a generated key: 192 bits, where 128 are out of reach for any guesser.
const KEY_BYTES: usize = 24;
/// The shortest key an administrator may bring along. Keys are hashed without stretching, which is safe only for keys
/// that cannot be guessed.
pub const KEY_MIN_CHARS: usize = 16;
/// Leading characters of a key that lists show.
const PREFIX_CHARS: usize = 7;
/// The longest external id, in characters. External ids are indexed, and PostgreSQL refuses index rows above 2,704 bytes.
pub const EXTERNAL_ID_MAX_CHARS: usize = 255;
/// Ids in one statement of [`mark_seen`].
const SEEN_PAGE: usize = 1000;

/// A key to be made.
#[derive(Debug, Clone)]
pub struct NewApiKey {
    /// `None`: a random one is generated.
    pub key: Option<Secret>,
    /// Its name in lists, labels and logs.
    pub comment: Option<String>,
    pub limits: Limits,
    pub expires_at: Option<DateTime<Utc>>,
    /// System names it may call; `None`: all.
    pub allowed_models: Option<Vec<String>>,
    /// Its name in another system (the Kubernetes operator); unique.
    pub external_id: Option<String>,
    pub source: Source,
}

impl NewApiKey {
    /// A generated key without limits.
    pub fn new(source: Source) -> Self {
        Self {
            key: None,
            comment: None,
            limits: Limits::default(),
            expires_at: None,
            allowed_models: None,
            external_id: None,
            source,
        }
    }
}

/// Changes to a key; `None` leaves a value as it is, the inner `None` clears it.
#[derive(Debug, Clone, Default)]
pub struct ApiKeyChange {
    pub comment: Option<Option<String>>,
    /// Requests per minute.
    pub rpm: Option<Option<u32>>,
    /// Tokens per minute.
    pub tpm: Option<Option<u32>>,
    pub expires_at: Option<Option<DateTime<Utc>>>,
    pub allowed_models: Option<Option<Vec<String>>>,
    /// Cleared, it is free for another key.
    pub external_id: Option<Option<String>>,
    pub revoked: Option<bool>,
}

/// A key as it is stored.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredKey {
    pub id: i64,
    /// The first characters, for people to tell keys apart.
    pub prefix: String,
    pub comment: Option<String>,
    pub limits: Limits,
    pub expires_at: Option<DateTime<Utc>>,
    pub revoked: bool,
    pub allowed_models: Option<Vec<String>>,
    pub external_id: Option<String>,
    /// A [`Source`]; text, because a newer version may know more.
    pub source: String,
    pub last_seen_at: Option<DateTime<Utc>>,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
    key_encrypted: String,
}

impl StoredKey {
    /// Decrypts the key. Only for answers that are meant to hand it out.
    ///
    /// # Errors
    /// [`StoreError::Secret`] when the cipher is not the one it was encrypted by.
    pub fn reveal(&self, cipher: &Cipher) -> StoreResult<Secret> {
        cipher.decrypt(Column::ApiKey, &self.key_encrypted)
    }
}

impl From<Model> for StoredKey {
    fn from(row: Model) -> Self {
        Self {
            id: row.id,
            prefix: row.key_prefix,
            comment: row.comment,
            limits: Limits { rpm: row.rpm_limit.map(check::count), tpm: row.tpm_limit.map(check::count) },
            expires_at: row.expires_at,
            revoked: row.revoked,
            allowed_models: allowed_models(row.allowed_models),
            external_id: row.external_id,
            source: row.source,
            last_seen_at: row.last_seen_at,
            created_at: row.created_at,
            updated_at: row.updated_at,
            key_encrypted: row.key_encrypted,
        }
    }
}

/// The stored JSON array. Any other value in the column (a manual edit) allows nothing, not everything.
pub(super) fn allowed_models(stored: Option<serde_json::Value>) -> Option<Vec<String>> {
    stored.filter(|value| !value.is_null()).map(|value| serde_json::from_value(value).unwrap_or_default())
}

/// A key of 192 random bits: `sk-` and 32 characters that need no escaping in URLs, headers or shells.
pub fn generate() -> Secret {
    use base64::Engine as _;
    let bytes: [u8; KEY_BYTES] = rand::random();
    Secret::new(format!("sk-{}", base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes)))
}

/// Selects the keys of a list; deleted ones are never listed.
#[derive(Debug, Clone, Default)]
pub struct KeyFilter {
    pub include_revoked: bool,
    pub source: Option<Source>,
    pub offset: u64,
    /// `None`: all.
    pub limit: Option<u64>,
}

/// Makes a key and returns it with its text.
///
/// # Errors
/// [`StoreError::Duplicate`] of `key` or `external_id`, [`StoreError::Invalid`].
pub async fn create(
    db: &impl ConnectionTrait,
    cipher: &Cipher,
    new: &NewApiKey,
) -> StoreResult<(StoredKey, Secret)> {
    let (row, secret) = row_of(cipher, new)?;
    Ok((row.insert(db).await?.into(), secret))
}

/// Keys in the order of their ids.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn list(db: &impl ConnectionTrait, filter: &KeyFilter) -> StoreResult<Vec<StoredKey>> {
    let rows = Entity::find()
        .filter(Field::DeletedAt.is_null())
        .apply_if((!filter.include_revoked).then_some(false), |query, revoked| {
            query.filter(Field::Revoked.eq(revoked))
        })
        .apply_if(filter.source, |query, source| query.filter(Field::Source.eq(source.as_str())))
        .order_by_asc(Field::Id)
        // SQLite has no OFFSET without LIMIT.
        .limit(filter.limit.unwrap_or(u64::try_from(i64::MAX).unwrap_or(u64::MAX)))
        .offset(filter.offset)
        .all(db)
        .await?;
    Ok(rows.into_iter().map(StoredKey::from).collect())
}

/// The key with this id, revoked or not.
///
/// # Errors
/// [`StoreError::NotFound`].
pub async fn get(db: &impl ConnectionTrait, id: i64) -> StoreResult<StoredKey> {
    one(db, Condition::all().add(Field::Id.eq(id))).await
}

/// The key with this text, revoked or not.
///
/// # Errors
/// [`StoreError::NotFound`].
pub async fn find_by_key(db: &impl ConnectionTrait, key: &str) -> StoreResult<StoredKey> {
    one(db, Condition::all().add(Field::KeyHash.eq(hash_key(key).to_vec()))).await
}

/// The key with this text or id.
///
/// # Errors
/// [`StoreError::NotFound`].
pub async fn find(db: &impl ConnectionTrait, key_or_id: &str) -> StoreResult<StoredKey> {
    match (find_by_key(db, key_or_id).await, key_or_id.parse::<i64>()) {
        (Err(StoreError::NotFound), Ok(id)) => get(db, id).await,
        (found, _) => found,
    }
}

/// The key with this external id, revoked or not.
///
/// # Errors
/// [`StoreError::NotFound`].
pub async fn find_by_external_id(db: &impl ConnectionTrait, external_id: &str) -> StoreResult<StoredKey> {
    // A text with NUL cannot have been stored.
    if external_id.contains('\0') {
        return Err(StoreError::NotFound);
    }
    one(db, Condition::all().add(Field::ExternalId.eq(external_id))).await
}

/// Changes a key.
///
/// # Errors
/// [`StoreError::NotFound`], [`StoreError::Duplicate`] of `external_id`, [`StoreError::Invalid`].
pub async fn update(db: &impl ConnectionTrait, id: i64, change: ApiKeyChange) -> StoreResult<StoredKey> {
    let updated = Entity::update_many()
        .set(changed(change)?)
        .filter(Field::Id.eq(id))
        .filter(Field::DeletedAt.is_null())
        .exec(db)
        .await?;
    if updated.rows_affected == 0 {
        return Err(StoreError::NotFound);
    }
    get(db, id).await
}

fn changed(change: ApiKeyChange) -> StoreResult<ActiveModel> {
    let ApiKeyChange { comment, rpm, tpm, expires_at, allowed_models, external_id, revoked } = change;
    check::comment(comment.as_ref().and_then(Option::as_deref))?;
    check::lets_something_through("rpm_limit", rpm.flatten())?;
    check::lets_something_through("tpm_limit", tpm.flatten())?;
    check_names(allowed_models.as_ref().and_then(Option::as_deref))?;
    check_external_id(external_id.as_ref().and_then(Option::as_deref))?;
    let allowed_models = match allowed_models {
        Some(names) => Set(names.map(Into::into)),
        None => NotSet,
    };
    Ok(ActiveModel {
        comment: comment.map_or(NotSet, Set),
        rpm_limit: rpm.map_or(NotSet, |limit| Set(limit.map(i64::from))),
        tpm_limit: tpm.map_or(NotSet, |limit| Set(limit.map(i64::from))),
        expires_at: expires_at.map_or(NotSet, |at| Set(at.map(|at| at.trunc_subsecs(6)))),
        allowed_models,
        external_id: external_id.map_or(NotSet, Set),
        revoked: revoked.map_or(NotSet, Set),
        updated_at: Set(now()),
        ..Default::default()
    })
}

/// Takes a key out of use; it stays in lists that ask for revoked keys.
///
/// # Errors
/// [`StoreError::NotFound`].
pub async fn revoke(db: &impl ConnectionTrait, id: i64) -> StoreResult<StoredKey> {
    update(db, id, ApiKeyChange { revoked: Some(true), ..ApiKeyChange::default() }).await
}

/// Deletes a key for good; only the row stays, hidden, because the request log refers to it.
///
/// # Errors
/// [`StoreError::NotFound`].
pub async fn delete(db: &impl ConnectionTrait, id: i64) -> StoreResult<()> {
    let now = now();
    let row = ActiveModel {
        revoked: Set(true),
        deleted_at: Set(Some(now)),
        updated_at: Set(now),
        ..Default::default()
    };
    let deleted = Entity::update_many()
        .set(row)
        .filter(Field::Id.eq(id))
        .filter(Field::DeletedAt.is_null())
        .exec(db)
        .await?;
    if deleted.rows_affected == 0 { Err(StoreError::NotFound) } else { Ok(()) }
}

/// The outcome of [`upsert_by_external_id`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Upserted {
    Created,
    /// It was revoked, deleted or expired and lives again, with its former text.
    Reactivated,
    /// It was there; nothing changed.
    Existing,
}

/// Makes sure that a live key with this external id exists. Concurrent callers get the same key. A new key is made as
/// in `new`; a key that comes back to life takes the values in `change` and keeps the others, except an expiry that has
/// passed; a live key is left as it is.
///
/// # Errors
/// [`StoreError::Invalid`]; [`StoreError::Duplicate`] of `key` when `new` brings a key that another row has.
pub async fn upsert_by_external_id(
    db: &impl ConnectionTrait,
    cipher: &Cipher,
    external_id: &str,
    new: &NewApiKey,
    change: &ApiKeyChange,
) -> StoreResult<(StoredKey, Secret, Upserted)> {
    let new = NewApiKey { external_id: Some(external_id.to_owned()), ..new.clone() };
    // A living key is left as it is; a wrong setting is told all the same.
    check_new(&new)?;
    // The loop ends at its first turn, unless another caller changed the row between two statements.
    loop {
        let row = Entity::find().filter(Field::ExternalId.eq(external_id)).one(db).await?;
        let (id, done) = match row {
            Some(row) if is_live(&row) => (row.id, Upserted::Existing),
            Some(row) => {
                if !reactivate(db, row.id, external_id, change.clone()).await? {
                    continue;
                }
                (row.id, Upserted::Reactivated)
            }
            None => {
                let (row, secret) = row_of(cipher, &new)?;
                let insert = Entity::insert(row)
                    .on_conflict(OnConflict::column(Field::ExternalId).do_nothing().to_owned())
                    .into_query();
                if db.execute(&insert).await?.rows_affected() == 0 {
                    continue;
                }
                let key = find_by_external_id(db, external_id).await?;
                return Ok((key, secret, Upserted::Created));
            }
        };
        match get(db, id).await {
            Ok(key) if key.external_id.as_deref() == Some(external_id) => {
                let secret = key.reveal(cipher)?;
                return Ok((key, secret, done));
            }
            // Released or deleted meanwhile.
            Ok(_) | Err(StoreError::NotFound) => {}
            Err(error) => return Err(error),
        }
    }
}

fn is_live(row: &Model) -> bool {
    !row.revoked && row.deleted_at.is_none() && row.expires_at.is_none_or(|at| at > now())
}

/// Brings a key back to life, unless it lives, or the external id has been taken from it: then it must not come back.
pub(super) async fn reactivate(
    db: &impl ConnectionTrait,
    id: i64,
    external_id: &str,
    change: ApiKeyChange,
) -> StoreResult<bool> {
    let expired = Expr::col(Field::ExpiresAt).lte(now());
    let dead = Condition::any()
        .add(Field::Revoked.eq(true))
        .add(Field::DeletedAt.is_not_null())
        .add(expired.clone());
    let keeps_expiry = change.expires_at.is_none();
    let row =
        ActiveModel { deleted_at: Set(None), ..changed(ApiKeyChange { revoked: Some(false), ..change })? };
    let mut update = Entity::update_many().set(row);
    if keeps_expiry {
        let kept = Expr::case(expired, Keyword::Null).finally(Expr::col(Field::ExpiresAt));
        update = update.col_expr(Field::ExpiresAt, kept.into());
    }
    let named = Field::ExternalId.eq(external_id);
    let updated = update.filter(Field::Id.eq(id)).filter(named).filter(dead).exec(db).await?;
    Ok(updated.rows_affected == 1)
}

/// Records that these keys were used. `at` never moves a key's time back.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn mark_seen(db: &impl ConnectionTrait, ids: &[i64], at: DateTime<Utc>) -> StoreResult<()> {
    let at = at.trunc_subsecs(6);
    for ids in ids.chunks(SEEN_PAGE) {
        let older = Condition::any().add(Field::LastSeenAt.is_null()).add(Field::LastSeenAt.lt(at));
        Entity::update_many()
            .set(ActiveModel { last_seen_at: Set(Some(at)), ..Default::default() })
            .filter(Field::Id.is_in(ids.iter().copied()))
            .filter(older)
            .exec(db)
            .await?;
    }
    Ok(())
}

async fn one(db: &impl ConnectionTrait, which: Condition) -> StoreResult<StoredKey> {
    let row = Entity::find().filter(which).filter(Field::DeletedAt.is_null()).one(db).await?;
    row.map(StoredKey::from).ok_or(StoreError::NotFound)
}

/// The row of a new key, complete.
pub(super) fn row_of(cipher: &Cipher, new: &NewApiKey) -> StoreResult<(ActiveModel, Secret)> {
    let secret = new.key.clone().unwrap_or_else(generate);
    let now = now();
    let row = ActiveModel {
        key_hash: Set(hash_key(secret.expose()).to_vec()),
        key_encrypted: Set(cipher.encrypt(Column::ApiKey, &secret)?),
        key_prefix: Set(secret.expose().chars().take(PREFIX_CHARS).collect()),
        revoked: Set(false),
        created_at: Set(now),
        updated_at: Set(now),
        ..settings(new)?
    };
    Ok((row, secret))
}

/// The columns that an administrator sets.
pub(super) fn settings(new: &NewApiKey) -> StoreResult<ActiveModel> {
    check_new(new)?;
    Ok(ActiveModel {
        comment: Set(new.comment.clone()),
        rpm_limit: Set(new.limits.rpm.map(i64::from)),
        tpm_limit: Set(new.limits.tpm.map(i64::from)),
        allowed_models: Set(new.allowed_models.clone().map(Into::into)),
        expires_at: Set(new.expires_at.map(|at| at.trunc_subsecs(6))),
        external_id: Set(new.external_id.clone()),
        source: Set(new.source.as_str().to_owned()),
        ..Default::default()
    })
}

fn check_new(new: &NewApiKey) -> StoreResult<()> {
    if let Some(key) = &new.key {
        let key = key.expose();
        if key.len() < KEY_MIN_CHARS {
            return Err(StoreError::invalid("key", format!("must have at least {KEY_MIN_CHARS} characters")));
        }
        if !key.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(StoreError::invalid("key", "must be printable ASCII without spaces"));
        }
    }
    check::comment(new.comment.as_deref())?;
    check::lets_something_through("rpm_limit", new.limits.rpm)?;
    check::lets_something_through("tpm_limit", new.limits.tpm)?;
    check_names(new.allowed_models.as_deref())?;
    check_external_id(new.external_id.as_deref())
}

fn check_external_id(external_id: Option<&str>) -> StoreResult<()> {
    if external_id == Some("") {
        return Err(StoreError::invalid("external_id", "must not be empty"));
    }
    check::length("external_id", external_id, EXTERNAL_ID_MAX_CHARS)?;
    check::text("external_id", external_id)
}

fn check_names(names: Option<&[String]>) -> StoreResult<()> {
    names.unwrap_or_default().iter().try_for_each(|name| check::name("allowed_models", name))
}
