//! Connections to upstreams, kept for the next request.
//!
//! A connection has no task of its own: the task that waits for an answer, or reads its body, drives the connection it
//! comes on. So a request costs no task switch, no wake-up through a channel, and no third task that waits to return
//! the connection to the pool (hyper-util's pool has all three; docs/PERFORMANCE.md has the figures). An idle
//! connection is not driven at all: a close by its peer is noticed at the next use, and the request then goes on
//! another connection. HTTP/1.1 is spoken [here](super::http1), HTTP/2 by hyper.

use std::collections::HashMap;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Method, Request, Response, Uri};
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper::rt::{Read, Write};
use hyper_util::client::legacy::connect::Connection;
use parking_lot::Mutex;
use tokio::task::unconstrained;
use tower::{Service, ServiceExt as _};

use super::destination::{ByHash, Destination, Origin};
use super::headers::UpstreamHeaders;
use super::http1::{ExchangeError, Http1, OutgoingHead};
use http2::{Http2, Ping, Slot, Streams};

mod http2;

/// Idle connections are closed after this long; common load balancers close theirs after 60 s or more.
const IDLE_TIMEOUT: Duration = Duration::from_secs(55);

/// How often a request is sent again that the peer did not work on.
const MAX_REFUSED: u32 = 3;

/// A reused connection that breaks this soon was being closed already. It covers a round trip to anywhere.
const STALE_WITHIN: Duration = Duration::from_secs(1);

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A request to an upstream. Not for logs: the body is a caller's prompt.
pub struct UpstreamRequest<'a> {
    /// `GET` or `POST`.
    pub method: Method,
    /// All but `Host` and the body's length.
    pub headers: UpstreamHeaders<'a>,
    /// Empty for `GET`.
    pub body: Bytes,
    /// Not over a kept HTTP/1.1 connection.
    pub fresh: bool,
}

/// Why a request got no answer.
#[derive(Debug)]
pub(super) enum PoolError {
    /// No connection could be made.
    Connect(BoxError),
    /// The connection broke.
    Broken(BoxError),
    /// A connection that had carried other requests, or carries others that tell, broke before the first byte of an answer.
    /// The request may have arrived.
    Stale(BoxError),
    /// The received bytes are not HTTP.
    Garbled(BoxError),
}

impl From<ExchangeError> for PoolError {
    fn from(error: ExchangeError) -> Self {
        match error {
            ExchangeError::Garbled(_) => Self::Garbled(error.into()),
            ExchangeError::Closed
            | ExchangeError::Io(_)
            | ExchangeError::Unsent(_)
            | ExchangeError::Unanswered(_) => Self::Broken(error.into()),
        }
    }
}

impl From<hyper::Error> for PoolError {
    fn from(error: hyper::Error) -> Self {
        if error.is_parse() { Self::Garbled(error.into()) } else { Self::Broken(error.into()) }
    }
}

/// A connection as a connector opens it.
pub(super) trait Stream: Read + Write + Connection + Unpin + Send + 'static {}

impl<T: Read + Write + Connection + Unpin + Send + 'static> Stream for T {}

/// Connections of one kind, to any origin.
pub(super) struct Pool<C>
where
    C: Service<Uri, Response: Stream>,
{
    connector: C,
    /// Covers everything until a request can be sent: DNS, TCP, a proxy's tunnel, TLS.
    connect_timeout: Duration,
    stale_within: Duration,
    ping: Ping,
    shared: Arc<Shared<C::Response>>,
}

struct Shared<S: Stream> {
    origins: Mutex<Origins<S>>,
}

struct Origins<S: Stream> {
    by_origin: HashMap<Arc<Origin>, Kept<S>, ByHash>,
    /// Whether a task is closing connections that idle for too long; it ends when none are left.
    swept: bool,
}

struct Kept<S: Stream> {
    /// The longest idle first; the last one is used next, so that surplus ones age out.
    idle: Vec<Idle<S>>,
    /// The first one with room is used next.
    shared: Vec<Http2>,
}

impl<S: Stream> Default for Kept<S> {
    fn default() -> Self {
        Self { idle: Vec::new(), shared: Vec::new() }
    }
}

