//! Models.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::Admin;
use super::error::{AdminError, AdminResult, ErrorBody};
use super::extract::{Body, Id, Name, Params};
use super::fields::{Deleted, ModelUse, given, not_empty};
use super::providers::ProviderView;
use crate::domain::model::Slo;
use crate::domain::usage::Price;
use crate::store::models::{self, ModelChange, ModelFilter, NewModel, StoredModel};
use crate::store::{Source, providers};

const NOUN: &str = "model";

/// A model, as one provider offers it.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Model)]
pub(super) struct ModelView {
    id: i64,
    provider_id: i64,
    /// The name callers use.
    system_name: String,
    /// The name the provider uses; null: the same.
    remote_id: Option<String>,
    #[schema(value_type = ModelUse)]
    model_type: String,
    /// In tokens.
    context_length: Option<u32>,
    /// USD per million tokens.
    input_price: Option<f64>,
    /// USD per million tokens.
    output_price: Option<f64>,
    /// USD per million tokens read from the provider's cache; null: as `inputPrice`.
    cached_input_price: Option<f64>,
    /// USD per million tokens written to the provider's cache; null: as `inputPrice`.
    cache_write_price: Option<f64>,
    /// Share of the traffic relative to the other providers of this name; 0: only when named or when the others fail.
    weight: u32,
    comment: Option<String>,
    /// Target for the first token, in milliseconds.
    slo_ttft_ms: Option<f64>,
    /// Target for each further token, in milliseconds.
    slo_tpot_ms: Option<f64>,
    /// Who made it: `manual` or `config`.
    source: String,
    created_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
}

impl From<StoredModel> for ModelView {
    fn from(stored: StoredModel) -> Self {
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        Self {
            id: stored.id,
            provider_id: stored.provider_id,
            system_name: stored.system_name,
            remote_id: stored.remote_id,
            model_type: stored.model_type,
            context_length: stored.context_length,
            input_price: stored.price.input,
            output_price: stored.price.output,
            cached_input_price: stored.price.cached_input,
            cache_write_price: stored.price.cache_write,
            weight: stored.weight,
            comment: stored.comment,
            slo_ttft_ms: stored.slo.ttft.map(ms),
            slo_tpot_ms: stored.slo.tpot.map(ms),
            source: stored.source,
            created_at: stored.created_at,
            updated_at: stored.updated_at,
        }
    }
}

/// Which models.
#[derive(Deserialize, IntoParams)]
#[serde(rename_all = "camelCase")]
#[into_params(parameter_in = Query)]
pub(super) struct ModelParams {
    /// Only these; all when left out.
    #[param(inline)]
    model_type: Option<ModelUse>,
}

/// List the models, by name.
#[utoipa::path(
    get, path = "/api/admin/models", tag = "Models", params(ModelParams),
    responses(
        (status = 200, description = "The models", body = Vec<ModelView>),
        (status = 400, description = "A parameter is wrong", body = ErrorBody),
    ),
)]
pub(super) async fn list(
    State(admin): State<Admin>,
    Params(params): Params<ModelParams>,
) -> AdminResult<Json<Vec<ModelView>>> {
    let filter = ModelFilter { model_type: params.model_type.map(Into::into), ..ModelFilter::default() };
    let found = models::list(admin.db(), &filter).await.map_err(AdminError::about(NOUN))?;
    Ok(Json(found.into_iter().map(ModelView::from).collect()))
}

/// List the names that callers may use.
#[utoipa::path(
    get, path = "/api/admin/models/system-names", tag = "Models", params(ModelParams),
    responses(
        (status = 200, description = "The names, sorted", body = Vec<String>),
        (status = 400, description = "A parameter is wrong", body = ErrorBody),
    ),
)]
pub(super) async fn system_names(
    State(admin): State<Admin>,
    Params(params): Params<ModelParams>,
) -> AdminResult<Json<Vec<String>>> {
    let names = models::system_names(admin.db(), params.model_type.map(Into::into)).await;
    names.map(Json).map_err(AdminError::about(NOUN))
}

/// A model and who offers it.
#[derive(Serialize, ToSchema)]
pub(super) struct Offer {
    model: ModelView,
    provider: ProviderView,
}

/// List the providers that offer a name, with their weights.
#[utoipa::path(
    get, path = "/api/admin/models/by-system-name/{systemName}", tag = "Models",
    params(("systemName" = String, Path, description = "The name callers use"), ModelParams),
    responses(
        (status = 200, description = "The offers; none for an unknown name", body = Vec<Offer>),
        (status = 400, description = "A parameter is wrong", body = ErrorBody),
        (status = 404, description = "The name is not UTF-8", body = ErrorBody),
    ),
)]
pub(super) async fn by_system_name(
    State(admin): State<Admin>,
    Name(name): Name,
    Params(params): Params<ModelParams>,
) -> AdminResult<Json<Vec<Offer>>> {
    let filter = ModelFilter {
        system_name: Some(name),
        model_type: params.model_type.map(Into::into),
        ..ModelFilter::default()
    };
    let found = models::list(admin.db(), &filter).await.map_err(AdminError::about(NOUN))?;
    offers(&admin, found).await
}

