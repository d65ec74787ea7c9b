//! `/metrics`, `/healthz`, `/readyz`.

use std::time::Duration;

use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};

use crate::gateway::bearer;
use crate::telemetry::exporter::CONTENT_TYPE;

use super::HttpState;

/// A database that takes longer to answer counts as not ready.
const READY_TIMEOUT: Duration = Duration::from_secs(2);

/// Check that the process is alive.
#[utoipa::path(
    get, path = "/healthz", tag = "Operations",
    responses((status = 200, description = "The process is alive", content_type = "text/plain", body = String)),
)]
pub(super) async fn healthz() -> &'static str {
    "ok\n"
}

/// Options of the readiness check.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct Ready {
    /// Skip this check.
    #[param(inline)]
    exclude: Option<Excludable>,
}

#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum Excludable {
    Database,
}

/// Check that the gateway can take traffic: it is not shutting down, and the database answers. `?exclude=database`
/// skips the database: inference goes on without it, so a load balancer that checked it would turn its outage into one
/// of the whole gateway.
#[utoipa::path(
    get, path = "/readyz", tag = "Operations",
    params(Ready),
    responses(
        (status = 200, description = "The gateway is ready", content_type = "text/plain", body = String),
        (status = 400, description = "`exclude` is not a known check", content_type = "text/plain", body = String),
        (status = 503, description = "The gateway is not ready; the body says why", content_type = "text/plain", body = String),
    ),
)]
pub(super) async fn readyz(State(state): State<HttpState>, uri: Uri) -> Response {
    if state.gateway.is_leaving() {
        return (StatusCode::SERVICE_UNAVAILABLE, "shutting down\n").into_response();
    }
    match serde_urlencoded::from_str(uri.query().unwrap_or_default()) {
        Ok(Ready { exclude: None }) => {}
        Ok(Ready { exclude: Some(Excludable::Database) }) => return "ready\n".into_response(),
        Err(_) => return (StatusCode::BAD_REQUEST, "only `exclude=database` is known\n").into_response(),
    }
    match tokio::time::timeout(READY_TIMEOUT, state.gateway.database_answers()).await {
        Ok(true) => "ready\n".into_response(),
        _ => (StatusCode::SERVICE_UNAVAILABLE, "the database does not answer\n").into_response(),
    }
}

/// The metrics in Prometheus' text format. Rendered off the async workers, from memory alone; recording never waits for
/// it.
#[utoipa::path(
    get, path = "/metrics", tag = "Operations", security((), ("metricsToken" = [])),
    responses(
        (status = 200, description = "Prometheus' text format", content_type = "text/plain", body = String),
        (status = 401, description = "The token is missing or wrong", content_type = "text/plain", body = String),
    ),
)]
pub(super) async fn metrics(State(state): State<HttpState>, headers: HeaderMap) -> Response {
    if !state.metrics_token.as_ref().is_none_or(|token| bearer(&headers).is_some_and(|given| token.is(given)))
    {
        let challenge = [(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))];
        return (StatusCode::UNAUTHORIZED, challenge, "a bearer token is needed\n").into_response();
    }
    let gzip = wants_gzip(&headers);
    let gateway = state.gateway.clone();
    // One rendering at a time, waited for here: on a thread for blocking work, scrapes would take the threads that DNS and
    // the snapshots need. The thread keeps the turn, because it goes on when its client has left.
    let turn = state.rendering.clone().lock_owned().await;
    let body = tokio::task::spawn_blocking(move || {
        let _turn = turn;
        gateway.show_log();
        gateway.telemetry().render(gzip)
    })
    .await
    .unwrap_or_else(|_| state.gateway.telemetry().render_essentials(gzip));
    let mut response = body.into_response();
    let out = response.headers_mut();
    out.insert(header::CONTENT_TYPE, HeaderValue::from_static(CONTENT_TYPE));
    out.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    out.insert(header::VARY, HeaderValue::from_static("accept-encoding"));
    if gzip {
        out.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    response
}

/// Whether `Accept-Encoding` takes gzip, with a quality above zero (RFC 9110 § 12.5.3).
fn wants_gzip(headers: &HeaderMap) -> bool {
    let codings = headers.get_all(header::ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    codings.flat_map(|value| value.split(',')).any(|coding| {
        let (name, parameters) = coding.split_once(';').unwrap_or((coding, ""));
        let quality =
            parameters.trim().strip_prefix("q=").and_then(|q| q.trim().parse::<f32>().ok()).unwrap_or(1.0);
        name.trim().eq_ignore_ascii_case("gzip") && quality > 0.0
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gzip_is_given_to_those_who_take_it() {
        for (accept, wanted) in [
            ("gzip", true),
            ("deflate, gzip;q=0.5", true),
            ("gzip;q=0", false),
            ("identity", false),
            ("br", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static(accept));
            assert_eq!(wants_gzip(&headers), wanted, "{accept}");
        }
    }
}
