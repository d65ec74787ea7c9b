//! The HTTP surface: which paths there are, and in which order layers wrap them.

mod admin;
mod count;
mod error;
mod inference;
mod instrument;
mod models;
pub mod openapi;
mod ops;

use axum::Router;
use axum::routing::{get, post};
use http::{HeaderName, HeaderValue, Method};
use sea_orm::DatabaseConnection;
use tower_http::cors::{AllowOrigin, CorsLayer};

use crate::config::Origins;
use crate::domain::key::Secret;
use crate::domain::label::ApiFormat;
use crate::domain::record::Call;
use crate::gateway::Gateway;

pub use admin::{Admin, AdminParts};

use count::CountLayer;
use instrument::InstrumentLayer;

/// What the handlers lean on.
#[derive(Clone)]
pub struct HttpState {
    pub gateway: Gateway,
    pub database: DatabaseConnection,
    pub max_body_size: usize,
    pub metrics_token: Option<Secret>,
    pub admin: Admin,
}

/// Everything the main listener serves. From the outside in: count, CORS, then the route's own layers:
/// `instrument` on inference, `auth` on administration.
pub fn router(state: &HttpState, origins: &Origins, with_metrics: bool) -> Router {
    let mut router = Router::new()
        .merge(inference(state))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*id}", get(models::show))
        .merge(admin::router(&state.admin))
        .merge(openapi::router())
        .merge(health());
    if with_metrics {
        router = router.merge(metrics());
    }
    router
        .fallback(error::not_found)
        .method_not_allowed_fallback(error::method_not_allowed)
        .with_state(state.clone())
        .layer(cors(origins))
        .layer(CountLayer::new(state.gateway.telemetry().clone()))
}

/// What the listener of `METRICS_ADDR` serves.
pub fn metrics_router(state: &HttpState) -> Router {
    health().merge(metrics()).fallback(error::not_found).with_state(state.clone())
}

fn inference(state: &HttpState) -> Router<HttpState> {
    let route = |call| {
        let layer = InstrumentLayer::new(state.gateway.clone(), call);
        // Outermost on the route, so that it sees every way a request can end.
        post(inference::infer).route_layer(layer)
    };
    Router::new()
        .route("/v1/chat/completions", route(Call::Completion(ApiFormat::OpenAiChat)))
        .route("/v1/responses", route(Call::Completion(ApiFormat::OpenAiResponses)))
        .route("/v1/messages", route(Call::Completion(ApiFormat::Anthropic)))
        .route("/v1/messages/count_tokens", post(inference::count_tokens))
        .route("/v1/embeddings", route(Call::Embedding))
}

fn health() -> Router<HttpState> {
    Router::new().route("/healthz", get(ops::healthz)).route("/readyz", get(ops::readyz))
}

fn metrics() -> Router<HttpState> {
    Router::new().route("/metrics", get(ops::metrics)).route("/metrics/", get(ops::metrics))
}

fn cors(origins: &Origins) -> CorsLayer {
    let layer = CorsLayer::new();
    let layer = match origins {
        Origins::Any => layer.allow_origin(AllowOrigin::any()),
        Origins::List(list) if list.is_empty() => return layer,
        Origins::List(list) => layer.allow_origin(
            list.iter().filter_map(|origin| HeaderValue::from_str(origin).ok()).collect::<Vec<_>>(),
        ),
    };
    layer
        .allow_methods([Method::GET, Method::POST, Method::PUT, Method::DELETE])
        // `*` does not cover Authorization (Fetch § 3.3.4), so what the client asks for is allowed by name.
        .allow_headers(tower_http::cors::AllowHeaders::mirror_request())
        .expose_headers([HeaderName::from_static("x-nexusgate-id"), http::header::RETRY_AFTER])
}
