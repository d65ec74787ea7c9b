//! Counts every HTTP request by its route template.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::extract::{MatchedPath, Request};
use axum::response::Response;
use http::{Method, StatusCode};
use pin_project_lite::pin_project;
use tower::{Layer, Service};

use crate::gateway::refusal::CLIENT_CLOSED_REQUEST;
use crate::telemetry::Telemetry;
use crate::telemetry::events::HttpRequestFinished;

/// The label when no route matches: the path itself is chosen by the client.
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
            counted: false,
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
        counted: bool,
    }

    impl<F> PinnedDrop for Counting<F> {
        fn drop(this: Pin<&mut Self>) {
            if !this.counted && let Ok(code) = StatusCode::from_u16(CLIENT_CLOSED_REQUEST) {
                count(&this.telemetry, this.route.as_ref(), &this.method, code);
            }
        }
    }
}

impl<F: Future<Output = Result<Response, E>>, E> Future for Counting<F> {
    type Output = Result<Response, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let result = ready!(this.inner.poll(cx));
        *this.counted = true;
        if let Ok(response) = &result {
            count(this.telemetry, this.route.as_ref(), this.method, response.status());
        }
        Poll::Ready(result)
    }
}

/// A request that bypasses the router; counted when it is answered, and with 499 when it is dropped before.
pub(super) struct Uncounted<'a> {
    telemetry: &'a Telemetry,
    route: &'static str,
    method: Method,
    counted: bool,
}

impl<'a> Uncounted<'a> {
    pub(super) fn new(telemetry: &'a Telemetry, route: &'static str, method: Method) -> Self {
        Self { telemetry, route, method, counted: false }
    }

    pub(super) fn answered(mut self, code: StatusCode) {
        self.count(code);
    }

    fn count(&mut self, code: StatusCode) {
        if !std::mem::replace(&mut self.counted, true) {
            let Self { telemetry, route, method, .. } = self;
            HttpRequestFinished { telemetry, route, method, code }.emit();
        }
    }
}

impl Drop for Uncounted<'_> {
    fn drop(&mut self) {
        if let Ok(code) = StatusCode::from_u16(CLIENT_CLOSED_REQUEST) {
            self.count(code);
        }
    }
}

fn count(telemetry: &Telemetry, route: Option<&MatchedPath>, method: &Method, code: StatusCode) {
    HttpRequestFinished { telemetry, route: route.map_or(UNMATCHED, MatchedPath::as_str), method, code }
        .emit();
}
