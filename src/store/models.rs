//! Models: system names offered by providers, with remote ids and prices.

use std::time::Duration;

use chrono::{DateTime, Utc};
use entity::models::{ActiveModel, Column as Field, Entity, Model};
use sea_orm::ActiveValue::{NotSet, Set};
use sea_orm::sea_query::Query;
use sea_orm::{
    ActiveModelTrait, ColumnTrait, Condition, ConnectionTrait, EntityTrait, QueryFilter, QueryOrder,
    QuerySelect, QueryTrait, TransactionTrait,
};

use super::error::{StoreError, StoreResult};
use super::{Source, check, now, providers};
use crate::domain::label::ModelType;
use crate::domain::model::Slo;
use crate::domain::provider::ProviderKind;
use crate::domain::usage::Price;

/// Weights are relative to each other: a share of one in a million is as good as none.
const WEIGHT_MAX: u32 = 1_000_000;
/// USD for a million tokens. No provider charges that much; a higher price is in the wrong unit.
const PRICE_MAX: f64 = 1e6;
/// The longest remote id, in characters.
const REMOTE_ID_MAX: usize = 500;
/// The longest target: a day.
const SLO_MAX: Duration = Duration::from_hours(24);

/// A model to be made, of a provider named beside it.
#[derive(Debug, Clone)]
pub struct NewModel {
    /// The name callers use; becomes a label. Unique among the living of one provider.
    pub system_name: String,
    /// The name the provider uses; `None`: the same.
    pub remote_id: Option<String>,
    pub model_type: ModelType,
    /// In tokens.
    pub context_length: Option<u32>,
    pub price: Price,
    /// Share of the traffic relative to the other providers of this name.
    pub weight: u32,
    pub comment: Option<String>,
    pub slo: Slo,
    pub source: Source,
}

impl NewModel {
    /// A model with the defaults: weight 1, no price.
    pub fn new(system_name: impl Into<String>, model_type: ModelType, source: Source) -> Self {
        Self {
            system_name: system_name.into(),
            remote_id: None,
            model_type,
            context_length: None,
            price: Price::default(),
            weight: 1,
            comment: None,
            slo: Slo::default(),
            source,
        }
    }
}

/// Changes to a model; `None` leaves a value as it is, the inner `None` clears it.
#[derive(Debug, Clone, Default)]
pub struct ModelChange {
    pub provider_id: Option<i64>,
    pub system_name: Option<String>,
    pub remote_id: Option<Option<String>>,
    pub model_type: Option<ModelType>,
    pub context_length: Option<Option<u32>>,
    /// USD per million tokens.
    pub input_price: Option<Option<f64>>,
    /// USD per million tokens.
    pub output_price: Option<Option<f64>>,
    /// USD per million tokens.
    pub cached_input_price: Option<Option<f64>>,
    /// USD per million tokens.
    pub cache_write_price: Option<Option<f64>>,
    pub weight: Option<u32>,
    pub comment: Option<Option<String>>,
    pub slo_ttft: Option<Option<Duration>>,
    pub slo_tpot: Option<Option<Duration>>,
}

/// A model as it is stored.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredModel {
    pub id: i64,
    pub provider_id: i64,
    pub system_name: String,
    pub remote_id: Option<String>,
    /// A [`ModelType`]; text, because a newer version may know more.
    pub model_type: String,
    pub context_length: Option<u32>,
    pub price: Price,
    pub weight: u32,
    pub comment: Option<String>,
    pub slo: Slo,
    /// A [`Source`] as text.
    pub source: String,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
}

