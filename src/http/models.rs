//! `GET /v1/models`: the models a key may call.

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::{IntoResponse as _, Response};
use chrono::SecondsFormat;
use http::HeaderMap;
use serde_json::{Value, json};

use crate::domain::key::ApiKey;
use crate::domain::label::{ApiFormat, RejectReason};
use crate::domain::record::Call;
use crate::gateway::{Refusal, Snapshot};

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
    let snapshot = state.gateway.snapshot();
    let mut names: Vec<&str> =
        snapshot.models().map(|(name, _)| name).filter(|name| key.may_use(name)).collect();
    names.sort_unstable();
    let data: Vec<Value> = names.iter().map(|name| describe(&snapshot, name, format)).collect();
    let body = match format {
        ApiFormat::Anthropic => {
            json!({ "data": data, "has_more": false, "first_id": names.first(), "last_id": names.last() })
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
    let snapshot = state.gateway.snapshot();
    let known = |key: &ApiKey| key.may_use(&id) && snapshot.resolve(&id).is_some();
    match state.gateway.authenticate(&headers) {
        Ok(key) if known(&key) => Json(describe(&snapshot, &id, format)).into_response(),
        Ok(_) => {
            let name: String = id.chars().take(100).collect();
            let message = format!("The model `{name}` does not exist or you do not have access to it.");
            refused(Refusal::new(RejectReason::ModelNotFound, message).with_param(Some("model")), format)
        }
        Err(refusal) => refused(refusal, format),
    }
}

fn describe(snapshot: &Snapshot, name: &str, format: ApiFormat) -> Value {
    let targets = snapshot.resolve(name).unwrap_or_default();
    let owner = targets.first().map_or("nexusgate", |target| target.provider.name.as_str());
    // Several providers may offer it: the earliest time counts.
    let created = targets.iter().map(|target| target.created_at).min().unwrap_or_default();
    match format {
        ApiFormat::Anthropic => json!({
            "type": "model",
            "id": name,
            "display_name": name,
            "created_at": created.to_rfc3339_opts(SecondsFormat::Secs, true),
        }),
        _ => json!({ "id": name, "object": "model", "created": created.timestamp(), "owned_by": owner }),
    }
}

fn format_of(headers: &HeaderMap) -> ApiFormat {
    if headers.contains_key(ANTHROPIC_HEADER) { ApiFormat::Anthropic } else { ApiFormat::OpenAiChat }
}

fn refused(refusal: Refusal, format: ApiFormat) -> Response {
    refusal.into_response(Call::Completion(format)).map(Body::new)
}
