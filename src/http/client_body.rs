//! The request body, with a limit on the client's pauses.

use std::error::Error;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::BoxError;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::time::Sleep;

/// A request body that fails when its client pauses for longer than `patience`: an unfinished request occupies one of
/// the gateway's places.
pub struct ClientBody<B> {
    body: B,
    patience: Duration,
    /// Runs while the client is waited for. Most bodies are there when they are polled, and need none.
    pause: Option<Pin<Box<Sleep>>>,
}

impl<B> ClientBody<B> {
    /// `patience`: the longest pause between two pieces, and before the first.
    pub fn new(body: B, patience: Duration) -> Self {
        Self { body, patience, pause: None }
    }
}

/// The client paused for too long.
#[derive(Debug, thiserror::Error)]
#[error("the client stopped sending the request's body")]
pub(super) struct ClientStopped;

impl ClientStopped {
    /// Whether this is the cause of an error.
    pub(super) fn caused(error: &(dyn Error + 'static)) -> bool {
        error.is::<Self>() || error.source().is_some_and(Self::caused)
    }
}

/// Whether a body broke off because its client left: it closed the connection or, over HTTP/2, gave up the request.
pub(super) fn is_disconnect(error: &(dyn Error + 'static)) -> bool {
    use std::io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    let ended = [BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof];
    if let Some(error) = error.downcast_ref::<h2::Error>() {
        return error.is_remote() || error.is_io();
    }
    error.downcast_ref::<std::io::Error>().is_some_and(|error| ended.contains(&error.kind()))
        || error.source().is_some_and(is_disconnect)
}

impl<B> Body for ClientBody<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let Self { body, patience, pause } = self.get_mut();
        if let Poll::Ready(frame) = Pin::new(body).poll_frame(cx) {
            *pause = None;
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        let pause = pause.get_or_insert_with(|| Box::pin(tokio::time::sleep(*patience)));
        ready!(pause.as_mut().poll(cx));
        Poll::Ready(Some(Err(Box::new(ClientStopped))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
