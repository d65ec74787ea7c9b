//! Discards the rest of a refused request's body.
//!
//! A refusal often comes before the request's body has been read. hyper then closes the connection with bytes unread,
//! TCP resets it, and the reset may overtake the answer: a client, and more so a proxy in front, sees a broken
//! connection instead of 401, 413 or 429 with its `Retry-After` (RFC 9112 § 9.6). So the rest of such a body is read
//! and thrown away for a while, beside the answer; the connection can then be reused.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::{HeaderMap, header};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long the rest is read; nginx's `lingering_time`.
const DISCARD_FOR: Duration = Duration::from_secs(30);

/// Runs the tasks that discard bodies.
pub(super) struct Discard {
    tasks: TaskTracker,
    cut: CancellationToken,
}

impl Discard {
    /// Runs in `tasks`, until `cut` at the latest.
    pub(super) fn new(tasks: TaskTracker, cut: CancellationToken) -> Arc<Self> {
        Arc::new(Self { tasks, cut })
    }
}

/// The body of an HTTP/1 request; its unread rest is discarded when it is dropped.
pub(super) struct Discarded<B: Body + Send + Unpin + 'static> {
    /// `None`: nothing is left.
    body: Option<B>,
    by: Arc<Discard>,
    /// The client waits for `100 Continue`, which it gets when the body is first polled. After a refusal it sends
    /// nothing.
    holds_back: bool,
}

impl<B: Body + Send + Unpin + 'static> Discarded<B> {
    pub(super) fn new(body: B, headers: &HeaderMap, by: Arc<Discard>) -> Self {
        Self { body: Some(body), by, holds_back: headers.contains_key(header::EXPECT) }
    }
}

impl<B: Body + Send + Unpin + 'static> Body for Discarded<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        self.holds_back = false;
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let frame = ready!(Pin::new(body).poll_frame(cx));
        // After an error nothing follows; the client may have paused for too long, and has been waited for.
        if !matches!(frame, Some(Ok(_))) {
            self.body = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or(SizeHint::with_exact(0), Body::size_hint)
    }
}

impl<B: Body + Send + Unpin + 'static> Drop for Discarded<B> {
    fn drop(&mut self) {
        if self.holds_back || self.is_end_stream() {
            return;
        }
        let (Some(mut body), Ok(runtime)) = (self.body.take(), Handle::try_current()) else { return };
        let cut = self.by.cut.clone();
        // It ends at once when the connection is gone.
        let reading = async move {
            let rest = async { while let Some(Ok(_)) = body.frame().await {} };
            tokio::select! {
                _ = tokio::time::timeout(DISCARD_FOR, rest) => {}
                () = cut.cancelled() => {}
            }
        };
        self.by.tasks.spawn_on(reading, &runtime);
    }
}
