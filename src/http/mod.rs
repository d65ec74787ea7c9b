//! The HTTP surface: the paths, and the order of the layers around them.

mod admin;
mod client_body;
mod count;
mod error;
mod inference;
mod instrument;
mod models;
pub mod openapi;
mod ops;
mod surface;

use std::sync::Arc;

use axum::Router;
use axum::routing::{get, post};
use http::{HeaderName, HeaderValue, Method};
use tower_http::cors::{AllowOrigin, CorsLayer};

use crate::config::Origins;
use crate::domain::key::Secret;
use crate::domain::label::ApiFormat;
use crate::domain::record::Call;
use crate::gateway::Gateway;
use crate::limit::header_names;

pub use admin::{Admin, AdminParts};
pub use client_body::ClientBody;

use count::CountLayer;
use instrument::InstrumentLayer;

pub use surface::{Surface, SurfaceBody};

/// The handlers' dependencies.
#[derive(Clone)]
pub struct HttpState {
    pub gateway: Gateway,
    pub max_body_size: usize,
    pub metrics_token: Option<Secret>,
    /// Held while the metrics are rendered.
    pub rendering: Arc<tokio::sync::Mutex<()>>,
    pub admin: Admin,
}

/// The paths that take inference calls.
const INFERENCE: [(&str, Call); 4] = [
    ("/v1/chat/completions", Call::Completion(ApiFormat::OpenAiChat)),
    ("/v1/responses", Call::Completion(ApiFormat::OpenAiResponses)),
    ("/v1/messages", Call::Completion(ApiFormat::Anthropic)),
    ("/v1/embeddings", Call::Embedding),
];

/// The main listener's routes. From the outside in: count, CORS if there is any, then the route's own layers:
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
    let router = router
        .fallback(error::not_found)
        .method_not_allowed_fallback(error::method_not_allowed)
        .with_state(state.clone());
    let router = match cors(origins) {
        Some(cors) => router.layer(cors),
        None => router,
    };
    router.layer(CountLayer::new(state.gateway.telemetry().clone()))
}

/// The routes of the listener at `METRICS_ADDR`.
pub fn metrics_router(state: &HttpState) -> Router {
    health().merge(metrics()).fallback(error::not_found).with_state(state.clone())
}

fn inference(state: &HttpState) -> Router<HttpState> {
    let route = |call| {
        let layer = InstrumentLayer::new(state.gateway.clone(), call);
        // Outermost on the route, so that it sees every way a request can end.
        post(inference::infer).route_layer(layer)
    };
    INFERENCE
        .into_iter()
        .fold(Router::new(), |router, (path, call)| router.route(path, route(call)))
        .route("/v1/messages/count_tokens", post(inference::count_tokens))
}

fn health() -> Router<HttpState> {
    Router::new().route("/healthz", get(ops::healthz)).route("/readyz", get(ops::readyz))
}

fn metrics() -> Router<HttpState> {
    Router::new().route("/metrics", get(ops::metrics)).route("/metrics/", get(ops::metrics))
}

/// `None`: no browser may call from another origin.
fn cors(origins: &Origins) -> Option<CorsLayer> {
    let layer = CorsLayer::new();
    let layer = match origins {
        Origins::Any => layer.allow_origin(AllowOrigin::any()),
        Origins::List(list) if list.is_empty() => return None,
        Origins::List(list) => layer.allow_origin(
            list.iter().filter_map(|origin| HeaderValue::from_str(origin).ok()).collect::<Vec<_>>(),
        ),
    };
    let own = [
        "retry-after",
        "x-cache",
        "x-nexusgate-dropped",
        "x-nexusgate-id",
        "x-nexusgate-provider",
        "x-nexusgate-source",
    ]
    .map(HeaderName::from_static);
    let layer = layer
        .allow_methods([Method::GET, Method::POST, Method::PUT, Method::DELETE])
        // `*` does not cover Authorization (Fetch § 3.3.4), so the requested headers are allowed by name.
        .allow_headers(tower_http::cors::AllowHeaders::mirror_request())
        .expose_headers(own.into_iter().chain(header_names()).collect::<Vec<_>>());
    Some(layer)
}
