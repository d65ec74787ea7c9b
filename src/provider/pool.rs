//! Connections to upstreams, kept for the next request.
//!
//! hyper's connections are used without a task of their own: whoever waits for an answer, or reads its body, drives the
//! connection it comes on. So a request costs no switch between tasks, no channel between them that has to wake anybody,
//! and no third task that waits to put the connection back (hyper-util's pool has all three; docs/PERFORMANCE.md has the
//! figures). An idle connection is driven by nobody; that its peer has closed it is noticed when it is next used, and
//! the request then goes on another one, because it was not sent.

use std::collections::HashMap;
use std::future::Future as _;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response, Uri, header};
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1, http2};
use hyper::rt::{Read, Write};
use hyper_util::client::legacy::connect::Connection;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tower::{Service, ServiceExt as _};

use super::destination::{ByHash, Destination, Origin};

/// Idle connections are closed after this long; common load balancers close theirs after 60 s or more.
const IDLE_TIMEOUT: Duration = Duration::from_secs(55);

type Outgoing = Request<Full<Bytes>>;
type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Why a request got no answer.
#[derive(Debug)]
pub(super) enum PoolError {
    /// There is no connection.
    Connect(BoxError),
    /// There was one.
    Exchange(hyper::Error),
}

/// What a connector opens.
pub(super) trait Stream: Read + Write + Connection + Unpin + Send + 'static {}

impl<T: Read + Write + Connection + Unpin + Send + 'static> Stream for T {}

/// Connections of one kind, to anywhere.
pub(super) struct Pool<C>
where
    C: Service<Uri, Response: Stream>,
{
    connector: C,
    shared: Arc<Shared<C::Response>>,
}

struct Shared<S: Stream> {
    origins: Mutex<Origins<S>>,
}

struct Origins<S: Stream> {
    by_origin: HashMap<Arc<Origin>, Kept<S>, ByHash>,
    /// A task closes what has been idle for too long; it ends when nothing is left.
    swept: bool,
}

struct Kept<S: Stream> {
    /// The longest idle first; the last one is used next, so that the others grow old.
    idle: Vec<Idle<S>>,
    /// HTTP/2 carries all requests on one connection, which has a task of its own.
    shared: Option<(http2::SendRequest<Full<Bytes>>, Instant)>,
}

impl<S: Stream> Default for Kept<S> {
    fn default() -> Self {
        Self { idle: Vec::new(), shared: None }
    }
}

struct Idle<S: Stream> {
    line: Box<Line<S>>,
    since: Instant,
}

/// One HTTP/1.1 connection. Boxed once, when it is opened: it is moved from hand to hand.
struct Line<S: Stream> {
    sender: http1::SendRequest<Full<Bytes>>,
    /// `None` once it has ended.
    connection: Option<http1::Connection<S, Full<Bytes>>>,
    /// Plain HTTP by way of a proxy is asked for in absolute form.
    absolute: bool,
}

enum Way<S: Stream> {
    Alone { line: Box<Line<S>>, reused: bool },
    Shared { sender: http2::SendRequest<Full<Bytes>>, reused: bool },
}