async fn offers(admin: &Admin, found: Vec<StoredModel>) -> AdminResult<Json<Vec<Offer>>> {
    let mut offers = Vec::with_capacity(found.len());
    for model in found {
        match providers::get(admin.db(), model.provider_id).await {
            Ok(provider) => {
                let provider = ProviderView::new(provider, admin.cipher());
                offers.push(Offer { model: model.into(), provider });
            }
            // Deleted between the two look-ups, and the model with it.
            Err(crate::store::StoreError::NotFound) => {}
            Err(error) => return Err(AdminError::about(NOUN)(error)),
        }
    }
    Ok(Json(offers))
}

/// New weights.
#[derive(Deserialize, ToSchema)]
pub(super) struct Weights {
    weights: Vec<Weight>,
}

/// The new weight of one model.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct Weight {
    /// The id of a model with this system name.
    model_id: i64,
    #[schema(minimum = 0, maximum = 1_000_000)]
    weight: u32,
}

/// Share the traffic of a name out anew: all the given weights, or none when one cannot be set.
#[utoipa::path(
    put, path = "/api/admin/models/by-system-name/{systemName}/weights", tag = "Models", request_body = Weights,
    params(("systemName" = String, Path, description = "The name callers use")),
    responses(
        (status = 200, description = "The offers with their new weights", body = Vec<Offer>),
        (status = 400, description = "A field is wrong", body = ErrorBody),
        (status = 404, description = "An id is not one of a model with this name", body = ErrorBody),
        (status = 413, description = "The body is too large", body = ErrorBody),
        (status = 415, description = "The body is not JSON", body = ErrorBody),
    ),
)]
pub(super) async fn change_weights(
    State(admin): State<Admin>,
    Name(name): Name,
    Body(body): Body<Weights>,
) -> AdminResult<Json<Vec<Offer>>> {
    let weights: Vec<(i64, u32)> =
        body.weights.iter().map(|weight| (weight.model_id, weight.weight)).collect();
    let found = models::set_weights(admin.db(), &name, &weights)
        .await
        .map_err(AdminError::about("model of this name"))?;
    admin.changed().await;
    offers(&admin, found).await
}

/// A model to be offered.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = NewModel)]
pub(super) struct ModelBody {
    provider_id: i64,
    /// The name callers use; becomes a label of metrics. Unique for one provider.
    #[schema(min_length = 1, max_length = 128)]
    system_name: String,
    /// The name the provider uses; the same when left out.
    #[schema(max_length = 500)]
    remote_id: Option<String>,
    /// `chat` when left out.
    #[schema(default = "chat")]
    model_type: Option<ModelUse>,
    /// In tokens.
    #[schema(minimum = 0)]
    context_length: Option<u32>,
    /// USD per million tokens.
    #[schema(minimum = 0, maximum = 1_000_000)]
    input_price: Option<f64>,
    /// USD per million tokens.
    #[schema(minimum = 0, maximum = 1_000_000)]
    output_price: Option<f64>,
    /// USD per million tokens read from the provider's cache; null: as `inputPrice`.
    #[schema(minimum = 0, maximum = 1_000_000)]
    cached_input_price: Option<f64>,
    /// USD per million tokens written to the provider's cache; null: as `inputPrice`.
    #[schema(minimum = 0, maximum = 1_000_000)]
    cache_write_price: Option<f64>,
    /// Share of the traffic relative to the other providers of this name: 1 when left out.
    #[schema(minimum = 0, maximum = 1_000_000, default = 1)]
    weight: Option<u32>,
    #[schema(max_length = 1000)]
    comment: Option<String>,
    /// Target for the first token, in milliseconds.
    #[schema(exclusive_minimum = 0, maximum = 86_400_000)]
    slo_ttft_ms: Option<f64>,
    /// Target for each further token, in milliseconds.
    #[schema(exclusive_minimum = 0, maximum = 86_400_000)]
    slo_tpot_ms: Option<f64>,
}

/// Offer a model through a provider.
#[utoipa::path(
    post, path = "/api/admin/models", tag = "Models", request_body = ModelBody,
    responses(
        (status = 200, description = "The model", body = ModelView),
        (status = 400, description = "A field is wrong", body = ErrorBody),
        (status = 404, description = "There is no such provider", body = ErrorBody),
        (status = 409, description = "The provider offers this name already", body = ErrorBody),
        (status = 413, description = "The body is too large", body = ErrorBody),
        (status = 415, description = "The body is not JSON", body = ErrorBody),
    ),
)]
pub(super) async fn create(
    State(admin): State<Admin>,
    Body(body): Body<ModelBody>,
) -> AdminResult<Json<ModelView>> {
    let new = NewModel {
        remote_id: not_empty(body.remote_id),
        context_length: body.context_length,
        price: Price {
            input: body.input_price,
            output: body.output_price,
            cached_input: body.cached_input_price,
            cache_write: body.cache_write_price,
        },
        weight: body.weight.unwrap_or(1),
        comment: body.comment,
        slo: Slo { ttft: body.slo_ttft_ms.map(from_ms), tpot: body.slo_tpot_ms.map(from_ms) },
        ..NewModel::new(body.system_name, body.model_type.unwrap_or(ModelUse::Chat).into(), Source::Manual)
    };
    let stored = models::create(admin.db(), body.provider_id, &new).await.map_err(AdminError::about(NOUN))?;
    admin.changed().await;
    Ok(Json(stored.into()))
}