struct Idle<S: Stream> {
    line: Box<Line<S>>,
    since: Instant,
}

/// One HTTP/1.1 connection. Boxed once, when it is opened, because it is moved often.
struct Line<S: Stream> {
    http: Http1<S>,
    /// Plain HTTP through a proxy takes requests in absolute form.
    absolute: bool,
    /// The pool it returns to when it is free.
    pool: Weak<Shared<S>>,
    origin: Arc<Origin>,
}

enum Way<S: Stream> {
    Alone {
        line: Box<Line<S>>,
        /// When it was taken out of the pool; `None`: it is new.
        reused: Option<Instant>,
    },
    Shared {
        sender: SendRequest<Full<Bytes>>,
        slot: Slot,
        reused: bool,
    },
}

impl<C> Pool<C>
where
    C: Service<Uri, Response: Stream, Error = BoxError, Future: Send> + Clone,
{
    pub(super) fn new(connector: C, connect_timeout: Duration) -> Self {
        let origins = Origins { by_origin: HashMap::default(), swept: false };
        let shared = Arc::new(Shared { origins: Mutex::new(origins) });
        Self { connector, connect_timeout, stale_within: STALE_WITHIN, ping: Ping::default(), shared }
    }

    /// Sends a request and waits for the head of the answer.
    pub(super) async fn send(
        &self,
        to: &Destination,
        request: UpstreamRequest<'_>,
    ) -> Result<Response<UpstreamBody>, PoolError> {
        let UpstreamRequest { method, headers, body, fresh } = request;
        let mut refused = 0;
        loop {
            // The rare paths are boxed: the future of a request is moved, and lives for as long as its answer takes.
            let way = match self.shared.take(to.origin(), fresh) {
                Some(way) => way,
                None => Box::pin(self.connect(to)).await.map_err(PoolError::Connect)?,
            };
            match way {
                Way::Alone { mut line, reused } => {
                    if reused.is_some() && unconstrained(poll_fn(|_| Poll::Ready(line.http.is_stale()))).await
                    {
                        // The peer has closed it. Nothing was sent. (Unconstrained: when tokio's budget of the task is
                        // used up, a read seems to find nothing, and there may be hundreds of such connections.)
                        continue;
                    }
                    let head = OutgoingHead {
                        method: &method,
                        // A proxy gets the whole URL (RFC 9112 § 3.2).
                        target: if line.absolute { to.uri() } else { to.path() },
                        host: to.host(),
                        headers: &headers,
                    };
                    match line.http.send(&head, body.clone()).await {
                        Ok(response) => return Ok(response.map(|()| UpstreamBody::of(line))),
                        Err(ExchangeError::Unsent(_)) if reused.is_some() => {}
                        // The peer closed it while the request was on its way, most likely because it had been idle for too
                        // long. A peer that closes later has worked on the request.
                        Err(ExchangeError::Unanswered(error))
                            if reused.is_some_and(|taken| taken.elapsed() < self.stale_within) =>
                        {
                            return Err(PoolError::Stale(error.into()));
                        }
                        Err(error) => return Err(error.into()),
                    }
                }
                Way::Shared { mut sender, slot, reused } => {
                    let mut request = Request::new(Full::new(body.clone()));
                    *request.method_mut() = method.clone();
                    *request.uri_mut() = to.uri().clone();
                    request.headers_mut().reserve(headers.iter().count());
                    for (name, value) in headers.iter() {
                        request.headers_mut().append(name, value.clone());
                    }
                    let since = Instant::now();
                    match Box::pin(sender.try_send_request(request)).await {
                        Ok(response) => {
                            return Ok(response.map(|body| UpstreamBody(Source::Shared { body, slot })));
                        }
                        Err(mut failed) => {
                            let unsent = failed.take_message().is_some();
                            let error = failed.into_error();
                            if reused && unsent {
                                continue;
                            }
                            if http2::is_unprocessed(&error) && refused < MAX_REFUSED {
                                refused += 1;
                                continue;
                            }
                            let was_closing = reused && since.elapsed() < self.stale_within;
                            // The provider is blamed once for a connection that carried many requests.
                            if http2::ends_connection(&error) && (was_closing || !slot.streams().tell_first())
                            {
                                return Err(PoolError::Stale(error.into()));
                            }
                            return Err(error.into());
                        }
                    }
                }
            }
        }
    }

    async fn connect(&self, to: &Destination) -> Result<Way<C::Response>, BoxError> {
        let opening = async {
            let stream = self.connector.clone().oneshot(to.uri().clone()).await?;
            let connected = stream.connected();
            if connected.is_negotiated_h2() {
                return self.shared.share(to.origin(), Http2::open(stream, self.ping).await?);
            }
            let line = Line {
                http: Http1::new(stream),
                absolute: connected.is_proxied(),
                pool: Arc::downgrade(&self.shared),
                origin: to.origin().clone(),
            };
            Ok(Way::Alone { line: Box::new(line), reused: None })
        };
        let Ok(opened) = tokio::time::timeout(self.connect_timeout, opening).await else {
            return Err(
                format!("no connection within {}", humantime::format_duration(self.connect_timeout)).into()
            );
        };
        opened
    }
}