impl<C> Pool<C>
where
    C: Service<Uri, Response: Stream, Error = BoxError, Future: Send> + Clone,
{
    pub(super) fn new(connector: C) -> Self {
        let origins = Origins { by_origin: HashMap::default(), swept: false };
        Self { connector, shared: Arc::new(Shared { origins: Mutex::new(origins) }) }
    }

    /// Sends a request to where it is to go, and waits for the head of the answer.
    pub(super) async fn send(
        &self,
        to: &Destination,
        mut request: Outgoing,
    ) -> Result<Response<UpstreamBody>, PoolError> {
        loop {
            // What is rare is boxed: the future of a request is moved, and lives as long as its answer takes.
            let way = match self.shared.take(to.origin()) {
                Some(way) => way,
                None => Box::pin(self.connect(to)).await?,
            };
            let (reused, sent) = match way {
                Way::Alone { line, reused } => {
                    // To a proxy the whole URL is given (RFC 9112 § 3.2).
                    *request.uri_mut() = if line.absolute { to.uri() } else { to.path() }.clone();
                    request.headers_mut().insert(header::HOST, to.host().clone());
                    (reused, self.exchange(line, to.origin(), request).await)
                }
                Way::Shared { mut sender, reused } => {
                    *request.uri_mut() = to.uri().clone();
                    request.headers_mut().remove(header::HOST);
                    let sent = Box::pin(sender.try_send_request(request)).await;
                    (reused, sent.map(|response| response.map(UpstreamBody::multiplexed)))
                }
            };
            match sent {
                Ok(response) => return Ok(response),
                // The peer had closed a kept connection. Nothing was sent, so trying again repeats nothing.
                Err(mut failed) => match failed.take_message().filter(|_| reused) {
                    Some(unsent) => request = unsent,
                    None => return Err(PoolError::Exchange(failed.into_error())),
                },
            }
        }
    }

    async fn connect(&self, to: &Destination) -> Result<Way<C::Response>, PoolError> {
        let stream = self.connector.clone().oneshot(to.uri().clone()).await.map_err(PoolError::Connect)?;
        let connected = stream.connected();
        if connected.is_negotiated_h2() {
            let (sender, connection) = http2::Builder::new(TokioExecutor::new())
                .timer(TokioTimer::new())
                .handshake(stream)
                .await
                .map_err(PoolError::Exchange)?;
            tokio::spawn(async move {
                if let Err(error) = connection.await {
                    tracing::debug!(%error, "a connection to an upstream broke");
                }
            });
            self.shared.lock().by_origin.entry(to.origin().clone()).or_default().shared =
                Some((sender.clone(), Instant::now()));
            self.shared.keep_swept();
            return Ok(Way::Shared { sender, reused: false });
        }
        let (sender, connection) = http1::handshake(stream).await.map_err(PoolError::Exchange)?;
        let line = Box::new(Line { sender, connection: Some(connection), absolute: connected.is_proxied() });
        Ok(Way::Alone { line, reused: false })
    }

    /// Sends on a connection of its own and drives it until the head of the answer is there.
    async fn exchange(
        &self,
        line: Box<Line<C::Response>>,
        origin: &Arc<Origin>,
        request: Outgoing,
    ) -> Result<Response<UpstreamBody>, TrySendError<Outgoing>> {
        let mut line = line;
        let mut answer = pin!(line.sender.try_send_request(request));
        let connection = &mut line.connection;
        let response = std::future::poll_fn(|cx| {
            // The connection first: it is what makes an answer. One that has ended is dropped, because a request that it did
            // not take comes back only then.
            if connection.as_mut().is_some_and(|open| Pin::new(open).poll(cx).is_ready()) {
                *connection = None;
            }
            answer.as_mut().poll(cx)
        })
        .await?;
        let open = line.connection.is_some();
        let driver = open.then(|| {
            let (pool, origin) = (Arc::downgrade(&self.shared), origin.clone());
            Box::new(Lease { line: Some(line), pool, origin }) as Box<dyn Drive>
        });
        Ok(response.map(|incoming| UpstreamBody { incoming, driver }))
    }
}

impl<S: Stream> Shared<S> {
    fn lock(&self) -> MutexGuard<'_, Origins<S>> {
        self.origins.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection that is kept, if there is one.
    fn take(&self, origin: &Origin) -> Option<Way<S>> {
        let mut origins = self.lock();
        let kept = origins.by_origin.get_mut(origin)?;
        if let Some((sender, used)) = &mut kept.shared {
            if !sender.is_closed() {
                *used = Instant::now();
                return Some(Way::Shared { sender: sender.clone(), reused: true });
            }
            kept.shared = None;
        }
        let Idle { line, since } = kept.idle.pop()?;
        if since.elapsed() < IDLE_TIMEOUT {
            return Some(Way::Alone { line, reused: true });
        }
        // The youngest is too old, so all are.
        let old = std::mem::take(&mut kept.idle);
        drop(origins);
        drop((line, old));
        None
    }

