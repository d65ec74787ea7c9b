//! The outermost layer on the inference routes: opens the request's scope, and sees that it is counted.

use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use futures_util::FutureExt as _;
use tower::{Layer, Service};

use crate::domain::record::Call;
use crate::gateway::Gateway;
use crate::gateway::refusal::{Refused, error_response};
use crate::wire::error::ApiError;

#[derive(Clone)]
pub(super) struct InstrumentLayer {
    gateway: Gateway,
    call: Call,
}

impl InstrumentLayer {
    /// `call` is what the route is for.
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
                // The request's record was finished as failed while its parts were dropped.
                tracing::error!(?call, "a handler panicked");
                let error = ApiError::new(500, "The gateway failed to handle the request.")
                    .with_code("internal_error");
                return Ok(error_response(call, &error).map(Body::new));
            };
            let response = result?;
            if let Some(Refused(reason)) = response.extensions().get() {
                scope.refuse(*reason);
            }
            Ok(response)
        })
    }
}
