//! Counting tokens at a provider that can (`POST /v1/messages/count_tokens`).

use std::time::Instant;

use bytes::Bytes;
use http::{HeaderMap, Method, Response};

use crate::domain::key::ApiKey;
use crate::domain::label::{ApiFormat, RejectReason};
use crate::domain::provider::ProviderKind;
use crate::domain::record::Call;
use crate::provider::{Operation, UpstreamHeaders, UpstreamRequest, headers};
use crate::wire::error::ApiError;
use crate::wire::head::{Edit, RequestHead};

use super::Gateway;
use super::body::GatewayBody;
use super::exchange::MAX_ERROR;
use super::gather::gather;
use super::refusal::{Refusal, error_response};

const CALL: Call = Call::Completion(ApiFormat::Anthropic);

impl Gateway {
    /// Passes a token count on to the first Anthropic provider of the model. It is no inference: no limit of the key's counts it,
    /// and it is not counted as a completion. The provider's concurrency limit holds.
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
        let target =
            targets.iter().find(|target| target.provider.kind == ProviderKind::Anthropic).ok_or_else(
                || Refusal::new(RejectReason::ModelNotFound, "No provider of this model counts tokens."),
            )?;
        let failed = |status, message: &'static str| {
            Ok(error_response(CALL, &ApiError::new(status, message).with_code("all_providers_failed")))
        };
        let Some(_permit) = self.health().admit(&target.provider, Instant::now(), true) else {
            return failed(503, "The provider is at its concurrency limit; try again.");
        };
        let edit = Edit { model: Some(&target.remote_id), ..Edit::default() };
        let body = head.rewrite(&edit);
        let Ok(to) = self.endpoints().get(target, Operation::CountTokens) else {
            return failed(502, "The provider's base URL is not usable.");
        };
        let headers = UpstreamHeaders::new(&client, &target.provider);
        let request = UpstreamRequest { method: Method::POST, headers, body };
        let exchange = async {
            let (mut head, upstream) =
                self.client().send(&target.provider, &to, request).await.ok()?.into_parts();
            headers::keep_for_client(&mut head.headers);
            head.version = http::Version::HTTP_11;
            head.extensions = http::Extensions::new();
            Some(Response::from_parts(
                head,
                GatewayBody::whole(gather(upstream, MAX_ERROR, None).await.ok()?),
            ))
        };
        match tokio::time::timeout(self.settings().upstream_timeout, exchange).await {
            Ok(Some(response)) => Ok(response),
            Ok(None) => failed(502, "The provider could not be reached."),
            Err(_) => failed(504, "The provider did not answer in time."),
        }
    }
}
