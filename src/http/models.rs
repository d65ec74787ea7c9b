//! `GET /v1/models`: the models a key may call.

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::{IntoResponse as _, Response};
use chrono::SecondsFormat;
use http::HeaderMap;
use serde_json::{Value, json};

use crate::domain::label::ApiFormat;
use crate::domain::record::Call;
use crate::gateway::{OfferedModel, Refusal};

use super::HttpState;

/// Anthropic's SDK requests the same path, with this header.
const ANTHROPIC_HEADER: &str = "anthropic-version";

/// List the models that this key may call, in Anthropic's shape when `anthropic-version` is given, else in OpenAI's.
#[utoipa::path(
    get, path = "/v1/models", tag = "Inference", security(("apiKey" = []), ("xApiKey" = [])),
    params(("anthropic-version" = Option<String>, Header, description = "Asks for Anthropic's shape")),
    responses(
        (status = 200, description = "The models", body = Object),
        (status = 401, description = "No API key, or one that is not valid", body = Object),
    ),
)]
pub(super) async fn list(State(state): State<HttpState>, headers: HeaderMap) -> Response {
    let format = format_of(&headers);
    let key = match state.gateway.authenticate(&headers) {
        Ok(key) => key,
        Err(refusal) => return refused(refusal, format),
    };
    let models = state.gateway.models(&key);
    let data: Vec<Value> = models.iter().map(|model| describe(model, format)).collect();
    let ends = [models.first(), models.last()].map(|model| model.map(|model| model.name.as_str()));
    let body = match format {
        ApiFormat::Anthropic => {
            json!({ "data": data, "has_more": false, "first_id": ends[0], "last_id": ends[1] })
        }
        _ => json!({ "object": "list", "data": data }),
    };
    Json(body).into_response()
}

/// Show one model, if this key may call it.
#[utoipa::path(
    get, path = "/v1/models/{id}", tag = "Inference", security(("apiKey" = []), ("xApiKey" = [])),
    params(
        ("id" = String, Path, description = "A system name; slashes need no escaping"),
        ("anthropic-version" = Option<String>, Header, description = "Asks for Anthropic's shape"),
    ),
    responses(
        (status = 200, description = "The model", body = Object),
        (status = 400, description = "The id is not UTF-8", content_type = "text/plain", body = String),
        (status = 401, description = "No API key, or one that is not valid", body = Object),
        (status = 404, description = "There is no such model", body = Object),
    ),
)]
pub(super) async fn show(
    State(state): State<HttpState>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Response {
    let format = format_of(&headers);
    let model = state.gateway.authenticate(&headers).and_then(|key| state.gateway.model(&key, &id));
    match model {
        Ok(model) => Json(describe(&model, format)).into_response(),
        Err(refusal) => refused(refusal, format),
    }
}

fn describe(model: &OfferedModel, format: ApiFormat) -> Value {
    let OfferedModel { name, owner, created_at } = model;
    match format {
        ApiFormat::Anthropic => json!({
            "type": "model",
            "id": name.as_str(),
            "display_name": name.as_str(),
            "created_at": created_at.to_rfc3339_opts(SecondsFormat::Secs, true),
        }),
        _ => json!({
            "id": name.as_str(),
            "object": "model",
            "created": created_at.timestamp(),
            "owned_by": owner.as_str(),
        }),
    }
}

fn format_of(headers: &HeaderMap) -> ApiFormat {
    if headers.contains_key(ANTHROPIC_HEADER) { ApiFormat::Anthropic } else { ApiFormat::OpenAiChat }
}

fn refused(refusal: Refusal, format: ApiFormat) -> Response {
    refusal.into_response(Call::Completion(format)).map(Body::new)
}
