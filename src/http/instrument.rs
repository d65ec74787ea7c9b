//! The outermost layer on the inference routes: opens the request's scope, and makes sure that it is counted.

use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use futures_util::FutureExt as _;
use tower::{Layer, Service};

use crate::domain::record::Call;
use crate::gateway::refusal::{Refused, error_response};
use crate::gateway::scope::RequestScope;
use crate::gateway::{Gateway, GatewayBody};
use crate::wire::error::ApiError;

#[derive(Clone)]
pub(super) struct InstrumentLayer {
    gateway: Gateway,
    call: Call,
}

impl InstrumentLayer {
    /// `call` is the kind of call that the route takes.
    pub(super) fn new(gateway: Gateway, call: Call) -> Self {
        Self { gateway, call }
    }
}

impl<S> Layer<S> for InstrumentLayer {
    type Service = Instrument<S>;

    fn layer(&self, inner: S) -> Instrument<S> {
        Instrument { inner, gateway: self.gateway.clone(), call: self.call }
    }
}

#[derive(Clone)]
pub(super) struct Instrument<S> {
    inner: S,
    gateway: Gateway,
    call: Call,
}

impl<S> Service<Request> for Instrument<S>
where
    S: Service<Request, Response = Response>,
    S::Future: Send + 'static,
    S::Error: Send,
{
    type Response = Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request) -> Self::Future {
        let call = self.call;
        let scope = self.gateway.open(call);
        request.extensions_mut().insert(scope.clone());
        let inner = AssertUnwindSafe(self.inner.call(request)).catch_unwind();
        Box::pin(async move {
            let Ok(result) = inner.await else {
                return Ok(panicked(call).map(Body::new));
            };
            let response = result?;
            see_refusal(&scope, &response);
            Ok(response)
        })
    }
}

/// The answer when a handler panicked. The request was counted while its parts were dropped: as failed if it had been accepted.
pub(super) fn panicked(call: Call) -> Response<GatewayBody> {
    tracing::error!(?call, "a handler panicked");
    let error = ApiError::new(500, "The gateway failed to handle the request.").with_code("internal_error");
    error_response(call, &error)
}

/// Counts a request that was refused.
pub(super) fn see_refusal<B>(scope: &RequestScope, response: &Response<B>) {
    if let Some(Refused(reason)) = response.extensions().get() {
        scope.refuse(*reason);
    }
}
