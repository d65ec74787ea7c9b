//! The in-memory copy that the request path reads: keys, models and providers.
//!
//! A [`Snapshot`] never changes. [`SnapshotStore`] holds the current one and swaps in a new one after an
//! administrator's change and on a timer; a request in flight keeps the one it began with.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};
use chrono::{DateTime, Utc};
use entity::{api_keys, models, providers};
use foldhash::fast::RandomState;
use sea_orm::sea_query::{Expr, ExprTrait, Query, SelectStatement};
use sea_orm::{
    ColumnTrait, ConnectionTrait, DatabaseConnection, DbErr, EntityTrait, QueryFilter, QueryOrder,
    QueryResult, QuerySelect, QueryTrait, TransactionTrait,
};

use super::crypt::Cipher;
use super::error::{StoreError, StoreResult};
use super::models::StoredModel;
use super::providers::StoredProvider;
use super::{check, keys, now};
use crate::domain::key::{ApiKey, KeyHash, Limits};
use crate::domain::label::{LabelValue, ModelType};
use crate::domain::model::Target;

/// The timeout of a load. A connection whose server has vanished would wait for a quarter of an hour.
const LOAD_TIMEOUT: Duration = Duration::from_secs(15);

/// Hashes a [`KeyHash`] by taking eight of its bytes: it is a SHA-256 already.
#[derive(Default)]
struct TakeBytes(u64);

impl Hasher for TakeBytes {
    fn write(&mut self, bytes: &[u8]) {
        if let Some(first) = bytes.first_chunk() {
            self.0 = u64::from_ne_bytes(*first);
        }
    }

    // The length that arrays write before their bytes.
    fn write_usize(&mut self, _: usize) {}

    fn finish(&self) -> u64 {
        self.0
    }
}

type KeyMap = HashMap<KeyHash, Arc<ApiKey>, BuildHasherDefault<TakeBytes>>;

/// The configuration at one moment; by default nothing is configured.
#[derive(Debug, Default)]
pub struct Snapshot {
    keys: KeyMap,
    targets: HashMap<Box<str>, Vec<Arc<Target>>, RandomState>,
    providers: usize,
    problems: Vec<String>,
}

impl Snapshot {
    /// Reads everything, in three queries of one read transaction. Decoding 100,000 keys takes a noticeable fraction of
    /// a second, so it runs off the async workers.
    ///
    /// # Errors
    /// [`StoreError::Database`]. Entries that cannot be used do not fail it: see [`problems`](Self::problems).
    pub async fn load(db: &DatabaseConnection, cipher: &Arc<Cipher>) -> StoreResult<Self> {
        // One transaction, so that no model is seen without its provider.
        let options = sea_orm::TransactionOptions {
            isolation_level: (db.get_database_backend() == sea_orm::DbBackend::Postgres)
                .then_some(sea_orm::IsolationLevel::RepeatableRead),
            ..Default::default()
        };
        let transaction = db.begin_with_options(options).await?;
        let providers = providers::Entity::find()
            .filter(providers::Column::DeletedAt.is_null())
            .order_by_asc(providers::Column::Id)
            .all(&transaction)
            .await?;
        let models = models::Entity::find()
            .filter(models::Column::DeletedAt.is_null())
            .order_by_asc(models::Column::Id)
            .all(&transaction)
            .await?;
        let keys = transaction.query_all(&keys_query()).await?;
        transaction.commit().await?;

        let cipher = Arc::clone(cipher);
        let build = tokio::task::spawn_blocking(move || {
            let mut snapshot = Self::default();
            snapshot.add_routes(providers, models, &cipher);
            snapshot.add_keys(&keys)?;
            Ok(snapshot)
        });
        match build.await {
            Ok(built) => built,
            Err(error) => {
                Err(StoreError::Database(DbErr::Custom(format!("the snapshot was not built: {error}"))))
            }
        }
    }

    /// The key with this hash. Includes revoked and expired keys, so that the caller can report which it is.
    pub fn find_key(&self, hash: &KeyHash) -> Option<&Arc<ApiKey>> {
        self.keys.get(hash)
    }

    /// The targets of this model, in the order in which they were configured; never empty.
    pub fn resolve(&self, system_name: &str) -> Option<&[Arc<Target>]> {
        self.targets.get(system_name).map(Vec::as_slice)
    }

    /// Every key, in no order.
    pub fn keys(&self) -> impl ExactSizeIterator<Item = &Arc<ApiKey>> {
        self.keys.values()
    }

    /// Every system name with its targets, in no order.
    pub fn models(&self) -> impl ExactSizeIterator<Item = (&str, &[Arc<Target>])> {
        self.targets.iter().map(|(name, targets)| (name.as_ref(), targets.as_slice()))
    }

    /// One line for each entry that was left out because it cannot be used: a secret under another key, a base URL or a
    /// kind that only a manual edit of the database or a newer version writes.
    pub fn problems(&self) -> &[String] {
        &self.problems
    }

