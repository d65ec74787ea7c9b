//! A listener's services: inference calls on the shortest path, everything else through the router.
//!
//! The router, its layers and its extractors cost an inference call more than the gateway's own work on it (each layer
//! boxes a future, the extensions are a map of boxes, headers are cloned; docs/PERFORMANCE.md has the figures). So the
//! few paths that carry the load are matched here, by hand, and one function does what the layers do on the routes. The
//! routes still exist, for every other method and for gateways that answer browsers (CORS).

use std::convert::Infallible;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::Router;
use axum::body::Body as AxumBody;
use axum::extract::ConnectInfo;
use bytes::Bytes;
use futures_util::FutureExt as _;
use http::{HeaderMap, Method, Request, Response};
use http_body::{Body, Frame, SizeHint};
use tower::ServiceExt as _;

use crate::config::Origins;
use crate::domain::record::Call;
use crate::gateway::GatewayBody;

use super::count::Uncounted;
use super::instrument::{panicked, see_refusal};
use super::{HttpState, INFERENCE, inference, metrics_router, router};

/// The services of one listener. Cheap to clone.
#[derive(Clone)]
pub struct Surface(Arc<Inner>);

struct Inner {
    state: HttpState,
    router: Router,
    /// Inference calls bypass the router.
    direct: bool,
}

impl Surface {
    /// The services of the main listener.
    pub fn new(state: &HttpState, origins: &Origins, with_metrics: bool) -> Self {
        let direct = matches!(origins, Origins::List(list) if list.is_empty());
        let router = router(state, origins, with_metrics);
        Self(Arc::new(Inner { state: state.clone(), router, direct }))
    }

    /// The services of the listener at `METRICS_ADDR`.
    pub fn metrics(state: &HttpState) -> Self {
        Self(Arc::new(Inner { state: state.clone(), router: metrics_router(state), direct: false }))
    }

    /// Answers one request of `peer`. Never fails; hyper's service type requires the `Result`.
    pub async fn answer<B>(
        self,
        mut request: Request<B>,
        peer: SocketAddr,
    ) -> Result<Response<SurfaceBody>, Infallible>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<axum::BoxError>,
    {
        let inner = &*self.0;
        let route = INFERENCE.iter().find(|(path, _)| inner.direct && request.uri().path() == *path);
        if let Some((path, call)) = route
            && request.method() == Method::POST
        {
            let headers = std::mem::take(request.headers_mut());
            let answer = inner.infer(path, *call, headers, request.into_body()).await;
            return Ok(answer.map(SurfaceBody::Gateway));
        }
        let mut request = request.map(AxumBody::new);
        // Handlers may extract the peer's address.
        request.extensions_mut().insert(ConnectInfo(peer));
        let response = inner.router.clone().oneshot(request).await?;
        Ok(response.map(SurfaceBody::Router))
    }
}

impl Inner {
    async fn infer<B>(
        &self,
        path: &'static str,
        call: Call,
        headers: HeaderMap,
        body: B,
    ) -> Response<GatewayBody>
    where
        B: Body<Data = Bytes>,
        B::Error: Into<axum::BoxError>,
    {
        let gateway = &self.state.gateway;
        let uncounted = Uncounted::new(gateway.telemetry(), path, Method::POST);
        let scope = gateway.open(call);
        let answer = inference::answer(&self.state, scope.clone(), headers, body);
        let response = match AssertUnwindSafe(answer).catch_unwind().await {
            Ok(response) => response,
            Err(_) => panicked(call),
        };
        see_refusal(&scope, &response);
        uncounted.answered(response.status());
        response
    }
}

/// The body of an answer, from the gateway or the router.
pub enum SurfaceBody {
    Gateway(GatewayBody),
    Router(AxumBody),
}

impl Body for SurfaceBody {
    type Data = Bytes;
    type Error = axum::BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::BoxError>>> {
        match self.get_mut() {
            Self::Gateway(body) => Pin::new(body).poll_frame(cx).map_err(Into::into),
            Self::Router(body) => Pin::new(body).poll_frame(cx).map_err(Into::into),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Gateway(body) => body.is_end_stream(),
            Self::Router(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Gateway(body) => body.size_hint(),
            Self::Router(body) => body.size_hint(),
        }
    }
}
