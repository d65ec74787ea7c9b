//! The request log of chat-like requests.

use axum::Json;
use axum::extract::State;
use uuid::Uuid;

use super::Admin;
use super::error::{AdminResult, ErrorBody};
use super::extract::{Id, Params};
use super::fields::Deleted;
use super::logs::{self, LogParams, LogRecord, PageView};
use crate::domain::label::LogTable;

/// The default page length, in records: the reference system's.
const USUAL_LIMIT: u64 = 100;

/// List chat-like requests, latest first, without their bodies; `limit` is 100 when left out.
#[utoipa::path(
    get, path = "/api/admin/completions", tag = "Request log", params(LogParams),
    responses(
        (status = 200, description = "A page", body = PageView),
        (status = 400, description = "A parameter is wrong", body = ErrorBody),
        (status = 404, description = "There is no such key", body = ErrorBody),
    ),
)]
pub(super) async fn list(
    State(admin): State<Admin>,
    Params(params): Params<LogParams>,
) -> AdminResult<Json<PageView>> {
    logs::list(&admin, LogTable::Completions, params, USUAL_LIMIT).await
}

/// Show one completion with its bodies.
#[utoipa::path(
    get, path = "/api/admin/completions/{id}", tag = "Request log",
    params(("id" = Uuid, Path, description = "Its id, `x-nexusgate-id` of the answer")),
    responses(
        (status = 200, description = "The record", body = LogRecord),
        (status = 404, description = "There is no such record", body = ErrorBody),
    ),
)]
pub(super) async fn show(State(admin): State<Admin>, Id(id): Id<Uuid>) -> AdminResult<Json<LogRecord>> {
    logs::show(&admin, LogTable::Completions, id).await
}

/// Delete one completion from the log. Usage sums and metrics keep it.
#[utoipa::path(
    delete, path = "/api/admin/completions/{id}", tag = "Request log",
    params(("id" = Uuid, Path, description = "Its id")),
    responses(
        (status = 200, description = "Deleted", body = Deleted),
        (status = 404, description = "There is no such record", body = ErrorBody),
    ),
)]
pub(super) async fn delete(State(admin): State<Admin>, Id(id): Id<Uuid>) -> AdminResult<Json<Deleted>> {
    logs::delete(&admin, LogTable::Completions, id).await
}
