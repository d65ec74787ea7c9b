//! A listener and its connections.

use std::convert::Infallible;
use std::future::poll_fn;
use std::io::{self, ErrorKind, IoSlice};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::{Request, Version};
use http_body::{Body, Frame, SizeHint};
use http_body_util::Either;
use hyper::body::Incoming;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::discard::{Discard, Discarded};
use super::quiet::{Quiet, Quieted};
use super::unread::Unread;
use crate::http::{ClientBody, Surface};

/// The pause in accepting after an error that is not one connection's (mostly: out of file descriptors).
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// A connection without a request in flight is closed after this long, whether it is silent or has sent half a head.
/// Longer than the keep-alive of the large clouds' load balancers (600 s): they must be the ones to close.
const IDLE_TIMEOUT: Duration = Duration::from_secs(660);

/// A connection that is to close, without a request in flight and with a client that reads nothing of the rest of an
/// answer, stays open for this long: it may have sent half a head.
const LINGER: Duration = Duration::from_secs(3);

/// Pieces of an answer up to this total length are sent as one: copying them costs less than having the kernel gather
/// them, and most answers are this short.
const JOINED: usize = 4096;

/// Serves clients that pause for no longer than `patience` until `stop`; then accepts no more, waits until running
/// requests finish or `cut` ends them, and returns.
pub(super) async fn serve(
    listener: TcpListener,
    surface: Surface,
    patience: Duration,
    stop: CancellationToken,
    cut: CancellationToken,
) {
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                drop(connections.spawn(attend(
                    stream,
                    peer,
                    surface.clone(),
                    patience,
                    stop.clone(),
                    cut.clone(),
                    // One for each connection, so that they do not contend for its reference count.
                    Discard::new(connections.clone(), cut.clone()),
                )));
            }
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                tracing::error!(%error, "no connection can be accepted");
                tokio::select! {
                    () = stop.cancelled() => break,
                    () = tokio::time::sleep(ACCEPT_PAUSE) => {}
                }
            }
        }
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

async fn attend(
    stream: TcpStream,
    peer: SocketAddr,
    surface: Surface,
    patience: Duration,
    stop: CancellationToken,
    cut: CancellationToken,
    discard: Arc<Discard>,
) {
    // Chunks of a stream are small and must not wait for each other (Nagle).
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY could not be set");
    }
    let builder = auto::Builder::new(TokioExecutor::new());
    let activity = Arc::<Activity>::default();
    let unread = Arc::<Unread<_>>::default();
    let (seen, held) = (activity.clone(), unread.clone());
    let service = service_fn(move |request| {
        let answering = seen.clone().begin();
        let surface = surface.clone();
        let is_http2 = request.version() == Version::HTTP_2;
        let held = is_http2.then(|| held.clone());
        let discard = (!is_http2).then(|| discard.clone());
        async move {
            let (head, body): (_, Incoming) = request.into_parts();
            let body = ClientBody::new(Quieted::new(body, !is_http2), patience);
            // Over HTTP/2 a stream is reset without harm to its answer.
            let body = match discard {
                Some(discard) => Either::Left(Discarded::new(body, &head.headers, discard)),
                None => Either::Right(body),
            };
            let response = surface.answer(Request::from_parts(head, body), peer).await?;
            Ok::<_, Infallible>(response.map(|body| {
                let answer = Answer { body, _answering: answering };
                match held {
                    Some(held) => Either::Left(held.hold(answer)),
                    None => Either::Right(answer),
                }
            }))
        }
    });
    let stream = Watched { stream: TokioIo::new(stream), activity: activity.clone(), patience, pause: None };
    let mut connection = pin!(builder.serve_connection(stream, service));
    let mut quiet = Quiet::default();
    let mut served = tokio::select! {
        biased;
        served = poll_fn(|cx| connection.as_mut().poll(&mut quiet.context(cx))) => Some(served),
        () = stop.cancelled() => None,
        () = activity.ceased(IDLE_TIMEOUT) => None,
        never = unread.take_away(patience) => match never {},
    };
    if served.is_none() {
        connection.as_mut().graceful_shutdown();
        served = tokio::select! {
            biased;
            served = poll_fn(|cx| connection.as_mut().poll(&mut quiet.context(cx))) => Some(served),
            () = activity.ceased(LINGER) => None,
            () = cut.cancelled() => None,
            never = unread.take_away(patience) => match never {},
        };
    }
    if let Some(Err(error)) = served {
        // Clients come and go as they like.
        tracing::debug!(error, "a connection broke");
    }
}

/// Activity of one connection.
#[derive(Default)]
struct Activity {
    /// Requests that have begun.
    begun: AtomicU64,
    /// Requests whose answer hyper has.
    done: AtomicU64,
    /// Writes of which the client's side accepted at least one byte.
    written: AtomicU64,
}

impl Activity {
    fn begin(self: Arc<Self>) -> Answering {
        self.begun.fetch_add(1, Ordering::Relaxed);
        Answering(self)
    }

    /// Waits until nothing has been asked, answered or written for `silence` to twice as long. Counters instead of
    /// timestamps, so that a request costs no look at a clock.
    async fn ceased(&self, silence: Duration) {
        let mut before = None;
        loop {
            tokio::time::sleep(silence).await;
            let [begun, done, written] =
                [&self.begun, &self.done, &self.written].map(|count| count.load(Ordering::Relaxed));
            let now = (begun == done).then_some((begun, written));
            if now.is_some() && now == before {
                return;
            }
            before = now;
        }
    }
}

/// A connection whose writes are noted: hyper has an answer long before a slow client has it.
struct Watched {
    stream: TokioIo<TcpStream>,
    activity: Arc<Activity>,
    /// How long the client may read nothing although bytes are waiting for it.
    patience: Duration,
    /// Runs while it reads nothing.
    pause: Option<Pin<Box<Sleep>>>,
}

impl Watched {
    fn wrote(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if matches!(written, Poll::Ready(Ok(1..))) {
            self.activity.written.fetch_add(1, Ordering::Relaxed);
        }
        if written.is_ready() {
            self.pause = None;
            return written;
        }
        let pause = self.pause.get_or_insert_with(|| Box::pin(tokio::time::sleep(self.patience)));
        ready!(pause.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(ErrorKind::TimedOut, "the client takes nothing of its answer")))
    }
}

impl Read for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl Write for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.wrote(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let stream = Pin::new(&mut self.stream);
        let length: usize = pieces.iter().map(|piece| piece.len()).sum();
        let written = if let [piece] = pieces {
            stream.poll_write(cx, piece)
        } else if length > JOINED {
            stream.poll_write_vectored(cx, pieces)
        } else {
            let (mut joined, mut end) = ([0; JOINED], 0);
            for piece in pieces {
                joined[end..end + piece.len()].copy_from_slice(piece);
                end += piece.len();
            }
            stream.poll_write(cx, &joined[..end])
        };
        self.wrote(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// A request that is being answered.
struct Answering(Arc<Activity>);

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.done.fetch_add(1, Ordering::Relaxed);
    }
}

/// An answer's body; its request counts as being answered until hyper has all of it.
struct Answer<B> {
    body: B,
    _answering: Answering,
}

impl<B: Body + Unpin> Body for Answer<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Whether a connection was gone before it was accepted.
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::ConnectionRefused | ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset
    )
}
