//! Counting tokens at a provider that can (`POST /v1/messages/count_tokens`).

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Method, Response};

use crate::domain::key::ApiKey;
use crate::domain::label::{ApiFormat, RejectReason};
use crate::domain::model::Target;
use crate::domain::provider::ProviderKind;
use crate::domain::record::Call;
use crate::provider::{Operation, SendError, UpstreamHeaders, UpstreamRequest, headers};
use crate::wire::convert::without_traces;
use crate::wire::error::ApiError;
use crate::wire::head::{Edit, RequestHead};

use super::Gateway;
use super::admit::overloaded;
use super::body::GatewayBody;
use super::gather::gather;
use super::health::Permit;
use super::refusal::{Refusal, error_response};

/// The largest answer that is passed on, in bytes: a count, or an error.
const MAX_ANSWER: usize = 1 << 20;

const CALL: Call = Call::Completion(ApiFormat::Anthropic);

impl Gateway {
    /// Passes a token count on to the first Anthropic provider of the model that has a free place. It is not inference:
    /// the key's limits do not count it, it is not counted as a completion, and it does not affect the circuit breaker.
    ///
    /// # Errors
    /// A refusal when the body cannot be routed, or no provider of the model counts tokens.
    pub async fn count_tokens(
        &self,
        key: &ApiKey,
        client: HeaderMap,
        body: Bytes,
    ) -> Result<Response<GatewayBody>, Refusal> {
        let head = RequestHead::parse(CALL, &body).map_err(|error| {
            Refusal::new(RejectReason::InvalidRequest, error.to_string()).with_param(error.param())
        })?;
        let targets = self.route(CALL, key, &head.model, &client)?;
        let (target, _permit) = self.counting(&targets)?;
        let failed = |status, message: &'static str| {
            Ok(error_response(CALL, &ApiError::new(status, message).with_code("all_providers_failed")))
        };
        let edit = Edit { model: Some(&target.remote_id), ..Edit::default() };
        let plain = without_traces(ApiFormat::Anthropic, &target.remote_id, &body)
            .and_then(|plain| RequestHead::parse(CALL, &plain.body.into()).ok());
        let rewritten = plain.as_ref().unwrap_or(&head).rewrite(&edit);
        let Ok(to) = self.endpoints().get(target, Operation::CountTokens) else {
            return failed(502, "The provider's base URL is not usable.");
        };
        let send = |fresh| {
            let (headers, body) = (UpstreamHeaders::new(&client, &target.provider), rewritten.clone());
            let request = UpstreamRequest { method: Method::POST, headers, body, fresh };
            self.client().send(&target.provider, &to, request)
        };
        let exchange = async {
            let sent = match send(false).await {
                Err(SendError::Stale(_)) => send(true).await,
                sent => sent,
            };
            let (mut head, upstream) = sent.ok()?.into_parts();
            headers::keep_for_client(&mut head.headers);
            head.version = http::Version::HTTP_11;
            head.extensions = http::Extensions::new();
            let body = gather(upstream, MAX_ANSWER, None).await.ok()?;
            let body = match target.provider.without_secrets(&body) {
                Cow::Owned(clean) => clean.into(),
                Cow::Borrowed(_) => body,
            };
            Some(Response::from_parts(head, GatewayBody::whole(body)))
        };
        match tokio::time::timeout(self.settings().upstream_timeout, exchange).await {
            Ok(Some(response)) => Ok(response),
            Ok(None) => failed(502, "The provider could not be reached, or gave no whole answer."),
            Err(_) => failed(504, "The provider did not answer in time."),
        }
    }

    /// The first of `targets` that can count tokens and has a free place.
    fn counting<'a>(&self, targets: &'a [Arc<Target>]) -> Result<(&'a Arc<Target>, Permit), Refusal> {
        let counts = |target: &&Arc<Target>| target.provider.kind == ProviderKind::Anthropic;
        if !targets.iter().any(|target| counts(&target)) {
            let message = "No provider of this model counts tokens.";
            return Err(Refusal::new(RejectReason::ModelNotFound, message));
        }
        let with_room = |target: &'a Arc<Target>| Some((target, self.health().room(&target.provider)?));
        targets.iter().filter(counts).find_map(with_room).ok_or_else(overloaded)
    }
}