impl<S: Stream> Shared<S> {
    /// Takes a pooled connection, if there is one. With `fresh` only one over HTTP/2, which carries many requests at a time.
    fn take(&self, origin: &Origin, fresh: bool) -> Option<Way<S>> {
        let mut origins = self.origins.lock();
        let kept = origins.by_origin.get_mut(origin)?;
        if let Some((sender, slot)) = kept.shared.iter_mut().find_map(Http2::take) {
            return Some(Way::Shared { sender, slot, reused: true });
        }
        if fresh {
            return None;
        }
        let Idle { line, since } = kept.idle.pop()?;
        let now = Instant::now();
        if now - since < IDLE_TIMEOUT {
            return Some(Way::Alone { line, reused: Some(now) });
        }
        // The least idle one is too old, so all are.
        let old = std::mem::take(&mut kept.idle);
        drop(origins);
        drop((line, old));
        None
    }

    /// Prepares the first request on a new connection, and pools the connection when no other one has a free stream.
    fn share(self: &Arc<Self>, origin: &Arc<Origin>, mut opened: Http2) -> Result<Way<S>, BoxError> {
        let (sender, slot) = opened.take().ok_or("the peer closed the connection, or allows no requests")?;
        let mut origins = self.origins.lock();
        let kept = origins.by_origin.entry(origin.clone()).or_default();
        kept.shared.retain(|connection| !connection.is_closed());
        // Many may have been opened at once, because there was none.
        if !kept.shared.iter().any(Http2::has_room) {
            kept.shared.push(opened);
        }
        drop(origins);
        self.keep_swept();
        Ok(Way::Shared { sender, slot, reused: false })
    }

    fn put(self: &Arc<Self>, line: Box<Line<S>>) {
        let idle = Idle { line, since: Instant::now() };
        let mut origins = self.origins.lock();
        let swept = origins.swept;
        match origins.by_origin.get_mut(&idle.line.origin) {
            Some(kept) => kept.idle.push(idle),
            None => origins.by_origin.entry(idle.line.origin.clone()).or_default().idle.push(idle),
        }
        drop(origins);
        if !swept {
            self.keep_swept();
        }
    }

    /// Makes sure that a task closes connections that grow too old.
    fn keep_swept(self: &Arc<Self>) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        if std::mem::replace(&mut self.origins.lock().swept, true) {
            return;
        }
        let shared = Arc::downgrade(self);
        // It ends when nothing is left to sweep, or the pool is gone.
        runtime.spawn(async move {
            while shared.upgrade().is_some_and(|shared| shared.sweep()) {
                tokio::time::sleep(IDLE_TIMEOUT / 4).await;
            }
        });
    }

    /// Closes connections that have been idle for too long; returns whether any are left.
    fn sweep(&self) -> bool {
        let mut old = Vec::new();
        let mut origins = self.origins.lock();
        for kept in origins.by_origin.values_mut() {
            let aged = kept.idle.partition_point(|idle| idle.since.elapsed() >= IDLE_TIMEOUT);
            old.extend(kept.idle.drain(..aged));
            kept.shared.retain(|connection| !connection.is_closed() && !connection.is_old());
        }
        origins.by_origin.retain(|_, kept| !kept.idle.is_empty() || !kept.shared.is_empty());
        origins.swept = !origins.by_origin.is_empty();
        let left = origins.swept;
        // Sockets should not be closed under the lock.
        drop(origins);
        drop(old);
        left
    }
}

