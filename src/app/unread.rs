//! Ending HTTP/2 answers whose client has stopped reading.
//!
//! hyper holds a piece of a body until the client's window has room for it, and does not poll the body meanwhile. Over
//! HTTP/1.1 the connection's writes show that a client reads nothing; here the connection goes on, for pings and for
//! other answers, and a body that is never polled would hold its request for ever. So it can be taken away from hyper.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::BoxError;
use http_body::{Body, Frame, SizeHint};
use parking_lot::Mutex;
use tokio::sync::Notify;

/// The bodies of one connection that hyper holds.
pub(super) struct Unread<B> {
    places: Mutex<Vec<Weak<Place<B>>>>,
    begun: Notify,
}

/// A body that can be taken away.
pub(super) struct Held<B>(Arc<Place<B>>);

struct Place<B>(Mutex<State<B>>);

struct State<B> {
    /// `None`: it has been taken away.
    body: Option<B>,
    /// When hyper got a piece, unless it has polled for the next one since.
    given: Option<Instant>,
}

impl<B> Default for Unread<B> {
    fn default() -> Self {
        Self { places: Mutex::default(), begun: Notify::new() }
    }
}

impl<B> Unread<B> {
    pub(super) fn hold(&self, body: B) -> Held<B> {
        let place = Arc::new(Place(Mutex::new(State { body: Some(body), given: None })));
        let mut places = self.places.lock();
        // A weak reference keeps an ended body's allocation. Dead ones are dropped before the list grows.
        if places.len() == places.capacity() {
            places.retain(|place| place.strong_count() > 0);
            let living = places.len();
            places.reserve(living.max(8));
        }
        places.push(Arc::downgrade(&place));
        drop(places);
        self.begun.notify_one();
        Held(place)
    }

    /// Takes away every body that hyper has not polled for `patience` (noticed within twice that). Idle until there is
    /// one.
    pub(super) async fn take_away(&self, patience: Duration) -> Infallible {
        loop {
            if self.places.lock().is_empty() {
                self.begun.notified().await;
            }
            tokio::time::sleep(patience).await;
            let places: Vec<_> = {
                let mut places = self.places.lock();
                places.retain(|place| place.strong_count() > 0);
                places.iter().filter_map(Weak::upgrade).collect()
            };
            for place in places {
                let mut state = place.0.lock();
                let waits = state.given.is_some_and(|at| at.elapsed() >= patience);
                let body = state.body.take_if(|_| waits);
                drop(state);
                // This ends its request.
                drop(body);
            }
        }
    }
}

impl<B: Body<Error = BoxError> + Unpin> Body for Held<B> {
    type Data = B::Data;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, BoxError>>> {
        let mut state = self.0.0.lock();
        state.given = None;
        let Some(body) = &mut state.body else {
            return Poll::Ready(Some(Err("the client took nothing of its answer".into())));
        };
        let polled = Pin::new(body).poll_frame(cx);
        if matches!(polled, Poll::Ready(Some(Ok(_)))) {
            state.given = Some(Instant::now());
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.0.0.lock().body.as_ref().is_some_and(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.0.0.lock().body.as_ref().map(Body::size_hint).unwrap_or_default()
    }
}
