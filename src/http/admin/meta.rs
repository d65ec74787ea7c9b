//! Is the secret right, and what is running?

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::Admin;

/// Is the secret right?
#[utoipa::path(
    get, path = "/api/admin", tag = "Administration",
    responses((status = 200, description = "It is", content_type = "application/json", body = bool)),
)]
pub(super) async fn check() -> Json<bool> {
    Json(true)
}

/// What is running.
#[derive(Serialize, ToSchema)]
pub(super) struct Revision {
    /// The version, and the first characters of the commit when it is known.
    version: String,
    /// The whole commit, `COMMIT_SHA`.
    commit: Option<String>,
}

/// Which version is running?
#[utoipa::path(
    get, path = "/api/admin/rev", tag = "Administration",
    responses((status = 200, description = "The version", body = Revision)),
)]
pub(super) async fn revision(State(admin): State<Admin>) -> Json<Revision> {
    Json(Revision { version: admin.0.version.clone(), commit: admin.0.commit.clone() })
}