/// The connection as seen by the body that it carries.
trait Receive: Send {
    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, ExchangeError>>>;

    fn is_done(&self) -> bool;

    fn size_hint(&self) -> SizeHint;

    /// The body has been read: the connection may carry another request.
    fn give_back(self: Box<Self>);
}

impl<S: Stream> Receive for Line<S> {
    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, ExchangeError>>> {
        self.http.poll_data(cx)
    }

    fn is_done(&self) -> bool {
        self.http.is_done()
    }

    fn size_hint(&self) -> SizeHint {
        self.http.size_hint()
    }

    fn give_back(mut self: Box<Self>) {
        if let Some(pool) = self.pool.upgrade().filter(|_| self.http.is_free()) {
            self.http.rest();
            pool.put(self);
        }
    }
}

/// The body of an upstream's answer. Dropped before its end, it closes the connection: that is how an upstream learns
/// to stop.
pub struct UpstreamBody(Source);

enum Source {
    Alone(Box<dyn Receive>),
    /// HTTP/2: the connection has a task of its own.
    Shared {
        body: Incoming,
        slot: Slot,
    },
    Over,
}

/// A body broke off.
#[derive(Debug, thiserror::Error)]
#[error("{source}")]
pub struct BodyError {
    source: BoxError,
    garbled: bool,
    /// If it was the whole connection that broke: the requests that it carried.
    shared_with: Option<Arc<Streams>>,
}

impl BodyError {
    fn of_shared(error: hyper::Error, slot: &Slot) -> Self {
        let shared_with = http2::ends_connection(&error).then(|| slot.streams().clone());
        Self { garbled: error.is_parse(), source: error.into(), shared_with }
    }

    /// Tells that the body broke off; returns whether another one has told before that their connection broke.
    pub fn tell_again(&self) -> bool {
        self.shared_with.as_ref().is_some_and(|streams| !streams.tell_first())
    }

    /// Whether the received bytes are not HTTP.
    pub fn is_garbled(&self) -> bool {
        self.garbled
    }
}

impl From<ExchangeError> for BodyError {
    fn from(error: ExchangeError) -> Self {
        Self { garbled: matches!(error, ExchangeError::Garbled(_)), source: error.into(), shared_with: None }
    }
}

impl UpstreamBody {
    fn of<S: Stream>(line: Box<Line<S>>) -> Self {
        let mut body = Self(Source::Alone(line));
        body.give_back_when_done();
        body
    }

    fn give_back_when_done(&mut self) {
        if matches!(&self.0, Source::Alone(line) if line.is_done())
            && let Source::Alone(line) = std::mem::replace(&mut self.0, Source::Over)
        {
            line.give_back();
        }
    }
}

impl Body for UpstreamBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let data = match &mut self.0 {
            Source::Alone(line) => ready!(line.poll_data(cx)),
            Source::Shared { body, slot } => {
                let frame = ready!(Pin::new(body).poll_frame(cx));
                let broken = |error| BodyError::of_shared(error, slot);
                return Poll::Ready(frame.map(|frame| frame.map_err(broken)));
            }
            Source::Over => None,
        };
        self.give_back_when_done();
        Poll::Ready(data.map(|data| data.map(Frame::data).map_err(BodyError::from)))
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Source::Alone(line) => line.is_done(),
            Source::Shared { body, .. } => body.is_end_stream(),
            Source::Over => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Source::Alone(line) => line.size_hint(),
            Source::Shared { body, .. } => body.size_hint(),
            Source::Over => SizeHint::with_exact(0),
        }
    }
}

#[cfg(test)]
mod tests;
