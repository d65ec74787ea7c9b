//! Error answers of the admin API.

use std::borrow::Cow;
use std::time::Duration;

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;
use utoipa::ToSchema;

use crate::limit::retry_after_seconds;
use crate::store::StoreError;

/// Short for a result with an [`AdminError`].
pub(super) type AdminResult<T> = Result<T, AdminError>;

/// Why a request failed.
#[derive(Debug)]
pub(in crate::http) enum AdminError {
    /// 400: a value that cannot be accepted; `field` is its name in the request.
    Invalid { field: Option<Cow<'static, str>>, message: Cow<'static, str> },
    /// 401.
    Unauthorized,
    /// 404: there is no such thing.
    NotFound(&'static str),
    /// 404: the body names something that does not exist.
    Dangling { field: &'static str, noun: &'static str },
    /// 405.
    MethodNotAllowed,
    /// 409: something else has this value.
    Taken { field: Cow<'static, str>, message: &'static str },
    /// 408: the client paused for too long in the middle of its body.
    TooSlow,
    /// 413: the body is larger than this many bytes.
    TooLarge(usize),
    /// 415.
    NotJson,
    /// 429: too many wrong secrets; the value is the time to wait.
    TooManyGuesses(Duration),
    /// 500: the cause is in the log.
    Internal,
    /// 502: the provider failed, not the gateway.
    Upstream(String),
    /// 503.
    DatabaseAway,
    /// 503: a change that the database has not finished in time goes on, and may succeed.
    Unfinished,
}

impl AdminError {
    pub(super) fn invalid(
        field: impl Into<Cow<'static, str>>,
        message: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self::Invalid { field: Some(field.into()), message: message.into() }
    }

    /// Maps a store error to one about a `noun`.
    pub(super) fn about(noun: &'static str) -> impl Fn(StoreError) -> Self {
        move |error| match error {
            StoreError::NotFound => Self::NotFound(noun),
            StoreError::Invalid { field: "provider_id", .. } => {
                Self::Dangling { field: "providerId", noun: "provider" }
            }
            StoreError::Invalid { field, message } => Self::invalid(camel_case(field), message),
            StoreError::Duplicate { field } => {
                Self::Taken { field: camel_case(field), message: taken(field) }
            }
            StoreError::Database(_) | StoreError::Sqlite(_) | StoreError::Open(_) if error.is_transient() => {
                tracing::warn!(%error, "the database does not answer an administrator");
                Self::DatabaseAway
            }
            StoreError::Database(_) | StoreError::Sqlite(_) | StoreError::Open(_) | StoreError::Secret(_) => {
                tracing::error!(%error, "an administrator's request failed");
                Self::Internal
            }
        }
    }

