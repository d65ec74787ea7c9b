//! Checks the secret, and shows the running version.

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::Admin;

/// Check the admin secret.
#[utoipa::path(
    get, path = "/api/admin", tag = "Administration",
    responses((status = 200, description = "The secret is right", content_type = "application/json", body = bool)),
)]
pub(super) async fn check() -> Json<bool> {
    Json(true)
}

/// The running version.
#[derive(Serialize, ToSchema)]
pub(super) struct Revision {
    /// The version, and the first characters of the commit when it is known.
    version: String,
    /// The whole commit, `COMMIT_SHA`.
    commit: Option<String>,
}

/// Show the running version.
#[utoipa::path(
    get, path = "/api/admin/rev", tag = "Administration",
    responses((status = 200, description = "The version", body = Revision)),
)]
pub(super) async fn revision(State(admin): State<Admin>) -> Json<Revision> {
    Json(Revision { version: admin.0.version.clone(), commit: admin.0.commit.clone() })
}
