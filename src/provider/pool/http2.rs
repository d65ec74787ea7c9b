//! An HTTP/2 connection: it carries many requests at one time, and has a task of its own.

use std::future::{Future as _, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use parking_lot::Mutex;

use super::{IDLE_TIMEOUT, Stream};

/// While requests are under way on a connection that nothing comes from, its peer is asked whether it is still there.
/// Otherwise a peer that vanished would be sent requests until TCP gave up, for minutes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ping {
    /// After so much silence.
    pub(super) interval: Duration,
    /// It has this long to answer.
    pub(super) timeout: Duration,
}

impl Default for Ping {
    fn default() -> Self {
        Self { interval: Duration::from_secs(30), timeout: Duration::from_secs(10) }
    }
}

/// A connection that is kept for further requests.
pub(super) struct Http2 {
    sender: SendRequest<Full<Bytes>>,
    streams: Arc<Streams>,
    used: Instant,
}

/// What a connection carries, and what its peer allows. hyper would let more requests wait in a queue of its own, unseen.
struct Streams {
    open: AtomicUsize,
    /// The peer says it in its settings, and may change its mind.
    most: Box<dyn Fn() -> usize + Send + Sync>,
}

/// One request on a connection, until its answer has been read.
pub(super) struct Slot(Arc<Streams>);

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
            .handshake(stream)
            .await?;
        // Shared, because the connection alone knows what its peer allows. Gone when it has ended, so that its sender sees that.
        // The lock is held briefly: this task hands requests over, and reading and writing is done by another one of hyper's. It
        // ends with its peer, or when its sender and its requests are gone.
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
        let streams = Arc::new(Streams { open: AtomicUsize::new(0), most });
        Ok(Self { sender, streams, used: Instant::now() })
    }

    /// Room for one more request, if there is any. To be called by one caller at a time.
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
