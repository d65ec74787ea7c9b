//! HTTP/2 connections: each carries many requests at once, and has a task of its own.

use std::error::Error as _;
use std::fmt;
use std::future::{Future as _, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use parking_lot::Mutex;

use super::{IDLE_TIMEOUT, Stream};

/// Pings on a silent connection with requests in flight. Without them, a peer that vanished would be sent requests
/// until TCP gave up, for minutes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ping {
    /// Silence before a ping is sent.
    pub(super) interval: Duration,
    /// How long the peer has to answer.
    pub(super) timeout: Duration,
}

impl Default for Ping {
    fn default() -> Self {
        Self { interval: Duration::from_secs(30), timeout: Duration::from_secs(10) }
    }
}

/// How much of one answer the peer may send before it has been read: as much as a slow client can make the gateway hold,
/// and as fast as an answer can be over a long way, in bytes for each round trip.
pub(super) const STREAM_WINDOW: u32 = 1 << 20;

/// How much of all answers of a connection. Bytes that no client has read yet count here too, so with a window that a few
/// slow clients can fill, they would hold up everybody else's answers. This one is out of reach, as in Go's client.
const CONNECTION_WINDOW: u32 = 1 << 30;

/// A pooled connection.
pub(super) struct Http2 {
    sender: SendRequest<Full<Bytes>>,
    streams: Arc<Streams>,
    used: Instant,
}

/// A connection's open streams, and the number that its peer allows. hyper would let more requests wait in a queue of
/// its own, unseen.
pub(super) struct Streams {
    open: AtomicUsize,
    /// A request has told that the connection broke.
    broken: AtomicBool,
    /// The peer's `SETTINGS_MAX_CONCURRENT_STREAMS`, which it may change.
    most: Box<dyn Fn() -> usize + Send + Sync>,
}

/// One request on a connection, until its answer has been read.
pub(super) struct Slot(Arc<Streams>);

impl Slot {
    pub(super) fn streams(&self) -> &Arc<Streams> {
        &self.0
    }
}

impl fmt::Debug for Streams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Streams").field("open", &self.open).finish_non_exhaustive()
    }
}

impl Streams {
    /// Tells that the connection broke; returns whether no other request has told before.
    pub(super) fn tell_first(&self) -> bool {
        !self.broken.swap(true, Ordering::Relaxed)
    }
}

/// Whether the peer certainly did not work on the request: it refused the stream, or it closes the connection in order
/// and the stream came too late for that (RFC 9113 § 8.7).
pub(super) fn is_unprocessed(error: &hyper::Error) -> bool {
    cause(error).is_some_and(|error| {
        let refused = error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
        let too_late =
            error.is_go_away() && error.is_remote() && error.reason() == Some(h2::Reason::NO_ERROR);
        refused || too_late
    })
}

/// Whether the whole connection failed, and not one stream.
pub(super) fn ends_connection(error: &hyper::Error) -> bool {
    cause(error).is_none_or(|error| !error.is_reset())
}

fn cause(error: &hyper::Error) -> Option<&h2::Error> {
    error.source()?.downcast_ref()
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Http2 {
    pub(super) async fn open<S: Stream>(stream: S, ping: Ping) -> hyper::Result<Self> {
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(ping.interval)
            .keep_alive_timeout(ping.timeout)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .handshake(stream)
            .await?;
        // Shared, because only the connection knows its peer's limit. Dropped when it has ended, so that its sender
        // notices. The lock is held briefly: this task only hands requests over; another task of hyper's reads and
        // writes. It ends with its peer, or when its sender and its requests are gone.
        let shared = Arc::new(Mutex::new(Some(connection)));
        let asked = shared.clone();
        let most = Box::new(move || asked.lock().as_ref().map_or(0, |it| it.current_max_send_streams()));
        tokio::spawn(async move {
            let ended = poll_fn(|cx| {
                let mut connection = shared.lock();
                let polled = match connection.as_mut() {
                    Some(connection) => Pin::new(connection).poll(cx),
                    None => Poll::Ready(Ok(())),
                };
                if polled.is_ready() {
                    *connection = None;
                }
                polled
            });
            if let Err(error) = ended.await {
                tracing::debug!(%error, "a connection to an upstream broke");
            }
        });
        let streams = Arc::new(Streams { open: AtomicUsize::new(0), broken: AtomicBool::new(false), most });
        Ok(Self { sender, streams, used: Instant::now() })
    }

    /// Takes a stream for one more request, if one is free. Callers must not call it concurrently.
    pub(super) fn take(&mut self) -> Option<(SendRequest<Full<Bytes>>, Slot)> {
        if self.sender.is_closed() || !self.has_room() {
            return None;
        }
        self.streams.open.fetch_add(1, Ordering::Relaxed);
        self.used = Instant::now();
        Some((self.sender.clone(), Slot(self.streams.clone())))
    }

    pub(super) fn has_room(&self) -> bool {
        self.streams.open.load(Ordering::Relaxed) < (self.streams.most)()
    }

    pub(super) fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    pub(super) fn is_old(&self) -> bool {
        self.used.elapsed() >= IDLE_TIMEOUT
    }
}
