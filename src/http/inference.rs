//! The inference endpoints.

use std::sync::Arc;
use std::time::Instant;

use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use axum::{BoxError, Extension};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, header};
use http_body::Body as HttpBody;

use crate::domain::label::{ApiFormat, RejectReason};
use crate::domain::record::Call;
use crate::gateway::scope::RequestScope;
use crate::gateway::{GatewayBody, NotGathered, Refusal, gather, is_encoded};
use crate::limit::add_state;

use super::HttpState;
use super::client_body::{ClientStopped, is_disconnect};

/// Answers one call of any format; the scope names the format.
pub(super) async fn infer(
    State(state): State<HttpState>,
    Extension(scope): Extension<Arc<RequestScope>>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    answer(&state, scope, headers, body).await.map(Body::new)
}

/// As [`infer`], with or without the router.
pub(super) async fn answer<B>(
    state: &HttpState,
    scope: Arc<RequestScope>,
    headers: HeaderMap,
    body: B,
) -> Response<GatewayBody>
where
    B: HttpBody<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    let call = scope.call;
    let caller = match state.gateway.admit(&scope, &headers).await {
        Ok(caller) => caller,
        Err(refusal) => return refusal.into_response(call),
    };
    let waiting = Instant::now();
    let body = read_body(&headers, body, state.max_body_size).await;
    scope.waited_for_client(waiting.elapsed());
    let mut response = match body {
        Ok(body) => state.gateway.complete(scope, &caller, headers, body).await,
        Err(refusal) => refusal.into_response(call),
    };
    add_state(&caller.limits, response.headers_mut());
    response
}

/// Passes a token count on to a provider that can count; not a completion, so neither limited by key nor logged.
pub(super) async fn count_tokens(State(state): State<HttpState>, headers: HeaderMap, body: Body) -> Response {
    let call = Call::Completion(ApiFormat::Anthropic);
    let answer = async {
        let (key, _slot) = state.gateway.admit_aside(&headers)?;
        let body = read_body(&headers, body, state.max_body_size).await?;
        state.gateway.count_tokens(&key, headers, body).await
    };
    answer.await.unwrap_or_else(|refusal| refusal.into_response(call)).map(Body::new)
}

/// The refusal of a compressed body: no SDK sends one, and a small one may expand to any size (RFC 9110 § 15.5.16).
fn encoded(headers: &HeaderMap) -> Option<Refusal> {
    if !is_encoded(headers) {
        return None;
    }
    let message = "The request body must be sent without a content coding.";
    let mut refusal = Refusal::new(RejectReason::InvalidRequest, message).with_status(415);
    refusal.headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    Some(refusal)
}

/// The whole body, of at most `max` bytes.
async fn read_body<B>(headers: &HeaderMap, body: B, max: usize) -> Result<Bytes, Refusal>
where
    B: HttpBody<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    if let Some(refusal) = encoded(headers) {
        return Err(refusal);
    }
    let announced =
        headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    gather(body, max, announced).await.map_err(|why| match why {
        NotGathered::TooLarge => {
            Refusal::new(RejectReason::BodyTooLarge, format!("The request body is larger than {max} bytes."))
        }
        NotGathered::Broken(error) => unreadable(&*error.into()),
    })
}

fn unreadable(error: &(dyn std::error::Error + 'static)) -> Refusal {
    if is_disconnect(error) {
        return Refusal::new(RejectReason::ClientClosed, "The connection ended before the request body did.");
    }
    if !ClientStopped::caused(error) {
        return Refusal::new(RejectReason::InvalidRequest, "The request body could not be read.");
    }
    let message = "The rest of the request body did not come in time.";
    let mut refusal = Refusal::new(RejectReason::InvalidRequest, message).with_status(408);
    refusal.error = refusal.error.with_code("request_timeout");
    // The rest of the body may still arrive, and is not waited for.
    refusal.headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    refusal
}
