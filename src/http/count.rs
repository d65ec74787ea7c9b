//! Counts every HTTP request by its route template.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::extract::{MatchedPath, Request};
use axum::response::Response;
use http::Method;
use pin_project_lite::pin_project;
use tower::{Layer, Service};

use crate::telemetry::Telemetry;
use crate::telemetry::events::HttpRequestFinished;

/// What is counted when no route matches: the path itself is the client's word.
const UNMATCHED: &str = "unmatched";

#[derive(Clone)]
pub(super) struct CountLayer {
    telemetry: Arc<Telemetry>,
}

impl CountLayer {
    pub(super) fn new(telemetry: Arc<Telemetry>) -> Self {
        Self { telemetry }
    }
}

impl<S> Layer<S> for CountLayer {
    type Service = Count<S>;

    fn layer(&self, inner: S) -> Count<S> {
        Count { inner, telemetry: self.telemetry.clone() }
    }
}

#[derive(Clone)]
pub(super) struct Count<S> {
    inner: S,
    telemetry: Arc<Telemetry>,
}

impl<S: Service<Request, Response = Response>> Service<Request> for Count<S> {
    type Response = Response;
    type Error = S::Error;
    type Future = Counting<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        Counting {
            route: request.extensions().get::<MatchedPath>().cloned(),
            method: request.method().clone(),
            telemetry: self.telemetry.clone(),
            inner: self.inner.call(request),
        }
    }
}

pin_project! {
    pub(super) struct Counting<F> {
        #[pin]
        inner: F,
        route: Option<MatchedPath>,
        method: Method,
        telemetry: Arc<Telemetry>,
    }
}

impl<F: Future<Output = Result<Response, E>>, E> Future for Counting<F> {
    type Output = Result<Response, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let result = ready!(this.inner.poll(cx));
        if let Ok(response) = &result {
            HttpRequestFinished {
                telemetry: this.telemetry,
                route: this.route.as_ref().map_or(UNMATCHED, MatchedPath::as_str),
                method: this.method,
                code: response.status(),
            }
            .emit();
        }
        Poll::Ready(result)
    }
}
