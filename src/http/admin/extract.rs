//! Extractors for paths, parameters and bodies, whose errors name the field that is wrong.

use std::borrow::Cow;

use axum::extract::{FromRequest, FromRequestParts, OptionalFromRequest, Path, Request};
use http::request::Parts;
use http::{HeaderMap, header};
use http_body::Body as _;
use http_body_util::{BodyExt as _, Limited};
use serde::de::DeserializeOwned;

use super::super::client_body::ClientStopped;
use super::Admin;
use super::error::{AdminError, AdminResult};

/// The largest body of an admin request: a list of some ten thousand model names.
const MAX_BODY: usize = 1 << 20;

/// The request with its body read: only then does the wait for the database begin.
pub(super) async fn read_body(request: Request, max_body_size: usize) -> AdminResult<Request> {
    let max = MAX_BODY.min(max_body_size);
    let (head, body) = request.into_parts();
    match Limited::new(body, max).collect().await {
        Ok(body) => Ok(Request::from_parts(head, body.to_bytes().into())),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => Err(AdminError::TooLarge(max)),
        Err(error) if ClientStopped::caused(&*error) => Err(AdminError::TooSlow),
        Err(_) => Err(unreadable()),
    }
}

fn unreadable() -> AdminError {
    AdminError::Invalid { field: None, message: "The request body could not be read.".into() }
}

/// A JSON body. Unknown fields are ignored: clients of the reference system may send more than we read.
pub(super) struct Body<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequest<Admin> for Body<T> {
    type Rejection = AdminError;

    async fn from_request(request: Request, _: &Admin) -> AdminResult<Self> {
        if !may_be_json(request.headers()) {
            return Err(AdminError::NotJson);
        }
        let body = request.into_body().collect().await.map_err(|_| unreadable())?.to_bytes();
        // Serde would read a list as the fields in their order.
        if body.trim_ascii_start().first() != Some(&b'{') {
            return Err(AdminError::Invalid {
                field: None,
                message: "The body must be a JSON object.".into(),
            });
        }
        let mut json = serde_json::Deserializer::from_slice(&body);
        let value = serde_path_to_error::deserialize(&mut json).map_err(|error| {
            let field = field_of(error.path());
            let error = error.into_inner();
            match error.classify() {
                serde_json::error::Category::Data => wrong(field, &error.to_string()),
                _ => AdminError::Invalid {
                    field: None,
                    message: format!("The body is not JSON: {error}.").into(),
                },
            }
        })?;
        json.end().map_err(|error| AdminError::Invalid {
            field: None,
            message: format!("The body is not JSON: {error}.").into(),
        })?;
        Ok(Self(value))
    }
}

impl<T: DeserializeOwned> OptionalFromRequest<Admin> for Body<T> {
    type Rejection = AdminError;

    async fn from_request(request: Request, admin: &Admin) -> AdminResult<Option<Self>> {
        if request.body().is_end_stream() {
            return Ok(None);
        }
        <Self as FromRequest<Admin>>::from_request(request, admin).await.map(Some)
    }
}

/// Without a `Content-Type` the body may be JSON.
fn may_be_json(headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(header::CONTENT_TYPE) else { return true };
    let media_type = value.to_str().unwrap_or_default().split(';').next().unwrap_or_default().trim();
    let media_type = media_type.to_ascii_lowercase();
    media_type == "application/json"
        || (media_type.starts_with("application/") && media_type.ends_with("+json"))
}

/// The query parameters.
pub(super) struct Params<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Params<T> {
    type Rejection = AdminError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> AdminResult<Self> {
        let pairs = url::form_urlencoded::parse(parts.uri.query().unwrap_or_default().as_bytes());
        serde_path_to_error::deserialize(serde_urlencoded::Deserializer::new(pairs))
            .map(Self)
            .map_err(|error| wrong(field_of(error.path()), &error.into_inner().to_string()))
    }
}

/// The `{id}` of a path. Text that cannot be an id names nothing.
pub(super) struct Id<T = i64>(pub(super) T);

impl<T: std::str::FromStr, S: Send + Sync> FromRequestParts<S> for Id<T> {
    type Rejection = AdminError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> AdminResult<Self> {
        let Name(text) = Name::from_request_parts(parts, state).await?;
        text.parse().map(Self).map_err(|_| AdminError::NotFound("record"))
    }
}

/// The name in a path: a key, an external id, a system name.
pub(super) struct Name(pub(super) String);

impl<S: Send + Sync> FromRequestParts<S> for Name {
    type Rejection = AdminError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> AdminResult<Self> {
        match Path::<String>::from_request_parts(parts, state).await {
            Ok(Path(text)) => Ok(Self(text)),
            // Not UTF-8, so not a name that anything has.
            Err(_) => Err(AdminError::NotFound("record")),
        }
    }
}

fn field_of(path: &serde_path_to_error::Path) -> Option<String> {
    Some(path.to_string()).filter(|path| path != "." && path != "?")
}

/// Rephrases serde's message for people.
fn wrong(field: Option<String>, error: &str) -> AdminError {
    let mut message = error.split(" at line ").next().unwrap_or(error).to_owned();
    for (rust, words) in [
        ("expected u32", "expected a whole number, at most 4294967295"),
        ("expected u64", "expected a whole number of 0 or more"),
        ("expected i64", "expected a whole number"),
        ("expected f64", "expected a number"),
        ("expected struct ", "expected an object: "),
        ("invalid digit found in string", "expected a whole number of 0 or more"),
        ("cannot parse integer from empty string", "expected a whole number of 0 or more"),
        ("number too large to fit in target type", "the number is too large"),
        ("provided string was not `true` or `false`", "expected true or false"),
    ] {
        if message.contains(rust) {
            message = message.replace(rust, words);
        }
    }
    // `missing field` and `duplicate field` are found before the path has their name.
    let named = ["missing field `", "duplicate field `"]
        .iter()
        .find_map(|start| message.strip_prefix(start)?.strip_suffix('`').map(str::to_owned));
    let field = match (field, named) {
        (Some(parent), Some(name)) => Some(format!("{parent}.{name}")),
        (field, name) => field.or(name),
    };
    let message = match message.split_once(" `") {
        Some((start @ "missing field", _)) => start.replace("missing field", "is missing"),
        Some((start @ "duplicate field", _)) => start.replace("duplicate field", "is given twice"),
        _ => message,
    };
    AdminError::Invalid { field: field.map(Cow::Owned), message: message.into() }
}
