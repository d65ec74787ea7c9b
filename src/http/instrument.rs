//! The outermost layer on the inference routes: opens the request's scope, and makes sure that it is counted.

use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use futures_util::FutureExt as _;
use tower::{Layer, Service};

use crate::domain::label::RejectReason;
use crate::domain::record::Call;
use crate::gateway::refusal::Refused;
use crate::gateway::scope::RequestScope;
use crate::gateway::{Gateway, GatewayBody, Refusal};

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
            let response = match inner.await {
                Ok(result) => result?,
                Err(_) => panicked(call).map(Body::new),
            };
            see_refusal(&scope, &response);
            Ok(response)
        })
    }
}

/// The answer when a handler panicked. A request that had been accepted was counted as failed while its parts were
/// dropped, so that this refusal does not count it.
pub(super) fn panicked(call: Call) -> Response<GatewayBody> {
    tracing::error!(?call, "a handler panicked");
    Refusal::new(RejectReason::InternalError, "The gateway failed to handle the request.").into_response(call)
}

/// Counts a request that was refused.
pub(super) fn see_refusal<B>(scope: &RequestScope, response: &Response<B>) {
    if let Some(Refused(reason)) = response.extensions().get() {
        scope.refuse(*reason);
    }
}