impl From<Model> for StoredModel {
    fn from(row: Model) -> Self {
        Self {
            id: row.id,
            provider_id: row.provider_id,
            system_name: row.system_name,
            remote_id: row.remote_id,
            model_type: row.model_type,
            context_length: row.context_length.map(check::count),
            price: Price {
                input: row.input_price,
                output: row.output_price,
                cached_input: row.cached_input_price,
                cache_write: row.cache_write_price,
            },
            weight: check::count(row.weight),
            comment: row.comment,
            slo: Slo { ttft: row.slo_ttft_ms.and_then(from_ms), tpot: row.slo_tpot_ms.and_then(from_ms) },
            source: row.source,
            created_at: row.created_at,
            updated_at: row.updated_at,
        }
    }
}

/// Selects the models of a list; deleted ones are never listed.
#[derive(Debug, Clone, Default)]
pub struct ModelFilter {
    pub provider_id: Option<i64>,
    pub model_type: Option<ModelType>,
    pub system_name: Option<String>,
}

/// Makes a model of this provider.
///
/// # Errors
/// [`StoreError::Invalid`] of `provider_id` when there is no such provider, [`StoreError::Duplicate`] of `system_name`
/// when the provider offers it already, [`StoreError::Invalid`].
pub async fn create(db: &impl ConnectionTrait, provider_id: i64, new: &NewModel) -> StoreResult<StoredModel> {
    let row = row_of(provider_id, new)?;
    check_offer(db, provider_id, new.model_type.as_str()).await?;
    Ok(row.insert(db).await?.into())
}

/// The entry lives, and so does its provider: one that was created while its provider was being deleted is nobody's.
fn is_offered() -> Condition {
    let living = Query::select()
        .column(entity::providers::Column::Id)
        .from(entity::providers::Entity)
        .and_where(entity::providers::Column::DeletedAt.is_null())
        .to_owned();
    Condition::all().add(Field::DeletedAt.is_null()).add(Field::ProviderId.in_subquery(living))
}

/// The living models by system name, then id.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn list(db: &impl ConnectionTrait, filter: &ModelFilter) -> StoreResult<Vec<StoredModel>> {
    // A name with NUL cannot have been stored.
    if filter.system_name.as_deref().is_some_and(|name| name.contains('\0')) {
        return Ok(Vec::new());
    }
    let rows = Entity::find()
        .filter(is_offered())
        .apply_if(filter.provider_id, |query, id| query.filter(Field::ProviderId.eq(id)))
        .apply_if(filter.model_type, |query, kind| query.filter(Field::ModelType.eq(kind.as_str())))
        .apply_if(filter.system_name.as_deref(), |query, name| query.filter(Field::SystemName.eq(name)))
        .order_by_asc(Field::SystemName)
        .order_by_asc(Field::Id)
        .all(db)
        .await?;
    Ok(rows.into_iter().map(StoredModel::from).collect())
}

/// The system names that at least one provider offers, sorted.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn system_names(db: &impl ConnectionTrait, kind: Option<ModelType>) -> StoreResult<Vec<String>> {
    let names = Entity::find()
        .select_only()
        .column(Field::SystemName)
        .distinct()
        .filter(is_offered())
        .apply_if(kind, |query, kind| query.filter(Field::ModelType.eq(kind.as_str())))
        .order_by_asc(Field::SystemName)
        .into_tuple()
        .all(db)
        .await?;
    Ok(names)
}

/// The model with this id.
///
/// # Errors
/// [`StoreError::NotFound`].
pub async fn get(db: &impl ConnectionTrait, id: i64) -> StoreResult<StoredModel> {
    let row = Entity::find_by_id(id).filter(Field::DeletedAt.is_null()).one(db).await?;
    row.map(StoredModel::from).ok_or(StoreError::NotFound)
}

