//! Answers to requests that have no handler.

use axum::body::Body;
use axum::response::Response;
use http::{HeaderMap, Uri};

use axum::response::IntoResponse as _;

use crate::domain::label::ApiFormat;
use crate::domain::record::Call;
use crate::gateway::refusal::error_response;
use crate::wire::error::ApiError;

use super::admin::AdminError;

pub(super) async fn not_found(uri: Uri, headers: HeaderMap) -> Response {
    if is_admin(&uri) {
        return AdminError::NotFound("").into_response();
    }
    let error = ApiError::new(404, "There is nothing at this path.").with_code("not_found");
    error_response(call_of(&uri, &headers), &error).map(Body::new)
}

pub(super) async fn method_not_allowed(uri: Uri, headers: HeaderMap) -> Response {
    if is_admin(&uri) {
        return AdminError::MethodNotAllowed.into_response();
    }
    let error = ApiError::new(405, "This path does not take this method.").with_code("method_not_allowed");
    error_response(call_of(&uri, &headers), &error).map(Body::new)
}

fn is_admin(uri: &Uri) -> bool {
    uri.path().strip_prefix("/api/admin").is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The format that a caller of this path most likely reads.
fn call_of(uri: &Uri, headers: &HeaderMap) -> Call {
    let anthropic = uri.path().starts_with("/v1/messages") || headers.contains_key("anthropic-version");
    Call::Completion(if anthropic { ApiFormat::Anthropic } else { ApiFormat::OpenAiChat })
}