    fn put(self: &Arc<Self>, origin: Arc<Origin>, line: Box<Line<S>>) {
        let idle = Idle { line, since: Instant::now() };
        let mut origins = self.lock();
        let swept = origins.swept;
        match origins.by_origin.get_mut(&origin) {
            Some(kept) => kept.idle.push(idle),
            None => origins.by_origin.entry(origin).or_default().idle.push(idle),
        }
        drop(origins);
        if !swept {
            self.keep_swept();
        }
    }

    /// Sees that a task closes what grows too old.
    fn keep_swept(self: &Arc<Self>) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        if std::mem::replace(&mut self.lock().swept, true) {
            return;
        }
        let shared = Arc::downgrade(self);
        runtime.spawn(async move {
            while shared.upgrade().is_some_and(|shared| shared.sweep()) {
                tokio::time::sleep(IDLE_TIMEOUT / 4).await;
            }
        });
    }

    /// Closes what has been idle for too long; returns whether anything is left.
    fn sweep(&self) -> bool {
        let mut old = Vec::new();
        let mut origins = self.lock();
        for kept in origins.by_origin.values_mut() {
            let aged = kept.idle.partition_point(|idle| idle.since.elapsed() >= IDLE_TIMEOUT);
            old.extend(kept.idle.drain(..aged));
            kept.shared = kept
                .shared
                .take()
                .filter(|(sender, used)| !sender.is_closed() && used.elapsed() < IDLE_TIMEOUT);
        }
        origins.by_origin.retain(|_, kept| !kept.idle.is_empty() || kept.shared.is_some());
        origins.swept = !origins.by_origin.is_empty();
        let left = origins.swept;
        // Closing sockets is no work to be done under the lock.
        drop(origins);
        drop(old);
        left
    }
}

/// What a body needs of the connection that it comes on.
trait Drive: Send {
    /// Lets the connection do what it can; ready when it has ended.
    fn poll_drive(&mut self, cx: &mut Context<'_>) -> Poll<()>;

    /// The body has been read: the connection may carry another request.
    fn give_back(&mut self);
}

/// A connection that an answer comes on.
struct Lease<S: Stream> {
    line: Option<Box<Line<S>>>,
    pool: Weak<Shared<S>>,
    origin: Arc<Origin>,
}

impl<S: Stream> Drive for Lease<S> {
    fn poll_drive(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let open = self.line.as_mut().and_then(|line| line.connection.as_mut());
        let Some(connection) = open else { return Poll::Ready(()) };
        // How it ended stands in the body.
        let _ = ready!(Pin::new(connection).poll(cx));
        self.line = None;
        Poll::Ready(())
    }

    fn give_back(&mut self) {
        let (Some(mut line), Some(pool)) = (self.line.take(), self.pool.upgrade()) else { return };
        // The connection has to see that its message is over before it takes another. Nobody has to be woken for it.
        let Some(connection) = line.connection.as_mut() else { return };
        let over = Pin::new(connection).poll(&mut Context::from_waker(Waker::noop())).is_ready();
        if !over && line.sender.is_ready() {
            pool.put(self.origin.clone(), line);
        }
    }
}

/// The body of an upstream's answer. Dropped before its end, it closes the connection: that is how an upstream is told to stop.
pub struct UpstreamBody {
    incoming: Incoming,
    /// `None`: the connection has a task of its own, or has ended.
    driver: Option<Box<dyn Drive>>,
}

impl UpstreamBody {
    fn multiplexed(incoming: Incoming) -> Self {
        Self { incoming, driver: None }
    }

    fn give_back(&mut self) {
        if let Some(mut driver) = self.driver.take() {
            driver.give_back();
        }
    }
}

impl Body for UpstreamBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = self.get_mut();
        let mut polled = Pin::new(&mut this.incoming).poll_frame(cx);
        if polled.is_pending()
            && let Some(driver) = &mut this.driver
        {
            // Asking for a frame is what lets the connection read one.
            if driver.poll_drive(cx).is_ready() {
                this.driver = None;
            }
            polled = Pin::new(&mut this.incoming).poll_frame(cx);
        }
        let frame = ready!(polled);
        match &frame {
            Some(Ok(_)) if this.incoming.is_end_stream() => this.give_back(),
            Some(Ok(_)) => {}
            Some(Err(_)) => this.driver = None,
            None => this.give_back(),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

#[cfg(test)]
mod tests;
