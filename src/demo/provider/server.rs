//! The HTTP side of the scripted provider.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::ask::{Ask, place};
use super::body::{CutSwitch, ScriptBody};
use super::calls::CallGuard;
use super::failure::Failure;
use super::reply::Reply;
use super::script::Choice;
use super::{Endpoint, Shared, control, render};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Serves until it is dropped; all connections end with it.
pub(super) async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                while connections.try_join_next().is_some() {}
                connections.spawn(connection(stream, Arc::clone(&shared)));
            }
            // Out of descriptors, or the client gave up already: the next one may do better.
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

async fn connection(stream: TcpStream, shared: Arc<Shared>) {
    // Without it the pieces of a stream would wait for each other (Nagle); a socket that refuses it still works.
    let _ = stream.set_nodelay(true);
    let cut = CutSwitch::default();
    let io = CuttableIo { inner: TokioIo::new(stream), cut: cut.clone() };
    let service = service_fn(move |request| handle(request, Arc::clone(&shared), cut.clone()));
    // Ends in an error whenever the script or the client breaks off, which the ledger has recorded.
    let _ = http1::Builder::new().serve_connection(io, service).await;
}

/// The script wants the connection closed without an answer, or the client broke off its request.
#[derive(Debug, thiserror::Error)]
#[error("connection closed without an answer")]
struct Closed;

async fn handle(
    request: Request<Incoming>,
    shared: Arc<Shared>,
    cut: CutSwitch,
) -> Result<Response<ScriptBody>, Closed> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map_err(|_| Closed)?.to_bytes();
    if let Some(answer) = control::handle(&parts, &body, &shared) {
        let mut response = Response::new(ScriptBody::unrecorded(answer.body));
        *response.status_mut() = answer.status;
        response.headers_mut().insert(http::header::CONTENT_TYPE, render::JSON);
        return Ok(response);
    }

    let Some(place) = place(&parts.uri) else {
        let lost = Failure::new(StatusCode::NOT_FOUND).message(format!(
            "Invalid URL ({} {})",
            parts.method,
            parts.uri.path()
        ));
        let guard = shared.ledger.open(Endpoint::Unknown, "", parts, body);
        return Ok(respond(&Reply::failure(lost), &Ask::refused(Endpoint::Unknown), cut, guard));
    };
    let endpoint = place.endpoint;
    let ask = Ask::read(&place, &parts.method, &parts.headers, &body);
    let model = ask.as_ref().map_or("", |ask| ask.model.as_str());
    let guard = shared.ledger.open(endpoint, model, parts, body);
    let ask = match ask {
        Ok(ask) => ask,
        Err(failure) => {
            let ask = Ask::refused(endpoint);
            return Ok(respond(&Reply::failure(failure), &ask, cut, guard));
        }
    };

    let turn = shared.script.lock().turn(endpoint);
    if !turn.extra_delay.is_zero() {
        tokio::time::sleep(turn.extra_delay).await;
    }
    if let Some(gate) = turn.hold {
        gate.pass().await;
    }
    let reply = match turn.choice {
        Choice::Reply(reply) => reply,
        Choice::Models(names) => {
            let pieces = render::models(&names, &ask);
            Reply::raw_json(pieces.parts.concat())
        }
        Choice::Open { rules, mix, fallback } => rules
            .iter()
            .find_map(|rule| rule(guard.call(), &ask))
            .or_else(|| mix.map(|mix| mix.draw()))
            .or(fallback)
            .unwrap_or_else(Reply::empty),
    };
    if !reply.delay.is_zero() {
        tokio::time::sleep(reply.delay).await;
    }
    if let Some(gate) = reply.hold.clone() {
        gate.pass().await;
    }
    if reply.drops_connection() {
        guard.cut();
        return Err(Closed);
    }
    Ok(respond(&reply, &ask, cut, guard))
}

fn respond(reply: &Reply, ask: &Ask, cut: CutSwitch, mut guard: CallGuard) -> Response<ScriptBody> {
    let rendered = reply.render(ask);
    guard.answering(rendered.status.as_u16() < 400, rendered.usage);
    let number = guard.call().number;
    let body = ScriptBody::new(Arc::clone(&rendered.steps), rendered.length, cut, guard);
    let mut response = Response::new(body);
    *response.status_mut() = rendered.status;
    *response.headers_mut() = rendered.headers.clone();
    response.headers_mut().insert(REQUEST_ID, HeaderValue::from(number));
    response
}

/// An answer of the control endpoint.
pub(super) struct ControlAnswer {
    pub(super) status: StatusCode,
    pub(super) body: Bytes,
}

/// A connection that the script can close at an exact byte: hyper calls `poll_flush` when everything it was handed has
/// been written, and that is where a requested cut takes effect. The socket is closed in the ordinary way, so the
/// client reads all of those bytes, and then the end of the connection instead of the end of the body.
struct CuttableIo {
    inner: TokioIo<TcpStream>,
    cut: CutSwitch,
}

impl Read for CuttableIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buffer)
    }
}

impl Write for CuttableIo {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.inner).poll_flush(cx))?;
        if self.cut.is_requested() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }
}