/// A target in milliseconds. One that is no duration becomes the longest, which the store refuses.
fn from_ms(ms: f64) -> Duration {
    Duration::try_from_secs_f64(ms / 1e3).unwrap_or(Duration::MAX)
}

/// Show one model.
#[utoipa::path(
    get, path = "/api/admin/models/{id}", tag = "Models",
    params(("id" = i64, Path, description = "Its id")),
    responses(
        (status = 200, description = "The model", body = ModelView),
        (status = 404, description = "There is no such model", body = ErrorBody),
    ),
)]
pub(super) async fn show(State(admin): State<Admin>, Id(id): Id) -> AdminResult<Json<ModelView>> {
    let stored = models::get(admin.db(), id).await.map_err(AdminError::about(NOUN))?;
    Ok(Json(stored.into()))
}

/// What to change of a model; what is left out stays, what is null is cleared.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = ModelChange)]
pub(super) struct ChangeBody {
    provider_id: Option<i64>,
    #[schema(min_length = 1, max_length = 128)]
    system_name: Option<String>,
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<String>, max_length = 500)]
    remote_id: Option<Option<String>>,
    model_type: Option<ModelUse>,
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<u32>, minimum = 0)]
    context_length: Option<Option<u32>>,
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<f64>, minimum = 0, maximum = 1_000_000)]
    input_price: Option<Option<f64>>,
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<f64>, minimum = 0, maximum = 1_000_000)]
    output_price: Option<Option<f64>>,
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<f64>, minimum = 0, maximum = 1_000_000)]
    cached_input_price: Option<Option<f64>>,
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<f64>, minimum = 0, maximum = 1_000_000)]
    cache_write_price: Option<Option<f64>>,
    #[schema(minimum = 0, maximum = 1_000_000)]
    weight: Option<u32>,
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<String>, max_length = 1000)]
    comment: Option<Option<String>>,
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<f64>, exclusive_minimum = 0, maximum = 86_400_000)]
    slo_ttft_ms: Option<Option<f64>>,
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<f64>, exclusive_minimum = 0, maximum = 86_400_000)]
    slo_tpot_ms: Option<Option<f64>>,
}

/// Change a model. Takes effect with the next request.
#[utoipa::path(
    put, path = "/api/admin/models/{id}", tag = "Models", request_body = ChangeBody,
    params(("id" = i64, Path, description = "Its id")),
    responses(
        (status = 200, description = "The model", body = ModelView),
        (status = 400, description = "A field is wrong", body = ErrorBody),
        (status = 404, description = "There is no such model, or no such provider", body = ErrorBody),
        (status = 409, description = "The provider offers this name already", body = ErrorBody),
        (status = 413, description = "The body is too large", body = ErrorBody),
        (status = 415, description = "The body is not JSON", body = ErrorBody),
    ),
)]
pub(super) async fn change(
    State(admin): State<Admin>,
    Id(id): Id,
    Body(body): Body<ChangeBody>,
) -> AdminResult<Json<ModelView>> {
    let change = ModelChange {
        provider_id: body.provider_id,
        system_name: body.system_name,
        remote_id: body.remote_id.map(not_empty),
        model_type: body.model_type.map(Into::into),
        context_length: body.context_length,
        input_price: body.input_price,
        output_price: body.output_price,
        cached_input_price: body.cached_input_price,
        cache_write_price: body.cache_write_price,
        weight: body.weight,
        comment: body.comment,
        slo_ttft: body.slo_ttft_ms.map(|ms| ms.map(from_ms)),
        slo_tpot: body.slo_tpot_ms.map(|ms| ms.map(from_ms)),
    };
    let stored = models::update(admin.db(), id, change).await.map_err(AdminError::about(NOUN))?;
    admin.changed().await;
    Ok(Json(stored.into()))
}

/// Offer a model no longer. The request log keeps its name.
#[utoipa::path(
    delete, path = "/api/admin/models/{id}", tag = "Models",
    params(("id" = i64, Path, description = "Its id")),
    responses(
        (status = 200, description = "It is gone", body = Deleted),
        (status = 404, description = "There is no such model", body = ErrorBody),
    ),
)]
pub(super) async fn delete(State(admin): State<Admin>, Id(id): Id) -> AdminResult<Json<Deleted>> {
    models::delete(admin.db(), id).await.map_err(AdminError::about(NOUN))?;
    admin.changed().await;
    Ok(Json(Deleted::new()))
}
