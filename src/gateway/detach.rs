//! Work that goes on when the client has left.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio_util::task::TaskTracker;

use super::scope::RequestScope;

/// Runs a request. When the client leaves, hyper drops the handler, and with it this; the request then goes on by itself
/// for at most `drain`, because the provider charges for it all the same and its usage must be known.
pub(super) struct Attached<F: Future + Send + 'static>
where
    F::Output: Send,
{
    future: Option<Pin<Box<F>>>,
    scope: Arc<RequestScope>,
    tracker: TaskTracker,
    drain: Duration,
}

impl<F: Future + Send + 'static> Attached<F>
where
    F::Output: Send,
{
    pub(super) fn new(future: F, scope: Arc<RequestScope>, tracker: TaskTracker, drain: Duration) -> Self {
        Self { future: Some(Box::pin(future)), scope, tracker, drain }
    }
}

impl<F: Future + Send + 'static> Future for Attached<F>
where
    F::Output: Send,
{
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let Some(future) = self.future.as_mut() else { return Poll::Pending };
        let output = std::task::ready!(future.as_mut().poll(cx));
        self.future = None;
        Poll::Ready(output)
    }
}

impl<F: Future + Send + 'static> Drop for Attached<F>
where
    F::Output: Send,
{
    fn drop(&mut self) {
        let Some(future) = self.future.take() else { return };
        if std::thread::panicking() {
            return;
        }
        self.scope.client_left();
        if !self.drain.is_zero() {
            let drain = self.drain;
            // The answer, if one comes, is dropped at once: nobody is there to read it.
            self.tracker.spawn(async move { drop(tokio::time::timeout(drain, future).await) });
        }
    }
}