    /// The result of [`counts`] for this snapshot.
    #[cfg(test)]
    pub(super) fn active_counts(&self, now: DateTime<Utc>) -> ActiveCounts {
        let of_type =
            |kind| self.targets.values().flatten().filter(|target| target.model_type == kind).count();
        ActiveCounts {
            keys: to_u64(self.keys.values().filter(|key| !key.revoked && !key.is_expired(now)).count()),
            providers: to_u64(self.providers),
            chat_models: to_u64(of_type(ModelType::Chat)),
            embedding_models: to_u64(of_type(ModelType::Embedding)),
        }
    }

    fn add_routes(&mut self, providers: Vec<providers::Model>, models: Vec<models::Model>, cipher: &Cipher) {
        let mut by_id = HashMap::with_capacity(providers.len());
        for row in providers {
            let stored = StoredProvider::from(row);
            match stored.to_domain(cipher) {
                Ok(provider) => {
                    by_id.insert(provider.id, Arc::new(provider));
                    self.providers += 1;
                }
                Err(error) => self.problems.push(format!("provider {:?} is left out: {error}", stored.name)),
            }
        }
        let mut names: HashMap<String, LabelValue> = HashMap::new();
        for row in models {
            let stored = StoredModel::from(row);
            let Some(provider) = by_id.get(&stored.provider_id) else { continue };
            let Some(model_type) = ModelType::parse(&stored.model_type) else {
                self.problems.push(format!(
                    "model {:?} is left out: type: unknown: {}",
                    stored.system_name, stored.model_type
                ));
                continue;
            };
            let label = intern(&mut names, &stored.system_name);
            let target = Arc::new(Target {
                id: stored.id,
                system_name: label,
                remote_id: stored.remote_id.unwrap_or_else(|| stored.system_name.clone()),
                model_type,
                price: stored.price,
                weight: stored.weight,
                slo: stored.slo,
                created_at: stored.created_at,
                provider: Arc::clone(provider),
            });
            self.targets.entry(stored.system_name.into_boxed_str()).or_default().push(target);
        }
    }

    fn add_keys(&mut self, rows: &[QueryResult]) -> StoreResult<()> {
        let mut comments: HashMap<String, LabelValue> = HashMap::new();
        self.keys.reserve(rows.len());
        for row in rows {
            let row: KeyRow = row.try_get_many_by_index()?;
            let (id, hash, comment, rpm, tpm, allowed, expires_at, revoked) = row;
            let Ok(hash) = KeyHash::try_from(hash) else {
                self.problems.push(format!("api key {id} is left out: its hash is not 32 bytes"));
                continue;
            };
            let key = ApiKey {
                id,
                // A key without a comment becomes `unknown`, the label of an empty text.
                comment: intern(&mut comments, comment.as_deref().unwrap_or_default()),
                limits: Limits { rpm: rpm.map(check::count), tpm: tpm.map(check::count) },
                expires_at,
                revoked,
                allowed_models: keys::allowed_models(allowed),
            };
            self.keys.insert(hash, Arc::new(key));
        }
        Ok(())
    }
}

/// Equal texts share one allocation: a hundred thousand keys often have a dozen comments.
fn intern(known: &mut HashMap<String, LabelValue>, text: &str) -> LabelValue {
    if let Some(label) = known.get(text) {
        return label.clone();
    }
    let label = LabelValue::new(text);
    known.insert(text.to_owned(), label.clone());
    label
}

type KeyRow = (
    i64,
    Vec<u8>,
    Option<String>,
    Option<i64>,
    Option<i64>,
    Option<serde_json::Value>,
    Option<DateTime<Utc>>,
    bool,
);

/// Only the columns of [`KeyRow`], not the ciphertexts.
fn keys_query() -> SelectStatement {
    use api_keys::Column;
    api_keys::Entity::find()
        .select_only()
        .columns([
            Column::Id,
            Column::KeyHash,
            Column::Comment,
            Column::RpmLimit,
            Column::TpmLimit,
            Column::AllowedModels,
            Column::ExpiresAt,
            Column::Revoked,
        ])
        .filter(Column::DeletedAt.is_null())
        .into_query()
}

/// The current snapshot.
#[derive(Debug)]
pub struct SnapshotStore {
    current: ArcSwap<Snapshot>,
    cipher: Arc<Cipher>,
    /// Refreshes requested.
    asked: AtomicU64,
    /// The number of requests that the current snapshot answers. Refreshes run one at a time, so that an older load
    /// never replaces a newer one.
    answered: tokio::sync::Mutex<u64>,
    /// Whether the last refresh failed, or was given up.
    behind: AtomicBool,
}

impl SnapshotStore {
    /// A store with an empty snapshot; [`refresh`](Self::refresh) fills it.
    pub fn new(cipher: Arc<Cipher>) -> Self {
        Self {
            current: ArcSwap::default(),
            cipher,
            asked: AtomicU64::new(0),
            answered: tokio::sync::Mutex::new(0),
            behind: AtomicBool::new(false),
        }
    }

