//! Authentication of administrators, and the layer around every admin request.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use axum::extract::{ConnectInfo, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use http::{HeaderValue, header};

use super::Admin;
use super::error::{AdminError, AdminResult};
use super::extract::read_body;
use crate::gateway::bearer;

/// How long an administrator waits for a database that does not answer. Longer than the pool's wait for a connection
/// (10 s) and than a test of a provider.
const PATIENCE: Duration = Duration::from_secs(40);

/// Checks the secret, then sees the request through, even when its client leaves half way, so that a change is never
/// made without taking effect. Answers are never cached.
pub(super) async fn guard(State(admin): State<Admin>, request: Request, next: Next) -> Response {
    let mut response = match check(&admin, &request) {
        Err(error) => error.into_response(),
        Ok(()) => match read_body(request, admin.0.max_body_size).await {
            Err(error) => error.into_response(),
            Ok(request) => see_through(&admin, request, next).await,
        },
    };
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

async fn see_through(admin: &Admin, request: Request, next: Next) -> Response {
    let changes = !request.method().is_safe();
    let work = admin.0.tasks.spawn(next.run(request));
    match tokio::time::timeout(PATIENCE, work).await {
        Ok(Ok(response)) => response,
        Ok(Err(error)) => {
            tracing::error!(%error, "an admin handler panicked");
            AdminError::Internal.into_response()
        }
        Err(_) if changes => AdminError::Unfinished.into_response(),
        Err(_) => AdminError::DatabaseAway.into_response(),
    }
}

fn check(admin: &Admin, request: &Request) -> AdminResult<()> {
    let Some(given) = bearer(request.headers()) else { return Err(AdminError::Unauthorized) };
    if admin.0.secret.is(given) {
        return Ok(());
    }
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|ConnectInfo(address)| address.ip());
    match admin.0.guesses.wrong(peer) {
        Some(wait) => Err(AdminError::TooManyGuesses(wait)),
        None => {
            tracing::warn!(peer = peer.as_ref().map(IpAddr::to_string), "a wrong admin secret was given");
            Err(AdminError::Unauthorized)
        }
    }
}
