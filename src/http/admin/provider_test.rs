//! Tests of a provider, and the list of its models.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Admin;
use super::error::{AdminError, AdminResult, ErrorBody};
use super::extract::{Body, Id};
use super::fields::at_most;
use super::providers::NOUN;
use crate::domain::label::ModelType;
use crate::domain::provider::Provider;
use crate::gateway::probe::RemoteModel;
use crate::store::StoreError;
use crate::store::models::{self, ModelFilter};
use crate::store::providers;

/// A model that a provider lists.
#[derive(Serialize, ToSchema)]
#[schema(as = RemoteModel)]
pub(super) struct RemoteModelView {
    id: String,
    owned_by: Option<String>,
    /// Unix time in seconds.
    created: Option<i64>,
}

impl From<RemoteModel> for RemoteModelView {
    fn from(model: RemoteModel) -> Self {
        Self { id: model.id, owned_by: model.owned_by, created: model.created }
    }
}

/// The models that a provider lists.
#[derive(Serialize, ToSchema)]
pub(super) struct RemoteModels {
    models: Vec<RemoteModelView>,
}

/// The provider as the request path would use it, through its proxy when that is enabled.
async fn provider(admin: &Admin, id: i64) -> AdminResult<Provider> {
    let stored = providers::get(admin.db(), id).await.map_err(AdminError::about(NOUN))?;
    stored.to_domain(admin.cipher()).map_err(|error| match error {
        StoreError::Secret(_) => AdminError::Upstream(
            "The provider's key was stored under another ENCRYPTION_KEY; set it anew.".into(),
        ),
        error => AdminError::about(NOUN)(error),
    })
}

/// Ask a provider for its list of models.
#[utoipa::path(
    get, path = "/api/admin/providers/{id}/remote-models", tag = "Providers",
    params(("id" = i64, Path, description = "Its id")),
    responses(
        (status = 200, description = "The models", body = RemoteModels),
        (status = 404, description = "There is no such provider", body = ErrorBody),
        (status = 502, description = "The provider failed, or its answer is not valid", body = ErrorBody),
    ),
)]
pub(super) async fn remote_models(State(admin): State<Admin>, Id(id): Id) -> AdminResult<Json<RemoteModels>> {
    let provider = provider(&admin, id).await?;
    let models = admin.0.gateway.remote_models(&provider).await.result.map_err(AdminError::Upstream)?;
    Ok(Json(RemoteModels { models: models.into_iter().map(RemoteModelView::from).collect() }))
}

/// The longest name of a model, in characters.
const MODEL_MAX: usize = 500;

/// Options of a test.
#[derive(Default, Deserialize, ToSchema)]
pub(super) struct TestBody {
    /// The provider's name of a chat model; when left out, the first chat model offered through it, else the first
    /// embedding model.
    #[schema(max_length = 500)]
    model: Option<String>,
}

/// The call that a test made.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum Tested {
    Completion,
    Embedding,
    /// No model is offered through the provider, so only its list was asked for.
    Models,
}

/// The outcome of a test.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct TestReport {
    success: bool,
    tested: Tested,
    /// The provider's name of the called model.
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<String>,
    /// The HTTP status of the provider's answer; left out when it did not answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
    latency_ms: f64,
    /// The reason of a failure.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    /// The models that the provider lists; empty when it lists none.
    models: Vec<RemoteModelView>,
}

/// Test a provider: a minimal call of one of its models, which it may charge for. Without a model, its list of models is
/// requested.
#[utoipa::path(
    post, path = "/api/admin/providers/{id}/test", tag = "Providers",
    request_body(content = Option<TestBody>, description = "May be left out"),
    params(("id" = i64, Path, description = "Its id")),
    responses(
        (status = 200, description = "The provider works", body = TestReport),
        (status = 400, description = "A field is wrong", body = ErrorBody),
        (status = 404, description = "There is no such provider", body = ErrorBody),
        (status = 413, description = "The body is too large", body = ErrorBody),
        (status = 415, description = "The body is not JSON", body = ErrorBody),
        (status = 502, description = "The provider does not work; the report says why", body = TestReport),
    ),
)]
pub(super) async fn test(
    State(admin): State<Admin>,
    Id(id): Id,
    body: Option<Body<TestBody>>,
) -> AdminResult<Response> {
    let provider = match provider(&admin, id).await {
        Err(AdminError::Upstream(error)) => return Ok(failed_before(error)),
        provider => provider?,
    };
    let asked = body.and_then(|Body(body)| body.model);
    at_most("model", asked.as_deref(), MODEL_MAX)?;
    let asked = asked.map(|model| (model, ModelType::Chat));
    let model = match asked {
        Some(asked) => Some(asked),
        None => first_model(&admin, id).await?,
    };
    let gateway = &admin.0.gateway;
    let report = match model {
        Some((model, kind)) => {
            let (listed, tested) =
                tokio::join!(gateway.remote_models(&provider), gateway.test_model(&provider, &model, kind));
            TestReport {
                success: tested.result.is_ok(),
                tested: match kind {
                    ModelType::Chat => Tested::Completion,
                    ModelType::Embedding => Tested::Embedding,
                },
                model: Some(model),
                status: tested.status.map(|status| status.as_u16()),
                latency_ms: tested.latency.as_secs_f64() * 1e3,
                error: tested.result.err(),
                models: listed.result.unwrap_or_default().into_iter().map(RemoteModelView::from).collect(),
            }
        }
        None => {
            let listed = gateway.remote_models(&provider).await;
            let (models, error) = match listed.result {
                Ok(models) => (models, None),
                Err(error) => (Vec::new(), Some(error)),
            };
            TestReport {
                success: error.is_none(),
                tested: Tested::Models,
                model: None,
                status: listed.status.map(|status| status.as_u16()),
                latency_ms: listed.latency.as_secs_f64() * 1e3,
                error,
                models: models.into_iter().map(RemoteModelView::from).collect(),
            }
        }
    };
    let status = if report.success { StatusCode::OK } else { StatusCode::BAD_GATEWAY };
    Ok((status, Json(report)).into_response())
}

fn failed_before(error: String) -> Response {
    let report = TestReport {
        success: false,
        tested: Tested::Models,
        model: None,
        status: None,
        latency_ms: 0.0,
        error: Some(error),
        models: Vec::new(),
    };
    (StatusCode::BAD_GATEWAY, Json(report)).into_response()
}

/// A chat model that is offered through the provider; else an embedding model.
async fn first_model(admin: &Admin, provider_id: i64) -> AdminResult<Option<(String, ModelType)>> {
    let filter = ModelFilter { provider_id: Some(provider_id), ..ModelFilter::default() };
    let found = models::list(admin.db(), &filter).await.map_err(AdminError::about(NOUN))?;
    let of = |kind: ModelType| {
        found.iter().find(|model| model.model_type == kind.as_str()).map(|model| (model, kind))
    };
    Ok(of(ModelType::Chat)
        .or_else(|| of(ModelType::Embedding))
        .map(|(model, kind)| (model.remote_id.clone().unwrap_or_else(|| model.system_name.clone()), kind)))
}