    /// The current snapshot, for as long as one request needs it. Costs no lock; keep it short-lived or use
    /// [`load_full`](Self::load_full).
    pub fn load(&self) -> Guard<Arc<Snapshot>> {
        self.current.load()
    }

    /// The current snapshot, to be kept.
    pub fn load_full(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// Reads the database and swaps the new snapshot in. It includes everything committed before this call. Callers
    /// that waited for another caller's load share the next one: fifty changes at once are loaded twice, not fifty
    /// times.
    ///
    /// # Errors
    /// As [`Snapshot::load`], and when the database does not answer within [`LOAD_TIMEOUT`]; the current snapshot stays.
    pub async fn refresh(&self, db: &DatabaseConnection) -> StoreResult<Arc<Snapshot>> {
        let mine = self.asked.fetch_add(1, Ordering::SeqCst) + 1;
        let mut answered = self.answered.lock().await;
        if *answered >= mine {
            return Ok(self.load_full());
        }
        // Every caller counted in `asked` had committed before this load.
        let asked = self.asked.load(Ordering::SeqCst);
        // All other callers wait for this load.
        let loading = tokio::time::timeout(LOAD_TIMEOUT, Snapshot::load(db, &self.cipher));
        let late = || format!("no answer within {}", humantime::format_duration(LOAD_TIMEOUT));
        let mut owed = Owed { behind: &self.behind, read: false };
        let loaded = loading.await.map_err(|_| StoreError::Database(DbErr::Custom(late())))?;
        let snapshot = Arc::new(loaded?);
        owed.read = true;
        self.put(Arc::clone(&snapshot));
        *answered = asked;
        Ok(snapshot)
    }

    /// Whether the last load failed, or was given up: the snapshot in use may lack earlier changes.
    pub fn is_behind(&self) -> bool {
        self.behind.load(Ordering::SeqCst)
    }

    /// Sets a snapshot: the first one, or a test's.
    pub fn replace(&self, snapshot: Snapshot) {
        self.put(Arc::new(snapshot));
    }

    /// Swaps `snapshot` in, and logs problems that the previous one did not have.
    fn put(&self, snapshot: Arc<Snapshot>) {
        let before = self.current.swap(Arc::clone(&snapshot));
        for problem in snapshot.problems().iter().filter(|problem| !before.problems.contains(problem)) {
            tracing::warn!("{problem}");
        }
    }
}

/// Marks the store as behind unless the load succeeds: it may fail, or its caller may leave.
struct Owed<'a> {
    behind: &'a AtomicBool,
    read: bool,
}

impl Drop for Owed<'_> {
    fn drop(&mut self) {
        self.behind.store(!self.read, Ordering::SeqCst);
    }
}

/// Counts for the gauges.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ActiveCounts {
    /// Neither revoked nor expired nor deleted.
    pub keys: u64,
    pub providers: u64,
    /// Entries, one for each provider that offers a model, as the reference system counts them.
    pub chat_models: u64,
    pub embedding_models: u64,
}

/// Counts active keys, providers and models, in one query.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn counts(db: &impl ConnectionTrait) -> StoreResult<ActiveCounts> {
    let count = |query: SelectStatement| Expr::SubQuery(None, Box::new(query.into()));
    let keys = api_keys::Entity::find()
        .select_only()
        .expr(Expr::col(api_keys::Column::Id).count())
        .filter(api_keys::Column::DeletedAt.is_null())
        .filter(api_keys::Column::Revoked.eq(false))
        .filter(api_keys::Column::ExpiresAt.is_null().or(api_keys::Column::ExpiresAt.gt(now())));
    let providers = providers::Entity::find()
        .select_only()
        .expr(Expr::col(providers::Column::Id).count())
        .filter(providers::Column::DeletedAt.is_null());
    let living = providers::Entity::find()
        .select_only()
        .column(providers::Column::Id)
        .filter(providers::Column::DeletedAt.is_null())
        .into_query();
    let models = |kind: ModelType| {
        models::Entity::find()
            .select_only()
            .expr(Expr::col(models::Column::Id).count())
            .filter(models::Column::DeletedAt.is_null())
            .filter(models::Column::ModelType.eq(kind.as_str()))
            // A model may have been made in the moment in which its provider was deleted.
            .filter(models::Column::ProviderId.in_subquery(living.clone()))
            .into_query()
    };
    let query = Query::select()
        .expr(count(keys.into_query()))
        .expr(count(providers.into_query()))
        .expr(count(models(ModelType::Chat)))
        .expr(count(models(ModelType::Embedding)))
        .to_owned();
    let row = db.query_one(&query).await?.ok_or(StoreError::NotFound)?;
    let (keys, providers, chat_models, embedding_models): (i64, i64, i64, i64) =
        row.try_get_many_by_index()?;
    let count = |stored: i64| u64::try_from(stored).unwrap_or(0);
    Ok(ActiveCounts {
        keys: count(keys),
        providers: count(providers),
        chat_models: count(chat_models),
        embedding_models: count(embedding_models),
    })
}

#[cfg(test)]
fn to_u64(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}