    const fn status(&self) -> StatusCode {
        match self {
            Self::Invalid { .. } => StatusCode::BAD_REQUEST,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::NotFound(_) | Self::Dangling { .. } => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::Taken { .. } => StatusCode::CONFLICT,
            Self::TooSlow => StatusCode::REQUEST_TIMEOUT,
            Self::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::NotJson => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::TooManyGuesses(_) => StatusCode::TOO_MANY_REQUESTS,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Upstream(_) => StatusCode::BAD_GATEWAY,
            Self::DatabaseAway | Self::Unfinished => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    const fn code(&self) -> ErrorCode {
        match self {
            Self::Invalid { .. } => ErrorCode::InvalidRequest,
            Self::Unauthorized => ErrorCode::Unauthorized,
            Self::NotFound(_) | Self::Dangling { .. } => ErrorCode::NotFound,
            Self::MethodNotAllowed => ErrorCode::MethodNotAllowed,
            Self::Taken { .. } => ErrorCode::AlreadyExists,
            Self::TooSlow => ErrorCode::RequestTimeout,
            Self::TooLarge(_) => ErrorCode::BodyTooLarge,
            Self::NotJson => ErrorCode::UnsupportedMediaType,
            Self::TooManyGuesses(_) => ErrorCode::TooManyAttempts,
            Self::Internal => ErrorCode::InternalError,
            Self::Upstream(_) => ErrorCode::UpstreamFailed,
            Self::DatabaseAway | Self::Unfinished => ErrorCode::DatabaseUnavailable,
        }
    }

    fn message(&self) -> Cow<'static, str> {
        match self {
            Self::Invalid { field: Some(field), message } => format!("{field}: {message}").into(),
            Self::Invalid { field: None, message } => message.clone(),
            Self::Unauthorized => {
                "The admin secret is needed: `Authorization: Bearer <ADMIN_SUPER_SECRET>`.".into()
            }
            Self::NotFound("") => "There is nothing at this path.".into(),
            Self::NotFound(noun) => format!("There is no such {noun}.").into(),
            Self::Dangling { field, noun } => format!("{field}: there is no such {noun}.").into(),
            Self::MethodNotAllowed => "This path does not take this method.".into(),
            Self::Taken { field, message } => format!("{field}: {message}").into(),
            Self::TooSlow => "The rest of the request body did not come in time.".into(),
            Self::TooLarge(max) => format!("The request body is larger than {max} bytes.").into(),
            Self::NotJson => "The body must be JSON: `Content-Type: application/json`.".into(),
            Self::TooManyGuesses(_) => "Too many wrong secrets. Wait before the next attempt.".into(),
            Self::Internal => "The gateway failed to handle the request. Its log says why.".into(),
            Self::Upstream(message) => message.clone().into(),
            Self::DatabaseAway => "The database does not answer. Try again.".into(),
            Self::Unfinished => {
                "The database has not answered yet; the change may still be made. Look before you repeat it."
                    .into()
            }
        }
    }

    fn field(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::Invalid { field, .. } => field.clone(),
            Self::Dangling { field, .. } => Some((*field).into()),
            Self::Taken { field, .. } => Some(field.clone()),
            _ => None,
        }
    }
}

impl IntoResponse for AdminError {
    fn into_response(self) -> Response {
        let body = ErrorBody { error: self.message(), code: self.code(), field: self.field() };
        let mut response = (self.status(), Json(body)).into_response();
        let headers = response.headers_mut();
        match self {
            Self::Unauthorized => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            Self::TooManyGuesses(wait) => {
                headers.insert(header::RETRY_AFTER, retry_after_seconds(wait).into());
            }
            Self::TooSlow => {
                // The rest of the body may still arrive, and is not waited for.
                headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            Self::DatabaseAway => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            }
            _ => {}
        }
        response
    }
}

/// The body of every error of the admin API.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = AdminError)]
pub(super) struct ErrorBody {
    /// The error in words.
    #[schema(value_type = String)]
    error: Cow<'static, str>,
    code: ErrorCode,
    /// The invalid field of the body, or parameter.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    field: Option<Cow<'static, str>>,
}

/// The error as a code for programs.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum ErrorCode {
    InvalidRequest,
    Unauthorized,
    NotFound,
    MethodNotAllowed,
    AlreadyExists,
    RequestTimeout,
    BodyTooLarge,
    UnsupportedMediaType,
    TooManyAttempts,
    InternalError,
    UpstreamFailed,
    DatabaseUnavailable,
}

fn taken(field: &str) -> &'static str {
    match field {
        "name" => "another provider has this name",
        "system_name" => "the provider offers a model of this name already",
        "external_id" => "another key has this external id",
        _ => "it exists already",
    }
}

/// A column's name as the API writes it.
fn camel_case(field: &'static str) -> Cow<'static, str> {
    if !field.contains('_') {
        return field.into();
    }
    let mut upper = false;
    let mut name = String::with_capacity(field.len());
    for c in field.chars() {
        match c {
            '_' => upper = true,
            c if std::mem::take(&mut upper) => name.push(c.to_ascii_uppercase()),
            c => name.push(c),
        }
    }
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_called_as_the_api_calls_them() {
        for (column, name) in [("name", "name"), ("base_url", "baseUrl"), ("allowed_models", "allowedModels")]
        {
            assert_eq!(camel_case(column), name);
        }
    }

    #[test]
    fn waiting_as_long_as_told_is_enough() {
        for (wait, told) in [(Duration::from_millis(1), "1"), (Duration::from_millis(5001), "6")] {
            let response = AdminError::TooManyGuesses(wait).into_response();
            assert_eq!(response.headers()[header::RETRY_AFTER], told);
        }
    }
}