/// Changes a model.
///
/// # Errors
/// [`StoreError::NotFound`], [`StoreError::Duplicate`] of `system_name`, [`StoreError::Invalid`].
pub async fn update(db: &impl ConnectionTrait, id: i64, change: ModelChange) -> StoreResult<StoredModel> {
    let ModelChange {
        provider_id,
        system_name,
        remote_id,
        model_type,
        context_length,
        input_price,
        output_price,
        cached_input_price,
        cache_write_price,
        weight,
        comment,
        slo_ttft,
        slo_tpot,
    } = change;
    if let Some(name) = &system_name {
        check::name("system_name", name)?;
    }
    check_remote_id(remote_id.as_ref().and_then(Option::as_deref))?;
    check::comment(comment.as_ref().and_then(Option::as_deref))?;
    check_price(Price {
        input: input_price.flatten(),
        output: output_price.flatten(),
        cached_input: cached_input_price.flatten(),
        cache_write: cache_write_price.flatten(),
    })?;
    check::at_most("weight", weight, WEIGHT_MAX)?;
    check_slo(Slo { ttft: slo_ttft.flatten(), tpot: slo_tpot.flatten() })?;
    if provider_id.is_some() || model_type.is_some() {
        let stored = get(db, id).await?;
        let kind = model_type.map_or(stored.model_type.as_str(), |kind| kind.as_str());
        check_offer(db, provider_id.unwrap_or(stored.provider_id), kind).await?;
    }
    let row = ActiveModel {
        provider_id: provider_id.map_or(NotSet, Set),
        system_name: system_name.map_or(NotSet, Set),
        remote_id: remote_id.map_or(NotSet, Set),
        model_type: model_type.map_or(NotSet, |kind| Set(kind.as_str().to_owned())),
        context_length: context_length.map_or(NotSet, |length| Set(length.map(i64::from))),
        input_price: input_price.map_or(NotSet, Set),
        output_price: output_price.map_or(NotSet, Set),
        cached_input_price: cached_input_price.map_or(NotSet, Set),
        cache_write_price: cache_write_price.map_or(NotSet, Set),
        weight: weight.map_or(NotSet, |weight| Set(i64::from(weight))),
        comment: comment.map_or(NotSet, Set),
        slo_ttft_ms: slo_ttft.map_or(NotSet, |time| Set(time.map(to_ms))),
        slo_tpot_ms: slo_tpot.map_or(NotSet, |time| Set(time.map(to_ms))),
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

/// Sets the weights of some entries of one system name, all or none.
///
/// # Errors
/// [`StoreError::NotFound`] when an id is not a living entry of this name, [`StoreError::Invalid`].
pub async fn set_weights(
    db: &(impl ConnectionTrait + TransactionTrait),
    system_name: &str,
    weights: &[(i64, u32)],
) -> StoreResult<Vec<StoredModel>> {
    use sea_orm::TransactionSession as _;
    if system_name.contains('\0') && !weights.is_empty() {
        return Err(StoreError::NotFound);
    }
    // In the order of ids, so that two calls at once cannot wait for each other.
    let mut weights = weights.to_vec();
    weights.sort_unstable();
    check::at_most("weight", weights.iter().map(|(_, weight)| *weight).max(), WEIGHT_MAX)?;
    let transaction = db.begin().await?;
    for (id, weight) in weights {
        let updated = Entity::update_many()
            .set(ActiveModel { weight: Set(i64::from(weight)), updated_at: Set(now()), ..Default::default() })
            .filter(Field::Id.eq(id))
            .filter(Field::SystemName.eq(system_name))
            .filter(Field::DeletedAt.is_null())
            .exec(&transaction)
            .await?;
        if updated.rows_affected == 0 {
            return Err(StoreError::NotFound);
        }
    }
    transaction.commit().await?;
    list(db, &ModelFilter { system_name: Some(system_name.to_owned()), ..ModelFilter::default() }).await
}

/// Deletes a model; only the row stays, hidden, because the request log refers to it.
///
/// # Errors
/// [`StoreError::NotFound`].
pub async fn delete(db: &impl ConnectionTrait, id: i64) -> StoreResult<()> {
    let now = now();
    let deleted = Entity::update_many()
        .set(ActiveModel { deleted_at: Set(Some(now)), updated_at: Set(now), ..Default::default() })
        .filter(Field::Id.eq(id))
        .filter(Field::DeletedAt.is_null())
        .exec(db)
        .await?;
    if deleted.rows_affected == 0 { Err(StoreError::NotFound) } else { Ok(()) }
}

/// The row of a new model, complete.
pub(super) fn row_of(provider_id: i64, new: &NewModel) -> StoreResult<ActiveModel> {
    let now = now();
    Ok(ActiveModel { created_at: Set(now), updated_at: Set(now), ..settings(provider_id, new)? })
}

/// The columns that an administrator sets.
pub(super) fn settings(provider_id: i64, new: &NewModel) -> StoreResult<ActiveModel> {
    check::name("system_name", &new.system_name)?;
    check_remote_id(new.remote_id.as_deref())?;
    check::comment(new.comment.as_deref())?;
    check_price(new.price)?;
    check::at_most("weight", Some(new.weight), WEIGHT_MAX)?;
    check_slo(new.slo)?;
    Ok(ActiveModel {
        provider_id: Set(provider_id),
        system_name: Set(new.system_name.clone()),
        remote_id: Set(new.remote_id.clone()),
        model_type: Set(new.model_type.as_str().to_owned()),
        context_length: Set(new.context_length.map(i64::from)),
        input_price: Set(new.price.input),
        output_price: Set(new.price.output),
        cached_input_price: Set(new.price.cached_input),
        cache_write_price: Set(new.price.cache_write),
        weight: Set(i64::from(new.weight)),
        comment: Set(new.comment.clone()),
        slo_ttft_ms: Set(new.slo.ttft.map(to_ms)),
        slo_tpot_ms: Set(new.slo.tpot.map(to_ms)),
        source: Set(new.source.as_str().to_owned()),
        ..Default::default()
    })
}

fn check_price(price: Price) -> StoreResult<()> {
    let Price { input, output, cached_input, cache_write } = price;
    check::at_most("input_price", input, PRICE_MAX)?;
    check::at_most("output_price", output, PRICE_MAX)?;
    check::at_most("cached_input_price", cached_input, PRICE_MAX)?;
    check::at_most("cache_write_price", cache_write, PRICE_MAX)
}

/// A target of 0 could never be met.
fn check_slo(slo: Slo) -> StoreResult<()> {
    for (field, target) in [("slo_ttft_ms", slo.ttft), ("slo_tpot_ms", slo.tpot)] {
        if target.is_some_and(|target| target.is_zero() || target > SLO_MAX) {
            let message = format!("must be above 0 and at most {}", SLO_MAX.as_millis());
            return Err(StoreError::invalid(field, message));
        }
    }
    Ok(())
}

fn check_remote_id(remote_id: Option<&str>) -> StoreResult<()> {
    if remote_id == Some("") {
        return Err(StoreError::invalid("remote_id", "must not be empty"));
    }
    check::length("remote_id", remote_id, REMOTE_ID_MAX)?;
    check::text("remote_id", remote_id)
}

/// The provider must exist, and offer models of this type.
async fn check_offer(db: &impl ConnectionTrait, provider_id: i64, model_type: &str) -> StoreResult<()> {
    match providers::get(db, provider_id).await {
        Err(StoreError::NotFound) => Err(StoreError::invalid("provider_id", "no such provider")),
        found => check_type(&found?.kind, model_type),
    }
}

/// Anthropic's API has no embeddings.
pub(super) fn check_type(provider_kind: &str, model_type: &str) -> StoreResult<()> {
    if provider_kind == ProviderKind::Anthropic.as_str() && model_type == ModelType::Embedding.as_str() {
        return Err(StoreError::invalid("model_type", "an Anthropic provider offers no embeddings"));
    }
    Ok(())
}

fn to_ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

pub(super) fn from_ms(ms: f64) -> Option<Duration> {
    Duration::try_from_secs_f64(ms / 1e3).ok()
}
